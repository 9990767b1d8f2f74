"""How a run went, for people and programs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pipeline.core.documents import DocumentState
from pipeline.ingest.progress import Changed
from pipeline.store.overview import DocumentLine, ModelLine

Outcome = Literal["complete", "stopped", "failed"]


@dataclass(frozen=True, slots=True)
class RunReport:
    """What came of a run.

    documents, chunks: as `status` counts them, for the documents that the run was about.
    chunks_embedded: the vectors that this run stored, in `seconds` of wall time.
    chunks_reused: chunks that this run read, and that had a vector from an earlier version of their document.
    failing: documents that could not be embedded, each with its reason; those of this run first.
    failed_now: how many documents failed in this very run.
    errors: what went wrong beyond single documents; the outcome is then `failed`.
    out_of_time: something was left because it could not have been finished before the run had to end.
    reads_only: it left the vectors to another run. documents_read, pages_read: by this run.
    waiting_elsewhere: documents that wait, but were not this run's.
    changes: what the folders held, compared with what was known.
    unsettled: files that were still being written to, and are left for a later run.
    not_looked_at: folders that are known, of a run that was to look at no particular ones.
    others: hosts whose runs are still at work on documents that this run was about, and on how many.
    mirror: what Qdrant is owed, in documents (`owed`), and why it could not be used (`error`); None where none is set.
    engine: what the engine counted of this run, as `counting.Counted.as_json` says; None where nothing is known.
    model: the one that this run embedded with. searched_with: the one that search uses.
    sources: the files and folders that it was to look at.
    device_name, build: where it embedded, and what the model server was built with; None where nothing was embedded.
    unused_gpu: a GPU that this was built without, in words.
    cut_off: that its time was over, what waits and when that goes on, in words; None where it ended by itself.
    """

    run_id: str
    outcome: Outcome
    documents: Mapping[str, int]
    chunks: Mapping[str, int]
    chunks_embedded: int
    seconds: float
    failing: Sequence[DocumentLine]
    errors: Sequence[str]
    chunks_reused: int = 0
    out_of_time: bool = False
    reads_only: bool = False
    documents_read: int = 0
    pages_read: int = 0
    waiting_elsewhere: int = 0
    failed_now: int = 0
    changes: Changed = field(default_factory=Changed)
    unsettled: Sequence[str] = ()
    not_looked_at: Sequence[str] = ()
    others: Mapping[str, int] = field(default_factory=dict)
    model: ModelLine | None = None
    searched_with: ModelLine | None = None
    engine: Mapping[str, Any] | None = None
    mirror: Mapping[str, Any] | None = None
    sources: Sequence[str] = ()
    device_name: str | None = None
    build: str | None = None
    unused_gpu: str | None = None
    cut_off: str | None = None

    @property
    def chunks_per_second(self) -> float:
        """Over the whole run, its start and its scan included."""
        return self.chunks_embedded / self.seconds if self.seconds else 0.0

    def as_json(self) -> dict[str, Any]:
        """The object that `run-now --json` prints."""
        return {
            "run_id": self.run_id,
            "outcome": self.outcome,
            "documents": dict(self.documents),
            "chunks": dict(self.chunks),
            "chunks_embedded": self.chunks_embedded,
            "chunks_reused": self.chunks_reused,
            "documents_read": self.documents_read,
            "pages_read": self.pages_read,
            "seconds": round(self.seconds, 3),
            "chunks_per_second": round(self.chunks_per_second, 2),
            "changes": asdict(self.changes),
            "failing": [
                {"file": line.file, "state": line.state.value, "reason": line.reason, "searched": line.searched}
                | ({"older": True} if line.older else {})
                for line in self.failing
            ],
            "unsettled": list(self.unsettled),
            "not_looked_at": list(self.not_looked_at),
            "other_hosts": dict(self.others),
            "errors": list(self.errors),
            "waiting_elsewhere": self.waiting_elsewhere,
            "failed_now": self.failed_now,
            "reads_only": self.reads_only,
            "model": asdict(self.model) if self.model else None,
            "searched_with": asdict(self.searched_with) if self.searched_with else None,
            "engine": dict(self.engine) if self.engine else None,
            "mirror": dict(self.mirror) if self.mirror else None,
            "sources": list(self.sources),
            "device_name": self.device_name,
            "build": self.build,
            "unused_gpu": self.unused_gpu,
            "cut_off": self.cut_off,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> RunReport:
        """A report that `as_json` made elsewhere, such as the daemon. What that leaves out has its default."""
        same = "run_id outcome documents chunks chunks_embedded chunks_reused documents_read pages_read seconds"
        same += " unsettled not_looked_at errors waiting_elsewhere failed_now reads_only engine"
        return cls(
            **{name: said[name] for name in same.split()},
            changes=Changed(**said["changes"]),
            others=said.get("other_hosts", {}),
            mirror=said.get("mirror"),
            sources=said.get("sources", ()),
            device_name=said.get("device_name"),
            build=said.get("build"),
            unused_gpu=said.get("unused_gpu"),
            cut_off=said.get("cut_off"),
            failing=[_line(each) for each in said["failing"]],
            model=ModelLine(**said["model"]) if said["model"] else None,
            searched_with=ModelLine(**said["searched_with"]) if said["searched_with"] else None,
        )


def _line(said: Mapping[str, Any]) -> DocumentLine:
    """A failing document, as a report names it."""
    return DocumentLine(
        id=0,
        file=said["file"],
        state=DocumentState(said["state"]),
        reason=said["reason"],
        title=None,
        pages=0,
        chunks=0,
        embedded=0,
        searched=said["searched"],
        older=said.get("older", False),
    )


def newest_first(failing: Sequence[DocumentLine], failed_now: Sequence[str]) -> list[DocumentLine]:
    """The failing documents with those in front that are among `failed_now` (paths in their sources)."""
    endings = tuple(f"/{path}" for path in failed_now)
    return sorted(failing, key=lambda line: not (endings and line.file.endswith(endings)))
