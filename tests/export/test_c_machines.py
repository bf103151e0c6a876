"""The exported C gives the same scores with a 16-bit int (AVR, in simavr) and on big-endian machines (in QEMU)."""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from export_samples import card_of
from graph_samples import Sketch, random_images, random_int8_graph

from thaw.data.images import InputSpec
from thaw.data.resize import resize
from thaw.evidence.run_c import STRICT_FLAGS, HostCRunner
from thaw.export.c_names import with_prefix
from thaw.export.to_c import export_c
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.interpret import run, trace
from thaw.graph.ops import Conv2d, MaxPool2d, Scale
from thaw.graph.quantize import quantize
from thaw.graph.tensors import IMAGE, LOGITS, Tensor

AVR = "atmega1284p"
AVR_RAM_BYTES = 16 * 1024

# Compiler and emulator, with their Debian packages.
BIG_ENDIAN = {
    "s390x": ("s390x-linux-gnu-gcc", "qemu-s390x", "gcc-s390x-linux-gnu libc6-dev-s390x-cross qemu-user"),
    "powerpc64": ("powerpc64-linux-gnu-gcc", "qemu-ppc64", "gcc-powerpc64-linux-gnu libc6-dev-ppc64-cross qemu-user"),
}
needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt-get install gcc")
needs_avr = pytest.mark.skipif(
    not all(map(shutil.which, ("avr-gcc", "avr-size", "simavr"))),
    reason="needs an emulated AVR: apt-get install gcc-avr avr-libc simavr",
)

# Sends lines of hexadecimal bytes: the pixels of two pictures from thaw_preprocess, then scores.
FIRMWARE = """
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/pgmspace.h>
#include <avr/sleep.h>
#include "model.h"

static const uint8_t picture[] PROGMEM = {@PICTURE@};
static const uint16_t wide_picture[] PROGMEM = {@WIDE_PICTURE@};
static const uint8_t images[] PROGMEM = {@IMAGES@};
static uint8_t source[sizeof picture + sizeof wide_picture], pixels[THAW_INPUT_BYTES];
static thaw_score scores[THAW_SCORES];

static void send(const void *data, uint16_t bytes)
{
    const uint8_t *at = data;
    for (; bytes > 0; bytes--, at++) {
        while (!(UCSR0A & (1 << UDRE0))) {
        }
        UDR0 = (uint8_t)"0123456789abcdef"[*at >> 4];
        while (!(UCSR0A & (1 << UDRE0))) {
        }
        UDR0 = (uint8_t)"0123456789abcdef"[*at & 15];
    }
    UDR0 = '\\n';
}

int main(void)
{
    uint16_t begin;
    UCSR0B = 1 << TXEN0;
    memcpy_P(source, picture, sizeof picture);
    if (thaw_preprocess(source, @WIDTH@, @HEIGHT@, 3 * @WIDTH@, THAW_RGB888, pixels) == 0) {
        send(pixels, sizeof pixels);
    }
    memcpy_P(source, wide_picture, sizeof wide_picture);
    if (thaw_preprocess(source, @WIDTH@, @HEIGHT@, 6 * @WIDTH@, THAW_RGB16, pixels) == 0) {
        send(pixels, sizeof pixels);
    }
    for (begin = 0; begin < sizeof images; begin += THAW_INPUT_BYTES) {
        memcpy_P(pixels, images + begin, THAW_INPUT_BYTES);
        thaw_predict(pixels, scores);
        send(scores, sizeof scores);
    }
    cli();
    sleep_enable();
    sleep_cpu();
    return 0;
}
"""

# The two pictures, for machines with standard output.
PREPROCESS = """
#include "model.h"
#include <stdio.h>

static const uint8_t picture[] = {@PICTURE@};
static const uint16_t wide_picture[] = {@WIDE_PICTURE@};
static uint8_t pixels[THAW_INPUT_BYTES];

int main(void)
{
    if (thaw_preprocess(picture, @WIDTH@, @HEIGHT@, 3 * @WIDTH@, THAW_RGB888, pixels) != 0 ||
        fwrite(pixels, sizeof pixels, 1, stdout) != 1) {
        return 1;
    }
    return thaw_preprocess((const uint8_t *)wide_picture, @WIDTH@, @HEIGHT@, 6 * @WIDTH@, THAW_RGB16, pixels) != 0 ||
           fwrite(pixels, sizeof pixels, 1, stdout) != 1;
}
"""
RANGE = (200, 4100)
PICTURE = np.random.default_rng(4).integers(0, 256, (11, 17, 3), np.uint8)
WIDE_PICTURE = np.random.default_rng(4).integers(0, 4400, (11, 17, 3), np.uint16)


def scored(graph):
    return replace(graph, outputs=graph.outputs[-1:])


def _large_weights():
    """Two products of bright pixels with such weights exceed 16 bits, although the whole sum is not large."""
    rng = np.random.default_rng(11)
    sketch = Sketch(rng)
    sketch.tensors = {IMAGE: Tensor(name=IMAGE, shape=(8, 6, 3), dtype="uint8")}
    sketch.ops, sketch.now = [], IMAGE
    sketch.add(Scale, mean=(0.0,) * 3, std=(1.0,) * 3)
    for _ in range(2):
        weights = rng.uniform(-1, 1, (5, 3, 3, sketch.shape[2])).astype(np.float32)
        bias = np.zeros(5, np.float32)
        sketch.add(Conv2d, weights=weights - weights.mean(axis=(1, 2, 3), keepdims=True), bias=bias, padding=(1,) * 4)
        sketch.add(MaxPool2d, kernel=(2, 2), stride=(2, 2))
    sketch.flatten()
    sketch.dense(6, output=LOGITS)
    graph = Graph(tensors=tuple(sketch.tensors.values()), ops=tuple(sketch.ops), input=IMAGE, outputs=(LOGITS,))
    return quantize(graph, calibrate(graph, random_images(rng, graph, 16))["minmax"])


GRAPHS = {
    **{f"random {seed}": lambda seed=seed: random_int8_graph(np.random.default_rng(seed)) for seed in (1, 2, 5, 7)},
    **{
        extreme: lambda extreme=extreme: random_int8_graph(np.random.default_rng(100), extreme=extreme)
        for extreme in ("zero points at 127", "largest weights alike", "large biases", "wide ranges")
    },
    "large weights": _large_weights,
}


@cache
def sample(name):
    """(graph, its C, images, results of the reference interpreter)."""
    graph = scored(GRAPHS[name]())
    images = random_images(np.random.default_rng(3), graph, 5)
    card = card_of(graph)
    card = replace(card, input_spec=replace(card.input_spec, range=RANGE))
    return graph, export_c({"int8": graph}, card), images, run(graph, images)[graph.outputs[0]]


def program(template, images):
    """A program with the pictures and, if it uses them, the images."""
    values = {
        "PICTURE": ",".join(map(str, PICTURE.ravel())),
        "WIDE_PICTURE": ",".join(map(str, WIDE_PICTURE.ravel())),
        "IMAGES": ",".join(map(str, images.ravel())),
        "HEIGHT": str(PICTURE.shape[0]),
        "WIDTH": str(PICTURE.shape[1]),
    }
    return re.sub(r"@([A-Z_]+)@", lambda match: values[match[1]], with_prefix(template, "model"))


def pixels_of(picture, images):
    """The picture as input of the model."""
    height, width, channels = images.shape[1:]
    input_spec = InputSpec(height=height, width=width, channels=channels, fit="stretch", range=RANGE)
    return resize(picture, input_spec).tobytes()


def digest(scores):
    return hashlib.sha256(np.ascontiguousarray(scores).tobytes()).hexdigest()


@needs_compiler
@needs_avr
@pytest.mark.parametrize("name", GRAPHS)
def test_16_bit_int_gives_the_same_results(tmp_path, name):
    graph, files, images, expected = sample(name)
    pixels, wide_pixels, *lines = run_on_avr(tmp_path, files, images)
    assert pixels == pixels_of(PICTURE, images)
    assert wide_pixels == pixels_of(WIDE_PICTURE, images)
    scores = np.frombuffer(b"".join(lines), expected.dtype).reshape(expected.shape)
    with HostCRunner(files, graph, flags=("-O1", "-DTHAW_PORTABLE")) as here:
        assert digest(scores) == digest(here.run(images)) == digest(expected)


def run_on_avr(folder, files, images):
    """The lines that the firmware sends, as bytes."""
    for name, content in files.items():
        (folder / name).write_bytes(content)
    (folder / "firmware.c").write_text(program(FIRMWARE, images))
    compiler = ["avr-gcc", f"-mmcu={AVR}", "-Os"]
    for command in (
        [*compiler, *STRICT_FLAGS, "-c", "model.c"],
        [*compiler, "-std=gnu99", "-Wall", "-Wextra", "-Werror", "firmware.c", "model.o", "-o", "firmware.elf"],
    ):
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    size = subprocess.run(["avr-size", "firmware.elf"], cwd=folder, capture_output=True, text=True, check=True).stdout
    _, data, bss = map(int, size.splitlines()[1].split()[:3])
    assert data + bss < AVR_RAM_BYTES - 1024, "no room for the stack: use a smaller network"
    done = subprocess.run(
        ["simavr", "-m", AVR, "-f", "16000000", "firmware.elf"],
        cwd=folder,
        capture_output=True,
        timeout=120,
        check=True,
    )
    # simavr colors the serial output, wraps long lines, and shows line ends as dots.
    *lines, _ = re.sub(r"\x1b\[\d+m|\n", "", done.stderr.decode()).split(".")
    return [bytes.fromhex(line) for line in lines]


@needs_compiler
@pytest.mark.parametrize("machine", BIG_ENDIAN)
@pytest.mark.parametrize("name", ["random 1", "random 7", "large weights"])
def test_big_endian_machine_gives_the_same_results(tmp_path, name, machine):
    compiler, emulator, packages = BIG_ENDIAN[machine]
    if shutil.which(compiler) is None or shutil.which(emulator) is None:
        pytest.skip(f"needs an emulated {machine}: apt-get install {packages}")
    graph, files, images, expected = sample(name)
    with HostCRunner(files, graph, flags=("-O2", "-static"), compiler=compiler, launcher=(emulator,)) as there:
        scores = there.run(images)
        reference = trace(graph, images[:1])
        for tensor, values in there.tensors(images[:1]).items():
            np.testing.assert_array_equal(values, reference[tensor], err_msg=tensor)
    with HostCRunner(files, graph, flags=("-O1", "-DTHAW_PORTABLE")) as here:
        assert digest(scores) == digest(here.run(images)) == digest(expected)
    for file, content in files.items():
        (tmp_path / file).write_bytes(content)
    (tmp_path / "program.c").write_text(program(PREPROCESS, images))
    command = [compiler, *STRICT_FLAGS, "-O2", "-static", "program.c", "model.c"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    said = subprocess.run([emulator, "a.out"], cwd=tmp_path, capture_output=True, timeout=60, check=True).stdout
    assert said == pixels_of(PICTURE, images) + pixels_of(WIDE_PICTURE, images)
