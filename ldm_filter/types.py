"""The shapes that every room shares: plain named tuples of tensors, batch first.

Shape conventions used throughout the package
---------------------------------------------
``B`` series in a batch, ``T`` time steps, ``n`` state dimension, ``m`` latent (measurement) dimension. Vectors are
``(B, T, dim)``, covariances ``(B, T, dim, dim)``; there are no column vectors. A leading dimension of size 1 is
shared by the whole batch (or by all times) and broadcasts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = [
    "Context",
    "FilterResult",
    "Gaussian",
    "Labels",
    "Prediction",
    "Sequences",
    "SmootherResult",
    "Sources",
    "StateSpace",
    "VonMisesFisher",
]


class Context(NamedTuple):
    """What is known about the steps of a batch besides the observations.

    Attributes:
        dt: time from the step before to this one, ``(1 | B, T)`` float64, positive, in seconds (or the unit of a numeric time axis). At index 0
            it is the time since what came before the batch, which only a belief carried into it makes use of. None: every step is one
            sampling interval.
        inputs: known controls and exogenous series u_t ``(1 | B, T, u)`` in their own units, in force over the interval that ends at step t.
            None: there are none.
        targets: what the state shall say, ``(B, T, D)`` in its own units, NaN where unknown; training alone looks at it.
    """

    dt: Tensor | None = None
    inputs: Tensor | None = None
    targets: Tensor | None = None

    def steps(self, start: int, stop: int | None = None) -> Context:
        """The context of steps ``start`` to ``stop``."""
        return Context(*(None if part is None else part[:, start:stop] for part in self))


class Gaussian(NamedTuple):
    """A batch of Gaussians N(mean, cov).

    Attributes:
        mean: ``(..., D)``.
        cov: ``(..., D, D)``, symmetric positive definite; its leading dimensions broadcast against those of ``mean``.
    """

    mean: Tensor
    cov: Tensor


class StateSpace(NamedTuple):
    """A linear-Gaussian state-space model, possibly varying in time and over the batch.

        h_t = A_t h_{t-1} + a_t + w_t,   w_t ~ N(0, Q_t)
        z_t = C_t h_t     + c_t + v_t,   v_t ~ N(0, R_t)        (R_t belongs to the measurement, not to the model)

    The matrices at index ``t`` lead *into* step ``t``; index 0 of the transition is unused, because ``initial`` is the
    prediction for the first row.

    Attributes:
        transition_matrix: A, ``(n, n)``, ``(1 | B, 1 | T, n, n)``.
        transition_offset: a, ``(n,)`` or ``(1 | B, 1 | T, n)``. A mean b of the state means a = (I - A) b.
        transition_cov: Q, shaped as A.
        observation_matrix: C, ``(m, n)`` or ``(1 | B, 1 | T, m, n)``.
        observation_offset: c, ``(m,)`` or ``(1 | B, 1 | T, m)``.
        initial: p(h_0) before any observation, mean ``(n,)`` or ``(1 | B, n)``, cov ``(n, n)`` or ``(1 | B, n, n)``.
    """

    transition_matrix: Tensor
    transition_offset: Tensor
    transition_cov: Tensor
    observation_matrix: Tensor
    observation_offset: Tensor
    initial: Gaussian


class VonMisesFisher(NamedTuple):
    """A batch of von Mises-Fisher distributions on the unit sphere, p(z) = C_D(kappa) exp(kappa mu'z).

    Attributes:
        direction: mu, ``(..., D)``, of unit length.
        concentration: kappa, positive, broadcasts against the leading dimensions of ``direction``.
    """

    direction: Tensor
    concentration: Tensor


class Sources(NamedTuple):
    """A batch of independent sources, p(z) = prod_d p_d(z_d - location_d).

    Attributes:
        location: ``(..., D)``.
        family: ``"gaussian" | "logistic" | "laplace"``, the density p_d in its standard form (scale 1).
    """

    location: Tensor
    family: str


class Prediction(NamedTuple):
    """p(z_t | z_<t) of every step in closed form: what a latent model that is no linear state-space model hands to the objective.

    Attributes:
        density: of z_t ``(B, T, m)``; a covariance or concentration may be shared. Entry t depends on the latents before t only, and
            a Gaussian includes R_t where the model knows of it.
        counted: bool ``(B, T)``, the steps that have a prediction: those observed, for a model of pairs those with an observed
            neighbour before them.
    """

    density: Gaussian | VonMisesFisher | Sources
    counted: Tensor


class FilterResult(NamedTuple):
    """What the filter knows at every step; all fields have length T.

    Attributes:
        predicted: p(h_t | y_<t), ``(B, T, n)``; ``predicted[0]`` is the initial belief.
        filtered: p(h_t | y_<=t), ``(B, T, n)``.
        projected: p(z_t | z_<t) *including* R_t, ``(B, T, m)``.
        log_likelihood: log p(z_t | z_<t) of the observed entries, ``(B, T)``, with all constants; 0 where nothing is seen.
    """

    predicted: Gaussian
    filtered: Gaussian
    projected: Gaussian
    log_likelihood: Tensor


class SmootherResult(NamedTuple):
    """Fixed-interval smoothing.

    Attributes:
        smoothed: p(h_t | y_1..T), ``(B, T, n)``.
        gain: RTS gain G_t = P_t|t A' P_{t+1|t}^-1, ``(1 | B, T - 1, n, n)``: Cov(h_t, h_{t+1} | y) = G_t P^s_{t+1}.
    """

    smoothed: Gaussian
    gain: Tensor


class Sequences(NamedTuple):
    """A padded batch of series, as the models see it.

    Attributes:
        values: ``(B, T, *event)`` floating point in the data's units; ``event`` is ``(channel,)`` for sensors and
            ``(y, x)`` or ``(y, x, colour)`` for frames. Missing entries and padding hold 0, never NaN.
        observed: bool, shape of ``values``; False where an entry is missing or padding.
        lengths: ``(B,)`` integer, the true number of steps of each series.
        context: time steps and inputs, where the data has them.
    """

    values: Tensor
    observed: Tensor
    lengths: Tensor
    context: Context = Context()


class Labels(NamedTuple):
    """What the user's container said about the numbers, kept so that results carry it again.

    Attributes:
        kind: ``"array" | "tensor" | "frame" | "long" | "dataarray" | "dataset"``.
        channels: names of the channels, or () for frames (their event dims are in ``event_dims``).
        event_dims: dimension names of one observation, ``("channel",)`` or ``("y", "x")``.
        series: names of the series, or None where the input was a single series.
        times: one index per series (``pandas.Index`` or array), its length the true number of steps.
        time_name: name of the time dimension or index.
        ragged: True where the input was a list: results are then a list again.
        attrs: anything else worth carrying (units, the zone of the times).
    """

    kind: str
    channels: tuple[str, ...]
    event_dims: tuple[str, ...]
    series: tuple[Any, ...] | None
    times: tuple[Any, ...]
    time_name: str
    ragged: bool
    attrs: dict[str, Any]
