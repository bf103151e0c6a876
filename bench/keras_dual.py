"""Contender: stage 1 in Keras on TensorFlow, in a separate environment (see requirements-keras.txt).

A functional model with two inputs and two outputs, `model.fit`, and a tf.data pipeline that augments whole batches with
Keras's preprocessing layers, in parallel and ahead of the training.
"""

from __future__ import annotations

import os
import time
from typing import Any

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf
from keras import layers
from workload import Workload, serve

# Steps between two returns to Python; ten took a little less time than one.
STEPS_PER_EXECUTION = 10


def submodel(view: Any, workload: Workload, name: str) -> Any:
    """Return the logits [B, K] of a submodel for its input [B, H, W, C]."""
    x = view
    for filters in workload.filters:
        x = layers.Conv2D(filters, 3, activation="relu")(x)
        x = layers.MaxPooling2D(2)(x)
    x = layers.Dropout(workload.dropout)(layers.Flatten()(x))
    return layers.Dense(workload.classes, name=name, dtype="float32")(x)


def augmentation(workload: Workload) -> keras.Sequential:
    """Rotation, zoom, translation and brightness of batches with pixels from 0 to 1."""
    fill = {"fill_mode": "constant", "interpolation": "bilinear"}
    return keras.Sequential(
        [
            layers.RandomRotation(workload.rotation_degrees / 360.0, **fill),
            layers.RandomZoom(workload.zoom, **fill),
            layers.RandomTranslation(workload.translation, workload.translation, **fill),
            layers.RandomBrightness(workload.brightness, value_range=(0.0, 1.0)),
        ]
    )


class KerasDual:
    """The training. Options: "precision" ("float32" or "bfloat16"), and "jit" to compile the step with XLA."""

    def __init__(self, workload: Workload) -> None:
        keras.utils.set_random_seed(0)
        self.precision = workload.options["precision"]
        # The augmentation stays in float32 either way: layers take the policy of when they are made.
        self.augment = augmentation(workload)
        keras.mixed_precision.set_global_policy("mixed_bfloat16" if self.precision == "bfloat16" else "float32")
        images, labels = workload.load()
        self.jit = bool(workload.options["jit"])
        self.workload = workload
        part = workload.warm_up_pairs(len(images))
        self.pairs = {True: part, False: len(images)}
        self.data = {True: self._dataset(images[:part], labels[:part]), False: self._dataset(images, labels)}
        views = [keras.Input(images.shape[1:], name=name) for name in ("original", "augmented")]
        outputs = [submodel(view, workload, f"{view.name}_logits") for view in views]
        self.model = keras.Model(views, outputs)
        losses = [keras.losses.SparseCategoricalCrossentropy(from_logits=True) for _ in outputs]
        optimizer = keras.optimizers.Nadam(workload.learning_rate)
        self.model.compile(optimizer, losses, jit_compile=self.jit, steps_per_execution=STEPS_PER_EXECUTION)

    def _dataset(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64]) -> tf.data.Dataset:
        """Shuffled batches ((original, augmented), (label, label)), made in parallel and ahead of their use."""

        def pair(pixels: tf.Tensor, label: tf.Tensor) -> tuple[tuple[tf.Tensor, ...], tuple[tf.Tensor, ...]]:
            unit = tf.cast(pixels, tf.float32) / 255.0
            augmented = self.augment(unit, training=True)
            mean, deviation = self.workload.mean, self.workload.deviation
            return ((unit - mean) / deviation, (augmented - mean) / deviation), (label, label)

        dataset = tf.data.Dataset.from_tensor_slices((images, labels)).shuffle(len(images))
        dataset = dataset.batch(self.workload.batch_size)
        return dataset.map(pair, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)

    def about(self) -> dict[str, Any]:
        """Versions and settings."""
        return {
            "parameters": self.model.count_params(),
            "versions": {"keras": keras.__version__, "tensorflow": tf.__version__},
            "precision": self.precision,
            "device": "cuda" if tf.config.list_physical_devices("GPU") else "cpu",
            "jit": self.jit,
        }

    def train(self, variant: str, *, warm_up: bool) -> dict[str, float]:  # noqa: ARG002 - it has one way only
        """Train one epoch over all pairs, or over the pairs of the warm-up."""
        started = time.perf_counter()
        history = self.model.fit(self.data[warm_up], epochs=1, verbose=0)
        seconds = time.perf_counter() - started
        return {"seconds": seconds, "pairs": self.pairs[warm_up], "loss": float(history.history["loss"][0])}


if __name__ == "__main__":
    serve(KerasDual)
