"""The encoder for one observation at a time: small perceptrons in NumPy, everything else through the module itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ldm_filter.core.recording import Recorded, Recorder
from ldm_filter.models.encoders import ConstantNoise, Encoder, InputNoise
from ldm_filter.models.networks import Perceptron

__all__ = ["Measure", "cast", "measure_of", "numbers"]

# Values ``(..., *event)`` with 0 where missing, in the model's dtype, and the mask (None: complete), to z ``(..., m)`` and R ``(m, m)`` or
# ``(..., m, m)``, both float64.
Measure = Callable[[np.ndarray, np.ndarray | None], tuple[np.ndarray, np.ndarray]]

# Above this many weights the time goes into the products, and the module is as quick.
MOST_WEIGHTS = 1 << 18
# exp of the negative of this is finite in float32, and such a unit is off.
_OFF = -80.0


def measure_of(encoder: Encoder) -> Measure:
    """The quickest way through an encoder for few observations at a time."""
    small = sum(parameter.numel() for parameter in encoder.parameters()) <= MOST_WEIGHTS
    noises = (ConstantNoise, InputNoise)
    plain = type(encoder) is Encoder and type(encoder.network) is Perceptron and type(encoder.noise) in noises
    if small and plain and encoder.center.device.type == "cpu":
        return _ArrayEncoder(encoder)
    return _ModuleEncoder(encoder)


class _ModuleEncoder:
    """Any encoder, on whatever device it is; on a CUDA device complete observations go through a recorded graph."""

    def __init__(self, encoder: Encoder, recorder: Recorder | None = None) -> None:
        self.encoder = encoder
        self.rank = len(encoder.event_shape)
        self._device = encoder.center.device
        self._complete = Recorded(self._unmasked, self._device, type(encoder).__name__, recorder, self._seen)

    @torch.no_grad()
    def __call__(self, values: np.ndarray, observed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        lead, event = values.shape[: values.ndim - self.rank], values.shape[values.ndim - self.rank :]
        rows = np.ascontiguousarray(values).reshape(-1, 1, *event)
        if observed is None:
            z, R = self._complete(rows)
        else:
            given = (torch.from_numpy(x).to(self._device) for x in (rows, np.ascontiguousarray(observed).reshape(rows.shape)))
            z, R = (x.cpu().numpy() for x in self._rows(*given))
        return z.reshape(*lead, z.shape[-1]), R[0] if len(R) == 1 else R.reshape(*lead, *R.shape[1:])

    def _rows(self, rows: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """z and R of rows ``(B, 1, *event)``."""
        mean, cov = self.encoder(rows, mask)
        return mean[:, 0].double(), cov[:, 0].double()

    def _seen(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self._rows(rows, torch.ones_like(rows, dtype=torch.bool))

    def _unmasked(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """That all is seen is told by a mask on the CPU: whoever asks that does not wait for the device, which no recording allows."""
        return self._rows(rows, torch.ones(rows.shape, dtype=torch.bool))


class _ArrayEncoder:
    """:class:`~ldm_filter.models.encoders.Encoder` over a perceptron, the same formula on arrays."""

    def __init__(self, encoder: Encoder) -> None:
        network = encoder.network
        assert isinstance(network, Perceptron)
        self.rank = len(encoder.event_shape)
        self.center, self.scale = (_array(x).reshape(-1) for x in (encoder.center, encoder.scale))
        self.gain, self.shift = _array(encoder.gain), _array(encoder.shift)
        self.linear = _array(encoder.linear.weight).T
        self.first, self.absent = _layer(network.values), _array(network.missing.weight).T
        self.hidden = [_layer(layer) for layer in network.hidden if isinstance(layer, nn.Linear)]
        self.last = _layer(network.last)
        self.missing_cov = _array(encoder.missing_cov.double()) if bool(encoder.missing_cov.any()) else None
        with torch.no_grad():
            self.scaling = _array((encoder.gain[:, None] * encoder.gain * encoder.noise_scale).double())
            zero = torch.zeros(1, 1, *encoder.event_shape, dtype=encoder.center.dtype)
            self.cov = _array(encoder(zero, torch.ones_like(zero, dtype=torch.bool)).cov[0, 0].double())
        self.noise = _ArrayNoise(encoder.noise) if isinstance(encoder.noise, InputNoise) else None

    def __call__(self, values: np.ndarray, observed: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        flat = values.reshape(*values.shape[: values.ndim - self.rank], -1)
        u = (flat - self.center) / self.scale
        missing = None
        if observed is not None:
            seen = observed.reshape(flat.shape)
            u = np.where(seen, u, np.zeros((), u.dtype))
            missing = (seen.any(-1, keepdims=True) & ~seen).astype(u.dtype)
        z = self.gain * (u @ self.linear + self._network(u, missing) - self.shift)
        R = self.cov if self.noise is None else self.noise(u, missing) * self.scaling
        if missing is not None and self.missing_cov is not None:
            share = missing if self.rank == 1 else missing.mean(-1, keepdims=True)
            R = R + np.tensordot(share.astype(np.float64), self.missing_cov, axes=1)
        return z.astype(np.float64), R

    def _network(self, u: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        x = u @ self.first[0] + self.first[1]
        if missing is not None:
            x = x + missing @ self.absent
        for weight, bias in self.hidden:
            x = _silu(x) @ weight + bias
        return _silu(x) @ self.last[0] + self.last[1]


class _ArrayNoise:
    """:class:`~ldm_filter.models.encoders.InputNoise` on arrays."""

    def __init__(self, noise: InputNoise) -> None:
        self.raw = bool(noise.raw)
        self.components = _array(noise.components)
        self.mean, self.std = _array(noise.features_mean), _array(noise.features_std)
        self.layers = [_layer(layer) for layer in noise.head if isinstance(layer, nn.Linear)]

    def __call__(self, u: np.ndarray, missing: np.ndarray | None) -> np.ndarray:
        residual = u - u @ self.components.T @ self.components
        square = residual * residual
        if missing is None:
            level = square.mean(-1, keepdims=True)
        else:
            seen = 1 - missing
            level = (square * seen).sum(-1, keepdims=True) / np.maximum(seen.sum(-1, keepdims=True), 1)
        level = level + 1e-6
        features = np.concatenate([level, np.sqrt(level), np.log(level), *([u] if self.raw else [])], -1)
        x = np.clip((features - self.mean) / self.std, -8.0, 8.0)
        for weight, bias in self.layers[:-1]:
            x = _silu(x @ weight + bias)
        log_var = x @ self.layers[-1][0] + self.layers[-1][1]
        variance = np.exp(12.0 * np.tanh(log_var / 12.0)).astype(np.float64)
        return variance[..., None] * np.eye(variance.shape[-1])


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-np.maximum(x, _OFF)))


def _array(x: Tensor) -> np.ndarray:
    return x.detach().cpu().numpy().copy()


def _layer(layer: nn.Linear) -> tuple[np.ndarray, np.ndarray]:
    return _array(layer.weight).T, _array(layer.bias)


def numbers(y: Any) -> np.ndarray:
    """An observation as an array of real numbers, NaN where missing."""
    if isinstance(y, np.ndarray) and y.dtype.kind in "biuf":
        if type(y) is np.ndarray and y.dtype == np.float64:
            return y.copy()  # it is kept, and the caller may write into it
        return np.ma.filled(y.astype(np.float64), np.nan)
    if isinstance(y, Tensor) and not y.is_complex():
        return y.detach().cpu().double().numpy().copy()
    if isinstance(y, np.ndarray | Tensor):
        raise TypeError(f"y has dtype {y.dtype}, expected real numbers, NaN for missing; convert it to float")
    raise TypeError(
        f"y is a {type(y).__name__}, expected a NumPy array or a tensor; pass np.asarray(values, float), the channels in the order of the fit"
    )


def cast(values: np.ndarray, dtype: np.dtype[Any]) -> np.ndarray:
    with np.errstate(over="ignore"):  # too large becomes infinite and is refused
        return values.astype(dtype)
