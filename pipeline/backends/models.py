"""From the name of a model to a file on disk and its fingerprint.

A name is a GGUF path, a Hugging Face model directory, the name of a model that is here already, or on the hub
`hf:OWNER/REPO[@REVISION]/FILE` or `hf:OWNER/REPO[@REVISION]` (a directory), which is downloaded once and then found
without a network.
"""

from __future__ import annotations

import hashlib
import re
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

import httpx

from pipeline.backends.gguf import read_header
from pipeline.core.errors import ModelError, UsageError
from pipeline.core.naming import Names, find_named, matching, names_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

PROBE_SECONDS = 10.0

SHIPPED = Path(__file__).parents[2] / "data" / "models"
"""Where a checkout has the model that ships with it."""

_HF_NAME = re.compile(
    r"hf:(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+?)(?:@(?P<revision>[\w./-]+?))?/(?P<file>[^@]+)", re.ASCII
)
_HF_REPOSITORY = re.compile(r"hf:(?P<owner>[\w.-]+)/(?P<repo>[\w.-]+?)(?:@(?P<revision>[\w.-]+))?", re.ASCII)
_WEIGHTS_AND_TOKENIZER = (
    "*.safetensors",
    "*.bin",
    "config.json",
    "modules.json",
    "sentence_bert_config.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/*.safetensors",
    "[0-9]*_*/*.bin",
    "tokenizer*",
    "*.model",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
)


_DOWNLOADED = (
    "*.safetensors",
    "*.json",
    "[0-9]*_*/config.json",
    "[0-9]*_*/*.safetensors",
    "*.model",
    "vocab*",
    "merges.txt",
)
"""Of a repository. No pickles: they are programs."""

_COMPLETE = ".nightshift-complete"
"""In a directory that was downloaded to the end."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A model on disk. `fingerprint`: SHA-256 in hex of what decides its vectors. `name`: for people."""

    path: Path
    fingerprint: str
    name: str
    kind: Literal["gguf", "directory"] = "gguf"


@dataclass(frozen=True, slots=True)
class HubName:
    """The parts of an `hf:` name. file: empty is the whole repository."""

    owner: str
    repo: str
    revision: str | None
    file: str

    def folder(self, models_dir: Path) -> Path:
        """Where its files lie under `models_dir`."""
        revision = f"@{self.revision.replace('/', '--')}" if self.revision else ""
        return models_dir / self.owner / f"{self.repo}{revision}"


def resolve(
    name: str, models_dir: Path, *, known: Mapping[tuple[str, int, int], str] | None = None, endpoint: str | None = None
) -> ModelFile:
    """The model that `name` means; an `hf:` name is downloaded into `models_dir` unless it is there.

    `known` saves the reading of files that have not changed (see `fingerprint`). `endpoint` is
    another hub's address. Raises ModelError with a message that says what to do.
    """
    if name.startswith("hf:"):
        parts = parse_hub_name(name)
        if not parts.file:
            return _directory(_downloaded_directory(parts, models_dir, endpoint), known, parts.repo)
        return _gguf(_downloaded(parts, models_dir, endpoint), known)
    path = Path(name).expanduser()
    if not path.exists() and not path.is_absolute():
        path = _named(name, models_dir, known or {})
    if path.is_dir():
        return _directory(path, known)
    if not path.exists():
        raise ModelError(f"there is no model at {path}; name a file that is there, or `hf:OWNER/REPO/FILE`")
    return _gguf(path, known)


def _named(name: str, models_dir: Path, known: Mapping[tuple[str, int, int], str]) -> Path:
    """The file or folder of the model that a name means, in the folders for models and among those used before.

    Raises ModelError where it means none, or more than one.
    """
    places = [_models_in(models_dir), _models_in(SHIPPED), [Path(path) for path, _, _ in known if Path(path).exists()]]
    for names in (_names_outside, _names_inside):  # a file's header is read only where names of files do not tell
        for models in places:
            if matching(name, models, names):
                try:
                    return find_named(name, models, names, str)
                except UsageError as error:
                    raise ModelError(str(error)) from error
    there = ", ".join(dict.fromkeys(path.name for models in places for path in models)) or "none"
    raise ModelError(f"{name}: no such file and no such model here; there are: {there}")


def _models_in(folder: Path) -> list[Path]:
    return sorted({*folder.rglob("*.gguf"), *(config.parent for config in folder.rglob("config.json"))})


def _names_outside(path: Path) -> Names:
    return names_of(str(path), path.name)


def _names_inside(path: Path) -> Names:
    name = path.name
    if path.is_file():
        with suppress(ModelError):
            name = read_header(path).name or name
    return names_of(str(path), name)


def parse_hub_name(name: str) -> HubName:
    """The parts of `hf:OWNER/REPO[@REVISION][/FILE]`. Raises ModelError for anything else."""
    whole = _HF_REPOSITORY.fullmatch(name)
    match = whole or _HF_NAME.fullmatch(name)
    if match is None:
        raise ModelError(f"{name} is not of the form hf:OWNER/REPO, hf:OWNER/REPO/FILE or hf:OWNER/REPO@REVISION/FILE")
    parts = HubName(match["owner"], match["repo"], match["revision"], "" if whole else match["file"])
    steps = [parts.owner, parts.repo, *PurePosixPath(parts.file).parts, *(parts.revision or "").split("/")]
    if ".." in steps or "." in steps or parts.file.startswith("/") or "\\" in parts.file or "\0" in parts.file:
        raise ModelError(f"{name} leads out of its repository")
    return parts


def fingerprint(path: Path, known: Mapping[tuple[str, int, int], str] | None = None) -> str:
    """SHA-256 in hex of the file at `path`, or of the names and digests of a model directory's files.

    `known` holds digests of files by (absolute path, size, mtime_ns): one that is found there is
    not read again. Raises ModelError where a file cannot be read.
    """
    if not path.is_dir():
        return _file_digest(path, known)
    if known and (digest := known.get(stamp(path))):
        return digest
    whole = hashlib.sha256()
    for file in _deciding_files(path):
        whole.update(f"{file.relative_to(path).as_posix()}\0{_file_digest(file, known)}\n".encode())
    return whole.hexdigest()


def file_key(path: Path) -> tuple[str, int, int]:
    """The key under which `known` holds the digest of the file at `path`."""
    status = path.stat()
    return (str(path.absolute()), status.st_size, status.st_mtime_ns)


def stamp(path: Path) -> tuple[str, int, int]:
    """As `file_key`, also of a model directory: all sizes together, and a number that changes with any of its files."""
    if not path.is_dir():
        return file_key(path)
    seen = hashlib.sha256()
    size = 0
    for file in _deciding_files(path):
        _, bytes_, mtime_ns = file_key(file)
        size += bytes_
        seen.update(f"{file.relative_to(path).as_posix()}\0{bytes_}\0{mtime_ns}\n".encode())
    return (str(path.absolute()), size, int.from_bytes(seen.digest()[:7]))


def _deciding_files(path: Path) -> list[Path]:
    """What decides the vectors of a model directory."""
    return sorted({file for pattern in _WEIGHTS_AND_TOKENIZER for file in path.glob(pattern) if file.is_file()})


def _file_digest(path: Path, known: Mapping[tuple[str, int, int], str] | None) -> str:
    try:
        if known and (digest := known.get(file_key(path))):
            return digest
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror or error}") from error


def _gguf(path: Path, known: Mapping[tuple[str, int, int], str] | None) -> ModelFile:
    header = read_header(path)
    if header.parts > 1:
        raise ModelError(
            f"{path} is one of {header.parts} parts: join them with llama.cpp's `llama-gguf-split --merge` first"
        )
    return ModelFile(path, fingerprint(path, known), header.name or path.stem)


def _directory(path: Path, known: Mapping[tuple[str, int, int], str] | None, name: str = "") -> ModelFile:
    if not (path / "config.json").is_file():
        inside = ", ".join(sorted(file.name for file in path.glob("*.gguf"))[:5])
        hint = f"it holds {inside}: name one of them" if inside else "it has no config.json"
        raise ModelError(f"{path} is a directory but no Hugging Face model; {hint}")
    return ModelFile(path, fingerprint(path, known), name or path.absolute().name, "directory")


def _downloaded(parts: HubName, models_dir: Path, endpoint: str | None) -> Path:
    folder = parts.folder(models_dir)
    target = folder / parts.file
    if target.is_file():
        return target
    from huggingface_hub import hf_hub_download

    with _hub_errors(f"{parts.file} of {parts.owner}/{parts.repo}", target, endpoint):
        hf_hub_download(
            f"{parts.owner}/{parts.repo}", parts.file, revision=parts.revision, local_dir=folder, endpoint=endpoint
        )
    return target


def _downloaded_directory(parts: HubName, models_dir: Path, endpoint: str | None) -> Path:
    """The repository's weights and tokenizer. A download that was cut off goes on; a marker says that it is whole."""
    folder = parts.folder(models_dir)
    marker = folder / _COMPLETE
    if marker.is_file():
        return folder
    from huggingface_hub import snapshot_download

    where = f"{parts.owner}/{parts.repo}"
    with _hub_errors(where, folder, endpoint):
        snapshot_download(
            where, revision=parts.revision, local_dir=folder, endpoint=endpoint, allow_patterns=list(_DOWNLOADED)
        )
    if not any(folder.glob("*.safetensors")):
        raise ModelError(f"{where} holds no weights as safetensors; name a GGUF file, or another repository")
    marker.touch()
    return folder


@contextmanager
def _hub_errors(where: str, target: Path, endpoint: str | None) -> Iterator[None]:
    """A download of `where` to `target`: what goes wrong becomes a ModelError that says what to do."""
    from huggingface_hub import constants, errors

    if constants.HF_HUB_OFFLINE or not _answers(endpoint or constants.ENDPOINT):
        raise _unreachable(where, target)
    try:
        yield
    except errors.GatedRepoError as error:
        raise ModelError(
            f"{where} is only for those who accepted its terms: accept them on the hub and set HF_TOKEN"
        ) from error
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise ModelError(f"the hub knows no such repository or revision: {where}; check the name") from error
    except errors.LocalEntryNotFoundError as error:
        raise _unreachable(where, target) from error
    except errors.EntryNotFoundError as error:
        raise ModelError(f"the repository has no such file: {where}; check the name") from error
    except Exception as error:
        raise _unreachable(where, target) from error


def _answers(endpoint: str) -> bool:
    """Whether the hub can be reached at all. Its client would try for 20 seconds before it says no.

    Raises ModelError where its address, or a proxy that the environment names, cannot be used.
    """
    try:
        httpx.head(endpoint, timeout=PROBE_SECONDS)
    except httpx.TransportError:
        return False
    except (httpx.InvalidURL, ImportError, OSError, ValueError, OverflowError) as error:
        raise ModelError(f"the hub at {endpoint} cannot be asked: {error}") from error
    return True


def _unreachable(where: str, target: Path) -> ModelError:
    return ModelError(
        f"{where} is not on this machine and could not be downloaded: connect to the network once,"
        f" or copy the file to {target} and name that"
    )
