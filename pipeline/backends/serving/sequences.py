"""Token sequences, how far their computation has come, and its error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import NightshiftError

Tokens: TypeAlias = npt.NDArray[np.int32]


class EngineError(NightshiftError):
    """The engine refused a batch; the process lives on."""


@dataclass(slots=True)
class Course:
    """How far the computation of one batch has come. Any thread may read and write it.

    An engine takes a step for each part of the model that it has computed. Every batch of a model has the same number
    of steps, which is known once the first batch is done.
    """

    steps: int = 0
    """Steps taken so far."""

    all_steps: int = 0
    """Steps of a whole batch; 0 while that is not known."""

    unwanted: bool = False
    """Nobody waits for the batch any more: the engine gives it up at the next step."""

    @property
    def share(self) -> float:
        """The part of the batch that is computed, 0 to 1; 0 where the engine does not tell."""
        return min(1.0, self.steps / self.all_steps) if self.all_steps else 0.0
