"""The dashboard's page of errors: each group leads to its own runs and no others, and a retry of it from the page is a retry of those."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from supervisor import Client
from tests.acceptance.test_workers import command
from tests.acceptance.visits import Read, Visitor, served, tables
from tests.apps import erring
from tests.harness import Database, Effects, HostFactory, eventually

COLUMNS = ["failures", "runs", "live", "ended", "workflow", "step", "error", "message", "first", "last", "newest", "fingerprint", "verb"]


def listed(visitor: Visitor, href: str | None) -> set[str]:
    """The runs that a link leads to."""
    assert href is not None and href.startswith("/runs?")
    return {row["run_id"] for row in visitor.get(href.replace("/runs?", "/runs.json?")).json()["runs"]}


def retried(visitor: Visitor, href: str, runs: int) -> None:
    """Go where the button leads, and retry all that fit by the bulk bar: counted first."""
    page = visitor.get(href).text
    (text,) = parse_qs(urlsplit(href).query)["q"]
    assert 'id="bulk"' in page
    form = {"verb": "retry", "q": text, "reason": "mended"}
    dry = visitor.post("/runs/do", form)
    assert f"{runs} runs" in Read.of(dry.text).text and "Nothing was done yet" in dry.text
    done = visitor.post("/runs/do", {**form, "sure": "yes"})
    assert f"done for {runs} runs" in Read.of(done.text).text, Read.of(done.text).text


def test_a_group_of_errors_leads_to_its_runs_and_a_retry_of_it_is_of_those_alone(hosts: HostFactory, database: Database, effects: Effects, tmp_path: Path) -> None:
    """Two errors at one step, the same error at another step, healthy runs at that step, runs that ended by it, and runs whose own code raised at two lines."""
    hosts.start("tests.apps.erring", procs=1).wait_up(1)
    started: dict[Any, set[str]] = {}
    with Client(database.dsn) as client, served(tmp_path / "pages", database.dsn) as dashboard:
        ann = dashboard.visitor()
        for place, how, runs in (("charge", "declined", 3), ("charge", "unreachable", 2), ("charge", "well", 2), ("refund", "declined", 2), ("once", "declined", 2)):
            started[place, how] = {str(client.start(erring.erring, place, how).id) for _ in range(runs)}
        for line in (1, 2):
            started["raising", line] = {str(client.start(erring.raising, line).id) for _ in range(2)}
        eventually(lambda: database.one("select count(*) from supervisor.runs where wait = 'step_backoff'") == 7 and database.one("select count(*) from supervisor.runs where ended_at is not null") == 8, 60)

        found = ann.get("/errors.json").json()
        groups = {(row["step"], row["type"].rpartition(".")[2], row["message"]): row for row in found["errors"]}
        assert found["complete"] and found["listed"] == len(groups) == 6
        assert groups["charge", "Declined", "declined"]["fingerprint"] == groups["refund", "Declined", "declined"]["fingerprint"] != groups["charge", "Unreachable", "unreachable"]["fingerprint"]
        html = ann.get("/errors").text
        shown = tables(html)["Errors"]
        assert shown.columns == COLUMNS and "at least" not in html
        rows = {(row["step"][0].replace("–", ""), row["error"][0], row["message"][0]): row for row in shown.rows}
        wanted = {("charge", "Declined", "declined"): ("charge", "declined"), ("charge", "Unreachable", "unreachable"): ("charge", "unreachable"), ("refund", "Declined", "declined"): ("refund", "declined"), ("once", "Declined", "declined"): ("once", "declined"),
                  ("", "ValueError", "one line"): ("raising", 1), ("", "ValueError", "another line"): ("raising", 2)}  # fmt: skip
        assert set(rows) == set(wanted)
        for group, whose in wanted.items():
            row, live = rows[group], whose[0] in ("charge", "refund")
            assert listed(ann, row["runs"][1]) == listed(ann, row["verb"][1]) == started[whose], group
            assert listed(ann, row["live" if live else "ended"][1]) == started[whose] and row["ended" if live else "live"] == ("0", None)
            assert row["runs"][0] == str(len(started[whose]))

        text = groups["charge", "Declined", "declined"]["filter"]
        lines = command(database, "list", text, "--json", folder=tmp_path).stdout.splitlines()
        assert {json.loads(line)["run_id"] for line in lines} == started["charge", "declined"]
        counted = command(database, "cancel", "--filter", text, folder=tmp_path)
        assert "3 runs that would be asked to end" in counted.stdout + counted.stderr

        effects.open("mended")
        retried(ann, str(rows["charge", "Declined", "declined"]["verb"][1]), 3)
        ids = "', '".join(started["charge", "declined"])
        eventually(lambda: database.one(f"select count(*) from supervisor.runs where status = 'completed' and run_id in ('{ids}')") == 3, 60)
        done = lambda: {str(run) for (run,) in database.sql("select run_id from supervisor.audits where verb = 'retry' and actor = 'ann' and reason = 'mended'")}  # noqa: E731
        assert done() == started["charge", "declined"]
        retried(ann, str(rows["", "ValueError", "another line"]["verb"][1]), 2)
        assert done() == started["charge", "declined"] | started["raising", 2]
        assert effects.count("charge", "unreachable") == 2 and database.one("select count(*) from supervisor.runs where wait = 'step_backoff'") == 4
        # what it was is still found, and nobody is left to be retried
        assert listed(ann, rows["charge", "Declined", "declined"]["runs"][1]) == started["charge", "declined"]
        assert "no run fits" in ann.post("/runs/do", {"verb": "retry", "q": text, "reason": "again"}).text


def test_what_was_not_counted_whole_is_said(database: Database, tmp_path: Path) -> None:
    """10,050 tries of 150 kinds: the newest 10,000 are counted, and the hundred newest kinds are listed."""
    database.sql("insert into supervisor.queue (name) values ('q'); insert into supervisor.workflow (name, queue) select 'w', id from supervisor.queue where name = 'q'")
    database.sql("select supervisor.start('w', '{}')")
    database.sql(
        """insert into supervisor.attempt (run_id, seq, n, kind, started_at, ended_at, worker, name, error, fingerprint)
           select run_id, g, 1, 1, now(), now() - g * interval '1 s', 1, 'charge', '{"type": "shop.Declined", "message": "no"}', 'f' || g % 150 from supervisor.run, generate_series(1, 10050) as g"""
    )
    with served(tmp_path, database.dsn) as dashboard:
        ann = dashboard.visitor()
        found = ann.get("/errors.json").json()
        assert (len(found["errors"]), found["listed"], found["complete"]) == (150, 100, False)
        html = ann.get("/errors").text
        (first, *_) = rows = tables(html)["Errors"].rows
        assert len(rows) == 100 and first["failures"][0].startswith("at least ") and first["runs"][0] == "at least 1" and first["ended"][0] == "at least 0"
        text = Read.of(html).text
        assert "the newest 10,000 failed tries and as many ended runs were looked at" in text and "the 100 newest of 150 kinds are listed" in text
        nothing = urlencode({"q": f'{found["errors"][0]["filter"]} AND status = failed'})
        assert ann.get(f"/runs.json?{nothing}").json()["runs"] == []
