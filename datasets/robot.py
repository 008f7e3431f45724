"""A synthetic robot, five states seen through two noisy channels, with its true states: exactness on other people's data.

    x_{t+1} = A x_t + b_t + w,  w ~ N(0, Q)        z_t = C x_t + d + v,  v ~ N(0, R)        x_0 ~ N(0, I)

Two traps in the file that ships: ``observations[0]`` is masked and ``observations[t + 1]`` is the one that belongs to
``states[t]``; and its covariances are where somebody's EM began and ended, not those that made the data.
"""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from datasets.packages import require
from ldm_filter.types import Gaussian, StateSpace

__all__ = ["Robot", "load"]


class Robot(NamedTuple):
    """Aligned data: row t of everything is the same time step.

    Attributes:
        measurements: ``(500, 2)`` float64.
        states: ``(500, 5)`` float64, the truth.
        model: matrices, offsets and initial belief are true; the index t of the offset leads into row t, as everywhere in
            this package (index 0 is unused and 0). ``transition_cov`` is estimated from the true states.
        measurement_cov: ``(2, 2)``, estimated from the true states.
    """

    measurements: Tensor
    states: Tensor
    model: StateSpace
    measurement_cov: Tensor


def load() -> Robot:
    """The data of pykalman's ``load_robot``, rightly paired.

        Q = mean_t w_t w_t',  w_t = x_{t+1} - A x_t - b_t            R = mean_t v_t v_t',  v_t = z_t - C x_t - d

    Returns:
        ``Robot``, torch float64, no units.

    Raises:
        ModuleNotFoundError: pykalman is not installed.

    Source:
        Pieter Abbeel, CS 287 Advanced Robotics (2011); ships with pykalman (BSD-3-Clause).

    >>> load().states.shape
    torch.Size([500, 5])
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)  # pykalman leaves its description file open
        raw = require("pykalman.datasets").load_robot()
    states = _tensor(raw.states)
    measurements = _tensor(raw.observations[1:])
    matrix, observation_matrix, observation_offset = _tensor(raw.transition_matrix), _tensor(raw.observation_matrix), _tensor(raw.observation_offset)
    offset = torch.zeros_like(states)
    offset[1:] = _tensor(raw.transition_offsets)[: len(states) - 1]
    transition_noise = states[1:] - states[:-1] @ matrix.mT - offset[1:]
    measurement_noise = measurements - states @ observation_matrix.mT - observation_offset
    model = StateSpace(
        transition_matrix=matrix,
        transition_offset=offset[None],
        transition_cov=transition_noise.mT @ transition_noise / len(transition_noise),
        observation_matrix=observation_matrix,
        observation_offset=observation_offset,
        initial=Gaussian(_tensor(raw.initial_state_mean), _tensor(raw.initial_state_covariance)),
    )
    return Robot(measurements, states, model, measurement_noise.mT @ measurement_noise / len(measurement_noise))


def _tensor(values: np.ndarray) -> Tensor:
    """A float64 copy; a masked entry is an error here, because the aligned part has none."""
    if np.ma.count_masked(values):
        raise ValueError("the robot data hold masked entries where none were expected; the file that pykalman ships has changed")
    return torch.tensor(np.asarray(values, dtype=np.float64))
