"""The images that a model was trained on, as digests of their pixels.

Two images are the same if their pixels are equal after decoding and resizing to the input size of the model. Copies
with another name or in another lossless format are found; cropped, scaled or lossily re-encoded copies are not.

Shapes: N images, H rows, W columns, C channels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Digests = npt.NDArray[np.uint64]

DIGEST_BYTES = 8
"""Two of 100,000 images and as many others have the same digest by chance with a probability of 10**10 / 2**64."""


def image_digests(images: npt.NDArray[np.uint8]) -> Digests:
    """A digest of each image, uint64 [N], for pixels uint8 [N, H, W, C] (BLAKE2b of the pixels)."""
    digests = bytearray()
    for image in images:
        digests += hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=DIGEST_BYTES).digest()
    return np.frombuffer(bytes(digests), "<u8").astype(np.uint64)


@dataclass(frozen=True, kw_only=True)
class SeenImages:
    """The training and validation images of a model.

    Attributes:
        train: digests of the training images, uint64, ascending.
        validation: digests of the validation images, uint64, ascending.
    """

    train: Digests
    validation: Digests

    @classmethod
    def of(cls, train: npt.NDArray[np.uint8], validation: npt.NDArray[np.uint8]) -> SeenImages:
        """From pixels uint8 [N, H, W, C] each, of the model's input size."""
        return cls(train=np.unique(image_digests(train)), validation=np.unique(image_digests(validation)))

    def find(self, images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Find training and validation images among images uint8 [N, H, W, C].

        Returns:
            bool [N], which are training images; and bool [N], which of the others are validation images.
        """
        digests = image_digests(images)
        in_train = np.isin(digests, self.train)
        return in_train, np.isin(digests, self.validation) & ~in_train
