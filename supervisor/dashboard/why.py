"""The why banner: what a run waits for, since when, what frees it, and who can act. Decides from stored facts alone; pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from supervisor.core.filters import LIVE
from supervisor.core.shown import asked_by, by_whom, detail_of, duration, ended_by, place_words
from supervisor.dashboard.page import Cell, Failure, Json, Link, Why, run_link, url
from supervisor.db.history import failed_tries

Row = dict[str, Any]

_OWN = r" (?:[0-9a-f]{8}-[0-9a-f-]{27}|TOKEN)"
_COMMAND = re.compile(rf"(?:python -m supervisor )?([a-z-]+{_OWN}(?: --seq -?\d+| '[^']*'| --json-value …)*)")
_APART = re.compile(rf"{_OWN}| --seq -?\d+| --json-value …")
PARKED = ("nondeterminism", "code_missing", "attempts_exhausted", "crash_loop", "commit_rejected")


def why(run: Row, wait: Row | None, attempts: Sequence[Row], pause: Row | None, beats: Sequence[Row] = (), place: Row | None = None, ends: Sequence[Row] = ()) -> Why:
    """The banner of a live run, or how an ended one ended. *place*: how far it is; *ends*: who asked that it be ended."""
    if wait is None:
        return ended(run)
    made = waiting(wait, attempts, pause, beats)
    where: list[tuple[str, Cell]] = [("how far", place_words(place))] if place else []
    made = replace(made, notes=[*where, *((f"to be {each['how']}", asked_by(each)) for each in ends), *made.notes])
    if wait["code"] == "child":
        living = Link("those that live", url("/runs", q=f"parent = {run['run_id']} AND status in ({', '.join(LIVE)})"))
        made = replace(made, notes=[*made.notes, ("its children", living)])
    return made


def spoken(text: str) -> tuple[str, list[str]]:
    """What the view says, for a page with buttons: commands by their first words alone, and whole apart."""
    commands = [f"python -m supervisor {found}" for found in _COMMAND.findall(text)]
    words = _COMMAND.sub(lambda match: _APART.sub("", match[1]), text)
    return words, commands


def ended(run: Row) -> Why:
    took = duration(run["duration_s"])
    how = run["status"].replace("_", " ").capitalize()
    sentence = f"{how} after {took}" + (f", with {run['steps']:,} entries in its history" if (run["steps"] or 0) > 1 else "")
    notes: list[tuple[str, Cell]] = []
    if run["error"] is not None:
        notes.append(("error", Failure(run["error"])))
    elif run["result"] is not None or run["status"] == "completed":
        notes.append(("result", Json(run["result"])))
    return Why(run["status"], sentence, since=run["ended_at"], freed_by="it has ended" if not notes else "", notes=notes)


def waiting(wait: Row, attempts: Sequence[Row], pause: Row | None, beats: Sequence[Row]) -> Why:
    code, (found, more) = wait["code"], detail_of(wait["detail"])
    detail = found or {}
    notes: list[tuple[str, Cell]] = []
    if more:
        notes.append(("in particular", more))
    notes += _particular(code, detail)
    if pause and not pause["settled"]:
        notes.append(("to be paused", f"asked for by {pause['actor'] or 'somebody'}; what executes ends first"))
    if beat := next((each for each in beats if each["seq"] == wait["seq"]), None):
        notes.append(("last heartbeat", Json({"at": beat["at"], "details": beat["details"]})))
    failed = failed_tries(wait, attempts)
    if failed and code != "attempts_exhausted":
        notes.append(("last error", Failure(failed[-1]["error"])))
    (freed_by, some), (who, more_commands) = spoken(wait["freed_by"]), spoken(wait["who"])
    return Why(wait["status"], _sentence(wait, detail, len(failed)), code, wait["since"], wait["wake_at"], freed_by, who, notes, [*some, *more_commands])


def _sentence(wait: Row, detail: dict[str, Any], failed: int) -> str:
    code = wait["code"]
    step = f"Step {wait['step']} (seq {wait['seq']})" if wait["seq"] is not None and wait["step"] else "It"
    if code == "step_backoff":
        return f"{step} failed {_times(failed)}; it is tried again"
    if code == "step_running":
        return f"{step} is executing" + (f", try {wait['attempt']}" if (wait["attempt"] or 1) > 1 else "")
    if code == "attempts_exhausted" and "crashes" in detail:
        return f"{step} ended its worker {detail['crashes']} times, the last one {ended_by(detail)}: parked until somebody acts"
    if code == "run_paused":
        return f"Paused {by_whom(detail.get('by'), detail.get('reason'))}"
    if code in ("signal", "update") and detail.get("signals"):
        return f"It waits for the {code} {' or '.join(map(str, detail['signals']))}"
    if code == "queue_paused":
        return f"Its queue {detail.get('queue')} is paused {by_whom(detail.get('by'), detail.get('reason'))}"
    if code is None:
        return "A worker is executing it" if wait["meaning"].startswith("it moves") else wait["meaning"][:1].upper() + wait["meaning"][1:]
    said = str(wait["meaning"]).removeprefix("parked: ")
    return f"{said[:1].upper()}{said[1:]}" + (": parked until somebody acts" if code in PARKED else "")


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"


def _particular(code: str | None, detail: dict[str, Any]) -> list[tuple[str, Cell]]:
    """What of a stored detail is worth a line of its own."""
    if code == "attempts_exhausted" and "crashes" in detail:
        where = f"worker {detail.get('worker')}, process {detail.get('pid')} on {detail.get('host')}"
        found: list[tuple[str, Cell]] = [("last worker", where)]
        if detail.get("traceback"):
            found.append(("where it was", Json(detail["traceback"])))
        if detail.get("log"):
            found.append(("its last log lines", Json("\n".join(map(str, detail["log"])))))
        return found
    if code == "any_of" and detail.get("waits_for"):
        return [("waits for", ", ".join(map(str, detail["waits_for"])))]
    if code == "queue_paused":
        return [("its queue", Link(str(detail.get("queue")), "/queues"))]
    if code == "schedule_overlap" and detail.get("behind"):
        return [("its schedule", Link(str(detail.get("schedule")), url("/schedule", name=detail.get("schedule")))), ("behind", run_link(detail["behind"]))]
    if code in ("signal", "run_paused", "timer", "child", "token", "step_backoff"):
        return []
    return [(str(name).replace("_", " "), value if isinstance(value, str) else Json(value)) for name, value in detail.items()]


