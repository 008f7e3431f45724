"""The fitted latent filter in the hands of other libraries."""

from __future__ import annotations

import json
import logging
import warnings
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from filterpy.kalman import KalmanFilter
from torch import Tensor, nn

from ldm_filter.estimator import settings
from ldm_filter.estimator.parameters import Parameters
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.graphs import EncoderGraph, StepGraph
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.types import StateSpace

__all__ = ["Handover", "as_filterpy"]

NEEDED = ("onnx", "onnxscript")


class Handover(Parameters):
    """A fitted model for other programs."""

    def to_filterpy(self) -> KalmanFilter:
        """The latent filter as a ``filterpy.kalman.KalmanFilter``; feed it ``latent_mean`` (and, where R varies, ``latent_cov``) of ``encode``."""
        return as_filterpy(self._model())

    def export(self, path: str | Path, part: str = "step") -> Path:
        """Write a step of the filter, or the encoder alone, as a graph that runs without this package.

        ``"step"``: (values, state_mean, state_cov, first[, inputs]) -> (new_state_mean, new_state_cov, log_likelihood, nis, observation_mean), from
        the observation in its own units (NaN = missing) and the state that the step before gave (`ldm_filter.models.graphs.StepGraph`).
        ``"encoder"``: values -> (latent_mean, latent_cov). The first dimension of everything is that of streams, of any number.

        Args:
            path: ``.onnx`` for ONNX, ``.pt2`` for ``torch.export.load``. The ONNX file's metadata name channels, inputs and the sampling interval.
            part: ``"step"`` or ``"encoder"``.

        Returns:
            The path.

        Raises:
            ValueError: another suffix or part, dynamics that are not linear, or more than 32 latents.
            ModuleNotFoundError: ONNX without its packages; install ldm-filter[onnx].
        """
        path, model = Path(path), self._model()
        settings.check_choice("part", part, ("step", "encoder"))
        if path.suffix not in (".onnx", ".pt2"):
            raise ValueError(f"path is {str(path)!r}, expected a name that ends in .onnx or .pt2")
        if not path.parent.is_dir():
            raise ValueError(f"path is {str(path)!r}, in a folder that is not there; make it first")
        absent = [name for name in NEEDED if path.suffix == ".onnx" and find_spec(name) is None]
        if absent:
            raise ModuleNotFoundError(
                f"ONNX files need the package {absent[0]}, which is not installed; install it with: pip install ldm-filter[onnx]"
            )
        graph: nn.Module = EncoderGraph(model.encoder) if part == "encoder" else StepGraph(model, self.readout_)
        facts = {"channels": list(self.labels_.channels), "step_seconds": self.labels_.attrs.get("step"), "part": part}
        facts |= {"inputs": [] if self.input_labels_ is None else list(self.input_labels_.channels)}
        write_graph(graph.eval(), _examples(model, part, self.dtype), path, {name: json.dumps(fact, default=str) for name, fact in facts.items()})
        return path


OUTPUTS = {"step": ("new_state_mean", "new_state_cov", "log_likelihood", "nis", "observation_mean"), "encoder": ("latent_mean", "latent_cov")}


def _examples(model: LatentFilter, part: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Two streams of every input, by name: of more than one, so that the number stays free."""
    place, size, n = model.encoder.center.device, model.dynamics.input_dim, model.dynamics.state_dim
    values = model.encoder.center.to(dtype).expand(2, *model.encoder.event_shape).clone()
    if part == "encoder":
        return {"values": values}
    state = torch.zeros(2, n, dtype=torch.float64, device=place)
    given = {"values": values, "state_mean": state, "state_cov": torch.eye(n).to(state).expand(2, n, n).clone()}
    given["first"] = torch.ones(2, dtype=torch.bool, device=place)
    return given | ({"inputs": state.new_zeros(2, size)} if size else {})


def write_graph(graph: nn.Module, examples: dict[str, Tensor], path: Path, facts: dict[str, str]) -> None:
    """Trace a module and write it, the first dimension of all inputs left open."""
    streams, talk = torch.export.Dim("streams", min=1), logging.getLogger("torch.onnx")
    level = talk.level
    shapes = {name: {0: streams} for name in examples}
    with warnings.catch_warnings(), torch.no_grad(), ExitStack() as after:
        warnings.simplefilter("ignore")  # torch's exporter tells of its own insides
        talk.setLevel(logging.ERROR)
        after.callback(talk.setLevel, level)
        program = torch.export.export(graph, (), kwargs=examples, dynamic_shapes=shapes)
        if path.suffix == ".pt2":
            torch.export.save(program, path)
            return
        names = list(OUTPUTS["encoder" if len(examples) == 1 else "step"])
        written = torch.onnx.export(program, input_names=list(examples), output_names=names, verbose=False)
    assert written is not None
    written.model.metadata_props.update(facts)
    written.save(path)


@torch.no_grad()
def as_filterpy(model: LatentFilter) -> KalmanFilter:
    """A ``filterpy.kalman.KalmanFilter`` with the model's matrices, in float64.

    The filter starts from the *prediction* for the first row: call ``update(z)`` first, then ``predict()`` and ``update(z)`` in turn.

    Raises:
        ValueError: the model has an offset or inputs at the observation, which filterpy does not have a place for, or is not linear.
    """
    ssm = model.dynamics()
    if not isinstance(ssm, StateSpace):
        raise ValueError(
            'the model is not linear, or its noise is not fixed, and filterpy\'s KalmanFilter holds one linear model; fit with dynamics="linear" and '
            'noise="constant" or "input"'
        )
    n, m = ssm.transition_matrix.shape[0], ssm.observation_matrix.shape[0]
    if bool(ssm.transition_offset.abs().max() > 1e-6) or bool(ssm.observation_offset.abs().max() > 1e-6):
        raise ValueError('the model has offsets, which filterpy has no place for; fit with observation="learned", which centres the state')
    filtering = KalmanFilter(dim_x=n, dim_z=m, dim_u=model.dynamics.input_dim)
    filtering.B = _input_matrix(model)
    filtering.x = _column(ssm.initial.mean)
    filtering.P, filtering.F, filtering.Q = (_matrix(x) for x in (ssm.initial.cov, ssm.transition_matrix, ssm.transition_cov))
    filtering.H = _matrix(ssm.observation_matrix)
    encoder = model.encoder
    nothing = encoder.center.expand(1, 1, *encoder.event_shape)
    filtering.R = _matrix(encoder(nothing, torch.ones_like(nothing, dtype=torch.bool)).cov[0, 0])
    return filtering


def _input_matrix(model: LatentFilter) -> np.ndarray | None:
    """B for inputs in their own units, None without any."""
    dynamics = model.dynamics
    if not dynamics.input_dim:
        return None
    assert isinstance(dynamics, AffineDynamics)
    if bool(dynamics.feedthrough.abs().max() > 1e-6) or bool((dynamics.input_mean / dynamics.input_scale).abs().max() > 1e-6):
        raise ValueError(
            "the model has inputs that move the observation or have a mean, which filterpy has no place for; pass their effect as an offset"
        )
    return _matrix(dynamics.steps(None).held @ (dynamics.input_matrix / dynamics.input_scale).double())


def _matrix(x: torch.Tensor) -> np.ndarray:
    return x.detach().cpu().double().numpy().copy()


def _column(x: torch.Tensor) -> np.ndarray:
    return _matrix(x)[:, None]
