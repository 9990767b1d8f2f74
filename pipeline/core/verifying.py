"""What can be found to disagree, and what mends it. Plain values; the checks themselves are elsewhere."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum


class Remedy(StrEnum):
    """How a disagreement is mended."""

    ROWS = "rows"
    """By a correction of rows, from other rows that say the same."""
    INDEX = "index"
    """By making an index anew from what it is of."""
    EMBED = "embed"
    """By computing a chunk's vector again from its text, where that still gives the tokens that it was made of."""
    REMAKE = "remake"
    """By reading the document's file again, if it is as it was; search keeps what it has until that is done."""
    RUN = "run"
    """By a run, which looks at the files."""
    SYNC = "sync"
    """By delivering a document to Qdrant again."""
    NONE = "none"
    """By a person."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of disagreement. means: what is wrong. repair: what `--repair` does about it."""

    code: str
    remedy: Remedy
    means: str
    repair: str


_REMADE = "its file is read again, where it is there and unchanged; search keeps what it has until then"
_EMBEDDED = "it is computed again from the chunk's text"
_READ = "a run reads it"

KINDS: Mapping[str, Kind] = {
    kind.code: kind
    for kind in (
        Kind("database-damaged", Remedy.NONE, "the database file is damaged", "nothing: restore a backup"),
        Kind("value-damaged", Remedy.NONE, "a row has a value that is none", "nothing: restore a backup"),
        Kind("index-damaged", Remedy.INDEX, "an index of the database is not that of its table", "it is made anew"),
        Kind("schema-missing", Remedy.INDEX, "an index or a trigger of the tables is not there", "it is made anew"),
        Kind("row-orphan", Remedy.ROWS, "a row refers to one that is not there", "it goes, or forgets what it meant"),
        Kind("row-lost", Remedy.NONE, "a row's source or model is not there", "nothing, as what was made "
             "of it would be lost: restore a backup"),
        Kind("model-active", Remedy.ROWS, "not one model is the one that search uses", "the one of most documents is"),
        Kind("chunk-places", Remedy.ROWS, "a chunk both waits and is done", "the vector counts, else the queue"),
        Kind("chunk-nowhere", Remedy.EMBED, "a chunk has no vector, and does not wait for one", _EMBEDDED),
        Kind("chunk-missing", Remedy.REMAKE, "a document lacks chunks", _REMADE),
        Kind("chunk-text", Remedy.REMAKE, "a chunk's text is not that of its place", _REMADE),
        Kind("chunk-tokens", Remedy.REMAKE, "a chunk's text does not give the tokens of its vector", _REMADE),
        Kind("chunk-numbers", Remedy.ROWS, "a chunk's number may be given again", "the last number is noted"),
        Kind("queue-tokens", Remedy.REMAKE, "what waits in the queue is not what was cut", _REMADE),
        Kind("content-counters", Remedy.ROWS, "a document's counters are not what it has", "they are counted again"),
        Kind("content-state", Remedy.ROWS, "a document's state is not that of its chunks", "it gets the right one"),
        Kind("content-claim", Remedy.ROWS, "a run that has ended holds a document", "it is free again"),
        Kind("content-unwanted", Remedy.ROWS, "no document refers to what is stored", "it is deleted"),
        Kind("document-content", Remedy.RUN, "a document shows or awaits other bytes than its own", _READ),
        Kind("document-not-shown", Remedy.ROWS, "what is done is not shown", "search sees it"),
        Kind("copy-content", Remedy.ROWS, "a row's copy of its chunk's content or model is another", "it is copied"),
        Kind("count-documents", Remedy.ROWS, "the kept count of documents is wrong", "they are counted again"),
        Kind("count-chunks", Remedy.ROWS, "the kept count of chunks is wrong", "they are counted again"),
        Kind("text-index", Remedy.INDEX, "the full-text index is not that of the chunks", "it is made anew"),
        Kind("copy-stale", Remedy.INDEX, "a quantized copy is not that of the vectors", "it is made anew"),
        Kind("vector-length", Remedy.EMBED, "a chunk's vector has the wrong length", _EMBEDDED),
        Kind("vector-not-finite", Remedy.EMBED, "a chunk's vector has numbers that are none", _EMBEDDED),
        Kind("vector-norm", Remedy.EMBED, "a chunk's vector is not of length 1", _EMBEDDED),
        Kind("vector-other", Remedy.EMBED, "the model gives a chunk another vector", _EMBEDDED),
        Kind("document-vector-missing", Remedy.REMAKE, "a document has no vector of its own", "the mean of its chunks' "
             "vectors is put there, and its file is read again where it is there and unchanged"),
        Kind("document-vector-length", Remedy.REMAKE, "a document's own vector has the wrong length", _REMADE),
        Kind("document-vector-not-finite", Remedy.REMAKE, "a document's own vector has numbers that are none", _REMADE),
        Kind("document-vector-norm", Remedy.REMAKE, "a document's own vector is not of length 1", _REMADE),
        Kind("document-vector-other", Remedy.ROWS, "a document's own vector is not the mean of its chunks'",
             "the mean is computed again"),
        Kind("file-gone", Remedy.RUN, "a document's file is not there", "a run deletes it from the index, or asks"),
        Kind("file-new", Remedy.RUN, "a file is not in the database", _READ),
        Kind("file-changed", Remedy.RUN, "a file is not the one that was read", _READ),
        Kind("file-touched", Remedy.RUN, "a file has another time, and the same bytes", "a run notes the time"),
        Kind("file-unreadable", Remedy.RUN, "a file can no longer be read", "a run notes why"),
        Kind("file-bytes", Remedy.RUN, "a file has other bytes, and the same size and time", _READ),
        Kind("qdrant-missing", Remedy.SYNC, "Qdrant lacks a chunk", "it is delivered again"),
        Kind("qdrant-extra", Remedy.SYNC, "Qdrant has a chunk that search does not see", "it is deleted there"),
        Kind("qdrant-vector", Remedy.SYNC, "Qdrant has another vector of a chunk", "it is delivered again"),
        Kind("qdrant-payload", Remedy.SYNC, "Qdrant says other things of a chunk", "it is delivered again"),
        Kind("qdrant-foreign", Remedy.SYNC, "Qdrant has a point that is of no chunk", "it is deleted there"),
    )
}  # fmt: skip
"""Every kind, by its code, in the order in which they are mended: what others rest on comes first."""


Key = tuple[str, str, tuple[tuple[str, int | str], ...]]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """One thing that is not what it should be.

    found, expected: for a person. ids: the rows it is about, as `document`, `content`, `chunk` and so on.
    where: a file, and what in it; empty until somebody looked that up.
    """

    code: str
    found: str
    expected: str
    ids: Mapping[str, int | str] = field(default_factory=dict)
    where: str = ""

    @property
    def key(self) -> Key:
        """The same for one that is found again as it was."""
        return self.code, self.found, tuple(sorted(self.ids.items()))

    @property
    def kind(self) -> Kind:
        """Its kind."""
        return KINDS[self.code]


@dataclass(slots=True)
class Tally:
    """Disagreements counted by their code; of each code the first `most` are kept."""

    most: int = 1000
    counts: Counter[str] = field(default_factory=Counter)
    kept: dict[str, list[Disagreement]] = field(default_factory=dict)

    def add(self, found: Iterable[Disagreement]) -> None:
        """Take disagreements in."""
        for one in found:
            self.counts[one.code] += 1
            listed = self.kept.setdefault(one.code, [])
            if len(listed) < self.most:
                listed.append(one)

    @property
    def total(self) -> int:
        """How many there are."""
        return self.counts.total()

    @property
    def listed(self) -> list[Disagreement]:
        """Those kept, in the order of `KINDS`."""
        return [one for code in KINDS for one in self.kept.get(code, ())]


def is_beyond_belief(found: Tally) -> bool:
    """Whether what the database says cannot be read as it was written: no more is looked at, and nothing mended."""
    return any(found.counts[code] for code in ("database-damaged", "value-damaged"))


def spread_sample(keys: Sequence[int], size: int, seed: int) -> list[int]:
    """Up to `size` of these, each as likely, always the same for a seed, in their order."""
    if size >= len(keys):
        return list(keys)
    return sorted(random.Random(seed).sample(keys, size))  # noqa: S311 - a sample, no secret


def expected_state(*, errors: int, waiting: int) -> str:
    """The state of a content with chunks. errors: chunks that failed. waiting: chunks or stretches without vectors."""
    if waiting:
        return "extracted"
    return "failed" if errors else "embedded"


def is_below_any(path: str, folders: Collection[str]) -> bool:
    """Whether an absolute path is one of these, or inside one."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
