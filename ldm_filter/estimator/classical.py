"""LDMFilter of a model that is known: nothing is learned."""

from __future__ import annotations

from collections.abc import Sequence as Series
from typing import Any, Self

import torch
from filterpy.kalman import KalmanFilter

from ldm_filter.estimator.known import known_labels, known_model, known_readout, matrices_of
from ldm_filter.estimator.parameters import Parameters
from ldm_filter.training import History

__all__ = ["Classical"]


class Classical(Parameters):
    """Made from matrices instead of data."""

    @classmethod
    def from_matrices(
        cls,
        transition_matrix: Any,
        transition_cov: Any,
        observation_matrix: Any,
        measurement_cov: Any,
        initial_mean: Any,
        initial_cov: Any,
        *,
        transition_offset: Any = None,
        observation_offset: Any = None,
        input_matrix: Any = None,
        feedthrough: Any = None,
        channels: Series[str] | None = None,
        inputs: Series[str] | None = None,
        step: float | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> Self:
        """The classical filter of a model that is known: nothing is learned, the data are the measurements, missing channels are exact.

            h_t = A h_{t-1} + a + B u_t + w,  w ~ N(0, Q),   x_t = C h_t + c + D u_t + v,  v ~ N(0, R),   h_0 ~ N(initial_mean, initial_cov)

        Args:
            transition_matrix, transition_cov: A and Q ``(n, n)``, stable or not.
            observation_matrix, measurement_cov: C ``(m, n)`` and R ``(m, m)``.
            initial_mean, initial_cov: the prediction for the first row, ``(n,)`` and ``(n, n)``.
            transition_offset, observation_offset: a ``(n,)`` and c ``(m,)``; default 0.
            input_matrix, feedthrough: B ``(n, u)`` and D ``(m, u)``; default no inputs.
            channels, inputs: names; default by position.
            step: the sampling interval of dated data in seconds, so that a gap on its grid is predicted over; None: a step per row.

        Raises:
            ValueError: shapes that do not fit, numbers that are not finite, a covariance that is not one.

        Example:
            >>> import numpy as np
            >>> from ldm_filter import LDMFilter
            >>> one = np.eye(1)
            >>> walk = LDMFilter.from_matrices(one, 0.1 * one, one, one, np.zeros(1), one)
            >>> walk.filter(np.array([1.0, np.nan, 2.0])).filtered_mean.values.round(3).ravel().tolist()
            [0.5, 0.5, 1.118]
        """
        matrices = {
            "transition_matrix": transition_matrix,
            "transition_cov": transition_cov,
            "observation_matrix": observation_matrix,
            "measurement_cov": measurement_cov,
            "initial_mean": initial_mean,
            "initial_cov": initial_cov,
            "transition_offset": transition_offset,
            "observation_offset": observation_offset,
            "input_matrix": input_matrix,
            "feedthrough": feedthrough,
        }
        model = known_model(matrices, dtype)
        dynamics = model.dynamics
        sizes: dict[str, Any] = {"state_dim": dynamics.state_dim, "latent_dim": dynamics.latent_dim}
        made = cls(**sizes, encoder="direct", dynamics="matrices", readout="linear", dtype=dtype)  # type: ignore[call-arg]
        made.model_, made.readout_, made.history_ = model, known_readout(model), History()
        made.labels_ = known_labels(channels, dynamics.latent_dim, step)
        made.input_labels_ = known_labels(inputs, dynamics.input_dim, None, "inputs") if dynamics.input_dim else None
        made.target_readout_, made.target_names_ = None, []
        dynamics.set_interval(1.0 if step is None else step)
        return made

    @classmethod
    def from_filterpy(cls, source: KalmanFilter, predict_first: bool = True, **options: Any) -> Self:
        """A ``filterpy.kalman.KalmanFilter`` as an LDMFilter: batches, gaps, smoothing and forecasts for the same model.

        Args:
            source: not changed.
            predict_first: its x and P are the belief *before* a ``predict()`` for the first row, as in ``source.batch_filter``; False: they are
                the prediction for the first row, as :meth:`to_filterpy` has it.
            options: ``channels``, ``inputs``, ``step``, ``dtype`` of :meth:`from_matrices`.

        Raises:
            TypeError: no such filter. ValueError: a fading memory, or correlated noises.
        """
        return cls.from_matrices(**matrices_of(source, predict_first), **options)
