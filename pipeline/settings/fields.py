"""Every setting: its name, type, default, limits and meaning.

`Settings(...)` takes values as they are and reads neither files nor the environment;
`loading.load` does that, and resolves paths. docs/configuration.md is tested against this.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from pipeline.core.globs import compile_globs
from pipeline.core.stretches import LONGEST
from pipeline.settings.consistency import contradictions
from pipeline.settings.description import KnownSetting, Plain, describe, secrets_of, section_of, shown, value_of

SHIPPED_MODEL = "all-MiniLM-L6-v2-F16.gguf"


def _refuse_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("int_type", "Input should be a valid integer")
    return value


Whole = Annotated[int, BeforeValidator(_refuse_bool)]
Seconds = Annotated[float, BeforeValidator(_refuse_bool), Field(gt=0, allow_inf_nan=False)]


def _listed(value: object) -> object:
    """The environment has no lists: there they are one text, with commas."""
    return [part for each in value.split(",") if (part := each.strip())] if isinstance(value, str) else value


def _one_a_line(value: object) -> object:
    return [line for line in value.splitlines() if line] if isinstance(value, str) else value


def _server(value: str) -> str:
    """An address of a server, as far as its form goes."""
    try:
        parts = urlsplit(value)
        known = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number or too large, or half an IPv6 address
        known = False
    if not known or re.search(r"[\s\x00-\x1f\\]", value):
        raise PydanticCustomError("url", "should begin with http:// or https://, and name a host and, if any, its port")
    return value


Server = Annotated[str, AfterValidator(_server)]
Globs = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Passwords = Annotated[tuple[SecretStr, ...], BeforeValidator(_one_a_line)]
FlashAttention = Literal["auto", "on", "off"]
Backend = Literal["auto", "llama-cpp", "sentence-transformers", "llama-server", "vllm", "remote"]

_BACKEND = (
    "The model server of the daemon: `llama-cpp` (our own), `sentence-transformers` (our own, for embedding, with the "
    "extra `torch`), `llama-server`, `vllm`, or `remote` (somebody else runs it); `auto` chooses by the host and the "
    "model."
)
_ALIAS = "More names by which the model may be called, as a list, besides its own and those of its file."
_URL = "Where a `remote` server is, without `/v1`."
_REMOTE_KEY = "The key that a `remote` server wants."


def _meant(value: str) -> str:
    """A question whether a file was meant, where that is likely: anything else may hold a password."""
    likely = re.fullmatch(r"[/.~]?[\w./ -]+", value) and (value[0] in "/.~" or value.endswith((".db", ".sqlite")))
    return f', did you mean "sqlite:///{value}"?' if likely else ""


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)


class EmbeddingSettings(_Section):
    """The embedding model, how it is loaded, and how its server is called."""

    model: str = Field(
        default=SHIPPED_MODEL,
        min_length=1,
        description="The embedding model: a GGUF file, looked for from where it is named, then in `data_dir`/models; "
        "a Hugging Face model directory, with the extra `torch`; or `hf:OWNER/REPO/FILE` or `hf:OWNER/REPO`, "
        "downloaded once.",
    )
    alias: Globs = Field(default=(), description=_ALIAS)
    backend: Backend = Field(default="auto", description=_BACKEND)
    url: Server | None = Field(default=None, description=_URL)
    api_key: SecretStr | None = Field(default=None, min_length=1, description=_REMOTE_KEY)
    n_gpu_layers: Whole = Field(
        default=-1,
        ge=-1,
        description="Layers on the GPU: -1 is all of them where llama.cpp was built for a GPU, 0 is none.",
    )
    threads: Whole | None = Field(
        default=None,
        ge=1,
        le=1024,
        description="Processor threads of each context; not set: the usable cores, shared out among the contexts.",
    )
    n_batch: Whole | None = Field(
        default=None,
        ge=1,
        description="Tokens packed into one batch, best small; not set: as `tune` found, else 384 on a CPU, "
        "1024 on a GPU.",
    )
    n_ubatch: Whole | None = Field(
        default=None,
        ge=1,
        description="The most tokens in one batch, and so the longest chunk; at least `embedding.n_batch`; "
        "not set: as the model allows.",
    )
    contexts: Whole | None = Field(
        default=None,
        ge=1,
        le=64,
        description="Batches computed side by side over the one loaded model; not set: as `tune` found, "
        "else by the device.",
    )
    flash_attn: FlashAttention | None = Field(
        default=None, description="Flash attention: `auto`, `on` or `off`; not set: `on` on a CPU, `auto` on a GPU."
    )
    pooling: Literal["", "mean", "cls", "last"] = Field(
        default="",
        description="How token vectors become one: `mean`, `cls` or `last`; empty: as the model's file says.",
    )
    document_tokens: Whole | None = Field(
        default=None,
        ge=0,
        le=LONGEST,
        description="Tokens of the longest document whose own vector the model computes from all of its text, at most "
        "32768; 0: none; not set: as the model allows, on a CPU 8192.",
    )
    late_chunking: bool = Field(
        default=False,
        description="Compute documents whole, or in stretches of `embedding.document_tokens`, and cut the chunks' "
        "vectors out of that; for models with mean pooling, and our own server. With the model that ships, ordinary "
        "questions find less so (docs/performance.md).",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto",
        description="Numbers of a model directory's weights: `auto` is `float16` on a GPU, `bfloat16` on processors "
        "that have it, and `float32` elsewhere.",
    )
    mlock: bool = Field(default=False, description="Keep the model in memory, never swapped out.")
    use_extra_bufts: bool = Field(
        default=True,
        description="Let llama.cpp rearrange weights for the processor; turned off by itself after a crash.",
    )
    connect_timeout: Seconds = Field(default=10.0, description="Seconds to connect to the model server.")
    read_timeout: Seconds = Field(
        default=60.0,
        description="Seconds in which the model server computes nothing, after which it counts as hung and is started "
        "anew. It may take any time while it computes. Of a server that shows no progress (`remote`, and `vllm` or "
        "`llama-server` on a GPU): seconds without an answer.",
    )
    total_timeout: Seconds = Field(
        default=120.0,
        description="Seconds that a server which cannot answer for the moment (429, 5xx, no connection) is asked again "
        "before a run ends. Of a server that shows no progress: seconds for one request as well, retries included.",
    )
    gzip: bool = Field(
        default=False,
        description="Compress large request bodies; pays only where the model server is on another machine.",
    )


class GenerationSettings(_Section):
    """The language model, and how it is loaded."""

    model: str | None = Field(
        default=None,
        min_length=1,
        description="The language model: a GGUF file, a Hugging Face model folder, or an `hf:` name; not set: none.",
    )
    alias: Globs = Field(default=(), description=_ALIAS)
    backend: Backend = Field(default="auto", description=_BACKEND)
    url: Server | None = Field(default=None, description=_URL)
    api_key: SecretStr | None = Field(default=None, min_length=1, description=_REMOTE_KEY)
    n_ctx: Whole = Field(default=4096, ge=1, description="Tokens of context.")
    n_gpu_layers: Whole = Field(default=-1, ge=-1, description="Layers on the GPU: -1 is all of them, 0 is none.")
    n_batch: Whole = Field(default=2048, ge=1, description="Prompt tokens handed over at once.")
    n_ubatch: Whole = Field(default=2048, ge=1, description="Prompt tokens computed at once.")
    flash_attn: FlashAttention | None = Field(
        default=None, description="Flash attention: `auto`, `on` or `off`; not set: by the device."
    )
    threads: Whole | None = Field(
        default=None, ge=1, le=1024, description="Processor threads; not set: one for each usable core."
    )
    mlock: bool = Field(default=False, description="Keep the model in memory, never swapped out.")
    cont_batching: bool = Field(default=True, description="Let requests join while others are computed.")
    fit_memory: bool = Field(
        default=False, description="Let llama-server lower what was not asked for until the model fits."
    )
    jinja: bool = Field(default=True, description="Use the model's own chat template.")
    pooling: Literal["", "mean", "cls", "last"] = Field(
        default="", description="How token vectors become one, where the language model is asked for embeddings."
    )
    use_extra_bufts: bool = Field(
        default=True,
        description="Let llama.cpp rearrange weights for the processor; turned off by itself after a crash.",
    )
    gpu_memory_utilization: float = Field(
        default=0.9, gt=0, le=1, description="vLLM: the share of the GPU's memory that it takes."
    )
    tensor_parallel_size: Whole = Field(default=1, ge=1, description="vLLM: GPUs that the model is spread over.")
    max_model_len: Whole = Field(default=4096, ge=1, description="vLLM: tokens of context.")
    max_num_seqs: Whole = Field(default=256, ge=1, description="vLLM: requests computed side by side.")
    quantization: str = Field(default="", description="vLLM: `awq`, `gptq`, `fp8`; empty: as the model says.")
    dtype: Literal["auto", "half", "float16", "bfloat16", "float", "float32"] = Field(
        default="auto", description="vLLM: the weights' type in memory."
    )
    enable_prefix_caching: bool = Field(default=True, description="vLLM: keep how a prompt begins for the next one.")
    temperature: float = Field(default=0.7, ge=0, description="For requests that do not say.")
    top_p: float = Field(default=0.9, gt=0, le=1, description="For requests that do not say.")
    max_tokens: Whole = Field(default=2048, ge=1, description="Of an answer, for requests that do not say.")
    repeat_penalty: float = Field(default=1.1, gt=0, description="For requests that do not say.")


class ChunkSettings(_Section):
    """How documents are cut into the pieces that become vectors."""

    tokens: Whole = Field(
        default=256,
        ge=16,
        description="The most tokens in one chunk, special tokens included; up to the model's limit.",
    )
    overlap: Whole = Field(
        default=32,
        ge=0,
        description="Tokens that a chunk repeats of the one before it; less than half of `chunk.tokens`.",
    )


class ExtractSettings(_Section):
    """The worker processes that open documents."""

    workers: Whole = Field(
        default_factory=lambda: min(4, max(1, _usable_cores() - 1)),
        ge=1,
        le=256,
        description="Worker processes that read documents while the model embeds.",
        json_schema_extra={"default_text": "one less than the cores, 1 to 4"},
    )
    timeout: Seconds = Field(default=60.0, description="Seconds that one document may take.")
    page_timeout: Seconds = Field(
        default=0.5, description="Seconds more for each page that was read, so that long documents may take longer."
    )
    memory_mib: Whole = Field(default=2048, ge=128, description="Memory that one worker may use, in MiB.")
    pdf_engine: Literal["auto", "pdfium", "pypdf"] = Field(
        default="auto", description="What reads PDF: `auto` is PDFium, and pypdf for what PDFium cannot open."
    )
    ocr: str = Field(
        default="",
        description="Languages in which Tesseract reads the pages of PDFs that have no text, such as `eng` or "
        "`deu+eng`; empty: no OCR.",
    )
    ocr_dpi: Whole = Field(default=300, ge=100, le=600, description="Dots per inch at which pages are drawn for OCR.")
    ocr_timeout: Seconds = Field(default=60.0, description="Seconds that OCR may take for one page.")
    nice: Whole = Field(
        default=10, ge=0, le=19, description="How far the workers stand back for others: 0 is not at all."
    )
    passwords: Passwords = Field(
        default=(),
        description="Passwords to try on encrypted PDFs, as a list; one a line in the environment.",
        repr=False,
    )
    password_file: Path | None = Field(
        default=None, description="A file with more passwords for encrypted PDFs, one a line."
    )

    @field_validator("ocr")
    @classmethod
    def _languages(cls, value: str) -> str:
        if value and not re.fullmatch(r"\w+(/\w+)?(\+\w+(/\w+)?)*", value):
            raise PydanticCustomError("ocr", "should be languages by Tesseract's names, with + between them: deu+eng")
        return value


class SourcesSettings(_Section):
    """Which files of a folder are documents, and when they may be read."""

    include: Globs = Field(
        default=(),
        description="Globs as in .gitignore, as a list: only documents that one of them matches; empty: all.",
    )
    exclude: Globs = Field(
        default=("lost+found/", "$RECYCLE.BIN/", "System Volume Information/", "@eaDir/", "#recycle/", "__MACOSX/"),
        description="Globs as in .gitignore, as a list: what one of them matches is passed over.",
    )
    settle: float = Field(
        default=2.0,
        ge=0,
        allow_inf_nan=False,
        description="Seconds that a file must have been left alone before it is read; 0: read at once.",
    )
    timeout: Seconds = Field(
        default=60.0, description="Seconds without any answer from a folder before it counts as away."
    )

    @field_validator("include", "exclude")
    @classmethod
    def _sensible(cls, globs: tuple[str, ...]) -> tuple[str, ...]:
        compile_globs(globs)
        return globs


class RunSettings(_Section):
    """How much of a run is under way at a time."""

    look_ahead: Whole = Field(
        default=1024, ge=1, description="Chunks read ahead and sorted by length before they are embedded, at most."
    )
    look_ahead_tokens: Whole = Field(
        default=262_144, ge=1, description="Tokens read ahead, about: fewer chunks where these are long."
    )
    request_chunks: Whole = Field(
        default=64,
        ge=1,
        le=2048,
        description="Chunks in one request, at most: how many are sent follows the speed of the model server.",
    )
    request_tokens: Whole = Field(
        default=16_384, ge=1, description="Tokens in one request, at most; a chunk that is longer goes by itself."
    )
    requests_in_flight: Whole = Field(
        default=3,
        ge=1,
        le=256,
        description="Requests at the model server at the same time, at most; as many answers may wait to be stored.",
    )
    order: Literal["newest", "oldest"] = Field(
        default="newest", description="Which documents go first: those changed last (`newest`), or longest ago."
    )
    lease: Seconds = Field(
        default=60,
        ge=2,
        description="Seconds without a sign of life after which other hosts take over what a run held; the same on "
        "every host that shares the database.",
    )


class ReportSettings(_Section):
    """The report of each run."""

    keep: Whole = Field(default=200, ge=0, description="Reports kept as files; 0: none are written.")
    keep_days: Whole = Field(default=365, ge=0, description="Days for which a report is kept as a file; 0: no limit.")
    empty: bool = Field(default=False, description="Report runs that had nothing to do as well.")


class SwitchSettings(_Section):
    """How the daemon changes the mode."""

    prepare: float = Field(
        default=60.0, ge=0, description="Seconds ahead that the next model is read and its server made ready; 0: never."
    )
    reserve: float = Field(
        default=10.0, ge=0, description="Seconds for the last batch of a run, before the next model is loaded."
    )
    cut_grace: float = Field(default=5.0, ge=0, description="Seconds that a request has to end once it is cut.")
    release_timeout: Seconds = Field(default=30.0, description="Seconds until a stopped server's memory must be back.")
    release_tolerance_mib: Whole = Field(
        default=256, ge=0, description="What else may come and go on the GPU meanwhile, in MiB."
    )


class GatewaySettings(_Section):
    """The daemon's HTTP port."""

    max_waiting: Whole = Field(
        default=100,
        ge=0,
        description="Requests that may wait for a slot while the mode changes; more are refused (429).",
    )
    max_wait: Seconds = Field(default=60.0, description="Seconds that each may wait.")
    read_timeout: Seconds = Field(default=600.0, description="Seconds between two pieces of a model's answer.")
    max_texts: Whole = Field(
        default=1000, ge=1, description="Texts of `POST /embed` that may wait; more are refused (429)."
    )
    allowed_hosts: str = Field(
        default="", description="Names, with commas, that a `Host` header may hold besides this host's own."
    )
    allow_no_key: bool = Field(
        default=False, description="Listen on another address than loopback without `api_key` all the same."
    )


class SearchSettings(_Section):
    """How questions are answered."""

    by: Literal["fused", "vector", "text"] = Field(
        default="fused",
        description="What passages are ranked by: `vector` (the meaning), `text` (the words), or `fused` (both).",
    )
    idle: Seconds = Field(
        default=300.0,
        description="Seconds without a question after which the daemon ends the small server that embeds questions "
        "while the embedding model is not loaded.",
    )
    quantized: Literal["auto", "on", "off"] = Field(
        default="auto",
        description="Whether a SQLite database gets quantized copies of its vectors, which make search quicker: `auto` "
        "from 20,000 vectors of a model on. PostgreSQL has indexes instead.",
    )
    vectors: Literal["database", "qdrant"] = Field(
        default="database",
        description="Where the nearest vectors are looked up: the `database`, or `qdrant`, and the database where that "
        "is away. The results are the same.",
    )


class QdrantSettings(_Section):
    """Qdrant, as a home for the vectors beside the database."""

    url: Server | None = Field(
        default=None,
        description="Where a Qdrant server is, such as `http://127.0.0.1:6333`; not set: none.",
    )
    path: Path | None = Field(
        default=None,
        description="A folder for Qdrant's local mode, which needs no server: for some ten thousand chunks, and one "
        "process at a time; not set: none.",
    )
    api_key: SecretStr | None = Field(default=None, min_length=1, description="The key that the server wants.")
    collection: str = Field(
        default="nightshift",
        description="How the collections' names begin, one for each model; the alias of that name is the one that "
        "search uses.",
    )

    @field_validator("url")
    @classmethod
    def _an_address(cls, value: str | None) -> str | None:
        if value is not None and "@" in value:
            raise PydanticCustomError("url", "should name no password: that is for qdrant.api_key")
        return value

    @field_validator("collection")
    @classmethod
    def _a_name(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,64}", value):
            raise PydanticCustomError("collection", "should be up to 64 letters, digits, hyphens and underscores")
        return value


class Settings(BaseSettings):
    """All settings, frozen. `Settings()` is the defaults, with relative paths.

    Raises pydantic.ValidationError; `loading.load` turns that into a SettingsError.
    """

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True, validate_default=True)

    data_dir: Path = Field(default=Path("data"), description="The folder for the database, the inbox and the models.")
    database_url: str = Field(
        default_factory=lambda data: f"sqlite:///{data['data_dir'] / 'nightshift.db'}",
        description="The database: `sqlite:///FILE` or `postgresql+psycopg://USER:PASSWORD@HOST/NAME`.",
        json_schema_extra={"default_text": "sqlite:///<data_dir>/nightshift.db"},
        repr=False,
    )
    jobs_dir: Path = Field(default=Path("jobs"), description="The folder with the job files.")
    inbox: Path = Field(
        default_factory=lambda data: data["data_dir"] / "inbox",
        description="The folder whose documents are ingested where no other is named. The default one is made when it "
        "is needed; one that is set has to be there.",
        json_schema_extra={"default_text": "<data_dir>/inbox"},
    )
    node: str | None = Field(
        default=None,
        min_length=1,
        description="The name of this host among those that share a database, where each needs its own; not set: the "
        "system's.",
    )
    host: str = Field(default="127.0.0.1", min_length=1, description="The address that the server listens on.")
    port: Whole = Field(default=8642, ge=0, le=65535, description="The port that the server listens on; 0: a free one.")
    api_key: SecretStr | None = Field(
        default=None,
        min_length=1,
        description="The key that callers must send as `Authorization: Bearer KEY`; not set: none.",
    )
    default_mode: Literal["generation", "embedding", "mixed", "idle"] = Field(
        default="idle", description="The mode of the daemon where no job's window is open."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info",
        description="The least that the daemon logs; commands show only warnings and errors where it is not set.",
    )
    embedding: EmbeddingSettings = EmbeddingSettings()
    generation: GenerationSettings = GenerationSettings()
    chunk: ChunkSettings = ChunkSettings()
    sources: SourcesSettings = SourcesSettings()
    extract: ExtractSettings = Field(default_factory=ExtractSettings)
    run: RunSettings = RunSettings()
    report: ReportSettings = ReportSettings()
    switch: SwitchSettings = SwitchSettings()
    gateway: GatewaySettings = GatewaySettings()
    search: SearchSettings = SearchSettings()
    qdrant: QdrantSettings = QdrantSettings()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Values that were handed in, only: pydantic-settings' own sources forget where a value was set."""
        return (init_settings,)

    @field_validator("log_level", mode="before")
    @classmethod
    def _lower_case(cls, value: object) -> object:
        return value.lower() if isinstance(value, str) else value

    @field_validator("database_url")
    @classmethod
    def _known_database(cls, value: str) -> str:
        if not re.match(r"(sqlite|postgresql)(\+\w+)?://", value):
            raise PydanticCustomError(
                "database_url", f"should begin with sqlite:/// or postgresql+psycopg://{_meant(value)}"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        problems = next(contradictions(self), None)
        if problems is not None:
            summary = "; or ".join(f"{key} {problem}" for key, problem in problems.items())
            raise PydanticCustomError("contradiction", "{summary}", {"summary": summary, "problems": problems})
        return self

    def flatten(self) -> dict[str, Plain]:
        """Dotted key -> value, for showing: fit for JSON, with passwords masked and paths as text."""
        return {known.key: shown(value_of(self, known.key)) for known in known_settings()}

    def secrets(self) -> set[str]:
        """Keys, and the passwords in addresses: what nobody may be shown."""
        return {secret for known in known_settings() for secret in secrets_of(value_of(self, known.key))}


def known_settings() -> list[KnownSetting]:
    """Every setting, in the order of the documentation."""
    return list(describe(Settings))


def sections() -> list[str]:
    """The tables of nightshift.toml."""
    return [name for name, field in Settings.model_fields.items() if section_of(field)]
