"""Metrics of identifiability against closed forms and scipy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import spatial

from ldm_filter import metrics


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


# --- affine R2 both ways


def test_an_affine_map_is_found_both_ways_and_on_other_samples() -> None:
    truth, matrix = normal(2, 50, 3), normal(3, 3, seed=1)
    learned = truth @ matrix.T + 2.0
    both = metrics.affine_r2_both_ways(learned[0], truth[0], learned[1], truth[1])
    assert both == pytest.approx((1.0, 1.0))


def test_superfluous_and_lost_latents_show_in_one_direction_each() -> None:
    truth = normal(2, 20_000, 2)
    more = np.concatenate([truth, normal(2, 20_000, 2, seed=1)], axis=-1)
    assert metrics.affine_r2_both_ways(more[0], truth[0], more[1], truth[1]) == pytest.approx((1.0, 0.5), abs=2e-3)
    less = truth[..., :1]
    assert metrics.affine_r2_both_ways(less[0], truth[0], less[1], truth[1]) == pytest.approx((0.5, 1.0), abs=2e-3)


def test_affine_r2_of_a_square_is_the_closed_form() -> None:
    """z^3 of a standard normal: the best line explains 9/15 of it, and it explains 9/15 of z."""
    truth = normal(400_000, 1)
    assert metrics.affine_r2_both_ways(truth**3, truth, truth**3, truth) == pytest.approx((0.6, 0.6), abs=0.01)


# --- MCC


def test_mcc_is_one_up_to_order_sign_and_scale_only() -> None:
    truth = normal(500, 3)
    assert metrics.mcc(truth[:, [2, 0, 1]] * [-3.0, 0.1, 5.0] + 1.0, truth) == pytest.approx(1.0)
    independent = normal(200_000, 2)
    turned = independent @ np.array([[1.0, 1.0], [-1.0, 1.0]]) / math.sqrt(2)
    assert metrics.mcc(turned, independent) == pytest.approx(math.sqrt(0.5), abs=5e-3)


def test_mcc_matches_each_truth_with_its_own_estimate() -> None:
    """Both truths correlate best with the first estimate; only one may have it."""
    a, b = normal(2, 300_000)
    truth = np.stack([a, 0.8 * a + 0.6 * b], axis=-1)
    assert metrics.mcc(np.stack([a, b], axis=-1), truth) == pytest.approx((1.0 + 0.6) / 2, abs=5e-3)


# --- Procrustes


def test_procrustes_is_scipys_and_ignores_similarities() -> None:
    x, y = normal(40, 3), normal(40, 3, seed=1)
    assert metrics.procrustes_disparity(x, y) == pytest.approx(spatial.procrustes(x, y)[2])
    assert metrics.procrustes_disparity(x, y) == pytest.approx(metrics.procrustes_disparity(y, x))
    rotation = np.linalg.qr(normal(3, 3, seed=2))[0]
    assert metrics.procrustes_disparity(3.0 * x @ rotation + 5.0, x) == pytest.approx(0.0, abs=1e-12)


def test_procrustes_of_a_stretched_plane_is_the_closed_form() -> None:
    """White X and Y = X diag(1, s): 1 - (1 + s)^2 / (2 (1 + s^2))."""
    x = np.linalg.qr(normal(100, 2) - normal(100, 2).mean(0))[0]
    x -= x.mean(0)
    x = np.linalg.qr(x)[0]
    assert metrics.procrustes_disparity(x * [1.0, 3.0], x) == pytest.approx(1 - 16 / 20)


def test_procrustes_pads_the_smaller_side() -> None:
    x = normal(30, 3)
    assert metrics.procrustes_disparity(x[:, :2], x) == pytest.approx(spatial.procrustes(x * [1, 1, 0], x)[2])


# --- dynamics


def test_dynamics_r2_is_one_for_the_same_system_in_other_coordinates() -> None:
    transition, matrix = np.array([[0.9, -0.3], [0.3, 0.9]]), np.array([[2.0, 1.0], [0.0, 0.5]])
    truth = normal(200, 2)
    learned = truth @ matrix.T + 1.0
    forth, back = metrics.affine_fit(learned, truth), metrics.affine_fit(truth, learned)
    moved = matrix @ transition @ np.linalg.inv(matrix)
    offset = np.ones(2) - moved @ np.ones(2)
    assert metrics.dynamics_r2(lambda z: z @ moved.T + offset, truth, truth @ transition.T, forth, back) == pytest.approx(1.0)


def test_dynamics_r2_of_standing_still_is_the_closed_form() -> None:
    """f = 0.5 x against the identity: 1 - 0.25 / 0.25 = 0."""
    truth = normal(200, 2)
    fit = metrics.affine_fit(truth, truth)
    assert metrics.dynamics_r2(lambda z: z, truth, 0.5 * truth, fit, fit) == pytest.approx(0.0, abs=0.02)
    centred = truth - truth.mean(0)
    assert metrics.dynamics_r2(lambda z: z, centred, 0.5 * centred, fit, fit) == pytest.approx(0.0, abs=1e-9)


# --- eigenvalues


def test_eigenvalue_error_ignores_the_basis_and_superfluous_states() -> None:
    true = np.diag([0.9, 0.5])
    basis = normal(2, 2)
    assert metrics.eigenvalue_error(basis @ true @ np.linalg.inv(basis), true) == pytest.approx(0.0, abs=1e-12)
    assert metrics.eigenvalue_error(np.diag([0.1, 0.52, 0.88]), true) == pytest.approx(0.02)


def test_eigenvalue_error_matches_one_to_one() -> None:
    assert metrics.eigenvalue_error(np.diag([0.5, 0.0]), np.diag([0.5, 0.5])) == pytest.approx(0.5)


# --- injectivity


def test_local_injectivity_is_the_smallest_singular_value() -> None:
    matrix = torch.as_tensor(normal(5, 3))
    found = metrics.local_injectivity(lambda x: x @ matrix.mT, torch.zeros(4, 3, dtype=torch.float64))
    values = np.linalg.svd(matrix.numpy(), compute_uv=False)
    assert found.smallest == pytest.approx(np.full(4, values[-1])) and found.condition == pytest.approx(np.full(4, values[0] / values[-1]))


def test_local_injectivity_of_a_nonlinear_map_varies_and_finds_the_fold() -> None:
    points = torch.tensor([[1.0, 2.0], [0.0, 3.0]], dtype=torch.float64)
    found = metrics.local_injectivity(lambda x: torch.stack([x[:, 0] ** 2, x[:, 1]], dim=-1), points)
    assert found.smallest == pytest.approx([1.0, 0.0])  # Jacobian diag(2 x, 1)
    assert found.condition == pytest.approx([2.0, np.inf])


def test_local_injectivity_along_directions_is_that_of_the_composition() -> None:
    outer, inner = torch.as_tensor(normal(2, 5)), torch.as_tensor(normal(5, 2, seed=1))
    points = torch.as_tensor(normal(3, 5))
    found = metrics.local_injectivity(lambda x: x @ outer.mT, points, inner.expand(3, 5, 2))
    assert found.smallest == pytest.approx(np.full(3, np.linalg.svd((outer @ inner).numpy(), compute_uv=False)[-1]))
    with pytest.raises(ValueError, match="directions have shape"):
        metrics.local_injectivity(lambda x: x, points, inner.expand(4, 5, 2))


def test_neighbour_ratio_is_one_for_any_similarity_and_sees_a_fold() -> None:
    truth = normal(300, 2)
    rotation = np.linalg.qr(normal(2, 2, seed=1))[0]
    assert metrics.neighbour_ratio(3.0 * truth @ rotation, truth, 1.0) == pytest.approx(1.0)
    line = np.concatenate([np.arange(1.0, 6.0), -np.arange(1.0, 6.0)])[:, None]
    ratios = [metrics.neighbour_ratio(np.abs(line), line, place) for place in (0.0, 0.5, 1.0)]
    assert ratios == pytest.approx([2.0, 6.0, 10.0])  # +-i lie 2 i apart, true neighbours 1


# --- refusals


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.mcc(np.zeros((5, 1)), np.zeros((5, 2))), "estimate has 1 latents and truth has 2"),
        (lambda: metrics.mcc(np.ones((5, 1)), normal(5, 1)), "estimate is constant in latent 0"),
        (lambda: metrics.mcc(normal(5, 1), normal(4, 1)), "same leading axes"),
        (lambda: metrics.procrustes_disparity(np.ones((5, 2)), normal(5, 2)), "estimate has the same value"),
        (lambda: metrics.procrustes_disparity(np.full((5, 2), np.nan), normal(5, 2)), "NaN"),
        (lambda: metrics.eigenvalue_error(np.eye(1), np.eye(2)), "estimate has 1 states and truth has 2"),
        (lambda: metrics.eigenvalue_error(np.ones((2, 3)), np.eye(2)), "square matrix"),
        (lambda: metrics.neighbour_ratio(normal(5, 1), np.zeros((5, 1))), "drop repeated samples"),
        (lambda: metrics.neighbour_ratio(normal(5, 1), normal(5, 1), 2.0), "quantile is 2.0"),
        (lambda: metrics.local_injectivity(lambda x: x, torch.zeros(3)), "flatten series and time first"),
        (lambda: metrics.local_injectivity(lambda x: x.sqrt(), torch.zeros(2, 1)), "Jacobian of function"),
    ],
)
def test_bad_input_is_refused_by_name(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
