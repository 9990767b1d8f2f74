"""How long a document may take that tells how far it is.

A step is a page that was read, or about a page of text that was cut. Each has its own time, which
cannot be saved up: steps that were quick leave nothing for one that hangs. What steps take beyond
their time comes out of one allowance for the whole document. How many steps are believed is
bounded by the size of the file, so that no count of pages in it buys time without end. Where OCR reads
pages, it reports steps for as long as it may take for one. Pure.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

BYTES_PER_STEP = 512
"""A page whose file is smaller than twice this is drawn in no time: one step to read it, one to cut its text."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds: `timeout` for a document, `per_mib` more for each MiB of it, `per_step` for each step.

    recognition: seconds that OCR may take for a page.
    """

    timeout: float
    per_mib: float
    per_step: float
    recognition: float = 0.0


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a document stands.

    since: when its last step was reported, by the clock that it began with, in seconds.
    allowance: seconds left beyond the time of its steps. steps: how many more are believed.
    """

    since: float
    allowance: float
    steps: int

    @property
    def deadline(self) -> float:
        """When patience ends, unless a step is reported before."""
        return self.since + self.allowance


def begun(patience: Patience, size: int, now: float) -> Standing:
    """A document of `size` bytes that is opened now."""
    # Of the steps of a page, one is its text's.
    steps = (1 + size // BYTES_PER_STEP) * (1 + math.ceil(patience.recognition / patience.per_step))
    return Standing(now, patience.timeout + patience.per_mib * size / 2**20, steps)


def advanced(patience: Patience, standing: Standing, steps: int, now: float) -> Standing:
    """The same document after that many more steps."""
    believed = min(steps, standing.steps)
    beyond = max(0.0, now - standing.since - believed * patience.per_step)
    return Standing(now, standing.allowance - beyond, standing.steps - believed)
