"""Exported steps and encoders: torch.export and onnxruntime give what the model gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from ldm_filter import LDMFilter
from ldm_filter.models.graphs import inverse_factor
from tests.optional import needs


def waves(steps: int = 200, seed: int = 0) -> np.ndarray:
    t, random = np.arange(steps)[:, None], np.random.default_rng(seed)
    return 3.0 + np.sin(0.3 * t + [0.0, 1.0, 2.0]) + 0.1 * random.normal(size=(steps, 3))


def gappy() -> np.ndarray:
    data = waves(40, seed=1)
    data[5:8], data[20:30, 1], data[0, 2] = np.nan, np.nan, np.nan
    return data


def by_steps(run, data: np.ndarray, n: int, inputs: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """The exported step over two streams: the data, and the data backwards."""
    state, cov, rows = np.zeros((2, n)), np.tile(np.eye(n), (2, 1, 1)), []
    for t in range(len(data)):
        given = {"values": np.stack([data[t], data[::-1][t]]), "state_mean": state, "state_cov": cov, "first": np.full(2, t == 0)}
        if inputs is not None:
            given["inputs"] = np.stack([inputs[t], inputs[::-1][t]])
        rows.append(run(given))
        state, cov = rows[-1][:2]
    names = ("filtered_mean", "filtered_cov", "log_likelihood", "nis", "reconstruction_mean")
    return {name: np.stack([row[i] for row in rows], 1) for i, name in enumerate(names)}


def torch_runner(path: Path):
    program = torch.export.load(path).module()
    return lambda given: [part.detach().numpy() for part in program(**{name: torch.as_tensor(value) for name, value in given.items()})]


def onnx_runner(path: Path):
    session = needs("onnxruntime").InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return lambda given: session.run(None, given)


RUNNERS = {".pt2": torch_runner, ".onnx": onnx_runner}


def export(model: LDMFilter, path: Path, part: str = "step"):
    if path.suffix == ".onnx":
        needs("onnxscript")
    return RUNNERS[path.suffix](model.export(path, part))


def agree(model: LDMFilter, found: dict[str, np.ndarray], data: np.ndarray, tolerance: float, inputs: np.ndarray | None = None) -> None:
    for stream, (series, known) in enumerate([(data, inputs), (data[::-1].copy(), None if inputs is None else inputs[::-1].copy())]):
        expected = model.filter(series, inputs=known)
        for name, values in found.items():
            np.testing.assert_allclose(values[stream], expected[name].to_numpy(), rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("suffix", RUNNERS)
@pytest.mark.parametrize("noise", ["constant", "input"])
def test_a_step_filters_as_the_model_does_with_gaps_and_channels_missing(tmp_path: Path, suffix: str, noise: str) -> None:
    model = LDMFilter(state_dim=4, latent_dim=3, noise=noise, mask_rate=0.1, dtype=torch.float64).fit(waves(), epochs=2, progress=False)
    agree(model, by_steps(export(model, tmp_path / f"step{suffix}"), gappy(), 4), gappy(), 1e-8)


@pytest.mark.parametrize("suffix", RUNNERS)
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_in_single_precision_it_agrees_to_1e_5(tmp_path: Path, suffix: str, kind: str) -> None:
    """Of the largest entry. NIS against the online filter: the batch filter's is of projections that are rounded to float32."""
    model = LDMFilter(state_dim=3, encoder=kind).fit(waves().astype(np.float32), epochs=2, progress=False)
    data = gappy().astype(np.float32)
    found = by_steps(export(model, tmp_path / f"step{suffix}"), data, 3)
    for stream, series in enumerate((data, data[::-1].copy())):
        expected, online = model.filter(series), model.online()
        wanted = {name: expected[name].to_numpy() for name in found} | {"nis": np.array([float(online.step(row).nis) for row in series])}
        for name, values in found.items():
            np.testing.assert_allclose(values[stream], wanted[name], rtol=0, atol=1e-5 * np.nanmax(np.abs(wanted[name])), err_msg=name)
    encoder = export(model, tmp_path / f"encoder{suffix}", "encoder")
    complete = waves(30, seed=2).astype(np.float32)
    mean, cov = encoder({"values": complete})
    expected = model.encode(complete)
    np.testing.assert_allclose(mean, expected.latent_mean, atol=1e-5)
    np.testing.assert_allclose(cov, expected.latent_cov, atol=1e-5)


@pytest.mark.parametrize("suffix", RUNNERS)
def test_known_matrices_and_inputs(tmp_path: Path, suffix: str) -> None:
    random = np.random.default_rng(0)
    A, C = np.array([[1.0, 0.1], [0.0, 0.95]]), random.normal(size=(3, 2))
    model = LDMFilter.from_matrices(
        A, 0.1 * np.eye(2), C, 0.2 * np.eye(3), np.ones(2), np.eye(2), input_matrix=np.ones((2, 1)), feedthrough=np.ones((3, 1)), inputs=["u"]
    )
    inputs = random.normal(size=(40, 1))
    agree(model, by_steps(export(model, tmp_path / f"step{suffix}"), gappy(), 2, inputs), gappy(), 1e-8, inputs)


def test_frames_and_sampled_continuous_dynamics(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).random((3, 30, 9, 9)).cumsum(1)
    model = LDMFilter(state_dim=3, latent_dim=2, encoder="conv", dynamics="continuous", dtype=torch.float64).fit(frames, epochs=1, progress=False)
    data = frames[0].copy()
    data[4, :, :3], data[10:12] = np.nan, np.nan
    agree(model, by_steps(export(model, tmp_path / "step.pt2"), data, 3), data, 1e-8)


def test_the_file_says_what_it_is_of(tmp_path: Path) -> None:
    onnx = needs("onnx")
    needs("onnxscript")
    frame = pd.DataFrame(waves(), columns=["a", "b", "c"], index=pd.date_range("2024", periods=200, freq="2s"))
    path = LDMFilter(state_dim=2, latent_dim=2).fit(frame, epochs=1, progress=False).export(tmp_path / "step.onnx")
    found = onnx.load(path)
    facts = {entry.key: json.loads(entry.value) for entry in found.metadata_props if entry.key in ("channels", "step_seconds", "inputs")}
    assert facts == {"channels": ["a", "b", "c"], "step_seconds": 2.0, "inputs": []}
    assert [entry.name for entry in found.graph.output] == ["new_state_mean", "new_state_cov", "log_likelihood", "nis", "observation_mean"]
    assert not {node.op_type for node in found.graph.node} & {"Loop", "If", "Scan"}


def test_the_factor_written_out() -> None:
    root = torch.randn(5, 6, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    cov = root @ root.mT
    inverse, diagonal = inverse_factor(cov)
    lower = torch.linalg.cholesky(cov)
    torch.testing.assert_close(inverse, torch.linalg.inv(lower))
    torch.testing.assert_close(diagonal, lower.diagonal(dim1=1, dim2=2))


def test_what_cannot_be_exported_is_refused(tmp_path: Path) -> None:
    model = LDMFilter(state_dim=2, dynamics="ekf").fit(waves(), epochs=1, progress=False)
    with pytest.raises(ValueError, match="is not exported"):
        model.export(tmp_path / "step.onnx")
    with pytest.raises(ValueError, match=r"ends in \.onnx or \.pt2"):
        model.export(tmp_path / "step.pb")
    with pytest.raises(ValueError, match="part is 'all'"):
        model.export(tmp_path / "step.onnx", "all")
    with pytest.raises(ValueError, match="make it first"):
        model.export(tmp_path / "nowhere" / "step.onnx")
