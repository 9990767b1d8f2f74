"""Gathers the settings, each from the strongest source that sets it."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.core.errors import SettingsError
from pipeline.settings import wording
from pipeline.settings.fields import SHIPPED_MODEL, Settings, known_settings
from pipeline.settings.sources import FILE_VARIABLE, Given, from_environment, from_file, from_options

DEFAULT = "default"

_NO_FILE = {FILE_VARIABLE: os.devnull}
_DEFAULT_FOLDERS = ("data_dir", "jobs_dir")
_PATHS = frozenset(known.key for known in known_settings() if known.is_path)
_SECRETS = frozenset(known.key for known in known_settings() if known.is_secret) | {"database_url"}
_MODELS = ("embedding.model", "generation.model")
# A checkout ships the default model; a data folder elsewhere need not hold a copy of it.
_CHECKOUT_MODELS = Path(__file__).parents[2] / "data" / "models"


@dataclass(frozen=True, slots=True)
class LoadedSettings:
    """The settings, and where each was set.

    origins: dotted key -> `default`, the name of the settings file, the name of the
        environment variable, or `option --name`.
    places: the same for what is not a default, as exact as an error says it: with the line of the file.
    cwd: the folder that the defaults' relative paths start from.
    """

    settings: Settings
    origins: Mapping[str, str]
    places: Mapping[str, str] = field(default_factory=dict)
    cwd: Path = field(default_factory=Path.cwd)

    def changed(self) -> list[str]:
        """The settings that somebody set to another value than the default, in the order of the documentation."""
        defaults = load({"data_dir": str(self.settings.data_dir)}, environ=_NO_FILE, cwd=self.cwd).settings
        plain, mine = defaults.flatten(), self.settings.flatten()
        plain["data_dir"] = str(self.cwd / Settings.model_fields["data_dir"].default)
        return [key for key, origin in self.origins.items() if origin != DEFAULT and mine[key] != plain[key]]

    def place(self, key: str) -> str:
        """Where a setting was set, for an error: it ends the words "set in"."""
        return self.places.get(key, "the defaults")


def load(
    options: Mapping[str, object] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
    cwd: Path | None = None,
) -> LoadedSettings:
    """Defaults, then nightshift.toml, then `NIGHTSHIFT_*` variables, then options; the last to set a key wins.

    options: dotted key -> value; None is an option that was not given.
    environ: instead of the process's environment.
    cwd: instead of the current folder; where nightshift.toml is looked for, and where
        relative paths start that are not set in a file (those start from the file).

    Raises SettingsError for a key that is unknown or a value that is wrong.
    """
    environ = os.environ if environ is None else environ
    cwd = (cwd or Path.cwd()).absolute()
    set_up = from_file(environ, cwd) | from_environment(environ, cwd)
    given = set_up | from_options(_without_alias(options or {}, set_up), cwd)

    values = {key: Given(Settings.model_fields[key].default, DEFAULT, DEFAULT, cwd) for key in _DEFAULT_FOLDERS} | given
    data_dir = _absolute("data_dir", values["data_dir"])
    models = [data_dir / "models", _CHECKOUT_MODELS] if isinstance(data_dir, Path) else []
    values.setdefault("embedding.model", Given(SHIPPED_MODEL, DEFAULT, DEFAULT, models[0] if models else cwd))
    resolved = {key: _resolved(key, value, models) for key, value in values.items()}
    _check_text(resolved, values)
    settings = _validated(resolved, values)
    origins = {known.key: given[known.key].origin if known.key in given else DEFAULT for known in known_settings()}
    _check_folder(settings.data_dir, given["data_dir"].place if "data_dir" in given else DEFAULT)
    return LoadedSettings(settings, origins, {key: value.place for key, value in given.items()}, cwd)


def _folded(name: object) -> str:
    return str(name).casefold()


def _without_alias(options: Mapping[str, object], set_up: Mapping[str, Given]) -> Mapping[str, object]:
    """The options without one that names the embedding model by an alias: that is the model which is set up."""
    aliases = set_up.get("embedding.alias")
    listed = aliases.value if aliases else ()
    names = [name.strip() for name in listed.split(",")] if isinstance(listed, str) else listed
    model = options.get("embedding.model")
    known = isinstance(model, str) and isinstance(names, list | tuple) and model.casefold() in map(_folded, names)
    return {key: value for key, value in options.items() if not (known and key == "embedding.model")}


def _check_text(resolved: Mapping[str, object], given: Mapping[str, Given]) -> None:
    """Folders of documents and of jobs may have any name. All else is stored, and databases hold text."""
    for key, value in resolved.items():
        try:
            if key not in _PATHS or key == "data_dir":
                str(value).encode()
        except UnicodeEncodeError as error:
            problem = "should be UTF-8, and has a byte that is not: rename it, or name another"
            raise SettingsError(key, problem, given[key].place) from error


def _check_folder(path: Path, place: str) -> None:
    """A folder need not be there, but nothing else may be in its place, and whoever asks may look into it."""
    another = "or name another folder with NIGHTSHIFT_DATA_DIR"
    try:
        if path.is_symlink() and not path.exists():
            raise SettingsError("data_dir", f"{path} is a link to {path.readlink()}, which is not there", place)
        there = next(part for part in (path, *path.parents) if part.exists())
        if not there.is_dir():
            raise SettingsError("data_dir", f"{there} is not a folder", place)
        (there / "run").exists()  # takes the right to enter it
    except OSError as error:
        problem = f"{path} cannot be looked into: {error.strerror}; run this as the user whose it is, {another}"
        raise SettingsError("data_dir", problem, place) from error


def _resolved(key: str, given: Given, models: Sequence[Path]) -> object:
    """The value, with a relative path in it made absolute; what is not text is left to be refused."""
    if key in _PATHS:
        return _absolute(key, given)
    if key in _MODELS:
        return _model(given, models)
    if key == "database_url" and isinstance(given.value, str):
        return _database(given.value, given.base)
    return given.value


def _absolute(key: str, given: Given) -> object:
    if not isinstance(given.value, str | Path):
        return given.value
    if not str(given.value):
        raise SettingsError(key, "should not be empty", given.place)
    return _from(given.base, given.value)


def _model(given: Given, folders: Sequence[Path]) -> object:
    """A model's path where there is such a file, looked for from where it was named and then in the folders.

    What is neither there nor looks like a path stays as it is: it may be the name of a model.
    """
    name = given.value
    if not isinstance(name, str | Path) or not str(name) or str(name).startswith("hf:"):
        return name
    places = [_from(folder, name) for folder in (given.base, *folders)]
    there = next((place for place in places if _may_be(place)), None)
    looks_like_a_path = str(name).startswith(("/", ".", "~")) or str(name).endswith(".gguf")
    return str(there or (places[0] if looks_like_a_path else name))


def _may_be(place: Path) -> bool:
    """Whether a model is there, or may be where nobody may look: whoever opens it says so."""
    try:
        return place.exists()
    except OSError:
        return True


def _database(url: str, base: Path) -> str:
    """A SQLite address with its file's path absolute; any other address as it is."""
    sqlite = re.fullmatch(r"(sqlite(?:\+\w+)?:///)([^/:?][^?]*)(\?.*)?", url)
    if sqlite is None or sqlite[2].startswith("file:"):
        return url
    return f"{sqlite[1]}{_from(base, sqlite[2])}{sqlite[3] or ''}"


def _from(base: Path, path: str | Path) -> Path:
    return Path(os.path.normpath(base / Path(path).expanduser()))


def _validated(values: Mapping[str, object], given: Mapping[str, Given]) -> Settings:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        table, _, name = key.rpartition(".")
        (nested.setdefault(table, {}) if table else nested)[name] = value
    try:
        return Settings(**nested)
    except ValidationError as error:
        raise _settings_error(error, given) from error


def _settings_error(error: ValidationError, given: Mapping[str, Given]) -> SettingsError:
    """The first thing that is wrong, and where it was set."""
    first = error.errors(include_url=False)[0]
    context = first.get("ctx", {})
    if first["type"] == "contradiction":
        problems: dict[str, str] = context["problems"]
        key = next((key for key in problems if key in given), next(iter(problems)))
        problem = problems[key]
    else:
        key = ".".join(part for part in first["loc"] if isinstance(part, str))  # not which item of a list
        problem = wording.problem(first["type"], first["msg"], context, first["input"], secret=key in _SECRETS)
    return SettingsError(key, problem, given[key].place if key in given else DEFAULT)
