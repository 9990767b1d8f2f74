"""Mends what `verify` found, kind by kind, while nobody else is at work: rows, then vectors, then whole documents."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import structlog

from pipeline.core.errors import BackendError, LeaseLost, ModelError, StoreError
from pipeline.core.verifying import KINDS, Disagreement, Remedy, Tally
from pipeline.ingest.work import Looking, utc_now
from pipeline.runner.alone import Alone
from pipeline.runner.comparing import same_bytes
from pipeline.runner.reembedding import AT_ONCE, computed, model_server
from pipeline.settings import Settings
from pipeline.store import models
from pipeline.store.checks import remaking, repairs
from pipeline.store.checks.vectors import Sampled
from pipeline.store.models import StoredModel

log = structlog.get_logger(__name__)

BATCH = 500
"""Disagreements mended in one transaction."""

Tell = Callable[[str, int, int], None]
"""Told what is done now, how much of it, and of how much (0: not known)."""


@dataclass(slots=True)
class Mending:
    """One round. mended: counted by code. left: what could not be mended, and why. Both go on from earlier rounds.

    stop: ends it between two transactions.
    """

    settings: Settings
    alone: Alone
    looking: Looking
    tell: Tell
    mended: Counter[str]
    left: list[str]
    stop: asyncio.Event
    progressed: bool = False

    async def mend(self, found: Tally) -> bool:
        """Mend what can be mended; whether anything was."""
        for code, kind in KINDS.items():
            if listed := found.kept.get(code):
                if kind.remedy in (Remedy.ROWS, Remedy.INDEX) or code in ("document-content", "file-bytes"):
                    await self._rows(code, listed)
                elif kind.remedy is Remedy.REMAKE:
                    await self._remake(code, listed)
                elif kind.remedy is Remedy.EMBED:
                    await self._embed(code, listed)
        return self.progressed

    async def _rows(self, code: str, found: Sequence[Disagreement]) -> None:
        for start in range(0, len(found), BATCH):
            if self.stop.is_set():
                return
            some = found[start : start + BATCH]
            self.tell(f"mending: {code}", start, len(found))
            try:
                await self.alone.write(repairs.mend, code, some, utc_now())
            except LeaseLost:
                raise
            except StoreError as error:
                self._leave(f"{code}: {error}")
                return
            self._did(code, len(some))

    async def _embed(self, code: str, found: Sequence[Disagreement]) -> None:
        """Compute vectors again, one model after the other; where a text does not give its tokens, remake."""
        # Where a sample shows a vector that is another one, its neighbours are not to be trusted either.
        whole = code == "vector-other"
        chunks = await self.alone.store.read(remaking.texts_of, [int(one.ids["chunk"]) for one in found], whole=whole)
        known = {model.id: model for model in await self.alone.store.read(models.every_model)}
        for model_id in dict.fromkeys(model_id for model_id, _ in chunks):
            mine = [chunk for of, chunk in chunks if of == model_id]
            self.tell(f"mending: {code}", 0, len(mine))
            try:
                lost = await self._embed_by(known[model_id], code, mine)
            except (ModelError, BackendError) as error:
                self._leave(f"{code}: {error}")
                continue
            for content_id in dict.fromkeys(chunk.content_id for chunk in lost):
                await self._remake_one(code, content_id, [c.chunk_id for c in lost if c.content_id == content_id])

    async def _embed_by(self, model: StoredModel, code: str, chunks: Sequence[Sampled]) -> list[Sampled]:
        """Returns those whose texts do not give their tokens."""
        lost: list[Sampled] = []
        async with model_server(self.settings, model, on_gpu=True) as backend:
            for start in range(0, len(chunks), AT_ONCE):
                if self.stop.is_set():
                    break
                good, bad = await computed(backend, chunks[start : start + AT_ONCE])
                lost += bad
                made = {chunk.chunk_id: vector for chunk, vector in good}
                flaws = await self.alone.write(remaking.put_vectors, made, utc_now())
                for chunk_id, flaw in flaws.items():
                    self._leave(f"{code}: the model server gave chunk {chunk_id} a vector with {flaw}")
                self._did(code, len(made) - len(flaws))
                self.tell(f"mending: {code}", start + len(good) + len(bad), len(chunks))
        return lost

    async def _remake(self, code: str, found: Sequence[Disagreement]) -> None:
        for number, one in enumerate(found):
            if self.stop.is_set():
                return
            self.tell(f"mending: {code}", number, len(found))
            content_id = int(one.ids["content"])
            if code.startswith("document-vector"):
                again = await self.alone.write(remaking.own_vector, content_id)
                self._did(code, 1)
                if again and await self._is_there(content_id):
                    await self.alone.write(remaking.remake, content_id, [], utc_now())
                continue
            lost = [int(one.ids["chunk"])] if code == "queue-tokens" else []
            await self._remake_one(code, content_id, lost)

    async def _remake_one(self, code: str, content_id: int, lost: Collection[int]) -> None:
        if not await self._is_there(content_id):
            self._leave(f"{code}: content {content_id} would be made anew from its file, which is not there as it was")
            return
        await self.alone.write(remaking.remake, content_id, lost, utc_now())
        self._did(code, 1)

    async def _is_there(self, content_id: int) -> bool:
        files = await self.alone.store.read(remaking.files_of, content_id)
        for _, root, path, _, sha256 in files:
            if await same_bytes(root, path, sha256, self.looking):
                return True
        return False

    def _did(self, code: str, count: int) -> None:
        self.mended[code] += count
        self.progressed = self.progressed or count > 0

    def _leave(self, why: str) -> None:
        log.warning("what disagrees was left as it is", why=why)
        if why not in self.left:
            self.left.append(why)
