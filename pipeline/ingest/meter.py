"""What a run measures of itself, for the plans of the next ones."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Self

from pipeline.core.rates import Sample, pages_of


@dataclass(slots=True)
class Busy:
    """The time in which at least one thing was under way; entered once for each of them, side by side too."""

    _under_way: int = 0
    _since: float = 0.0
    _total: float = 0.0

    def __enter__(self) -> Self:
        if self._under_way == 0:
            self._since = time.monotonic()
        self._under_way += 1
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._under_way -= 1
        if self._under_way == 0:
            self._total += time.monotonic() - self._since

    @property
    def seconds(self) -> float:
        """So far, what is under way included."""
        return self._total + (time.monotonic() - self._since if self._under_way else 0.0)


@dataclass(slots=True)
class Meter:
    """documents, pages, characters: read, those without text included. tokens: embedded.

    slowest_request: seconds from sending a request for vectors until they were stored, of the slowest that went well.
    """

    reading: Busy = field(default_factory=Busy)
    embedding: Busy = field(default_factory=Busy)
    documents: int = 0
    pages: int = 0
    characters: int = 0
    tokens: int = 0
    slowest_request: float = 0.0

    def document_read(self, page_count: int, characters: int) -> None:
        """A document was opened and its text is known."""
        self.documents += 1
        self.pages += pages_of(page_count, characters)
        self.characters += characters

    def request_done(self, tokens: int, seconds: float) -> None:
        """The vectors of so many tokens were stored."""
        self.tokens += tokens
        self.slowest_request = max(self.slowest_request, seconds)

    @property
    def sample(self) -> Sample:
        """For `measure_rates`."""
        return Sample(
            pages=self.pages,
            read_seconds=self.reading.seconds,
            tokens=self.tokens,
            embed_seconds=self.embedding.seconds,
            request_seconds=self.slowest_request,
        )
