"""What the documentation says of the settings is what the program does."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pipeline.core.errors import SettingsError
from pipeline.settings import KnownSetting, known_settings, load

DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"
TEXT = DOCUMENT.read_text(encoding="utf-8")


def documented_rows() -> dict[str, list[str]]:
    """Setting -> [default, environment variable, meaning], as the tables of the document have them."""
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| (.+?) \| `(\w+)` \| (.+) \|$", TEXT, flags=re.MULTILINE)
    assert len(rows) == len({key for key, *_ in rows}), "a setting is documented twice"
    return {key: cells for key, *cells in rows}


@pytest.mark.parametrize("known", known_settings(), ids=lambda known: known.key)
def test_every_setting_is_documented_with_its_default(known: KnownSetting) -> None:
    default, variable, meaning = documented_rows()[known.key]
    assert default.strip("`") == known.default
    assert variable == known.variable
    assert meaning == known.description


def test_nothing_is_documented_that_is_not_a_setting() -> None:
    assert list(documented_rows()) == [known.key for known in known_settings()]


def test_the_toml_example_is_valid(tmp_path: Path) -> None:
    (example,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    (tmp_path / "nightshift.toml").write_text(example, encoding="utf-8")
    loaded = load(environ={}, cwd=tmp_path)
    assert tomllib.loads(example)["chunk"] == {"tokens": 512, "overlap": 64}
    assert (loaded.settings.chunk.tokens, loaded.origins["chunk.tokens"]) == (512, "nightshift.toml")


def test_the_environment_example_is_the_same_as_the_file(tmp_path: Path) -> None:
    (example,) = re.findall(r"```sh\n(.*?)```", TEXT, flags=re.DOTALL)
    (toml,) = re.findall(r"```toml\n(.*?)```", TEXT, flags=re.DOTALL)
    environ = dict(re.findall(r"(NIGHTSHIFT_\w+)=(\S+)", example))
    (tmp_path / "nightshift.toml").write_text(toml, encoding="utf-8")
    from_file = load(environ={}, cwd=tmp_path).settings.flatten()
    from_environment = load(environ=environ, cwd=tmp_path / "elsewhere").settings.flatten()
    keys = [known.key for known in known_settings() if known.variable in environ]
    assert len(keys) == len(environ) == 5
    assert {key: from_file[key] for key in keys} == {key: from_environment[key] for key in keys}


@pytest.mark.parametrize(
    ("toml", "environ"),
    [
        ("", {"NIGHTSHIFT_EMBEDDING_THREADS": "many"}),
        ("\n\n[embeding]\n", {}),
        ("\n\n\n\n[chunk]\noverlap = 200\n", {}),
    ],
)
def test_the_quoted_errors_are_the_real_ones(toml: str, environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "nightshift.toml").write_text(toml, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        load(environ=environ, cwd=tmp_path)
    assert f"    {caught.value}\n" in TEXT
