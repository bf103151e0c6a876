"""The kinds of file that thaw opens, and how a damaged file of each kind is used."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from world import World, png_of

Damage = Literal["document", "tensors: thaw", "tensors: thaw graph", "bytes", "recipe"]
REPOSITORY = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True, kw_only=True)
class Target:
    """A kind of file.

    Attributes:
        name: name of the kind.
        files: one of them is damaged; all are restored after the case, with `beside`.
        weight: relative frequency.
        damage: kind of damage.
        ask: uses the file; the result must be that of the intact file, unless an error is raised.
        beside: other files that the use may change.
        is_ours: whether thaw wrote it, so that any change must be detected.
    """

    name: str
    files: tuple[Path, ...]
    weight: float
    damage: Damage
    ask: Callable[[], object]
    beside: tuple[Path, ...] = ()
    is_ours: bool = True


class Unnoticed(Exception):  # noqa: N818 - what is wrong, not an error of thaw
    """A fault that was not detected."""


def copy_world(world: World, root: Path) -> World:
    """The files that a worker may damage, in its own folder."""
    root.mkdir(parents=True)
    runs = tuple(root / run.name for run in world.runs if run.is_dir())
    for source, copy in ((world.run, root / "run"), *zip(world.runs, runs, strict=False)):
        shutil.copytree(source, copy)
    for target in ("onnx", "litert", "c"):
        shutil.copytree(world.run / "export" / target, root / f"only-{target}" / target)
    shutil.copytree(REPOSITORY / "src" / "thaw" / "zoo" / "mnist-8k", root / "zoo" / "mnist-8k")
    shutil.copy(REPOSITORY / "docs" / "results" / "reproduce.json", root)
    shutil.copy(REPOSITORY / "src" / "thaw" / "recipe" / "recipes" / "balanced.toml", root / "recipe.toml")
    shutil.copy(REPOSITORY / "src" / "thaw" / "recipe" / "recipes" / "paper.toml", root / "paper.toml")
    (root / "image.png").write_bytes(png_of(np.arange(144, dtype=np.uint8).reshape(12, 12)))
    return replace(world, root=root, run=root / "run", runs=runs)


def targets_of(world: World) -> list[Target]:
    """All kinds, in a copy of the world."""
    from thaw.model import zoo as zoo_file

    zoo_file.zoo_root = lambda: world.root / "zoo"
    run, asks = world.run, Asks(world)
    (world.root / "work").mkdir()
    caches = tuple(sorted(asks.cache_folder().iterdir()))
    document: Any = {"damage": "document"}
    return [
        Target(
            name="model.safetensors",
            files=(run / "model.safetensors",),
            weight=17,
            damage="tensors: thaw",
            ask=asks.model,
        ),
        Target(
            name="model-int8.safetensors",
            files=(run / "model-int8.safetensors",),
            weight=13,
            damage="tensors: thaw graph",
            ask=asks.int8,
        ),
        Target(
            name="checkpoints/last.safetensors",
            files=(run / "checkpoints" / "last.safetensors",),
            weight=8,
            damage="tensors: thaw",
            ask=asks.checkpoint,
        ),
        Target(name="run.json", files=(run / "run.json",), weight=10, ask=asks.request, **document),
        Target(name="folds", files=tuple(sorted((run / "folds").iterdir())), weight=6, ask=asks.folds, **document),
        Target(
            name="metrics.json",
            files=(world.runs[0] / "metrics.json",),
            weight=6,
            ask=asks.metrics,
            beside=(world.runs[0] / "deployment.json", world.runs[0] / "report.html"),
            **document,
        ),
        Target(
            name="deployment.json",
            files=(run / "deployment.json",),
            weight=9,
            ask=asks.deployment,
            beside=(run / "report.html",),
            **document,
        ),
        Target(name="card.json", files=(world.root / "zoo/mnist-8k/card.json",), weight=11, ask=asks.card, **document),
        Target(name="reproduce.json", files=(world.root / "reproduce.json",), weight=4, ask=asks.pareto, **document),
        Target(
            name="export.json",
            files=tuple(world.root / f"only-{each}" / each / "export.json" for each in ("onnx", "litert", "c")),
            weight=5,
            ask=asks.manifests,
            **document,
        ),
        Target(
            name="recipe.toml",
            files=(world.root / "recipe.toml", world.root / "paper.toml"),
            weight=6,
            damage="recipe",
            ask=asks.recipe,
            is_ours=False,
        ),
        Target(name="caches", files=caches, weight=5, damage="bytes", ask=asks.caches),
        Target(
            name="images", files=(world.root / "image.png",), weight=4, damage="bytes", ask=asks.image, is_ours=False
        ),
        Target(
            name="history.jsonl",
            files=(run / "history.jsonl",),
            weight=0.2,
            damage="bytes",
            ask=asks.history,
            beside=tuple(sorted(path for path in run.iterdir() if path.is_file())),
        ),
        *(
            Target(
                name=f"exported {target}",
                files=tuple(
                    path
                    for path in sorted((world.root / f"only-{target}" / target).iterdir())
                    if path.suffix in {".onnx", ".tflite", ".c", ".h"}
                ),
                weight=weight,
                damage="bytes",
                ask=lambda target=target: asks.artifacts(target),
                beside=(run / "deployment.json", run / "report.html"),
            )
            for target, weight in (("onnx", 1.0), ("litert", 1.0), ("c", 0.3))
        ),
    ]


def _finite(values: Any) -> Any:
    """Check that results are finite."""
    if not np.isfinite(np.asarray(values, dtype=np.float64)).all():
        raise Unnoticed("an answer that is not finite")
    return values


class Asks:
    """The uses of the files. Intact inputs are created once."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.run = world.run
        self.contexts = contextlib.ExitStack()
        self.images = np.random.default_rng(1).integers(0, 256, (6, 12, 12, 1), dtype=np.uint8)

    @cache  # noqa: B019 - there is one, as long as its process
    def _setting(self) -> tuple[Any, Any, Any, Any]:
        """Request, data, training context and plan of the run."""
        from thaw.run.checkpoints import plan_digest
        from thaw.run.context import training_context
        from thaw.run.folder import open_for_resume
        from thaw.run.request import TrainRequest
        from thaw.run.resolve import prepare_run

        request, data = prepare_run(TrainRequest.from_dict(open_for_resume(self.run)[1]))
        # It stays open until the process ends.
        context = self.contexts.enter_context(
            training_context(data, request.recipe, request.seed, "cpu", kernels="torch")
        )
        return request, data, context, plan_digest(request, data)

    def cache_folder(self) -> Path:
        """The folder of the run's prepared images."""
        self._setting()
        folders = [path for path in Path(self.world.env["THAW_CACHE"]).iterdir() if path.name.startswith("images-")]
        return folders[0]

    def model(self) -> object:
        """Probabilities of the float32 network."""
        from thaw.model.model import Model

        model = Model.load(self.run)
        found = _finite(model.probabilities(np.resize(self.images, (6, *model.input_spec.shape))))
        if np.abs(found.sum(axis=1) - 1).max() > 1e-3:
            raise Unnoticed("probabilities that do not sum to 1")
        return model.classes, found.tobytes(), model.input_spec

    def int8(self) -> object:
        """Scores of the int8 network."""
        from thaw.graph.graph_file import read_graph
        from thaw.graph.interpret import run

        graph, header = read_graph(self.run / "model-int8.safetensors")
        scores = run(graph, np.resize(self.images, (6, *header.input_spec.shape)))
        return header, {name: _finite(value).tobytes() for name, value in scores.items()}

    def checkpoint(self) -> object:
        """The state that training would resume from, and the next epoch, if any."""
        from thaw.run.checkpoints import restore
        from thaw.run.folder import RunFolder
        from thaw.training.trainer import MultiStageTrainer

        request, _, setting, plan = self._setting()
        trainer = MultiStageTrainer(request.recipe.trainer_settings(), setting)
        seconds = restore(RunFolder(self.run), trainer, plan)
        tensors, numbers = trainer.state()
        state = {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
        for _ in trainer.epochs():
            break
        return seconds, numbers, state

    def request(self) -> object:
        """The request that a resume would use."""
        from thaw.run.folder import open_for_resume
        from thaw.run.request import TrainRequest
        from thaw.run.resolve import prepare_run

        kept = open_for_resume(self.run)[1]
        request, data = prepare_run(TrainRequest.from_dict(kept))
        return kept, request.as_dict(), data.fingerprint

    def folds(self) -> object:
        """The accuracies of the cross-validation."""
        from thaw.events import result_of
        from thaw.run.cross_validation import cross_validate
        from thaw.run.folder import RunFolder

        request, data, setting, _ = self._setting()
        folds = result_of(cross_validate(RunFolder(self.run), request, data, setting))
        return _finite([(fold.accuracy, fold.balanced_accuracy) for fold in folds])

    def metrics(self) -> object:
        """The card of a zoo entry of the run, and the report's deployment section."""
        from zoo_add import add_model

        from thaw.cli.zoo import describe
        from thaw.run.run import Run

        run = self.world.runs[0]
        card = add_model("tiny", [run], out=self.world.root / "work")
        opened = Run.open(run)
        opened._record("export", {"formats": {}, "missing": {}, "memory": {}})
        return describe(card), opened.model.card().facts, (run / "report.html").read_bytes()

    def deployment(self) -> object:
        """The record with another part, and its section of the report."""
        from thaw.model.metrics_file import read_metrics
        from thaw.run.deployment import update_deployment
        from thaw.run.report import rewrite_deployment

        known = update_deployment(self.run, "bench", {"timings": [], "problems": []})
        rewrite_deployment(self.run, read_metrics(self.run / "metrics.json"), known)
        return known, (self.run / "report.html").read_bytes()

    def card(self) -> object:
        """The output of `thaw zoo`, and the point in the plot."""
        from pareto import write_pareto

        from thaw.cli.zoo import describe
        from thaw.model.zoo_card import zoo_cards

        cards = zoo_cards()
        paths = write_pareto(self.world.root / "work" / "pareto.svg", self.world.root / "reproduce.json")
        shown = [(describe(card), str(card.mean)) for card in cards]
        json.dumps([card.as_dict() for card in cards])
        return shown, [path.read_bytes() for path in paths]

    pareto = card

    def manifests(self) -> object:
        """The exports that are found."""
        from thaw.export.folder import read_format, remove_exports

        found = {each: read_format(self.world.root / f"only-{each}", each) for each in ("onnx", "litert", "c")}
        copy = self.world.root / "work" / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        for each in found:
            shutil.copytree(self.world.root / f"only-{each}" / each, copy / each)
        (copy / "mine").write_text("a file that thaw did not write")
        remove_exports(copy)
        if not (copy / "mine").is_file():
            raise Unnoticed("a file that thaw did not write was removed")
        return {each: (dict(it.files), it.precisions, it.changed) if it else None for each, it in found.items()}

    def recipe(self) -> object:
        """The networks of the recipes."""
        from thaw.graph.lower import layer_table
        from thaw.recipe.recipe import load_recipe
        from thaw.run.resolve import with_network

        for name in ("recipe.toml", "paper.toml"):
            _, recipe = load_recipe(str(self.world.root / name))
            settled, _ = with_network(recipe, None, (28, 28, 1), 10)
            layer_table(settled.model, settled.unify_spec, (28, 28, 1), 10)
        return None

    def caches(self) -> object:
        """The data of the run, from its cache or decoded again."""
        from thaw.run.resolve import prepare_run

        _, data = prepare_run(self._setting()[0])
        test = data.test.open()
        return (
            *(data.fingerprint, data.input_spec, data.problems, data.splits),
            *(part.tobytes() for part in (data.train.images, data.train.labels, test.images, test.labels)),
        )

    def image(self) -> object:
        """The prediction for an image file."""
        from thaw.model.model import Model

        found = Model.load(self.run).predict(self.world.root / "image.png")
        return [_finite(each.probabilities).tobytes() for each in found]

    def history(self) -> object:
        """The history after a resume, which is written from the checkpoint."""
        import thaw

        thaw.Run.open(self.run).resume()
        return (self.run / "history.jsonl").read_bytes()

    def artifacts(self, target: str) -> object:
        """The verification of one format's artifacts; a changed one must be reported."""
        from thaw.run.run import Run

        result = Run.open(self.run).verify(images=2, out=self.world.root / f"only-{target}")
        with contextlib.suppress(AttributeError):
            _finite([check.accuracy for check in result.checks if check.accuracy is not None])
        return result.is_verified, result.changed, [check.problem for check in result.checks]
