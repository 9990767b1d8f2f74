"""Token sequences, and the error of whatever computes them."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.core.errors import NightshiftError

Tokens: TypeAlias = npt.NDArray[np.int32]


class EngineError(NightshiftError):
    """The engine refused a batch; the process lives on."""
