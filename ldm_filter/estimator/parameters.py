"""The book-keeping of LDMFilter: arguments, files, and the fitted parts that the other methods start from."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any, Self

import torch
from torch import nn

from ldm_filter.checkpoint import load_checkpoint, save_checkpoint
from ldm_filter.data.labels import parse
from ldm_filter.data.results import to_dataset
from ldm_filter.estimator import settings
from ldm_filter.estimator.context import Inputs, known_inputs, timed
from ldm_filter.estimator.forecasting import Calibration
from ldm_filter.estimator.inference import Run, result_fields, run_filter
from ldm_filter.estimator.robust import Gated
from ldm_filter.models.base import Dynamics
from ldm_filter.models.head import TargetHead
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.training import History
from ldm_filter.types import Context, Labels, Sequences

__all__ = ["Parameters"]


class Parameters:
    """Arguments in, files out."""

    state_dim: Any  # a number once fitted
    device: str
    readout: str
    dtype: torch.dtype
    model_: LatentFilter
    labels_: Labels
    input_labels_: Labels | None
    history_: History
    readout_: Readout
    target_readout_: Readout | TargetHead | None
    target_names_: list[str]
    calibration_: Calibration | None = None

    def save(self, path: str | Path) -> None:
        """Write weights and configuration to one ``.safetensors`` file."""
        save_checkpoint(path, *settings.to_checkpoint(self))

    @classmethod
    def load(cls, path: str | Path, encoder: nn.Module | None = None, device: str = "auto", dynamics: Dynamics | None = None) -> Self:
        """Read a file that :meth:`save` wrote.

        Args:
            path: the file.
            encoder, dynamics: the modules, where the model was built with the user's own.
            device: where to put the model.

        Raises:
            CheckpointError: truncated, foreign, or written by a newer version.
        """
        tensors, config = load_checkpoint(path)
        return settings.from_checkpoint(cls, tensors, config, {"encoder": encoder, "dynamics": dynamics}, device)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """The constructor's arguments, as scikit-learn has it."""
        return {name: getattr(self, name) for name in inspect.signature(type(self).__init__).parameters if name != "self"}

    def set_params(self, **params: Any) -> Self:
        """Change constructor arguments.

        Raises:
            ValueError: a name that the constructor does not know.
        """
        unknown = set(params) - set(self.get_params())
        if unknown:
            raise ValueError(f"{sorted(unknown)} are not parameters of LDMFilter, which has {sorted(self.get_params())}")
        for name, value in params.items():
            setattr(self, name, value)
        return self

    def __repr__(self) -> str:
        defaults = {name: parameter.default for name, parameter in inspect.signature(type(self).__init__).parameters.items()}
        shown = (f"{name}={value!r}" for name, value in self.get_params().items() if not (value is defaults[name] or value == defaults[name]))
        return f"LDMFilter({', '.join(shown)})"

    def _model(self) -> LatentFilter:
        if not hasattr(self, "readout_"):  # the last that a fit sets
            raise ValueError("this LDMFilter is not fitted yet; call fit(data) or LDMFilter.load(path) first")
        return self.model_

    def _forget(self) -> None:
        """Drop everything fitted, so that a fit that fails leaves nothing that looks like a result."""
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)

    def _read(
        self, data: Any, inputs: Any = None, times: Any = None, horizon: int = 0, name: str = "data"
    ) -> tuple[Sequences, Labels, Inputs | None]:
        """Data as fitted, with time steps and inputs; and the inputs apart, with those of the horizon."""
        sequences, labels = parse(data, expected=self.labels_, dtype=self.dtype, name=name, times=times)
        known = known_inputs(inputs, labels, sequences, self.input_labels_, horizon)
        if known is not None:
            sequences = sequences._replace(context=Context(inputs=known.past))
        return timed(sequences, labels, self.labels_, self.model_.dynamics.uses_time), labels, known

    def _run(self, data: Any, inputs: Any = None, times: Any = None, smooth: bool = False) -> Run:
        model = self._model()
        return run_filter(model, *self._read(data, inputs, times)[:2], smooth=smooth)

    def _dataset(self, run: Run, gated: Gated | None = None) -> Any:
        fields, attrs = result_fields(run, self.readout_, self._model()), self._attrs()
        if gated is not None:
            fields |= gated.fields
            attrs["gate"] = gated.counts
        coords = {}
        if self.target_readout_ is not None:
            belief = run.result.filtered if run.smoothed is None else run.smoothed
            fields |= settings.target_fields(self.target_readout_, self._model().with_inputs(belief, run.sequences.context))
            coords = {"target": self.target_names_, "target_aux": self.target_names_}
        return to_dataset(fields, run.sequences, run.labels, attrs, coords)

    def _attrs(self) -> dict[str, Any]:
        return {"config": settings.to_json(self.get_params()), "title": "ldm_filter result"}
