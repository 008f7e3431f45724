"""A particle filter that knows the Lorenz equations, the renderer and the noise, and not the state."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_ndtr, logsumexp, ndtr

from datasets.lorenz import attractor, transition
from datasets.lorenz_images import CAMERA_STD, PROCESS_VAR, render

__all__ = ["particle_moments", "pixel_log_likelihood"]

LEVELS = 256  # of a clean pixel's brightness, in steps of which its likelihood is kept
PIECE = 2000  # particles whose images are drawn at a time
Array = NDArray[np.float64]


def pixel_log_likelihood(share: float) -> Array:
    """log P(seen | clean) of a pixel's grey level from 0 to 255, ``(clean in LEVELS steps from 0 to 1, 256)``.

    P(y | c) = (1 - k) P(round(255 clip(c + N(0, 0.1^2), 0, 1)) = y) + k/2 [y in {0, 255}]
    """
    clean = np.linspace(0.0, 1.0, LEVELS)[:, None]
    edges = (np.arange(257) - 0.5) / 255
    edges[0], edges[-1] = -np.inf, np.inf
    below = (edges - clean) / CAMERA_STD
    # Differences of the tail that is small, so that far levels keep their digits.
    upper = np.where(below[:, :-1] > 0, ndtr(-below[:, :-1]) - ndtr(-below[:, 1:]), ndtr(below[:, 1:]) - ndtr(below[:, :-1]))
    tiny = log_ndtr(-np.minimum(np.abs(below[:, :-1]), np.abs(below[:, 1:]))) - 5.0  # where even those underflow
    likelihood = np.log(1.0 - share) + np.where(upper > 0, np.log(np.maximum(upper, 1e-300)), tiny)
    if share > 0:
        for level in (0, 255):
            likelihood[:, level] = np.logaddexp(likelihood[:, level], np.log(share / 2))
    return likelihood


def particle_moments(frames: NDArray[np.uint8], share: float, particles: int, first: int, seed: int = 0) -> tuple[Array, Array]:
    """Mean ``(series, steps, 3)`` and covariance of the state given the frames so far: a bootstrap filter with systematic resampling.

    Args:
        frames: ``(series, steps, 28, 28)``. share: k. particles: per series; ``first`` at the first step, drawn from the attractor.
        seed: of the draws.
    """
    rng, table = np.random.default_rng(seed), pixel_log_likelihood(share)
    prior = attractor(first, rng)
    means, covs = np.empty((*frames.shape[:2], 3)), np.empty((*frames.shape[:2], 3, 3))
    for row, video in enumerate(frames.reshape(*frames.shape[:2], -1)):
        states = prior
        for step, frame in enumerate(video):
            if step:
                states = transition(states) + np.sqrt(PROCESS_VAR) * rng.standard_normal(states.shape)
            score = _score(states, frame, table)
            weight = np.exp(score - logsumexp(score))
            means[row, step] = weight @ states
            error = states - means[row, step]
            covs[row, step] = (weight[:, None] * error).T @ error + 1e-9 * np.eye(3)
            places = np.searchsorted(weight.cumsum(), (rng.random() + np.arange(particles)) / particles)
            states = states[places.clip(max=len(states) - 1)]
    return means, covs


def _score(states: Array, frame: NDArray[np.uint8], table: Array) -> Array:
    """log p(frame | state), ``(particles,)``."""
    pieces = np.array_split(states, max(1, len(states) // PIECE))
    levels = [np.rint(render(piece).reshape(len(piece), -1) * (LEVELS - 1)).astype(np.intp) for piece in pieces]
    return np.concatenate([table[level, frame].sum(1) for level in levels])
