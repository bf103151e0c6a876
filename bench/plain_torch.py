"""Contender: stage 1 in plain PyTorch, as tutorials write it.

A map-style Dataset of PIL images, transforms one image at a time, a DataLoader with worker processes, an eager loop in
float32. The transforms are those of torchvision (RandomAffine, ColorJitter, ToTensor, Normalize), written out with PIL.
"""

from __future__ import annotations

import math
import random
import time
from typing import Any

import numpy as np
import numpy.typing as npt
import PIL
import torch
import torch.nn.functional as F
from PIL import Image, ImageEnhance
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from workload import Workload, serve


class Submodel(nn.Module):
    """Twice convolution, ReLU and pooling; dropout; a dense layer."""

    def __init__(self, filters: tuple[int, int], features: int, classes: int, dropout: float) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, filters[0], 3)
        self.conv2 = nn.Conv2d(filters[0], filters[1], 3)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(features, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 1, H, W] -> logits [B, K]."""
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        logits: Tensor = self.dense(self.dropout(torch.flatten(x, 1)))
        return logits


class RandomAffine:
    """Rotation, zoom and translation in one bilinear resampling about the image's center."""

    def __init__(self, degrees: float, translate: float, zoom: float) -> None:
        self.degrees = degrees
        self.translate = translate
        self.zoom = zoom

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the transformed image."""
        width, height = image.size
        angle = math.radians(random.uniform(-self.degrees, self.degrees))
        scale = 1.0 / random.uniform(1.0 - self.zoom, 1.0 + self.zoom)
        shift_x = random.uniform(-self.translate, self.translate) * width
        shift_y = random.uniform(-self.translate, self.translate) * height
        cosine, sine = scale * math.cos(angle), scale * math.sin(angle)
        center_x, center_y = 0.5 * width, 0.5 * height
        # PIL wants the map from output to input pixels.
        offset_x = center_x - cosine * (center_x + shift_x) - sine * (center_y + shift_y)
        offset_y = center_y + sine * (center_x + shift_x) - cosine * (center_y + shift_y)
        coefficients = (cosine, sine, offset_x, -sine, cosine, offset_y)
        return image.transform(image.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


class RandomBrightness:
    """Multiplies all pixels by one random factor near 1."""

    def __init__(self, amount: float) -> None:
        self.amount = amount

    def __call__(self, image: Image.Image) -> Image.Image:
        """Return the lighter or darker image."""
        return ImageEnhance.Brightness(image).enhance(random.uniform(1.0 - self.amount, 1.0 + self.amount))


class ToTensor:
    """PIL image -> float32 [1, H, W], normalized."""

    def __init__(self, mean: float, deviation: float) -> None:
        self.mean = mean
        self.deviation = deviation

    def __call__(self, image: Image.Image) -> Tensor:
        """Return the tensor of an image."""
        x = torch.from_numpy(np.array(image)).unsqueeze(0).to(torch.float32).div_(255.0)
        return x.sub_(self.mean).div_(self.deviation)


class Pairs(Dataset[tuple[Tensor, Tensor, int]]):
    """(original, augmented, label) of each image."""

    def __init__(self, images: npt.NDArray[np.uint8], labels: npt.NDArray[np.int64], workload: Workload) -> None:
        self.images = [Image.fromarray(image[:, :, 0]) for image in images]
        self.labels = labels.tolist()
        self.to_tensor = ToTensor(workload.mean, workload.deviation)
        self.move = RandomAffine(workload.rotation_degrees, workload.translation, workload.zoom)
        self.lighten = RandomBrightness(workload.brightness)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, int]:
        image = self.images[index]
        return self.to_tensor(image), self.to_tensor(self.lighten(self.move(image))), self.labels[index]


class PlainTorch:
    """The training."""

    def __init__(self, workload: Workload) -> None:
        images, labels = workload.load()
        self.device = torch.device("cuda" if workload.device != "cpu" and torch.cuda.is_available() else "cpu")
        self.workers = workload.options["workers"]
        pairs = Pairs(images, labels, workload)
        self.warm_up = self._loader(Subset(pairs, range(workload.warm_up_pairs(len(pairs)))), workload.batch_size)
        self.whole = self._loader(pairs, workload.batch_size)
        sides = (((side - 2) // 2 - 2) // 2 for side in images.shape[1:3])
        features = workload.filters[1] * math.prod(sides)
        torch.manual_seed(0)
        self.first, self.second = (
            Submodel(workload.filters, features, workload.classes, workload.dropout).to(self.device) for _ in range(2)
        )
        self.parameters = [*self.first.parameters(), *self.second.parameters()]
        self.optimizer = torch.optim.NAdam(self.parameters, lr=workload.learning_rate)
        self.loss = nn.CrossEntropyLoss()

    def _loader(self, pairs: Dataset[tuple[Tensor, Tensor, int]], batch_size: int) -> DataLoader[Any]:
        pinned = self.device.type == "cuda"
        workers = self.workers
        return DataLoader(
            pairs,
            batch_size=batch_size,
            shuffle=True,
            num_workers=workers,
            persistent_workers=workers > 0,
            pin_memory=pinned,
        )

    def about(self) -> dict[str, Any]:
        """Versions and settings."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.parameters),
            "versions": {"torch": torch.__version__, "pillow": PIL.__version__},
            "precision": "float32",
            "device": self.device.type,
            "threads": torch.get_num_threads(),
            "workers": self.workers,
        }

    def train(self, variant: str, *, warm_up: bool) -> dict[str, float]:  # noqa: ARG002 - it has one way only
        """Train one epoch over all pairs, or over the pairs of the warm-up."""
        started = time.perf_counter()
        total, pairs = 0.0, 0
        for original, augmented, label in self.warm_up if warm_up else self.whole:
            first, second = original.to(self.device), augmented.to(self.device)
            target = label.to(self.device)
            self.optimizer.zero_grad()
            loss = self.loss(self.first(first), target) + self.loss(self.second(second), target)
            loss.backward()
            self.optimizer.step()
            total += loss.item() * len(label)
            pairs += len(label)
        return {"seconds": time.perf_counter() - started, "pairs": pairs, "loss": total / pairs}


if __name__ == "__main__":
    serve(PlainTorch)
