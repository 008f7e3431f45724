"""The contract of every encoder, inherited by each kind.

A new encoder: one subclass of ``EncoderContract`` that builds it.
"""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from ldm_filter.models.encoders import Encoder
from tests.models.problems import rng, seeded


class EncoderContract:
    """Subclasses say which event and which encoder; the weights are made non-zero, so that nothing is hidden by a silent start."""

    event: tuple[int, ...] = (4,)
    latents = 2
    noise = "constant"

    def network(self) -> str | nn.Module:
        return "auto"

    def data(self, count: int = 60) -> tuple[Tensor, Tensor]:
        """Rows ``(count, *event)`` of a few common causes plus noise, in odd units."""
        size = math.prod(self.event)
        causes = torch.randn(count, 3, generator=rng(1), dtype=torch.float64) @ torch.randn(3, size, generator=rng(2), dtype=torch.float64)
        rows = 5.0 + 3.0 * (causes + 0.3 * torch.randn(count, size, generator=rng(3), dtype=torch.float64))
        return rows.unflatten(1, self.event), torch.ones(count, *self.event, dtype=torch.bool)

    def encoder(self) -> Encoder:
        with seeded():
            encoder = Encoder(self.event, self.latents, self.network(), self.noise).double()
        values, observed = self.data()
        encoder.fit_normalisation(values, observed, values.mean(0), values.std(0))
        with torch.no_grad():
            for i, parameter in enumerate(encoder.parameters()):
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=rng(10 + i), dtype=torch.float64))
        return encoder

    def batch(self) -> tuple[Tensor, Tensor]:
        """``(4, 5, *event)`` with one complete series, one with an entry missing, one with a whole step missing, one with both."""
        values = self.data()[0][:20].unflatten(0, (4, 5))
        observed = torch.ones(values.shape, dtype=torch.bool)
        observed[1, 2].view(-1)[0] = False
        observed[2, 3] = False
        observed[3, 1] = False
        observed[3, 4].view(-1)[-1] = False
        return values, observed

    def test_shapes_and_dtype(self) -> None:
        encoder = self.encoder()
        values, observed = self.batch()
        for dtype in (torch.float64, torch.float32):
            encoder.to(dtype)
            z = encoder(values.to(dtype), observed)
            assert z.mean.shape == (4, 5, self.latents)
            assert z.cov.shape == ((1, 1) if self.noise == "constant" else (4, 5)) + (self.latents, self.latents)
            assert z.mean.dtype == z.cov.dtype == dtype
            assert torch.isfinite(z.mean).all()
            assert float(torch.linalg.eigvalsh(z.cov.detach().double()).min()) > 0

    def test_it_is_a_function_of_each_observation_alone(self) -> None:
        encoder = self.encoder()
        values, observed = self.batch()
        z = encoder(values, observed)
        for series in range(4):
            for step in range(5):
                if observed[series, step].any():
                    here = slice(series, series + 1), slice(step, step + 1)
                    one = encoder(values[here], observed[here])
                    torch.testing.assert_close(one.mean[0, 0], z.mean[series, step], rtol=1e-10, atol=1e-10)
                    expected = z.cov.expand(4, 5, -1, -1)[series, step]
                    torch.testing.assert_close(one.cov[0, 0], expected, rtol=1e-10, atol=1e-10)

    @pytest.mark.parametrize("garbage", [0.0, -1e8, math.nan, math.inf])
    def test_what_lies_under_the_mask_has_no_influence(self, garbage: float) -> None:
        encoder = self.encoder()
        encoder.fit_missing(*self.data())
        values, observed = self.batch()
        spoilt = torch.where(observed, values, garbage)
        one, other = encoder(values, observed), encoder(spoilt, observed)
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.cov, other.cov)
        gradients = []
        for z in (one, other):
            encoder.zero_grad()
            (z.mean[observed.flatten(2).any(-1)].square().sum() + z.cov.square().sum()).backward()
            gradients.append([None if p.grad is None else p.grad.clone() for p in encoder.parameters()])
        for a, b in zip(*gradients, strict=True):
            assert (a is None) == (b is None)
            if a is not None and b is not None:
                assert torch.isfinite(a).all()
                assert torch.equal(a, b)

    def test_the_mask_reaches_the_encoder(self) -> None:
        """A missing entry is not the same as an entry at its mean, where the network can see the mask."""
        encoder = self.encoder()
        values, observed = self.batch()
        hidden = observed.clone()
        hidden[0, 0].view(-1)[1] = False
        at_mean = values.clone()
        at_mean[0, 0].view(-1)[1] = encoder.center.flatten()[1]
        there, missing = encoder(at_mean, observed).mean[0, 0], encoder(at_mean, hidden).mean[0, 0]
        assert bool((there != missing).any()) == self.sees_mask()

    def sees_mask(self) -> bool:
        return True

    def test_a_missing_entry_inflates_the_noise_once_it_is_measured(self) -> None:
        encoder = self.encoder()
        values, observed = self.batch()
        before = encoder(values, observed).cov.detach().expand(4, 5, -1, -1)
        encoder.fit_missing(*self.data())
        after = encoder(values, observed).cov.detach().expand(4, 5, -1, -1)
        torch.testing.assert_close(after[0], before[0])
        added = after[1, 2] - before[1, 2]
        assert float(torch.linalg.eigvalsh(added).min()) > -1e-12
        assert float(added.trace()) > 1e-4 * float(before[1, 2].trace())
        hidden = observed.clone()
        hidden[1, 2].view(-1)[:2] = False
        more = encoder(values, hidden).cov.detach().expand(4, 5, -1, -1)[1, 2]
        if self.noise == "constant":  # (the other kind also sees another residual)
            assert float(more.trace()) > float(after[1, 2].trace())

    def test_only_whole_steps_missing_cost_nothing(self) -> None:
        encoder = self.encoder()
        encoder.fit_missing(*self.data())
        values, observed = self.batch()
        whole = observed.flatten(2).all(-1)
        observed = whole.reshape(4, 5, *[1] * len(self.event)).expand_as(values)
        z = encoder(values, observed)
        assert z.cov.shape[:2] == ((1, 1) if self.noise == "constant" else (4, 5))
        torch.testing.assert_close(z.mean[whole], encoder(values, torch.ones_like(observed)).mean[whole], rtol=1e-10, atol=1e-10)

    def test_rescale_moves_every_part_by_the_same_gauge(self) -> None:
        encoder = self.encoder()
        encoder.fit_missing(*self.data())
        values, observed = self.batch()
        before = encoder(values, observed)
        mean, std = torch.tensor([0.7, -2.0], dtype=torch.float64), torch.tensor([3.0, 1e-2], dtype=torch.float64)
        for _ in range(2):  # also where there is a gain already
            encoder.rescale(mean, std)
        twice = ((before.mean - mean) / std - mean) / std
        after = encoder(values, observed)
        torch.testing.assert_close(after.mean, twice, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(after.cov, before.cov / (std[:, None] * std) ** 2, rtol=1e-9, atol=1e-9)
        with pytest.raises(ValueError, match="expected positive finite numbers"):
            encoder.rescale(mean, torch.tensor([1.0, 0.0]).double())

    def test_every_parameter_gets_a_gradient(self) -> None:
        encoder = self.encoder()
        values, observed = self.batch()
        z = encoder(values, observed)
        (z.mean.square().sum() + z.cov.square().sum()).backward()
        for name, parameter in encoder.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().max()) > 0, name

    def test_another_shape_is_refused(self) -> None:
        encoder = self.encoder()
        values, observed = self.batch()
        with pytest.raises(ValueError, match="the model was built for observations of that shape"):
            encoder(values.narrow(2, 0, 1), observed.narrow(2, 0, 1))
        with pytest.raises(ValueError, match="values and observed have shapes"):
            encoder(values, observed.flatten(2).any(-1))


class TestPerceptronOnSensors(EncoderContract):
    pass


class TestPerceptronWithInputNoise(EncoderContract):
    noise = "input"


class TestPerceptronOnWideSensors(EncoderContract):
    """Too many channels for the noise features to hold the values themselves."""

    event = (20,)
    noise = "input"


class TestPerceptronOnFrames(EncoderContract):
    event = (10, 10)


class TestNoisePerceptron(EncoderContract):
    def network(self) -> str:
        return "mlp-noise"


class TestNoisePerceptronOnFrames(EncoderContract):
    event = (10, 10)
    noise = "input"

    def network(self) -> str:
        return "mlp-noise"


class TestConvolutional(EncoderContract):
    event = (9, 12)

    def network(self) -> str:
        return "conv"


class TestConvolutionalInColour(EncoderContract):
    event = (8, 10, 3)
    noise = "input"

    def network(self) -> str:
        return "conv"


class TestCustomModule(EncoderContract):
    def network(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 2))

    def sees_mask(self) -> bool:
        return False


class MaskedModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.values, self.mask = nn.Linear(4, 2), nn.Linear(4, 2)

    def forward(self, x: Tensor, missing: Tensor) -> Tensor:
        return torch.tanh(self.values(x) + self.mask(missing))


class TestCustomModuleThatAsksForTheMask(EncoderContract):
    def network(self) -> nn.Module:
        return MaskedModule()
