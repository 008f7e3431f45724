"""Where training stands, in a file: an interrupted fit goes on as if nothing had happened."""

from __future__ import annotations

import os
import pickle
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ldm_filter.training.options import History, TrainingOptions

__all__ = ["Resume"]

# What may differ between the runs: it changes nothing that is computed.
FREE = ("log_path", "progress", "checkpoint_path", "compare")


class Resume:
    """Writes the whole state of training after every epoch, and reads it when training starts with a file that is there.

    The state: weights and the best ones, the optimiser's averages, the schedule, random numbers and the history. Bit for bit what an uninterrupted
    training gives on the same machine. The file is written beside and moved into place, and read as plain tensors and numbers.

    Args:
        options: of the training; with no ``checkpoint_path`` nothing is written or read.
        parts: by name, what has ``state_dict`` and ``load_state_dict``.
        generator: of batches and masks.
        history: told in place.
    """

    def __init__(self, options: TrainingOptions, parts: dict[str, Any], generator: torch.Generator, history: History) -> None:
        self.path = None if options.checkpoint_path is None else Path(options.checkpoint_path)
        self.parts, self.generator, self.history = parts, generator, history
        self.plan = repr({name: value for name, value in asdict(options).items() if name not in FREE})
        if self.path is not None and options.devices > 1:
            raise ValueError(f"checkpoint_path is given for {options.devices} devices, expected one: their random numbers are not kept")
        if self.path is not None and not self.path.parent.is_dir():
            raise ValueError(f"checkpoint_path is {self.path}, and the folder {self.path.parent} does not exist; create it first")

    def load(self) -> dict[str, Any]:
        """Put everything back; returns what `save` was told, nothing where there is no file.

        Raises:
            ValueError: the file is of another training (data, model or options), or damaged.
        """
        if self.path is None or not self.path.exists():
            return {}
        try:
            state = torch.load(self.path, weights_only=True)
            if state["plan"] != self.plan:
                raise ValueError(f"checkpoint_path is {self.path}, which another training wrote: {state['plan']}, not {self.plan}; take another file")
            for name, part in self.parts.items():
                part.load_state_dict(state["parts"][name])
        except (RuntimeError, KeyError, EOFError, pickle.UnpicklingError) as error:
            raise ValueError(f"checkpoint_path is {self.path}, which holds no state of this training ({error}); delete it to start anew") from None
        self.generator.set_state(state["generator"])
        torch.set_rng_state(state["random"])
        self.history.epochs[:], self.history.events[:], self.history.best_epoch = state["epochs"], state["events"], state["best_epoch"]
        told: dict[str, Any] = state["told"]
        return told

    def save(self, **told: Any) -> None:
        """Write the state at the end of an epoch, with plain numbers beside it."""
        if self.path is None:
            return
        state = {
            "plan": self.plan,
            "parts": {name: part.state_dict() for name, part in self.parts.items()},
            "generator": self.generator.get_state(),
            "random": torch.get_rng_state(),
            "epochs": self.history.epochs,
            "events": self.history.events,
            "best_epoch": self.history.best_epoch,
            "told": told,
        }
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")
        try:
            torch.save(state, beside)
            os.replace(beside, self.path)
        finally:
            beside.unlink(missing_ok=True)
