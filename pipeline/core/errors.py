"""Every error that Nightshift raises on purpose.

    NightshiftError
    ├── SettingsError          a setting is unknown or wrong
    ├── UsageError             the caller asked for something that makes no sense
    ├── StoreError             the database
    │   ├── SchemaError        its tables are not those of this version
    │   ├── RunInProgress      another run is at work on it
    │   ├── LeaseLost          this run was taken for dead, and what it held is others' by now
    │   ├── ModelIncomplete    search cannot move to a model that documents have not been through
    │   └── TextQueueFull      enough texts wait in it to be embedded
    ├── MirrorError            another home of the vectors (Qdrant)
    │   ├── MirrorAway         it cannot be reached or used now
    │   └── MirrorRefused      it does not take what it was sent
    ├── SourceError            a folder of documents
    │   ├── SourceMissing      it is not there, or cannot be listed
    │   ├── SourceEmptied      it held documents and now holds none
    │   └── SourceStrange      it is another folder than the one that other hosts have at its path
    ├── ExtractionError        one document gives no text; has a `state` and a `reason`
    │   ├── Encrypted          needs a password
    │   ├── NoText             opened, but holds no text (needs OCR)
    │   ├── Broken             cannot be read, or is not what its name says
    │   └── Unstable           may be readable later: locked, changing, an I/O error
    ├── ModelError             the weights: not found, not a model, not downloaded
    ├── BackendError           a model server
    │   ├── BackendStartFailed it did not become ready
    │   ├── BackendDied        its process ended
    │   ├── BackendTimeout     no answer in time
    │   ├── BackendRefused     it answered with an error; has a `status`
    │   ├── BackendBusy        it cannot answer at the moment
    │   └── BadAnswer          its answer is not what was asked for
    ├── AdmissionError         a request cannot have a slot now; has a `slot`
    │   ├── NotServing         the mode does not serve it
    │   ├── WaitedTooLong      a switch took longer than a request may wait
    │   └── WaitingFull        enough requests wait already
    └── SwitchError            a change of mode
        ├── SwitchUnderWay     another one is at it, and this one was not begun
        ├── SwitchFailed       it failed; the mode before was restored, or the host is idle
        ├── SwitchDeferred     requests are in flight, and the job says not to cut them
        └── ReleaseFailed      a stopped backend's memory did not come back: nothing is loaded over it

Data is on the exception and the cause is chained. A message is one sentence for a
person, and says what to do where something can be done. HTTP status and exit code
are chosen in `web` and `cli`, not here.
"""

from __future__ import annotations

import shlex
from typing import ClassVar, Literal

from pipeline.core.redaction import redacted

FinalState = Literal["empty", "encrypted", "failed"]


class NightshiftError(Exception):
    """The root of the tree: whatever is one of these is explained by its message.

    A message may quote an address, or what another library said: secrets are taken out of it.
    """

    def __str__(self) -> str:
        return redacted(super().__str__())


class SettingsError(NightshiftError):
    """A setting is unknown or wrong. `key` is its dotted name, `origin` where it was set."""

    def __init__(self, key: str, problem: str, origin: str) -> None:
        self.key = key
        self.problem = problem
        self.origin = origin
        super().__init__(f"{key}: {problem} (set in {origin})")


class UsageError(NightshiftError):
    """What was asked for makes no sense; nothing was done."""


class StoreError(NightshiftError):
    """The database cannot be used."""


class SchemaError(StoreError):
    """The tables are not those of this version of Nightshift."""


class RunInProgress(StoreError):
    """Another run is at work on this database. `holder` says which, where and since when."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(f"another run is at work on this database: {holder}; wait for it or stop it first")


class LeaseLost(StoreError):
    """This run was taken for dead: nothing was heard of it for too long. What it held may be others' by now."""

    def __init__(self) -> None:
        super().__init__(
            "nothing was heard of this run for so long (was the host asleep, or its database away?) that it was taken "
            "for dead, and what it held is free for others; nothing that it stored is lost: run it again"
        )


class ModelIncomplete(StoreError):
    """Search cannot move to a model that documents have not been through. `missing` is how many."""

    def __init__(self, model: str, missing: int) -> None:
        self.model = model
        self.missing = missing
        documents = "1 document has" if missing == 1 else f"{missing:,} documents have"
        super().__init__(
            f"{documents} not been through {model}, and search would not find what it did not make: "
            "embed with it first (`python -m pipeline run-now --model MODEL`), or `models use` it with --anyway"
        )


class TextQueueFull(StoreError):
    """Enough texts wait to be embedded. `limit` is how many may."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        super().__init__(f"{limit} texts wait to be embedded already")


class MirrorError(NightshiftError):
    """Another home of the vectors cannot be used."""


class MirrorAway(MirrorError):
    """It cannot be reached or used now; what it is owed waits."""


class MirrorRefused(MirrorError):
    """It does not take what it was sent, and would not a second time."""


class HostBusy(NightshiftError):
    """Another process owns this host's data folder. `holder` says which, and since when."""

    def __init__(self, holder: str) -> None:
        self.holder = holder
        super().__init__(f"this host is in use by a {holder}; stop it first")


class SourceError(NightshiftError):
    """A folder of documents cannot be trusted to be complete. `root` is its path."""

    def __init__(self, root: str, message: str) -> None:
        self.root = root
        super().__init__(message)


class SourceMissing(SourceError):
    """The folder is not there or cannot be listed; nothing is deleted because of it."""


class SourceEmptied(SourceError):
    """The folder held documents and now holds none; nothing is deleted because of it."""


class SourceStrange(SourceError):
    """The folder is not the one that other hosts have at its path; nothing of it is read or deleted."""

    def __init__(self, root: str) -> None:
        super().__init__(
            root,
            f"{root} has nothing here of what other hosts found in it, and was left alone: a folder at the same path "
            "has to be the same one on all hosts. If it is, and all of it is new: "
            f"`python -m pipeline run-now {shlex.quote(root)} --confirm-deletions`; if not, give it another path",
        )


class ExtractionError(NightshiftError):
    """One document gives no text. `reason` is for a person; `state` is where it ends."""

    state: ClassVar[FinalState] = "failed"
    transient: ClassVar[bool] = False

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Encrypted(ExtractionError):
    """The document needs a password."""

    state = "encrypted"


class NoText(ExtractionError):
    """The document opened, but holds no text: pictures of pages need OCR.

    pages: how many pages, or pictures where there are no pages, OCR may find text on; 0 where it cannot help.
    """

    state = "empty"

    def __init__(self, reason: str, pages: int = 0) -> None:
        self.pages = pages
        super().__init__(reason)


class Broken(ExtractionError):
    """The document cannot be read, or is not what its name says. Trying again will not help."""


class Unstable(ExtractionError):
    """The document may be readable later: it is locked, changing, or an I/O error came between."""

    transient = True


class NotRecognised(Exception):
    """OCR failed on one page; why, as the end of a sentence."""


class ModelError(NightshiftError):
    """The weights were not found, are not a model, or could not be downloaded."""


class BackendError(NightshiftError):
    """A model server failed."""


class BackendStartFailed(BackendError):
    """The server did not become ready; the message holds the end of its log."""


class BackendDied(BackendError):
    """The server's process ended while it was needed."""


class BackendTimeout(BackendError):
    """No answer in time."""


class BackendRefused(BackendError):
    """The server answered with an error. `status` is the HTTP status, `param` what it is about (`input[3]`)."""

    def __init__(self, status: int, message: str, *, param: str | None = None) -> None:
        self.status = status
        self.param = param
        super().__init__(message)


class BackendBusy(BackendError):
    """The server cannot answer at the moment: it is overloaded, restarts, or broke off. Asking again may help.

    status: the HTTP status of a refusal; None where it broke off. retry_after: seconds that it asks to be left alone;
    None where it did not say.
    """

    def __init__(self, message: str, status: int | None = None, *, retry_after: float | None = None) -> None:
        self.status = status
        self.retry_after = retry_after
        super().__init__(message)


class BadAnswer(BackendError):
    """The answer is not what was asked for: a wrong count, a wrong size, or a number that is not finite."""


class AdmissionError(NightshiftError):
    """A request cannot have a slot now. `slot` is which."""

    def __init__(self, slot: str, message: str) -> None:
        self.slot = slot
        super().__init__(message)


class NotServing(AdmissionError):
    """The mode does not serve this slot."""

    def __init__(self, slot: str) -> None:
        super().__init__(slot, f"the host does not serve {slot} now")


class WaitedTooLong(AdmissionError):
    """A switch took longer than a request may wait."""

    def __init__(self, slot: str, seconds: float) -> None:
        super().__init__(slot, f"{slot} did not become ready within {seconds:g} s")


class WaitingFull(AdmissionError):
    """Enough requests wait for the slot already."""

    def __init__(self, slot: str, limit: int) -> None:
        super().__init__(slot, f"{limit} requests wait for {slot} already")


class SwitchError(NightshiftError):
    """A change of mode did not happen as asked."""


class SwitchUnderWay(SwitchError):
    """Another switch is under way, and this one was not begun."""


class SwitchFailed(SwitchError):
    """The switch failed. The mode before was restored, or the host is idle; the message says which and why."""


class SwitchDeferred(SwitchError):
    """Requests are in flight, and the policy is to let them end first."""


class ReleaseFailed(SwitchError):
    """A stopped backend's memory did not come back. Nothing is loaded over it."""
