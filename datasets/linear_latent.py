"""A linear latent system with known transition matrix, seen through a random injective network: are its eigenvalues recovered?

    h_t = A h_{t-1} + w_t,   w_t ~ N(0, Q),   x_t = g(h_t) + v_t,   v_t ~ N(0, 0.01 I)

A holds two damped rotations, |eigenvalue| 0.98 with period 12 and 0.95 with period 31; Q = I - A A', so that h is stationary with unit
covariance. g is an injective random network from 4 to 40 dimensions (``datasets.networks``).

Two leaky layers of slope 0.05 press much of the state below the noise: the exact filter itself reaches R2 0.84 to 0.91. The *mild* variant
has a slope of 0.5 and channels of unit variance, so that the state can be known well.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datasets.networks import InjectiveNetwork, injective_network

__all__ = ["MODES", "NOISE_VAR", "LinearLatent", "Recording", "linear_latent"]

MODES = ((0.98, 12.0), (0.95, 31.0))  # modulus and period in steps
OBSERVATION_DIM, NOISE_VAR, MILD_SLOPE = 40, 0.01, 0.5


class Recording(NamedTuple):
    """What was drawn.

    Attributes:
        observations: ``(series, steps, 40)`` float32, noise included.
        states: ``(series, steps, 4)`` float32, h.
    """

    observations: NDArray[np.float32]
    states: NDArray[np.float32]


class LinearLatent(NamedTuple):
    """The system: ``transition_matrix`` A and ``transition_cov`` Q ``(4, 4)``, ``network`` g."""

    transition_matrix: NDArray[np.float64]
    transition_cov: NDArray[np.float64]
    network: InjectiveNetwork

    def draw(self, series: int, steps: int = 100, seed: int | np.random.Generator = 0) -> Recording:
        """Fresh stationary series; the same seed gives the same numbers, a generator is advanced.

        Raises:
            ValueError: fewer than one series or step.
        """
        if series < 1 or steps < 1:
            raise ValueError(f"series and steps are {series} and {steps}; expected at least one of each")
        rng = np.random.default_rng(seed)
        size = len(self.transition_matrix)
        noise = rng.standard_normal((series, steps, size)) * np.sqrt(np.diagonal(self.transition_cov))
        states = np.empty((series, steps, size))
        states[:, 0] = rng.standard_normal((series, size))
        for step in range(1, steps):
            states[:, step] = states[:, step - 1] @ self.transition_matrix.T + noise[:, step]
        clean = self.network(states)
        observations = clean + math.sqrt(NOISE_VAR) * rng.standard_normal(clean.shape)
        return Recording(observations.astype(np.float32), states.astype(np.float32))


def linear_latent(seed: int = 0, mild: bool = False) -> LinearLatent:
    """Draw the network; the dynamics are the same for every seed.

    Args:
        seed: of the network.
        mild: slope 0.5 in place of 0.05, and each channel scaled to unit variance before the noise is added.

    >>> abs(np.linalg.eigvals(linear_latent().transition_matrix)).round(2).tolist()
    [0.98, 0.98, 0.95, 0.95]
    """
    transition = np.zeros((4, 4))
    for place, (modulus, period) in zip((0, 2), MODES, strict=True):
        cosine, sine = math.cos(2 * math.pi / period), math.sin(2 * math.pi / period)
        transition[place : place + 2, place : place + 2] = modulus * np.array([[cosine, -sine], [sine, cosine]])
    rng = np.random.default_rng([seed, 4])
    network = injective_network(4, OBSERVATION_DIM, rng, **({"slope": MILD_SLOPE} if mild else {}))
    if mild:
        std = network(rng.standard_normal((20_000, 4))).std(0)
        last = (network.weights[-1] / std[:, None], network.biases[-1] / std)
        network = network._replace(weights=(*network.weights[:-1], last[0]), biases=(*network.biases[:-1], last[1]))
    return LinearLatent(transition, np.eye(4) - transition @ transition.T, network)
