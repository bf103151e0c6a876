"""Expect an error by its class or its stable code instead of by its wording."""

import contextlib

import pytest

from thaw.errors import ThawError


@contextlib.contextmanager
def raises(expected, *facts):
    """Expect a ThawError.

    Args:
        expected: a class, or the `code` of the error. The code of a class includes the codes that begin with it:
            "data" includes "data-labels".
        facts: values that the message must contain, such as a file's name or a count; not its wording.

    Yields:
        What `pytest.raises` yields, with the error as `value` and its text as `str(value)`.
    """
    kind = ThawError if isinstance(expected, str) else expected
    with pytest.raises(kind) as caught:
        yield caught
    if isinstance(expected, str):
        code = caught.value.code
        assert code == expected or code.startswith(f"{expected}-"), (
            f"{expected} was expected, not {code}: {caught.value}"
        )
    missing = [fact for fact in facts if str(fact) not in str(caught.value)]
    assert not missing, f"the message lacks {missing}: {caught.value}"
