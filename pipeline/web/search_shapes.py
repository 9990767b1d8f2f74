"""What a search takes and gives, as JSON: what `runner.searching` answers, described."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field

from pipeline.core.fusion import By
from pipeline.runner.searching import MOST_PARTS, Asked
from pipeline.web.shapes import InAddress, Request, Shape


class DocumentParameters(Request):
    """The query of `/api/search/documents`; see `Filter`."""

    q: InAddress = Field(min_length=1, max_length=8000, description="What to look for.")
    k: int = Field(default=5, ge=1, le=1000, description="How many results.")
    source: list[InAddress] = Field(
        default=[], max_length=MOST_PARTS, description="Only what lies in this folder or file; an absolute path."
    )
    path: list[InAddress] = Field(
        default=[], max_length=MOST_PARTS, description="Only files whose path in their source matches this glob."
    )
    type: list[InAddress] = Field(default=[], max_length=MOST_PARTS, description="Only these: pdf, docx, text.")
    after: InAddress | None = Field(
        default=None, description="Only files changed then or later: 2026-01-31, or 7d ago."
    )
    before: InAddress | None = Field(default=None, description="Only files changed before that.")
    explain: bool = Field(default=False, description="Say how each result came to its place.")

    def asked(self) -> Asked:
        """The same, for `runner.searching`."""
        return Asked(self.q, documents=True, **self.model_dump(exclude={"q"}))


class SearchParameters(DocumentParameters):
    """The query of `/api/search`."""

    by: By | None = Field(default=None, description="What to rank by; as the settings have it where left out.")
    per_document: int | None = Field(default=None, ge=1, le=1000, description="So many passages of one document.")

    def asked(self) -> Asked:
        """The same, for `runner.searching`."""
        return Asked(self.q, **self.model_dump(exclude={"q"}))


class Place(Shape):
    """Where a passage stands in one ranking. score: the cosine, or BM25, of which `words` has each word's part.

    weight: how much the rank counts in a fused score; share: what it adds to that.
    """

    rank: int
    score: float
    words: Mapping[str, float] = Field(default_factory=dict)
    weight: float | None = None
    share: float | None = None


class Explanation(Shape):
    """How a search went. documents: how many different ones the filter left. milliseconds: by part.

    how: what each ranking was made with. candidates: passages that it gave.
    """

    documents: int | None
    how: Mapping[str, str]
    candidates: Mapping[str, int]
    milliseconds: Mapping[str, float]


class SearchHit(Shape):
    """A passage. score: fused, the cosine, or BM25. also: other files that hold the same document. pages: first, last.

    link: opens the file on the host, a PDF at the passage's page. table_header: of the table that the text begins
    inside of. highlights: ranges of characters of `text` that are words of the question; excerpt: the range that says
    most. ranks: in each ranking that has it, `vector` and `text`.
    """

    rank: int
    score: float
    file: str
    also: Sequence[str] = ()
    link: str
    type: str
    modified: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    title: str | None
    pages: tuple[int, int] | None
    heading: str | None
    headings: Sequence[str] = ()
    table_header: str | None = None
    text: str
    highlights: Sequence[tuple[int, int]] = ()
    excerpt: tuple[int, int]
    ranks: Mapping[str, int] = Field(default_factory=dict)
    explain: Mapping[str, Place] | None = None


class DocumentHit(Shape):
    """A document, found by its own vector. score: the cosine. also: other files that hold it. pages: how many.

    method: how its vector was made: `model`, of all its text at once, or `mean`, of its passages' vectors.
    """

    rank: int
    score: float
    file: str
    also: Sequence[str] = ()
    link: str
    type: str
    modified: str | None = Field(default=None, json_schema_extra={"format": "date-time"})
    title: str | None
    pages: int
    method: str


class _Results(Shape):
    """model: that search uses; None where nothing was embedded yet. by: what was ranked by.

    degraded: why it was by words alone, though not asked so. nothing: why there are no results, where there are none.
    """

    query: str
    model: str | None
    by: By
    degraded: str | None = None
    nothing: str | None = None
    explain: Explanation | None = None


class SearchResults(_Results):
    """Passages, best first."""

    results: Sequence[SearchHit]


class DocumentResults(_Results):
    """Documents, best first."""

    results: Sequence[DocumentHit]
