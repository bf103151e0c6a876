import ast
import pickle
import re
from pathlib import Path

import pytest
from error_matching import raises

import thaw.errors
from thaw.errors import DataError, RecipeError, ThawError

SOURCES = Path(thaw.errors.__file__).parent


def classes():
    found = [ThawError]
    for kind in found:
        found.extend(kind.__subclasses__())
    return found


def test_every_class_has_its_own_code():
    own = [kind for kind in classes() if kind.__module__ == "thaw.errors"]
    codes = [kind.code for kind in own]
    assert len(own) >= 10
    assert len(set(codes)) == len(codes)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", code) for code in codes)


def test_specific_code_begins_with_the_code_of_a_class():
    roots = {kind.code for kind in classes()}
    calls = [
        node
        for file in SOURCES.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id.endswith("Error")
    ]
    words = [word.value for call in calls for word in call.keywords if word.arg == "code"]
    # An f-string begins with its constant part.
    texts = [word.values[0] if isinstance(word, ast.JoinedStr) else word for word in words]
    given = {text.value for text in texts}
    assert not {code for code in given if not any(code == root or code.startswith(f"{root}-") for root in roots)}


def test_code_survives_pickling_and_is_not_in_the_message():
    error = pickle.loads(pickle.dumps(DataError("two columns", code="data-columns")))
    assert (type(error), error.code, str(error)) == (DataError, "data-columns", "two columns")
    assert DataError("x").code == "data"


def test_raises_matches_class_code_and_facts():
    with raises(DataError, "cat"):
        raise DataError("no cat", code="data-labels")
    with raises("data"):
        raise DataError("no cat", code="data-labels")
    with pytest.raises(AssertionError, match="data-columns"), raises("data-columns"):
        raise DataError("no cat", code="data-labels")
    with pytest.raises(AssertionError, match="dog"), raises(RecipeError, "dog"):
        raise RecipeError("no cat")
