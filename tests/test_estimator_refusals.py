"""What LDMFilter refuses, and says so: arguments, data and calls that a new user gets wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ldm_filter import LDMFilter
from tests.waves import waves


@pytest.mark.parametrize(
    ("params", "kind", "message"),
    [
        ({"seed": None}, TypeError, "seed is None"),
        ({"window": 1}, ValueError, "window is 1, expected at least 2"),
        ({"device": "gpu"}, ValueError, "device is 'gpu', expected one of 'auto', 'cpu', 'cuda'"),
        ({"settle_within": 5}, ValueError, "settle_within is 5, which is for noise='jump', and noise is 'constant'"),
        ({"settle_within": 0, "noise": "jump"}, ValueError, "settle_within is 0, expected at least 1"),
        ({"settle_within": 5, "noise": "jump", "dynamics": "continuous"}, ValueError, "settle_within needs a motion whose process noise"),
        ({"encoder": torch.nn.Linear(5, 2)}, ValueError, r"encoder cannot read two observations of shape \(2, 3\)"),
    ],
)
def test_arguments_that_no_model_can_be_built_from_are_named(params: dict[str, object], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        LDMFilter(**({"state_dim": 2} | params)).fit(waves(50), epochs=1, progress=False)  # type: ignore[arg-type]


def test_data_that_nothing_can_be_learned_from_are_named() -> None:
    for data, message in ((waves(2), "data has 2 steps in all, expected at least 4"), (np.ones((50, 3)), "data never changes")):
        with pytest.raises(ValueError, match=message):
            LDMFilter(state_dim=2).fit(data, epochs=1, progress=False)
    for share in (2.0, 0.0, 1):
        with pytest.raises(ValueError, match=f"validation is {share}, expected a share between 0 and 1"):
            LDMFilter(state_dim=2).fit(waves(50), validation=share, progress=False)


def test_numpys_whole_numbers_are_whole_numbers(tmp_path: Path) -> None:
    model = LDMFilter(state_dim=np.int64(2), latent_dim=np.int32(2), readout="linear")  # type: ignore[arg-type]
    model.fit(waves(60), epochs=np.int64(1), batch_size=np.int64(4), progress=False)  # type: ignore[arg-type]
    path = tmp_path / "model.safetensors"
    model.save(path)
    with pytest.raises(ValueError, match="device is 'gpu', expected one of"):
        LDMFilter.load(path, device="gpu")
    assert LDMFilter.load(path).forecast(waves(20), np.int64(2)).sizes["time"] == 2  # type: ignore[arg-type]


def test_calls_that_cannot_be_answered_are_named() -> None:
    fitted = LDMFilter(state_dim=4, readout="linear").fit(waves(60), epochs=1, progress=False)
    with pytest.raises(TypeError, match="seed is 'a'"):
        fitted.sample(steps=3, seed="a")  # type: ignore[arg-type]
    for levels in (95, 0.9):
        with pytest.raises(TypeError, match="levels"):
            fitted.forecast(waves(10), 2, levels=levels)  # type: ignore[arg-type]
    for states in ([np.nan] * 4, "states"):
        with pytest.raises(ValueError, match="expected finite real numbers"):
            fitted.decode(states)


def test_a_fit_that_fails_leaves_nothing_that_looks_like_a_result() -> None:
    model = LDMFilter(state_dim=2, readout="linear").fit(waves(60), epochs=1, progress=False)
    with pytest.raises(ValueError, match="data never changes"):
        model.fit(np.ones((50, 3)), epochs=1, progress=False)
    for call in (lambda: model.filter(waves(9)), lambda: model.forecast(waves(9), 2), lambda: model.online(), lambda: model.decode(np.zeros(2))):
        with pytest.raises(ValueError, match="not fitted yet"):
            call()
