"""Replay of generated programs, without a database: any order of ends, a crash at any commit, and the run goes on as it would have.

A program is a tree of steps, gathers, firsts, errors and finally blocks. It runs on the loop under a pretended worker
that ends its steps in a drawn order and commits at drawn moments. At every commit the history so far is replayed into
a new run; what that has seen and what it asks for must be what the live one has seen and asks for.
"""

from __future__ import annotations

import asyncio
import random
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from supervisor import first, gather, step, workflow
from supervisor._fastpath import loop as core
from supervisor._fastpath.wire import Slot, Tally
from supervisor.core import codec
from supervisor.core.errors import AsyncioInWorkflow, ReplayMismatch
from supervisor.engine import replay
from supervisor.engine.batch import elements

pytestmark = pytest.mark.filterwarnings("ignore:coroutine .* was never awaited")  # branches of runs that are thrown away
SEEN: dict[str, list[str]] = defaultdict(list)  # incarnation of a run → what its code has seen


@step
def tell(label: str) -> str:
    return label


@step
def fail(label: str) -> str:
    raise LookupError(label)


async def _perform(nodes: list[Any], seen: list[str]) -> str:
    for kind, *parts in nodes:
        if kind == "step":
            seen.append(await tell.aio(parts[0]))
        elif kind == "fail":
            try:
                await fail.aio(parts[0])
            except LookupError as error:
                seen.append(f"caught {error}")
        elif kind == "gather":
            seen.append(str(await gather(*(_perform(branch, seen) for branch in parts[0]))))
        elif kind == "direct":
            seen.append(str(await gather(*(tell.aio(label) for label in parts[0]))))
        elif kind == "nested":
            seen.append(str(await gather(gather(*(tell.aio(label) for label in parts[0])), _perform(parts[1], seen))))
        elif kind == "first":
            seen.append(str(await first(**{f"b{n}": _perform(branch, seen) for n, branch in enumerate(parts[0])}, s=tell.aio(parts[1]))))
        elif kind == "finally":
            try:
                await _perform(parts[0], seen)
            finally:
                seen.append(await tell.aio(parts[1]))
        elif kind == "shielded":
            try:
                await _perform(parts[0], seen)
            except asyncio.CancelledError:
                seen.append(f"refused to be cancelled: {await tell.aio(parts[1])}")
        else:
            raise ValueError(parts[0])
    return f"did {len(nodes)}"


@workflow
async def program(nodes: list[Any], incarnation: list[str]) -> list[str]:
    seen = SEEN[incarnation[0]]
    seen.append(await _perform(nodes, seen))
    return seen


_labels = st.sampled_from(["a", "b", "c", "d"])
_leaf = st.one_of(
    st.tuples(st.just("step"), _labels),
    st.tuples(st.just("fail"), _labels),
    st.tuples(st.just("direct"), st.lists(_labels, max_size=3)),
)


def _larger(nodes: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    branch = st.lists(nodes, max_size=3)
    return st.one_of(
        st.tuples(st.just("gather"), st.lists(branch, max_size=3)),
        st.tuples(st.just("first"), st.lists(branch, max_size=3), _labels),
        st.tuples(st.just("nested"), st.lists(_labels, max_size=2), branch),
        st.tuples(st.just("finally"), branch, _labels),
        st.tuples(st.just("shielded"), branch, _labels),
        st.tuples(st.just("raise"), _labels),
    )


_programs = st.lists(st.recursive(_leaf, _larger, max_leaves=12), min_size=1, max_size=4)


@dataclass
class Pretended:
    """The worker's side of the loop: steps wait in `begun` until they are ended by hand."""

    loop: Any = None
    begun: list[Any] = field(default_factory=list)
    history: list[replay.Record] = field(default_factory=list)
    outcome: tuple[int, bytes] | None = None

    def tally(self, workflow: str, step: str) -> Tally:
        """Counted where nobody looks."""
        return Tally(bytearray(1024), 0)

    def begin(self, run: Any, command: Any) -> None:
        run.executing += 1
        self.begun.append(command)

    def end(self, run: Any, command: Any) -> None:
        self.begun.remove(command)
        run.executing -= 1
        value = error = None
        try:
            value = command.step.fn(*command.args)
        except Exception as raised:  # noqa: BLE001
            error = raised
        self.loop.complete(run, command, value, error, 1, 1)

    def failed(self, run: Any, command: Any, error: BaseException, started: int, ended: int) -> None:
        encoded = codec.encode_error(error)
        self.loop.record(run, command, core.FAILED, encoded, started, ended)
        self.loop.deliver(run, command, None, codec.decode_error(encoded))

    def finish_failed(self, run: Any, error: BaseException) -> None:
        self.loop.finish(run, core.FAILED, codec.encode_error(error))

    def dropped(self, run: Any, command: Any) -> None:
        if command in self.begun:
            self.begun.remove(command)
            run.executing -= 1

    def check_history(self, run: Any, command: Any) -> None:
        replay.check(run, command)

    def misuse(self, got: Any) -> BaseException:
        return AsyncioInWorkflow(repr(got))

    def broken(self, run: Any, error: Exception) -> None:
        raise error

    def ended(self, run: Any, status: int) -> None: ...
    def quiet(self, run: Any) -> None: ...
    def slow(self, *_: Any) -> None: ...

    def commit(self) -> tuple[list[Any], list[Any]]:
        """Take the rows of the batch into the history; acknowledging them is up to the caller."""
        steps, outcomes, runs, finished, _ = self.loop.take_rows()
        if steps is not None:
            _, seqs, positions, names, results, _, _, *mixed = map(elements, steps)
            completed = [b"\x01"] * len(seqs)  # a batch of nothing but completed steps says neither kind nor status
            kinds, statuses = mixed or (completed, completed)
            for row in zip(seqs, positions, kinds, statuses, names, results, strict=True):
                seq, pos, kind, status = (int.from_bytes(each or b"", "big") for each in row[:4])
                assert pos == len(self.history), "holes in pos"
                self.history.append(replay.Record(seq, kind, status, row[4] or b"", row[5], 1))
        if outcomes is not None:
            self.outcome = (int.from_bytes(elements(outcomes[1])[0] or b"", "big"), elements(outcomes[3])[0] or b"")
        return runs, finished


def _incarnate(nodes: list[Any], name: str, past: list[replay.Record] | None = None) -> tuple[Pretended, Any]:
    """A run of *nodes* on a loop of its own; brought back over *past* where there is one."""
    program.settle()
    for each in (tell, fail):
        each.settle()
    SEEN.pop(name, None)
    worker = Pretended()
    worker.loop = core.Loop(worker, Slot(bytearray(128), 0))
    run = core.Run(UUID(int=7).bytes, program)
    payload = codec.encode_raw({"nodes": nodes, "incarnation": [name]})
    if past is None:
        worker.loop.begin_run(run, payload)
    else:
        worker.history = list(past)
        try:
            fresh = replay.replay(worker.loop, run, replay.Past(payload, list(past)), None)
        except ReplayMismatch:
            worker.loop.evict(run)
            raise
        if run.end is not None:
            worker.outcome = run.end
        else:
            run.fresh = fresh
            worker.loop.ready.append(run)
    _execute(worker)
    return worker, run


def _execute(worker: Pretended) -> None:
    while worker.loop.ready:
        ready, worker.loop.ready = worker.loop.ready, []
        worker.loop.execute(ready, 10**9)


def _told(worker: Pretended) -> tuple[int, Any]:
    """How the run ended, without the traceback of an error."""
    assert worker.outcome is not None
    status, result = worker.outcome[0], msgspec.json.decode(worker.outcome[1])
    if status == core.FAILED:
        result = {name: value for name, value in result.items() if name in ("type", "message", "args")}
    return status, result


def _asked(worker: Pretended) -> list[tuple[int, str, Any]]:
    return sorted((command.seq, command.step.name, command.args) for command in worker.begun)


def _play(worker: Pretended, run: Any, drawn: random.Random, at_commit: Any) -> None:
    """End steps in a drawn order, some in one batch, some while a batch is under way, until the run has ended."""
    while worker.outcome is None:
        assert worker.begun or worker.loop.runs, "nothing executes and nothing has ended"
        for _ in range(drawn.randint(1, 3)):
            if worker.begun:
                worker.end(run, drawn.choice(worker.begun))
        runs, finished = worker.commit()
        if worker.begun and drawn.random() < 0.3:
            worker.end(run, drawn.choice(worker.begun))  # it ends before the answer to the batch is there
        worker.loop.acknowledge(runs, finished, [])
        if worker.outcome is None and not run.later:
            _execute(worker)
            at_commit()
        _execute(worker)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(nodes=_programs, seed=st.integers(0, 2**32))
def test_any_program_replays_alike_at_every_commit(nodes: list[Any], seed: int) -> None:
    """What a replay has seen and asks for is what the live run had seen and asked for, and both come to the same end."""
    live, run = _incarnate(nodes, "live")
    cuts = []

    def compare() -> None:
        past = list(live.history)
        copy, copied = _incarnate(nodes, "copy", past)
        found = (list(SEEN["copy"]), _asked(copy), copied.pos, copied.seq)
        copy.loop.evict(copied)
        cuts.append(past)
        if not live.loop.runs:  # else it went on behind the commit, which is not durable
            assert found == (SEEN["live"], _asked(live), run.pos, run.seq)

    compare()
    _play(live, run, random.Random(seed), compare)
    # the whole history gives the same end
    ended, _ = _incarnate(nodes, "copy", live.history)
    assert _told(ended) == _told(live)
    assert SEEN["copy"] == SEEN["live"]
    # and a run that is brought back in the middle comes to an end, in whatever order its steps end now
    for past in cuts[:: max(1, len(cuts) // 3)]:
        again, resumed = _incarnate(nodes, "again", past)
        _play(again, resumed, random.Random(seed + 1), lambda: None)
        final, _ = _incarnate(nodes, "copy", again.history)
        assert _told(final) == _told(again)
        assert SEEN["copy"] == SEEN["again"]


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(nodes=_programs, seed=st.integers(0, 2**32), at=st.integers(0, 10))
def test_any_renamed_step_in_a_history_is_found_out(nodes: list[Any], seed: int, at: int) -> None:
    """Another name at any position of the history: a mismatch, before anything is asked for."""
    live, run = _incarnate(nodes, "live")
    if live.outcome is None:
        _play(live, run, random.Random(seed), lambda: None)
    if not live.history:
        return
    past = list(live.history)
    old = past[at % len(past)]
    past[at % len(past)] = replay.Record(old.seq, old.kind, old.status, b"renamed", old.result, old.ended)
    with pytest.raises(ReplayMismatch) as caught:
        _incarnate(nodes, "copy", past)
    assert "renamed" in str(caught.value)


def test_losers_have_unwound_all_the_way_down_before_the_winner_is_given() -> None:
    """first(…) and a failed gather(…) go on when every branch of every branch has run its finally."""
    slow = ("gather", [[("finally", [("gather", [[("finally", [("step", "a")], "inner")]])], "outer")]])
    for nodes in ([("first", [[slow]], "s"), ("step", "d")], [("finally", [("gather", [[slow], [("fail", "s"), ("raise", "x")]])], "d")]):
        live, run = _incarnate(nodes, "live")
        wins = next(command for command in live.begun if command.args == ("s",))
        asked = [["s", "a"]]
        live.end(run, wins)
        while True:
            runs, finished = live.commit()
            live.loop.acknowledge(runs, finished, [])
            _execute(live)
            if not live.begun:
                break
            asked.append([command.args[0] for command in live.begun])
            live.end(run, live.begun[0])
        assert sorted(asked[0]) == ["a", "s"]
        assert asked[1:] == [["inner"], ["outer"], ["d"]], nodes


def test_cancelled_branch_asks_for_its_finally_once() -> None:
    """It was cancelled in the moment in which what it awaited was answered."""
    live, _ = _incarnate([("first", [[("finally", [("direct", [])], "a")], []], "s")], "live")
    runs, finished = live.commit()
    live.loop.acknowledge(runs, finished, [])
    _execute(live)
    assert [command.args for command in live.begun] == [("a",)]


def test_longer_history_than_the_code_has_is_found_out() -> None:
    """Code that ends before its history does is other code."""
    live, run = _incarnate([("step", "a"), ("step", "b")], "live")
    _play(live, run, random.Random(1), lambda: None)
    with pytest.raises(ReplayMismatch, match="return"):
        _incarnate([("step", "a")], "copy", live.history)
    with pytest.raises(ReplayMismatch, match="ValueError"):
        _incarnate([("step", "a"), ("raise", "x")], "copy", live.history)


def test_missing_row_of_a_history_is_found_out() -> None:
    """A history with a hole is no history: the answer to a command that was never asked."""
    live, run = _incarnate([("step", "a"), ("step", "b"), ("step", "c")], "live")
    _play(live, run, random.Random(1), lambda: None)
    with pytest.raises(ReplayMismatch):
        _incarnate([("step", "a"), ("step", "b"), ("step", "c")], "copy", [live.history[0], live.history[2]])
