"""Generators of the identifiability tasks do what their cards say."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.integrate import solve_ivp

from datasets import linear_latent, networks, place_cells, sources, wobbly
from ldm_filter.metrics import affine_fit, affine_r2

# --- injective networks


@pytest.mark.parametrize(("latent_dim", "observation_dim"), [(1, 1), (3, 3), (4, 40)])
def test_a_network_is_inverted_exactly_and_its_jacobian_is_the_derivative(latent_dim: int, observation_dim: int) -> None:
    rng = np.random.default_rng(0)
    network = networks.injective_network(latent_dim, observation_dim, rng)
    latents = rng.standard_normal((50, latent_dim))
    assert network.invert(network(latents)) == pytest.approx(latents, abs=1e-8)
    units = 1e-7 * np.eye(latent_dim)
    numeric = np.stack([(network(latents + unit) - network(latents - unit)) / 2e-7 for unit in units], axis=-1)
    assert network.jacobian(latents) == pytest.approx(numeric, abs=1e-6)


def test_hidden_layers_are_standardised_and_the_last_is_not() -> None:
    network = networks.injective_network(5, 30, np.random.default_rng(1))
    values = np.random.default_rng(2).standard_normal((50_000, 5))
    for weight, bias in zip(network.weights[:2], network.biases[:2], strict=True):
        values = values @ weight.T + bias
        assert values.std(0) == pytest.approx(np.ones(5), abs=0.02)
        assert np.abs(values.mean(0)).max() < 1.5  # b ~ N(0, 0.3^2)
        values = np.where(values < 0, 0.05 * values, values)
    assert np.linalg.svd(network.weights[2], compute_uv=False) == pytest.approx(np.linspace(1.0, 0.5, 5))


def test_orthonormal_is() -> None:
    matrix = networks.orthonormal(7, 3, np.random.default_rng(0))
    assert matrix.T @ matrix == pytest.approx(np.eye(3))


# --- sources


def test_pairs_follow_their_equation() -> None:
    system = sources.sources(3, seed=1)
    pairs = system.draw(100_000, seed=2)
    first, second = (pairs.latents[:, place].astype(float) for place in (0, 1))
    assert system.rotation @ system.rotation.T == pytest.approx(np.eye(3)) and np.linalg.det(system.rotation) == pytest.approx(1.0)
    turned = first @ system.rotation.T
    noise = second - turned - 0.1 * np.tanh(turned)
    assert np.cov(first.T) == pytest.approx(np.eye(3), abs=0.02) and np.cov(noise.T) == pytest.approx(0.1 * np.eye(3), abs=0.002)
    assert np.corrcoef(first.T, noise.T)[:3, 3:] == pytest.approx(np.zeros((3, 3)), abs=0.015)
    assert pairs.observations.shape == (100_000, 2, 100)
    assert pairs.observations[:100] == pytest.approx(system.network(pairs.latents[:100]), abs=1e-5)


def test_sources_are_not_linearly_readable() -> None:
    pairs = sources.sources(6).draw(4000)
    flat, truth = pairs.observations[:, 0], pairs.latents[:, 0]
    assert 0.4 < affine_r2(flat[:3000], truth[:3000], flat[3000:], truth[3000:]) < 0.7


# --- linear latent


def test_the_linear_latent_system_is_stationary_with_its_eigenvalues() -> None:
    system = linear_latent.linear_latent()
    values = np.linalg.eigvals(system.transition_matrix)
    assert np.sort(np.abs(values)) == pytest.approx([0.95, 0.95, 0.98, 0.98])
    assert sorted(2 * math.pi / np.angle(values[values.imag > 0])) == pytest.approx([12, 31])
    drawn = system.draw(2000, 40, seed=1)
    states = drawn.states.astype(float)
    for place in (0, 39):
        assert np.cov(states[:, place].T) == pytest.approx(np.eye(4), abs=0.12)
    noise = states[:, 1:] - states[:, :-1] @ system.transition_matrix.T
    assert np.cov(noise.reshape(-1, 4).T) == pytest.approx(system.transition_cov, abs=2e-3)


@pytest.mark.parametrize("mild", [False, True])
def test_linear_latent_noise_has_variance_one_hundredth(mild: bool) -> None:
    system = linear_latent.linear_latent(mild=mild)
    drawn = system.draw(50, 40, seed=1)
    assert (drawn.observations - system.network(drawn.states)).var() == pytest.approx(0.01, rel=0.03)
    clean = system.network(np.random.default_rng(0).standard_normal((20_000, 4)))
    assert not mild or clean.std(0) == pytest.approx(np.ones(40), abs=0.03)


# --- wobbly


def test_one_step_is_of_fourth_order() -> None:
    """Twice the duration makes 2^5 times the error of the flow integrated exactly."""
    place = np.array([1.5, 2.0])
    errors = []
    for duration in (0.1, 0.05):
        exact = solve_ivp(lambda _, x: wobbly.flow(x), (0, duration), place, rtol=1e-12, atol=1e-13).y[:, -1]
        errors.append(np.linalg.norm(wobbly.step(place, duration) - exact))
    assert 0 < errors[0] < 1e-4 and 24 < errors[0] / errors[1] < 40


def test_flow_is_the_equation_in_polar_coordinates() -> None:
    """dr/dt = a k cos(k (th - th0)), dth/dt = 1."""
    angle, radius = np.array([0.3, 2.0, -1.0]), np.array([0.5, 1.0, 3.0])
    unit, turn = np.stack([np.cos(angle), np.sin(angle)], -1), np.stack([-np.sin(angle), np.cos(angle)], -1)
    moved = wobbly.flow(radius[:, None] * unit)
    assert (moved * unit).sum(-1) == pytest.approx(0.5 * 4 * np.cos(4 * (angle + 3 * math.pi / 8)))
    assert (moved * turn).sum(-1) == pytest.approx(radius)


def test_process_noise_and_start() -> None:
    position = wobbly.generate("wobbly", 400, 30, seed=1).position.astype(float)
    assert np.hypot(*position[:, 0].T) == pytest.approx(np.ones(400), abs=1e-6)
    assert np.cov((position[:, 1:] - wobbly.step(position[:, :-1])).reshape(-1, 2).T) == pytest.approx(0.1 * np.eye(2), abs=5e-3)


def test_swirl_is_bilinear_and_leaves_alone_what_it_must() -> None:
    assert wobbly.swirl_matrix(10, strength=0.0) == pytest.approx(np.eye(100))
    matrix = wobbly.swirl_matrix(10)
    assert matrix.sum(1) == pytest.approx(np.ones(100)) and matrix.min() >= 0 and (matrix > 0).sum(1).max() <= 4
    half_turn = wobbly.swirl_matrix(11, strength=math.pi, radius=1e9)
    image = np.arange(121.0)
    turned = (half_turn @ image).reshape(11, 11)
    assert turned[1:, 1:] == pytest.approx(image.reshape(11, 11)[1:, 1:][::-1, ::-1], abs=1e-4)  # about the corner at (5.5, 5.5)


def test_the_papers_renderer_clamps_and_the_other_never_does() -> None:
    papers, whole = (wobbly.generate(name, 60, 100, seed=5) for name in ("wobbly-paper", "wobbly"))
    assert np.array_equal(papers.position, whole.position)
    assert 0.25 < 1 - papers.in_range.mean() < 0.5 and whole.in_range.all()
    inside = (papers.position + 3) * 10 / 6
    assert np.array_equal(papers.in_range, ((inside >= 0) & (inside <= 9)).all(-1))
    flat, position = whole.frames.reshape(len(whole.frames) * 100, -1), whole.position.reshape(-1, 2)
    assert affine_fit(flat, position).residual_cov.trace() < 0.05  # injective: it can be read out


# --- place cells


def test_rates_are_the_equation() -> None:
    cells = place_cells.place_cells(3)
    place, way = 0.7, 1
    expected = cells.baseline + cells.peak * cells.gain[:, way] * np.exp(-((place - cells.centre[:, way]) ** 2) / (2 * cells.width**2))
    assert cells.rates(np.array(place), np.array(1.0)) == pytest.approx(expected)
    assert cells.rates(np.full((2, 5), place), np.ones((2, 5))).shape == (2, 5, 120)


def test_counts_are_poisson_with_rates_of_place_direction_and_speed() -> None:
    cells = place_cells.place_cells()
    session = cells.draw(100, 200, seed=1)
    gain = 0.3 + 0.7 * session.speed / 0.4
    expected = cells.rates(session.position[..., 0], session.direction) * gain[..., None] * 0.025
    assert session.counts.mean() == pytest.approx(expected.mean(), rel=0.02)
    assert ((session.counts - expected) ** 2 / expected).mean() == pytest.approx(1.0, abs=0.05)  # variance = mean
    resting = session.speed == 0
    assert 0.1 < resting.mean() < 0.3
    assert session.counts[resting].sum(-1).mean() < 0.6 * session.counts[~resting].sum(-1).mean()


def test_the_rat_stays_on_the_track_turns_at_its_ends_only_and_moves_with_its_speed() -> None:
    session = place_cells.place_cells().draw(40, 600, seed=2)
    place = session.position[..., 0].astype(float)
    assert place.min() == 0 and place.max() == pytest.approx(1.6)
    turned = session.direction[:, 1:] != session.direction[:, :-1]
    assert turned.any() and (np.minimum(place, 1.6 - place)[:, :-1][turned] < 1e-6).all()
    moved = np.diff(place, axis=1) - session.direction[:, 1:] * session.speed[:, 1:] * 0.025
    inside = (place[:, 1:] > 1e-6) & (place[:, 1:] < 1.6 - 1e-6)
    assert np.abs(moved[inside]).max() < 1e-5
    assert session.speed[session.speed > 0].mean() == pytest.approx(0.4, rel=0.1)


# --- all of them


DRAWS = {
    "sources": lambda seed, draw: sources.sources(2, seed).draw(5, draw),
    "linear-latent": lambda seed, draw: linear_latent.linear_latent(seed).draw(2, 5, draw),
    "place-cells": lambda seed, draw: place_cells.place_cells(seed).draw(2, 50, draw),
    "wobbly": lambda seed, draw: wobbly.generate("wobbly", 2, 5, [seed, draw]),
}


@pytest.mark.parametrize("name", DRAWS)
def test_seeds_decide_everything(name: str) -> None:
    first, again, other, elsewhere = (DRAWS[name](*seeds) for seeds in ((0, 1), (0, 1), (0, 2), (1, 1)))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0]) and not np.array_equal(first[0], elsewhere[0])
    assert first[0].dtype == np.float32 and np.isfinite(first[0]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: networks.injective_network(5, 4, np.random.default_rng(0)), "latent_dim is 5"),
        (lambda: networks.injective_network(2, 4, np.random.default_rng(0), slope=0.0), "slope is 0.0"),
        (lambda: sources.sources(2).draw(0), "pairs is 0"),
        (lambda: linear_latent.linear_latent().draw(0), "series and steps are 0 and 100"),
        (lambda: place_cells.place_cells().draw(1, 0), "series and steps are 1 and 0"),
        (lambda: wobbly.generate("wobbling", 1), "variant is 'wobbling'; expected one of wobbly, wobbly-paper"),
        (lambda: wobbly.generate("wobbly", 0), "series and steps are 0 and 100"),
    ],
)
def test_bad_input_is_refused(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
