"""Search, for the HTTP edge: what `runner.searching` answers, in its shapes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from pipeline.core.fusion import By
from pipeline.runner.searching import Asked, Embed, answer
from pipeline.runner.target import unaliased
from pipeline.settings import Settings
from pipeline.store.database import Database
from pipeline.web.search_shapes import DocumentResults, SearchResults


@dataclass(frozen=True, slots=True)
class Searching:
    """What search asks and answers."""

    store: Database
    embed: Embed
    settings: Settings

    async def passages(self, asked: Asked) -> SearchResults:
        """As `answer`."""
        return SearchResults.model_validate(await self._answer(asked))

    async def documents(self, asked: Asked) -> DocumentResults:
        """The same, of whole documents."""
        return DocumentResults.model_validate(await self._answer(asked))

    async def _answer(self, asked: Asked) -> dict[str, Any]:
        asked = replace(asked, model=unaliased(self.settings, asked.model))
        return await answer(self.store, asked, self.embed, By(self.settings.search.by))
