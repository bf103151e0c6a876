"""Documents with a digest, and dataclasses from plain trees: round trips, and rejection of everything else."""

from __future__ import annotations

import contextlib
import hashlib
import json

import numpy as np
import pytest
from command_line import reseal
from error_matching import raises
from hypothesis import given, settings
from hypothesis import strategies as st

from thaw.errors import RunError
from thaw.files import read_document, seal, unseal, write_document
from thaw.finite import check_finite

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(st.dictionaries(st.text().filter(lambda key: key != "sha256"), JSON, max_size=5))
@settings(max_examples=200, deadline=None)
def test_document_round_trip(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "document.json"
    written = write_document(path, content)
    assert read_document(path, remedy="") == json.loads(json.dumps(content))
    assert json.loads(path.read_text("utf-8")) == written
    reseal(path, content)
    assert read_document(path, remedy="") == json.loads(json.dumps(content))


def test_digest_is_over_the_canonical_json(tmp_path):
    path = tmp_path / "document.json"
    written = write_document(path, {"b": (1, 2.0), "a": {3: "é"}})
    assert written["sha256"] == hashlib.sha256(b'{"a": {"3": "\\u00e9"}, "b": [1, 2.0]}').hexdigest()
    # White space and the order of keys do not matter.
    path.write_text(json.dumps(dict(reversed(written.items())), ensure_ascii=True))
    assert read_document(path, remedy="") == {"b": [1, 2.0], "a": {"3": "é"}}


def test_every_changed_bit_of_a_document_is_detected(tmp_path):
    path = tmp_path / "document.json"
    write_document(path, {"seed": 3, "accuracy": 0.75, "name": "a", "many": [1, None, True]})
    content = path.read_bytes()
    expected = read_document(path, remedy="")
    for place in range(len(content)):
        for bit in range(8):
            path.write_bytes(content[:place] + bytes([content[place] ^ 1 << bit]) + content[place + 1 :])
            with contextlib.suppress(RunError):
                # Only white space may change without effect.
                assert read_document(path, remedy="") == expected, (place, bit)


def test_name_that_is_not_utf_8_is_stored_in_a_utf_8_file(tmp_path):
    path = tmp_path / "document.json"
    write_document(path, {"source": "caf\udce9"})
    assert json.loads(path.read_bytes().decode("utf-8"))["source"] == "caf\udce9"
    assert read_document(path, remedy="") == {"source": "caf\udce9"}


def test_writing_nan_is_a_value_error(tmp_path):
    with pytest.raises(ValueError):
        write_document(tmp_path / "document.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError):
        unseal({**seal({"a": 1}), "a": 2})


def test_outputs_that_are_not_finite_are_counted():
    answers = np.ones((5, 3))
    check_finite(answers, "it")
    check_finite(np.ones((5, 3), np.int8), "it")
    answers[1, 2], answers[4, 0] = np.nan, -np.inf
    with raises("not-finite", "it computes", "2 of 5 images"):
        check_finite(answers, "it")
