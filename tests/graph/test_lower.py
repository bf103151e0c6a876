"""A lowered graph, executed by loops, gives the results of the module."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from error_matching import raises
from torch import nn

from thaw.errors import UsageError
from thaw.graph.lower import lower
from thaw.graph.ops import Concat, Conv2d, Dense, MaxPool2d, Reshape, Scale, Softmax
from thaw.models.blocks import ConvClassifier, ConvReluPool, DenseClassifier
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, build_dual, build_unified

MEANS, DEVIATIONS = (0.1307, 0.45, 0.5), (0.3081, 0.22, 0.9)


def interpret(graph, image):
    """Run the graph on one image, uint8 (H, W, C), in float64; every tensor by name."""
    values = {graph.input: image}
    for op in graph.ops:
        values[op.output] = run(op, [values[name] for name in op.inputs])
        assert values[op.output].shape == graph.tensor(op.output).shape
    return values


def run(op, reads):
    x = reads[0]
    match op:
        case Scale():
            made = np.stack([(x[..., c] / 255 - op.mean[c]) / op.std[c] for c in range(x.shape[2])], axis=2)
        case Conv2d():
            made = activate(op, convolve(op, x))
        case MaxPool2d():
            made = pool(op, x)
        case Dense():
            sums = [sum(float(w) * v for w, v in zip(row, x, strict=True)) for row in op.weights]
            made = activate(op, np.array(sums) + op.bias)
        case Softmax():
            powers = [math.exp(v - max(x)) for v in x]
            made = np.array(powers) / sum(powers)
        case Concat():
            made = np.concatenate(reads, axis=-1)
        case Reshape():
            made = np.array([x[index] for index in np.ndindex(x.shape)]).reshape(op.shape)
    return made


def convolve(op, x):
    top, bottom, left, right = op.padding
    height, width, channels = x.shape
    padded = np.zeros((top + height + bottom, left + width + right, channels))
    padded[top : top + height, left : left + width] = x
    filters, rows, columns, _ = op.weights.shape
    made = np.zeros((len(padded) - rows + 1, padded.shape[1] - columns + 1, filters))
    for i, j, o in np.ndindex(made.shape):
        made[i, j, o] = op.bias[o] + (padded[i : i + rows, j : j + columns] * op.weights[o].astype(float)).sum()
    return made


def pool(op, x):
    (rows, columns), (down, across) = op.kernel, op.stride
    made = np.zeros(((len(x) - rows) // down + 1, (x.shape[1] - columns) // across + 1, x.shape[2]))
    for i, j, c in np.ndindex(made.shape):
        made[i, j, c] = x[i * down : i * down + rows, j * across : j * across + columns, c].max()
    return made


def activate(op, values):
    return np.where(values > 0, values, 0) if op.activation == "relu" else values


def strong(module):
    """The module with larger weights, so that its scores differ between classes."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(2.0)
    return module.eval()


def assert_equal_outputs(module, shape, classes, seed=0):
    channels = shape[2]
    mean, std = MEANS[:channels], DEVIATIONS[:channels]
    graph = lower(module, shape=shape, mean=mean, std=std, classes=classes)
    images = np.random.default_rng(seed).integers(0, 256, (2, *shape), dtype=np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        logits = module((pixels - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1))
    for index, image in enumerate(images):
        values = interpret(graph, image)
        np.testing.assert_allclose(values["logits"], logits[index].numpy(), rtol=0, atol=1e-5)
        expected = torch.softmax(logits[index], dim=0).numpy()
        np.testing.assert_allclose(values["probabilities"], expected, rtol=0, atol=1e-5)
    assert len({round(float(value), 4) for value in logits.flatten()}) > classes, "the scores are too similar"
    return graph


@pytest.mark.parametrize("scores", ["softmax", "logits"])
@pytest.mark.parametrize(
    ("shape", "filters", "classes"),
    [
        ((28, 28, 1), (10, 20), 10),
        ((10, 10, 1), (1, 1), 2),
        ((11, 17, 2), (3, 5), 4),
        ((23, 12, 3), (4, 3), 7),
    ],
)
def test_unified_model(shape, filters, classes, scores):
    torch.manual_seed(1)
    unify_spec = UnifySpec(hidden=6, scores=scores)
    module = strong(build_unified(PaperSpec(filters=filters), unify_spec, shape, classes))
    graph = assert_equal_outputs(module, shape, classes)
    assert graph.outputs == ("logits", "probabilities")
    assert graph.tensor("image").shape == shape
    assert sum(isinstance(op, Softmax) for op in graph.ops) == (3 if scores == "softmax" else 1)


@pytest.mark.parametrize("shape", [(28, 28, 1), (10, 13, 2), (19, 14, 3)])
def test_submodel_with_its_dense_layer(shape):
    torch.manual_seed(2)
    module = strong(build_dual(PaperSpec(filters=(4, 5)), shape, 6)).branches[1]
    graph = assert_equal_outputs(module, shape, 6)
    assert [op.name for op in graph.ops] == [
        "scale", "conv1", "conv1.pool", "conv2", "conv2.pool", "dense.flatten", "dense", "softmax",
    ]  # fmt: skip


def test_submodel_with_its_dense_layer_as_convolution():
    torch.manual_seed(3)
    unified = build_unified(PaperSpec(filters=(4, 5)), UnifySpec(), (15, 18, 3), 6)
    assert_equal_outputs(strong(unified).branches[0], (15, 18, 3), 6)


def test_padding_and_channels_last_memory():
    torch.manual_seed(4)
    unit = ConvReluPool(2, 3)
    unit.conv = nn.Conv2d(2, 3, (3, 5), padding=(1, 2))
    module = nn.Sequential()
    module.add_module("first", unit)
    module.add_module("last", DenseClassifier((3, 4, 3), 5, 0.5))
    assert_equal_outputs(strong(module).to(memory_format=torch.channels_last), (9, 7, 2), 5)


def test_weights_are_copied_as_float32():
    module = build_unified(PaperSpec(), UnifySpec(), (10, 10, 1), 3).double()
    graph = lower(module, shape=(10, 10, 1), mean=(0,), std=(1,), classes=3)
    weighted = [op for op in graph.ops if isinstance(op, Conv2d | Dense)]
    before = [op.weights.copy() for op in weighted]
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1.0)
    for op, weights in zip(weighted, before, strict=True):
        assert op.weights.dtype == op.bias.dtype == np.float32
        assert op.weights.flags.c_contiguous
        np.testing.assert_array_equal(op.weights, weights)


def classifier(**changes):
    torch.manual_seed(5)
    unit = ConvReluPool(1, 2)
    for name, value in changes.items():
        setattr(unit.conv, name, value)
    module = nn.Sequential()
    module.add_module("first", unit)
    module.add_module("last", ConvClassifier((2, 3, 3), 4, 0.5))
    return module


def nested(*units):
    return nn.Sequential(*units)


@pytest.mark.parametrize(
    ("module", "change", "facts"),
    [
        (
            build_dual(PaperSpec(), (10, 10, 1), 4),
            {},
            (),
        ),
        (nested(nn.GELU()), {}, ("0",)),
        (classifier(), {"shape": (2, 8, 1)}, ("conv2d", "'first'", "(0, 6, 2)")),
        (classifier(), {"shape": (10, 10, 1)}, ("(2, 2, 4)",)),
        (
            classifier(),
            {"shape": (8, 8, 3), "mean": (0,) * 3, "std": (1,) * 3},
            ("'first'", "weights", "1"),
        ),
        (classifier(), {"classes": 5}, ("shape", "(4,)", "(5,)")),
        (classifier(), {"mean": (0, 0)}, ("scale", "'scale'", "std", "1", "(2)")),
        (classifier(), {"mean": (0, 0), "std": (1, 1)}, ("scale", "'scale'", "2", "1")),
        (classifier(), {"std": (0,)}, ("std", "[0]", "1e-09")),
        (classifier(groups=2), {}, ()),
        (classifier(dilation=(2, 2)), {}, ()),
        (classifier(padding="same"), {}, ("padding",)),
        (classifier(padding_mode="reflect"), {}, ("padding",)),
        (classifier(bias=None), {}, ("bias",)),
        (nested(DenseClassifier((1, 8, 7), 4, 0.0)), {}, ("0", "56", "(8, 8, 1)")),
        (
            nested(DenseClassifier((1, 8, 8), 4, 0.0), DenseClassifier((4, 1, 1), 4, 0.0)),
            {},
            ("1", "4", "(4,)"),
        ),
        (nested(nested()), {}, ("shape", "(8, 8, 1)", "(4,)")),
    ],
)
def test_rejects_modules_without_lowering(module, change, facts):
    arguments = {"shape": (8, 8, 1), "mean": (0.0,), "std": (1.0,), "classes": 4}
    with raises(UsageError, *facts):
        lower(module, **{**arguments, **change})


def test_rejects_weights_that_are_not_finite():
    module = classifier()
    with torch.no_grad():
        module[0].conv.weight[0, 0, 1, 1] = float("nan")
    with raises("usage-graph-operation", "'first'", "weights"):
        lower(module, shape=(8, 8, 1), mean=(0.0,), std=(1.0,), classes=4)


@pytest.mark.parametrize("name", ["scale", "image", "logits", "softmax"])
def test_rejects_a_unit_with_a_used_name(name):
    module = nn.Sequential()
    module.add_module(name, ConvReluPool(1, 2))
    module.add_module("last", ConvClassifier((2, 3, 3), 4, 0.5))
    with raises("usage-graph", f"'{name}'"):
        lower(module, shape=(8, 8, 1), mean=(0.0,), std=(1.0,), classes=4)


def test_last_unit_may_be_named_logits():
    torch.manual_seed(6)
    module = nn.Sequential()
    module.add_module("first", ConvReluPool(1, 2))
    module.add_module("logits", DenseClassifier((2, 3, 3), 4, 0.5))
    assert_equal_outputs(strong(module), (8, 8, 1), 4)
