"""Programs for test_testing_equals_host.py: each is started and talked to through a client, and tells what it saw of it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from supervisor import Client, Run, UpdateRejected
from supervisor.core import codec
from supervisor.core.errors import SupervisorError
from supervisor.core.histories import History
from tests.harness import Effects
from tests.apps import closing, families, kitted, letters, longruns, longsteps, replayed, tries, undone


@dataclass
class Stage:
    """Where a program is played."""

    client: Client
    wait: Callable[[Callable[[], bool]], None]  # until something is so
    history: Callable[[UUID], History]
    notes: Effects
    said: list[Any] = field(default_factory=list)  # what verbs answered, in their order

    def rest(self, run: Run[Any]) -> None:
        """Wait until it does nothing by itself any more."""
        self.wait(lambda: self.client.status(run).status in ("waiting", "paused"))

    def tokens(self, run: Run[Any]) -> list[str]:
        """Those that the run's steps have given out."""
        return [line[2] for line in self.notes.lines("kitted_token") if line[1] == str(run.id)]


    def ask(self, *deeds: Callable[[], Any]) -> None:
        """Do them, and keep what each answers or raises."""
        for deed in deeds:
            try:
                self.said.append(masked(deed()))
            except SupervisorError as error:
                self.said.append([type(error).__name__, without_ids(str(error))])


def run_and_end(workflow: Any, *args: Any, **kwargs: Any) -> Callable[[Stage], Any]:
    return lambda stage: [stage.client.start(workflow, *args, **kwargs)]


def told(*messages: Any) -> Callable[[Stage, Run[Any]], None]:
    def tell(stage: Stage, run: Run[Any]) -> None:
        for signal, value in messages:
            run.signal(signal, value)

    return tell


def and_then(start: Callable[[Stage], list[Run[Any]]], *acts: Callable[[Stage, Run[Any]], None]) -> Callable[[Stage], list[Run[Any]]]:
    def play(stage: Stage) -> list[Run[Any]]:
        runs = start(stage)
        for act in acts:
            stage.rest(runs[0])
            act(stage, runs[0])
        return runs

    return play


def cancelled(stage: Stage, run: Run[Any]) -> None:
    assert run.cancel("enough", actor="me")


def terminated(stage: Stage, run: Run[Any]) -> None:
    assert run.terminate("at once")


def updated(stage: Stage, run: Run[Any]) -> None:
    assert [run.update(kitted.kitted_add, n) for n in (1, 2)] == [2, 5]
    try:
        run.update(kitted.kitted_add, -1)
    except UpdateRejected as error:
        assert str(error.__cause__) == "-1 is negative"
    run.signal(kitted.kitted_word, "over")


def keys(stage: Stage) -> list[Run[Any]]:
    one = stage.client.start(families.kid.options(key="kit"), 1)
    two = stage.client.start(families.kid.options(key="kit"), 1)
    assert (one.created, two.created, one.id == two.id) == (True, False, True)
    return [one]


def completed(stage: Stage, run: Run[Any]) -> None:
    token = stage.tokens(run)[-1]
    stage.client.heartbeat(token)
    assert [stage.client.complete(token, "it") for _ in range(2)] == [True, False]


def failed(stage: Stage, run: Run[Any]) -> None:
    assert stage.client.fail(stage.tokens(run)[-1], "not good")


def paused(stage: Stage, run: Run[Any]) -> None:
    assert stage.client.pause(run, "lunch") in ("paused", "pausing")
    stage.rest(run)
    run.signal(kitted.kitted_word, "while it stood")
    assert run.status().status == "paused"
    assert stage.client.resume(run)


def goes_on(stage: Stage, run: Run[Any], *args: Any, **kwargs: Any) -> None:
    """Send what has it go on, and wait until its successor waits."""
    was = stage.client.status(run).run_id
    stage.ask(lambda: run.signal(*args, **kwargs))
    stage.wait(lambda: stage.client.status(run).run_id != was)
    stage.rest(run)


def repeats(stage: Stage) -> list[Run[Any]]:
    """What earlier runs of a chain were given is known to the later ones, and when all have ended."""
    run, more, end = stage.client.start(longruns.longruns_waits, 2), longruns.longruns_more, longruns.longruns_end
    stage.rest(run)
    for n in (1, 2):
        goes_on(stage, run, more, n, id=f"m{n}")
        stage.ask(*(lambda n=n: run.signal(more, n, id=f"m{n}") for n in range(1, n + 1)))  # type: ignore[misc]
    newest = stage.client.status(run).run_id
    stage.ask(lambda: stage.client.signal(newest, more, 1, id="m1"), lambda: run.signal(end, "other", id="m1"))
    assert run.result(timeout=60) == "other"
    stage.ask(lambda: stage.client.signal(newest, more, 1, id="m1"), lambda: run.signal(more, 2, id="m2"), lambda: run.signal(more, 3, id="m3"))
    return [run]


def bears(end: Callable[[Stage, Run[Any]], None]) -> Callable[[Stage], list[Run[Any]]]:
    """A run that goes on twice leaves its children to the end of its chain."""

    def play(stage: Stage) -> list[Run[Any]]:
        run = stage.client.start(longruns.longruns_bears, 2)
        stage.rest(run)
        kids = [stage.client.get(UUID(json.loads(bytes(each.result)))) for each in stage.history(run.id).records if each.kind == "child_start"]
        for kid in kids:
            stage.rest(kid)
        goes_on(stage, kids[0], longruns.longruns_more, 0)
        for n in (1, 2):
            goes_on(stage, run, longruns.longruns_more, n)
        stage.ask(*(lambda kid=kid: stage.client.status(kid).status for kid in kids))  # type: ignore[misc]
        end(stage, run)
        stage.wait(lambda: all(stage.client.status(kid).status in ("cancelled", "terminated") for kid in (kids[0], kids[2])))
        stage.ask(*(lambda kid=kid: stage.client.status(kid).status for kid in kids))  # type: ignore[misc]
        kids[1].cancel("left", actor="me")
        return [run, *kids]

    return play


words = told((kitted.kitted_word, "a"), (kitted.kitted_word, "b"))
PROGRAMS: dict[str, Callable[[Stage], list[Run[Any]]]] = {
    "mixed": and_then(run_and_end(kitted.kitted_mixed, 3), words),
    "mixed_def": run_and_end(kitted.kitted_mixed_def, 3),
    "updated": and_then(run_and_end(kitted.kitted_updated), updated),
    "late": run_and_end(kitted.kitted_late),
    "keys": keys,
    "raises": run_and_end(replayed.replayed_raises),
    "goes_on": run_and_end(replayed.replayed_goes_on, 2),
    "plain": and_then(run_and_end(replayed.replayed_plain, 1), told((replayed.replayed_go, "x"))),
    "cancelled_waiting": and_then(run_and_end(replayed.replayed_cancelled), cancelled),
    "terminated_waiting": and_then(run_and_end(replayed.replayed_cancelled), terminated),
    "cancelled_sleeping": and_then(run_and_end(replayed.replayed_sleeps), cancelled),
    "cancelled_tree": and_then(run_and_end(closing.closing_grandparent, "tree"), cancelled),
    "cleans_up": and_then(run_and_end(kitted.kitted_cleans_up, 0.01), cancelled),
    "cleans_up_for_too_long": and_then(run_and_end(kitted.kitted_cleans_up, 600), cancelled),
    "cleans_up_and_stays": and_then(run_and_end(kitted.kitted_cleans_up, 0.01), lambda stage, run: run.cancel("a little", actor="me")),
    "cleans_up_def": and_then(run_and_end(kitted.kitted_cleans_up_def), cancelled),
    "undone": run_and_end(undone.undone_def, "kit"),
    "undone_pending": run_and_end(undone.undone_goes_on, "kit", "fails"),
    "undone_pending_caught": run_and_end(undone.undone_goes_on, "kit", "catches"),
    "undone_pending_def": run_and_end(undone.undone_goes_on_def, "kit"),
    "undone_pending_late": run_and_end(undone.undone_goes_on, "kit", "ends"),
    "undone_settled": run_and_end(undone.undone_settled, "kit", 1),
    "undone_child": run_and_end(replayed.replayed_undone),
    "calls": run_and_end(families.calls_def),
    "wrong_input": run_and_end(families.wrong_input),
    "generations": run_and_end(families.generations, 3),
    "delayed": run_and_end(families.delayed),
    "lost_child": run_and_end(closing.closing_late, "kit-lost"),
    "closing_catches": run_and_end(closing.closing_catches, 2),
    "counts": run_and_end(longruns.longruns_count, 3),
    "becomes": run_and_end(longruns.longruns_becomes, 4),
    "repeats": repeats,
    "bears_cancelled": bears(cancelled),
    "bears_terminated": bears(terminated),
    "bears_ends": bears(told((longruns.longruns_end, "the end"))),
    "keeps": run_and_end(longruns.longruns_keeps, True),
    "limited": run_and_end(longruns.longruns_limited, 60),
    "hears": and_then(run_and_end(letters.collects_with_steps, 3), told(*((letters.numbers, n) for n in (3, 1, 2)))),
    "either": run_and_end(letters.either, 0.05),
    "patient": and_then(run_and_end(letters.patient, 2), told((letters.numbers, 7))),
    "approval_late": run_and_end(letters.approval, 0.05),
    "forgives": and_then(run_and_end(letters.forgives), told(("numbers", 1), ("numbers", "no number"), ("numbers", 3))),
    "tries": run_and_end(tries.tries, "task", 3),
    "tries_too_often": run_and_end(tries.tries, "thread", 9),
    "declined": run_and_end(tries.charges, "declined"),
    "non_retryable": run_and_end(tries.charges, "non_retryable"),
    "retried_later": run_and_end(tries.retried_without_policy),
    "times_out": run_and_end(tries.timeouts, "task"),
    "completed": and_then(run_and_end(kitted.kitted_handed, 600, 60), completed),
    "failed_twice": and_then(run_and_end(kitted.kitted_handed, 600), failed, failed),
    "token_late": run_and_end(kitted.kitted_handed, 0.05),
    "token_silent": run_and_end(kitted.kitted_handed, 600, 0.05),
    "paused": and_then(run_and_end(kitted.kitted_waits), paused),
    "paused_sleeping": and_then(run_and_end(replayed.replayed_sleeps), lambda stage, run: stage.client.pause(run), lambda stage, run: run.cancel("over", actor="me")),
    "signs_of_life_thread": run_and_end(longsteps.longsteps_resume, "thread", "kit"),
    "silent_thread": run_and_end(longsteps.longsteps_silent, "thread", "kit"),
    "silent_task": run_and_end(longsteps.longsteps_silent, "task", "kit"),
    "closing_token": run_and_end(longsteps.longsteps_closing, "token", "kit"),
    "closing_far": run_and_end(longsteps.longsteps_closing, "far", "kit"),
    "closing_hangs": run_and_end(longsteps.longsteps_closing, "hangs", "kit"),
    "signs_of_life_process": run_and_end(longsteps.longsteps_resume, "process", "kit"),
    "relaunches": run_and_end(tries.relaunches, "kit", 3),
}  # fmt: skip


def seen(stage: Stage, run: Run[Any]) -> dict[str, Any]:
    """What is to be equal: how it ended, and what is recorded of it and of what it went on as."""
    try:
        ended: Any = ["returned", run.result(timeout=60)]
    except Exception as error:  # noqa: BLE001
        ended = [type(error).__name__, type(error.__cause__).__name__, str(error.__cause__)]
    history = stage.history(run.id)
    return {
        "ended": masked(ended), "status": history.status, "attributes": dict(stage.client.attributes(run)), "published": dict(stage.client.published(run)),
        "progress": [each.done for each in [stage.client.progress(run)] if each is not None],
        "records": [(each.seq, each.kind, each.status, each.name, _value(each)) for each in history.records],
    }  # fmt: skip


def _value(record: Any) -> Any:
    raw = bytes(record.result)
    if record.kind == "child_start":
        return "a run"
    if record.status == "failed":
        error = codec.decode_error(raw)
        return [type(error).__name__, without_ids(str(error))]
    return without_ids(raw.decode())


def masked(value: Any) -> Any:
    """Without what every run has for itself."""
    if isinstance(value, list | tuple):
        return [masked(each) for each in value]
    if isinstance(value, dict):
        return {key: masked(each) for key, each in value.items()}
    return without_ids(value) if isinstance(value, str) else value


def without_ids(text: str) -> str:
    return re.sub(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", "<id>", text)
