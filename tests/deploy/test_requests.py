"""Selection of formats and of the images for verification."""

from __future__ import annotations

import numpy as np
import pytest
from error_matching import raises

from thaw.deploy.export import select_formats
from thaw.deploy.verify import spread


@pytest.mark.parametrize(("count", "wanted"), [(10, 3), (10_000, 1000), (7, 7), (5, 9), (5, None), (359, 1)])
def test_images_are_spread_evenly(count, wanted):
    rows = spread(count, wanted)
    assert len(rows) == min(count, wanted or count)
    assert len(set(rows.tolist())) == len(rows)
    assert 0 <= rows.min()
    assert rows.max() < count
    gaps = np.diff(rows)
    assert len(gaps) == 0 or gaps.max() - gaps.min() <= 1


def test_rejects_invalid_format_selections():
    assert select_formats(None, None) == {"onnx": ("float", "int8"), "litert": ("float", "int8"), "c": ("int8",)}
    assert select_formats(None, "float") == {"onnx": ("float",), "litert": ("float",)}
    assert select_formats(["c", "c"], "int8") == {"c": ("int8",)}
    for formats, precision, facts in (
        (["c"], "float", ("c", "int8")),
        (["onnx", "c"], "float", ("c", "int8")),
        (["tensorrt"], None, ("tensorrt",)),
        ([], None, ()),
    ):
        with raises("usage-formats", *facts):
            select_formats(formats, precision)
