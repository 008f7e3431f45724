"""Gates against outliers: how much a measurement may count that the prediction makes improbable.

The squared Mahalanobis distance d^2 = e' S^-1 e of an innovation is chi-square with m degrees of freedom where the model
holds. A gate lets a true measurement pass with a named probability; beyond that it rejects or weighs down. No gate shuts
for ever: after ``patience`` measurements outside on end it is the state that has moved, the prediction's covariance is
raised once to the distance found, and the measurements count in full until one falls inside again.

References: Y. Bar-Shalom, X.-R. Li, T. Kirubarajan, *Estimation with Applications to Tracking and Navigation* (2001), ch. 5
(gate); G. Chang, J. Geodesy 88 (2014) (inflation); G. Agamennoni, J. Nieto, E. Nebot, IEEE T. Signal Process. 60 (2012) (Student-t).
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch

__all__ = ["KINDS", "Gate", "chi2_quantile", "chi2_tail", "gated_weight"]

KINDS = ("hard", "inflate", "student-t")
_SWEEPS = 8


@dataclass(frozen=True)
class Gate:
    """What to do with outliers.

    Args:
        kind: ``"hard"``: a measurement outside is rejected; ``"inflate"``: its covariance is raised until it lies on the gate's
            edge, S <- S d^2 / threshold; ``"student-t"``: outside, R <- R / w with the variational weight w of a Student-t noise.
        probability: that a true measurement lies inside, d^2 <= chi2_m^-1(probability).
        patience: measurements outside on end after which the gate opens.
        dof: of the Student-t noise.

    Raises:
        ValueError, TypeError: an argument out of range or of another kind.

    >>> round(Gate("hard", probability=0.95).threshold(1), 4)
    3.8415
    """

    kind: str = "hard"
    probability: float = 0.999
    patience: int = 4
    dof: float = 4.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind of the gate is {self.kind!r}, expected one of {', '.join(map(repr, KINDS))}")
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability is {self.probability}, expected a number between 0 and 1, such as 0.999")
        if not isinstance(self.patience, int) or isinstance(self.patience, bool):
            raise TypeError(f"patience is a {type(self.patience).__name__}, expected a whole number of measurements")
        if self.patience < 1:
            raise ValueError(f"patience is {self.patience}, expected at least 1; a gate that never opens locks the filter out")
        if not (self.dof > 0 and math.isfinite(self.dof)):
            raise ValueError(f"dof is {self.dof}, expected a positive number of degrees of freedom")

    def threshold(self, m: int) -> float:
        """The largest d^2 inside, for m latents."""
        return chi2_quantile(self.probability, m)

    def edges(self, count: np.ndarray | int) -> np.ndarray:
        """The threshold for each number of latents seen; infinite for none."""
        numbers = np.asarray(count)
        return np.select([numbers == m for m in np.unique(numbers)], [self.threshold(int(m)) if m else np.inf for m in np.unique(numbers)])


def chi2_tail(distance: np.ndarray, m: np.ndarray | int) -> np.ndarray:
    """P(chi2_m > distance): the p-value of an innovation; NaN stays NaN.

    >>> chi2_tail(np.array(0.0), 3).item()
    1.0
    """
    half = torch.as_tensor(distance, dtype=torch.float64) * 0.5
    freedom = torch.as_tensor(m, dtype=torch.float64).clamp_min(1.0) * 0.5
    return torch.special.gammaincc(freedom.expand_as(half), half).numpy()


@functools.lru_cache(maxsize=64)
def chi2_quantile(probability: float, m: int) -> float:
    """The number that chi2_m falls below with that probability, by bisection."""
    low, high = 0.0, float(m)
    while float(chi2_tail(np.array(high), m)) > 1.0 - probability:
        high *= 2.0
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if float(chi2_tail(np.array(middle), m)) > 1.0 - probability else (low, middle)
    return high


def gated_weight(
    gate: Gate, cov: np.ndarray, innovation: np.ndarray, R: np.ndarray, C: np.ndarray, distance: np.ndarray, count: np.ndarray | int
) -> np.ndarray:
    """How much a measurement counts, ``(...)``: 1 inside the gate; outside 0, or w of R <- R / w.

    Args:
        gate: which kind, and where its edge is.
        cov: P^- of the prediction. innovation: e ``(..., m)``. R, C: of the measurement. distance: d^2 ``(...)``.
        count: number of latents seen, ``(...)`` or a number.
    """
    edge = gate.edges(count)
    outside = distance > edge
    if not outside.any():
        return np.ones_like(distance)
    if gate.kind == "hard":
        return np.where(outside, 0.0, 1.0)
    spread = C @ cov @ C.swapaxes(-1, -2)
    weight = _on_the_edge(spread, innovation, R, edge) if gate.kind == "inflate" else _student_t(spread, innovation, R, count, gate.dof)
    return np.where(outside, weight, 1.0)


def _distance(spread: np.ndarray, innovation: np.ndarray, R: np.ndarray, weight: np.ndarray) -> np.ndarray:
    S = spread + R / weight[..., None, None]
    return (innovation * np.linalg.solve(S, innovation[..., None])[..., 0]).sum(-1)


def _on_the_edge(spread: np.ndarray, innovation: np.ndarray, R: np.ndarray, edge: np.ndarray) -> np.ndarray:
    """The w for which e' (C P C' + R / w)^-1 e is the edge, by bisection of log w: the distance falls as w does."""
    low, high = np.full(innovation.shape[:-1], -40.0), np.zeros(innovation.shape[:-1])
    for _ in range(40):
        middle = 0.5 * (low + high)
        over = _distance(spread, innovation, R, np.exp(middle)) > edge
        low, high = np.where(over, low, middle), np.where(over, middle, high)
    return np.exp(low)


def _student_t(spread: np.ndarray, innovation: np.ndarray, R: np.ndarray, m: np.ndarray | int, dof: float) -> np.ndarray:
    """w = (dof + m) / (dof + E[(z - C h)' R^-1 (z - C h)]), the expectation under the posterior that w gives; at most 1."""
    inverse = np.linalg.inv(R)
    weight = np.full(innovation.shape[:-1], 1e-2)
    for _ in range(_SWEEPS):
        noise = R / weight[..., None, None]
        kept = noise @ np.linalg.inv(spread + noise)  # I - C K
        residual = (kept @ innovation[..., None])[..., 0]
        left = kept @ spread
        expected = (residual * (inverse @ residual[..., None])[..., 0]).sum(-1) + np.trace(inverse @ left, axis1=-2, axis2=-1)
        weight = np.minimum((dof + m) / (dof + expected), 1.0)
    return weight
