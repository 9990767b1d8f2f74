"""The locks name a version, and its hashes, for whatever pyproject.toml wants."""

from __future__ import annotations

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.runs import ROOT


def locked(name: str) -> dict[str, list[tuple[str, str]]]:
    """Of each package its versions, each with the lines that belong to it."""
    found: dict[str, list[tuple[str, str]]] = {}
    text = (ROOT / "requirements" / f"{name}.txt").read_text("utf-8")
    for entry in re.split(r"\n(?=\w)", text):
        pinned = re.match(r"([\w.-]+)(?:\[[\w,]+\])?==([\w.+!]+)", entry)
        if pinned:
            found.setdefault(canonicalize_name(pinned[1]), []).append((pinned[2], entry.strip()))
    return found


def wanted() -> list[tuple[str, str]]:
    """Each lock with a requirement that it has to meet."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    ours, of_tests = project["project"]["dependencies"], project["dependency-groups"]["dev"]
    return [("run", each) for each in ours] + [("dev", each) for each in [*ours, *of_tests]]


@pytest.mark.parametrize(("lock", "requirement"), wanted())
def test_a_lock_meets_what_is_wanted(lock: str, requirement: str) -> None:
    wants = Requirement(requirement)
    versions = locked(lock)[canonicalize_name(wants.name)]
    assert [version for version, _ in versions if not wants.specifier.contains(version)] == []


def test_every_version_has_its_hashes_and_is_the_same_in_both() -> None:
    run, dev = locked("run"), locked("dev")
    assert len(run) > 30
    for versions in [*run.values(), *dev.values()]:
        assert all("--hash=sha256:" in lines for _, lines in versions)
    assert {name: versions for name, versions in dev.items() if name in run} == run
