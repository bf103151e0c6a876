"""Which images a model was trained on, by digests of their pixels.

An image is the same when its pixels are, after it was decoded and brought to the size of the model's input: so a copy
under another name or in another lossless format is found, and one that was cropped, re-encoded with losses or scaled
before is not.

Shapes: N images, H rows, W columns, C channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint64]

DIGEST_BYTES = 8
"""Of 100,000 images and as many others, two have one digest by chance once in two billion times: 10**10 / 2**64."""


def image_digests(images: npt.NDArray[np.uint8]) -> Digests:
    """A digest of each image, uint64 [N], for pixels uint8 [N, H, W, C] of one size (BLAKE2b of the pixels)."""
    digests = bytearray()
    for image in images:
        digests += hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=DIGEST_BYTES).digest()
    return np.frombuffer(bytes(digests), "<u8").astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class SeenImages:
    """The images that a model was trained on, and those that choices were made by.

    Attributes:
        train: digests of the training images, uint64, ascending.
        validation: of the validation images.
    """

    train: Digests
    validation: Digests

    @classmethod
    def of(cls, train: npt.NDArray[np.uint8], validation: npt.NDArray[np.uint8]) -> SeenImages:
        """Those of pixels uint8 [N, H, W, C] each, of the model's input size."""
        return cls(train=np.unique(image_digests(train)), validation=np.unique(image_digests(validation)))

    def find(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Of images uint8 [N, H, W, C], which are training images, and which of the others are validation images.

        Returns:
            two arrays bool [N].
        """
        digests = image_digests(images)
        in_train = np.isin(digests, self.train)
        return in_train, np.isin(digests, self.validation) & ~in_train
