"""LDMFilter with dynamics of the user's own: a module derived from Dynamics goes every way that a named one goes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ldm_filter import LDMFilter
from ldm_filter.models.base import NO_CONTEXT, Dynamics
from ldm_filter.types import Context, Gaussian, StateSpace
from tests.test_estimator import waves


class Oscillator(Dynamics):
    """One damped rotation, with two parameters and nothing else: linear, so that one method is enough."""

    state_dim = latent_dim = 2

    def __init__(self) -> None:
        super().__init__()
        self.turn, self.log_noise = nn.Parameter(torch.tensor(0.3)), nn.Parameter(torch.tensor(-2.0))

    def state_space(self, context: Context = NO_CONTEXT) -> StateSpace:
        eye: Tensor = torch.eye(2).to(self.turn)
        turned = torch.stack([torch.stack([self.turn.cos(), -self.turn.sin()]), torch.stack([self.turn.sin(), self.turn.cos()])])
        return StateSpace(0.99 * turned, 0.0 * eye[0], self.log_noise.exp() * eye, eye, 0.0 * eye[0], Gaussian(0.0 * eye[0], eye))


@pytest.fixture(scope="module")
def model() -> LDMFilter:
    return LDMFilter(2, dynamics=Oscillator(), readout="linear", window=25, device="cpu").fit(waves(300), epochs=4, progress=False)


def test_it_trains_and_answers(model: LDMFilter) -> None:
    own = model.model_.dynamics
    assert isinstance(own, Oscillator)
    assert float(own.turn.detach()) != pytest.approx(0.3, abs=1e-4)
    data = waves(60, 3)
    assert np.isfinite(model.smooth(data).smoothed_mean).all()
    assert np.isfinite(model.forecast(data, 5).forecast_mean).all()
    online = model.online()
    steps = np.stack([online.step(row).mean for row in data])
    np.testing.assert_allclose(model.filter(data).filtered_mean, steps, rtol=0, atol=1e-4)


def test_it_comes_back_with_its_module(model: LDMFilter, tmp_path: Path) -> None:
    model.save(tmp_path / "m.safetensors")
    with pytest.raises(ValueError, match="dynamics=module"):
        LDMFilter.load(tmp_path / "m.safetensors")
    again = LDMFilter.load(tmp_path / "m.safetensors", dynamics=Oscillator(), device="cpu")
    np.testing.assert_array_equal(again.filter(waves(30, 4)).filtered_mean, model.filter(waves(30, 4)).filtered_mean)


@pytest.mark.parametrize(
    ("arguments", "failure", "words"),
    [
        ({"state_dim": 3, "dynamics": Oscillator()}, ValueError, "state_dim is 3"),
        ({"state_dim": 2, "latent_dim": 1, "dynamics": Oscillator()}, ValueError, "latent_dim is 1"),
        ({"state_dim": 2, "dynamics": nn.Linear(2, 2)}, TypeError, "derive your module"),
        ({"state_dim": 2, "dynamics": Oscillator(), "noise": "adaptive"}, ValueError, "noise is 'adaptive'"),
    ],
)
def test_what_does_not_fit_is_refused(arguments: dict, failure: type[Exception], words: str) -> None:
    with pytest.raises(failure, match=words):
        LDMFilter(**arguments).fit(waves(60), epochs=1, progress=False)


def test_inputs_that_it_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match="takes 0"):
        LDMFilter(2, dynamics=Oscillator()).fit(waves(60), inputs=np.zeros((60, 1)), epochs=1, progress=False)
