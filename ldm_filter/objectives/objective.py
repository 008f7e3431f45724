"""Latent distribution matching: alignment + uniformity (+ gauge), maximised."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm_filter.objectives.entropy import ENTROPIES, variance_covariance
from ldm_filter.objectives.latent_models import kalman_log_density, prediction_log_density
from ldm_filter.objectives.spherical import SPHERE_ENTROPIES, vmf_cross_entropy
from ldm_filter.types import Gaussian, Prediction, StateSpace, VonMisesFisher

__all__ = ["ESTIMATORS", "Objective", "ObjectiveValue"]

ESTIMATORS: dict[str, tuple[str, ...]] = {
    "plane": (*ENTROPIES, "variance-covariance", "jacobian", "stop-gradient"),
    "sphere": (*SPHERE_ENTROPIES, "info-nce", "stop-gradient"),
}
"""Names of entropy estimators by the space that the latents live in."""


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
    """Predictive latent distribution matching, for any latent model and estimator.

        F_MI  = < log P(z_t | z_<t) > + H[z_t]                                               (eq. 13)
        F_LDM = < log P(z_t | z_<t) > + H[z_t | z_{t-1}],   H[z_t | z_{t-1}] = H[z_t, z_{t-1}] - H[z_{t-1}]   (eq. 12, one lag)

    A model of pairs may instead have a flat prior over the earlier latent, log P(z_t, z_{t-1}) = log P(z_t | z_{t-1}) + const:

        F_MI  = < log P(z_t | z_{t-1}) > + H[z_t] + H[z_{t-1}]       F_LDM = < log P(z_t | z_{t-1}) > + H[z_t, z_{t-1}]   (eqs. 6, 5)

    With a state-space model F is unchanged when z, A, Q and R are rescaled together. The gauge term, 1/2 sum_d (mean^2 + var - 1 - log
    var), pins every latent to zero mean and unit variance; along the invariance it costs the objective nothing, and it keeps estimators
    that ignore the scale (stop-gradient) bounded.

    Attributes:
        entropy: a name of :data:`ESTIMATORS`. Of those that are no function of the samples alone:
            ``"jacobian"``, the change of variables H[z] = H[u] + < log |det dz/du| >, u the standardised data, exact for as many latents
            as channels (H[u] does not depend on the encoder and is left out, so that F is the mean log-likelihood of the data);
            ``"stop-gradient"`` (eq. 14, no entropy term); ``"info-nce"``, the kernel density at the predicted directions.
        mutual_information: F_MI (True) or F_LDM (False). Stop-gradient is F_LDM by construction and takes no notice.
        gauge_weight: weight of the gauge term; on the sphere there is none.
        space: ``"plane"`` or ``"sphere"``, where the latents live.
        prior: ``"empirical"`` or ``"flat"``, over the earlier latent of a pair.
        pooled: with a flat prior, whether H[z_t] + H[z_{t-1}] is twice the entropy of all latents, or each has its own samples.
        options: keyword arguments of the estimator (``k``, ``bandwidth``, ``concentration``, ``bins``, ...).
        start: an estimator that training starts with; see :meth:`at`. None: the same from first to last.
        share: weight of the estimator of the start, 1 - share that of ``entropy``.

    Raises:
        ValueError: an estimator that has no meaning there; the message gives the reason.

    Source:
        Mikulasch and Zenke, arXiv 2605.03517.
    """

    entropy: str = "log-det"
    mutual_information: bool = True
    gauge_weight: float = 1.0
    space: str = "plane"
    prior: str = "empirical"
    pooled: bool = True
    options: Mapping[str, Any] = field(default_factory=dict)
    start: str | None = None
    share: float = 0.0

    def __post_init__(self) -> None:
        if self.space not in ESTIMATORS:
            raise ValueError(f"space is {self.space!r}, expected 'plane' or 'sphere'")
        if self.entropy not in ESTIMATORS[self.space]:
            raise ValueError(f"entropy is {self.entropy!r}, expected one of {', '.join(ESTIMATORS[self.space])} on the {self.space}{self._why_not()}")
        if self.prior not in ("empirical", "flat"):
            raise ValueError(f"prior is {self.prior!r}, expected 'empirical' or 'flat'")
        if self.prior == "flat" and self.entropy in ("stop-gradient", "info-nce"):
            raise ValueError(f"prior is 'flat', but {self.entropy} has no estimate of the earlier latent's entropy; use prior='empirical'")
        if self.entropy in ("variance-covariance", "info-nce") and not self.mutual_information:
            raise ValueError(f"{self.entropy} stands for the entropy of one step and has no joint form; use mutual_information=True")
        if self.start is not None and (self.space != "plane" or not {self.start, self.entropy} <= set(ENTROPIES)):
            raise ValueError(f"start is {self.start!r} for entropy {self.entropy!r}; expected one of {', '.join(ENTROPIES)} for both, on the plane")
        if not 0.0 <= self.gauge_weight < math.inf:
            raise ValueError(f"gauge_weight is {self.gauge_weight}, expected a number of at least 0")

    def _why_not(self) -> str:
        elsewhere = self.space == "sphere" and self.entropy in ESTIMATORS["plane"]
        return "; points of a sphere fill no volume, so that a covariance or a Jacobian says nothing of their entropy" if elsewhere else ""

    def at(self, progress: float) -> Objective:
        """The objective after a share of training: that of the start for two fifths of it, then by degrees, from three fifths on the one proper.

            H = s H_start + (1 - s) H_entropy,     s = 1 before 2/5, falling linearly to 0 at 3/5

        Log-determinants lead quickly and from far away to latents of the right shape, and nearest neighbours, whose gradients are noisy, tell
        their true entropy: together they reach what neither does alone.
        """
        return self if self.start is None else replace(self, share=min(1.0, max(0.0, 3.0 - 5.0 * progress)))

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
        model: StateSpace | Tensor | Prediction,
        measurements: Gaussian,
        observed: Tensor,
        gather: Callable[[Tensor], Tensor] = _no_gather,
        log_volume: Tensor | None = None,
    ) -> ObjectiveValue:
        """Evaluate on a batch.

        Args:
            model: the latent model where it is a state-space model; or else what a model gave: log P(z_t | z_<t) ``(B, T)``, 0 at unobserved
                steps, or the predictive densities.
            measurements: encoder output ``(B, T, m)``.
            observed: bool ``(B, T)``.
            gather: joins tensors ``(N, ...)``, N of its own in each, over the processes of a data-parallel run, with gradients, so
                that every figure belongs to the *global* batch. The alignment is this process' share: the processes' mean is the
                global one, as is the mean of their gradients.
            log_volume: log |det dz/du| of some observations ``(N,)``, for ``"jacobian"``.

        Raises:
            ValueError: no step observed, or too few for the estimator; measurements that the filter refuses; a model of another space.
        """
        density, counted = self._density(model, measurements, observed)
        steps = gather(counted.sum().reshape(1)).to(density.dtype).mean()
        if not steps > 0:
            what = "at every step" if not bool(observed.any()) else "at one of any two neighbouring steps"
            raise ValueError(f"observed is False {what} of the batch; there is nothing to learn from")
        alignment = density.sum() / steps
        latents = gather(measurements.mean[observed])
        if self.detach_target:
            entropy = alignment.new_zeros(())
        elif self.needs_volume:
            entropy = self._volume(log_volume, gather)
        elif self.entropy == "info-nce":
            entropy = self._info_nce(model, measurements, counted, gather) / steps
        else:
            entropy = self._uniformity(measurements, observed, counted, gather)
        gauge = self._gauge(latents)
        return ObjectiveValue(gauge - alignment - entropy, alignment, entropy, gauge)

    def _density(self, model: StateSpace | Tensor | Prediction, measurements: Gaussian, observed: Tensor) -> tuple[Tensor, Tensor]:
        """log P(z_t | z_<t) and the steps that have one."""
        on_sphere = isinstance(model, Prediction) and isinstance(model.density, VonMisesFisher)
        if on_sphere != (self.space == "sphere"):
            found = "von Mises-Fisher" if on_sphere else "not von Mises-Fisher"
            raise ValueError(f"space is {self.space!r}, but the latent model's prediction is {found}; choose both for the same space")
        if isinstance(model, Prediction):
            return prediction_log_density(model, measurements, self.detach_target), model.counted
        return model if isinstance(model, Tensor) else kalman_log_density(model, measurements, observed, self.detach_target), observed

    def _gauge(self, latents: Tensor) -> Tensor:
        if self.space == "sphere":
            return latents.new_zeros(())
        mean, var = latents.mean(0), latents.var(0, correction=0) + 1e-12
        return 0.5 * self.gauge_weight * (mean.square() + var - 1.0 - var.log()).sum()

    def _volume(self, log_volume: Tensor | None, gather: Callable[[Tensor], Tensor]) -> Tensor:
        if log_volume is None:
            raise ValueError('log_volume is None, and entropy "jacobian" needs Encoder.log_volume of the batch')
        return (2.0 if self.prior == "flat" else 1.0) * gather(log_volume).mean()

    def _info_nce(self, model: object, measurements: Gaussian, counted: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
        """Sum over this process' predictions, among the targets of all."""
        assert isinstance(model, Prediction) and isinstance(model.density, VonMisesFisher)
        directions = model.density.direction.expand_as(measurements.mean)[counted]
        return vmf_cross_entropy(directions, gather(measurements.mean[counted]), **self.options).sum()

    def _uniformity(self, measurements: Gaussian, observed: Tensor, counted: Tensor, gather: Callable[[Tensor], Tensor]) -> Tensor:
        estimator = self._estimator()
        level = measurements.cov.diagonal(dim1=-2, dim2=-1).detach().log().expand(*observed.shape, -1)
        if self.mutual_information and (self.prior == "empirical" or self.pooled):
            chosen, weight = (counted, 1.0) if self.prior == "empirical" else (observed, 2.0)
            return weight * estimator(gather(measurements.mean[chosen]), gather(level[chosen]))
        both = observed[:, 1:] & observed[:, :-1]
        before, after = gather(measurements.mean[:, :-1][both]), gather(measurements.mean[:, 1:][both])
        condition = gather(level[:, 1:][both])
        if self.mutual_information:
            return estimator(after, condition) + estimator(before, condition)
        joint = partial(estimator, factors=2) if self.space == "sphere" else estimator
        both_entropy = joint(torch.cat([before, after], dim=-1), condition)
        return both_entropy if self.prior == "flat" else both_entropy - estimator(before, condition)

    def _estimator(self) -> Callable[..., Tensor]:
        if self.entropy == "variance-covariance":
            return partial(variance_covariance, **self.options)
        known = SPHERE_ENTROPIES if self.space == "sphere" else ENTROPIES
        own = partial(known[self.entropy], **self.options)
        if self.start is None or not self.share:
            return own
        first, share = ENTROPIES[self.start], self.share
        return first if share == 1.0 else lambda *samples: share * first(*samples) + (1.0 - share) * own(*samples)
