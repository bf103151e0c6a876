"""Models that ship with the package: how they are made, named and used, and that each is what its card says."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command_line import DIGEST, TINY_OVERRIDES, error_of, reseal
from PIL import Image
from web_samples import needs_vendor
from zoo_add import RESERVED, add_model
from zoo_add import main as zoo_add
from zoo_seal import seal_card

import thaw as library
from thaw.deploy.demo import demo_files
from thaw.deploy.formats import default_formats
from thaw.errors import ModelFileError, RunError, UsageError
from thaw.evidence.quality import mean_interval
from thaw.export.folder import read_format
from thaw.files import write_atomically
from thaw.graph.cost import STACK_BYTES
from thaw.graph.interpret import run as run_reference
from thaw.graph.lower import layer_table
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.model import origin
from thaw.model import zoo as zoo_file
from thaw.model.model import Model
from thaw.model.origin import zoo_test_images
from thaw.model.zoo import ZOO_PREFIX, zoo_folder, zoo_folders
from thaw.model.zoo_card import Measured, ZooCard, card_of, read_card, read_cards
from thaw.recipe.recipe import recipe_names

SHIPPED = [folder.name for folder in zoo_folders()]
SEEDS = (1, 2, 3)
# A float network adds up in the order that BLAS likes on a machine; on the brink, that may turn an answer.
FLOAT_SLACK_IMAGES = 2


def metrics(path: Path) -> dict:
    return json.loads((path / "metrics.json").read_text("utf-8"))


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text("utf-8"))
    reseal(path, {**content, **changes})


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> list[Path]:
    """Small runs on the digits that differ in their seed; no test may change them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in SEEDS:
        library.train("digits", overrides=TINY_OVERRIDES, seed=seed, out=folder / f"seed{seed}")
    return [folder / f"seed{seed}" for seed in SEEDS]


@pytest.fixture(scope="module")
def made(runs, tmp_path_factory) -> Path:
    """A zoo with one model; no test may change it."""
    root = tmp_path_factory.mktemp("zoo")
    add_model("tiny-digits", runs, out=root)
    return root


@pytest.fixture
def zoo(made, monkeypatch) -> ZooCard:
    """That zoo in place of the package's own."""
    monkeypatch.setattr(zoo_file, "zoo_root", lambda: made)
    return read_card(made / "tiny-digits")


@pytest.fixture
def copies(runs, tmp_path) -> list[Path]:
    """Copies of two of the runs, which a test may change."""
    return [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs[:2]]


def test_the_run_that_is_best_on_validation_images_is_taken(runs, made):
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


def test_an_entry_that_is_replaced_halfway_is_no_entry(runs, made, tmp_path, monkeypatch):
    """A kill after the first model leaves no card of the old entry beside it; the same call mends it."""
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


def test_the_card_holds_every_seed_and_their_mean(runs, made):
    card, found = read_card(made / "tiny-digits"), [metrics(run) for run in runs]
    assert [each.seed for each in card.seeds] == list(SEEDS)
    assert [each.accuracy for each in card.seeds] == [each["test"]["accuracy"] for each in found]
    assert [each.int8_accuracy for each in card.seeds] == [each["int8"]["test"]["accuracy"] for each in found]
    for mean, part in ((card.mean, "accuracy"), (card.int8_mean, "int8_accuracy")):
        values = [getattr(each, part) for each in card.seeds]
        assert (mean.mean, mean.ci95_half_width) == mean_interval(values)


def test_the_command_of_a_card_makes_the_same_model(runs, made, tmp_path, monkeypatch, call):
    import shlex

    card = read_card(made / "tiny-digits")
    words = shlex.split(card.command)
    assert words[:4] == ["thaw", "train", "digits", "--recipe"]
    code, _, err = call(*words[1:], "--out", tmp_path / "again")
    assert code == 0, err
    assert library.Model.load(tmp_path / "again").digest == library.Model.load(made / "tiny-digits").digest


def test_one_seed_has_no_interval(runs, tmp_path):
    card = add_model("one", runs[:1], out=tmp_path)
    assert (card.mean.mean, card.mean.ci95_half_width) == (card.seeds[0].accuracy, None)
    assert json.loads((tmp_path / "one" / "card.json").read_text())["mean"]["ci95_half_width"] is None


def test_a_card_is_read_as_it_was_written(made):
    card = read_card(made / "tiny-digits")
    assert card_of(json.loads(json.dumps(card.as_dict())), made) == card
    assert json.loads((made / "tiny-digits" / "card.json").read_text()).keys() == {*card.as_dict(), DIGEST}


def test_hits_are_whole_images():
    assert Measured(accuracy=0.9919, accuracy_ci95=(0.0, 1.0), count=10_000).hits == 9919


@pytest.mark.parametrize("name", ["", "Big", "a/b", "../up", "a b", "-a", "é", "x" * 41, *RESERVED])
def test_names_that_cannot_be_are_refused(name, runs, tmp_path):
    with pytest.raises(UsageError, match="expected lower-case letters"):
        add_model(name, runs, out=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_runs_that_do_not_belong_together_are_refused(copies, tmp_path):
    first, second = copies
    with pytest.raises(RunError, match="same seed"):
        add_model("x", [first, first], out=tmp_path / "zoo")
    kept = metrics(second)
    for changes, words in (
        ({"recipe": "paper"}, "has recipe 'digits', .* 'paper'"),
        ({"overrides": []}, "has overrides"),
        ({"dataset": "letters"}, "has dataset"),
        ({"data": {**kept["data"], "fingerprint": "0" * 64}}, "different data"),
    ):
        edit(second / "metrics.json", **changes)
        with pytest.raises(RunError, match=words):
            add_model("x", [first, second], out=tmp_path / "zoo")
        edit(second / "metrics.json", **kept)
    request = json.loads((second / "run.json").read_text())
    dual = {**request["recipe"]["dual"], "epochs": 2}
    edit(second / "run.json", recipe={**request["recipe"], "dual": dual})
    with pytest.raises(RunError, match="differ in their settings"):
        add_model("x", [first, second], out=tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_what_nobody_could_repeat_is_refused(copies, tmp_path):
    run = copies[0]
    kept, request = metrics(run), json.loads((run / "run.json").read_text())
    edit(run / "metrics.json", recipe="mine")
    with pytest.raises(RunError, match="does not ship"):
        add_model("x", [run], out=tmp_path / "zoo")
    edit(run / "metrics.json", **{**kept, "overrides": []})
    with pytest.raises(RunError, match=r"recipe digits has changed since .* was trained: dual, unfreeze"):
        add_model("x", [run], out=tmp_path / "zoo")
    edit(run / "metrics.json", **kept)
    edit(run / "run.json", source=str(tmp_path))
    with pytest.raises(RunError, match="expected one of digits, mnist"):
        add_model("x", [run], out=tmp_path / "zoo")
    edit(run / "run.json", **request)
    # What a recipe says of itself may change.
    edit(run / "run.json", recipe={**request["recipe"], "description": "in other words"})
    assert add_model("x", [run], out=tmp_path / "zoo").name == "x"


def test_runs_that_are_not_finished_are_refused(copies, tmp_path):
    (copies[0] / "metrics.json").unlink()
    with pytest.raises(RunError, match="is not a finished run"):
        add_model("x", copies, out=tmp_path / "zoo")
    with pytest.raises(UsageError, match="no run was given"):
        add_model("x", [], out=tmp_path / "zoo")
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="choose another folder"):
        add_model("x", copies[1:], out=tmp_path / "file")


def test_the_commands_list_and_show(zoo, call):
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


def test_the_script_adds_a_model(zoo, runs, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["zoo_add.py", "other", *map(str, runs), "--out", str(tmp_path)])
    zoo_add()
    assert read_card(tmp_path / "other").seeds == zoo.seeds
    assert capsys.readouterr().out.startswith(f"zoo:other: seed {zoo.seed}, ")


def test_a_name_that_is_not_there_is_told_with_what_is(zoo, call, monkeypatch, tmp_path):
    for command in (["zoo", "tiny-digit"], ["info", "zoo:tiny-digit"], ["export", "zoo:tiny-digit"]):
        error_of(["'zoo:tiny-digit'", "did you mean zoo:tiny-digits?", "expected one of"], call(*command), 1)
    with pytest.raises(ModelFileError, match="expected one of tiny-digits"):
        library.Model.load("zoo:")
    monkeypatch.setattr(zoo_file, "zoo_root", lambda: tmp_path / "none")
    assert read_cards() == ()
    assert "no models" in call("zoo")[1]
    with pytest.raises(ModelFileError, match="no models are installed"):
        library.Model.load("zoo:tiny-digits")


def test_paths_are_no_names():
    for path in ("runs/x", Path("model.safetensors"), "./zoo:x/y", "zoo"):
        if not str(path).startswith(ZOO_PREFIX):
            assert zoo_folder(path) is None


def test_a_model_is_used_by_its_name(zoo, call, tmp_path):
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


def test_a_model_is_exported_and_verified_by_its_name(zoo, made, call, tmp_path):
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
    # What is installed is never written to.
    assert {path: path.read_bytes() for path in made.rglob("*") if path.is_file()} == before
    assert library.Model.load("zoo:tiny-digits").export(["c"], out=tmp_path / "c").is_complete
    assert library.Model.load("zoo:tiny-digits").verify(images=5).is_verified


def test_data_that_are_others_are_refused(zoo, monkeypatch):
    monkeypatch.setattr(origin, "read_card", lambda _: replace(zoo, fingerprint="0" * 64))
    with pytest.raises(RunError, match="the data of zoo:tiny-digits have changed"):
        Model.load("zoo:tiny-digits").verify()


def test_an_int8_graph_of_another_model_is_refused(zoo, made, runs, tmp_path, monkeypatch):
    root = Path(shutil.copytree(made, tmp_path / "zoo"))
    monkeypatch.setattr(zoo_file, "zoo_root", lambda: root)
    other = next(run for run in runs if metrics(run)["seed"] != zoo.seed)
    shutil.copy(other / "model-int8.safetensors", root / "tiny-digits")
    with pytest.raises(ModelFileError, match="belongs to another model"):
        Model.load("zoo:tiny-digits").graph("int8")
    (root / "tiny-digits" / "model-int8.safetensors").unlink()
    with pytest.raises(ModelFileError, match="install thaw again"):
        Model.load("zoo:tiny-digits").graph("int8")


@pytest.mark.parametrize(
    ("content", "words"), [("{", "not a JSON object"), ("[]", "not a JSON object"), ('{"schema": 1}', "has no digest")]
)
def test_a_card_that_cannot_be_is_told(content, words, tmp_path):
    (tmp_path / "card.json").write_text(content)
    with pytest.raises(ModelFileError, match=words):
        read_card(tmp_path)


CARD_FAULTS = {
    "schema": (9, "schema 9"),
    "name": (5, "card.name = 5: expected a string"),
    "parameters": (True, "card.parameters = True"),
    "macs": (0, "card.macs = 0"),
    "seed": (2**63, "card.seed = 9223372036854775808"),
    "test": ({"accuracy": 0.5, "accuracy_ci95": [0.6, 0.7], "count": 9}, "card.test.accuracy"),
    "int8": ({}, "int8.accuracy is missing"),
    "mean": ({"mean": 1.5, "ci95_half_width": None}, "from 0 to 1"),
    "seeds": ([{"seed": 1}], r"card.seeds\[0\].accuracy is missing"),
    "input": ({"height": 28}, "input.fit is missing"),
    "environment": ({}, "card.environment.cpu"),
    "more": (1, "card.more is unknown"),
}


@pytest.mark.parametrize("key", list(CARD_FAULTS))
def test_a_forged_card_is_told_by_the_name_of_what_is_wrong(key, made, tmp_path):
    value, words = CARD_FAULTS[key]
    path = Path(shutil.copytree(made / "tiny-digits", tmp_path / "x")) / "card.json"
    edit(path, **{key: value})
    with pytest.raises(ModelFileError, match=words):
        read_card(path.parent)


def test_an_edited_card_is_refused_until_it_is_sealed(made, tmp_path):
    path = Path(shutil.copytree(made, tmp_path / "zoo")) / "tiny-digits" / "card.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "command": "thaw train digits --seed 7"}))
    with pytest.raises(ModelFileError, match="has changed since"):
        read_card(path.parent)
    assert seal_card("tiny-digits", out=tmp_path / "zoo").command == "thaw train digits --seed 7"
    assert read_card(path.parent).command == "thaw train digits --seed 7"
    path.write_text(json.dumps({**content, "macs": -1}))
    with pytest.raises(ModelFileError, match=r"card.macs = -1"):
        seal_card("tiny-digits", out=tmp_path / "zoo")
    with pytest.raises(ModelFileError, match="cannot read"):
        seal_card("nothing", out=tmp_path / "zoo")


def test_every_recipe_of_a_record_has_a_model_in_the_zoo():
    records = {name.removeprefix("best-") for name in recipe_names() if name.startswith("best-")}
    missing = sorted(records - set(SHIPPED))
    assert not missing, (
        f"recipes best-... without a model in the zoo: {', '.join(missing)}; train several seeds, then "
        "python bench/zoo_add.py NAME RUN..."
    )


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_costs_what_its_card_says(name):
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
def test_a_shipped_model_is_small_and_names_no_path(name):
    for path in zoo_folder(f"zoo:{name}").iterdir():
        content = path.read_bytes()
        assert len(content) < 200_000, path
        assert not re.search(rb"[\"' =]/(?:home|Users|root|work|tmp|mnt)/", content), path


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_model_is_as_accurate_as_its_card_says(name, data_root):
    model, card = Model.load(f"zoo:{name}"), read_card(zoo_folder(f"zoo:{name}"))
    test = zoo_test_images(model, data_root=data_root, on_event=None)
    assert len(test) == card.test.count == card.int8.count
    hits = int((model.probabilities(test.images).argmax(axis=1) == test.labels).sum())
    assert abs(hits - card.test.hits) <= FLOAT_SLACK_IMAGES
    graph = model.graph("int8")
    scores = run_reference(graph, np.ascontiguousarray(test.images))[graph.outputs[-1]]
    assert int((scores.argmax(axis=1) == test.labels).sum()) == card.int8.hits


@needs_vendor
def test_a_model_of_the_zoo_has_its_page(zoo):
    files = demo_files(Model.load("zoo:tiny-digits"))
    assert sorted(json.loads(files["model.json"])["models"]) == ["float", "int8"]


def test_runs_that_were_computed_by_another_are_not_averaged(runs, tmp_path):
    copies = [Path(shutil.copytree(run, tmp_path / run.name)) for run in runs]
    edit(copies[0] / "metrics.json", kernels="compiled")
    with pytest.raises(RunError, match="has kernels"):
        add_model("x", copies, out=tmp_path / "zoo")
