"""The emitted preprocessing against `resize`, to the byte, and under the compilers' warnings and sanitizers."""

import ctypes
import shutil
import struct
import subprocess
from functools import cache
from importlib import resources

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from thaw.data.images import InputContract
from thaw.data.resize import MAX_SOURCE_SIDE, resize

GREY8, RGB888, RGB565 = range(3)
PIXEL_BYTES = {GREY8: 1, RGB888: 3, RGB565: 2}

# Height, width, channels, fit: square and not, one pixel, odd sizes, the widest that a model may have.
TARGETS = (
    (28, 28, 1, "stretch"),
    (28, 28, 1, "crop"),
    (32, 32, 3, "stretch"),
    (12, 7, 3, "crop"),
    (1, 1, 1, "stretch"),
    (1, 1, 3, "crop"),
    (5, 16, 1, "crop"),
    (3, 1024, 1, "stretch"),
    (1024, 2, 3, "crop"),
)

WARNINGS = ("-std=c99", "-Wall", "-Wextra", "-Wconversion", "-Wshadow", "-Werror", "-pedantic")
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
NEWLIB = ("-ffreestanding", "-isystem", "/usr/lib/arm-none-eabi/include")
CORTEX = ("cortex-m0plus", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
COMPILERS = (
    ("gcc",),
    ("clang",),
    ("aarch64-linux-gnu-gcc",),
    ("riscv64-linux-gnu-gcc",),
    *(("arm-none-eabi-gcc", "-mthumb", f"-mcpu={core}") for core in CORTEX),
    *(("clang", "--target=arm-none-eabi", f"-mcpu={core}", *NEWLIB) for core in CORTEX),
    ("clang", "--target=aarch64-none-elf", *NEWLIB),
    ("clang", "--target=riscv32-none-elf", *NEWLIB),
)

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler: install gcc or clang")

# Reads cases (width, height, stride, format, bytes of the source, source), and writes (result, pixels) for each. Each
# buffer is an allocation of its own, so that the address sanitizer sees the first byte beyond it.
PROGRAM = """
#include <stdio.h>
#include <stdlib.h>

int main(void)
{
    int32_t head[5];
    while (fread(head, sizeof head, 1, stdin) == 1) {
        uint8_t *source = malloc((size_t)head[4]);
        uint8_t *pixels = malloc(THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS);
        int32_t result;
        if (source == NULL || pixels == NULL || fread(source, 1, (size_t)head[4], stdin) != (size_t)head[4]) {
            return 1;
        }
        memset(pixels, 0, THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS);
        result = thaw_preprocess(source, head[0], head[1], head[2], (thaw_format)head[3], pixels);
        fwrite(&result, sizeof result, 1, stdout);
        fwrite(pixels, 1, THAW_HEIGHT * THAW_WIDTH * THAW_CHANNELS, stdout);
        free(source);
        free(pixels);
    }
    return 0;
}
"""


def fragment(name):
    return (resources.files("thaw") / "export" / "c" / name).read_text("utf-8")


def translation_unit(target, tail=""):
    height, width, channels, fit = target
    macros = {"HEIGHT": height, "WIDTH": width, "CHANNELS": channels, "FIT_CROP": int(fit == "crop")}
    lines = ["#include <stdint.h>", "#include <string.h>"]
    lines += [f"#define THAW_{name} {value}" for name, value in macros.items()]
    return "\n".join([*lines, fragment("preprocess.h"), fragment("preprocess.c"), tail])


def compile_c(source, output, *arguments, compiler=("cc",)):
    command = [*compiler, *WARNINGS, *arguments, "-x", "c", "-", "-o", str(output)]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory):
    """A function (target, bytes, width, height, stride, format) -> (result, pixels); it compiles a target once."""
    folder = tmp_path_factory.mktemp("preprocess")

    @cache
    def library(target):
        path = folder / ("-".join(map(str, target)) + ".so")
        compile_c(translation_unit(target), path, "-O2", "-shared", "-fPIC")
        function = ctypes.CDLL(str(path)).thaw_preprocess
        function.argtypes = [ctypes.c_void_p, *[ctypes.c_int32] * 3, ctypes.c_int, ctypes.c_void_p]
        return function

    def run(target, data, width, height, stride, form):
        size = int(np.prod(target[:3]))
        guarded = np.full(size + 16, 171, np.uint8)
        result = library(target)(data.ctypes.data, width, height, stride, form, guarded[8:].ctypes.data)
        assert (guarded[:8] == 171).all()
        assert (guarded[-8:] == 171).all()
        return result, guarded[8:-8].reshape(target[:3])

    return run


def random_source(width, height, form, padding, rng):
    """Bytes of an image, the last row without what pads it, and the stride."""
    stride = width * PIXEL_BYTES[form] + padding
    extremes = rng.integers(0, 2, stride * height, dtype=np.uint8) * np.uint8(255)
    data = extremes if rng.integers(4) == 0 else rng.integers(0, 256, stride * height, dtype=np.uint8)
    return np.ascontiguousarray(data[: len(data) - padding]), stride


def unpack(data, width, height, stride, form):
    """uint8 [H, W, C] of a source's bytes; RGB565 becomes 8 bits first."""
    rows = np.concatenate([data, np.zeros(height * stride - len(data), np.uint8)]).reshape(height, stride)
    pixels = rows[:, : width * PIXEL_BYTES[form]].reshape(height, width, PIXEL_BYTES[form])
    if form != RGB565:
        return pixels
    bits = pixels[..., 0].astype(np.uint32) + 256 * pixels[..., 1].astype(np.uint32)
    # 5 or 6 bits stand at the top of a byte, and again below themselves.
    fields = ((bits >> 11 & 31, 5), (bits >> 5 & 63, 6), (bits & 31, 5))
    return np.stack([value << (8 - n) | value >> (2 * n - 8) for value, n in fields], axis=-1).astype(np.uint8)


def expected(target, data, width, height, stride, form):
    contract = InputContract(height=target[0], width=target[1], channels=target[2], fit=target[3])
    return resize(unpack(data, width, height, stride, form), contract)


sides = st.one_of(st.integers(1, 70), st.sampled_from([27, 28, 29, 56, 64, 97, 240]))


@needs_compiler
@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(TARGETS),
    sides,
    sides,
    st.sampled_from([GREY8, RGB888, RGB565]),
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
)
@example((28, 28, 1, "stretch"), 320, 240, RGB565, 0, 0)
@example((32, 32, 3, "stretch"), 1, 1, GREY8, 0, 1)
@example((28, 28, 1, "stretch"), 28, 28, RGB888, 3, 2)
@example((28, 28, 1, "crop"), 32768, 1, GREY8, 0, 3)
@example((12, 7, 3, "crop"), 1, 32768, RGB888, 1, 4)
@example((1, 1, 1, "stretch"), 32768, 3, RGB565, 2, 5)
@example((1024, 2, 3, "crop"), 2, 1023, RGB565, 1, 6)
def test_equals_resize(preprocess, target, width, height, form, padding, seed):
    data, stride = random_source(width, height, form, padding, np.random.default_rng(seed))
    result, pixels = preprocess(target, data, width, height, stride, form)
    assert result == 0
    assert np.array_equal(pixels, expected(target, data, width, height, stride, form))


@needs_compiler
@pytest.mark.parametrize("form", [GREY8, RGB888, RGB565])
@pytest.mark.parametrize("target", [(28, 28, 1, "stretch"), (1, 1, 3, "crop"), (32, 32, 3, "stretch")])
def test_white_stays_white_at_the_largest_sizes(preprocess, target, form):
    # The largest sums that can occur: an overflow would change the result.
    for width, height in ((MAX_SOURCE_SIDE, 40), (40, MAX_SOURCE_SIDE), (2039, 2039)):
        stride = width * PIXEL_BYTES[form]
        result, pixels = preprocess(target, np.full(stride * height, 255, np.uint8), width, height, stride, form)
        assert result == 0
        assert (pixels == 255).all()


@needs_compiler
def test_expands_every_rgb565_colour(preprocess):
    # All 65,536 values, in images that no resizing changes.
    values = np.arange(65536, dtype="<u2").reshape(64, 32, 32)
    for block in values:
        data = np.frombuffer(block.tobytes(), np.uint8)
        _, pixels = preprocess((32, 32, 3, "stretch"), data, 32, 32, 64, RGB565)
        assert np.array_equal(pixels, unpack(data, 32, 32, 64, RGB565))
        low = np.stack([block >> 11, block >> 5 & 63, block & 31], axis=-1)
        exact = low * np.array([255 / 31, 255 / 63, 255 / 31])
        assert np.abs(pixels - exact).max() < 1


@needs_compiler
@pytest.mark.parametrize(
    ("width", "height", "stride", "form", "result"),
    [
        (0, 4, 4, GREY8, -1),
        (4, 0, 4, GREY8, -1),
        (-1, 4, 4, GREY8, -1),
        (4, -(2**31), 4, GREY8, -1),
        (MAX_SOURCE_SIDE + 1, 4, 2**30, GREY8, -1),
        (4, MAX_SOURCE_SIDE + 1, 4, GREY8, -1),
        (2**31 - 1, 2**31 - 1, 2**31 - 1, GREY8, -1),
        (4, 4, 3, GREY8, -2),
        (4, 4, 11, RGB888, -2),
        (4, 4, 7, RGB565, -2),
        (4, 4, 0, GREY8, -2),
        (4, 4, -4, GREY8, -2),
        (4, 4, 12, 3, -3),
        (4, 4, 12, -1, -3),
    ],
)
def test_refuses_and_leaves_the_pixels_alone(preprocess, width, height, stride, form, result):
    found, pixels = preprocess((28, 28, 1, "stretch"), np.zeros(48, np.uint8), width, height, stride, form)
    assert found == result
    assert (pixels == 171).all()


@needs_compiler
@pytest.mark.parametrize("target", TARGETS)
def test_sanitizers_find_nothing(tmp_path, target):
    probe = subprocess.run(
        ["cc", *SANITIZERS, "-x", "c", "-", "-o", str(tmp_path / "probe")],
        input="int main(void) { return 0; }",
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    if probe.returncode != 0:
        pytest.skip("the C compiler has no address and undefined-behaviour sanitizers: install libasan and libubsan")
    program = tmp_path / "program"
    compile_c(translation_unit(target, PROGRAM), program, "-O1", *SANITIZERS)
    rng = np.random.default_rng(7)
    sizes = [(1, 1), (320, 240), (MAX_SOURCE_SIDE, 1), (1, MAX_SOURCE_SIDE), target[1::-1]]
    sizes += [tuple(rng.integers(1, 60, 2).tolist()) for _ in range(20)]
    cases = []
    for width, height in sizes:
        for form in (GREY8, RGB888, RGB565):
            data, stride = random_source(width, height, form, int(rng.integers(4)), rng)
            cases.append((data, width, height, stride, form))
    sent = b"".join(struct.pack("<5i", *facts, len(data)) + data.tobytes() for data, *facts in cases)
    done = subprocess.run([program], input=sent, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    size = 4 + int(np.prod(target[:3]))
    assert len(done.stdout) == size * len(cases)
    for place, case in enumerate(cases):
        answer = done.stdout[place * size : (place + 1) * size]
        assert struct.unpack("<i", answer[:4]) == (0,)
        assert answer[4:] == expected(target, *case).tobytes(), case[1:]


@pytest.mark.parametrize("compiler", COMPILERS, ids=" ".join)
def test_compiles_without_a_warning(tmp_path, compiler):
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}: install Debian's package of that name")
    if NEWLIB[-1] in compiler and not resources.files("thaw").joinpath(NEWLIB[-1]).is_dir():
        pytest.skip("no headers for bare machines: install libnewlib-arm-none-eabi")
    for target in ((28, 28, 1, "stretch"), (32, 48, 3, "crop"), (1, 1, 1, "crop")):
        for level in ("-O0", "-Os", "-O3"):
            compile_c(translation_unit(target), tmp_path / "out.o", level, "-c", compiler=compiler)


@needs_compiler
def test_needs_nothing_from_any_library(tmp_path):
    # A link without libraries fails for whatever is not defined: heap, memcpy, stack protection.
    arguments = ("-O2", "-fPIC", "-shared", "-fno-stack-protector", "-nostdlib", "-Wl,-z,defs")
    for target in ((28, 28, 1, "stretch"), (32, 48, 3, "crop")):
        compile_c(translation_unit(target), tmp_path / "alone.so", *arguments)
