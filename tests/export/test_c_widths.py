"""The exported C at every width of a layer: strict flags, and results equal to the reference interpreter.

The full sweep has 40 widths times 96 compilations, more than an hour on two cores: THAW_FULL_SWEEPS=1 runs it. By
default only a few are tested, including those that gcc 12 warned about.
"""

from __future__ import annotations

import itertools
import os
import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from export_samples import card_of
from graph_samples import Sketch, random_images

from thaw.evidence.run_c import STRICT_FLAGS, HostCRunner
from thaw.export.to_c import export_c
from thaw.graph.calibrate import calibrate
from thaw.graph.graph import Graph
from thaw.graph.interpret import run
from thaw.graph.ops import Conv2d, MaxPool2d, Scale
from thaw.graph.quantize import quantize
from thaw.graph.tensors import IMAGE, LOGITS, Tensor
from thaw.host_c import compile_c

IS_FULL = os.environ.get("THAW_FULL_SWEEPS") == "1"
CPU_INFO = Path("/proc/cpuinfo")
FEATURES = set(CPU_INFO.read_text().split()) if CPU_INFO.exists() else set()
COMPILERS = ("gcc", "clang")
LEVELS = ("-O0", "-O1", "-O2", "-O3", "-Os", "-Ofast")

# The VNNI instruction of the kernels, emulated for processors without it.
VNNI = """
#include <immintrin.h>
#include <stdint.h>
#define __AVX512VNNI__ 1
#define __AVX512VL__ 1
static inline __attribute__((unused)) __m128i few_dots(__m128i sums, __m128i values, __m128i weights)
{
    const __m256i products = _mm256_mullo_epi16(_mm256_cvtepu8_epi16(values), _mm256_cvtepi8_epi16(weights));
    const __m256i pairs = _mm256_madd_epi16(products, _mm256_set1_epi16(1));
    const __m128i low = _mm256_castsi256_si128(pairs), high = _mm256_extracti128_si256(pairs, 1);
    return _mm_add_epi32(sums, _mm_hadd_epi32(low, high));
}
static inline __attribute__((unused)) __m256i many_dots(__m256i sums, __m256i values, __m256i weights)
{
    const __m128i low = few_dots(
        _mm256_castsi256_si128(sums), _mm256_castsi256_si128(values), _mm256_castsi256_si128(weights));
    const __m128i high = few_dots(
        _mm256_extracti128_si256(sums, 1), _mm256_extracti128_si256(values, 1), _mm256_extracti128_si256(weights, 1));
    return _mm256_inserti128_si256(_mm256_castsi128_si256(low), high, 1);
}
#undef _mm_dpbusd_epi32
#undef _mm256_dpbusd_epi32
#define _mm_dpbusd_epi32 few_dots
#define _mm256_dpbusd_epi32 many_dots
"""

# Flags, and the processor features that are needed to run the result.
KERNELS = {
    "portable": (("-DTHAW_PORTABLE",), set()),
    "no extension": ((), set()),
    "AVX2": (("-mavx2",), {"avx2"}),
    "AVX2 with AVX-VNNI": (("-mavx2", "-mavxvnni"), {"avx2", "avx_vnni"}),
    "VNNI": (("-mavx512vnni", "-mavx512vl"), {"avx512_vnni", "avx512vl"}),
    "VNNI by AVX2": (("-mavx2", "-include", "vnni.h"), {"avx2"}),
    "AVX-512": (("-march=x86-64-v4",), {"avx512f", "avx512bw", "avx512vl", "avx512dq", "avx512cd"}),
    "native": (("-march=native",), set()),
}


@cache
def graph_of(width: int) -> Graph:
    """A small int8 network whose layers have `width` filters: with pooling, without, at one position, and dense."""
    sketch = Sketch(np.random.default_rng(width))
    sketch.tensors = {IMAGE: Tensor(name=IMAGE, shape=(9, 7, 3), dtype="uint8")}
    sketch.ops, sketch.now = [], IMAGE
    sketch.add(Scale, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))

    def convolve(kernel, padding, activation):
        weights = sketch.normal(width, kernel, kernel, sketch.shape[2], spread=0.3)
        bias = sketch.normal(width, spread=0.3)
        sketch.add(Conv2d, weights=weights, bias=bias, padding=(padding,) * 4, activation=activation)

    convolve(3, 1, "relu")
    sketch.add(MaxPool2d, kernel=(2, 2), stride=(2, 2))
    convolve(2, 1, "none")
    sketch.flatten()
    sketch.dense(3, output=LOGITS)
    graph = Graph(tensors=tuple(sketch.tensors.values()), ops=tuple(sketch.ops), input=IMAGE, outputs=(LOGITS,))
    return quantize(graph, calibrate(graph, random_images(np.random.default_rng(1), graph, 16))["minmax"])


@cache
def images_and_scores(width: int):
    graph = graph_of(width)
    images = random_images(np.random.default_rng(2), graph, 6)
    return images, run(graph, images)[LOGITS]


def check(folder: Path, width: int, compiler: str, level: str, kernels: str) -> None:
    """Compile without warnings, and compare with the reference interpreter if this processor can run it."""
    graph, (flags, needed) = graph_of(width), KERNELS[kernels]
    (folder / "vnni.h").write_text(VNNI)
    flags = [level, *(str(folder / flag) if flag == "vnni.h" else flag for flag in flags)]
    files = export_c({"int8": graph}, card_of(graph))
    if needed <= FEATURES:
        images, scores = images_and_scores(width)
        with HostCRunner(files, graph, flags=flags, compiler=compiler) as runner:
            np.testing.assert_array_equal(runner.run(images), scores)
    else:
        for name, content in files.items():
            (folder / name).write_bytes(content)
        compile_c([compiler, *STRICT_FLAGS, *flags, "-c", "model.c"], folder)


def some():
    """The default cases: each number of blocks of eight filters, full and partial, warnings of gcc 12, and others."""
    yield from ((width, "gcc", "-O3", "AVX2") for width in (3, 8, 9, 16, 17, 40))
    yield from ((width, "clang", "-O3", "AVX2") for width in (8, 16))
    yield from ((width, "gcc", "-O2", "VNNI by AVX2") for width in (5, 17))
    yield from ((16, compiler, "-O3", kernels) for compiler, kernels in (("gcc", "VNNI"), ("clang", "AVX-512")))
    yield 1, "gcc", "-Os", "portable"


def everything():
    return itertools.product(range(1, 41), COMPILERS, LEVELS, KERNELS)


@pytest.mark.parametrize(("width", "compiler", "level", "kernels"), list(everything() if IS_FULL else some()))
def test_every_width_compiles_without_warnings_and_equals_the_reference_interpreter(
    tmp_path, width, compiler, level, kernels
):
    if "sse2" not in FEATURES:
        pytest.skip("needs an x86 processor")
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}: apt-get install {compiler}")
    check(tmp_path, width, compiler, level, kernels)
