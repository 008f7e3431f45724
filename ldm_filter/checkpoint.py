"""A fitted model in one file: safetensors weights, and how to rebuild the model as JSON in the file's metadata."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

__all__ = ["FORMAT", "FORMAT_VERSION", "CheckpointError", "load_checkpoint", "save_checkpoint"]

FORMAT = "ldm-filter"
FORMAT_VERSION = 1

# The safetensors format allows no longer header; a file that announces one is of another kind.
_LONGEST_HEADER = 100_000_000


class CheckpointError(ValueError):
    """A file is there but holds no model that can be loaded; the message says why and what to do."""


def save_checkpoint(path: str | os.PathLike[str], tensors: dict[str, Tensor], config: dict[str, Any]) -> None:
    """Write tensors and config to one safetensors file, all or nothing: a crash in the middle leaves the old file.

    Args:
        path: where to; an existing file is replaced. Its folder must exist.
        tensors: by name, of any shape, device and memory layout, also views of each other; written as dense copies.
        config: plain JSON (dicts with text keys, lists, text, numbers, booleans, None). A tuple comes back as a list.

    Raises:
        TypeError: a tensor is none, or the config holds something that JSON cannot.
        ValueError: a reserved tensor name, a sparse tensor, or a NaN or infinity in the config.
        FileNotFoundError: the folder does not exist.

    Source: https://huggingface.co/docs/safetensors, "Format".

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_checkpoint(f"{folder}/model.safetensors", {"weight": torch.ones(2)}, {"state_dim": 4})
    ...     load_checkpoint(f"{folder}/model.safetensors")
    ({'weight': tensor([1., 1.])}, {'state_dim': 4})
    """
    path = Path(path)
    metadata = {"format": FORMAT, "format_version": str(FORMAT_VERSION), "config": _to_json(config)}
    content = save({name: _dense(name, tensor) for name, tensor in tensors.items()}, metadata)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"path is {path}, but the folder {path.parent} does not exist; create it first")
    _write_atomically(path, content)


def load_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what :func:`save_checkpoint` wrote; nothing in the file is executed.

    Args:
        path: the file.

    Returns:
        The tensors, on the CPU and owning their memory, and the config.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: (a ValueError) the file is truncated, of another kind, of another program, of a newer version of the
            format, or its config is no JSON object.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"path is {path}, {'a folder' if path.is_dir() else 'and no such file exists'}; expected a saved model: check the path"
        )
    try:
        with safe_open(path, framework="pt") as file:
            config = _read_config(path, file.metadata() or {})
            # a clone: the tensors of an open file are views of the disk, and change if the file is overwritten in place
            return {name: file.get_tensor(name).clone() for name in file.keys()}, config  # noqa: SIM118 (no mapping)
    except SafetensorError as error:
        raise CheckpointError(_unreadable(path, error)) from None


def _read_config(path: Path, metadata: dict[str, str]) -> dict[str, Any]:
    """The config of a file that is ours and not newer than this code."""
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path} is a safetensors file of another program (format {metadata.get('format')!r}, expected {FORMAT!r}); "
            "pass a file that was saved by ldm-filter"
        )
    version = metadata.get("format_version", "")
    if not (version.isascii() and version.isdigit() and int(version) >= 1):
        raise CheckpointError(
            f"{path} has format version {version!r}, expected a number from 1 to {FORMAT_VERSION}; the file is damaged: save it anew"
        )
    if int(version) > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, but this ldm-filter reads versions up to {FORMAT_VERSION}; "
            "upgrade with pip install --upgrade ldm-filter, or save the model with this version"
        )
    try:
        config = json.loads(metadata.get("config", ""))
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} has a config that is not JSON ({error}); the file is damaged: save it anew") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} has a config that is a JSON {type(config).__name__}, expected an object; the file is damaged: save it anew")
    return config


def _unreadable(path: Path, error: SafetensorError) -> str:
    """Why safetensors gave up: a file that starts like one was cut off, any other is of another kind."""
    with path.open("rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    if len(start) < 9 or (start[8:] == b"{" and int.from_bytes(start[:8], "little") <= _LONGEST_HEADER):
        return f"{path} is truncated or damaged ({size} bytes; {error}); copy or save it anew"
    return f"{path} is not a safetensors file ({size} bytes; {error}); pass a file that was saved by ldm-filter"


def _to_json(config: dict[str, Any]) -> str:
    if not isinstance(config, dict):
        raise TypeError(f"config is a {type(config).__name__}, expected a dict that JSON can hold")
    try:
        return json.dumps(config, allow_nan=False)
    except TypeError as error:
        raise TypeError(f"config cannot be written as JSON: {error}; expected text, numbers, booleans, None, lists and dicts of these") from None
    except ValueError as error:
        raise ValueError(f"config cannot be written as JSON: {error}; replace NaN and infinity by None, and cut circular references") from None


def _dense(name: str, tensor: Tensor) -> Tensor:
    """A contiguous copy on the CPU that shares memory with no other: all that safetensors takes."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"tensors[{name!r}] is a {type(tensor).__name__}, expected a torch.Tensor; convert with torch.as_tensor")
    if name == "__metadata__":
        raise ValueError("tensors holds the name '__metadata__', which the file format needs for itself; rename it")
    if tensor.layout != torch.strided:
        raise ValueError(f"tensors[{name!r}] has layout {tensor.layout}, expected a dense tensor; convert with .to_dense()")
    return tensor.detach().cpu().clone(memory_format=torch.contiguous_format)


def _write_atomically(path: Path, content: bytes) -> None:
    """Into a new file beside the old one, which then takes its name in one move of the file system."""
    # Opened plainly rather than by tempfile, which would keep others from reading the result whatever the umask says.
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
