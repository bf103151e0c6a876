"""Layers, unification and parameter counts, compared with NumPy loops and calculations by hand."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from error_matching import raises
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from training_samples import CPU, odd_dual, snapshot

from thaw.models.blocks import ConvClassifier, ConvReluPool, DenseClassifier, Dropout, dropouts
from thaw.models.families import FAMILIES, PaperSpec
from thaw.models.unify import (
    DualModel,
    UnifiedModel,
    UnifySpec,
    average,
    build_dual,
    build_unified,
    unify,
    unit_names,
    units,
)


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().astype(np.float64)


def np_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    count, _, height, width = x.shape
    filters, _, rows, columns = weight.shape
    out = np.zeros((count, filters, height - rows + 1, width - columns + 1))
    for y in range(out.shape[2]):
        for column in range(out.shape[3]):
            window = x[:, :, y : y + rows, column : column + columns]
            for k in range(filters):
                out[:, k, y, column] = (window * weight[k]).sum(axis=(1, 2, 3)) + bias[k]
    return out


def np_pool(x: np.ndarray) -> np.ndarray:
    count, channels, height, width = x.shape
    out = np.zeros((count, channels, height // 2, width // 2))
    for y in range(height // 2):
        for column in range(width // 2):
            out[:, :, y, column] = x[:, :, 2 * y : 2 * y + 2, 2 * column : 2 * column + 2].max(axis=(2, 3))
    return out


def np_block(x: np.ndarray, conv: nn.Conv2d) -> np.ndarray:
    # In the order of the paper: ReLU, then pooling.
    return np_pool(np.maximum(np_conv(x, numbers(conv.weight), numbers(conv.bias)), 0.0))


def np_dense(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    count, channels, height, width = x.shape
    out = np.tile(bias, (count, 1))
    for c in range(channels):
        for y in range(height):
            for column in range(width):
                feature = (c * height + y) * width + column
                out += x[:, c, y, column][:, None] * weight[:, feature][None]
    return out


def np_softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def np_submodel(x: np.ndarray, branch: nn.Sequential) -> np.ndarray:
    x = np_block(np_block(x, branch.conv1.conv), branch.conv2.conv)
    if isinstance(branch.dense, DenseClassifier):
        return np_dense(x, numbers(branch.dense.dense.weight), numbers(branch.dense.dense.bias))
    return np_conv(x, numbers(branch.dense.conv.weight), numbers(branch.dense.conv.bias))[:, :, 0, 0]


def np_unified(x: np.ndarray, model: UnifiedModel) -> np.ndarray:
    scores = [np_submodel(x, branch) for branch in model.branches]
    if model.scores == "softmax":
        scores = [np_softmax(score) for score in scores]
    hidden = np.concatenate(scores, axis=1) @ numbers(model.head.hidden.weight).T + numbers(model.head.hidden.bias)
    return np.maximum(hidden, 0.0) @ numbers(model.head.output.weight).T + numbers(model.head.output.bias)


def images(shape: tuple[int, int, int], count: int = 3, seed: int = 0) -> torch.Tensor:
    height, width, channels = shape
    return torch.randn((count, channels, height, width), generator=torch.Generator().manual_seed(seed))


SHAPES_AND_CLASSES = [
    ((10, 10, 1), 2),
    ((10, 23, 3), 3),
    ((13, 11, 1), 100),
    ((17, 14, 3), 7),
    ((28, 28, 1), 10),
    ((32, 32, 3), 10),
]


@pytest.mark.parametrize(("height", "width", "channels", "filters"), [(4, 4, 1, 5), (5, 8, 3, 4), (9, 6, 10, 2)])
def test_block_agrees_with_loops(height, width, channels, filters):
    torch.manual_seed(height)
    block = ConvReluPool(channels, filters)
    x = images((height, width, channels))
    made = block(x)
    assert made.shape == (3, filters, ConvReluPool.output_side(height), ConvReluPool.output_side(width))
    np.testing.assert_allclose(numbers(made), np_block(numbers(x), block.conv), rtol=1e-5, atol=1e-5)


def test_dense_classifier_agrees_with_loops():
    torch.manual_seed(1)
    unit = DenseClassifier((4, 3, 5), 6, dropout=0.5).eval()
    x = images((3, 5, 4))
    expected = np_dense(numbers(x), numbers(unit.dense.weight), numbers(unit.dense.bias))
    np.testing.assert_allclose(numbers(unit(x)), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scores", ["softmax", "logits"])
@pytest.mark.parametrize(("shape", "classes"), SHAPES_AND_CLASSES)
def test_unified_model_agrees_with_loops(shape, classes, scores):
    torch.manual_seed(classes)
    model = build_unified(PaperSpec(filters=(3, 4)), UnifySpec(hidden=9, scores=scores), shape, classes).eval()
    x = images(shape)
    made = model(x)
    assert made.shape == (3, classes)
    np.testing.assert_allclose(numbers(made), np_unified(numbers(x), model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "classes"), SHAPES_AND_CLASSES)
def test_dual_model_agrees_with_loops(shape, classes):
    torch.manual_seed(classes)
    dual = build_dual(PaperSpec(filters=(2, 3)), shape, classes).eval()
    views = images(shape, seed=1), images(shape, seed=2)
    for made, x, branch in zip(dual(*views), views, dual.branches, strict=True):
        np.testing.assert_allclose(numbers(made), np_submodel(numbers(x), branch), rtol=1e-4, atol=1e-5)


@settings(max_examples=40, deadline=None, database=None)
@given(
    features=st.tuples(st.integers(1, 24), st.integers(1, 9), st.integers(1, 9)),
    classes=st.integers(2, 100),
    seed=st.integers(0, 2**31),
)
def test_dense_and_convolution_agree_up_to_rounding(features, classes, seed):
    torch.manual_seed(seed)
    dense = DenseClassifier(features, classes, dropout=0.3).eval()
    conv = ConvClassifier.from_dense(dense).eval()
    x = torch.randn((5, *features))
    expected, made = dense(x), conv(x)
    # n products and n sums, rounded to half a unit in the last place, on both sides.
    magnitude = x.flatten(1).abs() @ dense.dense.weight.abs().T + dense.dense.bias.abs()
    bound = 2 * (x[0].numel() + 2) * torch.finfo(torch.float32).eps * magnitude
    assert made.shape == expected.shape
    assert ((made - expected).abs() <= bound).all()
    assert conv.dropout.probability == dense.dropout.probability


def test_convolution_has_the_dense_weights():
    dense = DenseClassifier((2, 3, 4), 5, dropout=0.0)
    conv = ConvClassifier.from_dense(dense)
    for k in range(5):
        for c in range(2):
            for y in range(3):
                for column in range(4):
                    assert conv.conv.weight[k, c, y, column] == dense.dense.weight[k, (c * 3 + y) * 4 + column]
    assert torch.equal(conv.conv.bias, dense.dense.bias)


# By hand: a 3x3 convolution has 9 C F weights and F biases; 28 rows become 13 and then 5, 32 rows become 15 and 6.
LAYERS = {
    (28, 28, 1): {
        "conv1": 9 * 1 * 10 + 10,
        "conv2": 9 * 10 * 20 + 20,
        "dense": 5 * 5 * 20 * 10 + 10,
        "head.hidden": 20 * 32 + 32,
        "head.output": 32 * 10 + 10,
    },
    (32, 32, 3): {
        "conv1": 9 * 3 * 10 + 10,
        "conv2": 9 * 10 * 20 + 20,
        "dense": 6 * 6 * 20 * 10 + 10,
        "head.hidden": 20 * 32 + 32,
        "head.output": 32 * 10 + 10,
    },
}
TOTALS = {(28, 28, 1): 14_862, (32, 32, 3): 19_622}


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("shape", list(LAYERS))
def test_parameters_of_the_paper_by_layer(shape):
    model = build_unified(PaperSpec(), UnifySpec(), shape, 10)
    expected = LAYERS[shape]
    for branch in model.branches:
        table = {name: count(unit) for name, unit in branch.named_children()}
        assert table == {name: expected[name] for name in ("conv1", "conv2", "dense")}
    assert count(model.head.hidden) == expected["head.hidden"]
    assert count(model.head.output) == expected["head.output"]
    assert count(model) == TOTALS[shape]
    assert not list(model.buffers())


@pytest.mark.parametrize("shape", list(LAYERS))
def test_dual_model_has_the_parameters_of_its_branches(shape):
    expected = 2 * sum(LAYERS[shape][name] for name in ("conv1", "conv2", "dense"))
    assert count(build_dual(PaperSpec(), shape, 10)) == expected


@pytest.mark.parametrize("shape", [(9, 10, 1), (10, 9, 3), (1, 1, 1), (3, 400, 1)])
def test_rejects_images_that_are_too_small(shape):
    with raises("usage", f"{shape[0]}x{shape[1]}", "10x10"):
        PaperSpec().build(shape, 10)


def test_accepts_the_smallest_image():
    assert PaperSpec().build((10, 10, 3), 2).eval()(images((10, 10, 3))).shape == (3, 2)


@pytest.mark.parametrize("classes", [1, 0])
def test_rejects_a_single_class(classes):
    with raises("usage", classes, 2):
        PaperSpec().build((28, 28, 1), classes)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: PaperSpec(filters=(10,)), r"PaperSpec.filters"),
        (lambda: PaperSpec(filters=()), r"PaperSpec.filters"),
        (lambda: PaperSpec(filters=(10, 0)), r"PaperSpec.filters"),
        (lambda: PaperSpec(filters=(10, 5000)), r"PaperSpec.filters"),
        (lambda: PaperSpec(dropout=1.0), r"PaperSpec.dropout"),
        (lambda: PaperSpec(dropout=-0.1), r"PaperSpec.dropout"),
        (lambda: PaperSpec(dropout=float("nan")), r"PaperSpec.dropout"),
        (lambda: UnifySpec(hidden=0), r"UnifySpec.hidden"),
        (lambda: UnifySpec(hidden=70_000), r"UnifySpec.hidden"),
        (lambda: UnifySpec(scores="votes"), r"UnifySpec.scores"),
        (lambda: UnifySpec(join="vote"), "UnifySpec.join = 'vote'"),
    ],
)
def test_specs_reject_invalid_values(make, field):
    with raises("usage", field):
        make()


@pytest.mark.parametrize("name", list(FAMILIES))
def test_families_name_their_units_in_order(name):
    spec = FAMILIES[name]()
    submodel = spec.build((28, 28, 1), 10)
    assert spec.family == name
    assert tuple(unit for unit, _ in submodel.named_children()) == spec.units
    assert isinstance(submodel[-1], DenseClassifier)


def storages(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in module.state_dict().values()}


def a_dual(kind: str) -> DualModel:
    return build_dual(PaperSpec(), (16, 16, 1), 10) if kind == "paper" else odd_dual()


@pytest.mark.parametrize("kind", ["paper", "odd"])
def test_branches_share_nothing(kind):
    dual = a_dual(kind)
    unified = unify(dual, UnifySpec())
    parts = [*dual.branches, *unified.branches, unified.head]
    every = [pointer for part in parts for pointer in storages(part)]
    assert len(every) == sum(len(part.state_dict()) for part in parts)
    assert len(set(every)) == len(every)


def test_branches_start_from_different_weights():
    dual = a_dual("paper")
    assert not torch.equal(dual.branches[0].conv1.conv.weight, dual.branches[1].conv1.conv.weight)


@pytest.mark.parametrize("spec", [spec() for spec in FAMILIES.values()], ids=list(FAMILIES))
def test_submodels_that_start_alike_share_nothing(spec):
    dual = build_dual(spec, (16, 16, 1), 10, alike=True)
    first, second = (branch.state_dict() for branch in dual.branches)
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not storages(dual.branches[0]) & storages(dual.branches[1])


@pytest.mark.parametrize("kind", ["paper", "odd"])
def test_average_is_the_mean_of_both(kind):
    torch.manual_seed(8)
    dual = a_dual(kind)
    with torch.no_grad():
        for tensor in dual.state_dict().values():
            tensor.copy_(torch.rand(tensor.shape) * 9)
    before = snapshot(dual)
    averaged = average(dual)
    for name, tensor in averaged.state_dict().items():
        first, second = (before[f"branches.{index}.{name}"] for index in (0, 1))
        # The number of batches is not averaged.
        expected = (numbers(first) + numbers(second)) / 2 if tensor.is_floating_point() else first.numpy()
        np.testing.assert_allclose(tensor.numpy(), expected, rtol=1e-6)
    assert all(torch.equal(before[name], tensor) for name, tensor in dual.state_dict().items())
    assert not storages(averaged) & storages(dual)
    assert isinstance(averaged[-1], DenseClassifier)


def test_average_by_hand():
    dual = DualModel(*(nn.Sequential(nn.Linear(2, 1)) for _ in range(2)))
    for branch, weights, bias in zip(dual.branches, ([1.0, -2.0], [4.0, 6.0]), (0.5, 0.25), strict=True):
        with torch.no_grad():
            branch[0].weight.copy_(torch.tensor([weights]))
            branch[0].bias.copy_(torch.tensor([bias]))
    averaged = average(dual)
    assert averaged[0].weight.tolist() == [[2.5, 2.0]]
    assert averaged[0].bias.tolist() == [0.375]


def test_average_of_equal_submodels_equals_them():
    dual = build_dual(PaperSpec(), (16, 16, 1), 10, alike=True)
    x = images((16, 16, 1), 4)
    assert torch.equal(average(dual).eval()(x), dual.branches[1].eval()(x))


@pytest.mark.parametrize("kind", ["paper", "odd"])
def test_training_the_unified_model_leaves_the_dual_model(kind):
    torch.manual_seed(3)
    dual = a_dual(kind)
    for _, dropout in dropouts(dual):
        dropout.reseed(1, CPU)
    states = [dropout.generator.get_state() for _, dropout in dropouts(dual)]
    before = snapshot(dual)
    unified = unify(dual, UnifySpec()).train()
    at_first = snapshot(unified)
    optimizer = torch.optim.SGD(unified.parameters(), lr=0.5)
    unified(images((16, 16, 1), 8)).square().sum().backward()
    optimizer.step()
    assert all(not torch.equal(at_first[name], tensor) for name, tensor in unified.named_parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in dual.state_dict().items())
    assert all(parameter.grad is None for parameter in dual.parameters())
    # The random streams are also copies.
    for state, (_, dropout) in zip(states, dropouts(dual), strict=True):
        assert torch.equal(state, dropout.generator.get_state())


@pytest.mark.parametrize("kind", ["paper", "odd"])
def test_unification_keeps_the_results_of_the_branches(kind):
    torch.manual_seed(4)
    dual = a_dual(kind).eval()
    unified = unify(dual, UnifySpec(scores="logits")).eval()
    x = images((16, 16, 1), 20)
    for index, expected in enumerate(dual(x, x)):
        torch.testing.assert_close(unified.branch_scores(index, x), expected, rtol=1e-5, atol=1e-6)
        assert isinstance(unified.branches[index][-1], ConvClassifier)
        assert isinstance(dual.branches[index][-1], DenseClassifier)


def test_unify_rejects_a_branch_without_dense_classifier():
    branch = nn.Sequential(nn.Conv2d(1, 2, 3))
    with pytest.raises(TypeError, match="DenseClassifier"):
        unify(DualModel(branch, copy.deepcopy(branch)), UnifySpec())


def test_unfreezing_order():
    assert unify(a_dual("paper"), UnifySpec()).unit_names() == ("head", "dense", "conv2", "conv1")
    odd = unify(a_dual("odd"), UnifySpec())
    assert odd.unit_names() == ("head", "attic", "mixer", "stem")
    named = [name for name, _ in odd.units()]
    assert sorted(named) == ["attic", "attic", "head", "mixer", "mixer", "stem", "stem"]
    held = {id(parameter) for _, unit in odd.units() for parameter in unit.parameters()}
    assert held == {id(parameter) for parameter in odd.parameters()}
    assert unit_names(odd) == odd.unit_names()
    assert list(units(odd)) == list(odd.units())


def test_unfreezing_order_of_one_submodel():
    submodel = a_dual("odd").branches[0]
    assert unit_names(submodel) == ("attic", "mixer", "stem")
    assert dict(units(submodel)) == {"attic": submodel.attic, "mixer": submodel.mixer, "stem": submodel.stem}


def test_head_is_unfrozen_first():
    names = PaperSpec.units
    assert UnifySpec().unfreezing_order(names) == ("head", "dense", "conv2", "conv1")
    assert UnifySpec(join="average").unfreezing_order(names) == ("dense", "conv2", "conv1")


@pytest.mark.parametrize("probability", [0.1, 0.3, 0.75])
def test_dropout_rate_and_mean(probability):
    dropout = Dropout(probability).train()
    dropout.reseed(5, CPU)
    count = 1_000_000
    made = dropout(torch.ones(count))
    zeros = int((made == 0).sum())
    # Five standard deviations of a binomial count.
    assert abs(zeros - probability * count) < 5 * (count * probability * (1 - probability)) ** 0.5
    assert made[made != 0].unique().tolist() == pytest.approx([1 / (1 - probability)])
    assert float(made.mean()) == pytest.approx(1.0, abs=5 * (probability / (1 - probability) / count) ** 0.5)


def test_dropout_depends_only_on_its_seed():
    first, second = Dropout(0.5).train(), Dropout(0.5).train()
    x = torch.ones(4, 100)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first.reseed(1, CPU)
    alone = [first(x), first(x)]
    assert not torch.equal(*alone)
    first.reseed(1, CPU)
    second.reseed(2, CPU)
    between = [first(x), second(x), first(x)]
    assert torch.equal(alone[0], between[0])
    assert torch.equal(alone[1], between[2])
    assert not torch.equal(between[0], between[1])
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_is_off_in_evaluation_and_at_zero():
    x = torch.randn(100)
    assert torch.equal(Dropout(0.9).eval()(x), x)
    assert torch.equal(Dropout(0.0).train()(x), x)


def test_dropout_passes_gradients_of_kept_values():
    dropout = Dropout(0.4).train()
    dropout.reseed(6, CPU)
    x = torch.ones(1000, requires_grad=True)
    made = dropout(x)
    made.sum().backward()
    assert torch.equal(x.grad, made.detach())


def test_dropouts_are_found_by_name():
    assert [name for name, _ in dropouts(a_dual("odd"))] == [
        "branches.0.mixer.0",
        "branches.0.attic.dropout",
        "branches.1.mixer.0",
        "branches.1.attic.dropout",
    ]
