"""Settings: flag over environment over pyproject.toml over default; misspellings are errors."""

import tomllib
from pathlib import Path

import pytest

from supervisor.core import settings
from supervisor.core.errors import ConfigInvalid
from supervisor.core.version import VERSION
from supervisor.db.connect import find_dsn, resolve_dsn


@pytest.fixture
def folder(tmp_path):
    def write(body):
        (tmp_path / "pyproject.toml").write_text(body)
        return tmp_path

    return write


def test_defaults_without_any_source(tmp_path):
    found = settings.load(environ={}, folder=tmp_path)
    assert ("auto", "supervisor", ()) == (found.procs, found.schema, found.queues)
    assert {"default"} == set(found.sources.values())


def test_flag_over_environment_over_file_over_default(folder):
    at = folder('[tool.pgsupervisor]\nprocs = 2\nthreads = 3\nin_flight = 4\napp = "orders"\n')
    found = settings.load({"procs": "16", "threads": None}, environ={"PGSUPERVISOR_PROCS": "8", "PGSUPERVISOR_THREADS": "5"}, folder=at)
    assert (16, 5, 4, "orders", "info") == (found.procs, found.threads, found.in_flight, found.app, found.log_level)
    assert ("--procs", "PGSUPERVISOR_THREADS") == (found.sources["procs"], found.sources["threads"])
    assert str(at / "pyproject.toml") in found.sources["in_flight"]


def test_text_becomes_what_the_field_is(tmp_path):
    environ = {"PGSUPERVISOR_QUEUES": "fast, slow,", "PGSUPERVISOR_UNTIL_EMPTY": "yes", "PGSUPERVISOR_DATABASE_URL": "postgresql://h/d"}
    found = settings.load(environ=environ, folder=tmp_path)
    assert (("fast", "slow"), True, "postgresql://h/d") == (found.queues, found.until_empty, found.dsn)


@pytest.mark.parametrize(
    ("flags", "environ", "body", "why"),
    [
        ({"proc": 1}, {}, "", "did you mean 'procs'"),
        ({}, {"PGSUPERVISOR_THREAD": "1"}, "", "did you mean PGSUPERVISOR_THREADS"),
        ({}, {}, "[tool.pgsupervisor]\nin-flight = 1\n", "did you mean 'in_flight'"),
        ({}, {}, "[tool.pgsupervisor]\nzzz = 1\n", "known are: app"),
        ({"procs": "many"}, {}, "", "--procs: 'many' does not fit"),
        ({"log_format": "xml"}, {}, "", "give text or json"),
        ({}, {"PGSUPERVISOR_LOG_FILE_BYTES": "1000"}, "", "at least 65536"),
        ({"procs": 0}, {}, "", "from 1 to 1024"),
        ({}, {}, '[tool.pgsupervisor]\nprocs = "4"\n', "procs"),
        ({}, {}, "[tool.pgsupervisor\n", "is not TOML"),
        ({}, {}, "[tool]\npgsupervisor = 1\n", "must be a table"),
    ],
)
def test_bad_settings_say_where_and_what_to_write(folder, flags, environ, body, why):
    with pytest.raises(ConfigInvalid) as caught:
        settings.load(flags, environ=environ, folder=folder(body))
    assert why in str(caught.value)


def test_a_variable_of_another_part_of_the_project_is_left_alone(tmp_path):
    settings.load(environ={"PGSUPERVISOR_TEST_ALL": "1", "PGSUPERVISOR_DATA_DIR": "/x"}, folder=tmp_path)


def test_version_is_the_distributions():
    body = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert body["project"]["version"] == VERSION


# ── where the database is ────────────────────────────────────────────────────────────────────────────────────────


def test_dsn_order(folder, monkeypatch):
    monkeypatch.chdir(folder('[tool.pgsupervisor]\ndsn = "host=file"\n'))
    environ = {"PGHOST": "libpq", "DATABASE_URL": "host=url", "PGSUPERVISOR_DATABASE_URL": "host=own"}
    found = []
    for drop in (None, "PGSUPERVISOR_DATABASE_URL", "DATABASE_URL"):
        environ.pop(drop, None)
        found.append(find_dsn(None, environ=environ))
    assert ["host=own", "host=url", "host=file"] == [each.conninfo for each in found]
    assert "host=flag" == find_dsn("host=flag", environ=environ).conninfo
    monkeypatch.chdir("/")
    assert ("", "PGHOST") == (find_dsn(None, environ=environ).conninfo, find_dsn(None, environ=environ).source)
    assert find_dsn(None, environ={}) is None


def test_no_database_says_both_ways_out(monkeypatch):
    monkeypatch.chdir("/")
    with pytest.raises(ConfigInvalid) as caught:
        resolve_dsn(None, environ={})
    assert "PGSUPERVISOR_DATABASE_URL" in str(caught.value) and "db start" in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql+asyncpg://u:canary@h/d",
        "mysql://u:canary@h/d",
        "canary",
        "host=h password='canary",
        "postgresql://u:canary%zz@h/d",
        "canary://h/d:canary",
    ],
)
def test_a_bad_dsn_is_refused_without_its_password(text):
    with pytest.raises(ConfigInvalid) as caught:
        resolve_dsn(text)
    assert "canary" not in str(caught.value).replace("canary://", "")


def test_a_password_is_never_shown():
    for text in ("postgresql://u:canary@h:5432/d?sslpassword=canary", "host=h password=canary"):
        dsn = resolve_dsn(text)
        assert "canary" not in f"{dsn} {dsn!r} {dsn.shown}"
        assert "host=h" in dsn.shown


@pytest.mark.parametrize(("span", "seconds"), [("1 hour", 3600), ("36 hours", 129_600), ("90 days", 7_776_000), ("1 day", 86_400), ("2weeks", 1_209_600)])
def test_a_span_is_so_many_seconds(span: str, seconds: float) -> None:
    """How long the history is kept: a wrong unit would drop it unnoticed."""
    assert settings.span_s(settings.load({"retention": span}, environ={}, folder="/nonexistent").retention or "") == seconds
