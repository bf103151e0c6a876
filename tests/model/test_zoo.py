"""Models that ship with the package: creation, names, use, and agreement with their cards."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import DIGEST, TINY_OVERRIDES, error_of, reseal
from error_matching import raises
from PIL import Image
from web_samples import needs_vendor
from zoo_add import RESERVED, add_model
from zoo_add import main as zoo_add
from zoo_seal import seal_card

import thaw as library
from thaw.data.prepare import open_image_set
from thaw.deploy.demo import demo_files
from thaw.deploy.formats import default_formats
from thaw.errors import ModelFileError
from thaw.evidence.quality import mean_interval
from thaw.evidence.run_c import HostCRunner
from thaw.export.folder import read_format
from thaw.export.to_c import export_c
from thaw.files import write_atomically
from thaw.graph.cost import STACK_BYTES
from thaw.graph.interpret import run as run_reference
from thaw.graph.lower import layer_table
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.model import origin
from thaw.model import zoo as zoo_file
from thaw.model.model import Model
from thaw.model.zoo import ZOO_PREFIX, zoo_folder, zoo_folders
from thaw.model.zoo_card import Measured, ZooCard, card_of, read_card
from thaw.recipe.recipe import recipe_names

SHIPPED = [folder.name for folder in zoo_folders()]
SEEDS = (1, 2, 3)
# The order of float additions depends on the machine's BLAS, which can change a close prediction.
FLOAT_SLACK_IMAGES = 2


def metrics(path: Path) -> dict:
    return json.loads((path / "metrics.json").read_text("utf-8"))


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text("utf-8"))
    reseal(path, {**content, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Small runs on the digits with different seeds, shared by tests, which must not change them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in SEEDS:
        library.train("digits", overrides=TINY_OVERRIDES, seed=seed, out=folder / f"seed{seed}")
    return [folder / f"seed{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory) -> Path:
    """A zoo with one model, shared by tests, which must not change it."""
    root = tmp_path_factory.mktemp("zoo")
    add_model("tiny-digits", runs, out=root)
    return root


@pytest.fixture
def zoo(made, monkeypatch) -> ZooCard:
    """This zoo in place of the one in the package."""
    monkeypatch.setattr(zoo_file, "zoo_root", lambda: made)
    return read_card(made / "tiny-digits")


@pytest.fixture
def copies(runs, tmp_path) -> list[Path]:
    """Copies of two of the runs that a test may change."""
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs[:2]]


def test_selects_the_best_run_on_validation_images(runs, made):
    card, found = read_card(made / "tiny-digits"), {run: metrics(run) for run in runs}
    best = max(runs, key=lambda run: found[run]["validation"]["accuracy"])
    for name in ("model.safetensors", "model-int8.safetensors"):
        assert (made / "tiny-digits" / name).read_bytes() == (best / name).read_bytes()
    assert card.seed == found[best]["seed"]
    assert card.test == Measured.of(found[best]["test"])
    assert card.int8.accuracy == found[best]["int8"]["test"]["accuracy"]
    assert card.fingerprint == found[best]["data"]["fingerprint"]
    assert (card.parameters, card.macs) == (found[best]["parameters"], found[best]["macs"])
    assert card.environment == found[best]["environment"]


def test_partially_replaced_entry_is_not_an_entry(runs, made, tmp_path, monkeypatch):
    """After a kill, the old entry's card is gone, and the same call completes the entry."""
    shutil.copytree(made / "tiny-digits", tmp_path / "tiny-digits")

    def killed(path: Path, content: bytes) -> None:
        write_atomically(path, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("zoo_add.write_atomically", killed)
        with pytest.raises(KeyboardInterrupt):
            add_model("tiny-digits", runs[:1], out=tmp_path)
    with pytest.raises(ModelFileError):
        read_card(tmp_path / "tiny-digits")
    assert add_model("tiny-digits", runs[:1], out=tmp_path).seed == SEEDS[0]


def test_card_contains_every_seed_and_the_mean(runs, made):
    card, found = read_card(made / "tiny-digits"), [metrics(run) for run in runs]
    assert [each.seed for each in card.seeds] == list(SEEDS)
    assert [each.accuracy for each in card.seeds] == [each["test"]["accuracy"] for each in found]
    assert [each.int8_accuracy for each in card.seeds] == [each["int8"]["test"]["accuracy"] for each in found]
    for mean, part in ((card.mean, "accuracy"), (card.int8_mean, "int8_accuracy")):
        values = [getattr(each, part) for each in card.seeds]
        assert (mean.mean, mean.ci95_half_width) == mean_interval(values)


def test_command_of_a_card_gives_the_same_model(runs, made, tmp_path, monkeypatch, call):
    import shlex

    card = read_card(made / "tiny-digits")
    words = shlex.split(card.command)
    assert words[:4] == ["thaw", "train", "digits", "--recipe"]
    code, _, err = call(*words[1:], "--out", tmp_path / "again")
    assert code == 0, err
    assert library.Model.load(tmp_path / "again").digest == library.Model.load(made / "tiny-digits").digest


def test_single_seed_has_no_interval(runs, tmp_path):
    card = add_model("one", runs[:1], out=tmp_path)
    assert (card.mean.mean, card.mean.ci95_half_width) == (card.seeds[0].accuracy, None)
    assert json.loads((tmp_path / "one" / "card.json").read_text())["mean"]["ci95_half_width"] is None


def test_card_round_trip(made):
    card = read_card(made / "tiny-digits")
    assert card_of(json.loads(json.dumps(card.as_dict())), made) == card
    assert json.loads((made / "tiny-digits" / "card.json").read_text()).keys() == {*card.as_dict(), DIGEST}


def test_hits_are_integers():
    assert Measured(accuracy=0.9919, accuracy_ci95=(0.0, 1.0), count=10_000).hits == 9919


@pytest.mark.parametrize("name", ["", "Big", "a/b", "../up", "a b", "-a", "é", "x" * 41, *RESERVED])
def test_rejects_invalid_names(name, runs, tmp_path):
    with raises("usage", f"'{name}'"):
        add_model(name, runs, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_rejects_runs_that_do_not_belong_together(copies, tmp_path):
    first, second = copies
    with raises("run-zoo", ", ".join(["1"] * 2)):
        add_model("x", [first, first], out=tmp_path / "zoo")
    kept = metrics(second)
    for changes, facts in (
        ({"recipe": "paper"}, ("'digits'", "'paper'")),
        ({"overrides": []}, ("overrides",)),
        ({"dataset": "letters"}, ("dataset", "letters")),
        ({"data": {**kept["data"], "fingerprint": "0" * 64}}, (first, second)),
    ):
        edit(second / "metrics.json", **changes)
        with raises("run-zoo", *facts):
            add_model("x", [first, second], out=tmp_path / "zoo")
        edit(second / "metrics.json", **kept)
    request = json.loads((second / "run.json").read_text())
    dual = {**request["recipe"]["dual"], "epochs": 2}
    edit(second / "run.json", recipe={**request["recipe"], "dual": dual})
    with raises("run-zoo", first, second):
        add_model("x", [first, second], out=tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_rejects_runs_that_cannot_be_repeated(copies, tmp_path):
    run = copies[0]
    kept, request = metrics(run), json.loads((run / "run.json").read_text())
    edit(run / "metrics.json", recipe="mine")
    with raises("run-zoo", "'mine'"):
        add_model("x", [run], out=tmp_path / "zoo")
    edit(run / "metrics.json", **{**kept, "overrides": []})
    with raises("run-zoo", "digits", run, "dual, unfreeze"):
        add_model("x", [run], out=tmp_path / "zoo")
    edit(run / "metrics.json", **kept)
    edit(run / "run.json", source=str(tmp_path))
    with raises("run-zoo", tmp_path, "digits, mnist"):
        add_model("x", [run], out=tmp_path / "zoo")
    edit(run / "run.json", **request)
    # The description of a recipe may change.
    edit(run / "run.json", recipe={**request["recipe"], "description": "in other words"})
    assert add_model("x", [run], out=tmp_path / "zoo").name == "x"


def test_rejects_unfinished_runs(copies, tmp_path):
    (copies[0] / "metrics.json").unlink()
    with raises("run-zoo", copies[0]):
        add_model("x", copies, out=tmp_path / "zoo")
    with raises("usage"):
        add_model("x", [], out=tmp_path / "zoo")
    (tmp_path / "file").touch()
    with raises("run-zoo", tmp_path / "file"):
        add_model("x", copies[1:], out=tmp_path / "file")


def test_commands_list_and_show(zoo, call):
    code, out, err = call("zoo")
    assert (code, err) == (0, "")
    assert "zoo:tiny-digits" in out
    assert f"{zoo.test.accuracy:.2%}" in out
    code, out, _ = call("zoo", "--json")
    assert json.loads(out) == {"models": [json.loads(json.dumps(zoo.as_dict()))]}
    shown = [call("zoo", *words)[1] for words in (["tiny-digits"], ["show", "tiny-digits"], ["zoo:tiny-digits"])]
    assert shown[0] == shown[1] == shown[2]
    for expected in (zoo.command, zoo.fingerprint, f"{zoo.ram_bytes:,}", "(this model)"):
        assert expected in shown[0]
    for words in (["tiny-digits", "--json"], ["--json", "tiny-digits"]):
        assert json.loads(call("zoo", *words)[1])["name"] == "tiny-digits"


def test_script_adds_a_model(zoo, runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["zoo_add.py", "other", *map(str, runs), "--out", str(tmp_path)])
    zoo_add()
    assert read_card(tmp_path / "other").seeds == zoo.seeds
    assert capsys.readouterr().out.startswith(f"zoo:other: seed {zoo.seed}, ")


def test_unknown_name_is_reported_with_the_known_ones(zoo, call, monkeypatch, tmp_path):
    for command in (["zoo", "tiny-digit"], ["info", "zoo:tiny-digit"], ["export", "zoo:tiny-digit"]):
        error_of(["'zoo:tiny-digit'", "did you mean zoo:tiny-digits?", "expected one of"], call(*command), 1)
    with raises("model-file-zoo", "tiny-digits"):
        library.Model.load("zoo:")
    assert library.zoo_cards() == (library.zoo_card("zoo:tiny-digits"),) == (library.zoo_card("tiny-digits"),)
    with pytest.raises(ModelFileError, match="did you mean zoo:tiny-digits"):
        library.zoo_card("tiny-digit")
    monkeypatch.setattr(zoo_file, "zoo_root", lambda: tmp_path / "none")
    assert library.zoo_cards() == ()
    assert "no models" in call("zoo")[1]
    with raises("model-file-zoo"):
        library.Model.load("zoo:tiny-digits")


def test_paths_are_not_names():
    for path in ("runs/x", Path("model.safetensors"), "./zoo:x/y", "zoo"):
        if not str(path).startswith(ZOO_PREFIX):
            assert zoo_folder(path) is None


def test_model_is_used_by_name(zoo, call, tmp_path):
    model = library.Model.load("zoo:tiny-digits")
    assert model.digest == library.Model.load(zoo_folder("zoo:tiny-digits")).digest
    Image.fromarray(np.zeros((28, 28), np.uint8)).save(tmp_path / "black.png")
    code, out, err = call("predict", "zoo:tiny-digits", tmp_path / "black.png", "--json")
    assert code == 0, err
    assert json.loads(out)["predictions"][0]["class"] in zoo.classes
    code, out, err = call("evaluate", "zoo:tiny-digits", "digits", "--json")
    assert code == 0, err
    assert json.loads(out)["test"]["count"] > zoo.test.count
    code, out, err = call("info", "zoo:tiny-digits", "--json")
    assert code == 0, err
    assert json.loads(out)["parameters"] == zoo.parameters


def test_model_is_exported_and_verified_by_name(zoo, made, call, tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("ai_edge_litert", reason="ai-edge-litert is not installed")
    before = {path: path.read_bytes() for path in made.rglob("*") if path.is_file()}
    code, out, err = call("export", "zoo:tiny-digits", "--json")
    assert code == 0, err
    assert json.loads(out)["out"] == "tiny-digits-export"
    files = {target: read_format(tmp_path / "tiny-digits-export", target).files for target in default_formats()}
    assert len(files["litert"]["model-int8.tflite"]) == zoo.litert_bytes
    assert json.loads(out)["memory"]["constant_bytes"] == zoo.flash_bytes
    facts = Model.load("zoo:tiny-digits").card().facts
    assert facts["test accuracy in int8"] == round(zoo.int8.accuracy, 4)
    assert (facts["parameters"], facts["macs"]) == (zoo.parameters, zoo.macs)
    code, out, err = call("verify", "zoo:tiny-digits", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert told["verified"]
    assert told["test_images"] == zoo.test.count
    assert {check["accuracy"] for check in told["checks"] if check["format"] == "c"} == {zoo.int8.accuracy}
    result = Model.load("zoo:tiny-digits").bench(rounds=1, repeats=1)
    assert result.is_complete
    # Installed files are never written to.
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    assert library.Model.load("zoo:tiny-digits").export(["c"], out=tmp_path / "c").is_complete
    assert library.Model.load("zoo:tiny-digits").verify(images=5).is_verified


def test_rejects_changed_data(zoo, monkeypatch):
    monkeypatch.setattr(origin, "read_card", lambda _: replace(zoo, fingerprint="0" * 64))
    with raises("run-data", "zoo:tiny-digits"):
        Model.load("zoo:tiny-digits").verify()


def test_rejects_int8_graph_of_another_model(zoo, made, runs, tmp_path, monkeypatch):
    root = Path(shutil.copytree(made, tmp_path / "zoo"))
    monkeypatch.setattr(zoo_file, "zoo_root", lambda: root)
    other = next(run for run in runs if metrics(run)["seed"] != zoo.seed)
    shutil.copy(other / "model-int8.safetensors", root / "tiny-digits")
    with raises("model-file-other"):
        Model.load("zoo:tiny-digits").graph("int8")
    (root / "tiny-digits" / "model-int8.safetensors").unlink()
    with raises("model-file"):
        Model.load("zoo:tiny-digits").graph("int8")


@pytest.mark.parametrize(
    ("content", "code"), [("{", "model-file-card"), ("[]", "model-file-card"), ('{"schema": 1}', "model-file-card")]
)
def test_invalid_card_is_reported(content, code, tmp_path):
    (tmp_path / "card.json").write_text(content)
    with raises(code, "card.json"):
        read_card(tmp_path)


CARD_FAULTS = {
    "schema": (9, "schema 9"),
    "name": (5, "card.name = 5"),
    "parameters": (True, "card.parameters = True"),
    "macs": (0, "card.macs = 0"),
    "seed": (2**63, "card.seed = 9223372036854775808"),
    "test": ({"accuracy": 0.5, "accuracy_ci95": [0.6, 0.7], "count": 9}, "card.test.accuracy"),
    "int8": ({}, "int8.accuracy"),
    "mean": ({"mean": 1.5, "ci95_half_width": None}, "card.mean"),
    "seeds": ([{"seed": 1}], "card.seeds[0].accuracy"),
    "input": ({"height": 28}, "input.fit"),
    "environment": ({}, "card.environment.cpu"),
    "more": (1, "card.more"),
}


@pytest.mark.parametrize("key", list(CARD_FAULTS))
def test_forged_card_is_reported_by_field(key, made, tmp_path):
    value, fact = CARD_FAULTS[key]
    path = Path(shutil.copytree(made / "tiny-digits", tmp_path / "x")) / "card.json"
    edit(path, **{key: value})
    with raises("model-file-card", fact):
        read_card(path.parent)


def test_edited_card_is_rejected_until_it_is_sealed(made, tmp_path):
    path = Path(shutil.copytree(made, tmp_path / "zoo")) / "tiny-digits" / "card.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "command": "thaw train digits --seed 7"}))
    with raises("model-file-card", path):
        read_card(path.parent)
    assert seal_card("tiny-digits", out=tmp_path / "zoo").command == "thaw train digits --seed 7"
    assert read_card(path.parent).command == "thaw train digits --seed 7"
    path.write_text(json.dumps({**content, "macs": -1}))
    with raises("model-file-card", "card.macs = -1"):
        seal_card("tiny-digits", out=tmp_path / "zoo")
    with raises("model-file"):
        seal_card("nothing", out=tmp_path / "zoo")


def test_every_record_has_a_model_in_the_zoo():
    records = {name.removeprefix("best-") for name in recipe_names() if name.startswith("best-")}
    missing = sorted(records - set(SHIPPED))
    assert not missing, (
        f"recipes best-... without a model in the zoo: {', '.join(missing)}; train several seeds, then "
        "python bench/zoo_add.py NAME RUN..."
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_cost_of_a_shipped_model_agrees_with_its_card(name):
    model, card = Model.load(f"zoo:{name}"), read_card(zoo_folder(f"zoo:{name}"))
    cost = layer_table(model.spec, model.unify, model.input_spec.shape, len(model.classes))
    assert (card.parameters, card.macs) == (cost.parameters, cost.macs)
    graph = model.graph("int8")
    assert card.flash_bytes == constant_bytes(graph)
    assert card.ram_bytes == plan_memory(graph).arena_bytes + STACK_BYTES
    assert (card.name, card.classes, card.input) == (name, model.classes, model.input_spec.as_dict())
    assert card.seed in {each.seed for each in card.seeds}
    chosen = next(each for each in card.seeds if each.seed == card.seed)
    assert chosen.validation_accuracy == max(each.validation_accuracy for each in card.seeds)
    assert (chosen.accuracy, chosen.int8_accuracy) == (card.test.accuracy, card.int8.accuracy)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_model_is_small_and_contains_no_path(name):
    for path in zoo_folder(f"zoo:{name}").iterdir():
        content = path.read_bytes()
        assert len(content) < 200_000, path
        assert not re.search(rb"[\"' =]/(?:home|Users|root|work|tmp|mnt)/", content), path


@pytest.mark.parametrize("name", SHIPPED)
def test_accuracy_of_a_shipped_model_agrees_with_its_card(name, data_root):
    model, card = Model.load(f"zoo:{name}"), read_card(zoo_folder(f"zoo:{name}"))
    # Without the training images, whose decoding takes longer than the rest; `thaw verify zoo:NAME` checks them all.
    (source,) = (data_root / card.dataset).glob("test-*.parquet")
    test, _ = open_image_set(source, model.input_spec, model.classes)
    assert len(test) == card.test.count == card.int8.count
    hits = int((model.probabilities(test.images).argmax(axis=1) == test.labels).sum())
    assert abs(hits - card.test.hits) <= FLOAT_SLACK_IMAGES
    # The C is a hundred times as fast as the reference interpreter, and gives the same bytes.
    graph, images = model.graph("int8"), np.ascontiguousarray(test.images)
    with HostCRunner(export_c({"int8": graph}, model.card()), graph) as runner:
        scores = runner.run(images)
    np.testing.assert_array_equal(scores[:500], run_reference(graph, images[:500])[graph.outputs[-1]])
    assert int((scores.argmax(axis=1) == test.labels).sum()) == card.int8.hits


@needs_vendor
def test_every_zoo_model_is_documented(zoo):
    files = demo_files(Model.load("zoo:tiny-digits"))
    assert sorted(json.loads(files["model.json"])["models"]) == ["float", "int8"]


def test_runs_with_different_implementations_are_not_averaged(runs, tmp_path):
    copies = [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs]
    edit(copies[0] / "metrics.json", kernels="other")
    with raises("run-zoo", "kernels"):
        add_model("x", copies, out=tmp_path / "zoo")
