"""The exported C on emulated cores equals the reference interpreter, within the documented resources."""

from __future__ import annotations

import re
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from error_matching import raises
from export_samples import card_of, paper_graph
from family_samples import family_graph
from graph_samples import random_images, random_int8_graph

from thaw.evidence import emulate as emulator
from thaw.evidence.emulate import BOARDS, emulate, missing_tools
from thaw.export.to_c import export_c
from thaw.graph.cost import count_cost
from thaw.graph.interpret import run
from thaw.graph.plan import plan_memory

needs_tools = pytest.mark.skipif(bool(missing_tools()), reason=f"needs {' '.join(missing_tools())}")


@needs_tools
@pytest.mark.parametrize("board", BOARDS)
def test_papers_network_equals_the_reference_interpreter(board):
    graph = replace(paper_graph((28, 28, 1)), outputs=("probabilities",))
    images = np.random.default_rng(4).integers(0, 256, (30, 28, 28, 1), np.uint8)
    found = emulate(export_c({"int8": graph}, card_of(graph)), images, board)
    np.testing.assert_array_equal(found.scores, run(graph, images)["probabilities"])
    assert found.static_bytes == plan_memory(graph).arena_bytes
    assert 0 < found.stack_bytes < 1024
    assert (found.image_bytes, found.score_bytes) == (784, 10)
    assert found.ram_bytes == found.static_bytes + found.stack_bytes + 784 + 10 <= 4096
    assert found.flash_bytes == found.text_bytes + found.constant_bytes <= 24 * 1024
    assert found.most_instructions >= found.instructions_per_inference > 100_000
    if board == "cortex-m4":
        assert found.instructions_per_inference < 1_050_000
    assert "scores" not in found.as_dict()


@needs_tools
def test_instruction_counts_are_reproducible():
    graph = replace(paper_graph((28, 28, 1)), outputs=("probabilities",))
    files = export_c({"int8": graph}, card_of(graph))
    images = np.random.default_rng(4).integers(0, 256, (3, 28, 28, 1), np.uint8)
    first, second = (emulate(files, images, "cortex-m4") for _ in range(2))
    assert first.as_dict() == second.as_dict()


@needs_tools
@pytest.mark.parametrize("seed", range(10))
def test_random_graphs_equal_the_reference_interpreter(seed):
    rng = np.random.default_rng(seed)
    graph = random_int8_graph(rng)
    graph = replace(graph, outputs=graph.outputs[-1:])
    images = random_images(rng, graph, 5)
    board = ("cortex-m4", "cortex-m3", "cortex-m55")[seed % 3]
    found = emulate(export_c({"int8": graph}, card_of(graph)), images, board)
    np.testing.assert_array_equal(found.scores, run(graph, images)[graph.outputs[0]])


def test_unknown_board_and_missing_tools_are_reported(monkeypatch):
    graph = paper_graph((28, 28, 1))
    images = np.zeros((1, 28, 28, 1), np.uint8)
    with raises("usage-verify", "'m4'", "cortex-m3"):
        emulate({}, images, "m4")
    with raises("usage-verify"):
        emulate({}, images[:0], "cortex-m4")
    monkeypatch.setenv("PATH", "/nowhere")
    with raises("missing-dependency", "apt-get install", "gcc-arm-none-eabi", "qemu-system-arm"):
        emulate(export_c({"int8": graph}, card_of(graph)), images, "cortex-m4")


@needs_tools
def test_flash_is_within_the_allowance_of_a_budget():
    from thaw.graph.cost import CODE_BYTES, STACK_BYTES

    graph = replace(paper_graph((28, 28, 1)), outputs=("probabilities",))
    found = emulate(export_c({"int8": graph}, card_of(graph)), np.zeros((1, 28, 28, 1), np.uint8), "cortex-m4")
    cost = count_cost(graph)
    assert found.flash_bytes <= cost.flash_bytes
    assert found.stack_bytes <= STACK_BYTES
    assert CODE_BYTES < 8192


@needs_tools
@pytest.mark.parametrize(
    ("name", "board"),
    [
        ("residual, stem stride", "cortex-m4"),
        ("residual, stem pool", "cortex-m55"),
        ("separable, stem stride", "cortex-m7"),
        ("looped, one convolution, stem pool", "cortex-m3"),
        ("paper", "cortex-m33"),
    ],
)
def test_ram_is_within_the_allowance_of_a_budget(name, board):
    """RAM by the linker of a firmware with image, scores and arena, plus the measured stack."""
    graph = family_graph(name, (16, 16, 1))
    graph = replace(graph, outputs=graph.outputs[-1:])
    images = random_images(np.random.default_rng(0), graph, 3)
    files = export_c({"int8": graph}, card_of(graph))
    found = emulate(files, images, board)
    counted = count_cost(family_graph(name, (16, 16, 1), precision="float"))
    assert found.ram_bytes <= counted.ram_bytes
    assert (found.image_bytes, found.score_bytes) == (counted.image_bytes, counted.score_bytes)
    # A firmware also has its own variables: here only the alignment of buffers.
    static = firmware_static_bytes(files, board)
    assert found.ram_bytes - found.stack_bytes <= static <= found.ram_bytes - found.stack_bytes + 8


def firmware_static_bytes(files, board) -> int:
    """RAM of the whole firmware by arm-none-eabi-size."""
    with tempfile.TemporaryDirectory() as name:
        folder, board = Path(name), BOARDS[board]
        emulator._write_sources(folder, files, board)
        emulator._link(
            folder, board, "whole.elf", [emulator._FIRMWARE_OBJECT, emulator._MODEL_OBJECT], ["-T", "memory.ld"]
        )
        command = [f"{emulator.PREFIX}size", "-A", "whole.elf"]
        listing = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    return sum(int(size) for size in re.findall(r"^\.(?:bss|data)\s+(\d+)", listing, re.MULTILINE))
