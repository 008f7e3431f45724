"""How LDMFilter trains: its arguments checked, what was left open chosen, and the options of the training loop that they make."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch

from ldm_filter.training import TrainingOptions
from ldm_filter.types import Sequences

__all__ = ["check_jumps", "check_rates", "training_options"]

MASK_RATE = 0.1


def check_rates(params: dict[str, Any]) -> None:
    """Refuse rates and a patience that training cannot use.

    Raises:
        ValueError, TypeError: naming the argument, what it is and what is expected.
    """
    for name in ("learning_rate", "dynamics_rate"):
        if not params[name] > 0:
            raise ValueError(f"{name} is {params[name]}, expected a positive number")
    if params["mask_rate"] is not None and not 0 <= params["mask_rate"] < 1:
        raise ValueError(f"mask_rate is {params['mask_rate']}, expected a share in [0, 1)")
    patience = params["patience"]
    if isinstance(patience, str) and patience != "auto":
        raise ValueError(f"patience is {patience!r}, expected a whole number of epochs, None to never stop early, or 'auto'")
    if isinstance(patience, bool | float):
        raise TypeError(
            f"patience is {patience!r} ({type(patience).__name__}), expected a whole number of epochs, None to never stop early, or 'auto'"
        )
    if not isinstance(patience, str | None) and patience < 1:
        raise ValueError(f"patience is {patience}, expected at least 1 epoch, or None to never stop early")
    if not 0.0 <= params["tolerance"] < math.inf:
        raise ValueError(f"tolerance is {params['tolerance']}, expected nats per step of at least 0")


def check_jumps(params: dict[str, Any]) -> None:
    """Refuse a number of steps to settle within after a jump where nothing jumps, or where motion and process noise are one.

    Raises:
        ValueError: naming the argument, what it is and what is expected.
    """
    steps, noise = params["settle_within"], params["noise"]
    if steps is not None and noise != "jump":
        raise ValueError(f"settle_within is {steps}, which is for noise='jump', and noise is {noise!r}; leave it out, or use noise='jump'")


def training_options(
    params: dict[str, Any], epochs: int, sequences: Sequences, progress: bool, log_path: str | Path | None, supervision: float | None
) -> TrainingOptions:
    """Of LDMFilter's arguments; ``supervision`` is None in a fit without targets."""
    patience = params["patience"]
    if patience == "auto":  # the likelihood of targets is restless until the rates fall
        patience = TrainingOptions.patience if supervision is None else None
    return TrainingOptions(
        epochs=epochs,
        learning_rate=params["learning_rate"],
        dynamics_rate=params["dynamics_rate"],
        patience=patience,
        tolerance=params["tolerance"],
        seed=params["seed"],
        accelerator=params["device"],
        devices=params["devices"],
        precision=params["precision"] or ("64-true" if params["dtype"] == torch.float64 else "32-true"),
        mask_rate=_mask_rate(sequences) if params["mask_rate"] is None else params["mask_rate"],
        log_path=log_path,
        progress=progress,
        supervision=0.0 if supervision is None else supervision,
    )


def _mask_rate(sequences: Sequences) -> float:
    """So that the encoder learns to do without them where single entries of an observation are missing."""
    flat = sequences.observed.flatten(2)
    return MASK_RATE if bool((flat.any(-1) & ~flat.all(-1)).any()) else 0.0
