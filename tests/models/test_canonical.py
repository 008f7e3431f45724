"""The canonical form: what it promises, and that equivalent realisations share it."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.linalg import schur
from torch import Tensor

from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.linalg import stationary
from ldm_filter.models.canonical import canonical_transform, change_basis
from ldm_filter.types import Gaussian, StateSpace
from tests.models.problems import assert_same_model, cast, rng, stable_model


def canonical(ssm: StateSpace, diagonal_cov: bool = False) -> StateSpace:
    return change_basis(ssm, canonical_transform(ssm, diagonal_cov))


def of_modes(*blocks: Tensor, m: int = 2, seed: int = 0) -> StateSpace:
    """A model with given blocks of A, in a random basis."""
    transition = torch.block_diag(*blocks).double()
    n = len(transition)
    ssm = stable_model(n, m, seed)
    ssm = ssm._replace(transition_matrix=transition, transition_offset=torch.zeros(n, dtype=torch.float64))
    return change_basis(ssm, torch.randn(n, n, generator=rng(seed + 9), dtype=torch.float64))


def turn(rho: float, period: float) -> Tensor:
    a = 2 * math.pi / period
    return rho * torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]])


MODELS = [
    pytest.param(stable_model(n, m, seed), id=f"random-{n}-{m}-{seed}") for n, m, seed in ((1, 1, 0), (2, 1, 1), (5, 2, 2), (8, 3, 3), (20, 4, 4))
] + [
    pytest.param(of_modes(turn(0.99, 20), turn(0.9, 7), torch.tensor([[0.95]]), torch.tensor([[-0.5]])), id="modes"),
    pytest.param(of_modes(turn(0.98, 12), turn(0.95, 31)), id="two rotations"),
]


@pytest.mark.parametrize("ssm", MODELS)
def test_unit_stationary_covariance_and_modes_in_order(ssm: StateSpace) -> None:
    form = canonical(ssm)
    n = len(form.transition_matrix)
    cov = stationary(form.transition_matrix, form.transition_cov)
    torch.testing.assert_close(cov, torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-8)
    a = form.transition_matrix
    starts, moduli, row = [], [], 0
    while row < n:
        size = 2 if row + 1 < n and abs(float(a[row + 1, row])) > 1e-9 else 1
        starts.append((row, size))
        moduli.append(float(torch.linalg.eigvals(a[row : row + size, row : row + size]).abs().max()))
        assert float(a[row + size :, row : row + size].abs().sum()) < 1e-7  # block upper triangular
        row += size
    assert moduli == sorted(moduli, reverse=True)
    truth = torch.linalg.eigvals(ssm.transition_matrix)
    assert sum(size == 2 for _, size in starts) == int((truth.imag > 1e-9).sum())
    torch.testing.assert_close(torch.sort(torch.linalg.eigvals(a).abs()).values, torch.sort(truth.abs()).values, rtol=1e-8, atol=1e-8)
    columns = form.observation_matrix
    for row, size in starts:
        if size == 2:
            one, two = columns[:, row], columns[:, row + 1]
            assert float(one @ two) == pytest.approx(0.0, abs=1e-8)
            assert float(one.norm()) >= float(two.norm()) - 1e-9
    largest = columns.gather(0, columns.abs().argmax(0, keepdim=True))
    # (with one latent the weaker state of an oscillation is not seen at all: its sign is open)
    assert bool((largest > -1e-9).all())


@pytest.mark.parametrize("ssm", MODELS)
def test_the_observations_do_not_notice(ssm: StateSpace) -> None:
    form = canonical(ssm)
    m = len(ssm.observation_offset)
    z = Gaussian(torch.randn(2, 30, m, generator=rng(), dtype=torch.float64), 0.3 * torch.eye(m, dtype=torch.float64))
    before, after = filter_sequence(ssm, z), filter_sequence(form, z)
    torch.testing.assert_close(after.log_likelihood, before.log_likelihood, rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(after.projected.mean, before.projected.mean, rtol=1e-8, atol=1e-8)
    transform = canonical_transform(ssm)
    torch.testing.assert_close(after.filtered.mean, before.filtered.mean @ transform.mT, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ssm", MODELS)
def test_it_is_invertible_and_idempotent(ssm: StateSpace) -> None:
    transform = canonical_transform(ssm)
    form = change_basis(ssm, transform)
    assert_same_model(change_basis(form, torch.linalg.inv(transform)), ssm, 1e-8)
    again = canonical_transform(form)
    seen = form.observation_matrix.norm(dim=0) > 1e-6
    torch.testing.assert_close(again.abs(), torch.eye(len(again), dtype=torch.float64), rtol=0, atol=1e-6)
    torch.testing.assert_close(again.diagonal()[seen], torch.ones(int(seen.sum()), dtype=torch.float64), rtol=0, atol=1e-6)


@pytest.mark.parametrize("ssm", [model for model in MODELS if "random-2-1" not in str(model.id)])
def test_equivalent_realisations_share_it(ssm: StateSpace) -> None:
    form = canonical(ssm)
    n = len(ssm.transition_offset)
    for seed in range(3):
        other = change_basis(ssm, torch.randn(n, n, generator=rng(seed + 50), dtype=torch.float64))
        assert_same_model(canonical(other), form, 1e-5)


def test_what_is_left_open_is_the_sign_of_a_state_that_is_not_seen() -> None:
    """One latent sees one state of an oscillation; the sign of the other one does not show in C."""
    ssm = stable_model(2, 1, 1)._replace(transition_matrix=turn(0.9, 8).double())
    form = canonical(ssm)
    assert float(form.observation_matrix[0, 1]) == pytest.approx(0.0, abs=1e-9)
    for seed in range(3):
        other = canonical(change_basis(ssm, torch.randn(2, 2, generator=rng(seed), dtype=torch.float64)))
        torch.testing.assert_close(other.transition_matrix.abs(), form.transition_matrix.abs(), rtol=1e-7, atol=1e-7)
        torch.testing.assert_close(other.observation_matrix.abs(), form.observation_matrix.abs(), rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("ssm", MODELS)
def test_a_diagonal_q_stays_diagonal(ssm: StateSpace) -> None:
    form = canonical(ssm, diagonal_cov=True)
    n = len(form.transition_matrix)
    torch.testing.assert_close(stationary(form.transition_matrix, form.transition_cov), torch.eye(n, dtype=torch.float64), rtol=0, atol=1e-8)
    variances = form.transition_cov.diagonal()
    torch.testing.assert_close(form.transition_cov, torch.diag(variances), rtol=0, atol=1e-9)
    assert bool((variances.diff() >= -1e-12).all())
    other = change_basis(ssm, torch.randn(n, n, generator=rng(7), dtype=torch.float64))
    assert_same_model(canonical(other, diagonal_cov=True), form, 1e-5)


def test_modes_are_moved_where_schur_gives_another_order() -> None:
    ssm = of_modes(torch.tensor([[0.2]]), turn(0.6, 9), torch.tensor([[0.9]]), turn(0.99, 30))
    form = schur(ssm.transition_matrix.numpy(), output="real")[0]
    assert abs(form[-1, -1]) > 0.3  # else the test would be idle
    a = canonical(ssm).transition_matrix
    moduli = [float(torch.linalg.eigvals(a[block, block]).abs().max()) for block in (slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6))]
    assert moduli == pytest.approx([0.99, 0.9, 0.6, 0.2], abs=1e-6)


def test_an_unstable_model_has_none() -> None:
    ssm = stable_model(2, 1)._replace(transition_matrix=torch.eye(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="spectral radius"):
        canonical_transform(ssm)


def test_dtype_is_kept() -> None:
    ssm = stable_model(3, 2)
    form = canonical(cast(ssm, torch.float32))
    assert all(field.dtype == torch.float32 for field in (*form[:-1], *form.initial))
    assert_same_model(form, canonical(ssm), 1e-4)
