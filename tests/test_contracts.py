"""Contracts: what every family, operation, export format, recipe and kind of source must do.

The cases come from the package's own registries, so that a new member is tested as soon as it is registered. A member
without a sample fails in the first test of its section, which says where the sample belongs.
"""

from __future__ import annotations

import copy
import io
import json
import random
import tomllib
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from data_samples import png, write_folder, write_parquet
from error_matching import raises
from export_samples import card_of
from family_samples import CLASSES, SPECS, family_graph, family_module
from graph_files import header_of
from graph_samples import random_graph, random_images, random_int8_graph
from PIL import Image

import thaw as library
from thaw.data.sources import FILE_TYPES
from thaw.deploy.formats import FORMATS
from thaw.errors import UsageError
from thaw.evidence.verify import as_numbers
from thaw.graph.cost import count_cost
from thaw.graph.graph_file import read_graph, write_graph
from thaw.graph.interpret import run, trace
from thaw.graph.ops import OPERATIONS
from thaw.models.families import FAMILIES
from thaw.recipe.recipe import load_recipe, recipe_from_dict, recipe_names
from thaw.recipe.reference import settings_reference

# Families

SHAPE = (12, 12, 3)


def test_every_family_has_a_sample():
    missing = set(FAMILIES) - {spec.family for spec in SPECS.values()}
    assert not missing, f"add {missing} to SPECS in tests/support/family_samples.py"


@pytest.fixture(params=sorted(FAMILIES))
def family(request):
    return next(name for name, spec in SPECS.items() if spec.family == request.param)


def test_family_can_be_described_as_json_and_built_again(family):
    spec = SPECS[family]
    described = json.loads(json.dumps(asdict(spec)))
    again = type(spec)(**{name: _tuples(value) for name, value in described.items() if name != "family"})
    assert again == spec
    first, second = (sorted(dict(each.build(SHAPE, CLASSES).named_parameters())) for each in (spec, again))
    assert first == second


def _tuples(value):
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value


def test_family_learns_in_float32(family):
    module = copy.deepcopy(family_module(family, SHAPE)).train()
    images = torch.randn(6, SHAPE[2], *SHAPE[:2], generator=torch.Generator().manual_seed(1))
    logits = module(images)
    assert (logits.shape, logits.dtype) == ((6, CLASSES), torch.float32)
    logits.square().sum().backward()
    for name, parameter in module.named_parameters():
        assert parameter.dtype == torch.float32, name
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_family_refuses_an_image_that_is_too_small(family):
    with pytest.raises(UsageError):
        SPECS[family].build((1, 1, 3), CLASSES)


def test_family_is_lowered_to_the_same_function(family):
    graph = family_graph(family, SHAPE, precision="float")
    images = random_images(np.random.default_rng(2), graph, 8)
    mean, std = (np.array(values, np.float32) for values in ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))
    scaled = torch.from_numpy(((images.astype(np.float32) / 255 - mean) / std).transpose(0, 3, 1, 2).copy())
    with torch.no_grad():
        expected = family_module(family, SHAPE)(scaled).softmax(1).numpy()
    np.testing.assert_allclose(run(graph, images)["probabilities"], expected, atol=1e-5)


# Operations: each in random graphs that contain it


def _graphs_with(kind, count=3):
    """Random int8 graphs with an operation; float graphs for one that only those have."""
    found = []
    for seed in range(400):
        rng = np.random.default_rng(seed)
        graph = random_graph(rng) if kind == "scale" else random_int8_graph(rng)
        if any(op.kind == kind for op in graph.ops):
            found.append(graph)
        if len(found) == count:
            break
    return found


@pytest.fixture(scope="module", params=sorted(OPERATIONS))
def operation(request):
    """The kind of an operation, and graphs that contain it."""
    graphs = _graphs_with(request.param)
    assert graphs, f"random graphs have no {request.param}: add it to Sketch in tests/support/graph_samples.py"
    return request.param, graphs


def test_operation_computes_what_it_infers(operation):
    kind, graphs = operation
    for graph in graphs:
        tensors = trace(graph, random_images(np.random.default_rng(3), graph, 4))
        for op in (op for op in graph.ops if op.kind == kind):
            declared = graph.tensor(op.output)
            assert tensors[op.output].shape == (4, *declared.shape)
            assert tensors[op.output].dtype == np.dtype(declared.dtype)


def test_operation_does_not_depend_on_the_batch(operation):
    kind, graphs = operation
    for graph in graphs:
        images = random_images(np.random.default_rng(4), graph, 5)
        together, alone = run(graph, images), [run(graph, image[None]) for image in images]
        for name, values in together.items():
            separate = np.concatenate([each[name] for each in alone])
            # Float sums are added in the order that BLAS prefers for a shape; integers are exact.
            atol = 1e-5 if values.dtype == np.float32 else 0
            np.testing.assert_allclose(values, separate, rtol=0, atol=atol, err_msg=kind)


def test_operation_is_stored_in_a_file(operation, tmp_path):
    kind, graphs = operation
    for graph in graphs:
        write_graph(tmp_path / "graph.safetensors", graph, header_of(graph))
        again, _ = read_graph(tmp_path / "graph.safetensors")
        assert [op.kind for op in again.ops] == [op.kind for op in graph.ops]
        images = random_images(np.random.default_rng(5), graph, 4)
        for name, values in run(graph, images).items():
            np.testing.assert_array_equal(values, run(again, images)[name], err_msg=kind)


def test_operation_has_a_cost(operation):
    kind, graphs = operation
    for graph in graphs:
        cost = count_cost(graph)
        assert cost.macs >= 0
        assert cost.parameters >= 0, kind


def test_operation_refuses_another_number_of_inputs(operation):
    kind, graphs = operation
    op = next(op for op in graphs[0].ops if op.kind == kind)
    with pytest.raises(UsageError):
        replace(op, inputs=()).infer([])


# Export formats


@pytest.fixture(params=sorted(name for name in FORMATS if name != "web"))
def export_format(request):
    """The name of a format; the web page has tests of its own, which need a browser and its packages."""
    return request.param


@pytest.fixture(scope="module")
def graphs():
    return {precision: family_graph("separable", SHAPE, precision=precision) for precision in ("float", "int8")}


def _exported(name, graphs):
    table = FORMATS[name]
    chosen = {precision: graphs[precision] for precision in table.precisions}
    return table.export(chosen, card_of(graphs["int8"]), "model")


def test_format_writes_the_same_bytes_again(export_format, graphs):
    first, second = (_exported(export_format, graphs) for _ in range(2))
    assert first == second
    assert all(isinstance(content, bytes) and content for content in first.values())
    assert all(Path(name).name == name for name in first), "files of one folder"


def test_format_runs_as_its_table_says(export_format, graphs):
    files = _exported(export_format, graphs)
    assert FORMATS[export_format].runtimes, "at least one runtime verifies it"
    for runtime in FORMATS[export_format].runtimes:
        graph = graphs[runtime.precision]
        images = random_images(np.random.default_rng(6), graph, 4)
        expected = run(graph, images)[graph.outputs[-1]]
        runner = runtime.open(files, graph, True)
        try:
            scores = np.asarray(runner.run(images))
        finally:
            runner.close()
        assert scores.shape == expected.shape
        if runtime.is_exact:
            np.testing.assert_array_equal(scores, expected)
        elif runtime.precision == "float":
            np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-4)
        else:
            numbers = as_numbers(scores, graph.tensor(graph.outputs[-1]).quantization)
            np.testing.assert_allclose(numbers, expected, rtol=0, atol=3)


def test_format_is_documented(export_format, docs_text):
    assert f"--to {export_format}" in docs_text or f"`{export_format}`" in docs_text


@pytest.fixture(scope="module")
def docs_text():
    docs = Path(__file__).resolve().parents[1] / "docs"
    return "\n".join(path.read_text("utf-8") for path in sorted(docs.glob("*.md")))


# Recipes


@pytest.fixture(params=recipe_names())
def recipe_name(request):
    return request.param


def test_recipe_survives_json_and_toml(recipe_name):
    _, recipe = load_recipe(recipe_name)
    assert recipe_from_dict(json.loads(json.dumps(recipe.as_dict()))) == recipe
    assert recipe_from_dict(tomllib.loads(recipe.as_toml())) == recipe


def test_recipe_has_documented_settings_only(recipe_name):
    known = {setting.key for setting in settings_reference()}
    # The teacher's network has the settings of the section [model].
    keys = {key.removeprefix("distil.") for key in _keys(load_recipe(recipe_name)[1].as_dict())}
    assert keys <= known | {key.removeprefix("distil.") for key in known}


def _keys(value, prefix=""):
    match value:
        case dict():
            for name, inner in value.items():
                yield from _keys(inner, f"{prefix}.{name}" if prefix else name)
        case [dict(), *_]:
            for inner in value:
                yield from _keys(inner, f"{prefix}[]")
        case _:
            yield prefix


def test_recipe_has_a_network_that_fits_a_device(recipe_name):
    estimate = library.estimate(recipe_name, input="28x28x1", classes=10)
    again = library.estimate(recipe_name, input="28x28x1", classes=10)
    assert estimate.cost == again.cost
    assert 0 < estimate.cost.parameters < 200_000
    assert 0 < estimate.cost.macs < 30e6
    assert sum(estimate.recipe.stage_epochs().values()) > 0


def test_recipe_is_documented(recipe_name, docs_text):
    assert recipe_name in docs_text


# Kinds of sources: the same images in each


COUNT = 12
NAMES = ("cat", "dog")


def _rows():
    return [(png(1000 * number + index), name) for number, name in enumerate(NAMES) for index in range(COUNT)]


def _pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def _folder(root):
    return write_folder(root / "folder", NAMES, COUNT)


def _list(root, suffix, write):
    _folder(root)
    paths = [(f"folder/{name}/{name}{index}.png", name) for name in NAMES for index in range(COUNT)]
    path = root / f"images.{suffix}"
    path.write_text(write(paths), "utf-8")
    return path


def _csv(root):
    return _list(root, "csv", lambda rows: "path,label\n" + "".join(f"{path},{name}\n" for path, name in rows))


def _json_lines(root):
    return _list(root, "jsonl", lambda rows: "".join(json.dumps({"path": p, "label": n}) + "\n" for p, n in rows))


def _parquet(root):
    path = root / "images.parquet"
    write_parquet(
        path, [name for _, name in _rows()], images=[{"bytes": content, "path": None} for content, _ in _rows()]
    )
    return path


def _npz(root):
    path = root / "images.npz"
    np.savez(path, images=np.stack([_pixels(content) for content, _ in _rows()]), labels=[name for _, name in _rows()])
    return path


def _arrays(_):
    return np.stack([_pixels(content) for content, _ in _rows()]), np.array([name for _, name in _rows()])


def _pictures(_):
    return [Image.open(io.BytesIO(content)) for content, _ in _rows()], [name for _, name in _rows()]


def _data_frame(_):
    return pd.DataFrame({"image": [content for content, _ in _rows()], "label": [name for _, name in _rows()]})


class _Images(torch.utils.data.Dataset):
    classes = NAMES

    def __len__(self):
        return len(NAMES) * COUNT

    def __getitem__(self, index):
        content, name = _rows()[index]
        return Image.open(io.BytesIO(content)), NAMES.index(name)


FILE_SAMPLES = ("csv", "jsonl", "parquet", "npz")
"""Sources in one file, by the suffix of the sample."""
SOURCES = {
    "folder": _folder,
    "csv": _csv,
    "jsonl": _json_lines,
    "parquet": _parquet,
    "npz": _npz,
    "arrays": _arrays,
    "list of images": _pictures,
    "data frame": _data_frame,
    "torch data set": lambda _: _Images(),
}


def test_every_file_type_has_a_sample():
    opened = {FILE_TYPES[f".{kind}"] for kind in FILE_SAMPLES}
    missing = {suffix for suffix, opens in FILE_TYPES.items() if opens not in opened}
    assert not missing, f"add {missing} to SOURCES and FILE_SAMPLES"


def _content(data):
    parts = [data.train, data.validation, data.test.open()]
    return sorted(
        (data.train.classes[label], image.tobytes())
        for part in parts
        for image, label in zip(part.images, part.labels, strict=True)
    )


@pytest.fixture(scope="module")
def expected_content(tmp_path_factory):
    return _content(library.load(_folder(tmp_path_factory.mktemp("expected")), overrides={"data.input": "10x12x3"}))


@pytest.mark.parametrize("kind", SOURCES)
def test_source_gives_the_same_images(kind, tmp_path, expected_content):
    data = library.load(SOURCES[kind](tmp_path), overrides={"data.input": "10x12x3"})
    assert tuple(data.train.classes) == NAMES
    assert _content(data) == expected_content


@pytest.mark.parametrize("kind", SOURCES)
def test_source_is_split_the_same_way_again(kind, tmp_path):
    first, second = (library.load(source, seed=3) for source in [SOURCES[kind](tmp_path)] * 2)
    assert first.fingerprint == second.fingerprint
    np.testing.assert_array_equal(first.validation.images, second.validation.images)


@pytest.mark.parametrize("kind", FILE_SAMPLES)
def test_damaged_source_is_a_data_error(kind, tmp_path, chance: random.Random):
    path = SOURCES[kind](tmp_path)
    content = path.read_bytes()
    path.write_bytes(content[: chance.randrange(1, max(2, len(content) // 2))])
    with raises("data"):
        library.load(path)
