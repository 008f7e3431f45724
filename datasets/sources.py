"""N-dimensional sources in pairs, seen through a random injective network: which latents are recovered, and how well, as N grows.

    z ~ N(0, I),   z' ~ N(R z + 0.1 tanh(R z), 0.1 I),   x = g(z),   x' = g(z')

R is a random rotation, g an injective random network to 100 dimensions (``datasets.networks``). No noise is added to x.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.networks import InjectiveNetwork, injective_network, orthonormal

__all__ = ["OBSERVATION_DIM", "Pairs", "Sources", "sources"]

OBSERVATION_DIM = 100
CURVATURE, NOISE_VAR = 0.1, 0.1


class Pairs(NamedTuple):
    """Pairs as series of two steps.

    Attributes:
        observations: ``(pairs, 2, 100)`` float32, x and x'.
        latents: ``(pairs, 2, N)`` float32, z and z'.
    """

    observations: NDArray[np.float32]
    latents: NDArray[np.float32]


class Sources(NamedTuple):
    """One draw of the task's constants: ``rotation`` R ``(N, N)`` and ``network`` g."""

    rotation: NDArray[np.float64]
    network: InjectiveNetwork

    def mean(self, latents: NDArray) -> NDArray[np.float64]:
        """E[z' | z] = R z + 0.1 tanh(R z), ``(..., N)``."""
        turned = np.asarray(latents, dtype=float) @ self.rotation.T
        return turned + CURVATURE * np.tanh(turned)

    def draw(self, pairs: int, seed: int | np.random.Generator = 0) -> Pairs:
        """Fresh pairs; the same seed gives the same numbers, a generator is advanced.

        Raises:
            ValueError: fewer than one pair.
        """
        if pairs < 1:
            raise ValueError(f"pairs is {pairs}; expected at least one")
        rng = np.random.default_rng(seed)
        first = rng.standard_normal((pairs, len(self.rotation)))
        second = self.mean(first) + np.sqrt(NOISE_VAR) * rng.standard_normal(first.shape)
        latents = np.stack([first, second], axis=1)
        return Pairs(self.network(latents).astype(np.float32), latents.astype(np.float32))


def sources(dim: int, seed: int = 0) -> Sources:
    """Draw rotation and network of the N-dimensional task.

    Args:
        dim: N, 1 to 100.
        seed: of these constants; `Sources.draw` has its own.

    Raises:
        ValueError: N out of range.

    Source:
        After Mikulasch and Zenke, arXiv 2605.03517, figure A7; the constants it leaves open are this project's.

    >>> sources(2).draw(pairs=3).observations.shape
    (3, 2, 100)
    """
    rng = np.random.default_rng([seed, dim])
    rotation = orthonormal(dim, dim, rng)
    if np.linalg.det(rotation) < 0:
        rotation[:, 0] = -rotation[:, 0]
    return Sources(rotation, injective_network(dim, OBSERVATION_DIM, rng))
