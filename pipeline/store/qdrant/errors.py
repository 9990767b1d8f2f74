"""What went wrong with Qdrant, in one line, and whether it was Qdrant that is away or what it was sent."""

from __future__ import annotations

from pathlib import Path

from pipeline.core.errors import MirrorAway, MirrorError, MirrorRefused

_REFUSES = (400, 404, 409, 413, 422)
_MOST = 300


def passes(error: Exception) -> bool:
    """Whether a second try soon may go better."""
    from qdrant_client.http.exceptions import ResponseHandlingException, UnexpectedResponse

    if isinstance(error, UnexpectedResponse):
        return (error.status_code or 0) >= 500
    return isinstance(error, ResponseHandlingException)


def explained(url: str | None, path: Path | None, error: Exception) -> MirrorError:
    """What the client raised, for a person."""
    from qdrant_client.http.exceptions import UnexpectedResponse

    where = url or path
    if not isinstance(error, UnexpectedResponse):
        # The local mode answers so what a server refuses.
        refused = path is not None and isinstance(error, ValueError | KeyError)
        return (MirrorRefused if refused else MirrorAway)(f"Qdrant at {where} cannot be used: {in_a_line(error)}")
    status = error.status_code or 0
    said = " ".join(error.content.decode(errors="replace").split())[:_MOST]
    if status in (401, 403):
        return MirrorAway(f"Qdrant at {where} wants another key ({status}): set qdrant.api_key")
    kind = MirrorRefused if status in _REFUSES else MirrorAway
    return kind(f"Qdrant at {where} answered {status}: {said}")


def in_a_line(error: BaseException) -> str:
    """What an error says, or what it is."""
    cause = getattr(error, "source", None) or error
    return (" ".join(str(cause).split()) or type(cause).__name__)[:_MOST]
