"""Gates against outliers: their edges, their weights, what they cost and what they save."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import chi2

from ldm_filter.core.gating import KINDS, Gate, chi2_quantile, chi2_tail, gated_weight
from ldm_filter.core.kalman import predict as predict_tensors
from ldm_filter.core.kalman import update
from ldm_filter.core.step import Belief, Corrected, Transition, compose, correct, predict, select
from ldm_filter.types import Gaussian

SEEDS = range(5)


def tracking(seed: int, steps: int = 2000) -> tuple[np.ndarray, np.ndarray, Transition, np.ndarray, np.ndarray]:
    """A damped random walk and its speed, seen in two noisy ways: truth, measurements, model."""
    rng = np.random.default_rng(seed)
    A = np.array([[1.0, 0.1], [-0.02, 0.97]])
    way = Transition(A, np.zeros(2), np.diag([1e-4, 4e-2]))
    C, R = np.array([[1.0, 0.0], [1.0, 0.3]]), np.diag([0.05, 0.1])
    h, truth = np.zeros(2), []
    for _ in range(steps):
        h = A @ h + rng.multivariate_normal(np.zeros(2), way.cov)
        truth.append(h)
    seen = np.array(truth) @ C.T + rng.multivariate_normal(np.zeros(2), R, steps)
    return np.array(truth), seen, way, C, R


def run(seen: np.ndarray, way: Transition, C: np.ndarray, R: np.ndarray, gate: Gate | None) -> tuple[np.ndarray, list[Corrected]]:
    belief, outside, found = Belief(np.zeros(2), np.eye(2)), np.zeros(()), []
    for z in seen:
        found.append(correct(predict(belief, way), z, R, C, np.zeros(2), gate, outside))
        belief, outside = found[-1].belief, found[-1].run
    return np.array([one.belief.mean for one in found]), found


def error(estimate: np.ndarray, truth: np.ndarray) -> float:
    return float(np.sqrt(np.square(estimate - truth).mean()))


# --------------------------------------------------------------------------------------------------------------- formulas


@pytest.mark.parametrize("m", [1, 2, 5, 40])
def test_chi_square_equals_scipy(m: int):
    for probability in (0.5, 0.95, 0.999, 1 - 1e-9):
        assert chi2_quantile(probability, m) == pytest.approx(chi2.ppf(probability, m), rel=1e-9)
    distance = np.array([0.0, 0.3, m, 60.0])
    np.testing.assert_allclose(chi2_tail(distance, m), chi2.sf(distance, m), rtol=1e-10)
    assert np.isnan(chi2_tail(np.array(np.nan), m))


def test_a_step_equals_the_tensors():
    rng = np.random.default_rng(0)
    n, m, streams = 4, 3, 5
    A, Q, P, R = rng.normal(size=(n, n)), np.eye(n) * 0.3, rng.normal(size=(streams, n, n)), rng.normal(size=(streams, m, m))
    P, R = P @ P.swapaxes(1, 2) + np.eye(n), R @ R.swapaxes(1, 2) + 0.1 * np.eye(m)
    C, c, a, mean, z = (rng.normal(size=size) for size in ((m, n), (m,), (n,), (streams, n), (streams, m)))
    before = predict(Belief(mean, P), Transition(A, a, Q))
    after = correct(before, z, R, C, c)
    tensors = [torch.from_numpy(x) for x in (mean, P, A, a, Q)]
    want = predict_tensors(Gaussian(*tensors[:2]), *tensors[2:])
    filtered, density = update(want, Gaussian(torch.from_numpy(z), torch.from_numpy(R)), torch.from_numpy(C), torch.from_numpy(c))
    for found, expected in ((before, want), (after.belief, filtered)):
        for one, other in zip(found, expected, strict=True):
            np.testing.assert_allclose(one, other.numpy(), rtol=1e-11, atol=1e-11)
    np.testing.assert_allclose(after.log_likelihood, density.numpy(), rtol=1e-11)
    seen = np.array([True, False, True, True, False])
    kept = select(seen, after, before, np.full(streams, 2.0))
    np.testing.assert_array_equal(kept.belief.mean[~seen], before.mean[~seen])
    np.testing.assert_array_equal(kept.run, [0, 2, 0, 0, 2])


def test_latents_that_were_not_seen_are_left_out():
    rng = np.random.default_rng(3)
    C, c, z, P = rng.normal(size=(3, 4)), rng.normal(size=3), rng.normal(size=(2, 3)), np.eye(4)
    R = np.diag([0.2, 0.3, 0.4]) + 0.05
    mask = np.array([[True, False, True], [False, False, False]])
    before = Belief(rng.normal(size=(2, 4)), np.broadcast_to(P, (2, 4, 4)))
    for gate in (None, Gate("hard", 1 - 1e-15)):
        found = correct(before, np.where(mask, z, np.nan), R, C, c, gate, 0, mask)
        keep = [0, 2]
        want = correct(Belief(before.mean[0], P), z[0, keep], R[np.ix_(keep, keep)], C[keep], c[keep])
        np.testing.assert_allclose(found.belief.mean[0], want.belief.mean, rtol=1e-12)
        np.testing.assert_allclose(found.log_likelihood, [want.log_likelihood, 0.0], rtol=1e-12)
        np.testing.assert_array_equal(found.latents, [2, 0])
        np.testing.assert_allclose(found.belief.mean[1], before.mean[1])


def test_two_transitions_as_one():
    _, _, way, *_ = tracking(0, 2)
    way = way._replace(offset=np.array([0.3, -0.1]))
    start = Belief(np.array([1.0, 2.0]), np.array([[2.0, 0.3], [0.3, 1.0]]))
    for one, other in zip(predict(start, compose(way, way)), predict(predict(start, way), way), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-13)


def test_inflation_ends_on_the_edge():
    rng = np.random.default_rng(1)
    gate, C, cov, R = Gate("inflate", 0.99), rng.normal(size=(3, 4)), np.eye(4), np.diag([0.1, 0.2, 0.3])
    e = 9.0 * rng.normal(size=3)

    def distance(weight: float) -> float:
        return float(e @ np.linalg.solve(C @ cov @ C.T + R / weight, e))

    weight = gated_weight(gate, cov, e, R, C, np.array(distance(1.0)), 3)
    assert distance(float(weight)) == pytest.approx(gate.threshold(3), rel=1e-6)


def test_student_t_weight_is_the_fixed_point_of_a_scalar():
    gate, P, R, e = Gate("student-t", dof=3.0), 0.5, 0.2, 8.0

    def off(weight: float) -> float:
        kept = (R / weight) / (P + R / weight)
        return weight - 4.0 / (3.0 + (kept * e) ** 2 / R + kept * P / R)

    found = gated_weight(gate, np.array([[P]]), np.array([e]), np.array([[R]]), np.eye(1), np.array(e * e / (P + R)), 1)
    assert float(found) == pytest.approx(brentq(off, 1e-6, 0.5), rel=1e-3)


def test_inside_the_gate_nothing_changes():
    _, seen, way, C, R = tracking(0, 300)
    plain, _ = run(seen, way, C, R, None)
    for kind in KINDS:
        gated, found = run(seen, way, C, R, Gate(kind, 1 - 1e-12))
        np.testing.assert_allclose(gated, plain, rtol=1e-12, atol=1e-12)
        assert all(one.weight == 1.0 and one.run == 0 for one in found)


# ---------------------------------------------------------------------------------------------------------------- figures


def test_probability_is_the_share_that_passes():
    shares = []
    for seed in SEEDS:
        _, seen, way, C, R = tracking(seed)
        shares.append(np.mean([one.distance <= Gate("hard", 0.99).threshold(2) for one in run(seen, way, C, R, None)[1]]))
    assert np.mean(shares) == pytest.approx(0.99, abs=0.003)


@pytest.mark.parametrize("kind", KINDS)
def test_gross_outliers_cost_less_than_a_tenth_and_none_less_than_two_per_cent(kind: str):
    gross, none, without = [], [], []
    for seed in SEEDS:
        truth, seen, way, C, R = tracking(seed)
        rng = np.random.default_rng(100 + seed)
        hit = rng.random(len(seen)) < 0.01
        spoiled = np.where(hit[:, None], seen + 20.0 * rng.normal(size=seen.shape), seen)
        clean = error(run(seen, way, C, R, None)[0], truth)
        gross.append(error(run(spoiled, way, C, R, Gate(kind))[0], truth) / clean)
        none.append(error(run(seen, way, C, R, Gate(kind))[0], truth) / clean)
        without.append(error(run(spoiled, way, C, R, None)[0], truth) / clean)
    assert np.mean(without) > 2.0  # the outliers do hurt
    assert np.mean(gross) < 1.10, gross
    assert np.mean(none) < 1.02, none


@pytest.mark.parametrize("size", [3.0, 30.0, 3000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_a_level_shift_is_followed_within_twenty_steps(kind: str, size: float):
    truth, seen, way, C, R = tracking(0, 260)
    walk = way._replace(matrix=np.array([[1.0, 0.1], [0.0, 0.97]]))
    truth, seen = truth.copy(), seen.copy()
    truth[200:, 0] += size
    seen[200:] += size * C[:, 0]
    gated, found = run(seen, walk, C, R, Gate(kind))
    usual = np.abs(gated[100:200, 0] - truth[100:200, 0]).max()
    assert np.abs(gated[219:, 0] - truth[219:, 0]).max() < 1.5 * usual
    assert found[200].run == 1
    assert found[-1].run == 0


def test_a_model_that_never_fits_is_not_locked_out():
    """Every measurement is outside: after its patience the gate leaves the plain filter."""
    _, seen, way, C, R = tracking(0, 400)
    gate = Gate("hard", 0.999, patience=3)
    far = seen + 1e3 * np.where(np.arange(400) % 2, 1.0, -1.0)[:, None]
    _, found = run(far, way, C, R, gate)
    assert [float(one.weight) for one in found[:5]] == [0.0, 0.0, 0.0, 1.0, 1.0]
    assert all(one.weight == 1.0 for one in found[5:])


@pytest.mark.parametrize(
    ("arguments", "failure"),
    [
        ({"kind": "soft"}, ValueError),
        ({"probability": 1.0}, ValueError),
        ({"probability": float("nan")}, ValueError),
        ({"patience": 0}, ValueError),
        ({"patience": 2.0}, TypeError),
        ({"dof": 0.0}, ValueError),
    ],
)
def test_gate_refuses(arguments: dict, failure: type[Exception]):
    with pytest.raises(failure, match="expected"):
        Gate(**arguments)
