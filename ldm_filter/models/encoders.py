"""Observation -> Gaussian measurement: normalisation, linear path, network, and the measurement noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm_filter.core.directional import normalise
from ldm_filter.models.measurement_noise import ConstantNoise, InputNoise, NoiseLevel, OwnNoise, principal_components
from ldm_filter.models.networks import Custom, Mixing, default_network
from ldm_filter.types import Gaussian

__all__ = ["ConstantNoise", "Encoder", "InputNoise", "principal_components"]


class Encoder(nn.Module):
    """Maps each observation to a Gaussian measurement of the latent state, deterministic, without labels.

        u = (x - centre) / scale          (missing entries: 0)
        z = gain * (V u + network(u, missing) - shift),      R = noise(u)  +  sum_c missing_c M_c

    V starts as the whitened principal components of the training data and the network's last layer at zero, so that training
    starts from the classical PCA + Kalman filter. (Latents beyond the rank of the data have no component: they start as the random
    features of the network. A user's own module starts as it came.) M_c is the covariance that losing channel c alone puts on z, measured on training
    data by :meth:`fit_missing`: a step with a missing channel counts for less, without retraining.

    Args:
        event_shape: shape of one observation, ``(channel,)`` or ``(y, x[, colour])``.
        latent_dim: m.
        network: ``"auto" | "mlp" | "mlp-noise" | "conv" | "linear"`` (V alone) or an ``nn.Module``.
        noise: ``"constant"``: one full covariance; ``"input"``: diagonal, a network of the observation; a module of the user's own may give
            ``2 m`` numbers, and the second half are then log variances.
        space: ``"plane"``, or ``"sphere"`` to bring V u + network(u) to unit length.

    Shapes:
        values, observed: ``(B, T, *event)``. Output mean ``(B, T, m)``, covariance ``(1, 1, m, m)`` where constant, else ``(B, T, m, m)``.
    """

    channelwise = False  # whether latent i is entry i of the observation, so that a missing entry takes one latent with it
    center: Tensor
    scale: Tensor
    shift: Tensor
    gain: Tensor
    missing_cov: Tensor
    noise_scale: Tensor

    def __init__(
        self, event_shape: Sequence[int], latent_dim: int, network: str | nn.Module = "auto", noise: str = "constant", space: str = "plane"
    ) -> None:
        super().__init__()
        self.space = space
        self.event_shape, self.latent_dim = tuple(event_shape), latent_dim
        size = math.prod(event_shape)
        self.linear = nn.Linear(size, latent_dim, bias=False)
        self.network = default_network(network, event_shape, latent_dim)
        if noise not in ("constant", "input"):
            raise ValueError(f'noise is {noise!r}, expected "constant" or "input"; noise that follows the state belongs to the dynamics')
        self.noise: ConstantNoise | InputNoise | OwnNoise = ConstantNoise(latent_dim) if noise == "constant" else InputNoise(size, latent_dim)
        if isinstance(self.network, Custom) and self.network.gives_noise:
            if noise != "input":
                raise ValueError(f"encoder gives {2 * latent_dim} numbers, as for noise='input', but noise is {noise!r}; choose one of the two")
            self.noise = OwnNoise(latent_dim)
        self.register_buffer("center", torch.zeros(self.event_shape))
        self.register_buffer("scale", torch.ones(self.event_shape))
        self.register_buffer("shift", torch.zeros(latent_dim))
        self.register_buffer("gain", torch.ones(latent_dim))
        self.register_buffer("noise_scale", torch.ones(()))
        places = size if len(self.event_shape) == 1 else 1
        self.register_buffer("missing_cov", torch.zeros(places, latent_dim, latent_dim))

    def forward(self, values: Tensor, observed: Tensor) -> Gaussian:
        normalised, missing = self.normalise(values, observed)
        mean, own = self._measure(normalised, missing)
        noise = self.noise(normalised if own is None else own, missing)
        cov = noise * self.gain[:, None] * self.gain * self.noise_scale
        # Not measured before the end of training: until then a constant R stays one for all, and the filter's covariances are shared.
        if missing is not None and bool(self.missing_cov.any()):
            cov = cov + torch.einsum("btc,cij->btij", self._absence(missing), self.missing_cov)
        return Gaussian(mean, cov)

    def normalise(self, values: Tensor, observed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Standardised values with 0 where missing, and the mask as numbers, or None where every seen step is complete."""
        if values.shape[2:] != self.event_shape or observed.shape != values.shape:
            raise ValueError(
                f"values and observed have shapes {tuple(values.shape)} and {tuple(observed.shape)}, expected (batch, time, "
                f"{', '.join(map(str, self.event_shape))}) for both; the model was built for observations of that shape"
            )
        normalised = (values - self.center) / self.scale
        if bool(observed.all()):
            return normalised, None
        normalised = torch.where(observed, normalised, torch.zeros_like(normalised))
        seen = observed.flatten(2).any(-1).reshape(*observed.shape[:2], *[1] * len(self.event_shape))
        missing = seen & ~observed  # a step that is missing as a whole is skipped by the filter, and costs nothing here
        return normalised, missing.to(values.dtype) if bool(missing.any()) else None

    def embed(self, normalised: Tensor, missing: Tensor | None) -> Tensor:
        """z, ``(B, T, m)``, of standardised values."""
        return self._measure(normalised, missing)[0]

    def _measure(self, normalised: Tensor, missing: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """z, and what the network itself says of its log variances, ``(B, T, m)`` each."""
        batch = normalised.shape[:2]
        flat = normalised.flatten(0, 1)
        told = self.network(flat, None if missing is None else missing.flatten(0, 1))
        raw = self.linear(flat.flatten(1)) + told[:, : self.latent_dim]
        if self.space == "sphere":
            raw = normalise(raw)
        own = told[:, self.latent_dim :].unflatten(0, batch) if isinstance(self.noise, OwnNoise) else None
        return (self.gain * (raw - self.shift)).unflatten(0, batch), own

    def complete_cov(self) -> Tensor:
        """R of complete observations where it is one for all, ``(m, m)`` float64.

        Raises:
            ValueError: it follows the observation.
        """
        if not isinstance(self.noise, ConstantNoise):
            raise ValueError(f"the measurement covariance follows the observation ({type(self.noise).__name__}), and no one matrix is that of all")
        return self.noise.covariance() * self.gain.double()[:, None] * self.gain.double() * self.noise_scale.double()

    def log_volume(self, values: Tensor, observed: Tensor, most: int = 512) -> Tensor:
        """log |det dz/du| at up to ``most`` complete observations, ``(N,)``: how the encoder changes the entropy of the standardised data u, exactly.

        Raises:
            ValueError: as many latents as entries of an observation are needed, and a complete observation.
        """
        if math.prod(self.event_shape) != self.latent_dim:
            raise ValueError(
                f"the change of volume needs latent_dim = {math.prod(self.event_shape)}, the entries of an observation, and it is {self.latent_dim}; "
                'set it, or use objective="log-det"'
            )
        places = observed.flatten(2).all(-1).nonzero()
        if not len(places):
            raise ValueError("observed has no complete step in this batch, and the change of volume needs one; use a larger batch_size")
        most = 1 if isinstance(self.network, Mixing) else most  # a linear map has one volume
        if len(places) > most:
            places = places[torch.linspace(0, len(places) - 1, most, device=places.device).round().long()]
        rows = ((values - self.center) / self.scale)[places[:, 0], places[:, 1]].flatten(1)
        size = self.latent_dim
        # All directions at once: each observation repeated with each unit tangent.
        tangents = torch.eye(size, dtype=rows.dtype, device=rows.device).repeat_interleave(len(rows), 0)

        def embed(flat: Tensor) -> Tensor:
            return self.linear(flat) + self.network(flat.unflatten(1, self.event_shape), None)[:, : self.latent_dim]

        columns = torch.func.jvp(embed, (rows.repeat(size, 1),), (tangents,))[1]
        jacobian = columns.unflatten(0, (size, -1)).permute(1, 2, 0)
        return torch.linalg.slogdet(jacobian.double()).logabsdet.to(rows.dtype) + self.gain.log().sum()

    def _absence(self, missing: Tensor) -> Tensor:
        """What is missing of each step, ``(B, T, C)``: channels one by one, frames as the share of their pixels."""
        return missing if len(self.event_shape) == 1 else missing.flatten(2).mean(-1, keepdim=True)

    @torch.no_grad()
    def fit_normalisation(self, values: Tensor, observed: Tensor, mean: Tensor, std: Tensor) -> None:
        """Set centre, scale, the linear path and the noise features from training data.

        Args:
            values, observed: complete or incomplete observations ``(N, *event)``.
            mean, std: statistics of the training data, broadcasting to ``event``.

        Raises:
            ValueError: a mean that is not finite, or a std that is not positive.
        """
        if not bool(torch.isfinite(mean).all()):
            raise ValueError("mean holds a number that is not finite; expected the mean of what was observed")
        self.center.copy_(mean.expand(self.event_shape))
        self.scale.copy_(_positive("std", std).expand(self.event_shape))
        normalised, missing = self.normalise(values.unsqueeze(1), observed.unsqueeze(1))
        flat = normalised.flatten(1)
        components, deviation = principal_components(flat, self.latent_dim)
        most = float(deviation.max())
        self.linear.weight.copy_(components / deviation.clamp_min(1e-3 * most + 1e-12)[:, None])
        _silence(self.network, deviation > 1e-6 * most)
        if isinstance(self.network, Mixing):
            self.network.start.copy_(self.linear.weight)
        for level in (part for part in self.modules() if isinstance(part, NoiseLevel)):
            level.fit_features(flat, None if missing is None else missing.flatten(1))

    @torch.no_grad()
    def fit_missing(self, values: Tensor, observed: Tensor) -> None:
        """Measure what losing one channel (or a frame's pixels) does to z, on training observations ``(N, *event)``."""
        values, observed = values.unsqueeze(1), observed.unsqueeze(1)
        normalised, missing = self.normalise(values, observed)
        whole = self.embed(normalised, missing)
        if len(self.event_shape) > 1:
            centred = (whole - whole.mean(0)).flatten(0, 1)
            self.missing_cov.copy_((centred.mT @ centred / len(centred)).unsqueeze(0))
            return
        for channel in range(self.event_shape[0]):
            without = observed.clone()
            without[..., channel] = False
            change = (self.embed(*self.normalise(values, without)) - whole).flatten(0, 1)
            self.missing_cov[channel] = change.mT @ change / len(change)

    @torch.no_grad()
    def rescale(self, mean: Tensor, std: Tensor) -> None:
        """Fold z <- (z - mean) / std into the encoder: the gauge of the latent scale.

        Args:
            mean, std: ``(m,)`` of the present latents.

        Raises:
            ValueError: a std that is not positive, that is a latent that does not vary.
        """
        _positive("std", std)
        self.shift.add_(mean / self.gain)
        self.gain.div_(std)
        self.missing_cov.div_(std[:, None] * std)

    @torch.no_grad()
    def scale_covariances(self, factor: float) -> None:
        """R <- factor R, of whole and of partial observations."""
        self.noise_scale.mul_(factor)
        self.missing_cov.mul_(factor)


def _silence(network: nn.Module, latents: Tensor) -> None:
    """Start a built-in network at zero output for these latents, bool ``(m,)``; a user's own module is left as it came."""
    last = getattr(network, "last", None)
    if isinstance(last, nn.Linear):
        last.weight[latents] = 0.0
        last.bias[latents] = 0.0


def _positive(name: str, std: Tensor) -> Tensor:
    if not bool(((std > 0) & torch.isfinite(std)).all()):
        raise ValueError(f"{name} is {std.flatten().tolist()[:8]}, expected positive finite numbers; a constant channel has std 1, not 0")
    return std
