"""The compiled kernels where one series is long, where threads help, and where a stream asks for a single step."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from ldm_filter.core import native
from ldm_filter.core.backends import backend
from ldm_filter.core.linalg import NotPositiveDefiniteError
from ldm_filter.core.step import Belief, StepFilter, Transition, correct, predict
from tests.core.problems import constant_ssm, normal, random_cov, random_measurements
from tests.core.test_native import moments, parts, sequence

pytestmark = pytest.mark.skipif(not native.available(), reason="the compiled kernels are not installed: a C++ compiler and make install")


@pytest.mark.parametrize("offsets", ["constant", "inputs"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_long_series_in_chunks_is_the_same(dtype: torch.dtype, offsets: str) -> None:
    steps = 5011  # enough for chunks with every instruction set, and no multiple of anything
    ssm, measurements = constant_ssm(4, 2), random_measurements(1, steps, 2)
    if offsets == "inputs":
        ssm = ssm._replace(transition_offset=normal(3, 1, steps, 4))
    leaves = [x.to(dtype) for x in parts(ssm, measurements)]
    extension = native._load()
    assert extension is not None
    with backend("torch"):
        expected = sequence([x.double() for x in leaves], None)
    try:
        for name in extension.instruction_sets():
            extension.use_instruction_set(name)
            for left, right in zip(sequence(leaves, None), expected, strict=True):
                scale = right.abs().max()
                assert_close(left.double() / scale, right / scale, rtol=0.0, atol=1e-12 if dtype == torch.float64 else 3e-6)
    finally:
        extension.use_instruction_set(extension.instruction_sets()[-1])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_threads_that_a_fork_left_behind_are_started_anew() -> None:
    leaves, before = parts(constant_ssm(4, 2), random_measurements(64, 50, 2, varying=True)), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        expected = moments(leaves, None)[0]
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(moments(leaves, None)[0], expected) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    finally:
        torch.set_num_threads(before)


COUNT_THREADS = """
import os
import torch
from tests.core.problems import constant_ssm, random_measurements
from ldm_filter.core.kalman import filter_moments

torch.set_num_threads(3)
torch.ones(1_000_000).sum()
before = len(os.listdir("/proc/self/task"))
filter_moments(constant_ssm(4, 2), random_measurements(64, 50, 2, varying=True))
filter_moments(constant_ssm(4, 2), random_measurements(64, 50, 2))
print(before, len(os.listdir("/proc/self/task")))
"""


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="no list of threads here")
def test_threads_are_those_of_torch() -> None:
    """Two sets of threads would take the cores from each other."""
    answer = subprocess.run([sys.executable, "-c", COUNT_THREADS], capture_output=True, text=True, check=True).stdout.split()
    assert 3 <= int(answer[0]) == int(answer[1])


def model_of(n: int, m: int) -> tuple[Transition, np.ndarray, np.ndarray]:
    A, a, Q, C, c, _ = constant_ssm(n, m)
    return Transition(A.numpy(), a.numpy(), Q.numpy()), C.numpy(), c.numpy()


@pytest.mark.parametrize("streams", [(), (1,), (11,)])
@pytest.mark.parametrize("own_noise", [False, True])
def test_a_compiled_step_is_predict_and_correct(streams: tuple[int, ...], own_noise: bool) -> None:
    n, m = 5, 3
    way, C, c = model_of(n, m)
    belief = Belief(normal(1, *streams, n).numpy(), random_cov(2, *streams, n).numpy())
    z, R = normal(3, *streams, m).numpy(), random_cov(4, *(streams if own_noise else ()), m).numpy()
    before, after = StepFilter(way, C, c)(belief, z, R)
    predicted = predict(belief, way)
    expected = correct(predicted, z, R, C, c)
    for found, wanted in zip((*before, *after.belief, *after[1:]), (*predicted, *expected.belief, *expected[1:]), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-13)


def test_a_step_refuses_what_does_not_fit_and_says_what_failed() -> None:
    way, C, c = model_of(3, 2)
    step = StepFilter(way, C, c)
    with pytest.raises(NotPositiveDefiniteError, match="raise the measurement covariance"):
        step(Belief(np.zeros(3), np.eye(3)), np.zeros(2), -1e3 * np.eye(2))
    for belief, z in ((Belief(np.zeros(4), np.eye(4)), np.zeros(2)), (Belief(np.zeros(3), np.eye(3)), np.zeros(1))):
        with pytest.raises(ValueError, match="do not fit"):
            step(belief, z, np.eye(2))
    with pytest.raises(ValueError, match="not float64"):
        step(Belief(np.zeros(3, np.float32), np.eye(3)), np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match="do not fit together"):
        StepFilter(way, C[:, :2], c)


def test_steps_without_compiled_kernels_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    way, C, c = model_of(3, 2)
    belief, z, R = Belief(np.ones(3), np.eye(3)), np.ones(2), np.eye(2)
    compiled = StepFilter(way, C, c)(belief, z, R)
    monkeypatch.setattr(native, "available", lambda: False)
    plain = StepFilter(way, C, c)(belief, z, R)
    for found, wanted in zip((*compiled[0], *compiled[1].belief), (*plain[0], *plain[1].belief), strict=True):
        np.testing.assert_allclose(found, wanted, rtol=1e-12, atol=1e-14)
