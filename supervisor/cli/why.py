"""Why a run does not move: what it waits for, since when, what frees it, who can act, and the error behind it. First on the page of `show`.

Formats alone: what is said stands in the view `waits` and in the history. Every line is plain.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from supervisor.cli.output import ago, duration, plain, short_json
from supervisor.cli.workers import code_words
from supervisor.core.shown import asked_by, detail_of, ended_by, place_words

if TYPE_CHECKING:
    from supervisor.db.history import History

Row = dict[str, Any]
FRAMES_SHOWN = 5
HELD_S = 1.5  # the parent looks twice a second
HELD = {
    "freed_by": "the end of that code; or the limit of its worker (code_limit_s): then the worker is killed and the run begins again, three times at most",
    "who": "whoever owns the code: what takes long belongs into a step; terminate ends the run in the database, and the limit frees the worker",
}
_OURS = re.compile(r"(?:^|/)supervisor/(?:_fastpath|api|core|db|engine)/[^/]*$")
_PLACE = re.compile(r'^\s*File "(.*)", line (\d+), in (.+)$', re.MULTILINE)


def banner(found: History, executing: list[Row]) -> list[str]:
    """State, reason and since when; where in the run; what it waits for in particular; what frees it, and who can act; the last error."""
    wait = found.wait or {}
    held = next((each for each in executing if each["seq"] is None and each["for_s"] > HELD_S), None)
    if held is not None:
        wait = {**wait, "meaning": f"its {code_words(held)} holds the loop of worker {held['worker']}: no other run of that worker moves", **HELD}
    when = f"{ago(wait['wake_at'])}: " if wait["wake_at"] else ""
    if wait["code"] == "nondeterminism" and (detail_of(wait["detail"])[0] or {}).get("version"):
        when = "make that code do the same each time, or "  # it is of the run's version
    return [
        _state(wait),
        *_place(found),
        *_detail(wait, found),
        *_pausing(found),
        *_ending(found),
        *_executing(executing),
        *_beats(found),
        f"  what frees it: {when}{plain(wait['freed_by']).replace('(see detail)', '(see above)')}",
        f"  who can act: {plain(wait['who'])}",
        *_last_error(found),
    ]


def _state(wait: Row) -> str:
    at = f" at step {plain(wait['step'])}" if wait["step"] else ""
    if wait["seq"] is not None:
        attempt = f", attempt {wait['attempt']}" if wait["attempt"] else ""
        at += f" (seq {wait['seq']}{attempt})"
    code = f" [{wait['code']}]" if wait["code"] else ""
    return f"{wait['status']}{at}: {plain(wait['meaning'])}{code}, since {ago(wait['since'])}"


def _place(found: History) -> list[str]:
    """Step 7 of 12: as the run says itself, and by how many steps such runs usually have."""
    words = place_words(found.place)
    return [f"  {words}"] if words else []


def _detail(wait: Row, found: History) -> list[str]:
    if wait["code"] == "attempts_exhausted" and "crashes" in (crash := detail_of(wait["detail"])[0] or {}):
        return _poison(crash)
    if wait["code"] == "code_missing" and "workflow_id" in (facts := detail_of(wait["detail"])[0] or {}):
        return _unknown_here(facts, found.run)
    lines = [f"  {line}" for line in detail_words(wait["detail"])]
    behind = (detail_of(wait["detail"])[0] or {}).get("behind") if wait["code"] == "schedule_overlap" else None
    return lines + ([f"  to end that one: python -m supervisor cancel {plain(behind)}"] if behind else [])


def _unknown_here(facts: Row, run: Row) -> list[str]:
    """The worker did not know its workflow, by whatever name."""
    pinned = f" in version {plain(run['version'])}" if run["version"] else ""
    return [
        f"  wants: workflow {plain(run['workflow'])}{pinned}", f"  this worker knows: {plain(facts['this_worker_knows'])}",
        f"  if it was renamed: @workflow(name={plain(run['workflow'])!r}) gives the code its old name; a run can be moved to another version of its workflow, not to another workflow",
    ]  # fmt: skip


def detail_words(detail: str | None) -> list[str]:
    """What in particular, as a person reads it: JSON of the engine's as words, a line for each fact; what the view adds behind it, as it is."""
    facts, more = detail_of(detail)
    if facts is None:
        return [plain(more)] if more else []
    return [*_facts(facts), *(plain(each) for each in more.split("; ") if each)]


def _facts(facts: Row) -> list[str]:
    waits = facts.get("waits_for")
    lines = [_waits_for(waits, facts.get("of", 0))] if isinstance(waits, list) else []
    said = ("waits_for", "of", "signals", "until") if lines else ()  # the last two are among what it waits for
    return lines + [
        f"{plain(name).replace('_', ' ')}: {plain(value) if isinstance(value, str) else short_json(value)}" for name, value in facts.items() if name not in said
    ]


def _waits_for(waits: list[Any], of: int) -> str:
    more = f", and {of - len(waits)} more" if of > len(waits) else ""
    return f"it waits for {', '.join(plain(each) for each in waits)}{more}"


def _poison(facts: Row) -> list[str]:
    """Why it was parked after it had ended several workers: how, in which step, what the last one said, where it was."""
    where = code_words(facts) if facts["seq"] < 0 else f"step {facts['step']} (seq {facts['seq']})"
    lines = [f"  {where} has ended its worker {facts['crashes']} times, the last one {ended_by(facts)}: worker {facts['worker']}, pid {facts['pid']} on {facts['host']}"]
    for what, words in (("where it was", facts["traceback"].splitlines()), ("the worker's last log lines", facts["log"])):
        if words:
            lines += [f"  {what}:", *(f"    {word}" for word in words)]
    return [plain(line) for line in lines]


def _pausing(found: History) -> list[str]:
    if not found.pause or found.pause["settled"]:
        return []
    return [f"  to be paused when what executes has ended, asked for {ago(found.pause['asked_at'])} by {plain(found.pause['actor'])}"]


def _ending(found: History) -> list[str]:
    return [f"  to be {each['how']}, asked for {ago(each['asked_at'])} {plain(asked_by(each))}" for each in found.cancellations]


def _executing(executing: list[Row]) -> list[str]:
    lines = []
    for each in executing:
        what = f"{plain(each['step'])} (seq {each['seq']}, {each['where']})" if each["seq"] is not None else code_words(each)
        what += f" for {duration(each['for_s'])}" if each["for_s"] else ""
        at = f", at {plain(each['at'])}" if each["at"] else ""
        lines.append(f"  executes {what}{at}, process {each['pid']} of this host")
    return lines


def _beats(found: History) -> list[str]:
    done = {each["seq"] for each in found.steps}
    return [
        f"  last heartbeat of seq {each['seq']} {ago(each['at'])}" + (f": {short_json(each['details'])}" if each["details"] is not None else "")
        for each in found.heartbeats if each["seq"] not in done
    ]  # fmt: skip


def _last_error(found: History) -> list[str]:
    from supervisor.db.history import last_error

    last = last_error(found.wait, found.attempts)
    if last is None:
        return []
    lines = [f"  its last error: {error_words(last['error'])}"]
    places = _PLACE.findall(str(last["error"].get("traceback") or "")) if isinstance(last["error"], dict) else []
    if places:
        file, line, function = places[-1]
        lines.append(f"  raised at {plain(file)}:{line} in {plain(function)}")
    if found.alike and found.alike["runs"]:
        lines.append(f"  the same error: {'at least ' if found.alike['at_least'] else ''}{found.alike['runs']} other runs within the hour [{plain(last['fingerprint'])}]")
    return lines


def raised_at(error: Any, more: Any = None) -> list[str]:
    """Where the app's code raised *error*: its last frames, the innermost last; *more*: where a step of the run raised the same."""
    places = [place for each in (error, more) if isinstance(each, dict) for place in _PLACE.findall(str(each.get("traceback") or "")) if not _OURS.search(place[0])]
    left = len(places) - FRAMES_SHOWN
    lines = [f"  raised at {plain(file)}:{line} in {plain(function)}" for file, line, function in places[max(0, left) :]]
    return [f"  … {left} frames before these: --json", *lines] if left > 0 else lines


def error_words(error: Any) -> str:
    """Type and message of a stored error."""
    if not isinstance(error, dict) or "type" not in error:
        return short_json(error)
    message = " ".join(str(error.get("message", "")).split())
    return plain(f"{str(error['type']).removeprefix('builtins.')}: {message[:300]}")
