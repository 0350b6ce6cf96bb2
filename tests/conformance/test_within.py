"""Every verb in every transaction: on each kind of connection, kept or taken back, and whoever dies before or after the commit."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import cache, partial
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from supervisor import AsyncClient, AsyncRun, Client, ClientMisused, KeyMismatch, Run, RunCancelled, RunClosed, SupervisorError, TokenClosed
from supervisor.api.updates import AsyncUpdateHandle, UpdateHandle
from supervisor.api.within import AsyncWithin, Within
from tests.apps.within import END, within_asked, within_backoff, within_failed, within_open, within_started, within_token, within_told
from tests.conformance.client_host import Hosted, hosted as hosted
from tests.conformance.connections import KINDS, SETUP, VERBS, Connection, Target, row_of
from tests.harness import ROOT, Server, eventually

APP = "tests.apps.within"
ENDINGS = ("committed", "rolled_back", "savepoint", "aborted")
CELLS = [(kind, verb, ending) for kind in KINDS for verb in VERBS for ending in ENDINGS]
MOVED = [(kind, verb) for kind in ("psycopg_repeatable_read", "psycopg_serializable") for verb in ("signal", "cancel", "update", "complete")]
OTHERS_ON = ("psycopg", "psycopg_async", "sqlalchemy", "sqlalchemy_session", "sqlalchemy_async", "django", "sql")
FAILING = {"retry": within_failed, "fork": within_failed, "skip": within_backoff, "edit_retry": within_backoff}  # what is done to runs that failed
HANDLES = (Run, AsyncRun, UpdateHandle, AsyncUpdateHandle)
STARTS, HANDED = ("start", "start_many", "signal_with_start", "update_with_start"), ("complete", "fail", "heartbeat")  # what they need a run for, or a token
CLIENT, OPERATOR = "within_client", "within_operator"  # roles that log in


@pytest.fixture(scope="module")
def roles(server: Server, hosted: Hosted) -> Iterator[dict[str, str]]:
    """DSNs of two roles that have what the engine's roles have, and the application's tables; nothing else."""
    database = hosted.database
    for statement in SETUP:
        database.sql(statement)
    try:
        for role, group in ((CLIENT, "supervisor_client"), (OPERATOR, "supervisor_operator")):
            database.sql(f"create role {role} login in role {group}")
            database.sql(f"grant select, insert on orders, triggering, deferring to {role}")
        yield {role: make_conninfo(database.dsn, user=role) for role in (CLIENT, OPERATOR)}
    finally:
        for role in (CLIENT, OPERATOR):
            database.sql(f"drop owned by {role} cascade")
            database.sql(f"drop role {role}")


@pytest.fixture(scope="module")
def connections(roles: dict[str, str]) -> Iterator[Callable[[str], Connection]]:
    """One connection of each kind, as a role that is `supervisor_client` and no more."""
    with ExitStack() as left:
        yield cache(lambda kind: connected(kind, roles[CLIENT], left))


def connected(kind: str, dsn: str, left: ExitStack) -> Connection:
    for package in KINDS[kind].needs:
        pytest.importorskip(package)
    return KINDS[kind](dsn, left)


def gate_of(name: str) -> str:
    return f"gate-{name}"


class World:
    """The runs that things are done to, and what has come of it."""

    def __init__(self, hosted: Hosted) -> None:
        self.hosted, self.client, self.database, self.effects = hosted, hosted.client, hosted.database, hosted.effects
        self._asking = hosted.database.connect()
        self._targets: dict[str, Target] = {}

    def close(self) -> None:
        self._asking.close()

    def make(self, asked: list[tuple[str, str]], held: bool = False) -> list[Target]:
        """Targets for (verb, name), all at once; when this returns their runs have left memory, or where *held* wait in it."""
        handing = [name for verb, name in asked if verb in HANDED]
        opens = [name for verb, name in asked if verb not in (*HANDED, *STARTS)]
        runs = self.start_all(within_token, handing, held) | self.start_all(within_open, opens, held)
        parked = "select count(*) from supervisor.task where run_id = any(%s) and owner is null and ready_at = 'infinity'"
        if held:
            eventually(lambda: {gate_of(name) for name in runs} <= {line[1] for line in self.effects.lines("held")}, 20, "runs in memory")
        else:
            eventually(lambda: self.database.one(parked, list(runs.values())) == len(runs), 60, "runs that wait")
        eventually(lambda: set(handing) <= {line[1] for line in self.effects.lines("token")}, 20, "tokens")
        tokens = {line[1]: line[2] for line in self.effects.lines("token")}
        return [Target(name, runs.get(name), tokens.get(name)) for _, name in asked]

    def start_all(self, workflow: Any, names: list[str], held: bool) -> dict[str, uuid.UUID]:
        records = [{"name": name, "gate": gate_of(name) if held else ""} for name in names]
        batch = self.client.start_many(workflow, records, key=lambda each: str(each["name"]))
        return dict(zip(names, batch.ids, strict=True))

    def all(self) -> None:
        """What the whole file needs of runs that have left memory: that takes a second, however many they are."""
        asked = [(verb, f"{kind}-{verb}-{ending}") for kind, verb, ending in CELLS]
        asked += [(verb, f"{name}-again") for verb, name in asked if name.endswith("-savepoint")]
        asked += [(verb, f"{what}-{verb}") for what in ("killed", "unsaid") for verb in VERBS]
        asked += [(verb, f"moved-{kind}-{verb}") for kind, verb in MOVED]
        asked += [(verb, f"other-{kind}-{verb}") for kind in OTHERS_ON for verb in OTHERS if verb not in FAILING]
        asked += [("signal", "deferred")]
        self._targets = {target.name: target for target in self.make(asked)}
        for verb, workflow in FAILING.items():
            for kind in OTHERS_ON:
                name = f"other-{kind}-{verb}"
                self._targets[name] = Target(name, self.client.start(workflow.options(key=f"{name}-of"), name).id)

    def __getitem__(self, name: str) -> Target:
        return self._targets[name]

    # ── what has come of it ──────────────────────────────────────────────────────────────────────────────────────

    def noted(self, verb: str, target: Target) -> list[str]:
        """The words that steps of its run were executed with."""
        return [line[2] for line in self.effects.lines(verb) if line[1] == target.name]

    def happens(self, verb: str, target: Target, word: str) -> None:
        eventually(lambda: self.noted(verb, target) == [word], 20, f"{verb} of {target} with {word}; the host's log:\n{self.hosted.host.log()[-2000:]}")

    def settled(self, verb: str, target: Target) -> list[str]:
        """All that has reached its run before a word that is sent now, which ends it."""
        if verb == "start":
            try:
                run = self.client.start(within_started.options(key=target.name), target.name, END)
            except KeyMismatch as error:
                run = self.client.get(str(error.run_id))
            return [word for word in run.result(timeout=20) if word != END]
        run = self.client.get(target.run)
        try:
            if verb == "complete":
                self.client.complete(target.token, END)
            elif verb == "update":
                assert run.update(within_asked, END, timeout=20) == f"answer to {END}"
            run.signal(within_told, END)
        except (RunClosed, TokenClosed):
            pass
        try:
            reached: list[str] = run.result(timeout=20)
        except RunCancelled as error:
            return [str(error.why)]
        return reached

    def traces(self, word: str) -> list[str]:
        """Tables of the engine in which *word* stands anywhere, as text or in bytes."""
        tables = "select relname::text from pg_class where relnamespace = 'supervisor'::regnamespace and relkind = 'r' and pg_relation_size(oid) > 0"
        found = " or ".join(f"strpos(t::text, '{text}') > 0" for text in (word, word.encode().hex()))
        each = [f"select '{name}' where exists (select from supervisor.\"{name}\" t where {found})" for (name,) in self.database.sql(tables)]
        return [name for (name,) in self.database.sql(" union all ".join(each))]

    def holds(self, question: str, target: Target, word: str = "") -> bool:
        """Whether *question*, of a target and a word, is answered with yes."""
        row = self._asking.execute(question, {**target._asdict(), "word": word}).fetchone()
        return row is not None and bool(row[0])

    def orders(self, target: Target) -> list[str]:
        return [word for (word,) in self.database.sql("select word from orders where name = %s order by word", target.name)]

    def nothing_of(self, verb: str, target: Target, word: str) -> None:
        """Nothing is left of what was taken back: no row, the application's included, and nothing reaches the run before what follows."""
        assert self.traces(word) == [] and self.orders(target) == []
        assert self.settled(verb, target) == [] and self.noted(verb, target) in ([], [END])

    def once(self, verb: str, target: Target, word: str) -> None:
        """It happens, once, and whoever asks is told so."""
        assert self.orders(target) == [word]
        self.happens(verb, target, word)
        if verb == "update":
            assert self.client.update(target.run, within_asked, word, id=word, timeout=20) == f"answer to {word}"
            answer = self.database.one("select supervisor.update_answer(%s, 'within_asked', %s)", target.run, word)
            assert answer == {"stage": "completed", "result": f"answer to {word}"}
        assert self.settled(verb, target) == [word] == self.noted(verb, target)


@pytest.fixture(scope="module")
def world(hosted: Hosted, roles: dict[str, str]) -> Iterator[World]:
    made = World(hosted)
    made.all()
    yield made
    made.close()


@pytest.mark.parametrize(("kind", "verb", "ending"), CELLS, ids=["-".join(cell) for cell in CELLS])
def test_a_verb_shares_the_fate_of_its_transaction(world: World, connections: Callable[[str], Connection], kind: str, verb: str, ending: str) -> None:
    """Committed it happens exactly once; rolled back, to a savepoint too, or aborted by a later mistake there is nothing of it."""
    conn, target = connections(kind), world[f"{kind}-{verb}-{ending}"]
    kept, lost = f"kept-{target.name}", f"lost-{target.name}"
    if ending == "committed":
        with conn.transaction(True):
            told = conn.act(verb, target, kept)
            assert world.orders(target) == []
        if isinstance(told, HANDLES):
            assert conn.result(told) == ([kept] if verb == "start" else f"answer to {kept}")
        world.once(verb, target, kept)
    elif ending == "rolled_back":
        with conn.transaction(False):
            told = conn.act(verb, target, lost)
        if isinstance(told, HANDLES):
            with pytest.raises(SupervisorError, match="has not committed or was rolled back"):
                conn.result(told)
        world.nothing_of(verb, target, lost)
    elif ending == "aborted":
        with pytest.raises(Exception, match="division by zero"), conn.transaction(True):
            conn.act(verb, target, lost)
            conn.sql("select 1 / 0")
        world.nothing_of(verb, target, lost)
    else:
        again = world[f"{target.name}-again"]
        with conn.transaction(True):
            with conn.taken_back():
                conn.act(verb, target, lost)
                conn.act(verb, again, lost)
            conn.act(verb, again, kept)
        world.nothing_of(verb, target, lost)
        world.once(verb, again, kept)


# ── who dies meanwhile ───────────────────────────────────────────────────────────────────────────────────────────


@contextmanager
def stopped(world: World) -> Iterator[None]:
    """Workers that do nothing while this lasts, and are then killed -9: whatever is committed meanwhile none of them has seen."""
    pids = world.hosted.host.worker_pids()
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    up = world.hosted.host.log().count(" is up as ")
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
    eventually(lambda: world.hosted.host.log().count(" is up as ") > up, 30, "a worker in place of the killed one")


@pytest.mark.parametrize("held", [False, True], ids=["parked", "in_memory"])
def test_what_is_committed_happens_once_when_the_worker_is_killed_before_it_has_seen_it(world: World, connections: Callable[[str], Connection], held: bool) -> None:
    """The commit is all that it takes: whoever comes after the dead worker finds it, for each verb."""
    conn = connections("psycopg")
    targets = world.make([(verb, f"killed-held-{verb}") for verb in VERBS], held) if held else [world[f"killed-{verb}"] for verb in VERBS]
    with stopped(world):
        with conn.transaction(True):
            for verb, target in zip(VERBS, targets, strict=True):
                conn.act(verb, target, f"kept-{target.name}")
        for verb, target in zip(VERBS, targets, strict=True):
            assert world.traces(f"kept-{target.name}") and world.noted(verb, target) == []
    for verb, target in zip(VERBS, targets, strict=True):
        world.happens(verb, target, f"kept-{target.name}")
        world.effects.open(gate_of(target.name))
        world.once(verb, target, f"kept-{target.name}")


@pytest.mark.parametrize("kind", ["psycopg", "trigger"])
def test_a_run_that_is_in_memory_is_told_too(world: World, connections: Callable[[str], Connection], kind: str) -> None:
    asked = [(verb, f"held-{kind}-{verb}") for verb in VERBS if verb != "start"]
    targets, conn = world.make(asked, held=True), connections(kind)
    for keep in (False, True):
        with conn.transaction(keep):
            for (verb, _), target in zip(asked, targets, strict=True):
                conn.act(verb, target, f"{'kept' if keep else 'lost'}-{target.name}")
    for (verb, _), target in zip(asked, targets, strict=True):
        world.happens(verb, target, f"kept-{target.name}")
        world.effects.open(gate_of(target.name))
        world.once(verb, target, f"kept-{target.name}")
        assert world.traces(f"lost-{target.name}") == []


def test_an_application_that_is_killed_before_its_commit_leaves_nothing_and_locks_nothing(world: World, roles: dict[str, str]) -> None:
    targets = {verb: world[f"unsaid-{verb}"] for verb in VERBS}
    said = json.dumps([(verb, target, f"lost-{target.name}") for verb, target in targets.items()], default=str)
    runs = [target.run for target in targets.values() if target.run]
    words = [sys.executable, "-m", "tests.conformance.connections", roles[CLIENT], said]
    with subprocess.Popen(words, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None and program.stdout.readline() == "said\n"
        theirs = "select pid from pg_stat_activity where datname = current_database() and usename = %s and state = 'idle in transaction'"
        ((backend,),) = world.database.sql(theirs, CLIENT)
        with pytest.raises(psycopg.errors.LockNotAvailable):  # they are locked until then
            world.database.sql("select from supervisor.task where run_id = any(%s) for update nowait", runs)
        program.kill()
    eventually(lambda: world.database.one("select count(*) from pg_locks where pid = %s", backend) == 0, 20, "no lock of the dead")
    world.database.sql("select from supervisor.task where run_id = any(%s) for update nowait", runs)
    for verb, target in targets.items():
        world.nothing_of(verb, target, f"lost-{target.name}")


# ── what is the transaction's own affair ─────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("kind", "verb"), MOVED)
def test_a_run_that_has_moved_since_the_snapshot_is_the_callers_conflict(world: World, connections: Callable[[str], Connection], kind: str, verb: str) -> None:
    """It comes as the driver's error, for the retry around the transaction; said again, on a new snapshot, it happens."""
    target, conn = world[f"moved-{kind}-{verb}"], connections(kind)
    with pytest.raises(psycopg.errors.SerializationFailure), conn.transaction(True):
        conn.sql("select 1 from orders")
        world.client.pause(target.run)
        world.client.resume(target.run)
        conn.act(verb, target, f"lost-{target.name}")
    assert world.traces(f"lost-{target.name}") == []
    with conn.transaction(True):
        conn.act(verb, target, f"kept-{target.name}")
    world.once(verb, target, f"kept-{target.name}")


@pytest.mark.parametrize("kind", KINDS)
def test_the_matrix_is_done_as_a_client_that_may_nothing_else(world: World, connections: Callable[[str], Connection], kind: str) -> None:
    """So a trigger of the application's needs no more than what the application has."""
    conn = connections(kind)
    for statement in ("select from supervisor.runs", "delete from supervisor.task", "select supervisor.skip(supervisor.new_id(), 0, '1')"):
        with pytest.raises(Exception, match="permission denied"), conn.transaction(True):
            conn.sql(statement)


def test_a_deferred_trigger_says_its_verb_at_the_commit(world: World, connections: Callable[[str], Connection]) -> None:
    """And what is refused there is refused to the commit: the row is not there either."""
    target, conn = world["deferred"], connections("trigger")
    with conn.transaction(True):
        conn.sql(row_of("deferring", "signal", target, "kept-deferred"))
    world.once("signal", target, "kept-deferred")
    with pytest.raises(psycopg.Error, match="has ended"), conn.transaction(True):
        conn.sql(row_of("deferring", "signal", target, "lost-deferred"))
    assert world.orders(target) == ["kept-deferred"] and world.traces("lost-deferred") == []


@pytest.mark.parametrize("kind", ["psycopg_block", "django"])
def test_no_verb_is_said_where_no_transaction_is_open(world: World, connections: Callable[[str], Connection], kind: str) -> None:
    """Each statement would be committed by itself, and the caller believes that it is not."""
    conn, target = connections(kind), Target(f"outside-{kind}", uuid.UUID(int=0), "pgst_none")
    for verb, said in {**VERBS, **{verb: said for verb, (said, _) in OTHERS.items() if verb not in ("skip", "operate_all")}}.items():  # they ask first, which a client may not
        with pytest.raises(ClientMisused, match="commits each statement by itself"):
            conn.utter(said, "", target, f"lost-{verb}")
    assert world.traces(target.name) == []


# ── the other verbs ──────────────────────────────────────────────────────────────────────────────────────────────

Said = Callable[[Any, Target, str], Any]
OTHERS: dict[str, tuple[Said, str]] = {
    "start_many": (
        lambda within, target, word: within.start_many(within_started, [{"name": target.name, "word": word}], key=lambda each: str(each["name"])),
        "supervisor.start_many('within_started', array[jsonb_build_object('name', {name}, 'word', {word})], keys => array[{name}])",
    ),
    "signal_with_start": (
        lambda within, target, word: within.signal_with_start(within_told.message(word), within_open.options(key=target.name), target.name),
        "supervisor.signal_with_start('within_open', 'within_told', to_jsonb({word}), jsonb_build_object('name', {name}), key => {name})",
    ),
    "update_with_start": (
        lambda within, target, word: within.update_with_start(within_asked.message(word, id=word), within_open.options(key=target.name), target.name),
        "supervisor.update_with_start('within_open', 'within_asked', to_jsonb({word}), jsonb_build_object('name', {name}), key => {name}, id => {word})",
    ),
    "fail": (lambda within, target, word: within.fail(target.token, word, retry=False), "supervisor.fail({token}, {word}, retry => false)"),
    "heartbeat": (lambda within, target, word: within.heartbeat(target.token, word), "supervisor.heartbeat({token}, to_jsonb({word}))"),
    "pause": (lambda within, target, word: within.pause(target.run, word), "supervisor.pause({run}, {word})"),
    "resume": (lambda within, target, word: within.resume(target.run, word), "supervisor.resume({run}, {word})"),
    "retry": (lambda within, target, word: within.retry(target.run, word), "supervisor.retry({run}, {word})"),
    "fork": (lambda within, target, word: within.fork(target.run, None, reason=word), "supervisor.fork({run}, null, reason => {word})"),
    "skip": (lambda within, target, word: within.skip(target.run, 0, word), "supervisor.skip({run}, 0, to_jsonb({word}))"),
    "edit_retry": (
        lambda within, target, word: within.edit_retry(target.run, 0, next_in=0, reason=word),
        "supervisor.edit_retry({run}, 0, next_in => 0, reason => {word})",
    ),
    "operate_all": (
        lambda within, target, word: within.operate_all("pause", f"key = {target.name}", reason=word),
        "supervisor.operate_many('pause', array[{run}], null, null, '{{}}', {word}, null)",
    ),
    "terminate": (lambda within, target, word: within.terminate(target.run, word), "supervisor.terminate({run}, {word})"),
}
READY = {
    "resume": "select status = 'paused' from supervisor.runs where run_id = %(run)s",
    **dict.fromkeys(("retry", "fork"), "select status = 'failed' from supervisor.runs where run_id = %(run)s"),
    **dict.fromkeys(("skip", "edit_retry"), "select wait = 'step_backoff' from supervisor.runs where run_id = %(run)s"),
}
HAPPENED: dict[str, str] = {  # true of the run or name when it has happened
    "start_many": "select count(*) = 1 from supervisor.runs where key = %(name)s and workflow = 'within_started' and status = 'completed'",
    "signal_with_start": "select count(*) = 1 from supervisor.signals join supervisor.keys k using (run_id) "
    "where k.key = %(name)s and payload = to_jsonb(%(word)s::text) and seq is not null",
    "update_with_start": "select count(*) = 1 from supervisor.updates join supervisor.keys k using (run_id) "
    "where k.key = %(name)s and id = %(word)s and stage = 'completed'",
    "fail": "select status = 'failed' and error ->> 'message' like '%%' || %(word)s || '%%' from supervisor.runs where run_id = %(run)s",
    "heartbeat": "select details = to_jsonb(%(word)s::text) from supervisor.tokens where run_id = %(run)s",
    "pause": "select status = 'paused' from supervisor.runs where run_id = %(run)s",
    "resume": "select status in ('ready', 'running', 'waiting') from supervisor.runs where run_id = %(run)s",
    "retry": "select count(*) = 2 from supervisor.runs where input ->> 'name' = %(name)s and status = 'failed'",
    "fork": "select count(*) = 2 from supervisor.runs where input ->> 'name' = %(name)s and status = 'failed'",
    "skip": "select status = 'completed' and result = to_jsonb(%(word)s::text) from supervisor.runs where run_id = %(run)s",
    "edit_retry": "select count(*) = 2 from supervisor.attempts where run_id = %(run)s and kind = 'failed'",
    "operate_all": "select status = 'paused' from supervisor.runs where run_id = %(run)s",
    "terminate": "select status = 'terminated' from supervisor.runs where run_id = %(run)s",
}


@pytest.mark.parametrize("kind", OTHERS_ON)
def test_every_other_verb_shares_the_fate_of_its_transaction(world: World, roles: dict[str, str], kind: str) -> None:
    """Those of operators too, as an operator."""
    targets = {verb: world[f"other-{kind}-{verb}"] for verb in OTHERS}
    world.client.pause(targets["resume"].run)
    for verb, question in READY.items():
        eventually(partial(world.holds, question, targets[verb]), 20, f"what {verb} is done to")
    with ExitStack() as left:
        conn = connected(kind, roles[OPERATOR], left)
        for word, keep in ((f"lost-other-{kind}", False), (f"kept-other-{kind}", True)):
            with conn.transaction(keep):
                for verb, (said, call) in OTHERS.items():
                    conn.utter(said, call, targets[verb], word)
            if not keep:
                assert world.traces(word) == []
                assert [verb for verb, question in HAPPENED.items() if world.holds(question, targets[verb], word)] == []
    for verb, question in HAPPENED.items():
        eventually(partial(world.holds, question, targets[verb], f"kept-other-{kind}"), 20, f"{verb} on {kind}")


def test_no_verb_is_missing_in_a_transaction() -> None:
    """What a client can do it can do within a transaction, but a query, which a host answers when it is committed."""
    def verbs(kind: type) -> set[str]:
        return {name for name in dir(kind) if not name.startswith("_")}

    assert verbs(Client) - {"close", "within", "query"} == verbs(Within) == verbs(AsyncWithin) == verbs(AsyncClient) - {"close", "within", "query"}
    reads = {"attributes", "get", "list", "parameters", "progress", "published", "result", "status", "versions"}
    elsewhere = {name for name in verbs(Within) if "schedule" in name or name.endswith("_queue")}  # shown in test_schedules and test_paused_queues
    assert {*VERBS, *OTHERS} == verbs(Within) - reads - elsewhere - {"start_record", "move"}  # another way to say start; shown in test_versions
