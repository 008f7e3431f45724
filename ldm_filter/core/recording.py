"""A function of tensors on a CUDA device, recorded once as a CUDA graph and replayed: one launch in place of one for each operation.

At one observation at a time a GPU waits for Python, which launches dozens of small operations. A recording launches them all at once.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

__all__ = ["CudaRecorder", "Recorded", "Recorder", "Recording"]

_WARM_UP = 3  # runs before recording: what is made at the first run (handles, workspaces, compiled kernels) may not be recorded
_MOST = 8  # recordings that are kept, one for each set of shapes

Outputs = tuple[Tensor, ...]


class Recording(NamedTuple):
    """What was recorded.

    Attributes:
        outputs: the tensors that every replay fills anew.
        replay: runs it again, on what the inputs hold then.
    """

    outputs: Outputs
    replay: Callable[[], None]


class Recorder(Protocol):
    """Records a function without arguments, which always reads the same tensors."""

    def record(self, run: Callable[[], Outputs]) -> Recording:
        """Raises RuntimeError where the function cannot be recorded."""


class CudaRecorder:
    """CUDA graphs.

    Args:
        device: a CUDA device.

    Raises:
        ValueError: another device.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(f"device is {device}, expected a CUDA device, which CUDA graphs run on; elsewhere call the function itself")
        self._device = device

    def record(self, run: Callable[[], Outputs]) -> Recording:
        """Warm up on a stream of its own, as recording does, then record."""
        with torch.cuda.device(self._device):
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(_WARM_UP):
                    run()
            here = torch.cuda.current_stream()
            here.wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                    outputs = run()
            finally:  # where recording fails torch leaves its own stream the current one
                torch.cuda.set_stream(here)
        return Recording(outputs, graph.replay)


class Recorded:
    """Arrays in, arrays out, by way of a device: the function is recorded at the first call with arrays of such shapes, then replayed.

    A function that cannot be recorded (one that looks at a number on the device, say) runs as it is; one RuntimeWarning says so.
    Results are the caller's own: the next call does not change them.

    Args:
        function: of tensors on the device, which gives tensors. What else it reads (parameters) must stay where it is in memory.
        device: where it runs. On one that is not CUDA it runs as it is.
        name: of the function, for the warning.
        recorder: what records; None: :class:`CudaRecorder` on a CUDA device, nothing elsewhere.
        otherwise: what runs where there is no recording; None: the function.

    >>> double = Recorded(lambda x: (2.0 * x,), torch.device("cpu"), "double")
    >>> double(np.ones(2))
    [array([2., 2.])]
    """

    def __init__(
        self,
        function: Callable[..., Outputs],
        device: torch.device,
        name: str,
        recorder: Recorder | None = None,
        otherwise: Callable[..., Outputs] | None = None,
    ) -> None:
        self._function, self._device, self._name, self._otherwise = function, device, name, otherwise or function
        self._recorder = CudaRecorder(device) if recorder is None and device.type == "cuda" else recorder
        self._made: dict[tuple[tuple[tuple[int, ...], np.dtype], ...], tuple[Outputs, Recording]] = {}

    @torch.no_grad()
    def __call__(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """The results of the function, as arrays."""
        given = tuple(torch.from_numpy(np.require(x, requirements=("C", "W"))) for x in arrays)
        key = tuple((x.shape, x.dtype) for x in arrays)
        if self._recorder is not None and key not in self._made:
            self._record(self._recorder, key, given)
        if self._recorder is None:
            outputs = self._otherwise(*(x.to(self._device) for x in given))
        else:
            inputs, (outputs, replay) = self._made[key]
            for place, x in zip(inputs, given, strict=True):
                place.copy_(x)
            replay()
        return [x.to("cpu", copy=True).numpy() for x in outputs]

    def _record(self, recorder: Recorder, key: tuple[tuple[tuple[int, ...], np.dtype], ...], given: Outputs) -> None:
        inputs = tuple(x.to(self._device, copy=True) for x in given)
        try:
            recording = recorder.record(lambda: self._function(*inputs))
        except RuntimeError as error:
            self._recorder = None
            warnings.warn(
                f"{self._name} runs without a CUDA graph ({str(error).splitlines()[0]}): results are the same, but each step launches its operations "
                "one by one. To have it recorded, let it look at no number on the device.",
                RuntimeWarning,
                stacklevel=3,
            )
            return
        if len(self._made) == _MOST:
            del self._made[next(iter(self._made))]
        self._made[key] = inputs, recording
