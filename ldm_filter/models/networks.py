"""The trainable trunks of the encoders: sensor vectors or frames in, features out. All take (values, missing)."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ldm_filter.models.measurement_noise import NoiseLevel

__all__ = ["Convolutional", "Custom", "Mixing", "NoisePerceptron", "Perceptron", "default_network", "random_layer"]


class Perceptron(nn.Module):
    """A multi-layer perceptron on the flattened event that also sees which entries are missing.

    Args:
        event_shape: shape of one observation.
        out_dim: number of outputs.
        hidden: widths of the hidden layers.

    Shapes:
        values, missing: ``(N, *event)``; missing is ``None`` or 1.0 where an entry is missing. Output ``(N, out_dim)``.
    """

    def __init__(self, event_shape: Sequence[int], out_dim: int, hidden: Sequence[int] = (100, 100)) -> None:
        super().__init__()
        size = math.prod(event_shape)
        self.values = nn.Linear(size, hidden[0])
        # The mask has a layer of its own, so that complete data pay nothing for it.
        self.missing = nn.Linear(size, hidden[0], bias=False)
        nn.init.zeros_(self.missing.weight)
        layers: list[nn.Module] = [nn.SiLU()]
        for width, following in pairwise(hidden):
            layers += [nn.Linear(width, following), nn.SiLU()]
        self.hidden, self.last = nn.Sequential(*layers), nn.Linear(hidden[-1], out_dim)

    def forward(self, values: Tensor, missing: Tensor | None = None) -> Tensor:
        features = self.values(values.flatten(1))
        if missing is not None:
            features = features + self.missing(missing.flatten(1))
        return self.last(self.hidden(features))


class NoisePerceptron(Perceptron):
    """A perceptron that is also shown how noisy an observation is (:class:`~ldm_filter.models.measurement_noise.NoiseLevel`).

    Where the noise level depends on the state it tells of the state: in n entries of noise of variance v(h), as much as n v'(h)^2 / 2 v^2 of Fisher
    information. A sum of squares over all entries is what a network of the values alone hardly finds.

    Args:
        event_shape, out_dim, hidden: as of :class:`Perceptron`.
    """

    def __init__(self, event_shape: Sequence[int], out_dim: int, hidden: Sequence[int] = (100, 100)) -> None:
        super().__init__(event_shape, out_dim, hidden)
        size = math.prod(event_shape)
        self.level = NoiseLevel(size)
        self.from_level = nn.Linear(3, hidden[0], bias=False)
        bound = (size + 3) ** -0.5  # as if the values and the level were one input
        nn.init.uniform_(self.from_level.weight, -bound, bound)

    def forward(self, values: Tensor, missing: Tensor | None = None) -> Tensor:
        flat, gone = values.flatten(1), None if missing is None else missing.flatten(1)
        features = self.values(flat) + self.from_level(self.level.standardised(flat, gone))
        if gone is not None:
            features = features + self.missing(gone)
        return self.last(self.hidden(features))


class Convolutional(nn.Module):
    """A small strided convolutional network for frames ``(y, x)`` or ``(y, x, colour)``, seeing missing pixels as a channel.

    Args:
        event_shape: ``(y, x)`` or ``(y, x, colour)``; y and x at least 8 pixels.
        out_dim: number of outputs.
        channels: of the strided layers; each halves the frame.
        hidden: width of the dense layer.

    Shapes:
        values, missing: ``(N, *event)``. Output ``(N, out_dim)``.

    Raises:
        ValueError: an event that is no frame of that size.
    """

    def __init__(self, event_shape: Sequence[int], out_dim: int, channels: Sequence[int] = (16, 32, 32), hidden: int = 128) -> None:
        super().__init__()
        if len(event_shape) not in (2, 3) or min(event_shape[:2]) < 8:
            raise ValueError(f'event_shape is {tuple(event_shape)}, expected (y, x[, colour]) of at least 8 pixels; use encoder="mlp"')
        colours = event_shape[2] if len(event_shape) == 3 else 1
        self.values = nn.Conv2d(colours, channels[0], 5, stride=2, padding=2)
        self.missing = nn.Conv2d(colours, channels[0], 5, stride=2, padding=2, bias=False)
        nn.init.zeros_(self.missing.weight)
        layers: list[nn.Module] = [nn.SiLU()]
        for before, after in pairwise(channels):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.SiLU()]
        size_y, size_x = event_shape[0], event_shape[1]
        for _ in channels:
            size_y, size_x = (size_y + 1) // 2, (size_x + 1) // 2
        layers += [nn.Flatten(), nn.Linear(channels[-1] * size_y * size_x, hidden), nn.SiLU()]
        self.hidden, self.last = nn.Sequential(*layers), nn.Linear(hidden, out_dim)

    def forward(self, values: Tensor, missing: Tensor | None = None) -> Tensor:
        features = self.values(_channels_first(values))
        if missing is not None:
            features = features + self.missing(_channels_first(missing))
        return self.last(self.hidden(features))


class Mixing(nn.Module):
    """M V0 u: no network but a second linear map, behind the whitening V0 that the encoder's linear path starts from.

    It reaches no map that the linear path alone would not reach; with inputs of unit covariance the gradient gets there.
    """

    start: Tensor

    def __init__(self, event_shape: Sequence[int], out_dim: int) -> None:
        super().__init__()
        self.mix = nn.Parameter(torch.zeros(out_dim, out_dim))
        self.register_buffer("start", torch.zeros(out_dim, math.prod(event_shape)))

    def forward(self, values: Tensor, missing: Tensor | None = None) -> Tensor:
        return values.flatten(1) @ self.start.mT @ self.mix.mT


class Custom(nn.Module):
    """A user's own module: called with standardised values ``(N, *event)`` (missing entries are 0, the mean), gives ``(N, out_dim)``, or
    ``(N, 2 out_dim)``, of which the second half are log variances of the first.

    A module whose ``forward`` has an argument ``missing`` is also given the mask, 1.0 where an entry is missing.

    Raises:
        ValueError: the module gives another shape.
    """

    def __init__(self, module: nn.Module, event_shape: Sequence[int], out_dim: int) -> None:
        super().__init__()
        self.module = module
        self.gives_noise = False
        self.sees_missing = "missing" in inspect.signature(module.forward).parameters
        training = module.training
        module.eval()
        with torch.no_grad():
            parameter = next(module.parameters(), torch.zeros(()))
            try:
                shape = tuple(self(torch.zeros(2, *event_shape, dtype=parameter.dtype, device=parameter.device)).shape)
            except (RuntimeError, ValueError, IndexError) as error:
                raise ValueError(f"encoder cannot read two observations of shape {(2, *event_shape)}: {error}; it must take (N, *event)") from error
        module.train(training)
        self.gives_noise = shape == (2, 2 * out_dim)
        if shape != (2, out_dim) and not self.gives_noise:
            raise ValueError(
                f"encoder maps two observations {tuple(event_shape)} to shape {shape}, expected {(2, out_dim)}; "
                f"make its last layer give latent_dim = {out_dim} values, or with noise='input' {2 * out_dim}, the second half log variances"
            )

    def forward(self, values: Tensor, missing: Tensor | None = None) -> Tensor:
        if not self.sees_missing:
            return self.module(values)
        return self.module(values, missing=torch.zeros_like(values) if missing is None else missing)


def default_network(kind: str | nn.Module, event_shape: Sequence[int], out_dim: int) -> nn.Module:
    """The trunk by name, ``"mlp"``, ``"mlp-noise"``, ``"conv"``, ``"linear"`` (no network) or ``"auto"``, or a module.

    ``"auto"`` is convolutional for frames of 32 x 32 and more, else a perceptron.

    Raises:
        ValueError: an unknown name.
    """
    if isinstance(kind, nn.Module):
        return Custom(kind, event_shape, out_dim)
    if kind == "auto":
        kind = "conv" if len(event_shape) >= 2 and math.prod(event_shape[:2]) >= 1024 and min(event_shape[:2]) >= 8 else "mlp"
    if kind == "mlp":
        return Perceptron(event_shape, out_dim)
    if kind == "mlp-noise":
        return NoisePerceptron(event_shape, out_dim)
    if kind == "conv":
        return Convolutional(event_shape, out_dim)
    if kind == "linear":
        return Mixing(event_shape, out_dim)
    raise ValueError(f'encoder is {kind!r}, expected "auto", "mlp", "mlp-noise", "conv", "linear" or an nn.Module')


def _channels_first(frames: Tensor) -> Tensor:
    return frames.unsqueeze(1) if frames.ndim == 3 else frames.movedim(-1, 1)


def random_layer(inputs: int, outputs: int, generator: torch.Generator | None, gain: float = 1.0) -> nn.Linear:
    """A linear layer with normal weights of variance gain^2 / inputs and small biases."""
    layer = nn.Linear(inputs, outputs)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, generator=generator) * (gain / inputs**0.5))
        layer.bias.copy_(0.3 * torch.randn(outputs, generator=generator))
    return layer
