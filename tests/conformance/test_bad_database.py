"""A schema of another time, a database that is read-only, full or gone: a clear error at once, and nothing lost."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from supervisor import Client, ConfigInvalid, DatabaseUnavailable, SchemaMissing, SchemaTooNew, SchemaTooOld
from supervisor.db import client_calls, connect
from supervisor.db.statements import Sql
from tests.apps import odd
from tests.harness import Database, Effects, HostFactory, Server, eventually

FINE = odd.Order(1, 7)
TOKENS = Sql("supervisor").tokens


def _refused_by(hosts: HostFactory, code: int) -> str:
    """A host that must end by itself with *code*; what it said."""
    host = hosts.start("tests.apps.odd")
    assert host.process.wait(30) == code, host.log()
    return host.log()


def test_schema_of_another_program_is_refused_by_name(database: Database, hosts: HostFactory) -> None:
    """Rows written by a program that does not know the schema could not be taken back."""
    newest = database.sql("select number, name, checksum, by_version from supervisor.migration order by number desc limit 1")[0]
    # given a schema that is one migration ahead
    database.sql("insert into supervisor.migration (number, name, checksum, by_version) values (9999, 'later', 'x', '99.0')")
    with Client(database.dsn) as client, pytest.raises(SchemaTooNew, match="9999.*upgrade"):
        client.start(odd.takes, FINE)
    assert "9999" in _refused_by(hosts, 78)
    # and one that is behind
    database.sql("delete from supervisor.migration where number >= %s", newest[0])
    with Client(database.dsn) as client, pytest.raises(SchemaTooOld, match="supervisor migrate"):
        client.start(odd.takes, FINE)
    assert "supervisor migrate" in _refused_by(hosts, 75)
    # and none
    with Client(database.dsn, schema="nowhere") as client, pytest.raises(SchemaMissing, match="migrate --schema nowhere"):
        client.start(odd.takes, FINE)
    # then nothing was written, and the right schema works
    assert database.one("select count(*) from supervisor.run") == 0
    database.sql("insert into supervisor.migration (number, name, checksum, by_version) values (%s, %s, %s, %s)", *newest)
    with Client(database.dsn) as client, hosts("tests.apps.odd"):
        assert client.start(odd.takes, FINE).result(timeout=20) == 7


def test_database_that_becomes_read_only_loses_nothing(database: Database, hosts: HostFactory, effects: Effects) -> None:
    """A failover shows itself so: the old primary takes no more writes. What was acknowledged goes on when there is a primary again."""
    with Client(database.dsn) as client, hosts("tests.apps.odd") as host:
        run = client.start(odd.outlasts, "writable")
        eventually(lambda: effects.count("waiting"), 20)
        # when no session may write any more
        database.sql(f"alter database {database.name} set default_transaction_read_only = on")
        others = "from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
        database.sql(f"select pg_terminate_backend(pid) {others}")
        effects.open("writable")
        with Client(database.dsn) as fresh, pytest.raises(DatabaseUnavailable):
            fresh.start(odd.takes, FINE)
        assert database.one("select count(*) from supervisor.outcome") == 0
        # then, writable again, it is finished by a host that never gave up
        database.sql("set default_transaction_read_only = off")
        database.sql(f"alter database {database.name} reset default_transaction_read_only")
        assert run.result(timeout=40) == ["writable", "True"]
        assert client.start(odd.takes, FINE).result(timeout=20) == 7
        assert host.process.poll() is None, host.log()


@pytest.fixture
def role(database: Database, server: Server) -> Iterator[str]:
    """A role with the engine's rights that may have one session."""
    name = f"limited_{database.name}"
    database.sql(f'create role {name} login connection limit 1 in role {TOKENS["role_client"]}, {TOKENS["role_worker"]}')
    try:
        yield name
    finally:
        with server.connect() as conn:
            conn.execute("select pg_terminate_backend(pid) from pg_stat_activity where usename = %s", (name,))
            conn.execute(f"alter role {name} connection limit 0")
            with database.connect() as inside:
                inside.execute(f"drop owned by {name}")
            conn.execute(f"drop role if exists {name}")


def test_database_full_of_connections_is_told_and_waited_out(database: Database, hosts: HostFactory, role: str, server: Server) -> None:
    """Connections run out on busy days: the client is told at once, workers come when there is room, no run is lost."""
    dsn = psycopg.conninfo.make_conninfo(database.dsn, user=role)
    with hosts("tests.apps.odd"):  # registers the workflows
        pass
    hosts.database = Database(server, database.name, dsn)
    with Client(dsn) as client, Client(dsn) as second:
        run = client.start(odd.takes, FINE)
        with pytest.raises(DatabaseUnavailable, match="too many connections"):
            second.start(odd.takes, FINE)
        client.close()
        # a host whose workers don't all get a session says why, works with those that do, and is whole when there is room
        host = hosts.start("tests.apps.odd", procs=3)
        eventually(lambda: "too many connections" in host.log(), 30, "a worker without a session")
        eventually(lambda: database.one("select count(*) from supervisor.outcome") == 1, 30, "the run")
        database.sql(f"alter role {role} connection limit -1")
        host.wait_up(3)
        assert run.result(timeout=20) == 7, host.log()
        host.kill_all()


def test_database_that_is_not_there_is_told_without_the_password(hosts: HostFactory, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Where, why, what to do; a password is in no message."""
    nowhere = tmp_path_factory.mktemp("nowhere")
    dsn = f"host={nowhere} dbname=x user=y password=canary-7"
    with Client(dsn) as client, pytest.raises(DatabaseUnavailable) as caught:
        client.start(odd.takes, FINE)
    told = str(caught.value)
    assert str(nowhere) in told and told.lower().count("is the server running") == 1 and len(told.replace(str(nowhere), "")) < 230
    assert "canary-7" not in repr(caught.value) + str(caught.value) + repr(client)
    hosts.database.dsn, kept = dsn, hosts.database.dsn
    log = _refused_by(hosts, 69)
    hosts.database.dsn = kept
    assert str(nowhere) in log and "canary-7" not in log


def test_a_folder_of_the_socket_that_is_closed_to_this_account_is_no_lack_of_a_role() -> None:
    """Whoever grants and grants helps nobody: it is the file system that says no."""
    said = 'connection failed: connection to server on socket "/run/own/.s.PGSQL.5432" failed: Permission denied\n\tIs the server running locally and accepting connections on that socket?'
    told = str(connect.not_connected(psycopg.OperationalError(said), {"host": "/run/own"}, connect.Dsn("host=/run/own", "--dsn")))
    assert "the file system" in told and "host=127.0.0.1" in told and "grant" not in told and "Is the server" not in told
    remote = 'connection failed: connection to server at "10.0.0.1", port 5432 failed: Connection refused\n\tIs the server running on that host and accepting TCP/IP connections?'
    told = str(connect.not_connected(psycopg.OperationalError(remote), {"host": "10.0.0.1"}, connect.Dsn("host=10.0.0.1", "--dsn")))
    assert told == (
        'no session with the database (host=10.0.0.1, from --dsn): connection to server at "10.0.0.1", port 5432 failed: Connection refused; '
        "is the server running, and is this where it listens?"
    )


def test_who_has_no_database_is_told_where_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the command line by an option, in Python by an argument."""
    for variable in ("PGSUPERVISOR_DATABASE_URL", "DATABASE_URL", *connect._LIBPQ):
        monkeypatch.delenv(variable, raising=False)
    with Client() as client, pytest.raises(ConfigInvalid, match=r'no database is configured; give one with Client\("postgresql://user@host/name"\) or in PGSUPERVISOR_DATABASE_URL'):
        client.start(odd.takes, FINE)
    with pytest.raises(ConfigInvalid, match="give one with --dsn postgresql://user@host/name or"):
        connect.resolve_dsn()


def test_database_that_goes_away_keeps_what_was_acknowledged(own_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client's next call says that the database is gone; when it is back the same client goes on."""
    monkeypatch.setattr(client_calls, "RETRY_S", 0.3)
    database = own_server.database()
    database.sql("insert into supervisor.queue (name) values ('default')")
    database.sql("insert into supervisor.workflow (name, queue) select 'takes', id from supervisor.queue")
    with Client(database.dsn) as client:
        run = client.start(odd.takes.options(key="acknowledged"), FINE)
        own_server.stop()
        with pytest.raises(DatabaseUnavailable):
            client.start(odd.takes, FINE)
        own_server.embedded.start()
        eventually(lambda: client.get(run.id).key == "acknowledged", 30)
        again = client.start(odd.takes.options(key="acknowledged"), FINE)
        assert (again.id, again.created) == (run.id, False)
    assert database.one("select count(*) from supervisor.run") == 1


@pytest.mark.parametrize("password", ["x", "role", "does", "!x"])
def test_a_short_password_takes_no_word_apart_and_no_hint_away(password: str) -> None:
    """`does not e***ist`: and what to do was looked for in what was left."""
    said = f'connection to server at "h", port 5432 failed: FATAL:  role "w5r" does not exist (as w5r:{password}@h)'
    told = str(connect.not_connected(psycopg.OperationalError(said), {"password": password}, connect.Dsn("host=h", "--dsn")))
    assert told.endswith("; create it (createuser), or name another") and " exist (as w5r:***@h)" in told


def test_a_longer_password_is_hidden_wherever_it_stands() -> None:
    told = str(connect.not_connected(psycopg.OperationalError("at canary-7xyz"), {"password": "canary-7"}, connect.Dsn("host=h", "--dsn")))
    assert "canary" not in told and "***xyz" in told


def test_an_empty_dsn_is_not_taken_for_none() -> None:
    """--dsn "$UNSET" would go to the database of the environment."""
    for given in ("", " "):
        with pytest.raises(ConfigInvalid, match="--dsn is empty"):
            connect.find_dsn(given, environ={"PGSUPERVISOR_DATABASE_URL": "host=elsewhere"})
