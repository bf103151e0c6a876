"""The exported C on an emulated Cortex-M, by QEMU and the Arm toolchain.

A small firmware reads images from a file through semihosting, runs them, and writes scores and counts back. QEMU counts
one nanosecond of its virtual time for each instruction (`-icount shift=0`), so the SysTick timer counts instructions; a
loop of known length calibrates it. These are instructions, not cycles: memory, wait states and the pipeline of a real
board are not simulated.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from thaw.errors import MissingDependencyError, ModelFileError, UsageError
from thaw.evidence.run_c import STRICT_FLAGS
from thaw.export.c_names import prefix_of_files, with_prefix
from thaw.host_c import compile_c
from thaw.quoting import shown

PREFIX = "arm-none-eabi-"
_QEMU = "qemu-system-arm"
_PACKAGES = {
    f"{PREFIX}gcc": "gcc-arm-none-eabi libnewlib-arm-none-eabi",
    f"{PREFIX}size": "binutils-arm-none-eabi",
    _QEMU: "qemu-system-arm",
}
OPTIMIZATION = ("-O2", "-ffunction-sections", "-fdata-sections")
# No exported file has these names, since a prefix contains no hyphen.
_FIRMWARE_SOURCE, _FIRMWARE_OBJECT, _MODEL_OBJECT = "thaw-firmware.c", "thaw-firmware.o", "thaw-model.o"
_SECONDS_PER_IMAGE = 1.0
_LEAST_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Board:
    """An emulated board.

    Attributes:
        cpu: the compiler's name for the core.
        machine: QEMU's name for the board.
        code: address of the code memory.
        data: address of the data memory.
        about: architecture and extensions.
    """

    cpu: str
    machine: str
    code: int
    data: int
    about: str


BOARDS: Mapping[str, Board] = {
    "cortex-m3": Board(
        cpu="cortex-m3", machine="mps2-an385", code=0x0, data=0x20000000, about="Armv7-M without the DSP extension"
    ),
    "cortex-m4": Board(cpu="cortex-m4", machine="mps2-an386", code=0x0, data=0x20000000, about="Armv7E-M with DSP"),
    "cortex-m7": Board(cpu="cortex-m7", machine="mps2-an500", code=0x0, data=0x20000000, about="Armv7E-M with DSP"),
    "cortex-m33": Board(
        cpu="cortex-m33", machine="mps2-an505", code=0x10000000, data=0x38000000, about="Armv8-M with DSP"
    ),
    "cortex-m55": Board(
        cpu="cortex-m55", machine="mps3-an547", code=0x10000000, data=0x30000000, about="Armv8.1-M with DSP"
    ),
}


@dataclass(frozen=True, kw_only=True)
class Emulation:
    """Results and resource use of the exported C on an emulated core.

    Attributes:
        board: a key of `BOARDS`.
        scores: int8 [N, K] (int32 for a network that ends in an argmax).
        images: N.
        instructions_per_inference: of thaw_predict, mean over the images.
        most_instructions: largest count of one image; accurate to about 40 instructions, one tick of the timer.
        text_bytes: code of thaw_predict and everything it calls, including the compiler's helpers.
        constant_bytes: weights and tables.
        flash_bytes: sum of the two.
        preprocess_bytes: additional flash of thaw_preprocess.
        static_bytes: static memory: the arena.
        stack_bytes: peak stack use of thaw_predict, including its caller's frame.
        image_bytes: the input buffer, which belongs to the caller.
        score_bytes: the output buffer, which belongs to the caller.
        ram_bytes: sum of these four.
        tools: versions of the tools.
    """

    board: str
    scores: npt.NDArray[Any] = field(repr=False)
    images: int
    instructions_per_inference: float
    most_instructions: float
    text_bytes: int
    constant_bytes: int
    flash_bytes: int
    preprocess_bytes: int
    static_bytes: int
    stack_bytes: int
    image_bytes: int
    score_bytes: int
    ram_bytes: int
    tools: Mapping[str, str]

    def as_dict(self) -> dict[str, Any]:
        """A JSON-ready form, without the scores."""
        return {name: value for name, value in asdict(self).items() if name != "scores"}


def missing_tools() -> list[str]:
    """The Debian packages whose programs are missing."""
    return sorted({package for program, package in _PACKAGES.items() if shutil.which(program) is None})


def emulate(files: Mapping[str, bytes], images: npt.NDArray[np.uint8], board: str) -> Emulation:
    """Build the firmware of an exported folder for `board` and run it on images uint8 [N, H, W, C], N at least 1.

    Raises:
        UsageError: for an unknown board, or without images.
        MissingDependencyError: naming the Debian packages that are missing.
        ModelFileError: when the C does not compile, or the firmware fails.
    """
    if board not in BOARDS:
        raise UsageError(f"unknown board {shown(board)}: expected one of {', '.join(BOARDS)}", code="usage-verify")
    if not len(images):
        raise UsageError("the emulation needs at least one image", code="usage-verify")
    missing = missing_tools()
    if missing:
        packages = " ".join(missing)
        raise MissingDependencyError(
            f"emulating a Cortex-M needs programs that are missing\non Debian and Ubuntu: apt-get install {packages}"
        )
    with tempfile.TemporaryDirectory(prefix="thaw-emulate-") as name:
        try:
            return _emulate(Path(name), files, images, board)
        except OSError as error:
            raise ModelFileError(
                f"the emulation cannot work in {tempfile.gettempdir()}: {error.strerror or error}\n"
                "set TMPDIR to a folder with space",
                code="model-file-c",
            ) from error


def _emulate(folder: Path, files: Mapping[str, bytes], images: npt.NDArray[np.uint8], name: str) -> Emulation:
    board = BOARDS[name]
    prefix = prefix_of_files(files)
    _write_sources(folder, files, board)
    text, constants, static = _sizes(folder, board, f"{prefix}_predict")
    more_text, more_constants, _ = _sizes(folder, board, f"{prefix}_predict", f"{prefix}_preprocess")
    _link(folder, board, "firmware.elf", [_FIRMWARE_OBJECT, _MODEL_OBJECT], ["-T", "memory.ld"])
    scores, counts = _run(folder, board, images, files)
    ticks_per_instruction = counts[2] / counts[3]
    mean = counts[1] / counts[0] / ticks_per_instruction
    image_bytes, score_bytes = (array.nbytes // len(images) for array in (images, scores))
    return Emulation(
        board=name,
        scores=scores,
        images=len(images),
        instructions_per_inference=round(mean, 1),
        most_instructions=round(counts[5] / ticks_per_instruction, 1),
        text_bytes=text,
        constant_bytes=constants,
        flash_bytes=text + constants,
        preprocess_bytes=more_text + more_constants - text - constants,
        static_bytes=static,
        stack_bytes=counts[4],
        image_bytes=image_bytes,
        score_bytes=score_bytes,
        ram_bytes=static + counts[4] + image_bytes + score_bytes,
        tools=_tools(),
    )


def _write_sources(folder: Path, files: Mapping[str, bytes], board: Board) -> None:
    prefix = prefix_of_files(files)
    for name in (f"{prefix}.h", f"{prefix}.c"):
        (folder / name).write_bytes(files[name])
    own = resources.files("thaw.evidence") / "firmware"
    firmware = (own / "firmware.c").read_text("utf-8").replace('"model.h"', f'"{prefix}.h"')
    (folder / _FIRMWARE_SOURCE).write_text(with_prefix(firmware, prefix), "utf-8")
    script = (own / "memory.ld").read_text("utf-8")
    script = script.replace("@CODE@", hex(board.code)).replace("@DATA@", hex(board.data))
    (folder / "memory.ld").write_text(script, "utf-8")
    compile_c([*_compiler(board), *STRICT_FLAGS, "-c", f"{prefix}.c", "-o", _MODEL_OBJECT], folder)
    # The firmware uses addresses as numbers and calls the host, which strict C forbids.
    loose = ("-std=gnu11", "-Wall", "-Wextra")
    compile_c([*_compiler(board), *loose, "-c", _FIRMWARE_SOURCE, "-o", _FIRMWARE_OBJECT], folder)


def _compiler(board: Board) -> list[str]:
    return [f"{PREFIX}gcc", f"-mcpu={board.cpu}", "-mthumb", "-mfloat-abi=soft", *OPTIMIZATION]


def _link(folder: Path, board: Board, name: str, objects: Sequence[str], flags: Sequence[str]) -> None:
    compile_c([*_compiler(board), "-nostartfiles", "-Wl,--gc-sections", *flags, "-o", name, *objects], folder)


def _sizes(folder: Path, board: Board, *roots: str) -> tuple[int, int, int]:
    """(code, constants, memory) in bytes of these functions and all functions that they call."""
    kept = [flag for root in roots for flag in ("-u", root)]
    _link(folder, board, "sizes.elf", [_MODEL_OBJECT], [*kept, f"-Wl,-e,{roots[0]}"])
    listing = subprocess.run(
        [f"{PREFIX}size", "-A", "sizes.elf"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout
    sections = {match[1]: int(match[2]) for match in re.finditer(r"^(\.[\w.]+)\s+(\d+)", listing, re.MULTILINE)}
    code = sum(sections.get(name, 0) for name in (".text", ".init", ".fini"))
    constants = sections.get(".rodata", 0)
    memory = sections.get(".bss", 0) + sections.get(".data", 0)
    return code, constants + sections.get(".data", 0), memory


def _run(
    folder: Path, board: Board, images: npt.NDArray[np.uint8], files: Mapping[str, bytes]
) -> tuple[npt.NDArray[Any], list[int]]:
    (folder / "images.bin").write_bytes(np.ascontiguousarray(images).tobytes())
    command = [
        _QEMU,
        *("-machine", board.machine, "-nographic", "-monitor", "none", "-serial", "none"),
        *("-icount", "shift=0", "-semihosting-config", "enable=on,target=native", "-kernel", "firmware.elf"),
    ]
    limit = max(_LEAST_SECONDS, _SECONDS_PER_IMAGE * len(images))
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        raise ModelFileError(
            f"the firmware on {board.machine} did not end within {limit:.0f} s", code="model-file-c"
        ) from None
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["it faulted"])[0]
        raise ModelFileError(
            f"the firmware on {board.machine} failed with exit code {done.returncode}: {reason[:200]}",
            code="model-file-c",
        )
    counts = np.frombuffer((folder / "counts.bin").read_bytes(), "<u4").tolist()
    prefix = prefix_of_files(files)
    is_index = f"typedef int32_t {prefix}_score".encode() in files[f"{prefix}.h"]
    scores_type = "<i4" if is_index else "i1"
    scores = np.frombuffer((folder / "scores.bin").read_bytes(), scores_type).reshape(len(images), -1)
    if counts[0] != len(images):
        raise ModelFileError(
            f"the firmware on {board.machine} ran {counts[0]} of {len(images)} images", code="model-file-c"
        )
    return scores.astype(np.int32 if scores_type == "<i4" else np.int8), counts


def _tools() -> dict[str, str]:
    """The first line of each program's --version."""
    versions = {}
    for program in (f"{PREFIX}gcc", _QEMU):
        said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
        versions[program] = (said.splitlines() or ["unknown"])[0]
    return versions
