"""Whether what became of a program is what the model says. Pure: from what the driver has read to sentences about what is wrong."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import msgspec

from supervisor.core import codec
from tests.apps.modelled import told
from tests.model.driver import Found, Played, Row
from tests.model.model import EITHER, Expected, Record, before


def judge(played: Played) -> dict[int, list[str]]:
    """What is wrong, by the number of the program; nothing where all is as it was predicted."""
    wrong: dict[int, list[str]] = {}
    places = {run.place for root in played.expected for run in root.all()}
    for root in played.expected:
        n = int(root.place)
        said = list(played.problems.get(n, []))
        for run in root.all():
            said += [f"run {run.place}: {what}" for what in _run(played, run)]
        said += [f"a run that nobody expects: {place}" for place in played.runs if place.split(".")[0] == str(n) and place not in places]
        said += _effects(played, root)
        if said:
            wrong[n] = said
    return wrong


def _run(played: Played, run: Expected) -> list[str]:
    found = played.runs.get(run.place, [])
    if len(found) > 1 or not found and run.exists:
        return [f"there are {len(found)} of it"]
    if not found:
        return []
    one = found[0]
    said = _whole(one)
    if one.status != run.status and not (not run.certain and not run.lost and one.status in ("cancelled", "terminated")):
        shown = _told(one.result, one.status) if one.status else one.wait
        return [*said, f"it is {one.status or 'alive'} ({shown!r}), not {run.status} ({run.result!r})"]
    if not run.certain and not run.lost:
        return said
    if _same(result := _told(one.result, one.status)) != _same(run.result):
        said.append(f"its result is {result!r}, not {run.result!r}")
    if not run.certain:
        return said
    if _same(one.published) != _same(run.published):
        said.append(f"it has published {one.published!r}, not {run.published!r}")
    return said + _history(played, run, one)


def _whole(found: Found) -> list[str]:
    """What holds for every history."""
    said = []
    if [row.pos for row in found.rows] != list(range(len(found.rows))):
        said.append(f"its pos have holes: {[row.pos for row in found.rows]}")
    if found.status is not None and found.steps != len(found.rows) and found.status != "terminated":
        said.append(f"its outcome counts {found.steps} rows of {len(found.rows)}")
    return said


def _same(value: Any) -> str:
    """Equal for what is equal as JSON: True is not 1, and the order of names is none."""
    return json.dumps(value, sort_keys=True)


def _told(result: bytes | None, status: str | None) -> Any:
    if result is None:
        return None
    if status == "completed":
        return msgspec.json.decode(result)
    error = codec.decode_error(result)
    return ["RunCancelled", str(error)] if status == "cancelled" else told(error)


# ── histories ────────────────────────────────────────────────────────────────────────────────────────────────────


def _history(played: Played, run: Expected, found: Found) -> list[str]:
    """The rows are those that the model names, each after those that must come before it."""
    rows = [(row, *_shown(row)) for row in found.rows]
    left = list(run.records)
    pairs: list[tuple[Record, Row]] = []
    said = []
    for row, kind, name, status, result in rows:
        fits = [rec for rec in left if rec.kind == kind and name in rec.name.split(EITHER) and _is(rec, status, result, played.killed) and (run.parallel or rec.seq == row.seq)]
        if not fits:
            said.append(f"row {row.seq} at pos {row.pos} is not expected: {kind} {name} {status} {result!r}")
            continue
        rec = min(fits, key=lambda rec: rec.order)
        left.remove(rec)
        pairs.append((rec, row))
        if found.failed.get(row.seq, []) != list(range(1, rec.failed + 1)) and not (rec.name == "modelled_once" and played.killed):
            said.append(f"row {row.seq}, {kind} {name}: attempts {found.failed.get(row.seq, [])} failed, not {rec.failed} of them")
    said += [f"no row is {rec}" for rec in left]
    names = Counter(map(_name, run.records))
    known = [rec for rec, _ in pairs if rec.told is not None and names[_name(rec)] == 1]  # others may have been taken for each other
    said += [f"{after} came before {rec}" for n, after in enumerate(known) for rec in known[n + 1 :] if before(rec.order, after.order)]
    return said


def _name(rec: Record) -> tuple[str, str, str, str]:
    """Equal for records whose rows can't be told apart."""
    return rec.kind, rec.name, rec.status, _same(rec.told)


def _shown(row: Row) -> tuple[str, str, str, Any]:
    result: Any = None
    if row.result is not None and row.kind not in ("child_start", "timer", "cancellation", "compensation", "patch") and row.status != "cancelled":
        result = _told(row.result, "completed" if row.status == "completed" else "failed")
    return row.kind, row.name, row.status, result


def _is(rec: Record, status: str, result: Any, killed: int) -> bool:
    if rec.name == "modelled_once" and killed and status == "failed":
        return bool(result[0] == "StepInterrupted")
    return rec.status == status and (rec.told is None or _same(rec.told) == _same(result))


# ── effects ──────────────────────────────────────────────────────────────────────────────────────────────────────


def _effects(played: Played, root: Expected) -> list[str]:
    """Transactions once; what is at most once, once at most; anything else once, or at least once where workers were killed."""
    said: list[str] = []
    for run in root.all():
        if run.certain:
            said += _noted(played, run)
            for place, attempt in run.rows.items():
                if played.ledger.get(place, []) != [attempt]:
                    said.append(f"the transaction of {place} has the rows {played.ledger.get(place, [])}, not [{attempt}]")
    rows = Counter({place: len(attempts) for place, attempts in played.ledger.items() if _of(place, root.place)})
    certain = {place for run in root.all() for place in run.rows}
    said += [f"the transaction of {place} was committed {count} times" for place, count in rows.items() if count > 1 or place not in certain]
    return said


def _noted(played: Played, run: Expected) -> list[str]:
    said = []
    for (place, attempt), how in run.noted.items():
        times = played.notes.get((place, attempt), [])
        if not times and (how == "surely" or how == "at most once" and not played.killed):
            said.append(f"attempt {attempt} of {place} never ran")
        if len(times) > 1 and how == "at most once" or not played.killed and (len(times) > 1 or any(times)):
            said.append(f"attempt {attempt} of {place} ran {len(times)} times, redelivered {times}")
    inside = {key for key in played.notes if _of(key[0], run.place)} - {key for below in run.all() for key in below.noted}
    if all(below.certain for below in run.all()):
        said += [f"attempt {attempt} of {place} was not expected to run" for place, attempt in sorted(inside)]
    return said


def _of(place: str, root: str) -> bool:
    return place == root or place.startswith(f"{root}.")
