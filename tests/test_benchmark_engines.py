"""What the comparison of engines makes of its measurements."""

from __future__ import annotations

import numpy as np

from benchmarks.engines import OURS_LLAMA, REFERENCE, Figures, Row, Turn, compare, describe, draw, goes_on


def measured(name: str, group: str, *seconds: float) -> Row:
    return Row(name, group, "", {}, list(seconds), ours=name == OURS_LLAMA)


def test_a_rival_with_wrong_vectors_is_no_rival() -> None:
    rows = [
        measured(REFERENCE, "sentence-transformers", 4.0),
        measured(OURS_LLAMA, OURS_LLAMA, 5.0, 7.0, 6.0),
        measured("fast and wrong", "llama.cpp", 1.0),
        measured("truncated", "llama.cpp", 1.0),
        measured("right", "llama.cpp", 12.0),
    ]
    right = np.eye(4, dtype=np.float32)
    compare(rows, [right, 2 * right, right[::-1], right[:2], right])
    assert [bool(row.failure) for row in rows] == [False, False, True, True, False]
    figures = Figures(
        4, 600, rows, {OURS_LLAMA: [Turn(90.0, 97.0, 100.0, 0.6, 0.9), Turn(80.0, 90.0, 100.0, 0.6, 0.8)]}
    )
    told = describe(figures)
    assert "the best of llama.cpp (right) | **2.00**" in told
    assert "| the whole of run-now / llama-cpp engine | **0.850 (0.800 to 0.900)** | 0.95 |" in told
    assert "while it had its server / llama-cpp engine | **0.935 (0.900 to 0.970)**" in told
    assert "fast and wrong | its vectors are wrong: the least cosine is 0.00000" in told
    assert draw(figures).count("<rect") == 1 + 3 + 1


def test_slow_settings_of_a_rival_have_one_turn() -> None:
    rows = [
        measured("a", "llama.cpp", 10.0),
        measured("b", "llama.cpp", 11.0),
        measured("c", "llama.cpp", 20.0),
        measured("d", "Llama.embed 2048", 9.0),
        measured(OURS_LLAMA, OURS_LLAMA, 99.0),
    ]
    assert [goes_on(row, rows) for row in rows] == [True, True, False, False, True]
