"""An interrupted training goes on as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm_filter import LDMFilter
from ldm_filter.training import loop
from tests.waves import waves


def weights(model: LDMFilter) -> list[torch.Tensor]:
    return [*model.model_.state_dict().values(), *model.readout_.state_dict().values()]


def interrupted(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Power fails in the middle of an epoch."""
    plain, seen = loop.Stepper.epoch, []

    def epoch(stepper: loop.Stepper, batches: object) -> dict[str, float]:
        seen.append(1)
        if len(seen) > after:
            stepper.step(next(iter(batches)), [])  # type: ignore[call-overload]
            raise KeyboardInterrupt
        return plain(stepper, batches)  # type: ignore[arg-type]

    monkeypatch.setattr(loop.Stepper, "epoch", epoch)


@pytest.mark.parametrize(("params", "mask"), [({"noise": "input"}, None), ({}, 0.2)])
def test_an_interrupted_fit_ends_with_the_same_weights(
    params: dict[str, str], mask: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(**arguments: object) -> LDMFilter:
        model = LDMFilter(state_dim=2, readout="linear", mask_rate=mask, **params)  # type: ignore[arg-type]
        return model.fit(waves(600), epochs=5, progress=False, **arguments)  # type: ignore[arg-type]

    whole, path = fit(), tmp_path / "state.pt"
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            fit(checkpoint=path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    random = torch.get_rng_state()
    resumed = fit(checkpoint=path)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(a, b) for a, b in zip(weights(resumed), weights(whole), strict=True))
    times = {"seconds"}
    assert [{k: v for k, v in row.items() if k not in times} for row in resumed.history_.epochs] == [
        {k: v for k, v in row.items() if k not in times} for row in whole.history_.epochs
    ]
    again = fit(checkpoint=path)  # there is nothing left to do
    assert all(torch.equal(a, b) for a, b in zip(weights(again), weights(whole), strict=True))


def test_a_state_of_another_training_is_refused(tmp_path: Path) -> None:
    def fit(state_dim: int = 2, epochs: int = 1, **arguments: object) -> LDMFilter:
        return LDMFilter(state_dim=state_dim, readout="linear").fit(waves(200), epochs=epochs, progress=False, **arguments)  # type: ignore[arg-type]

    path = tmp_path / "state.pt"
    fit(checkpoint=path)
    with pytest.raises(ValueError, match="which another training wrote"):
        fit(epochs=2, checkpoint=path)
    with pytest.raises(ValueError, match="holds no state of this training"):
        fit(state_dim=3, checkpoint=path)
    path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="holds no state of this training"):
        fit(checkpoint=path)
    with pytest.raises(ValueError, match="does not exist; create it first"):
        fit(checkpoint=tmp_path / "none" / "state.pt")
