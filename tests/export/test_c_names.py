"""The prefix of exported C: valid prefixes, the default, and several models in one program."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from error_matching import raises
from export_samples import card_of, paper_graph
from graph_samples import random_images, random_int8_graph
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.errors import UsageError
from thaw.evidence.run_c import STRICT_FLAGS, HostCRunner
from thaw.export.c_names import MOST_LETTERS, check_prefix, prefix_of_files, prefix_of_name, with_prefix
from thaw.export.to_c import export_c
from thaw.graph.interpret import run

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler: apt-get install gcc")
IMAGES = 3
TURNS = 150


# Valid prefixes


@pytest.mark.parametrize(
    "prefix", ["mnist_8k", "a", "Blinker2", "thaw", "model", "x" * MOST_LETTERS, "integer", "mains"]
)
def test_identifiers_are_accepted(prefix):
    assert check_prefix(prefix) == prefix


@pytest.mark.parametrize(
    ("prefix", "kind", "facts"),
    [
        ("", "identifier", ()),
        ("3d", "identifier", ()),
        ("mnist-8k", "identifier", ()),
        ("a b", "identifier", ()),
        ("größe", "identifier", ()),
        ("a\n", "identifier", ()),
        ("a;int x", "identifier", ()),
        ("../a", "identifier", ()),
        ("٣", "identifier", ()),
        ("_a", "reserved", ()),
        ("__a", "reserved", ()),
        ("a__b", "reserved", ()),
        ("a_", "underscore", ()),
        ("int", "keyword", ()),
        ("INT", "keyword", ()),
        ("class", "keyword", ()),
        ("co_await", "keyword", ()),
        ("main", "file", ()),
        ("String", "file", ()),
        ("stdint", "file", ()),
        ("pthread", "file", ()),
        ("png", "file", ()),
        ("int8", "reserved", ("INT8_WIDTH",)),
        ("uint_fast16", "reserved", ("UINT_FAST16_WIDTH",)),
        ("Size", "reserved", ("SIZE_WIDTH",)),
        ("nul", "file", ()),
        ("x" * (MOST_LETTERS + 1), "length", (32,)),
    ],
)
def test_invalid_prefix_is_rejected_with_a_suggestion(prefix, kind, facts):
    with raises(f"usage-prefix-{kind}", *facts) as refused:
        check_prefix(prefix)
    (line,) = str(refused.value).splitlines()
    assert len(line) < 200
    assert check_prefix(re.search(r"\(try '(\w+)'\)$", line)[1])
    with raises(f"usage-prefix-{kind}", *facts):
        export_c({"int8": paper_graph((28, 28, 1))}, card_of(paper_graph((28, 28, 1))), prefix=prefix)


@pytest.mark.parametrize(
    ("name", "prefix"),
    [
        ("mnist-8k", "mnist_8k"),
        ("My Photos (2)", "my_photos_2"),
        ("_digits__paper_", "digits_paper"),
        ("Müller's Äpfel", "muller_s_apfel"),
        ("straße", "strasse"),
        ("3d", "model_3d"),
        ("int", "model_int"),
        ("string", "model_string"),
        ("int8", "model_int8"),
        ("", "model"),
        ("...", "model"),
        # echo -n 猫 | sha256sum
        ("猫", "model_a810bf"),
    ],
)
def test_default_prefix_comes_from_the_name(name, prefix):
    assert prefix_of_name(name) == prefix


def test_long_names_and_other_scripts_give_distinct_prefixes():
    names = ["x" * 40 + "1", "x" * 40 + "2", "猫", "犬", "猫 1", "犬 1"]
    prefixes = [prefix_of_name(name) for name in names]
    assert len(set(prefixes)) == len(names)
    assert all(check_prefix(prefix) for prefix in prefixes)


@settings(max_examples=50, deadline=None)
@given(st.text())
def test_every_name_has_a_stable_prefix(name):
    prefix = check_prefix(prefix_of_name(name))
    assert prefix_of_name(prefix) == prefix == prefix.lower()


def test_only_own_names_are_replaced():
    text = "thaw_a THAW_B xthaw_c thaw THAW_PORTABLE THAW_TRACE THAW_TRACE_STEP(thaw_x_1) __thaw_d"
    expected = "net_a NET_B xthaw_c thaw THAW_PORTABLE THAW_TRACE NET_TRACE_STEP(net_x_1) __thaw_d"
    assert with_prefix(text, "net") == expected


def test_prefix_is_read_from_the_file_names():
    assert prefix_of_files(["model.h", "model.c", "main.c"]) == "model"
    assert prefix_of_files(["main.c", "model.c", "net.c", "net.h", "model.h"]) == "net"
    for names in (["main.c"], ["model.h"], ["model.h", "model.c", "net.h"], ["a-b.h", "a-b.c"]):
        with raises("model-file-export"):
            prefix_of_files(names)


# Several models in one program


@cache
def models():
    """Prefix -> (C, images, results of the reference interpreter), for networks of different sizes."""
    graphs = {
        "first": paper_graph((28, 28, 1)),
        "second_model": random_int8_graph(np.random.default_rng(2)),
        "Third": random_int8_graph(np.random.default_rng(7)),
    }
    made = {}
    for prefix, each in graphs.items():
        graph = replace(each, outputs=each.outputs[-1:])
        images = random_images(np.random.default_rng(1), graph, IMAGES)
        files = export_c({"int8": graph}, card_of(graph, name=prefix), prefix=prefix)
        made[prefix] = files, images, run(graph, images)[graph.outputs[0]]
    return made


# For one model: repeated predictions, which must be equal.
ONE = """
static const uint8_t thaw_images[][THAW_INPUT_BYTES] = {@IMAGES@};
static thaw_score thaw_first[@COUNT@][THAW_SCORES];
static int thaw_failures;

static void thaw_work(void)
{
    int turn, image;
    for (turn = 0; turn < @TURNS@; turn++) {
        for (image = 0; image < @COUNT@; image++) {
            thaw_score scores[THAW_SCORES];
            thaw_predict(thaw_images[image], scores);
            if (turn == 0) {
                memcpy(thaw_first[image], scores, sizeof scores);
            } else if (memcmp(thaw_first[image], scores, sizeof scores) != 0) {
                thaw_failures++;
            }
        }
    }
}
"""

PROGRAM = """
#include <pthread.h>
#include <stdio.h>
#include <string.h>
@MODELS@
static void *first_and_third(void *nothing)
{
    first_work();
    Third_work();
    return nothing;
}

static void *second(void *nothing)
{
    second_model_work();
    return nothing;
}

int main(void)
{
    pthread_t threads[2];
    if (pthread_create(&threads[0], NULL, first_and_third, NULL) || pthread_create(&threads[1], NULL, second, NULL) ||
        pthread_join(threads[0], NULL) || pthread_join(threads[1], NULL)) {
        return 2;
    }
    (void)fwrite(first_first, 1, sizeof first_first, stdout);
    (void)fwrite(second_model_first, 1, sizeof second_model_first, stdout);
    (void)fwrite(Third_first, 1, sizeof Third_first, stdout);
    return first_failures + second_model_failures + Third_failures + fflush(stdout) ? 1 : 0;
}
"""


def write_program(folder, suffix):
    """The three models and a program that includes their headers or, for a single unit, their sources."""
    parts = [f'#include "{prefix}.{"c" if suffix == "unit" else "h"}"' for prefix in models()]
    for prefix, (files, images, _) in models().items():
        for name, content in files.items():
            if name.startswith(prefix):
                (folder / name).write_bytes(content)
        rows = ",".join("{" + ",".join(map(str, image.ravel())) + "}" for image in images)
        part = ONE.replace("@IMAGES@", rows).replace("@COUNT@", str(IMAGES)).replace("@TURNS@", str(TURNS))
        parts.append(with_prefix(part, prefix))
    main = folder / ("main.cpp" if suffix == "cpp" else "main.c")
    main.write_text(PROGRAM.replace("@MODELS@", "\n".join(parts)))
    return main.name


C = ["gcc", *STRICT_FLAGS, "-pthread"]
CPP = ["g++", "-std=c++11", *STRICT_FLAGS[1:], "-pthread"]
SOURCES = [f"{prefix}.c" for prefix in ("first", "second_model", "Third")]
OBJECTS = [f"{prefix}.o" for prefix in ("first", "second_model", "Third")]
BUILDS = {
    "C": ("c", [[*C, "main.c", *SOURCES]]),
    "C++ with C": ("cpp", [[*C, "-c", *SOURCES], [*CPP, "main.cpp", *OBJECTS]]),
    "C++ alone": ("cpp", [[*CPP, "-x", "c++", "main.cpp", *SOURCES]]),
    "one unit": ("unit", [[*C, "main.c"]]),
}


@needs_compiler
@pytest.mark.parametrize(
    ("build", "flags"),
    [*((build, ("-O1", "-DTHAW_PORTABLE")) for build in BUILDS), ("one unit", ("-O1", "-march=native"))],
)
def test_three_models_run_in_one_program_in_two_threads(tmp_path, build, flags):
    suffix, commands = BUILDS[build]
    if any(shutil.which(command[0]) is None for command in commands):
        pytest.skip("needs gcc and g++: apt-get install gcc g++")
    write_program(tmp_path, suffix)
    for command in commands:
        done = subprocess.run([*command, *flags], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / "a.out"], capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, "the result of a model changed while another one ran"
    assert done.stdout == b"".join(scores.tobytes() for _, _, scores in models().values())


@needs_compiler
@pytest.mark.parametrize("sources", [["model.c"], ["first.c"], ["first.c", "model.c"]])
def test_fixed_names_are_the_same_model(tmp_path, sources):
    files, images, expected = models()["first"]
    assert set(files) == {"first.h", "first.c", "model.h", "model.c", "main.c", "Makefile", "README.md"}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    work = with_prefix(ONE.replace("@COUNT@", "1").replace("@TURNS@", "2"), "first")
    rows = "{" + ",".join(map(str, images[0].ravel())) + "}"
    (tmp_path / "program.c").write_text(
        '#include "model.h"\n#include "first.h"\n#include "model.h"\n#include <stdio.h>\n#include <string.h>\n'
        + work.replace("@IMAGES@", rows)
        + "int main(void) { first_work(); return fwrite(first_first, sizeof first_first, 1, stdout) != 1; }\n"
    )
    command = ["cc", *STRICT_FLAGS, "-O1", "program.c", *sources]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([tmp_path / "a.out"], capture_output=True, timeout=60, check=True)
    assert done.stdout == expected[:1].tobytes()


@needs_compiler
@pytest.mark.parametrize(
    ("first", "second", "is_refused"),
    [("net", "net", True), ("net", "Net", True), ("net", "net_2", False), ("Net", "net_2", False)],
)
def test_two_headers_never_share_macros_silently(tmp_path, first, second, is_refused):
    graphs = [replace(each, outputs=each.outputs[-1:]) for each in (paper_graph((28, 28, 1)), paper_graph((32, 32, 3)))]
    for folder, prefix, graph in zip(("a", "b"), (first, second), graphs, strict=True):
        (tmp_path / folder).mkdir()
        for name, content in export_c({"int8": graph}, card_of(graph), prefix=prefix).items():
            (tmp_path / folder / name).write_bytes(content)
    for language in ("c", "c++"):
        for names in ((f"{first}.h", f"{second}.h"), ("model.h", "model.h")):
            lines = [f'#include "{folder}/{name}"' for folder, name in zip("ab", names, strict=True)]
            (tmp_path / "program.c").write_text("\n".join([*lines, *reversed(lines), "int main(void) { return 0; }\n"]))
            command = ["cc", "-x", language, "-Wall", "-Wundef", "-Werror", "-pedantic", "-fsyntax-only", "program.c"]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
            assert (done.returncode != 0) == is_refused, done.stderr
            assert (f"two models have the prefix {second}: export one of them again" in done.stderr) == is_refused


@needs_compiler
def test_no_macro_conflicts_with_system_headers(tmp_path):
    """All C headers, with all of their macros."""
    headers = "ctype errno float inttypes limits math setjmp signal stdarg stddef stdint stdio stdlib string time wchar"
    (tmp_path / "all.c").write_text("".join(f"#include <{name}.h>\n" for name in headers.split()))
    command = ["cc", "-D_GNU_SOURCE", "-D__STDC_WANT_IEC_60559_BFP_EXT__", "-dM", "-E", "all.c"]
    text = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    header = models()["first"][0]["first.h"].decode()
    suffixes = {name.removeprefix("FIRST") for name in re.findall(r"^#define (\w+)", header, re.MULTILINE)}
    assert {"_WIDTH", "_HEIGHT", "_DIGEST"} <= suffixes
    met = [name for name in re.findall(r"^#define ([A-Z]\w+)", text, re.MULTILINE) if name.endswith(tuple(suffixes))]
    for name in met:
        for suffix in filter(name.endswith, suffixes):
            with pytest.raises(UsageError):
                check_prefix(name.removesuffix(suffix).lower())


def test_model_named_model_has_no_fixed_names():
    graph = paper_graph((28, 28, 1))
    assert set(export_c({"int8": graph}, card_of(graph))) == {"model.h", "model.c", "main.c", "Makefile", "README.md"}
    # The same for a name that differs only in case, since some file systems ignore case.
    capitals = export_c({"int8": graph}, card_of(graph), prefix="Model")
    assert set(capitals) == {"Model.h", "Model.c", "main.c", "Makefile", "README.md"}


@pytest.mark.parametrize("prefix", ["first", "second_model"])
def test_every_name_has_the_prefix(prefix):
    files = models()[prefix][0]
    text = files[f"{prefix}.c"] + files[f"{prefix}.h"]
    code = re.sub(r"/\*.*?\*/|__attribute__\(\(.*?\)\)", "", text.decode(), flags=re.DOTALL)
    macros = set(re.findall(r"^#define (\w+)", code, re.MULTILINE))
    assert macros
    assert all(name.startswith(f"{prefix.upper()}_") for name in macros)
    assert not re.search(r"\bthaw_", code)
    assert set(re.findall(r"\bTHAW_\w+", code)) == {"THAW_PORTABLE", "THAW_TRACE"}
    # Definitions at the start of a line: functions, variables, types.
    defined = re.findall(
        r"^(?:static |typedef |extern |\}).*?\*?(\w+)(?: THAW_WORDS)?(?:\(|\[|;| =)", code, re.MULTILINE
    )
    defined += re.findall(r"^\} (\w+);", code, re.MULTILINE)
    assert len(defined) > 10
    assert [name for name in defined if not name.lower().startswith(f"{prefix}_")] == []


# Warnings


@needs_compiler
def test_warnings_are_errors_only_in_verification(tmp_path):
    graph = replace(paper_graph((28, 28, 1)), outputs=("probabilities",))
    files = export_c({"int8": graph}, card_of(graph))
    spoilt = files | {"model.c": files["model.c"] + b"static int spare;\n"}
    with raises("model-file-compile", "spare"):
        HostCRunner(spoilt, graph, flags=("-O0",))
    images = np.zeros((1, 28, 28, 1), np.uint8)
    with HostCRunner(spoilt, graph, flags=("-O0",), is_strict=False) as runner:
        np.testing.assert_array_equal(runner.run(images), run(graph, images)["probabilities"])
    for name, content in spoilt.items():
        (tmp_path / name).write_bytes(content)
    done = subprocess.run(["make"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert "spare" in done.stderr
    assert "-Werror" not in files["Makefile"].decode()
