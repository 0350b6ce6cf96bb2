"""Programs for test_testing_equals_host.py that do what operators do: each verb, what it comes to, and how it is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from supervisor import QueueUnknown, Run
from tests.apps import families, kitted, operated, replayed, undone
from tests.conformance.kit_programs import Stage

NOBODY = UUID("01970000-0000-7000-8000-000000000000")
LONG: Any = {"reason": "r" * 4001}


def at_rest(stage: Stage, workflow: Any, *args: Any, **kwargs: Any) -> Run[Any]:
    run = stage.client.start(workflow, *args, **kwargs)
    stage.rest(run)
    return run


def ended(run: Run[Any]) -> Run[Any]:
    """How is told by who compares runs."""
    try:
        run.result(timeout=60)
    except Exception:  # noqa: BLE001
        pass
    return run


def word(run: Run[Any], said: str) -> None:
    run.signal(kitted.kitted_word, said)


def standing(stage: Stage, run: Run[Any]) -> Any:
    found = run.status()
    return [found.status, found.wait, found.step, found.seq, found.attempt, found.key, found.queue]


# ── retry of what waits ──────────────────────────────────────────────────────────────────────────────────────────


def retried_now(stage: Stage) -> list[Run[Any]]:
    run = at_rest(stage, operated.operated_retrying, "kit-now", "kit-now-open")
    stage.ask(lambda: standing(stage, run), lambda: stage.client.retry(run, "it is back", actor="ann") == run)
    stage.rest(run)
    stage.notes.open("kit-now-open")
    stage.ask(lambda: standing(stage, run), lambda: stage.client.retry(run) == run)
    return [run]


def retried_paused(stage: Stage) -> list[Run[Any]]:
    """A try that is due at once when the run is resumed, and not before."""
    run = at_rest(stage, operated.operated_retrying, "kit-paused", "kit-paused-open")
    stage.ask(lambda: stage.client.pause(run), lambda: stage.client.retry(run), lambda: standing(stage, run))
    stage.ask(lambda: stage.client.edit_retry(run, 0, next_in=0), lambda: standing(stage, run))
    stage.notes.open("kit-paused-open")
    stage.ask(lambda: stage.client.resume(run, **LONG), lambda: stage.client.resume(run))
    return [run]


def not_retried(stage: Stage) -> list[Run[Any]]:
    asleep, waits, done = at_rest(stage, replayed.replayed_sleeps), at_rest(stage, kitted.kitted_waits), ended(stage.client.start(families.kid, 1))
    chain = ended(stage.client.start(replayed.replayed_goes_on, 1))
    undid = ended(stage.client.start(undone.undone_def, "kit-retry"))
    for run in (asleep, waits, done, chain, undid, NOBODY):
        stage.ask(lambda run=run: stage.client.retry(run))  # type: ignore[misc]
    retried = at_rest(stage, operated.operated_retrying, "kit-long", "kit-long-open")
    stage.ask(lambda: stage.client.retry(retried, **LONG), lambda: stage.client.retry(retried, actor="a" * 201), lambda: standing(stage, retried))
    for run in (asleep, waits, retried):
        run.cancel("enough", actor="me")
    return [asleep, waits, retried]


# ── other terms ──────────────────────────────────────────────────────────────────────────────────────────────────


def edited(stage: Stage) -> list[Run[Any]]:
    run, other = at_rest(stage, operated.operated_exhausting, "kit-terms"), at_rest(stage, operated.operated_exhausting, "kit-other")
    stage.ask(lambda: stage.client.edit_retry(run, 0, max_attempts=4, initial=0.001, factor=1.0, maximum=0.01, next_in=0.0, reason="soon", actor="ann"))
    stage.ask(lambda: stage.client.edit_retry(other, 0, max_attempts=1), lambda: stage.client.retry(other) == other)
    return [run, other]


def edited_twice(stage: Stage) -> list[Run[Any]]:
    """What a later edit does not name stays as an earlier one had it."""
    run = at_rest(stage, operated.operated_exhausting, "kit-adds")
    stage.ask(lambda: stage.client.edit_retry(run, 0, max_attempts=2))
    stage.rest(run)
    stage.ask(lambda: stage.client.edit_retry(run, 0, next_in=3000.0))
    stage.rest(run)
    stage.ask(lambda: standing(stage, run), lambda: stage.client.edit_retry(run, 0, next_in=0.0))
    return [run]


def not_edited(stage: Stage) -> list[Run[Any]]:
    run, client = at_rest(stage, operated.operated_exhausting, "kit-bad"), stage.client
    stage.ask(
        lambda: client.edit_retry(run, 0), lambda: client.edit_retry(run, 0, max_attempts=0), lambda: client.edit_retry(run, 0, factor=0.5, maximum=2e9, initial=1e-05),
        lambda: client.edit_retry(run, 0, max_attempts=2.5), lambda: client.edit_retry(run, 0, next_in=2e9), lambda: client.edit_retry(run, 0, max_attempts=2, **LONG),
        *(lambda seq=seq: client.edit_retry(run, seq, max_attempts=3) for seq in (1, -1, 99)), lambda: client.edit_retry(NOBODY, 0, max_attempts=3),
    )  # fmt: skip
    stage.ask(lambda: standing(stage, run), lambda: run.terminate("enough"), lambda: client.edit_retry(run, 0, max_attempts=3))
    return [run]


# ── a result in place of a step ──────────────────────────────────────────────────────────────────────────────────


def skipped(stage: Stage) -> list[Run[Any]]:
    run, client = at_rest(stage, operated.operated_retrying, "kit-skip", "kit-skip-open"), stage.client
    stage.ask(
        lambda: client.skip(run, 0, "seven"), *(lambda seq=seq: client.skip(run, seq, 1) for seq in (-1, 1, 7)), lambda: client.skip(NOBODY, 0, 1),
        lambda: client.skip(run, 0, 1, **LONG), lambda: client.skip(run, 0, 12, "done by hand", actor="ann"),
    )  # fmt: skip
    ended(run)
    stage.ask(lambda: client.skip(run, 0, 13))
    return [run]


def skipped_paused(stage: Stage) -> list[Run[Any]]:
    run = at_rest(stage, operated.operated_retrying, "kit-still", "kit-still-open")
    stage.ask(lambda: stage.client.pause(run), lambda: stage.client.skip(run, 0, 5), lambda: standing(stage, run)[:2], lambda: stage.client.resume(run))
    return [run]


def skipped_token(stage: Stage) -> list[Run[Any]]:
    """What is handed over, and then is not waited for any more."""
    run = at_rest(stage, kitted.kitted_handed, 600)
    stage.ask(lambda: stage.client.skip(run, 0, "by hand"))
    ended(run)
    stage.ask(lambda: stage.client.complete(stage.tokens(run)[-1], "too late"))
    return [run]


def not_skipped(stage: Stage) -> list[Run[Any]]:
    """Waits of other kinds are no steps."""
    asleep, waits = at_rest(stage, replayed.replayed_sleeps), at_rest(stage, kitted.kitted_waits)
    for run in (asleep, waits):
        for seq in (0, 1):
            stage.ask(lambda run=run, seq=seq: stage.client.skip(run, seq, 1))  # type: ignore[misc]
        run.cancel("enough", actor="me")
    return [asleep, waits]


# ── retry of what has ended ──────────────────────────────────────────────────────────────────────────────────────


def failing(stage: Stage, name: str, **options: Any) -> Run[Any]:
    """Sent two words, of which it has read one."""
    run = at_rest(stage, kitted.kitted_fails.options(**options), name, f"{name}-open")
    stage.client.pause(run)
    word(run, "a")
    word(run, "b")
    stage.client.resume(run)
    return ended(run)


def retried(stage: Stage) -> list[Run[Any]]:
    """It goes on before the step that failed, under the key; asked again it is the same run."""
    run = failing(stage, "kit-retried", key="kit-retried")
    stage.notes.open("kit-retried-open")
    again = stage.client.retry(run, "it is open", actor="ann")
    stage.ask(lambda: [again == run, again.created, again.key, again.workflow], lambda: stage.client.retry(run) == again, lambda: stage.client.retry(run).created)
    ended(again)
    named = stage.client.start(kitted.kitted_fails.options(key="kit-retried"), "kit-retried", "kit-retried-open")
    stage.ask(lambda: [named == again, named.created], lambda: [each.run_id == again.id for each in stage.client.list(key="kit-retried")], lambda: stage.client.retry(again))
    return [run, again]


def retried_twice(stage: Stage) -> list[Run[Any]]:
    """What goes on and fails again is retried in its turn."""
    run = failing(stage, "kit-again")
    second = ended(stage.client.retry(run))
    stage.notes.open("kit-again-open")
    third = ended(stage.client.retry(second))
    stage.ask(lambda: len({run.id, second.id, third.id}), lambda: stage.client.retry(run) == second)
    return [run, second, third]


def retried_own_error(stage: Stage) -> list[Run[Any]]:
    run = ended(stage.client.start(kitted.kitted_caught, "kit-own", "kit-own-open"))
    stage.notes.open("kit-own-open")
    return [run, ended(stage.client.retry(run))]


def retried_after_an_end(stage: Stage) -> list[Run[Any]]:
    """Cancelled and timed out: from where it was told; terminated: from where it was."""
    cancelled, late, stopped = at_rest(stage, kitted.kitted_cleans_up, 0.01), ended(stage.client.start(kitted.kitted_late)), at_rest(stage, kitted.kitted_waits)
    cancelled.cancel("enough", actor="me")
    stopped.terminate("at once")
    again = [stage.client.retry(ended(run)) for run in (cancelled, late, stopped)]
    stage.rest(again[0])
    again[0].cancel("enough", actor="me")
    word(again[2], "go")
    return [cancelled, late, stopped, *map(ended, again)]


# ── fork ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def forked(stage: Stage) -> list[Run[Any]]:
    """At every place of its history, in another run's input, as another workflow."""
    client, run = stage.client, ended(stage.client.start(operated.operated_sum.options(key="kit-sum"), [1, 2, 3]))
    forks = [client.fork(run, seq, reason="again", actor="ann") for seq in (0, 1, 2, 3, None)]
    forks += [client.fork(run, 0, input=[5, 6]), client.fork(run, 2, input=[1, 2, 7]), client.fork(run, 1, workflow=operated.operated_product), client.fork(forks[1], 2)]
    stage.ask(lambda: [[each.workflow, each.key, each.created, each.result(timeout=60)] for each in forks])
    stage.ask(lambda: [each.run_id == run.id for each in client.list(key="kit-sum")])
    return [run, *forks]


def not_forked(stage: Stage) -> list[Run[Any]]:
    client, run = stage.client, ended(stage.client.start(operated.operated_sum, [1, 2, 3]))
    stage.ask(
        *(lambda seq=seq: client.fork(run, seq) for seq in (-1, 4, 99)), lambda: client.fork(NOBODY, 0), lambda: client.fork(run, 0, workflow="kit_nothing"),
        lambda: client.fork(run, 0, input={"n": 1}), lambda: client.fork(run, 0, input=["one"]), lambda: client.fork(run, 0, workflow=kitted.kitted_late),
        lambda: client.fork(run, 0, workflow=kitted.kitted_fails), lambda: client.fork(run, 0, workflow=operated.operated_given), lambda: client.fork(run, 0, **LONG),
    )  # fmt: skip
    return [run]


def forked_everywhere(stage: Stage) -> list[Run[Any]]:
    """What comes after each point is there: messages, children, timers; what was before it is not done again."""
    run = at_rest(stage, kitted.kitted_mixed, 3)
    word(run, "a")
    word(run, "b")
    ended(run)
    seqs = [record.seq for record in stage.history(run.id).records]
    forks = [ended(stage.client.fork(run, seq)) for seq in seqs]
    stage.ask(lambda: [fork.result(timeout=60) == run.result(timeout=60) for fork in forks])
    return [run, *forks]


def forked_updated(stage: Stage) -> list[Run[Any]]:
    run = at_rest(stage, kitted.kitted_updated)
    stage.ask(lambda: run.update(kitted.kitted_add, 1), lambda: run.update(kitted.kitted_add, 2))
    word(run, "over")
    ended(run)
    return [run, *(ended(stage.client.fork(run, seq)) for seq in (0, None))]


def forked_live(stage: Stage) -> list[Run[Any]]:
    """One that waits, and so does its fork; not over the head of a child that lives."""
    run = at_rest(stage, kitted.kitted_has_kid)
    stage.ask(lambda: stage.client.fork(run, None), lambda: stage.client.fork(run, 1))
    fork = stage.client.fork(run, 0)
    stage.rest(fork)
    word(run, "one")
    word(fork, "two")
    return [run, fork]


def forked_draws(stage: Stage) -> list[Run[Any]]:
    """The same random numbers, ids and, until its first own result, moments."""
    for n in range(3):
        stage.notes.open(f"kit-draws-{n}-gate")
    run = stage.client.start(operated.operated_drawing, "kit-draws", 2)
    drawn = run.result(timeout=60)
    for seq in (0, 2, 3, None):
        fork = stage.client.fork(run, seq)
        again = stage.client.fork(ended(fork), 1)
        for each in (fork, again):
            told = each.result(timeout=60)
            stage.ask(lambda told=told: [told[0][2] == drawn[0][2], [each[:2] for each in told] == [each[:2] for each in drawn]])  # type: ignore[misc]
    return []


# ── queues ───────────────────────────────────────────────────────────────────────────────────────────────────────


def queue_unknown(stage: Stage, verb: Any) -> Any:
    try:
        return verb("kit nowhere")
    except QueueUnknown as error:
        return [error.queue, "kitted" in error.known]


def queue_paused(stage: Stage) -> list[Run[Any]]:
    """What starts is there and does not begin; what is ended ends."""
    client = stage.client
    stage.ask(
        lambda: queue_unknown(stage, client.pause_queue), lambda: queue_unknown(stage, client.resume_queue), lambda: client.resume_queue("kitted"),
        lambda: client.pause_queue("kitted", **LONG), lambda: client.pause_queue("kitted", "stocktaking", actor="ann"), lambda: client.pause_queue("kitted", "me too"),
    )  # fmt: skip
    runs = [client.start(kitted.kitted_in_queue) for _ in range(3)]
    beside = at_rest(stage, kitted.kitted_waits)
    stage.ask(lambda: [standing(stage, run) for run in runs], lambda: runs[0].cancel("enough", actor="me"), lambda: runs[1].terminate("enough"))
    stage.ask(lambda: [run.status().status for run in runs], lambda: client.pause(runs[2]), lambda: client.resume(runs[2]), lambda: standing(stage, runs[2]))
    stage.ask(lambda: client.resume_queue("kitted", actor="a" * 201), lambda: client.resume_queue("kitted", "counted"), lambda: client.resume_queue("kitted"))
    stage.rest(runs[2])
    for run in (runs[2], beside):
        word(run, "go")
    return [*runs, beside]


def queue_paused_meanwhile(stage: Stage) -> list[Run[Any]]:
    """What wakes is ready, and goes on after the resume."""
    waits, sleeps, tries = at_rest(stage, kitted.kitted_in_queue), at_rest(stage, kitted.kitted_in_queue, 1.5), at_rest(stage, kitted.kitted_in_queue)
    stage.ask(lambda: stage.client.pause_queue("kitted"))
    word(waits, "go")
    fork = stage.client.fork(tries, 0)
    stage.wait(lambda: sleeps.status().status == "ready")
    stage.ask(lambda: [standing(stage, run) for run in (waits, sleeps, fork)], lambda: tries.cancel("enough", actor="me"), lambda: standing(stage, tries))
    stage.ask(lambda: stage.client.resume_queue("kitted"))
    for run in (sleeps, fork):
        word(run, "go")
    return [waits, sleeps, tries, fork]


OPERATED: dict[str, Callable[[Stage], list[Run[Any]]]] = {
    program.__name__: program
    for program in (
        retried_now, retried_paused, not_retried, edited, edited_twice, not_edited, skipped, skipped_paused, skipped_token, not_skipped, retried, retried_twice,
        retried_own_error, retried_after_an_end, forked, not_forked, forked_everywhere, forked_updated, forked_live, forked_draws, queue_paused, queue_paused_meanwhile,
    )
}  # fmt: skip
