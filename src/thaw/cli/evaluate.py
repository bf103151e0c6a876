"""`thaw evaluate`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from thaw.cli.options import DataRoot, Json, RunPath, SkipBroken, Source

if TYPE_CHECKING:
    from thaw.evidence.quality import Quality


def evaluate(
    run: RunPath, source: Source, data_root: DataRoot = None, skip_broken: SkipBroken = False, as_json: Json = False
) -> None:
    """Measure a model on a source: on its test split if it has one, otherwise on all of it."""
    import thaw
    from thaw.cli.output import print_findings, print_json, print_text
    from thaw.cli.progress import ProblemProgress

    model = thaw.Model.load(run)
    with ProblemProgress(is_quiet=True) as progress:
        quality = model.evaluate(source, data_root=data_root, skip_broken=skip_broken, on_event=progress)
    if as_json:
        print_json(
            {
                "source": source,
                "test": quality.as_dict(),
                "findings": [finding.as_dict() for finding in quality.findings],
                "overlap": None if quality.overlap is None else quality.overlap.as_dict(),
                "problems": [problem.as_dict() for problem in progress.problems],
            }
        )
        return
    print_findings(quality.findings)
    for problem in progress.problems:
        print_text(f"{problem.severity}: {problem}")
    _print_quality(quality)


def _print_quality(quality: Quality) -> None:
    from thaw.cli.output import columns, print_text, share

    low, high = quality.accuracy_ci95
    print_text(f"accuracy {quality.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, {quality.count:,} images)")
    print_text(f"balanced accuracy {quality.balanced_accuracy:.2%} (mean recall over the classes that have images)")
    print_text(_overlap(quality))
    calibration = f"expected calibration error {quality.expected_calibration_error:.4f}"
    print_text(f"{calibration}, cross-entropy {quality.cross_entropy:.4f}")
    rows = [
        (entry.name, *map(share, (entry.precision, entry.recall, entry.f1)), f"{entry.support:,}")
        for entry in quality.per_class
    ]
    print_text(columns([("class", "precision", "recall", "F1", "images"), *rows], right=(1, 2, 3, 4)))


def _overlap(quality: Quality) -> str:
    """How many of the images the model was trained on."""
    from thaw.model.training_images import SEEN_FILE

    if quality.overlap is None:
        return f"training images unknown: there is no {SEEN_FILE} next to the model, as in a run folder"
    return f"{'warning' if quality.overlap.used else 'note'}: {quality.overlap}"
