"""The encoder of tasks whose latents lie in observations of many numbers: a network on whitened principal components."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from benchmarks.latent_tasks import Settings

__all__ = ["WhitenedPerceptron", "whitened"]


class WhitenedPerceptron(nn.Module):
    """A network on whitened principal components: z = network(W' x), zero at the start.

    Where observations lie near a low-dimensional manifold most of their variance is in few directions, and what distinguishes latents may lie in
    the others: whitening brings all to one scale.

    Args:
        observations: ``(N, values)`` as the encoder will see them, standardised per value.
        components: how many. latent_dim: m. hidden: widths.
    """

    whiten: torch.Tensor

    def __init__(self, observations: NDArray, components: int, latent_dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        variance, vectors = np.linalg.eigh(np.cov(observations.T.astype(float)))
        kept = slice(-components, None)
        self.register_buffer("whiten", torch.as_tensor(vectors[:, kept] / np.sqrt(variance[kept]), dtype=torch.float32))
        layers: list[nn.Module] = []
        for before, width in zip((components, *hidden[:-1]), hidden, strict=True):
            layers += [nn.Linear(before, width), nn.LeakyReLU(0.1)]
        last = nn.Linear(hidden[-1], latent_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.network = nn.Sequential(*layers, last)

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        return self.network(values.flatten(1) @ self.whiten)


def whitened(observations: NDArray, settings: Settings, latent_dim: int, seed: int) -> WhitenedPerceptron:
    """The task's encoder for ``(series, steps, ...)``, on principal components of a part of them."""
    rows = observations.reshape(-1, observations[0, 0].size)[:: max(1, observations.size // 10_000_000)].astype(float)
    torch.manual_seed(seed)
    return WhitenedPerceptron((rows - rows.mean(0)) / rows.std(0), settings.components, latent_dim, settings.hidden)
