# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Quickstart: from a sensor log to calibrated estimates
#
# Two oscillations, seen by three noisy sensors; one of them fails for a while. No labels, no model of the motion.

# %%
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from ldm_filter import LDMFilter

steps = 2000
clock = pd.date_range("2025-01-01", periods=steps, freq="20ms", tz="Europe/Berlin")
t = np.arange(steps)
motion = np.stack([np.sin(t / 9), np.cos(t / 9), np.sin(t / 23), np.cos(t / 23)], axis=1)
mixing = np.array([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0], [1.0, -1.0, 0.0], [0.0, 1.0, 0.0]])
clean = motion @ mixing
rng = np.random.default_rng(0)
log = pd.DataFrame(clean + 0.3 * rng.normal(size=clean.shape), index=clock, columns=["x", "y", "z"])
log.iloc[1800:1830, 1] = np.nan  # one sensor is silent
log.iloc[1900:1915] = np.nan  # all of them are

# %% [markdown]
# ## Fit
#
# `state_dim=4`: a motion that holds two frequencies needs four states. Everything else has a default.

# %%
model = LDMFilter(state_dim=4)
model.fit(log.iloc[:1700], epochs=20, progress=False)

# %% [markdown]
# ## Filter and smooth
#
# The result is an `xarray.Dataset` with the labels of the data. The filter is exact: a missing sensor makes the estimate less certain,
# a missing row makes it a prediction.

# %%
held_out = log.iloc[1700:]
filtered = model.filter(held_out)
smoothed = model.smooth(held_out)
print(filtered[["filtered_mean", "filtered_cov", "log_likelihood", "nis"]])

truth = clean[1700:, 1]
gap = np.isnan(held_out["y"].to_numpy())
error_filtered = np.abs(filtered.reconstruction_mean.sel(channel="y").values - truth)[gap].mean()
error_smoothed = np.abs(smoothed.reconstruction_mean.sel(channel="y").values - truth)[gap].mean()
error_hold = np.abs(held_out["y"].ffill().to_numpy() - truth)[gap].mean()
print(f"mean error of y where it is missing: hold-last {error_hold:.2f}, filtered {error_filtered:.2f}, smoothed {error_smoothed:.2f}")
assert error_smoothed < error_hold

# %%
figure, axis = plt.subplots(figsize=(9, 3))
mean = smoothed.reconstruction_mean.sel(channel="y").values
std = smoothed.reconstruction_std.sel(channel="y").values
axis.plot(held_out.index, held_out["y"], ".", markersize=3, color="0.5", label="measured")
axis.plot(held_out.index, mean, color="C0", label="smoothed")
axis.fill_between(held_out.index, mean - 1.96 * std, mean + 1.96 * std, color="C0", alpha=0.2, label="95 % of measurements")
axis.legend(loc="upper left", ncol=3)
axis.set_ylabel("y")
figure.tight_layout()

# %% [markdown]
# ## Forecast
#
# DataFrame in, DataFrame out, the clock going on.

# %%
ahead = model.forecast(held_out, horizon=25, levels=(0.8, 0.95))
print(ahead["y"].head())

# %% [markdown]
# ## Is the uncertainty honest?

# %%
print(model.diagnose(held_out))

# %% [markdown]
# ## One observation at a time

# %%
online = model.online()
for row in held_out.to_numpy()[:50]:
    step = online.step(row)
print(step.mean, step.nis)
