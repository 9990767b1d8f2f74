"""Job files: what they may say, what is wrong with one, and what stays when it is."""

from __future__ import annotations

import re
import shutil
import tomllib
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from pipeline.core.modes import Mode
from pipeline.core.schedule import Job, desired_mode, forecast
from pipeline.scheduler.job_file import KEYS, Key, local_zone
from pipeline.scheduler.jobs import LoadedJobs, fingerprint, load_jobs, reload

PROJECT = Path(__file__).parents[2]
DOCUMENT = (PROJECT / "docs" / "jobs.md").read_text(encoding="utf-8")
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
SEOUL = ZoneInfo("Asia/Seoul")
NIGHT = 'cron = "0 2 * * *"\nuntil = "08:00"\nmode = "embedding"\n'
DAY = 'cron = "0 8 * * *"\nuntil = "18:00"\nmode = "generation"\n'


def folder_with(tmp_path: Path, **files: str) -> Path:
    folder = tmp_path / "jobs"
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.toml").write_text(text, encoding="utf-8")
    return folder


def loaded_from(folder: Path) -> LoadedJobs:
    return load_jobs(folder, now=NOW, zone=lambda: SEOUL)


def only_job(tmp_path: Path, text: str) -> Job:
    loaded = loaded_from(folder_with(tmp_path, only=text))
    assert loaded.problems == ()
    (job,) = loaded.jobs
    return job


def problems_of(folder: Path, loaded: LoadedJobs | None = None) -> list[str]:
    return [str(each).removeprefix(f"{folder}/") for each in (loaded or loaded_from(folder)).problems]


def test_a_short_file_is_a_job_with_defaults(tmp_path: Path) -> None:
    job = only_job(tmp_path, NIGHT)
    assert job == Job("only", job.cron, time(8), SEOUL, Mode.EMBEDDING)
    assert job.cron.text == "0 2 * * *"


def test_every_key_of_a_file_reaches_the_job(tmp_path: Path) -> None:
    text = """
        name = "nightly"
        cron = "30 1 * jan-jun MON-Fri"
        until = "5h30m"
        timezone = "Europe/Berlin"
        mode = "mixed"
        task = "ingest"
        sources = ["papers", "/srv/documents", "../inbox"]
        enabled = false
        on_finish = "stay"
        drain = "defer"
        drain_timeout = "5m"
        retries = 0
        catch_up = true
        priority = -3
        order = "oldest"
        workers = 3
        nice = 5
    """
    assert set(tomllib.loads(text)) == {key.name for key in KEYS}
    job = only_job(tmp_path, text)
    assert job == Job(
        name="nightly",
        cron=job.cron,
        until=timedelta(hours=5, minutes=30),
        timezone=ZoneInfo("Europe/Berlin"),
        mode=Mode.MIXED,
        task="ingest",
        sources=(tmp_path / "jobs" / "papers", Path("/srv/documents"), tmp_path / "inbox"),
        enabled=False,
        on_finish="stay",
        drain="defer",
        drain_timeout=300.0,
        retries=0,
        catch_up=True,
        priority=-3,
        order="oldest",
        workers=3,
        nice=5,
    )
    assert job.cron.text == "30 1 * jan-jun mon-fri"


@pytest.mark.parametrize(
    ("written", "until"),
    [('"8:30"', time(8, 30)), ("08:30:00", time(8, 30)), ('"24:00"', time(0)), ('"90s"', timedelta(seconds=90))],
)
def test_until_may_be_written_in_several_ways(tmp_path: Path, written: str, until: time | timedelta) -> None:
    assert only_job(tmp_path, NIGHT.replace('"08:00"', written)).until == until


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (NIGHT + 'catchup = true\n', 'x.toml:4: catchup: unknown key, did you mean "catch_up"?'),
        (
            'cron = "0 9 * * *"\nuntil = "1h"\ntask = "extract"\nmode = "idle"\n',
            'x.toml:4: mode: is not for a job with task = "extract", which reads beside whatever mode is on: '
            "leave it out",
        ),
        ('cron = "0 9 * * *"\nuntil = "1h"\n', "x.toml: mode: is missing"),
        (
            'cron = "0 9 * * *"\nuntil = "1h"\ntask = "extract"\ncatch_up = true\n',
            'x.toml:4: catch_up: is for a job with task = "ingest": what was not read ahead is read at night',
        ),
        (
            'cron = "0 9 * * *"\nuntil = "1h"\nmode = "generation"\norder = "oldest"\n',
            'x.toml:4: order: is for a job with task = "ingest"',
        ),
        (NIGHT + '\n[schedule]\ncron = "1"\n', "x.toml:5: schedule: unknown key"),
        (NIGHT.replace("0 2", "0 26"), 'x.toml:1: cron: hour "26" should be 0 to 23'),
        (NIGHT.replace("0 2 * * *", "0 2 30 feb *"), "x.toml:1: cron: never fires: there is no day 30 in February"),
        (NIGHT.replace("* * *", "* * 1-5"), 'x.toml:1: cron: weekday "1-5" should be names, such as mon-fri or '
         "sat,sun: cron counts the days from Sunday, other programs from Monday"),
        (NIGHT.replace("cron = ", 'cron = 2 # '), "x.toml:1: cron: should be text, not 2"),
        (NIGHT.replace('until = "08:00"', ""), "x.toml: until: is missing"),
        (NIGHT.replace("08:00", "26:00"), 'x.toml:2: until: "26:00" is no time of day: use 00:00 to 24:00'),
        (NIGHT.replace("08:00", "8"), 'x.toml:2: until: should be a time of day such as "08:00", or a length such as '
         '"6h" or "1h30m"'),
        (NIGHT.replace('"08:00"', "08:00:30"), 'x.toml:2: until: should be a whole minute, not "08:00:30"'),
        (NIGHT.replace("08:00", "30h"), "x.toml:2: until: the window that starts on Tue 02:00 and lasts until 1d6h is "
         "still open on Wed 02:00, when the next one starts"),
        (NIGHT.replace("embedding", "embeding"), 'x.toml:3: mode: should be "generation", "embedding", "mixed" or '
         '"idle", not "embeding"'),
        (NIGHT + 'timezone = "Europe/Berln"', 'x.toml:4: timezone: should be a time zone, did you mean '
         '"Europe/Berlin"?, not "Europe/Berln"'),
        (NIGHT + 'timezone = "berlin"', 'x.toml:4: timezone: should be a time zone, did you mean "Europe/Berlin"?, '
         'not "berlin"'),
        (NIGHT + 'timezone = "../x"', 'x.toml:4: timezone: should be a time zone, such as Europe/Berlin, not "../x"'),
        (NIGHT + "timezone = 9", "x.toml:4: timezone: should be text, not 9"),
        (NIGHT + 'task = "embed"', 'x.toml:4: task: should be "ingest" or "extract", not "embed"'),
        (DAY + 'task = "ingest"', 'x.toml:4: task: "ingest" needs the mode "embedding" or "mixed", not "generation"'),
        (NIGHT + 'sources = ["a"]', 'x.toml:4: sources: is for a job with task = "ingest"'),
        (NIGHT + "catch_up = true", 'x.toml:4: catch_up: is for a job with task = "ingest"'),
        (NIGHT + 'task = "ingest"\nsources = [\n  "a",\n  3,\n]\n',
         'x.toml:5: sources: should be a list of paths, such as ["/srv/documents"]'),
        (NIGHT + 'task = "ingest"\nsources = ["smb://u:hunter2@h/share"]',
         "x.toml:5: sources: should be paths: mount the share, and name the folder where it is mounted"),
        (NIGHT + 'sources = "a"', 'x.toml:4: sources: should be a list of paths, such as ["/srv/documents"]'),
        (NIGHT + "enabled = 1", "x.toml:4: enabled: should be true or false, not 1"),
        (NIGHT + 'on_finish = "leave"', 'x.toml:4: on_finish: should be "return" or "stay", not "leave"'),
        (NIGHT + "drain = true", 'x.toml:4: drain: should be "wait", "cut" or "defer", not true'),
        (NIGHT + "drain_timeout = -1", 'x.toml:4: drain_timeout: should be seconds, from 0, or a length such as "5m", '
         "not -1"),
        (NIGHT + "drain_timeout = nan", "x.toml:4: drain_timeout: should be seconds"),
        (NIGHT + "retries = true", "x.toml:4: retries: should be a whole number, 0 to 100, not true"),
        (NIGHT + "priority = 0.5", "x.toml:4: priority: should be a whole number, -1000 to 1000, not 0.5"),
        (NIGHT + 'name = "a b"', 'x.toml:4: name: should be 1 to 64 letters, digits, dots and dashes, not "a b"'),
        (NIGHT + "retries = \n", "x.toml:4: is not TOML: Invalid value"),
        (NIGHT + NIGHT, "x.toml:4: is not TOML: Cannot overwrite a value"),
        ('cron = "0 2', "x.toml:1: is not TOML"),
        ("", "x.toml: cron: is missing"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, expected: str) -> None:
    folder = folder_with(tmp_path, x=text)
    loaded = loaded_from(folder)
    assert loaded.jobs == ()
    assert problems_of(folder)[0].startswith(expected)
    assert problems_of(folder)[0] == expected or len(expected) < 60


def test_all_that_is_wrong_with_a_file_is_said_at_once(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, x='# night\nmode = "nigt"\nretry = 2\ncron = """\n0 2 * *\n"""\n')
    assert [line.partition(": ")[0] for line in problems_of(folder)] == ["x.toml", "x.toml:2", "x.toml:3", "x.toml:4"]


def test_keys_that_do_not_go_together_are_said_beside_what_is_wrong_with_others(tmp_path: Path) -> None:
    text = 'cron = "0 26 * * *"\nuntil = "1h"\ntask = "extract"\nmode = "idle"\nretries = true\n'
    folder = folder_with(tmp_path, x=text)
    assert [": ".join(line.split(": ")[:2]) for line in problems_of(folder)] == [
        "x.toml:1: cron", "x.toml:4: mode", "x.toml:5: retries",
    ]  # fmt: skip
    unread = folder_with(tmp_path, x=NIGHT + 'task = "embed"\norder = "oldest"\n')
    assert [line.split(": ")[1] for line in problems_of(unread)] == ["task"]  # what else goes with it is not known
    without = folder_with(tmp_path, x=NIGHT + "nice = 0\n")
    assert problems_of(without) == ['x.toml:4: nice: is for a job with task = "ingest"']


def test_a_key_is_found_by_what_toml_means_by_it(tmp_path: Path) -> None:
    """Neither a comment, a quoted key, a text that looks like a key nor Windows line ends lead astray."""
    text = (
        '# retries = 1\r\nname = """\\\r\n  retries\\\r\n"""\r\n' + NIGHT.replace("\n", "\r\n") + '"retries" = -1\r\n'
    )
    folder = folder_with(tmp_path)
    (folder / "x.toml").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert problems_of(folder) == ["x.toml:8: retries: should be a whole number, 0 to 100, not -1"]


def test_a_broken_file_takes_no_other_down(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=DAY, b="cron", c=NIGHT)
    (folder / "d.toml").write_bytes(b"\xff\xfe")
    (folder / "e.toml").mkdir()
    (folder / "f.toml").symlink_to(folder / "gone")
    (folder / "g.toml").write_bytes(b"#" * ((1 << 20) + 1))
    (folder / ".#a.toml").write_text("an editor's", encoding="utf-8")
    (folder / "notes.txt").write_text("not a job", encoding="utf-8")
    loaded = loaded_from(folder)
    assert [job.name for job in loaded.jobs] == ["a", "c"]
    assert loaded.files == {"a": folder / "a.toml", "c": folder / "c.toml"}
    assert problems_of(folder)[1:] == [
        "d.toml: is not UTF-8 text",
        "e.toml: cannot be read: Is a directory",
        "f.toml: cannot be read: No such file or directory",
        "g.toml: is too large for a job file",
    ]


def test_a_folder_that_is_not_there_is_a_problem_and_not_a_crash(tmp_path: Path) -> None:
    loaded = load_jobs(tmp_path / "jobs")
    assert loaded.jobs == ()
    assert [str(each) for each in loaded.problems] == [
        f"{tmp_path / 'jobs'}: cannot be read: No such file or directory"
    ]


def test_two_jobs_cannot_share_a_name(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=NIGHT + 'name = "x"\n', b=DAY + '\nname = "x"\n')
    loaded = loaded_from(folder)
    assert [job.mode for job in loaded.jobs] == [Mode.EMBEDDING]
    assert problems_of(folder) == ['b.toml:5: name: "x" is the name of the job in a.toml too']


def test_windows_that_overlap_are_a_problem_unless_priorities_differ(tmp_path: Path) -> None:
    early = DAY.replace("0 8", "30 7")
    folder = folder_with(tmp_path, a=NIGHT, b="# early\n" + early)
    assert problems_of(folder) == [
        'b.toml:2: cron: the window overlaps that of "a" (a.toml), first on Tue 2026-06-02 07:30 to 08:00: '
        "change one, or give them different priorities"
    ]
    assert len(loaded_from(folder).jobs) == 2
    for harmless in (early + "priority = 1\n", early + "enabled = false\n", DAY):
        assert problems_of(folder_with(tmp_path, b=harmless)) == []


def test_a_file_that_breaks_keeps_its_job_and_one_that_goes_takes_it_along(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=NIGHT, b=DAY)
    first = loaded_from(folder)
    folder_with(tmp_path, a=NIGHT.replace("08:00", "07:00"), b=DAY + "oops")
    second = reload(first, folder, now=NOW, zone=lambda: SEOUL)
    assert second.jobs == (replace(first.jobs[0], until=time(7)), first.jobs[1])
    assert problems_of(folder, second)[0].startswith("b.toml:4: is not TOML")
    (folder / "a.toml").unlink()
    third = reload(second, folder, now=NOW, zone=lambda: SEOUL)
    assert third.jobs == first.jobs[1:]
    folder_with(tmp_path, b=DAY)
    assert reload(third, folder, now=NOW, zone=lambda: SEOUL).problems == ()


def test_a_folder_that_goes_keeps_the_jobs(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=NIGHT)
    first = loaded_from(folder)
    shutil.rmtree(folder)
    second = reload(first, folder)
    assert (second.jobs, second.files) == (first.jobs, first.files)
    assert len(second.problems) == 1


def test_a_fingerprint_tells_that_a_file_changed(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=NIGHT)
    seen = [fingerprint(folder)]
    assert fingerprint(folder) == seen[0]
    folder_with(tmp_path, b=DAY)
    seen.append(fingerprint(folder))
    folder_with(tmp_path, b=DAY + "#")
    seen.append(fingerprint(folder))
    (folder / "b.toml").unlink()
    (folder / "b.toml").symlink_to("gone")
    seen.append(fingerprint(folder))
    shutil.rmtree(folder)
    seen.append(fingerprint(folder))
    assert len(set(seen)) == 5


def test_the_host_s_own_time_zone(tmp_path: Path) -> None:
    nowhere = tmp_path / "localtime"
    assert local_zone({}, nowhere) == ZoneInfo("UTC")
    assert local_zone({"TZ": ""}, nowhere) == ZoneInfo("UTC")
    assert local_zone({"TZ": ":Asia/Seoul"}, nowhere) == SEOUL
    database = tmp_path / "zoneinfo" / "Asia"
    database.mkdir(parents=True)
    compiled = next(
        path for root in ("/usr/share/zoneinfo", "/usr/lib/zoneinfo") if (path := Path(root) / "Asia/Seoul").exists()
    )
    shutil.copy(compiled, database / "Seoul")
    nowhere.symlink_to(database / "Seoul")
    assert local_zone({}, nowhere) == SEOUL
    nowhere.unlink()
    shutil.copy(compiled, nowhere)
    copied = local_zone({"TZ": str(nowhere)}, tmp_path / "none")
    assert (copied.key, datetime(2026, 6, 1, tzinfo=copied).utcoffset()) == ("local", timedelta(hours=9))
    nowhere.write_bytes(b"no zone")
    with pytest.raises(ValueError, match="cannot be read"):
        local_zone({}, nowhere)
    with pytest.raises(ValueError, match=r"variable TZ should be a time zone.*CET-1CEST"):
        local_zone({"TZ": "CET-1CEST"}, nowhere)


def test_a_host_without_a_known_zone_breaks_only_jobs_that_ask_for_it(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, a=NIGHT, b=DAY + 'timezone = "Asia/Seoul"\n')
    loaded = load_jobs(folder, now=NOW, zone=lambda: local_zone({"TZ": "CET-1CEST"}))
    assert [job.name for job in loaded.jobs] == ["b"]
    assert problems_of(folder, loaded)[0].startswith("a.toml: timezone: the host's own is not known")


def test_the_jobs_that_ship_fill_the_day_and_do_not_overlap() -> None:
    loaded = loaded_from(PROJECT / "jobs")
    assert loaded.problems == ()
    assert {job.name: job.mode for job in loaded.jobs} == {
        "nightly-embedding": Mode.EMBEDDING,
        "generation": Mode.GENERATION,
        "mixed": Mode.MIXED,
        "read-ahead": None,
    }
    night = next(job for job in loaded.jobs if job.mode is Mode.EMBEDDING)
    assert (night.task, night.sources) == ("ingest", ())
    day = [(at, desired.mode) for (at, desired), _ in zip(forecast(loaded.jobs, NOW), range(4), strict=False)]
    assert [(f"{at.astimezone(SEOUL):%H:%M}", mode) for at, mode in day[1:]] == [
        ("02:00", Mode.EMBEDDING),
        ("08:00", Mode.GENERATION),
        ("18:00", Mode.MIXED),
    ]


def documented() -> dict[str, list[str]]:
    """Key -> [default, meaning], as the table of the document has them."""
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+) \|$", DOCUMENT, flags=re.MULTILINE)
    assert len(rows) == len({name for name, *_ in rows}), "a key is documented twice"
    return {name: cells for name, *cells in rows}


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_every_key_is_documented(key: Key) -> None:
    default, meaning = documented()[key.name]
    assert default.strip("`") == key.default
    assert meaning == key.description


def test_nothing_is_documented_that_is_not_a_key() -> None:
    assert list(documented()) == [key.name for key in KEYS]


def test_defaults_are_what_a_job_has(tmp_path: Path) -> None:
    job = only_job(tmp_path, NIGHT)
    stated = {key.name: key.default for key in KEYS}
    for name, value in {
        "enabled": job.enabled, "on_finish": job.on_finish, "drain": job.drain, "drain_timeout": job.drain_timeout,
        "retries": job.retries, "catch_up": job.catch_up, "priority": job.priority,
    }.items():  # fmt: skip
        assert stated[name] == (f"{value:g}" if isinstance(value, float) else str(value).lower())


def test_the_documented_examples_are_jobs_that_go_together(tmp_path: Path) -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCUMENT, flags=re.DOTALL)
    modes = [only_job(tmp_path, text).mode for text in examples]
    assert modes == [Mode.EMBEDDING, Mode.GENERATION, Mode.EMBEDDING, None]
    _, always, nights, ahead = examples
    together = loaded_from(folder_with(tmp_path, only=always, nights=nights, ahead=ahead))
    assert together.problems == ()
    berlin = ZoneInfo("Europe/Berlin")
    night = datetime(2026, 6, 2, 3, tzinfo=berlin)
    assert desired_mode(together.jobs, night).mode is Mode.EMBEDDING
    assert desired_mode(together.jobs, night, finished={"nights": night}).mode is Mode.GENERATION


def test_the_documented_problems_are_the_real_ones(tmp_path: Path) -> None:
    folder = folder_with(
        tmp_path,
        night=NIGHT.replace("* * *", "* * 1-5") + "\n\ncatchup = true\n",
        day=DAY.replace("0 8", "30 7"),
        early=NIGHT,
    )
    quoted = re.findall(r"^    jobs/(.*)$", DOCUMENT, flags=re.MULTILINE)
    assert len(quoted) == 3
    assert {re.sub(r"first on .*? to", "first on ... to", line) for line in problems_of(folder)} == {
        re.sub(r"first on .*? to", "first on ... to", line) for line in quoted
    }
