"""Budgets: parsing, rejection of networks, and the allowances for C."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from command_line import REPOSITORY, TINY_OVERRIDES, error_of, reseal
from error_matching import raises
from hypothesis import given
from hypothesis import strategies as st

import thaw
from thaw.data.images import InputSpec
from thaw.errors import BudgetError, UsageError
from thaw.export.card import ModelCard
from thaw.export.to_c import export_c
from thaw.graph.calibrate import calibrate
from thaw.graph.cost import CODE_BYTES, STACK_BYTES
from thaw.graph.lower import layer_table, lower
from thaw.graph.quantize import quantize
from thaw.models.families import PaperSpec
from thaw.models.unify import UnifySpec, build_unified
from thaw.recipe.budget import Budget
from thaw.recipe.recipe import load_recipe
from thaw.run import resolve
from thaw.run.request import TrainRequest
from thaw.run.resolve import with_network

# The paper's network for 28x28x1 images of 10 classes; tests/graph/test_cost.py derives parameters and MACs.
PAPER = layer_table(PaperSpec(), UnifySpec(), (28, 28, 1), 10)
NEEDS = {"params": 14_862, "ram": PAPER.ram_bytes, "flash": PAPER.flash_bytes, "macs": 568_240}
RECIPE = load_recipe("paper")[1]


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("params=15000,ram=8KB,flash=32KB,macs=1M", (15_000, 8_192, 32_768, 1_000_000)),
        ("ram=8KiB", (None, 8_192, None, None)),
        ("ram=8kb,flash=1MB", (None, 8_192, 1_048_576, None)),
        ("ram=4096,flash=100B", (None, 4_096, 100, None)),
        (" macs = 1.5M , params = 15 k ", (15_000, None, None, 1_500_000)),
        ("flash=0.5MiB,params=15K", (15_000, None, 524_288, None)),
        ("ram=1.7KB", (None, 1_740, None, None)),  # 1,740.8
        ("params=1", (1, None, None, None)),
        ("macs=1000000000000", (None, None, None, 10**12)),
        ("ram=8KB,image=included", (None, 8_192, None, None)),
        ("image = excluded , ram=8KB", (None, 8_192, None, None)),
    ],
)
def test_parses(text, limits):
    budget = Budget.parse(text)
    assert (budget.params, budget.ram, budget.flash, budget.macs) == limits
    assert budget.counts_image == ("excluded" not in text)


@pytest.mark.parametrize(
    ("text", "code", "facts"),
    [
        ("", "usage-budget-empty", ("params=15000",)),
        ("   ", "usage-budget-empty", ()),
        ("params", "usage-budget-syntax", ("NAME=LIMIT",)),
        ("params=1,,ram=2", "usage-budget-syntax", ("NAME=LIMIT",)),
        ("params=1,", "usage-budget-syntax", ("NAME=LIMIT",)),
        ("param=1", "usage-budget-name", ("params",)),
        ("latency=1", "usage-budget-name", ("params, ram, flash, macs, image",)),
        ("=5", "usage-budget-name", ()),
        ("ram=8KB,ram=9KB", "usage-budget-twice", ("ram",)),
        ("ram=", "usage-budget-value", ("8192, 8KB",)),
        ("ram=8Q", "usage-budget-value", ("8192, 8KB",)),
        ("ram=8k", "usage-budget-value", ("8192, 8KB",)),
        ("ram=KB", "usage-budget-value", ("8192, 8KB",)),
        ("ram=-8KB", "usage-budget-value", ("8192, 8KB",)),
        ("macs=1GHz", "usage-budget-value", ("15000, 15k",)),
        ("params=8KB", "usage-budget-value", ("15000, 15k",)),
        ("params=1e3", "usage-budget-value", ("15000, 15k",)),
        ("params=nan", "usage-budget-value", ("15000, 15k",)),
        ("params=²", "usage-budget-value", ("15000, 15k",)),
        ("params=1_000", "usage-budget-value", ("15000, 15k",)),
        ("params=1=2", "usage-budget-value", ("15000, 15k",)),
        ("params=0", "usage-budget-range", ()),
        ("ram=8KB,image=no", "usage-budget-value", ("included or excluded",)),
        ("ram=8KB,image=Excluded", "usage-budget-value", ("included or excluded",)),
        ("ram=8KB,image=excluded,image=excluded", "usage-budget-twice", ("image",)),
        ("flash=8KB,image=excluded", "usage", ("ram=LIMIT",)),
        ("imag=excluded", "usage-budget-name", ("image",)),
        ("params=0.4", "usage-budget-range", ()),
        ("flash=2000000MB", "usage-budget-range", ("1,000,000,000,000",)),
        ("params=" + "9" * 400, "usage-budget-value", ("15000, 15k",)),
    ],
)
def test_rejects_invalid_text_in_one_line(text, code, facts):
    with raises(code, *facts) as caught:
        Budget.parse(text)
    assert str(caught.value).startswith(("budget ", "budget."))
    assert "\n" not in str(caught.value)


@given(
    st.text(max_size=30)
    | st.from_regex(r"(params|ram|x)=[0-9.kKMB]{1,8}(,macs=[0-9]{0,20}M?|,image=(in|ex)cluded)?", fullmatch=True)
)
def test_any_text_is_a_budget_or_a_usage_error(text):
    try:
        budget = Budget.parse(text)
    except UsageError:
        return
    assert any(budget.as_dict().values())
    assert Budget.from_dict(json.loads(json.dumps(budget.as_dict()))) == budget


@pytest.mark.parametrize(
    "kept",
    [
        {"params": 0},
        {"params": 1.5},
        {"ram": True},
        {"ram": "8KB"},
        {"rom": 5},
        {"image": "excluded"},
        {"ram": 5, "image": False},
        {"ram": 5, "image": "excluded "},
    ],
)
def test_rejects_invalid_values_in_run_json(kept):
    with raises("usage", "budget"):
        Budget.from_dict(kept)


@pytest.mark.parametrize("name", NEEDS)
def test_exact_limit_fits_and_one_less_does_not(name):
    with_network(RECIPE, Budget(**{name: NEEDS[name]}), (28, 28, 1), 10)
    with pytest.raises(BudgetError) as caught:
        with_network(RECIPE, Budget(**{name: NEEDS[name] - 1}), (28, 28, 1), 10)
    lines = str(caught.value).splitlines()
    assert len(lines) == 3
    assert "28x28x1, 10 classes" in lines[0]
    assert lines[1].startswith(f"  {name}: needs {NEEDS[name]:,}")
    assert f"limit {NEEDS[name] - 1:,}" in lines[1]


def test_every_exceeded_limit_is_reported_with_its_largest_part():
    with pytest.raises(BudgetError) as caught:
        with_network(RECIPE, Budget.parse("params=1k,ram=1KB,flash=8KB,macs=1k"), (28, 28, 1), 10)
    text = str(caught.value)
    assert [line.split(":")[0].strip() for line in text.splitlines()[1:5]] == ["params", "ram", "flash", "macs"]
    assert "(largest layer: branch1.dense, 5,010)" in text
    assert "(largest layer: branch1.conv2, 217,800)" in text
    assert f"(arena {PAPER.arena_bytes:,}, image 784, scores 10, {STACK_BYTES:,} reserved for the stack)" in text
    assert "image=excluded does not count the image in ram" in text
    assert f"{PAPER.flash_bytes - CODE_BYTES:,} of constants and {CODE_BYTES:,} reserved for code" in text
    assert 'overrides=["model.filters=' in text
    assert 'recipe="balanced", which fits its network to the budget' in text


def test_ram_includes_the_image_unless_excluded():
    """64 KB of RAM at 64x64x3 include the caller's 12 KB."""
    shape, all_of_it = (64, 64, 3), "ram=64KB,flash=128KB"
    recipe = load_recipe("balanced")[1]
    with_image, without = (
        layer_table(with_network(recipe, Budget.parse(text), shape, 6)[0].model, None, shape, 6)
        for text in (all_of_it, f"{all_of_it},image=excluded")
    )
    assert with_image.image_bytes == 64 * 64 * 3
    assert with_image.ram_bytes == with_image.arena_bytes + STACK_BYTES + 64 * 64 * 3 + 6 <= 65_536
    assert 65_536 < without.ram_bytes <= 65_536 + 64 * 64 * 3
    with raises("budget", "image of 784") as caught:
        with_network(RECIPE, Budget(ram=PAPER.ram_bytes - 784 - 1, counts_image=False), (28, 28, 1), 10)
    assert "image=excluded" not in str(caught.value)
    with_network(RECIPE, Budget(ram=PAPER.ram_bytes - 784, counts_image=False), (28, 28, 1), 10)


def no_images(*args, **kwargs):
    raise AssertionError("images were decoded")


@pytest.mark.parametrize("more", [(), ("--set", "data.input=20x20x1"), ("--set", "data.input=64x64x3")])
def test_rejects_before_any_image_is_decoded(call, monkeypatch, tmp_path, more):
    monkeypatch.setattr(resolve, "prepare", no_images)
    told = call("train", "digits", "--recipe", "digits", "--budget", "ram=600", *more)
    error_of(("10 classes", "ram: needs", "image "), told, 2, lines=3)
    assert not list(tmp_path.iterdir())


def test_rejects_too_many_classes_when_they_are_known(call, tmp_path):
    two = layer_table(PaperSpec(), UnifySpec(), (28, 28, 1), 2)
    assert two.parameters < 14_000
    told = call("train", "digits", "--recipe", "digits", "--budget", "params=14k")
    error_of(("10 classes", "14,862"), told, 2, lines=3)
    assert not list(tmp_path.iterdir())


def test_rejects_arrays_after_reading_their_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (60, 16, 12), dtype=np.uint8)
    with raises("budget", "16x12x1", "3 classes"):
        thaw.train((images, np.arange(60) % 3), recipe="paper", budget="macs=1k")
    assert not list(tmp_path.iterdir())


def test_invalid_budget_is_reported_on_the_command_line(call):
    error_of(("budget ram=8Q",), call("train", "digits", "--budget", "ram=8Q"), 2, lines=1)
    error_of(("budget ''",), call("train", "digits", "--budget", ""), 2, lines=1)


def test_budget_cannot_be_combined_with_resume(call):
    error_of(("--resume",), call("train", "--resume", "run", "--budget", "ram=8KB"), 2)


@pytest.fixture(scope="module")
def within(tmp_path_factory):
    """A finished run that had a budget."""
    out = tmp_path_factory.mktemp("within") / "run"
    return thaw.train("digits", recipe="digits", overrides=TINY_OVERRIDES, out=out, budget="params=15k,flash=32KB")


LIMITS = {"params": 15_000, "ram": None, "flash": 32_768, "macs": None}


def test_run_stores_its_budget(within):
    assert json.loads((within.path / "run.json").read_text())["budget"] == LIMITS
    assert within.metrics["budget"] == LIMITS
    assert "--budget params=15k,flash=32KB" in within.metrics["command"]
    cost = within.metrics["cost"]
    assert cost["ram_bytes"] == cost["arena_bytes"] + STACK_BYTES + 28 * 28 + 10
    page = within.report.read_text()
    section = page[page.index('id="cost"') :]
    section = section[: section.index("</section>")]
    assert "Budget" in section
    assert "15,000" in section
    assert "32,768" in section


def test_resumed_run_keeps_its_budget(within, call, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(within.path, copy)
    (copy / "metrics.json").unlink()
    code, out, err = call("train", "--resume", copy, "--json")
    assert code == 0, err
    assert json.loads(out)["budget"] == LIMITS
    kept = json.loads((copy / "run.json").read_text())
    reseal(copy / "run.json", kept | {"budget": {"params": 100}})
    error_of(("params: needs 14,862", "limit 100"), call("train", "--resume", copy), 2, lines=3)


def test_rejects_run_json_with_missing_or_invalid_budget(within):
    kept = json.loads((within.path / "run.json").read_text())
    assert TrainRequest.from_dict(kept).budget == Budget.parse("params=15k,flash=32KB")
    for wrong in ({"params": -1}, {"rom": 5}, [1], "ram=8KB"):
        with raises("run", "run.json"):
            TrainRequest.from_dict(kept | {"budget": wrong})
    assert TrainRequest.from_dict(kept | {"budget": None}).budget is None
    del kept["budget"]
    with raises("run", "budget"):
        TrainRequest.from_dict(kept)


def test_request_without_a_budget_round_trip():
    request = TrainRequest(source="digits", recipe_name="paper", recipe=RECIPE)
    assert request.as_dict()["budget"] is None


def test_info_shows_the_cost_of_the_c(call):
    code, out, _ = call("info", "--recipe", "paper")
    assert code == 0
    assert f"RAM for the int8 C {PAPER.ram_bytes:,} bytes: arena {PAPER.arena_bytes:,}, image 784, scores 10" in out
    assert f"flash for the int8 C {PAPER.flash_bytes:,} bytes" in out
    described = json.loads(call("info", "--recipe", "paper", "--json")[1])
    names = ("ram_bytes", "flash_bytes", "image_bytes", "score_bytes")
    assert [described[name] for name in names] == [PAPER.ram_bytes, PAPER.flash_bytes, 784, 10]


def test_documentation_states_the_allowances():
    for page in ("docs/train.md", "docs/metrics.md"):
        text = (REPOSITORY / page).read_text()
        assert f"{CODE_BYTES:,} bytes" in text
        assert f"{STACK_BYTES:,} bytes" in text


@pytest.fixture(scope="module", params=[(28, 28, 1), (32, 32, 3)], ids=str)
def emitted(request, tmp_path_factory):
    """The C of the paper's network with random weights, and its cost. Sizes do not depend on weights."""
    shape = request.param
    statistics = {"mean": (0.0,) * shape[2], "std": (1.0,) * shape[2]}
    module = build_unified(PaperSpec(), UnifySpec(), shape, 10).eval()
    graph = lower(module, shape=shape, classes=10, **statistics)
    images = np.random.default_rng(0).integers(0, 256, (8, *shape), dtype=np.uint8)
    input_spec = InputSpec(height=shape[0], width=shape[1], channels=shape[2])
    card = ModelCard(name="size", classes=tuple("0123456789"), input_spec=input_spec)
    folder = tmp_path_factory.mktemp("emitted")
    for name, content in export_c({"int8": quantize(graph, calibrate(graph, images)["minmax"])}, card).items():
        (folder / name).write_bytes(content)
    return folder, layer_table(PaperSpec(), UnifySpec(), shape, 10)


@pytest.mark.skipif(
    shutil.which("arm-none-eabi-gcc") is None or shutil.which("arm-none-eabi-size") is None,
    reason="no Arm compiler: install gcc-arm-none-eabi and libnewlib-arm-none-eabi",
)
@pytest.mark.parametrize("core", ["cortex-m0plus", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55"])
@pytest.mark.parametrize("level", ["-Os", "-O2"])
def test_c_is_within_the_allowances(emitted, core, level):
    # Linked with functions of the compiler's library: division, on a core without such an instruction.
    folder, cost = emitted
    flags = ["-mthumb", f"-mcpu={core}", level, "-std=c99", "-ffunction-sections", "-fdata-sections"]
    link = ["--specs=nano.specs", "-nostartfiles", "-Wl,--gc-sections,-e,model_predict,-u,model_preprocess"]
    command = ["arm-none-eabi-gcc", *flags, "model.c", *link, "-o", f"{core}{level}.elf"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    size = ["arm-none-eabi-size", f"{core}{level}.elf"]
    sizes = subprocess.run(size, cwd=folder, capture_output=True, text=True, timeout=60, check=True).stdout
    text, data, bss = map(int, sizes.splitlines()[1].split()[:3])
    assert data == 0
    assert bss == -(-cost.arena_bytes // 4) * 4
    # More than the constants, otherwise they were not linked; at most the amount in the budget.
    assert cost.flash_bytes - CODE_BYTES < text <= cost.flash_bytes
