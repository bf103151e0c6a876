"""The exported preprocessing is byte-identical to `resize`, without warnings and with sanitizers."""

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

from thaw.data.images import InputSpec
from thaw.data.resize import MAX_SOURCE_SIDE, resize

GRAY8, RGB888, RGB565, GRAY16, RGB16 = range(5)
PIXEL_BYTES = {GRAY8: 1, RGB888: 3, RGB565: 2, GRAY16: 2, RGB16: 6}
FULL = (0, 65535)

# Height, width, channels, fit, and a range: square and other shapes, one pixel, odd sizes, the largest width of a
# model; a thermal camera, 10 bits, the narrowest and the widest range.
TARGETS = (
    (28, 28, 1, "stretch", (29500, 30300)),
    (28, 28, 1, "crop", FULL),
    (32, 32, 3, "stretch", (0, 1023)),
    (12, 7, 3, "crop", FULL),
    (1, 1, 1, "stretch", FULL),
    (1, 1, 3, "crop", (65534, 65535)),
    (5, 16, 1, "crop", (1, 4096)),
    (3, 1024, 1, "stretch", (0, 1)),
    (1024, 2, 3, "crop", (300, 65000)),
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

# Reads cases (width, height, stride, format, size of the source, source) and writes (result, pixels) for each. Buffers
# are separate allocations, so that the address sanitizer detects the first byte beyond them.
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
    height, width, channels, fit, (low, high) = target
    macros = {"HEIGHT": height, "WIDTH": width, "CHANNELS": channels, "FIT_CROP": int(fit == "crop")}
    macros |= {"RANGE_LOW": f"{low}U", "RANGE_HIGH": f"{high}U"}
    lines = ["#include <stdint.h>", "#include <string.h>"]
    lines += [f"#define THAW_{name} {value}" for name, value in macros.items()]
    return "\n".join([*lines, fragment("preprocess.h"), fragment("preprocess.c"), tail])


def compile_c(source, output, *arguments, compiler=("cc",)):
    command = [*compiler, *WARNINGS, *arguments, "-x", "c", "-", "-o", str(output)]
    done = subprocess.run(command, input=source, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def preprocess(tmp_path_factory):
    """A function (target, bytes, width, height, stride, format) -> (result, pixels). It compiles a target once."""
    folder = tmp_path_factory.mktemp("preprocess")

    @cache
    def library(target):
        path = folder / (f"{hash(target)}.so")
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


def random_source(width, height, form, padding, rng, value_range=FULL):
    """Bytes of an image, without padding of the last row, and the stride; 16-bit values in and around the range."""
    stride = width * PIXEL_BYTES[form] + padding
    extremes = rng.integers(0, 2, stride * height, dtype=np.uint8) * np.uint8(255)
    data = extremes if rng.integers(4) == 0 else rng.integers(0, 256, stride * height, dtype=np.uint8)
    if form in (GRAY16, RGB16) and rng.integers(4):
        low, high = value_range
        margin = (high - low) // 8 + 1
        values = rng.integers(low - margin, high + margin + 1, (height, width, PIXEL_BYTES[form] // 2))
        rows = data.reshape(height, stride)
        rows[:, : stride - padding] = values.clip(0, 65535).astype(np.uint16).view(np.uint8).reshape(height, -1)
    return np.ascontiguousarray(data[: len(data) - padding]), stride


def unpack(data, width, height, stride, form):
    """The bytes of a source as uint8 or uint16 [H, W, C]; RGB565 is converted to 8 bits."""
    rows = np.concatenate([data, np.zeros(height * stride - len(data), np.uint8)]).reshape(height, stride)
    pixels = rows[:, : width * PIXEL_BYTES[form]].reshape(height, width, PIXEL_BYTES[form])
    if form in (GRAY16, RGB16):
        return np.ascontiguousarray(pixels).view(np.uint16)
    if form != RGB565:
        return pixels
    bits = pixels[..., 0].astype(np.uint32) + 256 * pixels[..., 1].astype(np.uint32)
    # 5 or 6 bits are the upper bits of a byte, and are repeated below.
    fields = ((bits >> 11 & 31, 5), (bits >> 5 & 63, 6), (bits & 31, 5))
    return np.stack([value << (8 - n) | value >> (2 * n - 8) for value, n in fields], axis=-1).astype(np.uint8)


def expected(target, data, width, height, stride, form):
    height_, width_, channels, fit, value_range = target
    input_spec = InputSpec(height=height_, width=width_, channels=channels, fit=fit, range=value_range)
    return resize(unpack(data, width, height, stride, form), input_spec)


sides = st.one_of(st.integers(1, 70), st.sampled_from([27, 28, 29, 56, 64, 97, 240]))


@needs_compiler
@settings(max_examples=250, deadline=None)
@given(
    st.sampled_from(TARGETS),
    sides,
    sides,
    st.sampled_from(sorted(PIXEL_BYTES)),
    st.integers(0, 5),
    st.integers(0, 2**32 - 1),
)
@example((28, 28, 1, "stretch", FULL), 320, 240, RGB565, 0, 0)
@example((32, 32, 3, "stretch", FULL), 1, 1, GRAY8, 0, 1)
@example((28, 28, 1, "stretch", FULL), 28, 28, RGB888, 3, 2)
@example((28, 28, 1, "crop", FULL), 32768, 1, GRAY8, 0, 3)
@example((12, 7, 3, "crop", FULL), 1, 32768, RGB888, 1, 4)
@example((1, 1, 1, "stretch", FULL), 32768, 3, RGB565, 2, 5)
@example((1024, 2, 3, "crop", FULL), 2, 1023, RGB565, 1, 6)
@example((28, 28, 1, "stretch", (29500, 30300)), 160, 120, GRAY16, 0, 7)
@example((32, 32, 3, "stretch", (0, 1023)), 640, 480, RGB16, 1, 8)
@example((32, 32, 3, "stretch", (0, 1023)), 32768, 1, GRAY16, 3, 9)
@example((28, 28, 1, "crop", FULL), 1, 32768, RGB16, 0, 10)
def test_equals_resize(preprocess, target, width, height, form, padding, seed):
    data, stride = random_source(width, height, form, padding, np.random.default_rng(seed), target[4])
    result, pixels = preprocess(target, data, width, height, stride, form)
    assert result == 0
    assert np.array_equal(pixels, expected(target, data, width, height, stride, form))


@needs_compiler
@pytest.mark.parametrize("form", sorted(PIXEL_BYTES))
@pytest.mark.parametrize(
    "target", [(28, 28, 1, "stretch", FULL), (1, 1, 3, "crop", FULL), (32, 32, 3, "stretch", FULL)]
)
def test_white_stays_white_at_the_largest_sizes(preprocess, target, form):
    # The largest possible sums: an overflow would change the result.
    for width, height in ((MAX_SOURCE_SIDE, 40), (40, MAX_SOURCE_SIDE), (2039, 2039)):
        stride = width * PIXEL_BYTES[form]
        result, pixels = preprocess(target, np.full(stride * height, 255, np.uint8), width, height, stride, form)
        assert result == 0
        assert (pixels == 255).all()


@needs_compiler
def test_expands_every_rgb565_color(preprocess):
    # All 65,536 values, in images of the target size.
    values = np.arange(65536, dtype="<u2").reshape(64, 32, 32)
    for block in values:
        data = np.frombuffer(block.tobytes(), np.uint8)
        _, pixels = preprocess((32, 32, 3, "stretch", FULL), data, 32, 32, 64, RGB565)
        assert np.array_equal(pixels, unpack(data, 32, 32, 64, RGB565))
        low = np.stack([block >> 11, block >> 5 & 63, block & 31], axis=-1)
        exact = low * np.array([255 / 31, 255 / 63, 255 / 31])
        assert np.abs(pixels - exact).max() < 1


@needs_compiler
@pytest.mark.parametrize("value_range", [(29500, 30300), (0, 1023), FULL, (0, 1), (65534, 65535)])
def test_scales_every_16_bit_value(preprocess, value_range):
    # All 65,536 values, in images of the target size, compared with the fraction rounded half up.
    low, high = value_range
    for block in np.arange(65536, dtype=np.uint16).reshape(64, 32, 32):
        data = np.frombuffer(block.tobytes(), np.uint8)
        _, pixels = preprocess((32, 32, 3, "stretch", value_range), data, 32, 32, 64, GRAY16)
        share = (np.clip(block.astype(np.int64), low, high) - low) * 255
        exact = share // (high - low) + (share % (high - low) * 2 >= high - low)
        assert np.array_equal(pixels, np.stack([exact] * 3, axis=-1))


@needs_compiler
@pytest.mark.parametrize(
    ("width", "height", "stride", "form", "result"),
    [
        (0, 4, 4, GRAY8, -1),
        (4, 0, 4, GRAY8, -1),
        (-1, 4, 4, GRAY8, -1),
        (4, -(2**31), 4, GRAY8, -1),
        (MAX_SOURCE_SIDE + 1, 4, 2**30, GRAY8, -1),
        (4, MAX_SOURCE_SIDE + 1, 4, GRAY8, -1),
        (2**31 - 1, 2**31 - 1, 2**31 - 1, GRAY8, -1),
        (4, 4, 3, GRAY8, -2),
        (4, 4, 11, RGB888, -2),
        (4, 4, 7, RGB565, -2),
        (4, 4, 0, GRAY8, -2),
        (4, 4, -4, GRAY8, -2),
        (4, 4, 7, GRAY16, -2),
        (4, 4, 23, RGB16, -2),
        (4, 4, 12, 5, -3),
        (4, 4, 12, -1, -3),
    ],
)
def test_invalid_arguments_leave_the_pixels_unchanged(preprocess, width, height, stride, form, result):
    found, pixels = preprocess((28, 28, 1, "stretch", FULL), np.zeros(48, np.uint8), width, height, stride, form)
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
        pytest.skip("the C compiler has no address and undefined-behavior sanitizers: install libasan and libubsan")
    program = tmp_path / "program"
    compile_c(translation_unit(target, PROGRAM), program, "-O1", *SANITIZERS)
    rng = np.random.default_rng(7)
    sizes = [(1, 1), (320, 240), (MAX_SOURCE_SIDE, 1), (1, MAX_SOURCE_SIDE), target[1::-1]]
    sizes += [tuple(rng.integers(1, 60, 2).tolist()) for _ in range(20)]
    cases = []
    for number, (width, height) in enumerate(sizes):
        # Fewer sizes for 16 bits: only reading a pixel differs.
        for form in PIXEL_BYTES if number < 5 or number % 4 == 0 else (GRAY8, RGB888, RGB565):
            data, stride = random_source(width, height, form, int(rng.integers(4)), rng, target[4])
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
def test_compiles_without_warnings(tmp_path, compiler):
    if shutil.which(compiler[0]) is None:
        pytest.skip(f"no {compiler[0]}: install Debian's package of that name")
    if NEWLIB[-1] in compiler and not resources.files("thaw").joinpath(NEWLIB[-1]).is_dir():
        pytest.skip("no headers for bare machines: install libnewlib-arm-none-eabi")
    for target in ((28, 28, 1, "stretch", FULL), (32, 48, 3, "crop", FULL), (1, 1, 1, "crop", FULL)):
        for level in ("-O0", "-Os", "-O3"):
            compile_c(translation_unit(target), tmp_path / "out.o", level, "-c", compiler=compiler)


@needs_compiler
def test_needs_no_library(tmp_path):
    # Linking without libraries fails for undefined functions: heap, memcpy, stack protection.
    arguments = ("-O2", "-fPIC", "-shared", "-fno-stack-protector", "-nostdlib", "-Wl,-z,defs")
    for target in ((28, 28, 1, "stretch", FULL), (32, 48, 3, "crop", FULL)):
        compile_c(translation_unit(target), tmp_path / "alone.so", *arguments)
