"""Search, for the HTTP edge: what `runner.searching` answers, in its shapes."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.core.fusion import By
from pipeline.runner.searching import Asked, Embed, answer
from pipeline.store.database import Database
from pipeline.web.search_shapes import DocumentResults, SearchResults


@dataclass(frozen=True, slots=True)
class Searching:
    """What search asks and answers. by: what passages are ranked by unless a request says."""

    store: Database
    embed: Embed
    by: By

    async def passages(self, asked: Asked) -> SearchResults:
        """As `answer`."""
        return SearchResults.model_validate(await answer(self.store, asked, self.embed, self.by))

    async def documents(self, asked: Asked) -> DocumentResults:
        """The same, of whole documents."""
        return DocumentResults.model_validate(await answer(self.store, asked, self.embed, self.by))
