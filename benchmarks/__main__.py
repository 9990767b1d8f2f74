"""Runs every benchmark, one after the other, each with its defaults."""

from benchmarks import extraction, rescan, run_now, switch

extraction.main()
rescan.main()
run_now.main()
switch.main()
