"""The exported C equals the reference interpreter, with every kind of kernel and with sanitizers."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compilers import FEW_INTRINSICS
from error_matching import raises
from export_samples import card_of, paper_graph
from graph_samples import EXTREMES, random_graph, random_images, random_int8_graph

from thaw.evidence.run_c import STRICT_FLAGS, HostCRunner
from thaw.export.to_c import export_c, float_literal
from thaw.graph.interpret import run, trace
from thaw.graph.plan import constant_bytes, plan_memory
from thaw.host_c import find_compiler

FLAGS = {
    "portable": ("-O1", "-DTHAW_PORTABLE"),
    "AVX2": ("-O1", "-mavx2", *FEW_INTRINSICS),
    "native": ("-O1", "-march=native", *FEW_INTRINSICS),
}
CPU_INFO = Path("/proc/cpuinfo")
HAS_AVX2 = CPU_INFO.exists() and "avx2" in CPU_INFO.read_text()
pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt-get install gcc libc6-dev")


def emit(graph):
    return export_c({"int8": graph}, card_of(graph))


def score_output(graph):
    return replace(graph, outputs=graph.outputs[-1:])


def kernels():
    return [pytest.param(flags, id=name) for name, flags in FLAGS.items() if name != "AVX2" or HAS_AVX2]


def assert_same_bytes(graph, flags, images):
    graph = score_output(graph)
    with HostCRunner(emit(graph), graph, flags=flags) as runner:
        expected = run(graph, images)[graph.outputs[0]]
        np.testing.assert_array_equal(runner.run(images), expected)
        steps = runner.tensors(images[:1])
        reference = trace(graph, images[:1])
        for name, values in steps.items():
            np.testing.assert_array_equal(values, reference[name], err_msg=name)
        assert graph.outputs[0] in steps


@pytest.mark.parametrize("flags", kernels())
@pytest.mark.parametrize("seed", range(12))
def test_random_graphs_equal_the_reference_interpreter(seed, flags):
    rng = np.random.default_rng(seed)
    graph = random_int8_graph(rng)
    assert_same_bytes(graph, flags, random_images(rng, graph, 20))


@pytest.mark.parametrize("flags", kernels())
@pytest.mark.parametrize("extreme", EXTREMES)
def test_extreme_values_equal_the_reference_interpreter(extreme, flags):
    rng = np.random.default_rng(100)
    graph = random_int8_graph(rng, extreme=extreme)
    images = np.concatenate([random_images(rng, graph, 8), np.zeros((1, *graph.tensor(graph.input).shape), np.uint8)])
    assert_same_bytes(graph, flags, np.concatenate([images, np.full_like(images[:1], 255)]))


@pytest.mark.parametrize("flags", kernels())
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_papers_network_equals_the_reference_interpreter(shape, flags):
    graph = paper_graph(shape)
    images = np.random.default_rng(1).integers(0, 256, (40, *shape), np.uint8)
    assert_same_bytes(graph, flags, images)


def test_sanitizers_find_nothing(tmp_path):
    """A separate program whose image ends at the end of its allocation."""
    for seed, network in enumerate(
        [paper_graph((28, 28, 1)), *(random_int8_graph(np.random.default_rng(s)) for s in range(4))]
    ):
        graph = score_output(network)
        folder = tmp_path / str(seed)
        folder.mkdir()
        for name, content in emit(graph).items():
            (folder / name).write_bytes(content)
        (folder / "check.c").write_text(SANITIZED)
        images = random_images(np.random.default_rng(seed), graph, 10)
        for kind, flags in FLAGS.items():
            if kind == "AVX2" and not HAS_AVX2:
                continue
            # Optimization would remove accesses that the sanitizers check, and takes most of the time.
            command = [find_compiler(), *STRICT_FLAGS, *flags, "-O0", "-g", "-fsanitize=address,undefined"]
            subprocess.run(
                [*command, "-fno-sanitize-recover=all", "check.c", "model.c", "-o", "check"],
                cwd=folder, check=True, capture_output=True, text=True,
            )  # fmt: skip
            done = subprocess.run([folder / "check"], input=images.tobytes(), capture_output=True, check=False)
            assert done.returncode == 0, done.stderr.decode()
            result = graph.tensor(graph.outputs[0])
            scores = np.frombuffer(done.stdout, result.dtype).reshape(len(images), *result.shape)
            np.testing.assert_array_equal(scores, run(graph, images)[result.name])


SANITIZED = """
#include "model.h"
#include <stdio.h>
#include <stdlib.h>
int main(void)
{
    const size_t bytes = MODEL_INPUT_BYTES;
    for (;;) {
        uint8_t *pixels = malloc(bytes);
        model_score *scores = malloc(MODEL_SCORES * sizeof *scores);
        if (!pixels || !scores) return 1;
        if (fread(pixels, 1, bytes, stdin) != bytes) { free(pixels); free(scores); return 0; }
        model_predict(pixels, scores);
        if (fwrite(scores, sizeof *scores, MODEL_SCORES, stdout) != MODEL_SCORES) return 2;
        free(pixels);
        free(scores);
    }
}
"""

# Compilers and flags. Every installed one compiles the C with strict warnings; packages are those of Debian.
ARM_HEADERS = "/usr/lib/arm-none-eabi/include"
CPUS = ("cortex-m0plus", "cortex-m4", "cortex-m7", "cortex-m33", "cortex-m55")
CROSS = [
    ("gcc", ()),
    ("clang", ()),
    ("aarch64-linux-gnu-gcc", ()),
    ("riscv64-linux-gnu-gcc", ()),
    ("clang", ("--target=aarch64-linux-gnu", "-isystem", "/usr/aarch64-linux-gnu/include")),
    ("clang", ("--target=riscv64-linux-gnu", "-isystem", "/usr/riscv64-linux-gnu/include")),
    *(("arm-none-eabi-gcc", (f"-mcpu={cpu}", "-mthumb")) for cpu in CPUS),
    # DSP extension without Thumb-2: portable kernels.
    *(("arm-none-eabi-gcc", (f"-mcpu={cpu}", "-marm")) for cpu in ("arm926ej-s", "arm1176jzf-s", "cortex-a7")),
    *(
        ("clang", ("--target=arm-none-eabi", f"-mcpu={cpu}", "-mthumb", "-mfloat-abi=soft", "-isystem", ARM_HEADERS))
        for cpu in CPUS
    ),
]  # fmt: skip


# Together they use every kernel.
MANY_KERNELS = [random_int8_graph(np.random.default_rng(seed)) for seed in (1, 2, 5)]


@pytest.mark.parametrize(("compiler", "flags"), CROSS, ids=lambda value: value if isinstance(value, str) else value[:2])
def test_compiles_without_warnings_for_every_core(compiler, flags, tmp_path):
    if shutil.which(compiler) is None:
        pytest.skip(f"needs {compiler}")
    headers = [flag for flag in flags if flag.startswith("/usr")]
    if headers and not all(Path(path).is_dir() for path in headers):
        pytest.skip(f"needs {headers[0]}")
    for graph in [paper_graph((28, 28, 1)), *MANY_KERNELS]:
        for name, content in emit(score_output(graph)).items():
            (tmp_path / name).write_bytes(content)
        for level in ("-O0", "-O2"):
            done = subprocess.run(
                [compiler, *STRICT_FLAGS, *flags, level, "-c", "model.c", "-o", "model.o"],
                cwd=tmp_path, check=False, capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr


def test_source_needs_no_library_and_no_heap():
    files = emit(paper_graph((28, 28, 1)))
    for name in ("model.c", "model.h"):
        text = files[name].decode()
        headers = set(re.findall(r"#include\s+[<\"](.+?)[>\"]", text))
        assert headers <= {"stdint.h", "string.h", "model.h", "immintrin.h"}
        assert not re.search(
            r"\b(malloc|calloc|free|printf|float|double)\b", re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)
        )


def test_arena_and_constants_have_the_planned_size(tmp_path):
    graph = score_output(paper_graph((28, 28, 1)))
    for name, content in emit(graph).items():
        (tmp_path / name).write_bytes(content)
    assert f"#define MODEL_ARENA_BYTES {plan_memory(graph).arena_bytes}\n" in (tmp_path / "model.h").read_text()
    text = (tmp_path / "model.c").read_text()
    sizes = {"int8_t": 1, "int32_t": 4}
    arrays = re.findall(r"static const (int8_t|int32_t) model_(?:weights|bias|multiplier|shift)_\d+\[(\d+)\]", text)
    assert sum(sizes[kind] * int(count) for kind, count in arrays) == constant_bytes(graph)


def test_rejects_float_graph_and_wrong_card():
    rng = np.random.default_rng(0)
    graph = random_graph(rng)
    with raises("usage-c", "int8"):
        export_c({"float": graph}, card_of(graph))
    with raises("usage-c", "card"):
        export_c({"int8": paper_graph((28, 28, 1))}, card_of(paper_graph((32, 32, 3))))


def test_hostile_names_are_escaped():
    graph = paper_graph((28, 28, 1))
    card = replace(
        card_of(graph),
        name='x */ int y; /* "\\\n',
        classes=('"', "\\", "a\nb", "??/", "é", "*/", "@NAMES@", "%s", "7" * 300, "\x00"),
    )
    files = export_c({"int8": graph}, card)
    with HostCRunner(files, graph, flags=("-O0",)) as runner:
        import ctypes

        names = (ctypes.c_char_p * 10).in_dll(runner.library(), "model_class_names")
        # Control characters are escaped, since programs print the names to a terminal.
        expected = [name.replace("\n", "\\n").replace("\x00", "\\x00").encode() for name in card.classes]
        assert [name or b"" for name in names] == expected


def test_compile_error_has_one_line():
    graph = paper_graph((28, 28, 1))
    files = emit(graph) | {"model.c": b"int broken(void) { return }"}
    with raises("model-file-compile", "error"):
        HostCRunner(files, graph)


def test_crash_or_infinite_loop_is_an_error(monkeypatch):
    graph = paper_graph((28, 28, 1))
    files, images = emit(graph), np.zeros((2, 28, 28, 1), np.uint8)
    start = b"model_predict(const uint8_t *pixels, model_score *scores)\n{\n"
    assert files["model.c"].count(start) == 1
    for statement, fact in [(b"*(volatile int *)0 = 1;", "exit code -"), (b"for (;;) {}", " s")]:
        broken = files | {"model.c": files["model.c"].replace(start, start + statement)}
        monkeypatch.setattr("thaw.evidence.run_c._RUN_SECONDS", 1.0)
        with HostCRunner(broken, graph, flags=("-O0",)) as runner:
            for call in (lambda: runner.run(images), lambda: runner.predict_one(images[0])):
                with raises("model-file-c", fact):
                    call()


def test_missing_compiler_is_reported(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CC", raising=False)
    with raises("missing-dependency-compiler", "apt-get install gcc"):
        find_compiler()


def test_example_classifies_a_picture(tmp_path):
    graph = paper_graph((28, 28, 1))
    for name, content in emit(graph).items():
        (tmp_path / name).write_bytes(content)
    subprocess.run(["make", "example"], cwd=tmp_path, check=True, capture_output=True)
    image = np.random.default_rng(3).integers(0, 256, (28, 28, 1), np.uint8)
    (tmp_path / "picture.pgm").write_bytes(b"P5\n# a comment\n28 28\n255\n" + image.tobytes())
    said = subprocess.run(
        [tmp_path / "example", "picture.pgm"], cwd=tmp_path, check=True, capture_output=True, text=True
    )
    scores = run(score_output(graph), image[None])[graph.outputs[-1]][0]
    best = int(scores.argmax())
    assert said.stdout.split() == [f"class{best}", f"{(int(scores[best]) + 128) / 256:.3f}"]
    for content in (b"", b"P5\n28 28\n255\nshort", b"P3\n1 1\n255\n0", b"P5\n99999999 1\n255\n"):
        (tmp_path / "bad.pgm").write_bytes(content)
        done = subprocess.run(
            [tmp_path / "example", "bad.pgm"], cwd=tmp_path, check=False, capture_output=True, text=True
        )
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)


def test_float_literals_round_trip():
    for value in (1.0, 1 / 256, 0.1, 1e-30, 3.4e38):
        assert np.float32(float_literal(value).rstrip("f")) == np.float32(value)
