"""What a sampler saw: stacks with counts, whose time each is, the hottest lines, and the same as collapsed text.

Pure. A sample belongs to the innermost frame that says something: C code of the interpreter and library calls count for who
called them, so that a line of the app stands there and not `dict_lookup`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

USER, LOOP, ENCODING, DATABASE, OTHER = "user code", "loop", "encoding", "libpq/psycopg", "interpreter/other"
GROUPS = (USER, LOOP, ENCODING, DATABASE, OTHER)
OWN_THREADS = ('"stacks"', '"stacks-log"')  # they sleep until asked; the sampler takes a select for work now and then
_WAITS = {
    "epoll_wait", "epoll_pwait", "select", "pselect", "poll", "ppoll", "clock_nanosleep", "nanosleep", "sem_wait", "sem_clockwait", "sem_timedwait",
    "do_futex_wait", "pthread_cond_wait", "pthread_cond_timedwait", "pthread_cond_clockwait", "__futex_abstimed_wait_cancelable64", "PyThread_acquire_lock_timed",
}  # fmt: skip
_WAITING_CALLS = {("selectors.py", "select"), ("threading.py", "wait"), ("queue.py", "get")}
_OURS = re.compile(r"(?:^|/)supervisor/(_fastpath|api|core|db|engine|files|host|leader|cli|metrics|tracing|sync\.py|__main__\.py)")
_ENCODERS = re.compile(r"(?:^|/)(?:msgspec/|supervisor/core/(?:codec|parameters)\.py$)")
_DRIVERS = re.compile(r"(?:^|/)(?:psycopg(?:_c|_binary)?/|psycopg_binary\.libs/|psycopg_c\.libs/|libpq[.\-]|libpq\.so|supervisor/db/)")
_STANDARD = re.compile(r"/lib(?:64)?/python3\.\d+/(?!(?:site|dist)-packages/)|^<frozen ")
_LIBRARY = re.compile(r"/(?:site|dist)-packages/")
_NEEDED = re.compile(r"/(?:site|dist)-packages/(?:click|greenlet|rich|platformdirs|multiprocessing_logging|opentelemetry)")
_SOURCE = re.compile(r"\.(?:py|pyx|pxd)$|^<(?!frozen )")


class Frame(NamedTuple):
    function: str
    file: str
    line: int

    def __str__(self) -> str:
        file = "/".join(self.file.rsplit("/", 2)[-2:])
        return f"{self.function} ({file}:{self.line})" if self.line else f"{self.function} ({file})"


class Sample(NamedTuple):
    """A stack, outermost frame first, and how often it was seen."""

    thread: str
    stack: tuple[Frame, ...]
    times: int


def read_speedscope(document: dict[str, Any], process: str) -> list[Sample]:
    """py-spy's speedscope document; threads are named after *process*."""
    frames = [Frame(frame["name"], frame.get("file") or "", frame.get("line") or 0) for frame in document["shared"]["frames"]]
    found = []
    for profile in document["profiles"]:
        if profile["name"].endswith(OWN_THREADS):
            continue
        counts = Counter(tuple(frames[index] for index in stack) for stack in profile["samples"])
        found += [Sample(f"{process}, {profile['name']}", stack, count) for stack, count in counts.items()]
    return found


def to_speedscope(samples: Sequence[Sample], rate: int, name: str) -> dict[str, Any]:
    """All samples as one document of speedscope's, a profile per thread."""
    numbers: dict[Frame, int] = {}
    threads: dict[str, tuple[list[list[int]], list[float]]] = {}
    for sample in samples:
        stacks, weights = threads.setdefault(sample.thread, ([], []))
        stacks.append([numbers.setdefault(frame, len(numbers)) for frame in sample.stack])
        weights.append(sample.times / rate)
    return {
        "$schema": "https://www.speedscope.app/file-format-schema.json",
        "exporter": "pgsupervisor",
        "name": name,
        "shared": {"frames": [{"name": frame.function, "file": frame.file, "line": frame.line} for frame in numbers]},
        "profiles": [
            {"type": "sampled", "name": thread, "unit": "seconds", "startValue": 0, "endValue": sum(weights), "samples": stacks, "weights": weights}
            for thread, (stacks, weights) in threads.items()
        ],
    }


def to_raw(samples: Iterable[Sample]) -> str:
    """Collapsed stacks, one a line: what flamegraph.pl, inferno and difffolded read."""
    return "".join(f"{';'.join([_clean(sample.thread), *(_clean(str(frame)) for frame in sample.stack)])} {sample.times}\n" for sample in samples)


def _clean(text: str) -> str:
    return text.replace(";", ":").replace("\n", " ")


# ── whose time it is ─────────────────────────────────────────────────────────────────────────────────────────────


def waits(stack: Sequence[Frame]) -> bool:
    """Whether the innermost code sleeps in the kernel rather than computes."""
    for frame in reversed(stack):
        if frame.function in _WAITS:
            return True
        if frame.file.endswith(".py"):
            return (frame.file.rsplit("/", 1)[-1], frame.function.rsplit(".", 1)[-1]) in _WAITING_CALLS and frame == stack[-1]
    return not stack


def group_of(frame: Frame) -> str | None:
    """Whose a frame is by itself; None where that depends on who called it."""
    function, file, _ = frame
    if function.startswith(("__Pyx", "__pyx_tp")):  # what Cython adds; its line numbers mean nothing
        return None
    if _ENCODERS.search(file) or "/_fastpath/wire." in file and function.startswith("Column"):
        return ENCODING
    if _DRIVERS.search(file):
        return DATABASE
    if _OURS.search(file):
        return LOOP
    if _STANDARD.search(file) or _NEEDED.search(file) or not _SOURCE.search(file):
        return None
    return USER


def attributed(stack: Sequence[Frame]) -> tuple[str, Frame]:
    """The group that a sample counts for, and the frame whose line is shown for it."""
    library: Frame | None = None
    for at in reversed(range(len(stack))):
        frame = stack[at]
        group = group_of(frame)
        if group == USER and _LIBRARY.search(frame.file):  # the app's own line is sought outside of its libraries
            library = library or frame
        elif group == USER:
            return USER, frame
        elif group is not None and library is None:
            return group, _with_line(stack, at, group)
        elif group is not None:
            break
    return (OTHER, stack[-1]) if library is None else (USER, library)


def _with_line(stack: Sequence[Frame], at: int, group: str) -> Frame:
    """A frame of *group*; for machine code without lines the function that was called from outside of it: PQsendQueryPrepared, not its inside."""
    while not stack[at].line and at > 0 and group_of(stack[at - 1]) == group and not stack[at - 1].line:
        at -= 1
    return stack[at]


def summed(samples: Iterable[Sample], lines_max: int = 8) -> dict[str, Any]:
    """Shares of the time in which something was computed: by group, and the hottest lines of each."""
    lines: dict[str, Counter[Frame]] = {group: Counter() for group in GROUPS}
    waited = 0
    for sample in samples:
        if waits(sample.stack):
            waited += sample.times
        else:
            group, frame = attributed(sample.stack)
            lines[group][frame] += sample.times
    busy = sum(counts.total() for counts in lines.values())
    return {
        "samples": busy,
        "samples_waiting": waited,
        "groups": [
            {
                "group": group,
                "share": counts.total() / busy,
                "lines": [{"file": f.file, "line": f.line, "function": f.function, "share": count / busy} for f, count in counts.most_common(lines_max)],
            }
            for group, counts in lines.items()
            if busy
        ],
    }
