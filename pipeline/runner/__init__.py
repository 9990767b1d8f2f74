"""One run of one job: who else is at work, what with, on what, how it went."""

from pipeline.runner.report import Outcome, RunReport
from pipeline.runner.run import run_now

__all__ = ["Outcome", "RunReport", "run_now"]
