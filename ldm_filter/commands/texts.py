"""What the commands say about themselves."""

from __future__ import annotations

__all__ = ["FILTER", "FIT", "FORECAST", "REPORT", "SMOOTH", "STREAM"]

DATA = """Data: .csv and .parquet (a row per time step, a column per channel; a first column called time or date, or
holding dates, is the time), .nc, .npy (time, channel) or (series, time, channel), .npz. Empty and NaN mean missing.
Video: .mp4, .avi, .mov, .mkv, .webm, or a folder of them; dropped and repeated frames are missing."""

FIT = f"""Train a model on series without labels.

Examples:
  ldm-filter fit log.csv --state-dim 4 --out model.safetensors
  ldm-filter fit monday.csv tuesday.csv --out model.safetensors --validation sunday.csv --log log.jsonl
  ldm-filter fit clips/ --size 32 32 --state-dim 6 --out model.safetensors
  ldm-filter fit a.csv --targets a-truth.csv --validation b.csv --validation-targets b-truth.csv --calibrate-targets scaled --out model.safetensors
  ldm-filter fit log.csv --inputs heater valve --out model.safetensors
  ldm-filter fit --config fit.yaml log.csv --out model.safetensors
where fit.yaml holds options, with underscores, such as
  state_dim: 4
  noise: input
--print_config shows them all; what follows --config on the command line wins over the file.

{DATA}
Several files are several series, of any lengths. Columns named as --inputs are known, not observed; the other commands
find them by name in their files, and forecast takes as many last rows as its horizon to hold them alone."""

FILTER = f"""The state at every step, from the data up to that step.

Examples:
  ldm-filter filter log.csv --model model.safetensors
  ldm-filter filter log.csv --model model.safetensors --out states.nc
  ldm-filter filter log.csv --model model.safetensors --out states.csv
  ldm-filter filter clip.mp4 --model model.safetensors --out states.nc --overlay drawn.mp4

{DATA}
Result: .nc holds everything, with covariances; .csv and .parquet a flat table of means and standard deviations."""

SMOOTH = f"""The state at every step, from all of the data: gaps are filled from both sides.

Examples:
  ldm-filter smooth log.csv --model model.safetensors --out smoothed.csv
  ldm-filter smooth log.csv --model model.safetensors --out smoothed.nc

{DATA}
Result: .nc holds everything, with covariances; .csv and .parquet a flat table of means and standard deviations."""

FORECAST = f"""The observations that follow the data, with prediction intervals.

Examples:
  ldm-filter forecast log.csv --model model.safetensors --horizon 24
  ldm-filter forecast log.csv --model model.safetensors --horizon 24 --levels 0.5 0.95 --out forecast.csv

{DATA}
Result: for tables a table with columns "channel mean", "channel std", "channel lo-80", "channel hi-80" and so on, at
the times that continue the data's; write it as .csv or .parquet. For arrays and NetCDF files a Dataset, also as .nc."""

REPORT = f"""One HTML file about a model on data: fit, filter, forecast, diagnostics, classical baselines.

Examples:
  ldm-filter report sunday.csv --model model.safetensors --out report.html
  ldm-filter report sunday.csv --model model.safetensors --out report.html --horizon 48 --title "Boiler, sundays"

{DATA}
Best of data that the model was not fitted on. The file holds its pictures; nothing in it points elsewhere."""

STREAM = """Estimates for lines as they come: CSV or JSON from stdin, to stdout at once.

Examples:
  sensor | ldm-filter stream --model model.safetensors
  sensor | ldm-filter stream --model model.safetensors --state state.npz --gate hard > states.jsonl
  tail -f log.csv | ldm-filter stream --model model.safetensors --lag 50 --output csv

CSV: a header of channels, with time in front if there is one, or the channels in the order of the fit. JSON: an
object of channels with "time", or a list. Empty, NaN and null mean missing. Times are seconds or dates.
A line that cannot be read is reported on stderr with its number and skipped. With --state the filter goes on where
it ended; SIGTERM and the end of the input save it, and kill -9 loses at most the lines since the last saving."""
