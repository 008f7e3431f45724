"""Latent distribution matching: alignment + uniformity (+ gauge), maximised."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ldm_filter.objectives.entropy import ENTROPIES
from ldm_filter.objectives.latent_models import kalman_log_density
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["OBJECTIVES", "Objective", "ObjectiveValue", "resolve_objective"]

OBJECTIVES = ("auto", *ENTROPIES, "jacobian", "stop-gradient")


class ObjectiveValue(NamedTuple):
    """Scalars, in nats per step: ``loss = -(alignment + entropy) + gauge``. The entropy is 0 for stop-gradient."""

    loss: Tensor
    alignment: Tensor
    entropy: Tensor
    gauge: Tensor


def _no_gather(tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class Objective:
    """Predictive latent distribution matching with a Kalman latent model.

        F_MI  = < log P(z_t | z_<t) > + H[z_t]                                               (eq. 13)
        F_LDM = < log P(z_t | z_<t) > + H[z_t | z_{t-1}],   H[z_t | z_{t-1}] = H[z_t, z_{t-1}] - H[z_{t-1}]   (eq. 12, one lag)

    F is unchanged when z, A, Q and R are rescaled together. The gauge term, 1/2 sum_d (mean^2 + var - 1 - log var), pins every
    latent to zero mean and unit variance; along the invariance it costs the objective nothing, and it keeps estimators that
    ignore the scale (stop-gradient) bounded.

    Attributes:
        entropy: a name of :data:`~ldm_filter.objectives.entropy.ENTROPIES`; ``"jacobian"``, the change of variables
            H[z] = H[u] + < log |det dz/du| >, u the standardised data, exact for as many latents as channels (H[u] does not depend on
            the encoder and is left out, so that F is the mean log-likelihood of the data); or ``"stop-gradient"`` (eq. 14, no entropy term).
        mutual_information: F_MI (True) or F_LDM (False). Stop-gradient is F_LDM by construction and takes no notice.
        gauge_weight: weight of the gauge term.

    Source:
        Mikulasch and Zenke, arXiv 2605.03517.
    """

    entropy: str = "log-det"
    mutual_information: bool = True
    gauge_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.entropy not in OBJECTIVES[1:]:
            raise ValueError(f"entropy is {self.entropy!r}, expected one of {', '.join(OBJECTIVES[1:])}")
        if not 0.0 <= self.gauge_weight < math.inf:
            raise ValueError(f"gauge_weight is {self.gauge_weight}, expected a number of at least 0")

    @property
    def needs_volume(self) -> bool:
        """Whether the encoder's log-determinant is asked for."""
        return self.entropy == "jacobian"

    @property
    def detach_target(self) -> bool:
        """Whether the target in log P(z_t | z_<t) passes no gradient."""
        return self.entropy == "stop-gradient"

    def __call__(
        self,
        model: StateSpace | Tensor,
        measurements: Gaussian,
        observed: Tensor,
        gather: Callable[[Tensor], Tensor] = _no_gather,
        log_volume: Tensor | None = None,
    ) -> ObjectiveValue:
        """Evaluate on a batch.

        Args:
            model: the latent model where it is a state-space model, or else log P(z_t | z_<t) ``(B, T)`` that a model gave, 0 at unobserved steps.
            measurements: encoder output ``(B, T, m)``.
            observed: bool ``(B, T)``.
            gather: joins tensors ``(N, ...)``, N of its own in each, over the processes of a data-parallel run, with gradients, so
                that every figure belongs to the *global* batch. The alignment is this process' share: the processes' mean is the
                global one, as is the mean of their gradients.
            log_volume: log |det dz/du| of some observations ``(N,)``, for ``"jacobian"``.

        Raises:
            ValueError: no step observed, or too few for the estimator; measurements that the filter refuses.
        """
        density = model if isinstance(model, Tensor) else kalman_log_density(model, measurements, observed, self.detach_target)
        steps = gather(observed.sum().reshape(1)).to(density.dtype).mean()
        if not steps > 0:
            raise ValueError("observed is False at every step of the batch; there is nothing to learn from")
        alignment = density.sum() / steps
        samples = gather(measurements.mean[observed])
        if self.detach_target:
            entropy = alignment.new_zeros(())
        elif self.needs_volume:
            if log_volume is None:
                raise ValueError('log_volume is None, and entropy "jacobian" needs Encoder.log_volume of the batch')
            entropy = gather(log_volume).mean()
        else:
            entropy = self._uniformity(measurements, observed, samples, gather)
        mean, var = samples.mean(0), samples.var(0, correction=0) + 1e-12
        gauge = 0.5 * self.gauge_weight * (mean.square() + var - 1.0 - var.log()).sum()
        return ObjectiveValue(gauge - alignment - entropy, alignment, entropy, gauge)

    def _uniformity(self, measurements: Gaussian, observed: Tensor, samples: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
        estimator = ENTROPIES[self.entropy]
        level = measurements.cov.diagonal(dim1=-2, dim2=-1).detach().log().expand(*observed.shape, -1)
        if self.mutual_information:
            return estimator(samples, gather(level[observed]))
        both = observed[:, 1:] & observed[:, :-1]
        before, after = measurements.mean[:, :-1][both], measurements.mean[:, 1:][both]
        condition = gather(level[:, 1:][both])
        before, after = gather(before), gather(after)
        return estimator(torch.cat([before, after], dim=-1), condition) - estimator(before, condition)


def resolve_objective(name: str, noise: str, square: bool = False) -> str:
    """The estimator that ``objective="auto"`` means.

    With as many latents as channels (``square``) and a constant R the change of variables: it is exact, so heavy-tailed data cannot
    exploit it, as they can the log-determinant by sending rare events far out. Else log-det, in its conditional form where R
    depends on the observation.

    Raises:
        ValueError: an unknown name, or ``"jacobian"`` without as many latents as entries of an observation.
    """
    if name not in OBJECTIVES:
        raise ValueError(f"objective is {name!r}, expected one of {', '.join(OBJECTIVES)}")
    if name == "jacobian" and not square:
        raise ValueError('objective is "jacobian", which needs latent_dim equal to the number of entries of one observation; use "log-det"')
    if name != "auto":
        return name
    if noise != "constant":
        return "conditional-log-det"
    return "jacobian" if square else "log-det"
