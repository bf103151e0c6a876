"""Distillation: a network learns from the predictions of its teachers as well as from labels.

Shapes: B batch, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import field, replace
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field
from torch import Tensor, nn

from thaw.models.families import FamilySpec, ResidualSpec
from thaw.plain import Count, Real, Share, checked_dataclass
from thaw.training.compute import autocast
from thaw.training.replicas import Part
from thaw.training.stages import PlainSettings, PlainStage

_TEACHER_WIDTHS = (32, 48, 64)


def _as_teacher(section: Any) -> Any:
    """A section of the family "residual", the default, has a teacher's widths unless it has its own."""
    is_residual = isinstance(section, dict) and section.get("family", "residual") == "residual"
    return {"family": "residual", "widths": _TEACHER_WIDTHS, **section} if is_residual else section


@checked_dataclass(frozen=True, kw_only=True)
class DistilSettings:
    """The teacher, which is trained in the same run, and how the student learns from it."""

    model: Annotated[FamilySpec, BeforeValidator(_as_teacher)] = field(
        default_factory=lambda: ResidualSpec(widths=_TEACHER_WIDTHS)
    )
    """The teacher's network. It is trained with the settings of the section `plain`, except for its epochs."""
    teacher_epochs: Count = 30
    """Maximum number of epochs of the teacher."""
    temperature: Annotated[Real, Field(gt=0)] = 2.0
    """Divisor of both networks' logits before they are compared (arXiv 1503.02531)."""
    share: Share = 0.7
    """Fraction of the loss that comes from the teacher's probabilities; the rest comes from the labels."""

    def teacher(self, plain: PlainSettings) -> PlainSettings:
        """How the teacher is trained."""
        return replace(plain, epochs=self.teacher_epochs)


class DistillStage(PlainStage):
    """Trains one network on the mean of its teachers' probabilities and on the labels.

    With p the teachers' mean and q the student's probabilities, both at temperature T, the loss is
    `share * T^2 * KL(p || q) + (1 - share) * cross-entropy`; T^2 keeps the two gradients in proportion (arXiv
    1503.02531). Teachers and student see the same images, with the same augmentation and mixing (arXiv 2106.05237).
    """

    kind = "distil"

    def __init__(
        self,
        module: nn.Module,
        settings: PlainSettings,
        teachers: Sequence[nn.Module],
        distil: DistilSettings,
        *,
        name: str = "student",
    ) -> None:
        super().__init__(module, settings, name=name)
        self.distil = distil
        self.frozen = nn.ModuleList(teachers)

    def set_training(self) -> None:
        """Train the student; freeze the teachers, statistics and dropout included."""
        super().set_training()
        if self.frozen is not None:
            self.frozen.requires_grad_(False).eval()

    def loss(self, logits: Tensor, part: Part, dtype: torch.dtype) -> Tensor:
        """Return the mean loss over a part of a batch; logits float32 [B, K]."""
        temperature, share = self.distil.temperature, self.distil.share
        distillation = F.kl_div(
            F.log_softmax(logits / temperature, dim=1), self._teach(part.x, dtype), reduction="batchmean"
        ) * (temperature * temperature)
        return share * distillation + (1.0 - share) * super().loss(logits, part, dtype)

    def _teach(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        """Return the teachers' mean probabilities, float32 [B, K], for images [B, C, H, W]."""
        if not isinstance(self.frozen, nn.ModuleList):
            raise AssertionError("a student has teachers")
        with torch.no_grad(), autocast(dtype, x.device):
            every = [F.softmax(teacher(x).float() / self.distil.temperature, dim=1) for teacher in self.frozen]
        return torch.stack(every).mean(0)
