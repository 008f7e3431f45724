"""``python -m ldm_filter.cli``."""

from ldm_filter.cli.program import main

main()
