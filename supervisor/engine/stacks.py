"""What a worker is doing right now: the stacks of its threads, step tasks and parked runs, each with the run that it belongs to.

Reads only, from any thread, while the loop goes on: what it looks at may change under its eyes, so every value is taken
once and nothing is believed to be there. Shows functions, files, lines and run ids; never an argument or a local value.
"""

from __future__ import annotations

import os
import sys
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any
from uuid import UUID

import supervisor
from supervisor._fastpath import loop as core
from supervisor.engine.executors import Call
from supervisor.engine.green import Green
from supervisor.engine.waits import Waiting

GROUPS_SHOWN, EXAMPLES_SHOWN = 25, 3
DEPTH_SHOWN = 8  # of a thread that executes no step, in text
DEPTH_MAX = 60  # frames of one stack, from its innermost outwards
BRANCHES_MAX, WAITS_MAX = 20, 5
EPOCH_2000 = datetime(2000, 1, 1, tzinfo=UTC)
_HOME = os.path.dirname(os.path.abspath(supervisor.__file__)) + os.sep
_ENGINE = tuple(_HOME + part for part in ("_fastpath/", "api/", "core/", "db/", "engine/", "host/", "leader/", "cli/", "sync.py"))
_WORDS = {core.STEP: "step", core.TIMER: "timer", core.CHILD: "child run", core.START: "start of", core.GATHER: "gather", core.FIRST: "first"}

Place = tuple[str, str, int]  # function, file, line; a stack of them begins at the outermost
Stack = tuple[Place, ...]


def is_engine(file: str) -> bool:
    """Whether *file* is of the engine, not of an app, a library or the interpreter."""
    return file.startswith(_ENGINE)


def dump(worker: Any, everything: bool = False, slots: Iterable[Any] = ()) -> dict[str, Any]:
    """What *worker* is doing, as JSON-able facts.

    slots        what its black box says (run_id, seq, for_s): since when the loop's thread executes a step
    everything   name each run instead of EXAMPLES_SHOWN of each group, and every group instead of the GROUPS_SHOWN largest
    Cost         about 10 µs per run in memory, on the calling thread
    """
    groups = _Groups()
    parts = hasattr(worker, "loop")  # not yet while it connects
    on_loop: dict[str, Any] | None = None
    if parts:
        for run in list(worker.loop.live.values()):
            on_loop = _add_run(groups, run) or on_loop
        for call in list(worker.executors.calls):
            if call.task is not None:
                on_loop = _add_task(groups, call) or on_loop
        current = worker.loop.current
        on_loop = _inline(worker.loop, current, slots) if current is not None else on_loop
    return {
        "role": "worker",
        "number": worker.options.number,
        "pid": os.getpid(),
        "worker_id": worker.id or None,
        "runs_in_memory": len(worker.loop.live) if parts else 0,
        "threads": threads(_executing(worker, on_loop) if parts else {}),
        **groups.largest(everything),
    }


# ── threads ──────────────────────────────────────────────────────────────────────────────────────────────────────


def threads(executing: dict[int, dict[str, Any]]) -> list[dict[str, Any]]:
    """Every thread but the calling one; *executing* says for what, by thread."""
    names = {thread.ident: thread for thread in threading.enumerate()}
    found = []
    for ident, frame in sys._current_frames().items():
        if ident == threading.get_ident():
            continue
        thread = names.get(ident)
        native_id = os.getpid() if thread is threading.main_thread() else getattr(thread, "native_id", None)  # threading keeps the parent's over a fork
        about = {"name": thread.name if thread is not None else "not of Python", "native_id": native_id}
        found.append({**about, "executing": executing.get(ident), "frames": places(of_thread(frame))})
    return sorted(found, key=lambda each: (each["name"] != "MainThread", each["executing"] is None, each["name"]))


def of_thread(frame: FrameType | None) -> Stack:
    found: list[Place] = []
    while frame is not None and len(found) < DEPTH_MAX:
        found.append((frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno or 0))
        frame = frame.f_back
    return tuple(reversed(found))


def places(stack: Stack) -> list[dict[str, Any]]:
    return [{"function": function, "file": file, "line": line} for function, file, line in stack]


def _executing(worker: Any, on_loop: dict[str, Any] | None) -> dict[int, dict[str, Any]]:
    """What each thread executes, by its ident."""
    found = {ident: command_facts(call.command, call.started, call.live) for ident, call in list(worker.executors.doing.items())}
    thread, item = worker.transactions.thread, worker.transactions.doing
    if thread is not None and item is not None:
        found[thread.ident] = command_facts(item.command, item.started or None)
    if on_loop is not None:
        found[worker.loop.thread] = on_loop
    return found


def _inline(loop: Any, command: Any, slots: Iterable[Any]) -> dict[str, Any]:
    run_id = UUID(bytes=command.run.id)
    for_s = max((slot.for_s for slot in slots if (slot.run_id, slot.seq) == (run_id, command.seq)), default=None)
    return command_facts(command, loop.now_us() - int(for_s * 1e6) if for_s is not None else None)


def command_facts(command: Any, started_us: int | None, awaited: bool = True) -> dict[str, Any]:
    """Whose step this is. Not *awaited*: its time was up or its branch lost, and it goes on all the same."""
    run = command.run
    facts = {"run_id": str(UUID(bytes=run.id)), "workflow": _workflow(run), "step": command.step.name, "seq": command.seq, "attempt": command.attempt}
    if started_us is not None:
        facts["since_at"] = at(started_us)
    if not awaited:
        facts["given_up"] = True
    return facts


def at(us: int) -> str:
    """A moment in us since 2000, in ISO 8601."""
    return (EPOCH_2000 + timedelta(microseconds=us)).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _workflow(run: Any) -> str:
    return run.workflow.name if run.workflow is not None else "(unknown)"


# ── runs in memory, and steps that are tasks ─────────────────────────────────────────────────────────────────────


def _add_run(groups: _Groups, run: Any) -> dict[str, Any] | None:
    """Put one run where it belongs; facts about it if it is the one whose code executes now."""
    coro = run.coro
    if coro is None or run.gone:
        return None
    coro = _carrier(coro)
    if getattr(coro, "cr_running", False) or (hasattr(coro, "gr_frame") and coro and coro.gr_frame is None and not coro.dead):
        return {"run_id": str(UUID(bytes=run.id)), "workflow": _workflow(run), "step": None, "seq": run.seq}
    branches = tuple(Counter(parked(fiber.coro) for fiber in list(run.fibers) if not fiber.ended).most_common(BRANCHES_MAX)) if run.fibers else ()
    kind = "coroutine" if run.workflow is not None and run.workflow.is_async else "greenlet"
    waits, seq, since = _waits(run)
    groups.add((kind, _workflow(run), waits, parked(coro), branches), run.id, seq, since)
    return None


def _add_task(groups: _Groups, call: Any) -> dict[str, Any] | None:
    """Put an async step where it belongs; facts about it if it is what the loop executes now."""
    command, task = call.command, call.task
    stack = parked(task.get_coro())
    if any(getattr(coro, "cr_running", False) for coro in awaited(task.get_coro())):
        return command_facts(command, call.started)
    run = command.run
    groups.add(("step task", _workflow(run), command.step.name, stack, ()), run.id, command.seq, call.started)
    return None


def _waits(run: Any) -> tuple[str, int | None, int]:
    """What a run waits for in words that runs in the same situation share; the seq of it; since when."""
    call, fresh = run.call, run.fresh
    if call is not None:
        return _unbegun(run, call), call.seq, run.now_us
    if run.open is not None and len(run.open) == 1 and not fresh:
        only = next(iter(run.open.values()))
        return _begun(run, only), only.seq, only.extra.started if isinstance(only.extra, Call) else run.now_us
    commands = sorted((run.open or {}).values(), key=lambda each: int(each.seq))
    if not commands:
        return "nothing: it is beginning or leaving", None, run.now_us
    unbegun = {id(each) for each in fresh or ()}
    words = Counter(_unbegun(run, each) if id(each) in unbegun else _begun(run, each) for each in commands)
    shown = [f"{count} × {word}" if count > 1 else word for word, count in words.most_common(WAITS_MAX)]
    more = [f"{len(words) - WAITS_MAX} more"] if len(words) > WAITS_MAX else []
    extra = commands[0].extra
    return ", ".join(shown + more), commands[0].seq, extra.started if isinstance(extra, Call) else run.now_us


def _name(command: Any) -> str:
    return f"{_WORDS.get(command.kind, 'command')} {command.step.name}" if command.kind != core.TIMER else "sleep"


def _unbegun(run: Any, command: Any) -> str:
    return f"{_name(command)}, which begins when what is before it is stored" if run.batch else f"{_name(command)}, which is about to begin"


def _begun(run: Any, command: Any) -> str:
    extra = command.extra
    if isinstance(extra, Call):
        return f"{_name(command)}, executing" + (" as a task" if extra.task is not None else "")
    if isinstance(extra, Waiting) and command.kind == core.STEP:
        return f"the next attempt of {_name(command)}"
    return f"{_name(command)}, in its transaction" if run.in_tx and command.kind == core.STEP else _name(command)


def awaited(coro: Any) -> Iterator[Any]:
    """*coro*, what it awaits, what that awaits, …"""
    for _ in range(DEPTH_MAX):
        if coro is None:
            return
        yield coro
        coro = next((found for name in ("cr_await", "gi_yieldfrom", "ag_await") if (found := getattr(coro, name, None)) is not None), None)


def _carrier(coro: Any) -> Any:
    """The greenlet on which a def workflow runs just now, None once it has returned; else the coroutine itself."""
    return coro.shell if isinstance(coro, Green) else coro


def parked(coro: Any) -> Stack:
    """Where a coroutine or greenlet is parked; the engine's own frames only if there are no others."""
    coro = _carrier(coro)
    if hasattr(coro, "gr_frame"):
        stack = of_thread(coro.gr_frame)
    else:
        frames = [next((frame for name in ("cr_frame", "gi_frame", "ag_frame") if (frame := getattr(each, name, None)) is not None), None) for each in awaited(coro)]
        stack = tuple((frame.f_code.co_qualname, frame.f_code.co_filename, frame.f_lineno or 0) for frame in frames if frame is not None)
    return tuple(place for place in stack if not is_engine(place[1])) or stack


def standing(run: Any, command: Any = None) -> tuple[str, int, str]:
    """File, line and function of the app where *run* waits for *command*, else for the first thing that it waits for; empty and 0 where no code stands."""
    command = command or (run.open[min(run.open)] if run.open else None)
    coro = _branch(command, run)
    stack = parked(coro) if coro is not None else ()
    if not stack:
        return "", 0, ""
    function, file, line = stack[-1]
    return file, line, function


def _branch(command: Any, run: Any) -> Any:
    """The coroutine, or greenlet, that waits for *command*: a branch of gather or first, or the workflow itself."""
    waiter = command.waiter if command is not None else None
    while type(waiter) is tuple:
        waiter = waiter[0].waiter
    return run.coro if waiter is None else waiter.coro


class _Groups:
    """Runs by identical situation: (kind, workflow, what it waits for, stack, branches) → (run id, seq, since)."""

    def __init__(self) -> None:
        self._members: dict[tuple[Any, ...], list[tuple[bytes, int | None, int]]] = {}

    def add(self, key: tuple[Any, ...], run_id: bytes, seq: int | None, since_us: int) -> None:
        self._members.setdefault(key, []).append((run_id, seq, since_us))

    def largest(self, everything: bool) -> dict[str, Any]:
        ordered = sorted(self._members.items(), key=lambda item: -len(item[1]))
        shown = ordered if everything else ordered[:GROUPS_SHOWN]
        return {
            "groups": [self._facts(key, members, len(members) if everything else EXAMPLES_SHOWN) for key, members in shown],
            "groups_left_out": len(ordered) - len(shown),
            "runs_left_out": sum(len(members) for _, members in ordered[len(shown) :]),
        }

    def _facts(self, key: tuple[Any, ...], members: list[tuple[bytes, int | None, int]], shown: int) -> dict[str, Any]:
        kind, workflow, waits, stack, branches = key
        members.sort(key=lambda member: member[2])
        return {
            "kind": kind, "workflow": workflow, "waits_for": waits, "count": len(members), "frames": places(stack),
            "branches": [{"count": count, "frames": places(branch)} for branch, count in branches],
            "runs": [{"run_id": str(UUID(bytes=run_id)), "seq": seq, "since_at": at(since)} for run_id, seq, since in members[:shown]],
        }  # fmt: skip


# ── as text ──────────────────────────────────────────────────────────────────────────────────────────────────────


def render(facts: dict[str, Any]) -> str:
    """The facts of one process for a person."""
    lines = [_title(facts)]
    idle: Counter[tuple[str, ...]] = Counter()
    for thread in facts.get("threads", ()):
        executing = thread["executing"]
        text = tuple(_thread_frames(thread["frames"], executing is not None))
        if executing is None and thread["name"] != "MainThread":
            idle[text] += 1
        else:
            lines += [f"  thread {thread['name']}{_doing(executing)}", *text]
    for group in facts.get("groups", ()):
        lines += _group(group)
    if facts.get("groups_left_out"):
        lines.append(f"  and {facts['runs_left_out']:,} in {facts['groups_left_out']:,} other places; --all shows each")
    for text, count in idle.items():
        lines += [f"  {count} more thread{'s' * (count > 1)}, executing no step", *text[-2:]]
    if facts.get("note"):
        lines.append(f"  {facts['note']}")
    return "\n".join(lines)


def _title(facts: dict[str, Any]) -> str:
    if facts["role"] == "parent":
        return f"parent (pid {facts['pid']})"
    if facts.get("worker_id") is None:
        return f"worker {facts['number']} (pid {facts['pid']})"
    runs = facts["runs_in_memory"]
    return f"worker {facts['number']} (pid {facts['pid']}, id {facts['worker_id']}): {runs:,} run{'s' * (runs != 1)} in memory"


def _doing(executing: dict[str, Any] | None) -> str:
    if executing is None:
        return ""
    step = f" step {executing['step']} (attempt {executing['attempt']})" if executing["step"] else ""
    since = f" since {executing['since_at']}" if "since_at" in executing else ""
    nobody = ", which nobody waits for any more" if executing.get("given_up") else ""
    return f": {executing['workflow']} {executing['run_id']} seq {executing['seq']}{step}{since}{nobody}"


def _group(group: dict[str, Any]) -> Iterable[str]:
    what = f"in step {group['waits_for']} as a task" if group["kind"] == "step task" else f"({group['kind']}) waiting for {group['waits_for']}"
    yield f"  {group['count']:,} × {group['workflow']} {what}, the longest since {group['runs'][0]['since_at']}"
    yield from _frames(group["frames"], "    ")
    for branch in group["branches"]:
        yield f"    {branch['count']:,} × branch"
        yield from _frames(branch["frames"], "      ")
    more = f" and {group['count'] - len(group['runs']):,} more" if group["count"] > len(group["runs"]) else ""
    yield "    runs " + ", ".join(run["run_id"] if run["seq"] is None else f"{run['run_id']} seq {run['seq']}" for run in group["runs"]) + more


def _thread_frames(frames: list[dict[str, Any]], executing: bool) -> list[str]:
    """Lines of a thread's stack: from the step's own function on, or the innermost few where it executes none."""
    users = next((i for i, frame in enumerate(frames) if _is_users(frame["file"])), 0)
    return _frames(frames[users:] if executing else frames[-DEPTH_SHOWN:], "    ")


def _frames(frames: list[dict[str, Any]], indent: str) -> list[str]:
    """Lines of a stack, innermost last."""
    return [f"{indent}{_short(frame['file'])}:{frame['line']} {frame['function']}" for frame in frames]


def _is_users(file: str) -> bool:
    return not is_engine(file) and not file.startswith((os.path.dirname(os.__file__) + os.sep, "<")) and file != os.path.join(_HOME, "__main__.py")


def _short(file: str) -> str:
    here = os.getcwd() + os.sep
    return file[len(here) :] if file.startswith(here) else file
