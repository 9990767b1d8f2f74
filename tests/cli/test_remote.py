"""What a command says where no daemon runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.cli.remote import need_daemon
from pipeline.core.errors import UsageError
from pipeline.settings import Settings


def test_the_data_folder_is_named_where_no_daemon_runs(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as raised:
        need_daemon(Settings(data_dir=tmp_path / "elsewhere"))
    assert str(raised.value) == (
        f"no daemon runs on the data folder {tmp_path}/elsewhere (NIGHTSHIFT_DATA_DIR chooses another): "
        "start one with `python -m pipeline daemon`"
    )
