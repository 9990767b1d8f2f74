"""What a run may still begin, and how much it asks of the model server at once.

A run begins nothing that it cannot finish and store before it has to end. A request is as large as the server
answers in one to three seconds: then progress is seen, little is lost with a crash, and a stop need not wait.
"""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.core.documents import DocumentKind
from pipeline.core.plan import Backlog, plan_window
from pipeline.core.rates import Rate, Rates, Sample, measure_rates
from pipeline.ingest.meter import Meter

PASSED_OVER = 64
"""Documents in a row that are too long for the time that is left, after which no more are looked at."""


SECONDS_UNDER_WAY = 2.0
"""Work that is at the model server at once, in seconds of its own speed."""

LONGEST_ANSWER = 5.0
"""Requests that took long keep a run from sending anything in its last seconds; in no more than these."""

SECONDS_TOGETHER = 10.0
"""Documents are embedded in groups of about so much work, within which chunks of like length go together."""

REMEMBERED = 10.0
"""Seconds of answers after which the speed of earlier ones counts for a third."""


@dataclass(slots=True)
class Speed:
    """How fast the model server answers: tokens a second, the last answers above all."""

    _tokens: float = 0.0
    _seconds: float = 0.0

    def answered(self, tokens: int, seconds: float) -> None:
        """So many tokens were answered in so many seconds, in which at least one request was under way."""
        kept = math.exp(-max(0.0, seconds) / REMEMBERED)
        self._tokens = self._tokens * kept + tokens
        self._seconds = self._seconds * kept + max(seconds, 1e-6)

    @property
    def tokens_per_second(self) -> float | None:
        """None before the first answer."""
        return self._tokens / self._seconds if self._seconds else None


def plan_request(
    speed: float | None, *, requests: int, tokens: int, contexts: int, most_requests: int, most_tokens: int
) -> int | None:
    """Tokens that the next request may hold; one chunk is always allowed. None: wait for an answer first.

    speed: tokens a second of the server, None while that is not known: the first request is one chunk.
    requests, tokens: what is under way. contexts: batches that the server computes side by side, each of which needs
    a request of its own where a chunk takes seconds.
    """
    if speed is None:
        return None if requests else 1
    wanted = speed * SECONDS_UNDER_WAY
    size = min(most_tokens, max(1, round(wanted / most_requests)))
    if requests < min(contexts, most_requests):
        return size
    return size if requests < most_requests and tokens + size <= wanted else None


@dataclass(slots=True)
class Pace:
    """Asks the plan whether the next piece of work still fits.

    stop_at: when the run has to be over; None is never. clock: by which.
    earlier: what the last runs measured, newest first. bytes_a_page: of documents by their kind.
    workers: documents that are read side by side.
    passed_over_at: when something was last left for a later run because its time would not have been enough.
    """

    stop_at: dt.datetime | None
    clock: Callable[[], dt.datetime]
    earlier: Sequence[Sample] = ()
    bytes_a_page: Mapping[str, float] = field(default_factory=dict)
    workers: int = 1
    passed_over_at: dt.datetime | None = None

    def pass_over(self) -> None:
        """Leave something for a later run."""
        self.passed_over_at = self.clock()

    @property
    def passed_over(self) -> bool:
        """Whether something was left for a later run."""
        return self.passed_over_at is not None

    @property
    def out_of_time(self) -> bool:
        """Whether something was left, and it is still that late: a clock that leapt ahead has not come back since."""
        return self.passed_over_at is not None and self.clock() >= self.passed_over_at

    @property
    def seconds_left(self) -> float:
        """Until the run has to be over."""
        return math.inf if self.stop_at is None else (self.stop_at - self.clock()).total_seconds()

    def may_read(self, kind: DocumentKind, size: int, meter: Meter) -> bool:
        """Whether a document of so many bytes can be read in time; where nothing is known of the speed, it may try."""
        if self.stop_at is None:
            return True
        rates = self._rates(meter)
        a_page = self.bytes_a_page.get(kind.value)
        if rates.pages is None or a_page is None:
            return self.seconds_left > 0
        pages = max(1.0, size / a_page)
        # A document has one worker, and the rate is that of all of them.
        alone = Rates(pages=_scaled(rates.pages, 1 / self.workers))
        return self._fits(Backlog(documents=1, pages=pages), alone, self.seconds_left, reads_only=True)

    def may_send(self, tokens: int, meter: Meter) -> bool:
        """Whether a request for vectors, with what is under way already, can be answered and stored in time."""
        if self.stop_at is None:
            return True
        rates = self._rates(meter)
        if rates.tokens is None:
            return self.seconds_left > 0
        if min(rates.request_seconds, LONGEST_ANSWER) > self.seconds_left:
            return False
        return self._fits(Backlog(tokens=tokens), rates, self.seconds_left)

    def _fits(self, backlog: Backlog, rates: Rates, seconds: float, *, reads_only: bool = False) -> bool:
        return plan_window(backlog, rates, seconds, reads_only=reads_only, at="low").complete

    def _rates(self, meter: Meter) -> Rates:
        """From this run, as soon as it measured anything, and the ones before it."""
        return measure_rates([meter.sample, *self.earlier])


def _scaled(rate: Rate, by: float) -> Rate:
    return Rate(rate.low * by, rate.likely * by, rate.high * by)
