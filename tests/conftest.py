"""Common setup: an environment without the user's files and the network, and the location of real data."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from command_line import REPOSITORY, SMALL, FinishedRun, thaw
from compiled import FOLDER, keep_compiled_kernels
from forking import measure_latency_briefly

from thaw.cli import main

_SCRATCH = pytest.StashKey[Path]()
_SEED = "THAW_TEST_SEED"

# Files that take longest, which processes side by side begin with, so that they end at about the same time.
_SLOWEST = (
    *("test_faults.py", "run/test_run.py", "export/test_c.py", "graph/test_families.py", "deploy/test_web_page.py"),
    *("deploy/test_export.py", "cli/test_cli.py", "studies/test_studies.py", "kernels/test_normalization.py"),
    *("run/test_quantization.py", "export/test_litert.py", "export/test_c_preprocess.py", "kernels/test_sanitizers.py"),
    *("data/test_cache.py", "recipe/test_sizing.py", "graph/test_file.py", "kernels/test_depthwise.py"),
    *("model/test_file.py", "training/test_engine.py", "cli/test_commands.py", "export/test_c_machines.py"),
)


def pytest_report_header() -> str:
    """Log the seed of the tests that draw random numbers."""
    return f"random seed: {os.environ[_SEED]} (replay with {_SEED}={os.environ[_SEED]})"


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before any test module is imported, for this process and for the programs it starts."""
    # Processes of pytest-xdist inherit it, so that all draw from the same seed.
    os.environ.setdefault(_SEED, str(random.SystemRandom().randrange(1 << 32)))
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = os.environ[_SEED]
    scratch = Path(tempfile.mkdtemp(prefix="thaw-tests-"))
    config.stash[_SCRATCH] = scratch
    os.environ["THAW_CACHE"] = str(scratch / "cache")
    # Processes of pytest-xdist share it.
    (scratch / "kernels").mkdir()
    os.environ.setdefault(FOLDER, str(scratch / "kernels"))
    os.environ["HF_HOME"] = str(scratch / "huggingface")
    # `datasets` and the Hub client obey these instead of HF_HOME where they are set.
    for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        os.environ.pop(name, None)
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["MPLBACKEND"] = "agg"
    # A shell starts background processes with interrupts ignored, which programs started by tests would inherit.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # Set through the environment, since importing torch would slow down tests without it.
    # Two threads also in processes side by side: with one, oneDNN 3.12 corrupts memory in the gradient of a strided 1x1
    # convolution with one filter, which test_trainable has. Passive threads yield the core instead of spinning.
    os.environ.setdefault("OMP_NUM_THREADS", str(min(2, os.cpu_count() or 1)))
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the slowest files; pytest-xdist keeps this order with --no-loadscope-reorder."""
    rank = {Path(__file__).parent / name: number for number, name in enumerate(_SLOWEST)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_runtest_setup() -> None:
    """Save seconds in each run that a test makes in this process."""
    measure_latency_briefly()
    keep_compiled_kernels()


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove what the tests cached."""
    shutil.rmtree(config.stash[_SCRATCH], ignore_errors=True)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder that holds mnist, fashion_mnist, cifar10 and others, as THAW_DATA or ../shared/data says."""
    named = os.environ.get("THAW_DATA")
    root = Path(named) if named else REPOSITORY.parent / "shared" / "data"
    if not root.is_dir():
        where = "THAW_DATA, which is no folder" if named else "../shared/data, and THAW_DATA is not set"
        pytest.skip(f"no real data: looked in {where}")
    return root.resolve()


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """An uninterrupted small run on the digits, shared by tests, which must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    done = thaw("train", "digits", *SMALL, "--out", "run", "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    return FinishedRun(folder / "run", done.stdout, done.stderr)


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Random numbers of this test, from the logged seed and the name of the test."""
    return random.Random(f"{os.environ[_SEED]} {request.node.nodeid}")


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path):
    """Run `thaw ARGUMENTS` in this process, which has imported torch: (exit code, standard output, standard error)."""
    import thaw.run.pipeline  # noqa: F401 - for the two below

    measure_latency_briefly()
    keep_compiled_kernels()
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["thaw", *map(str, arguments)])
        with pytest.raises(SystemExit) as exit_:
            main()
        out, err = capsys.readouterr()
        return int(exit_.value.code or 0), out, err

    return run
