"""Injective random networks: how the hidden latents of ``datasets.sources`` and ``datasets.linear_latent`` become observations.

    a_1 = standardise(W_1 z) + b_1,   a_2 = standardise(W_2 s(a_1)) + b_2,   x = W_3 s(a_2) + b_3
    W = U diag(0.5 ... 1) V',   U and V with orthonormal columns,   s(a) = max(a, 0.05 a),   b ~ N(0, 0.3^2)

Every layer is injective (W has full column rank, s is strictly increasing), so the network is, and it can be inverted exactly.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["InjectiveNetwork", "injective_network", "orthonormal"]

Array = NDArray[np.float64]


class InjectiveNetwork(NamedTuple):
    """x = W_L s(... s(W_1 z + b_1) ...) + b_L.

    Attributes:
        weights: W, ``(out, in)`` each, of full column rank.
        biases: b, ``(out,)`` each.
        slope: of the leaky ReLU s below 0.
    """

    weights: tuple[Array, ...]
    biases: tuple[Array, ...]
    slope: float

    def __call__(self, latents: NDArray) -> Array:
        """Observations ``(..., out)`` of latents ``(..., in)``."""
        values = np.asarray(latents, dtype=float) @ self.weights[0].T + self.biases[0]
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            values = self._activate(values) @ weight.T + bias
        return values

    def invert(self, observations: NDArray) -> Array:
        """Latents ``(..., in)`` of observations ``(..., out)``: exact without noise, layer by layer least squares with it."""
        values = (np.asarray(observations, dtype=float) - self.biases[-1]) @ np.linalg.pinv(self.weights[-1]).T
        for weight, bias in zip(self.weights[-2::-1], self.biases[-2::-1], strict=True):
            values = (np.where(values < 0, values / self.slope, values) - bias) @ np.linalg.pinv(weight).T
        return values

    def jacobian(self, latents: NDArray) -> Array:
        """dx/dz at latents ``(..., in)``: ``(..., out, in)``."""
        values = np.asarray(latents, dtype=float) @ self.weights[0].T + self.biases[0]
        chain = np.broadcast_to(self.weights[0], (*values.shape[:-1], *self.weights[0].shape))
        for weight, bias in zip(self.weights[1:], self.biases[1:], strict=True):
            chain = weight @ (np.where(values < 0, self.slope, 1.0)[..., None] * chain)
            values = self._activate(values) @ weight.T + bias
        return chain

    def _activate(self, values: Array) -> Array:
        return np.where(values < 0, self.slope * values, values)


def injective_network(latent_dim: int, observation_dim: int, rng: np.random.Generator, slope: float = 0.05) -> InjectiveNetwork:
    """Draw a network latent_dim -> latent_dim -> latent_dim -> observation_dim.

    Pre-activations of the hidden layers are standardised over 10,000 standard normal latents; the constants are part of the network.

    Args:
        latent_dim: N, at least 1. observation_dim: at least N.
        rng: source of randomness, advanced.
        slope: of the leaky ReLU, in (0, 1].

    Raises:
        ValueError: a size or a slope out of range.
    """
    if not 1 <= latent_dim <= observation_dim:
        raise ValueError(f"latent_dim is {latent_dim}, expected 1 to observation_dim = {observation_dim}: else the network is not injective")
    if not 0 < slope <= 1:
        raise ValueError(f"slope is {slope}, expected above 0 and at most 1: else the network is not injective")
    weights: list[Array] = []
    biases: list[Array] = []
    values = rng.standard_normal((10_000, latent_dim))
    for out in (latent_dim, latent_dim, observation_dim):
        scales = np.linspace(0.5, 1.0, latent_dim)
        weight = (orthonormal(out, latent_dim, rng) * scales) @ orthonormal(latent_dim, latent_dim, rng).T
        bias = 0.3 * rng.standard_normal(out)
        if len(weights) < 2:  # hidden: standardised
            before = values @ weight.T
            mean, std = before.mean(0), before.std(0)
            weight, bias = weight / std[:, None], bias - mean / std
            values = before / std + bias
            values = np.where(values < 0, slope * values, values)
        weights.append(weight)
        biases.append(bias)
    return InjectiveNetwork(tuple(weights), tuple(biases), slope)


def orthonormal(rows: int, columns: int, rng: np.random.Generator) -> Array:
    """A uniformly random matrix ``(rows, columns)`` with orthonormal columns; square and determinant -1 or 1 alike."""
    factor, triangle = np.linalg.qr(rng.standard_normal((rows, columns)))
    return factor * np.sign(np.diagonal(triangle))
