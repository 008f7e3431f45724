"""Settings of the whole test run."""

# The GPU kernels, and what compiles them, need Triton, which is optional, and have no examples; whoever imports them first decides
# whether they are interpreted.
collect_ignore_glob = ["ldm_filter/core/triton_*.py", "tests/core/triton_compile.py"]
