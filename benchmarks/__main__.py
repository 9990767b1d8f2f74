"""Runs every benchmark, one after the other, each with its defaults."""

from benchmarks import run_now, switch

run_now.main()
switch.main()
