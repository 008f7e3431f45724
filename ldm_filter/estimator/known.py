"""LDMFilter from matrices that somebody knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from filterpy.kalman import KalmanFilter
from torch import Tensor

from ldm_filter.core.kalman import predict
from ldm_filter.core.linalg import cholesky_psd, symmetrise
from ldm_filter.data.containers import default_names
from ldm_filter.models.known import DirectEncoder, KnownDynamics
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.types import Gaussian, Labels, StateSpace

__all__ = ["empty_model", "known_labels", "known_model", "known_readout", "matrices_of"]


def known_model(matrices: dict[str, Any], dtype: torch.dtype) -> LatentFilter:
    """The filter of given matrices, by the names of ``LDMFilter.from_matrices``; what is None is zero.

    Raises:
        ValueError: a shape that does not fit, numbers that are not finite, a covariance that is not positive semi-definite.
    """
    given = {name: None if value is None else _matrix(name, value, dtype) for name, value in matrices.items()}
    n, m = given["transition_matrix"].shape[-1], given["observation_matrix"].shape[0]  # type: ignore[union-attr]
    inputs = [given[name].shape[-1] for name in ("input_matrix", "feedthrough") if given[name] is not None]  # type: ignore[union-attr]
    u = inputs[0] if inputs else 0
    shapes = {"transition_matrix": (n, n), "transition_cov": (n, n), "observation_matrix": (m, n), "measurement_cov": (m, m), "initial_mean": (n,)}
    shapes |= {"initial_cov": (n, n), "transition_offset": (n,), "observation_offset": (m,), "input_matrix": (n, u), "feedthrough": (m, u)}
    for name, shape in shapes.items():
        value = given[name]
        if value is None:
            given[name] = torch.zeros(shape, dtype=dtype)
        elif value.shape != shape:
            raise ValueError(f"{name} has shape {tuple(value.shape)}, expected {shape} for {n} states, {m} channels and {u} inputs")
        elif name.endswith("_cov"):
            if not torch.allclose(value, value.mT, rtol=1e-6, atol=1e-12):
                raise ValueError(f"{name} is not symmetric; expected a covariance")
            given[name] = symmetrise(value)
            cholesky_psd(value, name)
    known: dict[str, Tensor] = {name: value for name, value in given.items() if value is not None}
    initial = Gaussian(known["initial_mean"], known["initial_cov"])
    A, a, Q = (known[f"transition_{name}"] for name in ("matrix", "offset", "cov"))
    ssm = StateSpace(A, a, Q, known["observation_matrix"], known["observation_offset"], initial)
    dynamics = KnownDynamics(ssm, known["input_matrix"] if u else None, known["feedthrough"] if u else None)
    return LatentFilter(DirectEncoder(known["measurement_cov"]), dynamics).eval()


def _matrix(name: str, value: Any, dtype: torch.dtype) -> Tensor:
    matrix = torch.as_tensor(np.asarray(value.detach().cpu() if isinstance(value, Tensor) else value, dtype=np.float64)).to(dtype)
    if not bool(torch.isfinite(matrix).all()):
        raise ValueError(f"{name} holds a number that is not finite; expected finite numbers")
    wanted = 1 if name.endswith(("_mean", "_offset")) else 2
    if matrix.ndim != wanted:
        raise ValueError(f"{name} has shape {tuple(matrix.shape)}, expected {wanted} dimension(s); there are no column vectors")
    return matrix


def empty_model(state_dim: int, channels: int, inputs: int, dtype: torch.dtype) -> LatentFilter:
    """Of the sizes given, to be filled from a file."""
    n, m = state_dim, channels
    zeros = {"transition_matrix": (n, n), "transition_cov": (n, n), "observation_matrix": (m, n), "measurement_cov": (m, m)}
    zeros |= {"input_matrix": (n, inputs)} if inputs else {}
    absent = ("initial_mean", "initial_cov", "transition_offset", "observation_offset", "input_matrix", "feedthrough")
    return known_model(dict.fromkeys(absent) | {name: np.zeros(shape) for name, shape in zeros.items()}, dtype)


def known_readout(model: LatentFilter) -> Readout:
    """x = C h + D u + c + v: the measurement itself, with its noise."""
    dynamics, encoder = model.dynamics, model.encoder
    assert isinstance(dynamics, KnownDynamics)
    assert isinstance(encoder, DirectEncoder)
    readout = Readout(dynamics.state_dim + dynamics.input_dim, dynamics.latent_dim, "linear").to(encoder.measurement_cov.dtype)
    readout.weight.copy_(torch.cat([dynamics.observation, dynamics.feedthrough], dim=-1))
    readout.bias.copy_(dynamics.observation_offset)
    readout.residual.copy_(encoder.measurement_cov if readout.full else encoder.measurement_cov.diagonal())
    return readout.requires_grad_(False)


def known_labels(channels: Sequence[str] | None, count: int, step: float | None, what: str = "channels") -> Labels:
    """Labels of data that no fit has seen: channels by position where they have no names.

    Raises:
        ValueError: another number of names.
    """
    names = default_names(count) if channels is None else tuple(map(str, channels))
    if len(names) != count:
        raise ValueError(f"{what} holds {len(names)} names {list(names)}, expected {count}, one for each row of the matrix")
    attrs: dict[str, Any] = {"event_shape": (count,), "columns": names, "step": step, "time_kind": None, "coords": {}, "user": {}}
    return Labels("array", names, ("channel",), None, (), "time", False, attrs)


def matrices_of(source: KalmanFilter, predict_first: bool) -> dict[str, Any]:
    """The matrices of a ``filterpy.kalman.KalmanFilter`` by the names of ``LDMFilter.from_matrices``.

    Raises:
        TypeError: no such filter. ValueError: a fading memory, or noise that is correlated between process and measurement.
    """
    if not isinstance(source, KalmanFilter):
        raise TypeError(f"source is a {type(source).__name__}, expected a filterpy.kalman.KalmanFilter")
    if source.alpha != 1.0:
        raise ValueError(f"source has a fading memory alpha = {source.alpha}, which is no state-space model; set alpha = 1")
    if np.any(source.M):
        raise ValueError("source has a process-measurement cross-correlation M, which this filter has no place for; set M = 0")
    F, Q = (np.asarray(x, dtype=np.float64) for x in (source.F, source.Q))
    mean, cov = np.asarray(source.x, dtype=np.float64).reshape(-1), np.asarray(source.P, dtype=np.float64)
    if predict_first:
        tensors = (torch.as_tensor(x) for x in (F, np.zeros(len(F)), Q))
        ahead = predict(Gaussian(torch.as_tensor(mean), torch.as_tensor(cov)), *tensors)
        mean, cov = ahead.mean.numpy(), ahead.cov.numpy()
    return {
        "transition_matrix": F,
        "transition_cov": Q,
        "observation_matrix": np.asarray(source.H, dtype=np.float64),
        "measurement_cov": np.asarray(source.R, dtype=np.float64),
        "initial_mean": mean,
        "initial_cov": cov,
        "input_matrix": None if source.B is None else np.asarray(source.B, dtype=np.float64),
    }
