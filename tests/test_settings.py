"""Settings: which source wins, how paths are read, and what an error says."""

from __future__ import annotations

import os
import pickle
from collections.abc import Mapping
from pathlib import Path

import pytest
from pydantic import ValidationError

from pipeline.core.errors import SettingsError
from pipeline.runner.target import unaliased
from pipeline.settings import LoadedSettings, Settings, known_settings, load


def loaded(
    folder: Path, toml: str | None = None, options: Mapping[str, object] | None = None, **environ: str
) -> LoadedSettings:
    if toml is not None:
        (folder / "nightshift.toml").write_text(toml, encoding="utf-8")
    return load(options, environ=environ, cwd=folder)


def error(folder: Path, toml: str | None = None, options: Mapping[str, object] | None = None, **environ: str) -> str:
    with pytest.raises(SettingsError) as caught:
        loaded(folder, toml, options, **environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_defaults_need_no_file(tmp_path: Path) -> None:
    settings = loaded(tmp_path).settings
    assert settings.database_url == f"sqlite:///{tmp_path}/data/nightshift.db"
    assert (settings.data_dir, settings.jobs_dir) == (tmp_path / "data", tmp_path / "jobs")
    assert settings.inbox == tmp_path / "data" / "inbox"
    assert (settings.host, settings.port, settings.api_key) == ("127.0.0.1", 8642, None)
    assert (settings.chunk.tokens, settings.chunk.overlap) == (256, 32)
    assert 1 <= settings.extract.workers <= 4


def test_each_source_overrules_the_one_before(tmp_path: Path) -> None:
    toml = "[chunk]\ntokens = 100\noverlap = 11\n[run]\nlook_ahead = 500"
    result = loaded(tmp_path, toml, {"chunk.tokens": 300}, NIGHTSHIFT_CHUNK_TOKENS="200", NIGHTSHIFT_CHUNK_OVERLAP="22")
    settings, origins = result.settings, result.origins
    assert (settings.chunk.tokens, origins["chunk.tokens"]) == (300, "option --chunk-tokens")
    assert (settings.chunk.overlap, origins["chunk.overlap"]) == (22, "NIGHTSHIFT_CHUNK_OVERLAP")
    assert (settings.run.look_ahead, origins["run.look_ahead"]) == (500, "nightshift.toml")
    assert (settings.run.request_chunks, origins["run.request_chunks"]) == (64, "default")


def test_every_setting_has_an_origin_a_value_and_a_variable_of_its_own(tmp_path: Path) -> None:
    result = loaded(tmp_path)
    keys = [known.key for known in known_settings()]
    assert list(result.origins) == list(result.settings.flatten()) == keys
    assert len({known.variable for known in known_settings()}) == len(keys)
    assert all(known.description for known in known_settings())


def test_every_setting_can_be_set_from_the_environment(tmp_path: Path) -> None:
    values = {key: value for key, value in loaded(tmp_path).settings.flatten().items() if value not in (None, "")}
    variables = {known.variable: str(values[known.key]) for known in known_settings() if known.key in values}
    result = load(environ=variables, cwd=tmp_path)
    assert {key: result.settings.flatten()[key] for key in values} == values
    assert {key for key, origin in result.origins.items() if origin != "default"} == set(values)


def test_an_option_that_was_not_given_and_an_empty_variable_are_not_set(tmp_path: Path) -> None:
    result = loaded(tmp_path, options={"embedding.model": None}, NIGHTSHIFT_PORT="", NIGHTSHIFT_CONFIG="")
    assert (result.origins["embedding.model"], result.origins["port"]) == ("default", "default")


def test_the_settings_are_frozen_and_reach_other_processes(tmp_path: Path) -> None:
    settings = loaded(tmp_path, NIGHTSHIFT_API_KEY="k").settings
    with pytest.raises(ValidationError, match="frozen"):
        settings.port = 1
    with pytest.raises(ValidationError, match="frozen"):
        settings.chunk.tokens = 1
    assert pickle.loads(pickle.dumps(settings)) == settings


def test_plain_construction_reads_no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_PORT", "1")
    monkeypatch.setenv("PORT", "2")
    assert Settings().port == 8642
    assert Settings(data_dir=Path("/srv")).inbox == Path("/srv/inbox")


class TestPaths:
    def test_a_path_in_a_file_starts_from_the_file(self, tmp_path: Path) -> None:
        elsewhere = tmp_path / "etc"
        elsewhere.mkdir()
        (elsewhere / "my.toml").write_text('data_dir = "d"\ndatabase_url = "sqlite:///x.db?mode=rwc"', encoding="utf-8")
        result = loaded(tmp_path, NIGHTSHIFT_CONFIG="etc/my.toml", NIGHTSHIFT_JOBS_DIR="../j")
        assert result.settings.data_dir == elsewhere / "d"
        assert result.settings.inbox == elsewhere / "d" / "inbox"
        assert result.settings.database_url == f"sqlite:///{elsewhere}/x.db?mode=rwc"
        assert result.settings.jobs_dir == tmp_path.parent / "j"
        assert result.origins["data_dir"] == "etc/my.toml"

    def test_the_home_folder(self, tmp_path: Path) -> None:
        assert loaded(tmp_path, NIGHTSHIFT_DATA_DIR="~/d").settings.data_dir == Path.home() / "d"

    @pytest.mark.parametrize(
        "url", ["sqlite:///:memory:", "sqlite:////abs/x.db", "postgresql+psycopg://h/d", "sqlite://"]
    )
    def test_a_database_without_a_relative_path_stays_as_it_is(self, url: str, tmp_path: Path) -> None:
        assert loaded(tmp_path, NIGHTSHIFT_DATABASE_URL=url).settings.database_url == url

    def test_the_default_model_is_found_whichever_folder_the_data_is_in(self, tmp_path: Path) -> None:
        assert Path(loaded(tmp_path).settings.embedding.model).is_file()

    def test_a_model_is_looked_for_where_it_is_named_and_then_in_the_data_folder(self, tmp_path: Path) -> None:
        models = tmp_path / "data" / "models"
        models.mkdir(parents=True)
        (models / "m.gguf").touch()
        named = {"embedding.model": "m.gguf"}
        assert loaded(tmp_path, options=named).settings.embedding.model == str(models / "m.gguf")
        (tmp_path / "m.gguf").touch()
        assert loaded(tmp_path, options=named).settings.embedding.model == str(tmp_path / "m.gguf")
        missing = loaded(tmp_path, NIGHTSHIFT_GENERATION_MODEL="no.gguf").settings.generation.model
        assert missing == str(tmp_path / "no.gguf")

    def test_the_name_of_a_model_is_no_path(self, tmp_path: Path) -> None:
        named = loaded(tmp_path, NIGHTSHIFT_EMBEDDING_MODEL="MiniLM L6 H384 Uncased").settings.embedding.model
        assert named == "MiniLM L6 H384 Uncased"

    def test_an_alias_means_the_model_that_is_set(self, tmp_path: Path) -> None:
        set_up = {"NIGHTSHIFT_EMBEDDING_MODEL": "hf:a/b/c", "NIGHTSHIFT_EMBEDDING_ALIAS": "mine, text-embedding-3"}
        for name in ("mine", "text-embedding-3", "MINE", "Text-Embedding-3"):
            found = loaded(tmp_path, options={"embedding.model": name}, **set_up)
            assert found.settings.embedding.model == "hf:a/b/c"
            assert unaliased(found.settings, name) == "hf:a/b/c"
        assert loaded(tmp_path, options={"embedding.model": "other"}, **set_up).settings.embedding.model == "other"
        assert unaliased(found.settings, "other") == "other"
        assert unaliased(found.settings, None) is None

    def test_what_is_stored_has_to_be_text_and_folders_of_documents_need_not(self, tmp_path: Path) -> None:
        odd = os.fsdecode(b"/srv/d\xff")
        for key in ("data_dir", "database_url", "embedding.model", "generation.model", "embedding.alias"):
            value = f"sqlite:///{odd}" if key == "database_url" else odd
            assert error(tmp_path, options={key: value}).startswith(
                f"{key}: should be UTF-8, and has a byte that is not"
            )
        assert str(loaded(tmp_path, options={"inbox": odd, "jobs_dir": odd}).settings.inbox) == odd

    def test_a_relative_path_of_a_model_is_made_absolute(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.chdir(tmp_path)
        settings = loaded(tmp_path).settings
        assert unaliased(settings, "./models/../a.gguf") == f"{tmp_path}/a.gguf"
        assert unaliased(settings, "../a.gguf") == f"{tmp_path.parent}/a.gguf"
        assert unaliased(settings, "owner/name") == "owner/name"

    def test_a_model_to_download_is_no_path(self, tmp_path: Path) -> None:
        assert loaded(tmp_path, NIGHTSHIFT_EMBEDDING_MODEL="hf:a/b/c").settings.embedding.model == "hf:a/b/c"


class TestErrors:
    @pytest.mark.parametrize(
        ("toml", "line", "message"),
        [
            ("\n[embeding]\nthreads = 3", 2, 'embeding: unknown key, did you mean "embedding"?'),
            ("threads = 3", 1, 'threads: unknown key, did you mean "embedding.threads"?'),
            ("[chunk]\ntoken = 3", 2, 'chunk.token: unknown key, did you mean "chunk.tokens"?'),
            ("chunk.token = 3", 1, 'chunk.token: unknown key, did you mean "chunk.tokens"?'),
            ("[chunk.tokens]\na = 1", 1, "chunk.tokens: should be a whole number, not a table"),
            ("zebra = 1", 1, "zebra: unknown key"),
            ("port = 1\nembedding = 3", 2, "embedding: should be a table, not 3"),
            ("embedding = {mlock = 5}", 1, "embedding.mlock: should be true or false, not 5"),
            ("port = 70000", 1, "port: should be at most 65535, not 70000"),
            ("port = true", 1, "port: should be a whole number, not true"),
            ("port = 1.5", 1, "port: should be a whole number, not 1.5"),
            ("host = 3", 1, "host: should be text, not 3"),
            ("data_dir = [1]", 1, "data_dir: should be a path, not a list"),
            ('data_dir = ""', 1, "data_dir: should not be empty"),
            ('embedding.model = ""', 1, "embedding.model: should not be empty"),
            ('embedding.flash_attn = "yes"', 1, 'embedding.flash_attn: should be "auto", "on" or "off", not "yes"'),
            ("extract.timeout = inf", 1, "extract.timeout: should be a finite number, not Infinity"),
            ("port = ", "1, column 8", "nightshift.toml: is not TOML: Invalid value"),
            ("port = 1\nport = 2", "2, column 9", "nightshift.toml: sets the same key or table twice"),
            ("[chunk]\n[chunk]", "2, column 7", "nightshift.toml: sets the same key or table twice"),
            ("embedding.threads = 100000", 1, "embedding.threads: should be at most 1024, not 100000"),
        ],
    )
    def test_in_the_file(self, toml: str, line: int | str, message: str, tmp_path: Path) -> None:
        assert error(tmp_path, toml + "\n") == f"{message} (set in nightshift.toml, line {line})"

    def test_in_the_environment(self, tmp_path: Path) -> None:
        assert error(tmp_path, NIGHTSHIFT_EMBEDDING_THREADS="many") == (
            'embedding.threads: should be a whole number, not "many"'
            " (set in the environment variable NIGHTSHIFT_EMBEDDING_THREADS)"
        )
        assert error(tmp_path, NIGHTSHIFT_EMBEDING_MODEL="x") == (
            'NIGHTSHIFT_EMBEDING_MODEL: unknown variable, did you mean "NIGHTSHIFT_EMBEDDING_MODEL"?'
            " (set in the environment)"
        )
        assert 'did you mean "NIGHTSHIFT_PORT"' in error(tmp_path, nightshift_port="1")
        assert error(tmp_path, NIGHTSHIFT_FOO="1") == "NIGHTSHIFT_FOO: unknown variable (set in the environment)"

    def test_in_an_option(self, tmp_path: Path) -> None:
        assert error(tmp_path, options={"database_url": "mysql://h"}) == (
            "database_url: should begin with sqlite:/// or postgresql+psycopg:// (set in the option --database)"
        )
        assert "unknown key" in error(tmp_path, options={"chunk.size": 3})
        for key in ("embedding.url", "generation.url", "qdrant.url"):
            for url in ("h:8000", "ftp://h", "http://", "http://h:8o80", "http://h:99999", "http://[::1", "http://h x"):
                assert error(tmp_path, options={key: url}).startswith(f"{key}: should begin with http:// or https://")
        meant = error(tmp_path, options={"database_url": "/srv/x.db"})
        assert 'postgresql+psycopg://, did you mean "sqlite:////srv/x.db"? (set in the option --database)' in meant
        assert "hunter2" not in error(tmp_path, options={"database_url": "me:hunter2@host/x"})

    def test_a_wrong_value_of_a_weaker_source_does_not_matter(self, tmp_path: Path) -> None:
        assert loaded(tmp_path, "port = 70000", NIGHTSHIFT_PORT="80").settings.port == 80

    def test_a_named_file_must_be_there_and_readable(self, tmp_path: Path) -> None:
        assert error(tmp_path, NIGHTSHIFT_CONFIG="no.toml") == (
            f"NIGHTSHIFT_CONFIG: there is no file {tmp_path}/no.toml (set in the environment)"
        )
        folder = error(tmp_path, NIGHTSHIFT_CONFIG=".")
        assert folder.startswith("NIGHTSHIFT_CONFIG: ")
        assert "cannot be read: Is a directory (set in the environment)" in folder
        (tmp_path / "latin.toml").write_bytes(b'host = "\xe9"')
        assert "is not UTF-8 text" in error(tmp_path, NIGHTSHIFT_CONFIG="latin.toml")

    def test_a_data_folder_that_is_none(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        for name in ("file", "file/deeper"):
            assert error(tmp_path, NIGHTSHIFT_DATA_DIR=name) == (
                f"data_dir: {tmp_path}/file is not a folder (set in the environment variable NIGHTSHIFT_DATA_DIR)"
            )

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody who may not look")
    def test_a_data_folder_that_nobody_else_may_look_into(self, tmp_path: Path) -> None:
        (tmp_path / "mine").mkdir(mode=0o700)
        (tmp_path / "mine" / "models").mkdir()
        (tmp_path / "mine" / "models" / "x.gguf").touch()
        for folder in (tmp_path, *tmp_path.parents[:-2]):
            folder.chmod(0o755)
        (tmp_path / "gone").symlink_to("nowhere")
        os.seteuid(65534)
        try:
            told = error(tmp_path, NIGHTSHIFT_DATA_DIR="mine")
            model = f"{tmp_path}/mine/models/x.gguf"
            assert loaded(tmp_path, NIGHTSHIFT_EMBEDDING_MODEL=model).settings.embedding.model == model
        finally:
            os.seteuid(0)
        assert told.startswith(f"data_dir: {tmp_path}/mine cannot be looked into: Permission denied; run this as the ")
        assert "NIGHTSHIFT_DATA_DIR" in told
        assert error(tmp_path, NIGHTSHIFT_DATA_DIR="gone").startswith(
            f"data_dir: {tmp_path}/gone is a link to nowhere, which is not there"
        )

    def test_where_a_value_was_set_is_known_to_the_line(self, tmp_path: Path) -> None:
        result = loaded(tmp_path, "\n[embedding]\nmodel = 'x.gguf'", NIGHTSHIFT_PORT="1")
        assert result.place("embedding.model") == "nightshift.toml, line 3"
        assert result.place("port") == "the environment variable NIGHTSHIFT_PORT"
        assert result.place("host") == "the defaults"

    def test_a_long_value_is_cut(self, tmp_path: Path) -> None:
        assert len(error(tmp_path, NIGHTSHIFT_PORT="9" * 5000 + "x")) < 200

    @pytest.mark.parametrize(
        ("toml", "beginning"),
        [
            ("chunk.overlap = 200", "chunk.overlap: should be less than half of chunk.tokens (256), not 200"),
            ("chunk.tokens = 40", "chunk.tokens: should be more than twice chunk.overlap (32), not 40"),
            (
                "embedding.n_batch = 600\nembedding.n_ubatch = 300",
                "embedding.n_ubatch: should be at least embedding.n_batch (600), not 300",
            ),
            ("embedding.n_ubatch = 200", "embedding.n_ubatch: should be at least chunk.tokens (256), not 200"),
            ("embedding.total_timeout = 30", "embedding.total_timeout: should be at least embedding.read_timeout (60)"),
            ("embedding.read_timeout = 300", "embedding.read_timeout: should be at most embedding.total_timeout (120)"),
            ("run.look_ahead = 10", "run.look_ahead: should be at least run.request_chunks (64), not 10"),
        ],
    )
    def test_a_contradiction_names_the_key_that_was_set(self, toml: str, beginning: str, tmp_path: Path) -> None:
        message = error(tmp_path, toml)
        assert message.startswith(beginning)
        assert "nightshift.toml, line" in message


class TestSecrets:
    def test_the_key_and_the_password_are_nowhere_in_clear(self, tmp_path: Path) -> None:
        result = loaded(
            tmp_path,
            NIGHTSHIFT_API_KEY="hunter2",
            NIGHTSHIFT_DATABASE_URL="postgresql://me:hunter2@host/db?sslpassword=hunter2&x=1",
        )
        assert result.settings.api_key is not None
        assert result.settings.api_key.get_secret_value() == "hunter2"
        assert "hunter2" in result.settings.database_url
        for text in (repr(result), str(result.settings), repr(result.settings.flatten())):
            assert "hunter2" not in text
        assert result.settings.flatten()["database_url"] == (
            "postgresql://me:********@host/db?sslpassword=********&x=1"
        )

    def test_errors_do_not_repeat_them(self, tmp_path: Path) -> None:
        with pytest.raises(SettingsError) as caught:
            loaded(tmp_path, NIGHTSHIFT_DATABASE_URL="mysql://me:hunter2@host/db", NIGHTSHIFT_PORT="0")
        assert "hunter2" not in f"{caught.value} {caught.value.__cause__}"
