"""Observation -> Gaussian measurement: normalisation, linear path, network, and the measurement noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ldm_filter.core.directional import normalise
from ldm_filter.core.linalg import cholesky, round_cov
from ldm_filter.models.factors import factor, unfactor
from ldm_filter.models.networks import Custom, Mixing, default_network
from ldm_filter.types import Gaussian

__all__ = ["ConstantNoise", "Encoder", "InputNoise", "principal_components"]

# Of a matrix whose principal components are sought.
MOST_ENTRIES = 1 << 25


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
        network: ``"auto" | "mlp" | "conv" | "linear"`` (V alone) or an ``nn.Module``.
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
        if isinstance(self.noise, InputNoise):
            self.noise.fit_features(flat, None if missing is None else missing.flatten(1))

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


class ConstantNoise(nn.Module):
    """One measurement covariance R = L L', full, ``(1, 1, m, m)``."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.factor = nn.Parameter(-0.5 * torch.eye(latent_dim))

    def forward(self, normalised: Tensor, missing: Tensor | None = None) -> Tensor:
        return round_cov(self.covariance(), self.factor.dtype)[None, None]

    def covariance(self) -> Tensor:
        """R ``(m, m)``, float64."""
        lower = factor(self.factor)
        return lower @ lower.mT

    @torch.no_grad()
    def set_covariance(self, cov: Tensor) -> None:
        """Start from a known R, ``(m, m)`` positive definite."""
        self.factor.copy_(unfactor(cholesky(cov.double(), "the measurement covariance")))


class OwnNoise(nn.Module):
    """R(x) = diag exp(bias + what a user's network says), softly kept within e^-12 to e^12."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.full((latent_dim,), -1.0))

    def forward(self, log_var: Tensor, missing: Tensor | None = None) -> Tensor:
        return _diagonal(self.bias + log_var)


class InputNoise(nn.Module):
    """R(x) = diag exp(g(features)): noisy observations get less weight.

    The features see an observation's noise level: the variance s that its leading principal components leave over, as s, sqrt s
    and log s, and for short sensor vectors the values themselves; standardised on training data.
    """

    features_mean: Tensor
    features_std: Tensor
    components: Tensor

    def __init__(self, size: int, latent_dim: int, hidden: int = 32) -> None:
        super().__init__()
        self.raw = size if size <= 16 else 0
        width = 3 + self.raw
        last = nn.Linear(hidden, latent_dim)
        nn.init.zeros_(last.weight)
        nn.init.constant_(last.bias, -1.0)
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU(), last)
        self.register_buffer("components", torch.zeros(min(8, size // 2), size))
        self.register_buffer("features_mean", torch.zeros(width))
        self.register_buffer("features_std", torch.ones(width))

    def forward(self, normalised: Tensor, missing: Tensor | None = None) -> Tensor:
        features = (self.features(normalised.flatten(2), None if missing is None else missing.flatten(2)) - self.features_mean) / self.features_std
        return _diagonal(self.head(features.clamp(-8.0, 8.0)))

    def features(self, flat: Tensor, missing: Tensor | None = None) -> Tensor:
        """``(..., 3 [+ channels])`` of standardised values ``(..., D)``."""
        residual = flat - flat @ self.components.mT @ self.components
        if missing is None:
            level = residual.square().mean(-1, keepdim=True)
        else:
            seen = 1.0 - missing
            level = (residual.square() * seen).sum(-1, keepdim=True) / seen.sum(-1, keepdim=True).clamp_min(1.0)
        level = level + 1e-6
        return torch.cat([level, level.sqrt(), level.log(), *([flat] if self.raw else [])], dim=-1)

    @torch.no_grad()
    def fit_features(self, normalised: Tensor, missing: Tensor | None = None) -> None:
        """Set the principal components and the features' statistics from standardised training values ``(N, D)``, 0 where missing."""
        self.components.copy_(principal_components(normalised, len(self.components))[0])
        features = self.features(normalised, missing)
        self.features_mean.copy_(features.mean(0))
        self.features_std.copy_(features.std(0).clamp_min(1e-6))


def _diagonal(log_var: Tensor) -> Tensor:
    """Softly kept within e^-12 to e^12 (latents have variance 1): no step can be taken for certain, or lost for good."""
    return torch.diag_embed((12.0 * torch.tanh(log_var / 12.0)).exp())


def principal_components(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Leading principal components of ``(N, D)``: directions ``(count, D)`` and standard deviations ``(count,)``.

    Directions beyond D or N are filled with zeros (deviation 0). The sign makes each direction's largest entry positive. Large
    observations are thinned, evenly, to about 250 MB of float64.
    """
    values = values[:: max(1, -(-values.numel() // MOST_ENTRIES))]
    centred = values.double() - values.double().mean(0)
    size = centred.shape[1]
    components, deviation = centred.new_zeros(count, size), centred.new_zeros(count)
    found = min(count, *centred.shape)
    if size <= 1024:
        eigenvalues, vectors = torch.linalg.eigh(centred.mT @ centred / len(centred))
        vectors, spread = vectors.flip(-1)[:, :found], eigenvalues.flip(-1)[:found].clamp_min(0.0).sqrt()
    else:
        with torch.random.fork_rng(devices=[]):  # the randomised decomposition draws from torch's own generator
            torch.manual_seed(0)
            _, singular, right = torch.svd_lowrank(centred, q=min(found + 8, *centred.shape), niter=4)
        vectors, spread = right[:, :found], singular[:found] / len(centred) ** 0.5
    signs = vectors.gather(0, vectors.abs().argmax(0, keepdim=True)).sign()
    components[:found] = (vectors * signs).mT
    deviation[:found] = spread
    return components.to(values.dtype), deviation.to(values.dtype)


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
