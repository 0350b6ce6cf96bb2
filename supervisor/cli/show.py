"""`show`: one run. Why it waits, since when, what frees it and who can act (why.py); its journey and its steps as bars (journey.py); messages, family, how it ended."""

from __future__ import annotations

from collections import Counter
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

import click

from supervisor.cli import family, journey, logs, options, watch
from supervisor.cli.output import ago, columns, duration, plain, print_json, progress_words, say, short_json, table
from supervisor.cli.why import banner, error_words, raised_at
from supervisor.core.shown import asked_by

if TYPE_CHECKING:
    from supervisor.db.history import History

    Seen = tuple[History, list[dict[str, Any]]]  # and what of it executes on this host

STEPS_SHOWN = 200
CHILDREN_SHOWN = UPDATES_SHOWN = SIGNALS_SHOWN = 20
STATE_SHOWN_MAX = 4 << 20  # characters: whatever a value may hold


@click.command("show")
@click.argument("run", metavar="RUN|KEY")
@click.option("--logs", "show_logs", is_flag=True, help="Show its log lines instead, from the log directory of this host; with --json as JSON lines.")
@click.option("--log-dir", metavar="DIR", help="Where the workers of this host log to  [env: PGSUPERVISOR_LOG_DIR].")
@click.option("--state", is_flag=True, help="Show what it has published instead, whole; with --json as one object by key.")
@click.option("--steps", type=click.IntRange(min=2), default=STEPS_SHOWN, show_default=True, help="Rows of the table of steps: of a longer history the first and the last ones. --json has all.")
@watch.option
@watch.interval
@options.dsn
@options.schema
@options.as_json
def show(
    run: str, show_logs: bool, log_dir: str | None, state: bool, steps: int, watching: bool, interval: float, dsn: str | None, schema: str | None, as_json: bool
) -> None:  # fmt: skip
    """Show one run, by its id or its key: why it waits, since when, what frees it and who can act; its journey; its steps with their tries, as a table
    and as bars; what it has published and was sent; the runs above and below it; how it ended.

    With --watch until it has ended.
    """
    if show_logs or log_dir:
        if watching:
            raise click.UsageError(f"--watch shows the run itself; its lines as they come: python -m supervisor logs --run {run} --follow")
        logs.print_run(run, log_dir, dsn, schema, as_json)
        return
    name = options.resolve_schema(schema)

    def look() -> Seen:
        from supervisor.db import history

        with options.connect(dsn, name, purpose="show") as conn:
            found = history.read(conn, name, run)
        return found, _executing(found)

    def text(seen: Seen) -> str:
        return _text(seen, steps)

    if state:
        if watching:
            raise click.UsageError("--watch shows the run itself, with what it has published; leave --state out")
        _show_state(look()[0], as_json)
    elif watching:
        watch.watch(watch.Watched(look, text, lambda seen: [("run", _as_object(seen))], lambda seen: seen[0].wait is None), interval, as_json)
    elif as_json:
        print_json(_as_object(look()))
    else:
        click.echo(text(look()))


def _show_state(found: History, as_json: bool) -> None:
    """What it has published, not shortened: one value per key."""
    if as_json:
        print_json({each["key"]: each["value"] for each in found.published})
    elif found.published:
        click.echo("\n".join(f"{plain(each['key'])} = {short_json(each['value'], STATE_SHOWN_MAX)}" for each in found.published))
    else:
        say(f"run {found.run['run_id']} has published nothing")


def _executing(found: History) -> list[dict[str, Any]]:
    """What of it executes at this moment, where its worker is one of this host: the black boxes know, the database learns it later."""
    if found.run["status"] != "running":
        return []
    from supervisor.host import boxes
    from supervisor.host.workers import executing_row

    pages = [process.page for box in boxes.look()[0] for process in box.workers]
    return [
        {"worker": page.worker, "pid": page.pid, **executing_row(each)}
        for page in pages
        for each in page.executing if each.run_id == found.run["run_id"]
    ]  # fmt: skip


def _as_object(seen: Seen) -> dict[str, Any]:
    found, executing = seen
    facts = {"why": found.wait, "executing": executing, "published": found.published, "updates": found.updates, "history": found.steps}
    more = {"signals": found.signals, "tree": found.tree, "cancellations": found.cancellations, "place": found.place, "usual": found.usual, "schedule": found.schedule, "goes_on": found.goes_on, "alike": found.alike, "time_in": _time_in(found)}
    return {
        **found.run, **facts, "attempts": found.attempts, "children": found.children, "pause": found.pause, "audit": found.audit, "heartbeats": found.heartbeats, **more,
    }  # fmt: skip


def _time_in(found: History) -> dict[str, float]:
    """Until it began what it does now: so it changes with the run alone."""
    until = found.wait["since"] if found.wait else found.run["ended_at"]
    return {what: round(s, 6) for what, s in journey.time_in(found, journey.lanes(found, until), until).items()}


def _text(seen: Seen, steps: int) -> str:
    found, executing = seen
    run = found.run
    lines = [f"run {run['run_id']} of {plain(run['workflow'])}" + (f", key {plain(run['key'])}" if run["key"] else "")]
    lines += banner(found, executing) if found.wait else _outcome(found)
    facts = [f"started {ago(run['created_at'])}", f"queue {plain(run['queue'])}", f"priority {run['priority']}"]
    if run["parent_id"]:
        facts.append(f"child of {run['parent_id']} (seq {run['parent_seq']})")
    if run["forked_from"]:
        lines.append(f"forked from {run['forked_from']}" + (f", before the result of seq {run['forked_seq']}" if run["forked_seq"] is not None else ", all of its history"))
    if found.schedule:
        lines.append(f"started by schedule {plain(found.schedule['schedule'])}, for its {found.schedule['kind']} of {found.schedule['tick_at'].isoformat()}")
    lines += family.beside(found)
    lines += [", ".join(facts), f"input {short_json(run['input'])}"]
    if run["attributes"]:
        lines.append(f"attributes {short_json(run['attributes'])}")
    if run["progress"]:
        lines.append(f"progress {progress_words(run['progress'])}, {ago(datetime.fromisoformat(run['progress']['at']))}")
    now = datetime.now(timezone.utc)
    drawn = [*journey.journey(found, now), *_published(found), *_signals(found), *_updates(found), *_steps(found, steps), *journey.gantt(found, now, columns())]
    return "\n".join([*lines, *drawn, *_children(found), *family.tree(found), *_audit(found)])


def _audit(found: History) -> list[str]:
    """What operators did to it."""
    if not found.audit:
        return []
    from supervisor.cli.audit import rows

    return ["", table(("done by operators", "when", "who", "why", "what"), [(row[1], row[0], *row[4:]) for row in rows(found.audit)])]


def _outcome(found: History) -> list[str]:
    run = found.run
    lines = [f"{run['status']} {ago(run['ended_at'])}, after {duration(run['duration_s'])} and {run['steps']} steps"]
    if run["status"] in ("completed", "continued"):
        lines.append(f"result {short_json(run['result'])}")
    elif run["error"] is not None:
        lines += [f"error {error_words(run['error'])}", *raised_at(run["error"], _of_a_step(found))]
    return lines + [f"{each['how']} {plain(asked_by(each))}, asked for {ago(each['asked_at'])}" for each in found.cancellations]


def _of_a_step(found: History) -> Any:
    """The error of the step that the run failed with, which has the step's own lines; the run's has those of the workflow that called it."""
    what = ("type", "message")
    error = found.run["error"]
    alike = (each["error"] for each in reversed(found.steps) if isinstance(each["error"], dict) and isinstance(error, dict))
    return next((each for each in alike if [each.get(name) for name in what] == [error.get(name) for name in what]), None)


def _published(found: History) -> list[str]:
    if not found.published:
        return []
    rows = [(each["key"], short_json(each["value"]), ago(each["published_at"])) for each in found.published]
    return ["", table(("published", "value", "when"), rows)]


def _signals(found: History) -> list[str]:
    """What was sent to it, the last ones, and which wait was given each."""
    if not found.signals:
        return []
    rows = [
        (each["n"], each["name"], each["id"], ago(each["sent_at"]), f"seq {each['seq']}" if each["seq"] is not None else "nobody yet", short_json(each["payload"]))
        for each in found.signals[-SIGNALS_SHOWN:]
    ]
    more = [f"and {len(found.signals) - SIGNALS_SHOWN} before these: view signals"] if len(found.signals) > SIGNALS_SHOWN else []
    return ["", table(("n", "signal", "id", "sent", "given to", "payload"), rows), *more]


def _updates(found: History) -> list[str]:
    """What was sent to it and answered, the last ones."""
    if not found.updates:
        return []
    rows = [
        (each["seq"], each["name"], each["id"], each["stage"], ago(each["sent_at"]), short_json(each["payload"]),
         error_words(each["error"]) if each["error"] is not None else short_json(each["result"]) if each["stage"] == "completed" else "-")
        for each in found.updates[-UPDATES_SHOWN:]
    ]  # fmt: skip
    more = [f"and {len(found.updates) - UPDATES_SHOWN} before these: view updates"] if len(found.updates) > UPDATES_SHOWN else []
    return ["", table(("seq", "update", "id", "stage", "sent", "argument", "answer"), rows), *more]


def _steps(found: History, most: int) -> list[str]:
    if not found.steps and not found.attempts:
        return ["no steps yet"]
    failed = Counter(each["seq"] for each in found.attempts if each["kind"] == "failed")
    crashed = Counter(each["seq"] for each in found.attempts if each["kind"] == "crashed")
    skipped = {each["seq"] for each in found.attempts if each["kind"] == "skipped"}
    done = {each["seq"] for each in found.steps}
    undone = {undo["seq"]: undo["of"] for each in found.steps if each["kind"] == "compensation" for undo in each["result"]["undo"]}
    rows = [
        (
            each["seq"],
            _shown_name(each, undone),
            "skipped" if each["seq"] in skipped else each["status"],
            ago(each["started_at"]),
            duration(each["duration_ms"] / 1000),
            _tries(each, failed[each["seq"]], crashed[each["seq"]]),
            _came(each),
        )
        for each in found.steps
    ]
    unfinished = {each["seq"]: each for each in found.attempts if each["seq"] not in done and each["kind"] not in ("forgiven", "edited")}
    rows += [
        (seq, _undoing(each["name"], seq, undone), "not yet", ago(each["started_at"]), "-", _with_crashes(failed[seq], crashed[seq]), error_words(each["error"]) if each["error"] and each["kind"] != "entrusted" else "-")
        for seq, each in unfinished.items()
    ]
    rows.sort(key=lambda row: row[0])
    if len(rows) > most:
        first, left = max(1, most // 4), len(rows) - most
        rows = [*rows[:first], ("…", f"{left:,} more; all: --steps {len(rows)}", "", "", "", "", ""), *rows[first + left :]]
    return ["", table(("seq", "step", "status", "started", "took", "attempts", "result"), rows)]


def _came(step: dict[str, Any]) -> str:
    """What came of an entry."""
    if step["status"] != "completed":
        return error_words(step["error"])
    if step["kind"] == "compensation":
        steps = ", ".join(f"{each['name']} (seq {each['seq']})" for each in step["result"]["undo"])
        return plain(f"{step['result']['because']}: to be undone by {steps}")
    return plain(asked_by(step["result"])) if step["kind"] == "cancellation" and isinstance(step["result"], dict) else short_json(step["result"])


def _shown_name(step: dict[str, Any], undone: dict[int, int]) -> str:
    if step["kind"] in ("cancellation", "compensation"):
        return str(step["name"])
    return _undoing(step["name"] if step["kind"] == "step" else f"{step['name']} ({step['kind']})", step["seq"], undone)


def _undoing(name: str, seq: int, undone: dict[int, int]) -> str:
    """What undoes something says what: the step before it was named, if there was one."""
    return f"{name} (undo of {undone[seq]})" if undone.get(seq, -1) >= 0 else f"{name} (undo)" if seq in undone else name


def _tries(step: dict[str, Any], failed: int, crashed: int) -> object:
    """Attempts made: the failed ones, and the one that completed. A crash is not an attempt."""
    return "-" if step["kind"] != "step" else _with_crashes(failed + 1 if step["status"] == "completed" else max(failed, 1), crashed)


def _with_crashes(tries: int, crashed: int) -> str:
    return f"{tries}" + (f" + {crashed} crashes" if crashed > 1 else " + 1 crash" if crashed else "")


def _children(found: History) -> list[str]:
    """How many of them stand where, then those that live, those that failed, and the others, as far as they are shown."""
    if not found.children:
        return []
    counts = Counter(each["status"] for each in found.children)
    order = sorted(found.children, key=lambda each: (each["ended_at"] is not None, each["status"] in ("completed", "continued"), each["seq"]))
    rows = [
        (
            each["seq"],
            each["run_id"],
            each["workflow"],
            each["status"] + (f" ({each['wait']})" if each["wait"] and each["wait"] != "queued" else ""),
            each["step"],
            ago(each["created_at"]),
            duration((each["ended_at"] - each["created_at"]).total_seconds()) if each["ended_at"] else None,
        )
        for each in order[:CHILDREN_SHOWN]
    ]
    head = f"children: {', '.join(f'{count:,} {status}' for status, count in counts.most_common())}"
    lines = ["", head, table(("seq", "run", "workflow", "status", "step", "started", "took"), rows)]
    if len(found.children) > CHILDREN_SHOWN:
        lines.append(f"and more: python -m supervisor list 'parent = {found.run['run_id']}'")
    return lines
