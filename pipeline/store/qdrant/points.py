"""A chunk as a point: its id, which is the same wherever and whenever it is made, and its payload."""

from __future__ import annotations

import uuid
from typing import Any

from pipeline.store.mirror.contents import Facts, MirroredChunk
from pipeline.store.mirror.outbox import ContentKey

_SPACE = uuid.UUID("6b0f7a56-6c1d-5d0e-9a57-4f6d1c8b2e10")
"""For Nightshift's points alone. Never to be changed: it is in every id."""

INDEXED = ("content", "kind", "source", "path")
"""What a server finds quickly by."""


def point_id(key: ContentKey, ordinal: int) -> str:
    """The id of a chunk's point."""
    return str(uuid.uuid5(_SPACE, f"{key.fingerprint}:{key.sha256}:{key.kind}:{key.recipe}:{ordinal}"))


def content_text(key: ContentKey) -> str:
    """A content's key as its points' payload holds it; the model is the collection's."""
    return f"{key.sha256}:{key.kind}:{key.recipe}"


def content_key(fingerprint: str, payload: object) -> tuple[ContentKey, int] | None:
    """The content and the ordinal that a payload names; None where the point is none of ours."""
    if not isinstance(payload, dict):
        return None
    text, ordinal = payload.get("content"), payload.get("ordinal")
    parts = text.split(":", 2) if isinstance(text, str) else ()
    # More is in no database, and would be more ids than anybody can take back.
    if len(parts) != 3 or type(ordinal) is not int or not 0 <= ordinal < 1 << 31:
        return None
    return ContentKey(fingerprint, *parts), ordinal


def payload_of(key: ContentKey, facts: Facts, chunk: MirroredChunk) -> dict[str, Any]:
    """What a point tells of its chunk: all that a search result shows."""
    files = [f"{root.rstrip('/')}/{path}" for root, path in facts.files]
    source, path = facts.files[0]
    return {
        "content": content_text(key),
        "ordinal": chunk.ordinal,
        "model": facts.model,
        "fingerprint": key.fingerprint,
        "file": files[0],
        "also": files[1:],
        "source": source,
        "path": path,
        "kind": key.kind,
        "title": facts.title,
        "modified": facts.modified.isoformat(),
        "page_first": chunk.page_first,
        "page_last": chunk.page_last,
        "headings": list(chunk.headings),
        "table_header": chunk.prefix,
        "text": chunk.text,
    }
