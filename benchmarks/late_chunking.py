"""What late chunking does to retrieval, and what whole documents cost: the real chunker, engine and questions.

    python -m benchmarks.late_chunking [--chunk-tokens 64,128,256] [--model GGUF]

Two sets of documents. *The inbox*: data/inbox with data/questions.jsonl; a hit is a chunk that touches the right
page (of a DOCX: the right file). *Made*: documents that name their subject in the first paragraph and say "it" from
then on, with the same kinds of facts in each; a hit is the very chunk that holds the fact. The second set is made
for late chunking and shows what it can do at most; the first was written without a thought of it.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.backends.llama_cpp.engine import Engine
from pipeline.backends.llama_cpp.plan import EngineOptions
from pipeline.backends.llama_cpp.tokenizer import GgufTokenizer
from pipeline.backends.llama_cpp.whole import WholeTexts
from pipeline.backends.serving.sequences import Course
from pipeline.core.batching import pack
from pipeline.core.chunking import chunk
from pipeline.core.documents import Chunk, DocumentKind, Extracted
from pipeline.core.errors import NoText
from pipeline.core.stretches import USUAL, WHOLE, late_stretches, whole_document
from pipeline.ingest.extract import extract

ROOT = Path(__file__).parents[1]
DEFAULT_MODEL = ROOT / "data" / "models" / "all-MiniLM-L6-v2-F16.gguf"
DOCUMENTS = 40
SEED = 7
NOBODY = Course()

Matrix = NDArray[np.float32]
IsHit = Callable[[str, Chunk], bool]

_KINDS = ("lighthouse", "windmill", "observatory", "paper mill", "harbour crane", "bell tower", "salt works", "ropeway")
_PLACES = (
    "Aldermere", "Brankov", "Castelrosso", "Dunmore", "Eskilhamn", "Ferrand", "Gorizne", "Hallowby", "Istrava",
    "Kestrel Point", "Lindau", "Montclair", "Norrby", "Ostwick", "Pellworth", "Quarnero",
)  # fmt: skip
_COLOURS = ("red", "white", "grey", "yellow", "dark green", "blue", "black", "ochre")
_FILLERS = (
    "Visitors come mostly in the warm months, when the road is dry and the days are long.",
    "In the archive there are letters about this, though few of them can be dated with certainty.",
    "Much of what is told today goes back to a single newspaper article.",
    "The weather has always been the main concern of those who worked here.",
    "For a long time nobody thought that this was worth writing down.",
    "On some evenings the whole village came to look.",
)
_FACTS = (
    ("It was painted {value} after the great storm.", "What colour was the {kind} at {place} painted?", _COLOURS),
    ("Building it took {value} years, twice the plan.", "How many years did building the {kind} at {place} take?",
     tuple(map(str, range(2, 30)))),
    ("Its last keeper was {value}, still remembered.", "Who was the last keeper of the {kind} at {place}?",
     ("Ada Brun", "Ines Falk", "Rosa Lund", "Mila Kerr", "Vera Holm", "Nora Stein", "Olga Reis", "Tilda Moor")),
    ("It was closed in {value} because money was short.", "When was the {kind} at {place} closed?",
     tuple(map(str, range(1890, 1990)))),
    ("In the cellar beneath it {value} were found.", "What was found in the cellar of the {kind} at {place}?",
     ("silver coins", "old maps", "barrels of wine", "two cannons", "a boat", "church bells", "love letters")),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, and which chunks are the answer."""

    text: str
    is_hit: IsHit


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents by name, and questions about them."""

    documents: dict[str, Extracted]
    questions: list[Question]


@dataclass(frozen=True, slots=True)
class Score:
    """Shares of questions with a hit among the first 1 and 5, the mean reciprocal rank, and tokens and seconds."""

    recall_1: float
    recall_5: float
    reciprocal_rank: float
    tokens: int
    seconds: float


def inbox() -> Corpus:
    """The documents that ship, and the questions about them."""
    documents = {}
    for path in sorted((ROOT / "data" / "inbox").iterdir()):
        try:
            documents[path.name] = extract(path.read_bytes(), DocumentKind(path.suffix[1:]), path.name)
        except NoText:
            continue
    questions = []
    for line in (ROOT / "data" / "questions.jsonl").read_text(encoding="utf-8").splitlines():
        asked = json.loads(line)
        if asked["tag"] == "plain":
            questions.append(Question(asked["question"], _touches(asked["file"], asked.get("page"))))
    return Corpus(documents, questions)


def made(count: int = DOCUMENTS, seed: int = SEED, facts: int = len(_FACTS)) -> Corpus:
    """Documents of so many facts each, 110 tokens to a fact, with a question about every one."""
    choice = random.Random(seed)
    subjects = choice.sample([(kind, place) for kind in _KINDS for place in _PLACES], count)
    documents, questions = {}, []
    for kind, place in subjects:
        name = f"{kind} at {place}"
        parts = [f"The {kind} at {place} is the subject of these pages. " + " ".join(choice.sample(_FILLERS, 3))]
        for sentence, asked, values in choice.sample(_FACTS, facts):
            fact = sentence.format(value=choice.choice(values))
            around = choice.sample(_FILLERS, 5)
            parts.append(" ".join([*around[:2], fact, *around[2:]]))
            questions.append(Question(asked.format(kind=kind, place=place), _holds(name, fact)))
        documents[name] = Extracted("\n\n".join(parts))
    return Corpus(documents, questions)


def _touches(file: str, page: int | None) -> IsHit:
    def is_hit(name: str, piece: Chunk) -> bool:
        pages = (piece.page_first or 0, piece.page_last or 0)
        return name == file and (page is None or pages[0] <= page <= pages[1])

    return is_hit


def _holds(document: str, fact: str) -> IsHit:
    return lambda name, piece: name == document and fact in piece.text


class Bench:
    """One loaded model, on one context of one thread: what is computed is compared, not how it is spread over cores."""

    def __init__(self, model: Path) -> None:
        self.engine = Engine(EngineOptions(model, contexts=1, threads=1))
        self.tokenizer = GgufTokenizer(model)
        self.texts = WholeTexts(self.engine)
        self.limit = min(self.tokenizer.limit, USUAL)

    def cut(self, corpus: Corpus, limit: int) -> list[tuple[str, list[Chunk]]]:
        """The chunks of each document."""
        return [
            (name, chunk(document, self.tokenizer, limit=limit, overlap=limit // 8))
            for name, document in corpus.documents.items()
        ]

    def embed(self, sequences: Sequence[Sequence[int]]) -> Matrix:
        """Unit vectors of token sequences, packed as the server packs them."""
        vectors = np.empty((len(sequences), self.engine.dimension), np.float32)
        lengths = [len(tokens) for tokens in sequences]
        for batch in pack(lengths, self.engine.plan.n_batch, self.engine.plan.n_seq_max):
            some = [np.asarray(sequences[index], np.int32) for index in batch]
            vectors[batch] = self.engine.contexts[0].embed(some)[0]
        return vectors

    def plain(self, chunks: Sequence[Chunk]) -> tuple[Matrix, int]:
        """Vectors of one document's chunks, and the tokens computed for them."""
        return self.embed([piece.tokens for piece in chunks]), sum(len(piece.tokens) for piece in chunks)

    def late(self, text: str, chunks: Sequence[Chunk]) -> tuple[Matrix, int]:
        """Vectors of one document's chunks out of its stretches, and the tokens computed for them."""
        if len(chunks) == 1:
            return self.plain(chunks)
        vectors = np.full((len(chunks), self.engine.dimension), np.nan, np.float32)
        tokens = 0
        for stretch in late_stretches(text, chunks, self.tokenizer, self.limit):
            tokens += len(stretch.tokens)
            inside = [span for span in stretch.spans if span.ordinal != WHOLE]
            ids = np.asarray(stretch.tokens, np.int32)
            found = self.texts.spans(ids, [(span.start, span.end) for span in inside], NOBODY)
            vectors[[span.ordinal for span in inside]] = found
        assert np.isfinite(vectors).all(), "a chunk in no stretch"
        return vectors, tokens

    def score(self, corpus: Corpus, limit: int, *, late: bool) -> Score:
        """How well the questions find their answers, and what the vectors cost."""
        cut = self.cut(corpus, limit)
        began = time.perf_counter()
        found = [self.late(corpus.documents[name].text, chunks) if late else self.plain(chunks) for name, chunks in cut]
        seconds = time.perf_counter() - began
        vectors = np.concatenate([vectors for vectors, _ in found])
        pieces = [(name, piece) for name, chunks in cut for piece in chunks]
        asked = self.embed([self.tokenizer.encode(question.text) for question in corpus.questions])
        ranks = []
        for question, scores in zip(corpus.questions, asked @ vectors.T, strict=True):
            order = np.argsort(-scores, kind="stable")
            ranks.append(next(rank for rank, at in enumerate(order, 1) if question.is_hit(*pieces[at])))
        places = np.asarray(ranks)
        return Score(
            float((places == 1).mean()),
            float((places <= 5).mean()),
            float((1 / places).mean()),
            sum(tokens for _, tokens in found),
            seconds,
        )

    def whole_cost(self, corpus: Corpus, limit: int) -> tuple[int, int, float, float]:
        """Documents with several chunks that the model takes whole; all; seconds for chunks, and for these wholes."""
        cut = self.cut(corpus, limit)
        began = time.perf_counter()
        for _, chunks in cut:
            self.plain(chunks)
        between = time.perf_counter()
        wholes = [whole_document(corpus.documents[n].text, chunks, self.tokenizer, self.limit) for n, chunks in cut]
        for whole in wholes:
            if whole is not None:
                self.embed([whole.tokens])
        return sum(w is not None for w in wholes), len(cut), between - began, time.perf_counter() - between


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a GGUF with mean pooling")
    parser.add_argument("--chunk-tokens", default="64,128,256", help="sizes to try; empty: none (default: 64,128,256)")
    options = parser.parse_args()
    bench = Bench(options.model)
    sizes = [int(size) for size in options.chunk_tokens.split(",") if size]
    print("documents  chunk  method  recall@1  recall@5  MRR    tokens  seconds")
    for name, corpus in (("inbox", inbox()), ("made", made())):
        for size in sizes:
            for late in (False, True):
                s = bench.score(corpus, size, late=late)
                print(
                    f"{name:9}  {size:5}  {'late' if late else 'plain':6}  {s.recall_1:8.3f}  {s.recall_5:8.3f}"
                    f"  {s.reciprocal_rank:.3f}  {s.tokens:6}  {s.seconds:.1f}",
                    flush=True,
                )
    for name, corpus in (("inbox", inbox()), ("made, of three facts", made(facts=3))):
        count, of, chunks, wholes = bench.whole_cost(corpus, 256)
        print(f"own vectors, {name}: {count} of {of} documents computed whole, {wholes:.2f} s on top of {chunks:.2f} s")


if __name__ == "__main__":
    main()
