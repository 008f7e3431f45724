"""What is special to single parts of an encoder: its networks, normalisation, components, noise and volume."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from ldm_filter.models.encoders import ConstantNoise, Encoder, InputNoise, principal_components
from ldm_filter.models.networks import Convolutional, NoisePerceptron, Perceptron, default_network
from tests.models.problems import rng, seeded

# Networks by name.


def test_networks_by_name() -> None:
    assert isinstance(default_network("auto", (3,), 2), Perceptron)
    assert isinstance(default_network("auto", (24, 24), 2), Perceptron)
    assert isinstance(default_network("mlp-noise", (24, 24), 2), NoisePerceptron)
    assert isinstance(default_network("auto", (32, 32), 2), Convolutional)
    assert isinstance(default_network("auto", (32, 48, 3), 2), Convolutional)
    assert isinstance(default_network("auto", (4, 1000), 2), Perceptron)  # too flat for the strides
    with pytest.raises(ValueError, match=r'encoder is \'transformer\', expected "auto"'):
        default_network("transformer", (3,), 2)
    for event in ((30,), (7, 30), (8, 8, 3, 2)):
        with pytest.raises(ValueError, match="of at least 8 pixels"):
            Convolutional(event, 2)
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(2, 2\); make its last layer give latent_dim = 2"):
        Encoder((3,), 2, nn.Linear(3, 5))
    with pytest.raises(ValueError, match="noise is 'state'"):
        Encoder((3,), 2, noise="state")


def test_a_custom_module_keeps_its_training_mode() -> None:
    for training in (True, False):
        module = nn.Sequential(nn.Linear(3, 2), nn.Dropout(0.5)).train(training)
        Encoder((3,), 2, module)
        assert module.training is training


# Start: principal components.


def test_training_starts_from_whitened_principal_components() -> None:
    values = torch.randn(500, 6, generator=rng(), dtype=torch.float64) @ torch.diag(torch.tensor([9.0, 4, 2, 1, 1, 1]).double()) + 3.0
    with seeded():
        encoder = Encoder((6,), 2).double()
    encoder.fit_normalisation(values, torch.ones_like(values, dtype=torch.bool), values.mean(0), torch.ones(6).double())
    z = encoder(values[None], torch.ones(1, 500, 6, dtype=torch.bool)).mean[0].detach()
    torch.testing.assert_close(torch.cov(z.mT, correction=0), torch.eye(2).double(), rtol=0, atol=1e-6)
    left, _, _ = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    torch.testing.assert_close((z.mT @ left[:, :2] / 500**0.5).abs(), torch.eye(2).double(), rtol=0, atol=1e-6)


def test_latents_beyond_the_rank_of_the_data_start_alive() -> None:
    """One channel, three latents: without a start of their own the two others would have no gradient, ever."""
    values = torch.randn(200, 1, generator=rng(), dtype=torch.float64)
    with seeded():
        encoder = Encoder((1,), 3).double()
    encoder.fit_normalisation(values, torch.ones_like(values, dtype=torch.bool), values.mean(0), values.std(0))
    z = encoder(values[None], torch.ones(1, 200, 1, dtype=torch.bool)).mean[0].detach()
    assert float(torch.linalg.eigvalsh(torch.cov(z.mT)).min()) > 1e-8
    torch.testing.assert_close(z[:, 0].abs(), ((values - values.mean()) / values.std(correction=0)).abs()[:, 0], rtol=1e-6, atol=1e-6)


def test_hidden_entries_take_no_part_in_the_normalisation() -> None:
    values = torch.randn(100, 3, generator=rng(), dtype=torch.float64)
    observed = torch.rand(100, 3, generator=rng(1)) > 0.2
    encoders = []
    for filler in (0.0, math.nan):
        with seeded():
            encoder = Encoder((3,), 2, noise="input").double()
        encoder.fit_normalisation(torch.where(observed, values, filler), observed, torch.zeros(3).double(), torch.ones(3).double())
        encoders.append(encoder)
    for one, other in zip(encoders[0].state_dict().values(), encoders[1].state_dict().values(), strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


def test_normalisation_refuses_bad_statistics() -> None:
    values, observed = torch.ones(5, 2), torch.ones(5, 2, dtype=torch.bool)
    encoder = Encoder((2,), 1)
    with pytest.raises(ValueError, match=r"std is \[1.0, 0.0\].*a constant channel has std 1"):
        encoder.fit_normalisation(values, observed, torch.zeros(2), torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="mean holds a number that is not finite"):
        encoder.fit_normalisation(values, observed, torch.tensor([math.nan, 0.0]), torch.ones(2))


@pytest.mark.parametrize("size", [12, 1100])
def test_principal_components_are_those_of_the_decomposition(size: int) -> None:
    """Both ways of computing them (wide data use a randomised one), the same each time, with a fixed sign."""
    spread = torch.cat([torch.tensor([9.0, 6.0, 4.0]), 0.1 * torch.ones(size - 3)]).double()
    values = torch.randn(300, size, generator=rng(), dtype=torch.float64) * spread + 2.0
    state = torch.random.get_rng_state()
    directions, deviation = principal_components(values, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    _, singular, right = torch.linalg.svd(values - values.mean(0), full_matrices=False)
    torch.testing.assert_close(deviation, singular[:3] / 300**0.5, rtol=1e-4, atol=0)
    torch.testing.assert_close((directions @ right[:3].mT).abs(), torch.eye(3).double(), rtol=0, atol=1e-3)
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))
    assert float(largest.min()) > 0
    again = principal_components(values.clone(), 3)
    assert torch.equal(again[0], directions)
    assert torch.equal(again[1], deviation)


def test_principal_components_beyond_the_rank_are_zero() -> None:
    values = torch.randn(50, 1, generator=rng()) @ torch.tensor([[1.0, 2.0]])
    directions, deviation = principal_components(values, 4)
    assert directions.shape == (4, 2)
    assert float(deviation[1]) < 1e-5
    assert torch.equal(deviation[2:], torch.zeros(2))
    assert torch.equal(directions[2:], torch.zeros(2, 2))


# Noise.


def test_constant_noise_takes_a_covariance_over() -> None:
    root = torch.randn(3, 3, generator=rng(), dtype=torch.float64)
    cov = root @ root.mT + 0.1 * torch.eye(3, dtype=torch.float64)
    noise = ConstantNoise(3)
    noise.set_covariance(cov)
    torch.testing.assert_close(noise(torch.zeros(2, 2, 3)), cov.float()[None, None], rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="the measurement covariance is not positive definite"):
        noise.set_covariance(-cov)


@pytest.mark.parametrize("raw", [-1e3, 1e3])
def test_input_noise_stays_within_bounds(raw: float) -> None:
    noise = InputNoise(4, 2)
    last = noise.head[-1]
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.bias.fill_(raw)
    variance = noise(torch.randn(1, 3, 4, generator=rng())).diagonal(dim1=-2, dim2=-1)
    torch.testing.assert_close(variance.log(), torch.full_like(variance, math.copysign(12.0, raw)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", [30, 6])
def test_the_noise_features_tell_the_noise_level(size: int) -> None:
    """Observations of two common causes with noise of a level of their own: the features must tell it, whatever the causes do."""
    level = torch.rand(3000, 1, generator=rng(), dtype=torch.float64) + 0.05
    causes = 3.0 * torch.randn(3000, 2, generator=rng(1), dtype=torch.float64) @ torch.randn(2, size, generator=rng(2), dtype=torch.float64)
    values = causes + level * torch.randn(3000, size, generator=rng(3), dtype=torch.float64)
    noise = InputNoise(size, 2).double()
    noise.fit_features(values)
    features = (noise.features(values) - noise.features_mean) / noise.features_std
    torch.testing.assert_close(features.mean(0), torch.zeros(features.shape[1]).double(), rtol=0, atol=1e-6)
    correlation = torch.corrcoef(torch.stack([features[:, 2], level[:, 0].log()]))[0, 1]
    assert float(correlation) > (0.95 if size == 30 else 0.75)


def test_a_noise_perceptron_sees_the_noise_level_whatever_else_it_sees() -> None:
    """Deaf to the values themselves, it still tells apart noise of two strengths, and nothing but the strength."""
    with seeded():
        encoder = Encoder((30,), 2, "mlp-noise").double()
    network = encoder.network
    assert isinstance(network, NoisePerceptron)
    values = torch.randn(2000, 1, generator=rng(1), dtype=torch.float64) + 0.5 * torch.randn(2000, 30, generator=rng(2), dtype=torch.float64)
    encoder.fit_normalisation(values, torch.ones_like(values, dtype=torch.bool), values.mean(0), values.std(0))
    with torch.no_grad():
        network.values.weight.zero_()
        network.last.weight.fill_(1.0)
    noise = torch.randn(1, 30, generator=rng(3), dtype=torch.float64)
    noise = noise - noise @ network.level.components.mT @ network.level.components
    with torch.no_grad():
        quiet, turned, loud = network(noise)[0], network(-noise)[0], network(2.0 * noise)[0]
    torch.testing.assert_close(quiet, turned)
    assert float((loud - quiet).abs().min()) > 1e-3


# Change of volume.


@pytest.mark.parametrize("custom", [False, True])
def test_log_volume_is_that_of_the_jacobian(custom: bool) -> None:
    with seeded():
        encoder = Encoder((3,), 3, nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)) if custom else "mlp").double()
    values = 5.0 + 2.0 * torch.randn(2, 4, 3, generator=rng(), dtype=torch.float64)
    observed = torch.ones(2, 4, 3, dtype=torch.bool)
    encoder.fit_normalisation(values.flatten(0, 1), observed.flatten(0, 1), values.mean((0, 1)), values.std((0, 1)))
    encoder.rescale(torch.ones(3).double(), torch.tensor([0.3, 2.0, 5.0]).double())
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng(1), dtype=torch.float64))
    observed[1, 2, 0] = False
    found = encoder.log_volume(values, observed)
    complete = values[observed.all(-1)]
    expected = []
    for row in complete:
        jacobian = torch.func.jacrev(lambda x: encoder(x[None, None], torch.ones(1, 1, 3, dtype=torch.bool)).mean[0, 0])(row)
        expected.append(torch.linalg.slogdet(jacobian).logabsdet + encoder.scale.log().sum())  # of the standardised data
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-8, atol=1e-8)
    found.sum().backward()
    weight = encoder.linear.weight
    assert weight.grad is not None
    assert float(weight.grad.abs().max()) > 0


def test_log_volume_says_what_it_needs() -> None:
    values = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="needs latent_dim = 3"):
        Encoder((3,), 2).log_volume(values, torch.ones(1, 2, 3, dtype=torch.bool))
    with pytest.raises(ValueError, match="no complete step"):
        Encoder((3,), 3).log_volume(values, torch.zeros(1, 2, 3, dtype=torch.bool))
