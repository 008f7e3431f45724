"""Targets in training: the objective's figures and the targets' likelihood side by side, one weight between them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.models.head import TargetHead
from ldm_filter.objectives.objective import ObjectiveValue
from ldm_filter.types import Gaussian, Sequences

__all__ = ["Figures", "TargetDensity", "named", "target_density"]


class TargetDensity(NamedTuple):
    """log p(y_t | x_<=t) of the targets ``(B, T)``, 0 where there is none, and where there is one."""

    density: Tensor
    known: Tensor

    def nll(self, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Mean over the labelled steps of all processes; NaN where there is none."""
        steps = gather(self.known.sum().reshape(1)).to(self.density.dtype).mean()
        total = -self.density.sum()
        return total / steps if steps > 0 else 0.0 * total + math.nan  # still a part of the graph: a loss of 0 with a gradient of 0


def target_density(head: TargetHead, belief: Gaussian, batch: Sequences) -> TargetDensity | None:
    """Of the filtered beliefs of a batch; None where the batch has no targets. Padding has none, whatever it holds."""
    targets = batch.context.targets
    if targets is None:
        return None
    inside = torch.arange(targets.shape[1], device=targets.device) < batch.lengths.to(targets.device)[:, None]
    density, known = head.log_density(belief, targets)
    known = known & inside
    return TargetDensity(torch.where(known, density, torch.zeros_like(density)), known)


class Figures(NamedTuple):
    """What a batch, or the mean of many, gives: the parts of the objective (none where the targets alone count) and the targets' NLL."""

    objective: ObjectiveValue | None
    target_nll: Tensor | None

    def loss(self, weight: float) -> Tensor:
        """(1 - weight) objective + weight NLL; a batch without targets has the first alone."""
        own = None if self.objective is None else self.objective.loss
        if self.target_nll is None:
            assert own is not None
            return own
        nll = torch.where(torch.isnan(self.target_nll), torch.zeros_like(self.target_nll), self.target_nll)
        return nll if own is None else (1.0 - weight) * own + weight * nll

    def row(self) -> Tensor:
        """All figures in float64, detached: the objective's, then the NLL, NaN for what there is not."""
        nothing = torch.tensor(math.nan, dtype=torch.float64)
        parts = [nothing] * len(ObjectiveValue._fields) if self.objective is None else list(self.objective)
        return torch.stack([part.detach().double().cpu() for part in (*parts, nothing if self.target_nll is None else self.target_nll)])


def named(row: Tensor, weight: float) -> dict[str, float]:
    """Figures of a (mean) row by name; the loss is that of the weighted sum."""
    *parts, nll = row.tolist()
    figures = {name: part for name, part in zip(ObjectiveValue._fields, parts, strict=True) if not math.isnan(part)}
    if math.isnan(nll):
        return figures
    both = (1.0 - weight) * figures["loss"] + weight * nll if figures else nll
    return figures | {"loss": both, "target_nll": nll}
