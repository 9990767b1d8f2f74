"""What was measured to be the fastest, and whether it holds for this device and this build. For the server itself.

Its parent knows what is stored, and only the server knows what it was built with and where it computes: so it is
told of all tunings of its model, and takes the one that is its own.
"""

from __future__ import annotations

import json
import os
import platform
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pipeline.backends.options import Tuned

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

T = TypeVar("T")

_ALLOWED = frozenset({"n_batch", "contexts", "threads", "flash_attn", "use_extra_bufts"})


@dataclass(frozen=True, slots=True)
class Host:
    """Where a server computes, and with which build of its engine."""

    device: str
    build: str


def to_argument(tunings: Iterable[Tuned]) -> str:
    """Tunings as one argument of a command line."""
    return json.dumps(
        [
            {"device": one.device, "build": one.build, "options": dict(one.options), "measured_at": one.measured_at}
            for one in tunings
        ]
    )


def from_argument(text: str) -> list[Tuned]:
    """The tunings in such an argument. Raises ValueError where it makes no sense."""
    try:
        return [
            Tuned(str(one["device"]), str(one["build"]), dict(one["options"]), str(one["measured_at"]))
            for one in json.loads(text)
        ]
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a list of tunings: {error!r}") from error


def own_tuning(tunings: Sequence[Tuned], host: Host) -> Tuned | None:
    """The one that was measured with this build on this device."""
    return next((one for one in tunings if (one.device, one.build) == (host.device, host.build)), None)


def fill(options: T, tuned: Tuned | None) -> T:
    """`options` (a dataclass) with what is None in it set as tuned: what an operator set stays.

    Weights are repacked where both allow it, since a crash turns it off as well as an operator. A batch is
    never larger than a capacity that was set.
    """
    if tuned is None:
        return options
    names = {field.name for field in fields(options)}  # type: ignore[arg-type]  # T is a dataclass
    wanted: dict[str, Any] = {
        name: value
        for name, value in tuned.options.items()
        if name in names & _ALLOWED and getattr(options, name) is None
    }
    if tuned.options.get("use_extra_bufts") is False and "use_extra_bufts" in names:
        wanted["use_extra_bufts"] = False
    capacity = getattr(options, "n_ubatch", None)
    if capacity is not None and "n_batch" in wanted:
        wanted["n_batch"] = min(wanted["n_batch"], capacity)
    # Threads are those of each context: without the number of contexts they mean nothing.
    if "contexts" in names and "contexts" not in wanted and getattr(options, "contexts", None) is not None:
        wanted.pop("threads", None)
    return replace(options, **wanted)  # type: ignore[type-var]  # as above


def device_name(*, on_gpu: bool) -> str:
    """What a person would call the device: the GPU's name, or the processor's with the cores that may be used."""
    if on_gpu:
        from pipeline.backends.accelerator import find_accelerator  # brings what the parent logs with

        gpu = find_accelerator()
        return gpu.name if gpu is not None else "GPU"
    return f"{_processor()}, {usable_cores()} cores"


def usable_cores() -> int:
    """CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine() or "a processor"
