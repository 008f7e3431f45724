"""The step of many streams on a device is the step on the CPU, recorded or not."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_filter.core.device_step import DeviceStep
from ldm_filter.core.linalg import NotPositiveDefiniteError
from ldm_filter.core.step import Belief, StepFilter, Transition
from tests.core.test_recording import Rerun

CPU = torch.device("cpu")


def spd(rng: np.random.Generator, *shape: int) -> np.ndarray:
    x = rng.normal(size=(*shape, shape[-1]))
    return x @ x.swapaxes(-1, -2) + np.eye(shape[-1])


def problem(n: int, m: int, rng: np.random.Generator) -> tuple[Transition, np.ndarray, np.ndarray]:
    way = Transition(0.4 * rng.normal(size=(n, n)), rng.normal(size=n), spd(rng, n))
    return way, rng.normal(size=(m, n)), rng.normal(size=m)


@pytest.mark.parametrize("own_noise", [False, True])
@pytest.mark.parametrize("n, m", [(1, 1), (3, 2), (2, 3), (9, 9)])
def test_a_run_of_steps_equals_that_on_the_cpu(n: int, m: int, own_noise: bool) -> None:
    rng, streams = np.random.default_rng(0), 5
    model = problem(n, m, rng)
    recorder = Rerun()
    many, few = DeviceStep(*model, CPU, fewest=2, recorder=recorder), StepFilter(*model)
    ours = theirs = Belief(rng.normal(size=(streams, n)), spd(rng, streams, n))
    for _ in range(4):
        z, R = rng.normal(size=(streams, m)), spd(rng, streams, m) if own_noise else spd(rng, m)
        (before, found), (want_before, want) = many(ours, z, R), few(theirs, z, R)
        for x, y in zip((*before, *found.belief, *found[1:5]), (*want_before, *want.belief, *want[1:5]), strict=True):
            assert x.shape == y.shape and x.dtype == y.dtype and x.flags.c_contiguous
            np.testing.assert_allclose(x, y, rtol=1e-11, atol=1e-11)
        assert found.latents == want.latents == m
        ours, theirs = found.belief, want.belief
    assert (recorder.recorded, recorder.replayed) == (1, 4)


def test_few_streams_stay_on_the_cpu() -> None:
    recorder, rng = Rerun(), np.random.default_rng(0)
    step = DeviceStep(*problem(3, 2, rng), CPU, fewest=4, recorder=recorder)
    for lead in ((), (3,)):
        step(Belief(np.zeros((*lead, 3)), np.broadcast_to(np.eye(3), (*lead, 3, 3)).copy()), np.zeros((*lead, 2)), np.eye(2))
    assert recorder.recorded == 0
    step(Belief(np.zeros((4, 3)), np.tile(np.eye(3), (4, 1, 1))), np.zeros((4, 2)), np.eye(2))
    assert recorder.recorded == 1


@pytest.mark.parametrize("n, streams, on_device", [(15, 300, False), (16, 255, False), (16, 256, True)])
def test_where_the_device_pays(n: int, streams: int, on_device: bool) -> None:
    recorder, rng = Rerun(), np.random.default_rng(0)
    step = DeviceStep(*problem(n, 2, rng), CPU, recorder=recorder)
    step(Belief(np.zeros((streams, n)), np.tile(np.eye(n), (streams, 1, 1))), np.zeros((streams, 2)), np.eye(2))
    assert recorder.replayed == on_device


def test_a_failure_is_refused_and_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    step = DeviceStep(*problem(3, 2, rng), CPU, fewest=2, recorder=Rerun())
    belief = Belief(rng.normal(size=(3, 3)), spd(rng, 3, 3))
    kept = [x.copy() for x in belief]
    R = np.tile(np.eye(2), (3, 1, 1))
    R[1] = [[1.0, 50.0], [50.0, 1.0]]
    with pytest.raises(NotPositiveDefiniteError, match="not positive definite"):
        step(belief, np.zeros((3, 2)), R)
    for x, y in zip(belief, kept, strict=True):
        np.testing.assert_array_equal(x, y)
