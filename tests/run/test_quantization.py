"""From a trained model to its int8 graph: calibration, selection, quantization-aware training."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from command_line import SMALL, metrics
from error_matching import raises
from training_samples import CPU, branches_of, snapshot

import thaw as library
from thaw.data.augment import AugmentSettings
from thaw.errors import RecipeError
from thaw.graph.calibrate import calibrate
from thaw.graph.graph_file import read_graph
from thaw.graph.interpret import run
from thaw.graph.ops import Weighted
from thaw.graph.trainable import TrainableGraph
from thaw.model.graphs import float_graph
from thaw.model.model import Model
from thaw.recipe.recipe import load_recipe, recipe_from_dict
from thaw.run import quantization
from thaw.run.events import Int8Done
from thaw.run.quantization import QatEpochDone, QuantizeSettings, calibration_images, quantize_model
from thaw.run.run import Run
from thaw.training.compute import ParallelBranches
from thaw.training.qat import QatSettings, QatStage
from thaw.training.trainer import TrainingContext


@pytest.fixture(scope="module")
def model(finished) -> Model:
    return Model.load(finished.path)


@pytest.fixture(scope="module")
def data():
    return library.load("digits", overrides=SMALL[1:4:2], seed=3)


def setting_of(data, parallel: ParallelBranches, seed: int = 3) -> TrainingContext:
    return TrainingContext(
        train=data.train,
        validation=data.validation,
        input_spec=data.input_spec,
        seed=seed,
        device=CPU,
        dtype=torch.float32,
        parallel=parallel,
    )


def to_its_end(steps):
    """(Yielded values, returned value) of a generator."""
    yielded = []
    while True:
        try:
            yielded.append(next(steps))
        except StopIteration as end:
            return yielded, end.value


def accuracy_of(graph, images) -> float:
    scores = run(graph, images.images)["probabilities"]
    return float((scores.argmax(axis=1) == images.labels).mean())


def test_calibration_images_are_seeded_training_images(data):
    chosen = calibration_images(data.train, 50, seed=1)
    assert chosen.shape == (50, *data.train.shape)
    rows = {image.tobytes() for image in data.train.images}
    assert all(image.tobytes() in rows for image in chosen)
    assert chosen.tobytes() == calibration_images(data.train, 50, seed=1).tobytes()
    assert chosen.tobytes() != calibration_images(data.train, 50, seed=2).tobytes()
    assert len(calibration_images(data.train, 10**6, seed=1)) == len(data.train)


def test_better_method_on_validation_images_is_selected(model, data):
    with branches_of(1) as parallel:
        records, found = to_its_end(
            quantize_model(model, setting_of(data, parallel), QuantizeSettings(qat_threshold=100.0), AugmentSettings())
        )
    assert records == []
    assert found.qat is None
    assert [each.method for each in found.candidates] == ["minmax", "mse"]
    for each in found.candidates:
        assert each.scores.accuracy == accuracy_of(each.graph, data.validation)
        assert each.rank("accuracy") <= found.chosen.rank("accuracy")
    expected = model.probabilities(data.validation.images)
    assert found.float_scores.accuracy == (expected.argmax(axis=1) == data.validation.labels).mean()
    scores = run(found.graph, data.validation.images)["probabilities"]
    assert found.chosen.squared_error == pytest.approx((((scores + 128.0) / 256.0 - expected) ** 2).mean())


def test_equal_accuracies_select_the_closer_to_float():
    far, near, better = (
        quantization.Candidate(
            method=name,
            graph=None,
            scores=quantization.Scores(accuracy=accuracy, balanced_accuracy=balanced),
            squared_error=error,
        )
        for name, accuracy, balanced, error in (
            ("far", 0.9, 0.7, 0.2),
            ("near", 0.9, 0.7, 0.1),
            ("better", 0.91, 0.6, 0.3),
        )
    )
    assert max((far, near), key=lambda each: each.rank("accuracy")) is near
    assert max((far, near, better), key=lambda each: each.rank("accuracy")) is better
    assert max((far, near, better), key=lambda each: each.rank("balanced_accuracy")) is near


@pytest.fixture
def spoilt(monkeypatch):
    """Calibration that clips most values of tensors."""

    def narrow(graph, images):
        found = calibrate(graph, images)
        return {
            method: {name: (low / 12, high / 12) for name, (low, high) in ranges.items()}
            for method, ranges in found.items()
        }

    monkeypatch.setattr(quantization, "calibrate", narrow)


QAT = QuantizeSettings(qat=QatSettings(epochs=3, batch_size=32, learning_rate=0.002))


def test_large_loss_starts_fine_tuning_and_keeps_the_better_graph(model, data, spoilt):
    with branches_of(2) as parallel:
        records, found = to_its_end(quantize_model(model, setting_of(data, parallel), QAT, AugmentSettings()))
    before = max(each.scores.accuracy for each in found.candidates[:2])
    assert before < found.float_scores.accuracy - 0.003
    assert [event.record.kind for event in records] == ["qat"] * len(records)
    assert found.qat.epochs == len(records) > 0
    assert found.chosen.method == "qat"
    assert found.chosen.scores.accuracy > before
    assert found.chosen.scores.accuracy == accuracy_of(found.graph, data.validation)


def test_fine_tuning_that_lowers_accuracy_is_discarded(model, data, spoilt):
    hasty = dataclasses.replace(QAT, qat=dataclasses.replace(QAT.qat, epochs=1, learning_rate=5.0))
    with branches_of(1) as parallel:
        records, found = to_its_end(quantize_model(model, setting_of(data, parallel), hasty, AugmentSettings()))
    assert len(records) == 1
    assert found.candidates[2].scores.accuracy < found.chosen.scores.accuracy
    assert found.chosen.method in ("minmax", "mse")


def test_diverged_fine_tuning_is_discarded(model, data, spoilt):
    settings = QuantizeSettings(qat_threshold=0.0, qat=QatSettings(epochs=3, learning_rate=1e30))
    with ParallelBranches(1, CPU) as parallel:
        _, found = to_its_end(quantize_model(model, setting_of(data, parallel), settings, AugmentSettings()))
    assert found.chosen.method in {"minmax", "mse", "qat"}
    assert found.chosen.scores.accuracy == max(each.scores.accuracy for each in found.candidates)
    assert found.qat is None or found.qat.epochs < 3


def test_same_bits_on_any_number_of_parallel_branches(model, data, spoilt):
    once, graphs = dataclasses.replace(QAT, qat=dataclasses.replace(QAT.qat, epochs=1)), []
    for count in (1, 2, 2):
        with branches_of(count) as parallel:
            graphs.append(
                to_its_end(quantize_model(model, setting_of(data, parallel), once, AugmentSettings()))[1].graph
            )
    for first, *others in zip(*(graph.ops for graph in graphs), strict=True):
        for other in others:
            assert first.output == other.output
            if isinstance(first, Weighted):
                assert first.weights.tobytes() == other.weights.tobytes()
                assert first.bias.tobytes() == other.bias.tobytes()
                assert first.quantization == other.quantization


def test_validation_equals_the_reference_interpreter(model, data):
    graph = float_graph(model)
    module = TrainableGraph(graph, calibrate(graph, data.train.images[:100])["minmax"])
    with branches_of(1) as parallel:
        stage_run = setting_of(data, parallel).run(QatStage(module, QatSettings(epochs=2)), AugmentSettings())
        before = snapshot(module)
        for record in stage_run.epochs():
            logits = run(module.int8_graph(), data.validation.images)["logits"]
            assert record.validation["int8"] == (logits.argmax(axis=1) == data.validation.labels).mean()
    assert any(not torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


def test_stage_resumes_from_its_state_with_the_same_bits(model, data):
    graph = float_graph(model)
    ranges = calibrate(graph, data.train.images[:100])["mse"]
    with branches_of(1) as parallel:

        def fresh():
            stage = QatStage(TrainableGraph(graph, ranges), QatSettings(epochs=2, patience=9))
            return setting_of(data, parallel).run(stage, AugmentSettings())

        whole, first, second = fresh(), fresh(), fresh()
        list(whole.epochs())
        next(first.epochs())
        second.restore(*first.state())
        list(second.epochs())
    for name, tensor in whole.stage.module.state_dict().items():
        assert torch.equal(tensor, second.stage.module.state_dict()[name]), name


def test_run_reports_its_int8_results(finished):
    found = metrics(finished.path)["int8"]
    graph, header = read_graph(finished.path / "model-int8.safetensors")
    test = library.load("digits", overrides=SMALL[1:4:2], seed=3).test.open()
    model = Model.load(finished.path)
    scores, expected = run(graph, test.images)["probabilities"], model.probabilities(test.images)
    hits = scores.argmax(axis=1) == test.labels
    assert found["test"]["accuracy"] == hits.mean()
    assert found["test"]["float_accuracy"] == metrics(finished.path)["test"]["accuracy"]
    low, high = found["test"]["accuracy_ci95"]
    assert low < hits.mean() < high
    assert found["test"]["count"] == len(test)
    assert found["test"]["agreement"] == (scores.argmax(axis=1) == expected.argmax(axis=1)).mean()
    for label, entry in enumerate(found["test"]["per_class"]):
        own = test.labels == label
        assert entry["recall"] == pytest.approx(hits[own].mean())
        assert entry["float_recall"] == pytest.approx((expected[own].argmax(axis=1) == label).mean())
        assert entry["support"] == own.sum()
    weights = sum(op.weights.size + 4 * op.bias.size for op in graph.ops if isinstance(op, Weighted))
    assert found["weight_bytes"] == weights
    assert header.classes == model.classes
    assert header.input_spec == model.input_spec
    assert header.facts["method"] == found["method"]


def test_missing_int8_file_is_quantized_again(finished, tmp_path):
    run_path = shutil.copytree(finished.path, tmp_path / "run")
    kept = (run_path / "model-int8.safetensors").read_bytes()
    expected = Run.open(run_path).model.graph("int8")
    (run_path / "model-int8.safetensors").unlink()
    opened = Run.open(run_path)
    opened._prepare_graphs({"int8"})
    found = opened.model.graph("int8")
    images = np.random.default_rng(0).integers(0, 256, (8, *found.tensor(found.input).shape), dtype=np.uint8)
    assert found.tensors == expected.tensors
    assert run(found, images)["probabilities"].tobytes() == run(expected, images)["probabilities"].tobytes()
    events = []
    library.Run.open(run_path).resume(on_event=events.append)
    assert [type(event) for event in events if isinstance(event, QatEpochDone | Int8Done)][-1] is Int8Done
    assert (run_path / "model-int8.safetensors").read_bytes() == kept


def test_recipe_without_the_section_has_the_defaults():
    tree = load_recipe("paper")[1].as_dict()
    assert tree.pop("quantize")["calibration_images"] == 1000
    assert recipe_from_dict(tree).quantize == QuantizeSettings()


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("quantize.calibration_images=0", "quantize.calibration_images = 0: expected an integer of at least 1"),
        ("quantize.calibration_images=many", "expected an integer"),
        ("quantize.qat_threshold=-1", "quantize.qat_threshold = -1: expected a number of at least 0"),
        ("quantize.qat_treshold=1", "did you mean qat_threshold?"),
        ("quantize.qat.epochs=0", "quantize.qat.epochs = 0: expected an integer of at least 1"),
        ("quantize.qat.view=odd", "quantize.qat.view = 'odd': expected one of original, augmented"),
        ("quantize.qat=3", "quantize.qat: expected a section"),
    ],
)
def test_invalid_setting_is_reported(override, words):
    with pytest.raises(RecipeError) as caught:
        load_recipe("paper", [override])
    assert words in str(caught.value)


def test_settings_from_python_are_checked():
    with raises("usage", "view"):
        QatSettings(view="sideways")
