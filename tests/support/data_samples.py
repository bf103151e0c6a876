"""Small data sets for the tests of sources: images of noise in folders and tables."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from thaw.data.settings import DataSettings

SETTINGS = DataSettings()


def picture(seed, shape=(10, 12, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def write_folder(root, classes=("cat", "dog"), count=12, start=0, shape=(10, 12, 3)):
    for number, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(picture(start + 1000 * number + index, shape)).save(root / name / f"{name}{index}.png")
    return root


def png(seed, shape=(10, 12, 3)):
    buffer = io.BytesIO()
    Image.fromarray(picture(seed, shape)).save(buffer, format="PNG")
    return buffer.getvalue()


def write_parquet(path, labels, *, start=0, names=None, extra=None, image="image", label="label", images=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    content = images if images is not None else [{"bytes": png(start + i), "path": None} for i in range(len(labels))]
    table = pa.table({image: content, label: labels, **(extra or {})})
    if names:
        features = {image: {"_type": "Image"}, label: {"names": names, "_type": "ClassLabel"}}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, path)


def problem(data, kind):
    return next(problem for problem in data.problems if problem.kind == kind)
