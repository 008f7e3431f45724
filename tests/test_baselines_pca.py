"""PCA with a Kalman filter fitted by EM: the algebra against written-out sums, the fit against simulated truth."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ldm_filter import baselines, metrics
from ldm_filter.baselines import em
from ldm_filter.core.kalman import filter_sequence
from ldm_filter.core.smoothing import smooth_sequence
from ldm_filter.types import Gaussian, SmootherResult, StateSpace


def oscillations(count: int, steps: int, seed: int, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """A noisy rotation seen by 20 pixels, and its true state ``(count, steps, 2)``."""
    rng = np.random.default_rng(seed)
    turn = 0.99 * np.array([[np.cos(0.3), -np.sin(0.3)], [np.sin(0.3), np.cos(0.3)]])
    h, states = 2 * rng.standard_normal((count, 2)), []
    for _ in range(steps):
        h = h @ turn.T + 0.2 * rng.standard_normal((count, 2))
        states.append(h)
    truth = np.stack(states, 1)
    mixing = np.random.default_rng(99).standard_normal((2, 20)) / 3
    return truth @ mixing + noise * rng.standard_normal((count, steps, 20)) + 1.0, truth


def random_model(n: int, m: int, seed: int) -> em.LinearGaussian:
    rng = np.random.default_rng(seed)

    def matrix(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.standard_normal(shape))

    eye = torch.eye(n, dtype=torch.float64)
    ssm = StateSpace(
        0.8 * eye + 0.05 * matrix(n, n), torch.zeros(n).double(), 0.3 * eye, matrix(m, n), torch.zeros(m).double(), Gaussian(eye[0], eye)
    )
    return em.LinearGaussian(ssm, 0.5 * torch.eye(m, dtype=torch.float64))


@pytest.mark.parametrize("scaled", [False, True])
def test_em_raises_the_likelihood_at_every_step(scaled: bool) -> None:
    frames, _ = oscillations(12, 40, 0)
    z = torch.from_numpy(frames[..., :3] - 1.0)
    scale = torch.from_numpy(np.random.default_rng(1).uniform(0.2, 3, (12, 40))) if scaled else None
    result = em.fit_em(z, random_model(2, 3, 2), 25, scale=scale)
    gains = np.diff(result.log_likelihood)
    assert len(gains) == 25
    assert (gains > -1e-7 * abs(result.log_likelihood[0])).all()
    assert gains[0] > 100 * max(gains[-1], 0)
    _, before = em.em_step(z, result.model, scale)
    assert before == pytest.approx(result.log_likelihood[-1])


@pytest.mark.parametrize("scaled", [False, True])
def test_maximisation_step_is_the_maximum_of_the_expected_likelihood(scaled: bool) -> None:
    """The surrogate E[log p(z, h)], estimated on posterior moments written out, falls when any parameter moves."""
    frames, _ = oscillations(5, 15, 3)
    z = torch.from_numpy(frames[..., :2] - 1.0)
    scale = torch.from_numpy(np.random.default_rng(4).uniform(0.2, 3, (5, 15))) if scaled else None
    start = random_model(2, 2, 5)
    posterior = smooth_sequence(start.ssm, filter_sequence(start.ssm, em.measure(z, start, scale)))
    best = em.maximise(z, posterior, scale)
    top = expected(best, z, posterior, scale)
    generator = torch.Generator().manual_seed(0)
    for name in ("transition_matrix", "transition_cov", "observation_matrix", "measurement_cov", "mean", "cov"):
        for _ in range(3):
            assert expected(nudged(best, name, generator), z, posterior, scale) < top, name


def nudged(model: em.LinearGaussian, name: str, generator: torch.Generator) -> em.LinearGaussian:
    def moved(x: torch.Tensor) -> torch.Tensor:
        step = 0.02 * torch.randn(x.shape, generator=generator, dtype=x.dtype)
        return x + (step @ step.mT + 0.01 * x if "cov" in name else step)

    if name == "measurement_cov":
        return model._replace(measurement_cov=moved(model.measurement_cov))
    if name in ("mean", "cov"):
        initial = model.ssm.initial._replace(**{name: moved(getattr(model.ssm.initial, name))})
        return model._replace(ssm=model.ssm._replace(initial=initial))
    return model._replace(ssm=model.ssm._replace(**{name: moved(getattr(model.ssm, name))}))


def expected(model: em.LinearGaussian, z: torch.Tensor, posterior: SmootherResult, scale: torch.Tensor | None) -> float:
    """E[log p(z, h)] by loops over series and steps."""
    (h, p), gain = posterior
    total = 0.0

    def term(cov: torch.Tensor, second_moment: torch.Tensor) -> float:
        return -0.5 * float(torch.logdet(cov) + torch.trace(torch.linalg.solve(cov, second_moment)))

    a, q, c = model.ssm.transition_matrix, model.ssm.transition_cov, model.ssm.observation_matrix
    for b in range(z.shape[0]):
        cov, back = p[b % len(p)], gain[b % len(gain)]
        first = h[b, 0] - model.ssm.initial.mean
        total += term(model.ssm.initial.cov, torch.outer(first, first) + cov[0])
        for t in range(z.shape[1]):
            e = z[b, t] - c @ h[b, t]
            r = model.measurement_cov * (1.0 if scale is None else scale[b, t])
            total += term(r, torch.outer(e, e) + c @ cov[t] @ c.T)
            if t:
                w, lag = h[b, t] - a @ h[b, t - 1], back[t - 1] @ cov[t]
                total += term(q, torch.outer(w, w) + cov[t] - a @ lag - (a @ lag).T + a @ cov[t - 1] @ a.T)
    return total


def test_subspace_start_and_em_find_the_true_spectrum() -> None:
    frames, _ = oscillations(60, 80, 6)
    z = torch.from_numpy(frames - 1.0) @ torch.linalg.qr(torch.from_numpy(np.random.default_rng(7).standard_normal((20, 3)))).Q
    start = em.subspace_start(z, 2)
    fitted = em.fit_em(z, start, 20)
    for model, tolerance in ((start, 0.02), (fitted.model, 0.01)):
        eigenvalues = np.linalg.eigvals(model.ssm.transition_matrix.numpy())
        assert np.abs(eigenvalues) == pytest.approx([0.99, 0.99], abs=tolerance)
        assert np.abs(np.angle(eigenvalues)) == pytest.approx([0.3, 0.3], abs=tolerance)
    assert fitted.log_likelihood[-1] - fitted.log_likelihood[0] < 0.05 * z.numel()


def test_pca_kalman_reads_the_state_is_consistent_and_smooths_better() -> None:
    frames, truth = oscillations(90, 60, 8)
    train, test = slice(0, 60), slice(60, 90)
    model = baselines.PCAKalman(2, 2).fit(frames[train].reshape(60, 60, 4, 5))
    mean, cov = model.filter(frames)
    smooth, smooth_cov = model.smooth(frames)
    assert mean.shape == (90, 60, 2)
    assert cov.shape == (90, 60, 2, 2)
    filtered_r2 = metrics.affine_r2(mean[train], truth[train], mean[test], truth[test])
    assert filtered_r2 > 0.95
    assert metrics.affine_r2(smooth[train], truth[train], smooth[test], truth[test]) > filtered_r2
    read = metrics.affine_fit(smooth[train], truth[train])
    decoded = metrics.decoded_covariance(read.matrix, smooth_cov[test], read.residual_cov)
    assert metrics.coverage(read.apply(smooth[test]), decoded, truth[test]) == pytest.approx(0.95, abs=0.025)
    z = model.measure(frames[test])
    projected = filter_sequence(model.model_.ssm, z).projected
    assert metrics.nis(projected.mean, projected.cov, z.mean, normalised=True).mean() == pytest.approx(1.0, abs=0.05)
    assert model.log_likelihood_[-1] >= model.log_likelihood_[0]


def test_adaptive_noise_follows_the_frames_noise_and_helps() -> None:
    rng = np.random.default_rng(11)
    frames, truth = oscillations(50, 40, 12, noise=0.0)
    level = rng.exponential(1.0, (50, 40))
    frames = frames + np.sqrt(level)[..., None] * rng.standard_normal(frames.shape)
    scores = {}
    for adaptive in (False, True):
        model = baselines.PCAKalman(2, 2, adaptive_noise=adaptive).fit(frames[:35])
        states, _ = model.filter(frames)
        scores[adaptive] = metrics.affine_r2(states[:35], truth[:35], states[35:], truth[35:])
    assert metrics.noise_corr(model.measure(frames).cov, level) > 0.9
    assert scores[True] > scores[False] + 0.005


def test_bad_frames_are_named() -> None:
    frames, _ = oscillations(4, 30, 13)
    with pytest.raises(ValueError, match="not fitted"):
        baselines.PCAKalman(2, 2).filter(frames)
    with pytest.raises(ValueError, match="latent_dim must lie between 1 and 19"):
        baselines.PCAKalman(2, 20, adaptive_noise=True).fit(frames)
    with pytest.raises(ValueError, match="state_dim is 11, too many for 30 steps of 1"):
        baselines.PCAKalman(11, 1).fit(frames)
    with pytest.raises(ValueError, match="NaN or infinite"):
        baselines.PCAKalman(2, 2).fit(np.where(frames > 2, np.nan, frames))
    with pytest.raises(ValueError, match=r"expected \(series, time"):
        baselines.PCAKalman(2, 2).fit(frames[0])
    with pytest.raises(TypeError, match="real numbers"):
        baselines.PCAKalman(2, 2).fit(frames.astype(object))
    model = baselines.PCAKalman(2, 2, iterations=1).fit(frames)
    with pytest.raises(ValueError, match="fitted on 20"):
        model.filter(frames[..., :10])
