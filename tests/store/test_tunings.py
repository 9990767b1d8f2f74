"""Tunings are kept by model, device, build and engine."""

from __future__ import annotations

import dataclasses
import datetime as dt

from pipeline.store.database import Database
from pipeline.store.models import ensure_model
from pipeline.store.tunings import StoredTuning, all_tunings, forget_tunings, keep_tuning, sample_texts, tunings_of
from tests.store.old_rows import ROWS, insert

NOW = dt.datetime(2026, 6, 2, 2, tzinfo=dt.UTC)
FIRST = StoredTuning(
    fingerprint="cls:f",
    device="A processor, 2 cores",
    build="1.0 (CPU: AVX2)",
    engine="llama-cpp",
    options={"n_batch": 384, "contexts": 2, "flash_attn": "on", "use_extra_bufts": False},
    tokens_per_second=6320.5,
    trials=[
        {"options": {}, "tokens_per_second": [5000.25, 5001.5], "problem": None},
        {"options": {"n_batch": 8}, "tokens_per_second": [], "problem": "SIGSEGV; größer"},
    ],
    measured_at=NOW,
)


def test_a_tuning_comes_back_as_it_was_kept(store: Database) -> None:
    with store.begin() as session:
        keep_tuning(session, FIRST)
    with store.snapshot() as session:
        assert tunings_of(session, "cls:f") == [FIRST]
        assert tunings_of(session, "f") == []


def test_a_later_one_takes_the_place_of_the_one_before_and_no_others(store: Database) -> None:
    others = [
        dataclasses.replace(FIRST, device="another", measured_at=NOW - dt.timedelta(days=1)),
        dataclasses.replace(FIRST, build="another", measured_at=NOW - dt.timedelta(days=2)),
        dataclasses.replace(FIRST, engine="another", measured_at=NOW - dt.timedelta(days=3)),
    ]
    later = dataclasses.replace(FIRST, options={}, tokens_per_second=7000.0, trials=[], measured_at=NOW)
    with store.begin() as session:
        for tuning in [FIRST, *others, later]:
            keep_tuning(session, tuning)
    with store.snapshot() as session:
        assert tunings_of(session, "cls:f") == [later, *others]


def test_what_is_forgotten_is_gone_and_other_models_keep_theirs(store: Database) -> None:
    other = dataclasses.replace(FIRST, fingerprint="g")
    with store.begin() as session:
        keep_tuning(session, FIRST)
        keep_tuning(session, other)
        assert forget_tunings(session, "cls:f") == 1
        assert forget_tunings(session, "cls:f") == 0
    with store.snapshot() as session:
        assert tunings_of(session, "cls:f") == []
        assert tunings_of(session, "g") == [other]


def test_all_that_is_kept_is_told_with_the_names_of_models(store: Database) -> None:
    now = FIRST.measured_at
    with store.begin() as session:
        ensure_model(session, fingerprint="g", name="Gee", path="/g", size=1, mtime_ns=1, dimension=4, now=now)
        keep_tuning(session, FIRST)
        keep_tuning(session, dataclasses.replace(FIRST, fingerprint="g", measured_at=now + dt.timedelta(hours=1)))
    with store.snapshot() as session:
        assert [(name, one.fingerprint) for name, one in all_tunings(session)] == [("Gee", "g"), (None, "cls:f")]


def test_a_sample_holds_texts_of_the_model_each_once(store: Database) -> None:
    with store.snapshot() as session:
        assert sample_texts(session, 1, 10) == []
    insert(store.engine, ROWS[max(ROWS)])
    with store.snapshot() as session:
        everything = sample_texts(session, 1, 100)
        assert sorted(everything) == sorted({"first", "zweiter Teil, größer", "outdated", "stored", "queued", "whole"})
        assert set(sample_texts(session, 1, 2)) <= set(everything)
        assert len(sample_texts(session, 1, 2)) == 2
        assert sample_texts(session, 2, 10) == []
