"""Reads a text that was handed in as such, with what its sender said about it."""

from __future__ import annotations

import json

from pipeline.core.documents import Extracted
from pipeline.core.errors import Broken, NoText


def read_note(data: bytes) -> Extracted:
    """A JSON object with `text`, and `metadata` of names and values; its `title` becomes the title.

    Raises:
        Broken: it is no such object.
        NoText: the text is blank.
    """
    if not data:
        raise Broken("the file has no bytes")
    try:
        note = json.loads(data)
        text, metadata = note["text"], note.get("metadata") or {}
        plain = {str(name): value if isinstance(value, str) else json.dumps(value) for name, value in metadata.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Broken("damaged: a .text file is a JSON object with the key text") from error
    if not isinstance(text, str) or not text.strip():
        raise NoText("the text is blank")
    # What JSON may hold and no encoding can: half a surrogate pair.
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    return Extracted(text, title=plain.get("title"), metadata=plain, engine="json")
