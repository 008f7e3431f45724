"""What is saved comes back, in a fresh process too; what is not a whole file of ours is refused in words."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_filter import checkpoint
from ldm_filter.checkpoint import CheckpointError, load_checkpoint, save_checkpoint

CONFIG = {"state_dim": 4, "name": "Höhe", "levels": [0.8, 0.95], "nested": {"latent_dim": None, "full": True}}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    return {
        "matrix": matrix,
        "transposed": matrix.mT,
        "shared": matrix[1:],
        "broadcast": torch.ones(1, 2).expand(5, 2),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "flags": torch.tensor([True, False]),
        "parameter": torch.nn.Parameter(torch.randn(2, generator=generator)),
    }


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, tensors(), CONFIG)
    return path


def test_round_trip(saved: Path):
    loaded, config = load_checkpoint(str(saved))
    assert config == CONFIG
    assert loaded.keys() == tensors().keys()
    for name, want in tensors().items():
        assert torch.equal(loaded[name], want)
        assert loaded[name].dtype == want.dtype
        assert not loaded[name].requires_grad
        assert loaded[name].is_contiguous()


def test_others_can_read_the_file(saved: Path):
    assert torch.equal(load_file(saved)["matrix"], tensors()["matrix"])
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(saved.stat().st_mode) == 0o666 & ~umask


def test_loads_in_a_fresh_process(saved: Path):
    code = (
        f"from ldm_filter.checkpoint import load_checkpoint\nt, c = load_checkpoint({str(saved)!r})\nprint(t['matrix'].sum().item(), c['state_dim'])"
    )
    root = Path(checkpoint.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.split() == [str(tensors()["matrix"].sum().item()), "4"]


def test_loaded_tensors_outlive_the_file(saved: Path):
    loaded, _ = load_checkpoint(saved)
    saved.write_bytes(b"\0" * saved.stat().st_size)
    assert torch.equal(loaded["matrix"], tensors()["matrix"])


def test_saving_does_not_change_what_it_is_given(tmp_path: Path):
    given = tensors()
    save_checkpoint(tmp_path / "model.safetensors", given, CONFIG)
    assert all(torch.equal(given[name], want) for name, want in tensors().items())
    assert given["parameter"].requires_grad
    assert not given["transposed"].is_contiguous()


def test_a_failed_write_leaves_the_old_file_and_no_other(saved: Path, monkeypatch: pytest.MonkeyPatch):
    before = saved.read_bytes()

    def full_disk(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoint.os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space"):
        save_checkpoint(saved, {"matrix": torch.zeros(2)}, {})
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_saving_replaces_and_leaves_one_file(saved: Path):
    save_checkpoint(saved, {"matrix": torch.zeros(2)}, {"new": 1})
    loaded, config = load_checkpoint(saved)
    assert config == {"new": 1}
    assert loaded.keys() == {"matrix"}
    assert list(saved.parent.iterdir()) == [saved]


@pytest.mark.parametrize("keep", [0, 5, 8, 9, 100, -1])
def test_truncated(saved: Path, keep: int):
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is truncated or damaged"):
        load_checkpoint(saved)


@pytest.mark.parametrize(
    "content", [b"time,a,b\n0,1.0,2.0\n" * 20, b"PK\x03\x04" + b"\0" * 500, b'{"config": {"state_dim": 4}}', b'{"data":{"x": 1}}']
)
def test_another_kind_of_file(tmp_path: Path, content: bytes):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(path)


def test_a_pickled_model_is_not_unpickled(tmp_path: Path):
    torch.save({"a": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        (None, "another program"),
        ({"format": "pt"}, "another program.*'pt'"),
        ({"format_version": "2"}, "format version 2.*up to 1; upgrade"),
        ({"format_version": "10"}, "format version 10.*upgrade"),
        ({"format_version": "0"}, "version '0'"),
        ({"format_version": "new"}, "version 'new'"),
        ({"format_version": ""}, "version ''"),
        ({"config": "{'state_dim': 4}"}, "not JSON"),
        ({"config": ""}, "not JSON"),
        ({"config": "[1, 2]"}, "JSON list"),
    ],
)
def test_files_that_are_not_ours(tmp_path: Path, metadata: dict[str, str] | None, words: str):
    good = {"format": "ldm-filter", "format_version": "1", "config": json.dumps(CONFIG)}
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(2)}, path, None if metadata is None else good | metadata)
    with pytest.raises(CheckpointError, match=words):
        load_checkpoint(path)


def test_the_written_metadata_are_the_contract(saved: Path):
    content = saved.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert header["__metadata__"].keys() == {"format", "format_version", "config"}
    assert (header["__metadata__"]["format"], header["__metadata__"]["format_version"]) == ("ldm-filter", "1")
    assert json.loads(header["__metadata__"]["config"]) == CONFIG


def test_missing_file_and_folder(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_checkpoint(tmp_path / "absent.safetensors")
    with pytest.raises(FileNotFoundError, match="a folder"):
        load_checkpoint(tmp_path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        save_checkpoint(tmp_path / "absent" / "model.safetensors", {}, {})


@pytest.mark.parametrize(
    ("given", "config", "error", "words"),
    [
        ({"a": 1.0}, {}, TypeError, r"tensors\['a'\] is a float"),
        ({"__metadata__": torch.ones(1)}, {}, ValueError, "__metadata__"),
        ({"a": torch.eye(2).to_sparse()}, {}, ValueError, "to_dense"),
        ({}, [1], TypeError, "config is a list"),
        ({}, {"a": torch.ones(1)}, TypeError, "Tensor"),
        ({}, {"a": float("nan")}, ValueError, "NaN"),
    ],
)
def test_what_cannot_be_saved(tmp_path: Path, given: dict, config: dict, error: type[Exception], words: str):
    with pytest.raises(error, match=words):
        save_checkpoint(tmp_path / "model.safetensors", given, config)
    assert not list(tmp_path.iterdir())
