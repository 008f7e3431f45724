"""LDMFilter.adapt: a fitted model moved towards one series of its own."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch

from ldm_filter.core.adaptation import adapted_observation, adapted_transition, stationary_belief
from ldm_filter.estimator import settings
from ldm_filter.estimator.inference import Run, run_filter
from ldm_filter.estimator.parameters import Parameters
from ldm_filter.models.adapted_readout import adapted_readout
from ldm_filter.models.dynamics import LinearDynamics
from ldm_filter.models.encoders import ConstantNoise
from ldm_filter.models.latent_filter import LatentFilter
from ldm_filter.models.readout import Readout
from ldm_filter.types import Gaussian, SmootherResult, StateSpace

__all__ = ["Adaptation"]


class Adaptation(Parameters):
    """What a fitted model learns of a series that it is shown later."""

    def adapt(self, data: Any, weight: float = 30.0, iterations: int = 10, inputs: Any = None, times: Any = None) -> Self:
        """A copy of the model whose motion and noise are this data's own, as far as they can be told from it.

            maximise  E[log p(z, h | A, a, B, D, Q, R)] + weight (what one step of the model so far would add)

        Encoder and observation matrix stay, and so does the model itself. Expectation maximisation in closed form, from smoothed states: no
        learning rate, no labels, and missing data are no matter. The read-out's linear part follows by regression, held in the same way. For
        a person, machine or place with a way of its own, of which there is too little to fit a model to.

        Args:
            data: of the series to adapt to, as for :meth:`filter`; many of them are taken for one kind.
            weight: steps that the model so far counts for: small, trust the new data; large, stay. From a hundredth of the length of long and
                clean data to as many as there are of short and noisy ones.
            iterations: of expectation maximisation; each goes further.
            inputs, times: as for :meth:`filter`.

        Returns:
            A new LDMFilter. A calibration of its intervals is not carried over.

        Raises:
            ValueError: dynamics other than ``"linear"``, a weight that is not positive and finite, iterations below 1.

        Example:
            >>> import numpy as np
            >>> from ldm_filter import LDMFilter
            >>> random = np.random.default_rng(0)
            >>> slow, fast = (np.sin(np.arange(200)[:, None] * w + [0, 1]) + 0.1 * random.normal(size=(200, 2)) for w in (0.2, 0.6))
            >>> model = LDMFilter(state_dim=2).fit(slow, epochs=2, progress=False)
            >>> model.adapt(fast).score(fast) > model.score(fast)
            True
        """
        model = self._model()
        settings.check_counts(iterations=iterations)
        if not (isinstance(weight, int | float) and 0.0 < weight < float("inf")):
            raise ValueError(f"weight is {weight!r}, expected a positive finite number of steps")
        if not isinstance(model.dynamics, LinearDynamics):
            raise ValueError(f'adapt moves linear dynamics, this model has {type(model.dynamics).__name__}; fit with dynamics="linear"')
        sequences, labels, _ = self._read(data, inputs, times)
        own = copy.copy(self)
        own.model_, own.calibration_ = copy.deepcopy(model), None
        for _ in range(iterations):
            _step(own.model_, model, run_filter(own.model_, sequences, labels), float(weight))
        own.readout_ = _readout(own.model_, self.readout_, run_filter(own.model_, sequences, labels), model.dynamics.exact(), float(weight))
        return own


@torch.no_grad()
def _step(model: LatentFilter, before: LatentFilter, run: Run, weight: float) -> None:
    """One iteration, in place: from the beliefs of the present model, towards the series, held by the one before."""
    dynamics, first, context = model.dynamics, before.dynamics, run.sequences.context
    assert isinstance(dynamics, LinearDynamics)
    assert isinstance(first, LinearDynamics)
    smoother: SmootherResult = dynamics.smooth(run.result, context)
    inputs = dynamics.standardise(context.inputs)
    steps = torch.arange(1, run.seen.shape[1], device=run.seen.device)
    pairs = steps < run.sequences.lengths.to(steps.device)[:, None]
    if context.dt is not None:  # steps over a gap in the grid say nothing simple about A
        pairs = pairs & ((context.dt[:, 1:] / dynamics.interval).round() == 1.0)
    gain = first.input_matrix if dynamics.input_dim else None
    matrix, offset, gain, cov = adapted_transition(first.exact(), smoother, pairs, weight, inputs, gain)
    noise = before.encoder.noise
    if isinstance(noise, ConstantNoise):
        complete = run.sequences.observed.flatten(2).all(-1).to(run.seen.device)  # a missing channel adds noise of another kind
        start = noise.covariance()
        direct, found = adapted_observation(start, first.exact(context), run.measurements.mean, smoother.smoothed, complete, weight, inputs)
        assert isinstance(model.encoder.noise, ConstantNoise)
        model.encoder.noise.set_covariance(found)
        if dynamics.input_dim:
            dynamics.feedthrough.copy_(first.feedthrough + direct)
    dynamics.set_matrices(dynamics.exact()._replace(transition_matrix=matrix, transition_offset=offset, transition_cov=cov))
    if dynamics.input_dim:
        dynamics.input_matrix.copy_(gain)


@torch.no_grad()
def _readout(model: LatentFilter, readout: Readout, run: Run, before: StateSpace, weight: float) -> Readout:
    """The read-out to the data, in standardised units as in the fit, from predictions."""
    context, event = run.sequences.context, model.encoder
    belief = model.with_inputs(run.result.predicted, context)
    belief = Gaussian(belief.mean[:, 1:], belief.cov[:, 1:])  # the first prediction is the initial belief, whatever the data
    values, observed = (part[:, 1:].to(belief.mean.device) for part in run.sequences[:2])
    targets = ((values - event.center) / event.scale).flatten(2)
    states, inputs = stationary_belief(before), model.dynamics.input_dim
    eye = torch.eye(inputs, dtype=states.mean.dtype, device=states.mean.device)
    known = Gaussian(torch.nn.functional.pad(states.mean, (0, inputs)), torch.block_diag(states.cov, eye))
    return adapted_readout(readout, belief, targets, observed.flatten(2), known, weight)
