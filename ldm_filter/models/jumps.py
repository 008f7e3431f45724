"""Linear dynamics with a second hypothesis at every step: that the state has jumped."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ldm_filter.core import jumps
from ldm_filter.core.backends import StepModel
from ldm_filter.core.inputs import check_mask, fill_missing, mask_missing
from ldm_filter.core.jumps import JumpStateSpace, Mixture
from ldm_filter.core.linalg import cholesky, cholesky_psd, matvec, round_cov
from ldm_filter.core.settling import least_noise
from ldm_filter.core.smoothing import sample_posterior, smooth_sequence
from ldm_filter.models.affine import AffineDynamics
from ldm_filter.models.base import NO_CONTEXT
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.factors import factor, unfactor
from ldm_filter.models.stepwise import StepwiseDynamics
from ldm_filter.types import Context, FilterResult, Gaussian, SmootherResult

__all__ = ["JumpDynamics"]


class JumpDynamics(StepwiseDynamics):
    """h_t = A h_{t-1} + a + w, and with probability p then h_t <- J h_t + j + u,  u ~ N(0, D).

    See :mod:`ldm_filter.core.jumps` for the filter. p, J, j and D are learned; at the start p is 2 % and a jump draws the state anew from where
    it usually is: J = 0, j the mean, D the covariance of the state. After a gap of k steps one jump counts, of probability 1 - (1 - p)^k.

    Args:
        base: the linear model.
        chance: p at the start.
        settle_within: k, steps; :meth:`settle` then sees to it that k steps after a jump the predicted covariance is back; None: nothing.

    Raises:
        ValueError: a chance outside (0, 1), a number of steps below 1, or one for a motion in continuous time.
    """

    recalls = True

    def __init__(self, base: AffineDynamics, chance: float = 0.02, settle_within: int | None = None) -> None:
        super().__init__(base)
        if not 0.0 < chance < 1.0:
            raise ValueError(f"chance is {chance}, expected a probability between 0 and 1")
        if settle_within is not None and settle_within < 1:
            raise ValueError(f"settle_within is {settle_within}, expected at least 1 step, or None")
        if settle_within is not None and not isinstance(base, LinearDynamics):
            raise ValueError(
                "settle_within needs a motion whose process noise can be raised by itself, dynamics='linear'; in continuous time the noise is part "
                "of how the motion decays; leave settle_within out"
            )
        self.settle_within = settle_within
        n = base.state_dim
        self.logit = nn.Parameter(torch.logit(torch.tensor(chance)))
        self.matrix, self.offset = nn.Parameter(torch.zeros(n, n)), nn.Parameter(torch.zeros(n))
        self.factor = nn.Parameter(torch.zeros(n, n))

    def state_space(self, context: Context = NO_CONTEXT) -> JumpStateSpace:  # type: ignore[override]
        """The model at the steps of a context, in float64 where that matters."""
        root, calm = factor(self.factor), self.base.exact(context)
        ssm = self.base.state_space(context)
        calm = calm._replace(observation_matrix=ssm.observation_matrix, observation_offset=ssm.observation_offset, initial=ssm.initial)
        stay = nn.functional.logsigmoid(-self.logit.double())
        chance = -torch.expm1(stay if context.dt is None else stay * (context.dt.to(stay.device) / self.base.interval))
        return JumpStateSpace(calm, chance, self.matrix, self.offset, root @ root.mT)

    def initial(self) -> Gaussian:
        """p(h_0), mean ``(n,)``, cov ``(n, n)``."""
        return self.base.state_space().initial

    def filter(
        self,
        measurements: Gaussian,
        observed: Tensor | None = None,
        context: Context = NO_CONTEXT,
        initial: Gaussian | None = None,
        memory: Tensor | None = None,
    ) -> FilterResult:
        """As of :class:`Dynamics`; ``memory`` is the filtered belief of the step before, and ``initial`` then follows from it."""
        model = self.state_space(context)
        if memory is None and initial is not None:
            model = model._replace(calm=model.calm._replace(initial=initial))
        return jumps.filter_sequence(model, measurements, observed, None if memory is None else self._belief(memory))

    def moments(
        self, measurements: Gaussian, observed: Tensor | None = None, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> tuple[Gaussian, Tensor]:
        result = self.filter(measurements, observed, context, initial)
        return result.filtered, result.log_likelihood

    def remember(self, measurements: Gaussian, observed: Tensor | None, result: FilterResult, memory: Tensor | None = None) -> Tensor:
        """The filtered belief itself, ``(B, T, n + n^2)``: what is predicted from it are two Gaussians, not one."""
        mean, cov = result.filtered
        return torch.cat([mean, cov.expand(*mean.shape, mean.shape[-1]).flatten(2)], dim=-1)

    def predict(self, belief: Gaussian, context: Context = NO_CONTEXT, memory: Tensor | None = None) -> Gaussian:
        """Mean and covariance of the mixture one step ahead of a belief ``(B, n)``."""
        mean, cov = self.forecast(belief, 1, context)
        return Gaussian(mean[:, 0], cov[:, 0])

    def update(
        self,
        predicted: Gaussian,
        measurement: Gaussian,
        observed: Tensor | None = None,
        context: Context = NO_CONTEXT,
        memory: Tensor | None = None,
    ) -> tuple[Gaussian, Tensor]:
        """Condition on one measurement: both hypotheses that follow from the belief in ``memory``, or the prediction alone without one."""
        if memory is None:
            return super().update(predicted, measurement, observed, context)
        model, mask = self.state_space(context), check_mask(observed, measurement.mean)
        ahead = jumps.hypotheses(model, self._belief(memory), 0)
        C, c = (part if part.ndim == event else part[:, 0] for part, event in zip(model.calm[3:5], (2, 1), strict=True))
        z = fill_missing(measurement.mean, mask).double() - c.double()
        C, R, z = mask_missing(C.double(), measurement.cov.double(), z, mask)
        seen = z.shape[-1] if mask is None else mask.sum(-1)
        eye = torch.eye(self.state_dim, dtype=torch.float64, device=z.device)
        after, density = jumps.update(ahead, StepModel(eye, eye[0], eye, C, R, seen), z)
        mean, cov = jumps.collapse(after)
        return Gaussian(mean.to(predicted.mean.dtype), round_cov(cov, predicted.mean.dtype)), density

    def forecast(self, belief: Gaussian, horizon: int, context: Context = NO_CONTEXT, memory: Tensor | None = None) -> Gaussian:
        """The states 1 to ``horizon`` steps after a belief ``(B, n)``."""
        return jumps.forecast(self.state_space(context), belief, horizon)

    def smooth(self, result: FilterResult, context: Context = NO_CONTEXT) -> SmootherResult:
        """Beliefs given all of the series, under the hypothesis at each step that the filter came to."""
        return smooth_sequence(*jumps.linearised(self.state_space(context), result))

    def posterior_paths(self, result: FilterResult, generator: torch.Generator, num_paths: int = 1, context: Context = NO_CONTEXT) -> Tensor:
        return sample_posterior(*jumps.linearised(self.state_space(context), result), generator, num_paths)

    def prior_paths(
        self, steps: int, generator: torch.Generator, num_paths: int = 1, context: Context = NO_CONTEXT, initial: Gaussian | None = None
    ) -> Tensor:
        """Draws of the state from the model, jumps included, ``(num_paths, b, T, n)``."""
        model = self.state_space(context)
        start = model.calm.initial if initial is None else initial
        mean, cov = start.mean.reshape(-1, self.state_dim), start.cov.reshape(-1, self.state_dim, self.state_dim)
        batch = max(len(mean), len(cov), *(len(part) for part in model.calm[:3] if part.ndim > 2))
        device, n = mean.device, self.state_dim
        noise = torch.randn(num_paths, batch, steps, n, generator=generator, dtype=torch.float64, device=device)
        luck = torch.rand(num_paths, batch, steps, generator=generator, dtype=torch.float64, device=device)
        path = [mean.double() + matvec(cholesky_psd(cov, "the initial covariance"), noise[:, :, 0])]
        for step in range(1, steps):
            known = Gaussian(path[-1], torch.zeros(n, n, dtype=torch.float64, device=device).expand(num_paths, batch, n, n))
            ahead: Mixture = jumps.hypotheses(model, known, step)
            chosen = (luck[:, :, step] < ahead.log_weights[..., 1].exp()).long()[..., None, None]
            means, covs = ahead.mean.take_along_dim(chosen, -2)[..., 0, :], ahead.cov.take_along_dim(chosen.unsqueeze(-1), -3)[..., 0, :, :]
            path.append(means + matvec(cholesky_psd(covs, "the transition's covariance"), noise[:, :, step]))
        return torch.stack(path, dim=2).to(mean.dtype)

    @torch.no_grad()
    def mean_transition(self, result: FilterResult, context: Context = NO_CONTEXT) -> Tensor:
        """A of the motion without jumps."""
        return self.base.state_space().transition_matrix

    def start_from(self, ssm: object, interval: float = 1.0) -> None:
        super().start_from(ssm, interval)  # type: ignore[arg-type]
        initial = self.base.state_space().initial
        with torch.no_grad():
            self.factor.copy_(unfactor(cholesky(initial.cov.double(), "cov")))
            self.offset.copy_(self.base.mean)

    @torch.no_grad()
    def settle(self, measurement_cov: Tensor) -> float:
        """Q <- c Q with the smallest c >= 1 for which, ``settle_within`` steps after a jump, the predicted covariance is settled.

        Settled: within 5 % of its steady value in every direction, by the Riccati recursion of the calm motion (:mod:`ldm_filter.core.settling`)
        from the prediction of a jump, J P J' + D. An observation that leaves the two hypotheses undecided makes the belief wider for as long as it
        does. The likelihood may prefer a smaller Q; means then lag less noise, and the filter is sure of itself later.

        Args:
            measurement_cov: R ``(m, m)`` of a complete observation.

        Returns:
            c; 1 where nothing was to change.

        Raises:
            ValueError: even with calm steps that move the state as far as a jump does it takes longer.
        """
        if self.settle_within is None:
            return 1.0
        assert isinstance(self.base, LinearDynamics)
        calm, model = self.base.exact(), self.state_space()
        parts = calm.transition_matrix, calm.transition_cov, calm.observation_matrix, measurement_cov
        factor, steps = least_noise(self.settle_within, (model.matrix, model.cov), *parts)
        if factor == float("inf"):
            raise ValueError(
                f"settle_within is {self.settle_within}, and even with calm steps that move the state as far as a jump the predicted covariance "
                f"takes {steps} steps after one; pass at least {steps}, or None for the process noise that was learned"
            )
        if factor > 1.0:
            self.base.set_matrices(calm._replace(transition_cov=factor * calm.transition_cov))
        return factor

    def scale_covariances(self, factor: float) -> bool:
        """Not possible: the hypotheses' weights would change."""
        return False

    def _belief(self, memory: Tensor) -> Gaussian:
        mean, cov = memory.double().split((self.state_dim, self.state_dim**2), dim=-1)
        return Gaussian(mean, cov.unflatten(-1, (self.state_dim, self.state_dim)))
