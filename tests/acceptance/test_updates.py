"""Updates on the command line: sent, answered, rejected, shown; and nothing of them acts on a terminal."""

from __future__ import annotations

import json
from pathlib import Path

from supervisor import Client
from tests.acceptance.test_reading import HOSTILE, registered
from tests.acceptance.test_workers import command
from tests.apps import updated
from tests.harness import Database, HostFactory


def test_an_update_is_sent_and_answered(database: Database, hosts: HostFactory, tmp_path: Path) -> None:
    """Data on stdout, one object with --json; the run by its key; the same id is answered alike."""
    with Client(database.dsn) as client, hosts("tests.apps.updated", procs=1) as host:
        run = client.start(updated.shop.options(key="shop-1"), 2)
        tea = '{"name": "tea", "count": 1}'
        sent = command(database, "update", "shop-1", "add", tea, "--id", "u1", folder=tmp_path)
        assert (sent.returncode, json.loads(sent.stdout)) == (0, {"items": [json.loads(tea)]}), f"{sent.stderr}\n{host.log()}"
        again = json.loads(command(database, "update", str(run.id), "add", tea, "--id", "u1", "--json", folder=tmp_path).stdout)
        assert again == {"run_id": str(run.id), "update": "add", "id": "u1", "stage": "completed", "result": json.loads(sent.stdout)}
        accepted = command(database, "update", "shop-1", "count", "--wait-for", "accepted", folder=tmp_path)
        assert accepted.returncode == 0 and "update count" in accepted.stdout
        rejected = command(database, "update", "shop-1", "add", '{"name": "salt", "count": 0}', folder=tmp_path)
        assert (rejected.returncode, rejected.stdout) == (1, "") and "0 of salt" in rejected.stderr
        unknown = command(database, "update", "shop-1", "never", folder=tmp_path)
        assert unknown.returncode == 1 and "no handler for update 'never'" in unknown.stderr
        assert command(database, "update", "shop-1", "add", "no json", folder=tmp_path).returncode == 2
        assert command(database, "update", "nowhere", "add", tea, folder=tmp_path).returncode == 1
        late = command(database, "update", "shop-1", "add", tea, "--timeout", "0.1", "--wait-for", "admitted", "--json", folder=tmp_path)
        assert json.loads(late.stdout)["stage"] in ("admitted", "accepted", "completed")
        shown = command(database, "show", "shop-1", folder=tmp_path).stdout
        assert "update" in shown and "rejected" in shown and "add (update)" in shown
        listed = json.loads(command(database, "show", "shop-1", "--json", folder=tmp_path).stdout)["updates"]
        assert [each["stage"] for each in listed][:4] == ["completed", "completed", "rejected", "rejected"]
        run.cancel()
        closed = command(database, "update", "shop-1", "add", tea, folder=tmp_path)
        assert closed.returncode == 1 and "has ended (cancelled)" in closed.stderr


def test_what_was_sent_does_not_act_on_a_terminal(database: Database, tmp_path: Path) -> None:
    """Names, ids and arguments are others' words."""
    registered(database, "hostile")
    run = database.one("select supervisor.start('hostile')")
    database.sql("select supervisor.update(%s, 'name', to_jsonb(%s::text), %s)", run, HOSTILE, HOSTILE)
    shown = command(database, "show", str(run), folder=tmp_path)
    assert shown.returncode == 0 and "admitted" in shown.stdout
    assert not set(shown.stdout) & {"\x1b", "\x07", "\x9b"}
