"""What training is told, and what it tells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm_filter.objectives.objective import Objective

__all__ = ["CollapseError", "History", "TrainingOptions"]


@dataclass
class History:
    """What happened: one row of figures per epoch (nats per step), and events in words.

    ``best_epoch`` is the epoch whose weights were kept, counted from 0; -1: those of the start.
    """

    epochs: list[dict[str, float]] = field(default_factory=list)
    events: list[str] = field(default_factory=list)
    best_epoch: int = -1


class CollapseError(RuntimeError):
    """Training could not be kept from a collapse; the message names what was seen, ``history`` holds what led to it."""

    def __init__(self, message: str, history: History | None = None) -> None:
        super().__init__(message)
        self.history = History() if history is None else history


@dataclass(frozen=True)
class TrainingOptions:
    """How to train.

    Attributes:
        epochs: passes over the training windows.
        learning_rate: peak of the one-cycle schedule, of the encoder.
        dynamics_rate: the dynamics' and the noise's rate as a multiple of it (there are few parameters and each matters to all data).
        clip: largest norm of the gradient.
        patience: epochs without a better validation loss before training stops; ``None``: never.
        tolerance: by how much a loss must be lower, in its own units, for the patience to begin anew; the best weights are kept all the same.
        seed: of batches and masks; the same seed gives the same weights bit for bit on one machine.
        accelerator, devices, precision: as of Lightning Fabric (``"auto"``: a CUDA device where there is one; 1; ``"32-true"``, which
            leaves a float64 model in float64). With several devices every process takes its share of each batch.
        mask_rate: share of entries hidden at random from every batch, so that the encoder learns to do without them.
        log_path: a JSONL file to which a line per epoch is appended.
        checkpoint_path: a file that holds the state of training after every epoch; where it is there, training goes on from it.
        progress: show a bar.
        compare: objectives by name; after every epoch the cosine between the encoder's gradient of each and that of the objective in use is
            logged as ``cosine_<name>``.
        supervision: s, of a model with a head and batches with targets: the loss is (1 - s) times the objective's and s times the targets'
            mean negative log-likelihood per step that has any.

    Raises:
        ValueError: a number out of range.
    """

    epochs: int = 20
    learning_rate: float = 3e-3
    dynamics_rate: float = 3.0
    clip: float = 1.0
    patience: int | None = 10
    tolerance: float = 0.0
    seed: int = 0
    accelerator: str = "auto"
    devices: int = 1
    precision: Any = "32-true"
    mask_rate: float = 0.0
    log_path: str | Path | None = None
    checkpoint_path: str | Path | None = None
    progress: bool = True
    compare: Mapping[str, Objective] = field(default_factory=dict)
    supervision: float = 0.0

    def __post_init__(self) -> None:
        for name in ("epochs", "devices"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("learning_rate", "dynamics_rate", "clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}, expected at least 1 epoch, or None to never stop early")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance is {self.tolerance}, expected nats per step of at least 0")
        if not 0.0 <= self.supervision <= 1.0:
            raise ValueError(f"supervision is {self.supervision}, expected a weight from 0 to 1")
        if not 0.0 <= self.mask_rate < 1.0:
            raise ValueError(f"mask_rate is {self.mask_rate}, expected a share of entries from 0 to below 1")
