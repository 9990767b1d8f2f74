"""The connection to a Qdrant server, or to a folder in Qdrant's local mode.

Every call blocks, may take seconds, and fails as a `MirrorError` with one line for a person.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeVar

import numpy as np
import stamina
from numpy.typing import NDArray

from pipeline.core.errors import MirrorAway, MirrorError, MirrorRefused
from pipeline.core.redaction import redacted
from pipeline.store.mirror.outbox import ContentKey
from pipeline.store.qdrant import local
from pipeline.store.qdrant.errors import explained, in_a_line, passes
from pipeline.store.qdrant.points import INDEXED, content_key, content_text

if TYPE_CHECKING:
    from qdrant_client import QdrantClient

P = ParamSpec("P")
T = TypeVar("T")

TIMEOUT = 20
"""Seconds for one request."""

TRIES = 3
"""At once, against what passes by itself."""

PAGE = 1000
"""Points read at once."""

NUMBERS = 100_000
"""In the vectors of one request, about: some megabytes as JSON, of the 32 that a server takes."""

POINTS = 128
"""In one request, at most."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where Qdrant is: a server's `url`, or a folder's `path`. collection: how the collections' names begin."""

    url: str | None
    path: Path | None
    collection: str
    api_key: str | None = field(default=None, repr=False)

    @property
    def location(self) -> str:
        """What tells one place from another, without anything secret."""
        return redacted(f"{self.url or self.path} {self.collection}")


@dataclass(frozen=True, slots=True)
class HeldPoint:
    """A point that is there. content, ordinal: what it says that it is of; none where it is not ours."""

    id: str | int
    content: ContentKey | None
    ordinal: int
    payload: dict[str, Any]
    vector: NDArray[np.float32] | None = None


class Qdrant:
    """An open connection. Close it, or use it as a context manager; several threads may use it.

    given_up: set to have the calls that are under way end before their next request.
    """

    def __init__(self, place: Place, client: QdrantClient, lock: int | None) -> None:
        self.place = place
        self._client = client
        self._lock = lock
        self.given_up = False
        self._known: set[str] = set()
        # The local mode is one Python object without locks of its own.
        self._turn: contextlib.AbstractContextManager[Any] = (
            threading.RLock() if place.path is not None else contextlib.nullcontext()
        )

    @classmethod
    def open(cls, place: Place) -> Self:
        """Connect. A server is not asked anything yet.

        Raises:
            MirrorAway: the package is not installed, or the folder is in use or cannot be read.
        """
        try:
            from qdrant_client import QdrantClient
            from qdrant_client.common.client_warnings import SEEN_MESSAGES
        except ImportError as error:
            raise MirrorAway("Qdrant's client is not installed: .venv/bin/pip install -e '.[qdrant]'") from error
        SEEN_MESSAGES.add("large-local-collection")  # the setting says it
        lock = None if place.path is None else local.hold(place.path)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                if place.path is not None:
                    client = QdrantClient(path=str(place.path), force_disable_check_same_thread=True)
                    local.hasten(client)
                else:
                    # As a header: beside a plain http URL, an `api_key` is a warning each time.
                    headers = {"api-key": place.api_key} if place.api_key else None
                    client = QdrantClient(url=place.url, timeout=TIMEOUT, headers=headers, check_compatibility=False)
        except Exception as error:
            # A folder whose files are broken lets a dozen kinds of it through.
            if lock is not None:
                os.close(lock)
            raise MirrorAway(f"Qdrant at {place.url or place.path} cannot be opened: {in_a_line(error)}") from error
        return cls(place, client, lock)

    def close(self) -> None:
        """Let go of it."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._client.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    @property
    def location(self) -> str:
        """As `Place.location`."""
        return self.place.location

    def name_of(self, fingerprint: str) -> str:
        """The collection of a model."""
        pooling, _, digest = fingerprint.rpartition(":")
        return "-".join(part for part in (self.place.collection, pooling, digest[:16]) if part)

    def exists(self, fingerprint: str) -> bool:
        """Whether a model has its collection."""
        return self._call(self._client.collection_exists, self.name_of(fingerprint))

    def ensure(self, fingerprint: str, dimension: int) -> None:
        """Make a model's collection, where it is not there yet.

        Raises:
            MirrorRefused: a collection of that name holds other vectors.
        """
        from qdrant_client import models

        name = self.name_of(fingerprint)
        if name in self._known:
            return
        if not self._call(self._client.collection_exists, name):
            # Of unit vectors the scalar product is the cosine, and they stay as they are, to the last bit.
            wanted = models.VectorParams(size=dimension, distance=models.Distance.DOT)
            try:
                self._call(self._client.create_collection, name, vectors_config=wanted)
            except MirrorRefused:
                # Made by a try whose answer was lost.
                if not self._call(self._client.collection_exists, name):
                    raise
            if self.place.path is not None:
                self._call(local.hasten, self._client)
        found = self._call(self._client.get_collection, name).config.params.vectors
        if not isinstance(found, models.VectorParams) or found.size != dimension:
            raise MirrorRefused(f"Qdrant's collection {name} holds other vectors: choose another qdrant.collection")
        if self.place.path is None:
            for key in INDEXED:
                self._call(
                    self._client.create_payload_index,
                    name,
                    field_name=key,
                    field_schema=models.PayloadSchemaType.KEYWORD,
                    wait=True,
                )
        self._known.add(name)

    def upsert(
        self,
        fingerprint: str,
        ids: Sequence[str],
        vectors: Sequence[NDArray[np.float32]],
        payloads: Sequence[dict[str, Any]],
    ) -> None:
        """Put points into a model's collection, over those of the same ids; they are stored when this returns."""
        from qdrant_client import models

        for start in range(0, len(ids), step := max(1, min(POINTS, NUMBERS // max(1, len(vectors[0]))))) if ids else ():
            part = slice(start, start + step)
            batch = models.Batch(
                ids=list(ids[part]),
                vectors=[vector.tolist() for vector in vectors[part]],
                payloads=list(payloads[part]),
            )
            self._call(self._client.upsert, self.name_of(fingerprint), points=batch, wait=True)
        self._make_durable(fingerprint)

    def delete(self, fingerprint: str, ids: Sequence[str | int]) -> None:
        """Take points out of a model's collection, where they are in it."""
        from qdrant_client import models

        for start in range(0, len(ids), PAGE):
            part = models.PointIdsList(points=list(ids[start : start + PAGE]))
            self._call(self._client.delete, self.name_of(fingerprint), points_selector=part, wait=True)
        self._make_durable(fingerprint)

    def retrieve(self, fingerprint: str, ids: Sequence[str]) -> dict[str, HeldPoint]:
        """Those of the points that are there, whole."""
        name = self.name_of(fingerprint)
        rows = self._call(self._client.retrieve, name, ids=list(ids), with_payload=True, with_vectors=True)
        return {str(row.id): _held(fingerprint, row) for row in rows}

    def held(self, fingerprint: str) -> Iterator[list[HeldPoint]]:
        """All points of a model's collection, in pages, without their vectors and texts."""
        offset: Any = None
        while True:
            rows, offset = self._call(
                self._client.scroll,
                self.name_of(fingerprint),
                limit=PAGE,
                offset=offset,
                with_payload=["content", "ordinal"],
                with_vectors=False,
            )
            yield [_held(fingerprint, row) for row in rows]
            if offset is None:
                return

    def nearest(
        self,
        fingerprint: str,
        question: NDArray[np.float32],
        limit: int,
        contents: Sequence[ContentKey] | None = None,
    ) -> list[tuple[ContentKey, int]]:
        """The contents and ordinals of the points nearest to `question`, best first. contents: of these alone."""
        from qdrant_client import models

        only = None
        if contents is not None:
            match = models.MatchAny(any=[content_text(key) for key in contents])
            only = models.Filter(must=[models.FieldCondition(key="content", match=match)])
        ask = functools.partial(
            self._client.query_points,
            self.name_of(fingerprint),
            query=question.tolist(),
            query_filter=only,
            limit=limit,
            with_payload=["content", "ordinal"],
        )
        # Once: somebody waits, and there is the database.
        found = self._tried(1, ask)
        named = [content_key(fingerprint, point.payload) for point in found.points]
        return [one for one in named if one is not None]

    def counts(self) -> dict[str, int]:
        """How many points each of our collections holds, by its name."""
        names = [found.name for found in self._call(self._client.get_collections).collections]
        mine = sorted(name for name in names if name.startswith(f"{self.place.collection}-"))
        return {name: self._call(self._client.count, name, exact=True).count for name in mine}

    def show(self, fingerprint: str) -> None:
        """Let the alias stand for a model's collection, in one step. Its own name is `place.collection`."""
        from qdrant_client import models

        alias, name = self.place.collection, self.name_of(fingerprint)
        aliases = self._call(self._client.get_aliases).aliases
        if any((one.alias_name, one.collection_name) == (alias, name) for one in aliases):
            return
        changes: list[Any] = []
        if any(one.alias_name == alias for one in aliases):
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        create = models.CreateAlias(collection_name=name, alias_name=alias)
        changes.append(models.CreateAliasOperation(create_alias=create))
        self._call(self._client.update_collection_aliases, change_aliases_operations=changes)

    def drop(self, name: str) -> None:
        """Delete a collection, by its name, with all that is in it."""
        self._known.discard(name)
        self._call(self._client.delete_collection, name)

    def _make_durable(self, fingerprint: str) -> None:
        """What was written before this returns is there after a power cut."""
        if self.place.path is not None:
            self._call(local.make_durable, self._client, self.name_of(fingerprint))

    def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self._tried(TRIES, functools.partial(function, *args, **kwargs))

    def _tried(self, tries: int, call: Callable[[], T]) -> T:
        try:
            for attempt in stamina.retry_context(on=passes, attempts=tries, wait_initial=0.2, wait_max=2.0):
                with attempt:
                    return self._once(call)
        except MirrorError:
            raise
        except Exception as error:
            # Whatever it is: the client asserts what a server answers, and its errors are no one's children.
            self._known.clear()  # a collection may be gone
            raise explained(self.place.url, self.place.path, error) from error
        raise AssertionError

    def _once(self, call: Callable[[], T]) -> T:
        with self._turn:
            if self.given_up:
                raise MirrorAway("stopped")
            return call()


def _held(fingerprint: str, row: Any) -> HeldPoint:
    named = content_key(fingerprint, row.payload)
    key, ordinal = named if named is not None else (None, 0)
    vector = None if row.vector is None else np.asarray(row.vector, np.float32)
    return HeldPoint(row.id, key, ordinal, row.payload or {}, vector)
