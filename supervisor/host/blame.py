"""Who ended a worker: which of the steps that were executing is charged with its death, and what is recorded of that.

Pure but for OomKills. Charges at most one step, and none where it is not known: a death that was ordered, that the
kernel chose (out of memory) or that the worker chose itself charges nobody. What is believed, in this order: the note
that a step left when it was about to kill its own process, the thread that the interpreter named when a fatal signal
came, and the black box where exactly one step had the process to itself. Several without any sign are suspects: they
are not charged, but keep counting their claims, so that an endless crash loop has an end (crash_loop).
"""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from supervisor.host.layout import Executing, Note, Page

LOG_LINES = 20  # of the worker's last, kept with a crash
STACK_LINES = 30
POLITE = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT}  # somebody asked it to end
FAULTS = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}  # of which faulthandler writes
_FAULT_THREAD = re.compile(r"Current thread 0x([0-9a-f]+)")


@dataclass(frozen=True)
class Death:
    """How a process ended, and what it left behind.

    code      exit code, or -signal
    ordered   its parent killed it
    oom       the kernel killed a process of ours for memory
    ending    it had begun to end by itself: database lost, drained, an error of the engine
    """

    code: int
    ordered: bool = False
    oom: bool = False
    ending: bool = False
    note: Note | None = None
    last_words: str = ""
    log: list[str] = field(default_factory=list)


def inquest(page: Page, death: Death) -> list[Executing]:
    """What was executing, the culprit with its `crash`, others that may have been it as `suspect`."""
    innocent = death.ordered or death.ending or (death.code < 0 and -death.code in POLITE)
    if innocent:
        return page.executing
    running = [entry for entry in page.executing if not entry.resting]
    culprit = None if death.oom else blamed(running, death)
    if culprit is not None:
        return [replace(entry, crash=crash_json(page, death, entry)) if entry is culprit else entry for entry in page.executing]
    if not death.oom and (_noted(death) is not None or _fault_thread(death) is not None):  # the culprit is known, and its step had ended
        return page.executing
    return [replace(entry, suspect=not entry.resting) for entry in page.executing]


def blamed(running: list[Executing], death: Death) -> Executing | None:
    """The one of *running* that ended the process, where that is known."""
    note, thread = _noted(death), _fault_thread(death)
    if note is not None:
        found = [entry for entry in running if (entry.run_id, entry.seq) == (note.run_id, note.seq)]
    elif thread is not None:
        found = [entry for entry in running if entry.thread == thread]
    else:
        found = running
    return found[0] if len(found) == 1 else None


def _noted(death: Death) -> Note | None:
    """The note, if the process did end as it says: a signal may also have been survived."""
    return death.note if death.note is not None and death.note.code == death.code else None


def _fault_thread(death: Death) -> int | None:
    found = _FAULT_THREAD.findall(death.last_words) if -death.code in FAULTS else None
    return int(found[-1], 16) if found else None  # what stands before it is of a child that a step had forked


def what(entry: Executing) -> str:
    """ "step charge (seq 3)", "workflow code of checkout, which had held the loop for 31 s, at app.py:7 in checkout"."""
    if not entry.is_code:
        return f"step {entry.step} (seq {entry.seq})"
    held = f", which had held the loop for {entry.for_s:.0f} s" if entry.for_s else ""
    return f"workflow code of {entry.workflow}{held}" + (f", at {entry.stack[0]}" if entry.stack else "")


def how(code: int) -> str:
    """ "was killed by SIGKILL", "ended with exit code 3"."""
    return f"was killed by {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"


def signal_name(number: int) -> str:
    """SIGKILL for 9; a number that has no name as it is."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def crash_json(page: Page, death: Death, entry: Executing) -> bytes:
    """The error that is recorded with a charged crash. ASCII, no NUL: PostgreSQL takes it as jsonb."""
    host = socket.gethostname()
    facts = {
        "type": "WorkerCrash",
        "message": f"worker {page.worker} (pid {page.pid}) on {host} {how(death.code)} while it executed {what(entry)}",
        "signal": signal_name(-death.code) if death.code < 0 else None,
        "exit_code": death.code if death.code >= 0 else None,
        "step": entry.step,
        "seq": entry.seq,
        "worker": page.worker,
        "pid": page.pid,
        "host": host,
        "log": [_clean(line) for line in death.log[-LOG_LINES:]],
        "traceback": _clean("\n".join(entry.stack or stack(death.last_words))),
    }
    if entry.is_code:
        facts |= {"workflow": entry.workflow, "held_s": round(entry.for_s), "place": entry.stack[0] if entry.stack else None}
    return json.dumps(facts).encode()


def stack(last_words: str) -> list[str]:
    """What the interpreter said of the thread that a fatal signal hit, without those of other threads."""
    _, head, words = last_words.rpartition("Fatal Python error")
    lines = (head + words).splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith("Current thread")), None)
    if start is None:
        return lines[:1]
    end = next((at for at in range(start + 1, len(lines)) if not lines[at].startswith("  ")), len(lines))
    return [*lines[:1], *lines[start + 1 : end]][:STACK_LINES]


def _clean(text: str) -> str:
    """Without what jsonb refuses: NUL and lone surrogates."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


class OomKills:
    """How often the kernel has killed a process of this host's group for memory: by its cgroup, else of the whole machine."""

    def __init__(self, files: list[Path] | None = None) -> None:
        self._files = _counters() if files is None else files
        self._seen = self._count()

    def happened(self) -> bool:
        """Whether there was one since this was last asked."""
        before, self._seen = self._seen, self._count()
        return self._seen > before

    def _count(self) -> int:
        for path in self._files:
            with contextlib.suppress(OSError):
                found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
                if found:
                    return int(found.group(1))
        return 0


def _counters() -> list[Path]:
    files = []
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers == "":
                files.append(Path(f"/sys/fs/cgroup{path}/memory.events"))
            elif "memory" in controllers.split(","):
                files.append(Path(f"/sys/fs/cgroup/memory{path}/memory.oom_control"))
    return [*files, Path("/sys/fs/cgroup/memory.events"), Path("/proc/vmstat")]
