"""Principal components of each observation, then a Kalman filter fitted by EM: the baseline that a learned encoder has to beat."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from ldm_filter.baselines.em import LinearGaussian, fit_em, measure, subspace_start
from ldm_filter.baselines.series import Array, run_filter
from ldm_filter.types import Gaussian

__all__ = ["PCAKalman"]

# With a noise level per frame each series has covariances of its own: EM then reads so many series.
ADAPTIVE_SERIES = 200


class PCAKalman:
    """Linear encoder, linear filter, no gradient descent.

        z_t = V' (x_t - mean x),   h_t = A h_{t-1} + w_t,   z_t = C h_t + v_t,   v_t ~ N(0, R)  or  N(0, s_t R)

    V holds the leading principal directions of the pixels. A, Q, C, R and the initial belief are maximum likelihood by EM from a subspace
    start (`ldm_filter.baselines.em`). With ``adaptive_noise`` s_t is the variance of what the frame holds outside the subspace: pixels that no
    component explains tell how noisy a frame is.

    Args:
        state_dim: n, number of states.
        latent_dim: m, number of principal components.
        adaptive_noise: measurement covariance s_t R per frame instead of R.
        iterations: EM steps at most; it stops earlier when the log-likelihood per number gains less than 1e-5.

    After `fit`:
        mean_: ``(pixels,)``.  components_: V, ``(pixels, latent_dim)``, orthonormal.
        model_: the `LinearGaussian` model.  log_likelihood_: of the training data before each iteration and after the last, in nats.

    >>> from ldm_filter.metrics import affine_r2
    >>> rng = np.random.default_rng(0)
    >>> angle = rng.uniform(0, 6.28, (40, 1)) + 0.3 * np.arange(60)
    >>> truth = np.stack([np.cos(angle), np.sin(angle)], -1)
    >>> frames = truth @ rng.standard_normal((2, 30)) + rng.standard_normal((40, 60, 30))
    >>> states, _ = PCAKalman(2, 2).fit(frames[:30]).filter(frames)
    >>> affine_r2(states[:30], truth[:30], states[30:], truth[30:]) > 0.98
    True
    """

    mean_: Tensor
    components_: Tensor
    model_: LinearGaussian
    log_likelihood_: list[float]

    def __init__(self, state_dim: int, latent_dim: int, adaptive_noise: bool = False, *, iterations: int = 50) -> None:
        self.state_dim, self.latent_dim, self.adaptive_noise, self.iterations = state_dim, latent_dim, adaptive_noise, iterations

    def fit(self, frames: Any) -> Self:
        """Fit on complete training sequences.

        Args:
            frames: ``(series, time, ...)`` array or tensor, everything after the second axis is one observation.

        Raises:
            TypeError: not real numbers.
            ValueError: NaN or infinite values, too few steps for the states, or dimensions out of range.
        """
        x = _as_frames(frames)
        pixels = x.shape[-1]
        most = pixels - 1 if self.adaptive_noise else pixels
        if not 1 <= self.latent_dim <= most:
            raise ValueError(f"latent_dim must lie between 1 and {most} for {pixels} values per observation, got {self.latent_dim}")
        if self.state_dim < 1 or self.iterations < 0:
            raise ValueError(f"state_dim must be at least 1 and iterations at least 0, got {self.state_dim} and {self.iterations}")
        self.mean_, self.components_ = _principal(x, self.latent_dim)
        z, scale = self._project(x)
        start = subspace_start(z, self.state_dim)
        self.model_, self.log_likelihood_ = fit_em(z, start, self.iterations, tolerance=1e-5)
        if self.adaptive_noise:
            few = slice(0, ADAPTIVE_SERIES)
            start = self.model_._replace(measurement_cov=self.model_.measurement_cov / scale.mean())
            self.model_, self.log_likelihood_ = fit_em(z[few], start, self.iterations, scale=scale[few], tolerance=1e-5)
        return self

    def filter(self, frames: Any) -> tuple[Array, Array]:
        """p(h_t | x_1..t): mean ``(series, time, n)`` and covariance ``(series, time, n, n)``."""
        return self._estimate(frames, smooth=False)

    def smooth(self, frames: Any) -> tuple[Array, Array]:
        """p(h_t | x_1..T): mean ``(series, time, n)`` and covariance ``(series, time, n, n)``."""
        return self._estimate(frames, smooth=True)

    def measure(self, frames: Any) -> Gaussian:
        """The components z and their noise covariance, as `ldm_filter.core.kalman.filter_sequence` takes them beside ``model_.ssm``."""
        if getattr(self, "components_", None) is None:
            raise ValueError("PCAKalman is not fitted; call fit(training frames) first")
        x = _as_frames(frames)
        if x.shape[-1] != len(self.mean_):
            raise ValueError(f"frames have {x.shape[-1]} values per observation, PCAKalman was fitted on {len(self.mean_)}")
        z, scale = self._project(x)
        return measure(z, self.model_, scale if self.adaptive_noise else None)

    def _estimate(self, frames: Any, *, smooth: bool) -> tuple[Array, Array]:
        measurements = self.measure(frames)
        belief = run_filter(self.model_.ssm, measurements, None, smooth=smooth)
        cov = belief.cov.expand(len(belief.mean), *belief.cov.shape[1:])
        return belief.mean.numpy(), cov.numpy()

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Components ``(B, T, m)`` and the variance per pixel of the rest ``(B, T)``, both float64, a series at a time."""
        parts = []
        for row in x:
            centred = row.double() - self.mean_
            z = centred @ self.components_
            rest = centred.square().sum(-1) - z.square().sum(-1)
            parts.append((z, rest / max(1, x.shape[-1] - self.latent_dim)))
        z, scale = (torch.stack(part) for part in zip(*parts, strict=True))
        # a frame without any residual would claim to be exact
        return z, scale.clamp(min=1e-4 * float(scale.mean()) + torch.finfo(torch.float64).tiny)


def _as_frames(frames: Any) -> Tensor:
    """``(series, time, pixels)``, floating point and finite."""
    x = frames.detach().cpu() if isinstance(frames, Tensor) else torch.from_numpy(_numbers(frames))
    if x.dim() < 3 or x.numel() == 0:
        raise ValueError(f"frames has shape {tuple(x.shape)}; expected (series, time, ...) with at least one value per observation")
    x = x.flatten(2) if x.is_floating_point() else x.flatten(2).float()
    if not torch.isfinite(x).all():
        raise ValueError("frames holds NaN or infinite values; PCAKalman needs complete frames: fill or drop them first")
    return x


def _numbers(frames: Any) -> np.ndarray:
    array = np.asarray(frames)
    if array.dtype.kind not in "buif":
        raise TypeError(f"frames must hold real numbers, got dtype {array.dtype}; convert it to float first")
    return np.ascontiguousarray(array)


def _principal(x: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Mean and leading eigenvectors of the pixels' covariance, summed a series at a time in float64."""
    number = x.shape[0] * x.shape[1]
    mean = sum((row.double().sum(0) for row in x), torch.zeros(x.shape[-1], dtype=torch.float64)) / number
    cov = torch.zeros(x.shape[-1], x.shape[-1], dtype=torch.float64)
    for row in x:
        centred = row.double() - mean
        cov += centred.mT @ centred / number
    vectors = torch.linalg.eigh(cov).eigenvectors[:, -count:].flip(-1)
    return mean, vectors.contiguous()
