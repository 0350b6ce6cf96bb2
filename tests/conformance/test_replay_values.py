"""What a workflow is given is what its replay is given: value, type, and the branch it takes."""

from __future__ import annotations

import pytest

from supervisor import RunFailed, StepFailed
from tests.apps import values
from tests.apps.gates import branch, described
from tests.conformance.conftest import Live

APP = "tests.apps.values"
WAYS = len(next(iter(values.VALUE_WAYS.values())))


@pytest.fixture(scope="module")
def after_kill(live: Live) -> dict[str, dict[str, dict[str, object]]]:
    """All kinds, one run each: given live, then every worker killed while the runs stand at a gate, then replayed."""
    runs = {("value", kind): live.start(values.give_value, kind, "go") for kind in values.VALUES}
    runs |= {("error", kind): live.start(values.give_error, kind, "go") for kind in values.ERRORS}

    def at_the_gate() -> bool:
        kept = live.database.one("select count(*) from supervisor.step where name = 'keep'")
        ended = live.database.one("select count(*) from supervisor.outcome join supervisor.run r using (run_id) where r.parent_id is null")
        return bool(kept + ended == len(runs))

    live.until(at_the_gate, 15, "every run at its gate")
    live.kill()
    live.effects.open("go")
    results: dict[str, dict[str, dict[str, object]]] = {"value": {}, "error": {}}
    for (what, kind), run in runs.items():
        try:
            results[what][kind] = run.result(timeout=60)
        except RunFailed as error:
            results[what][kind] = {"failed": str(error)}
    return results


@pytest.mark.parametrize("kind", values.VALUES)
def test_value_is_equal_live_and_replayed(after_kill: dict[str, dict[str, dict[str, object]]], kind: str) -> None:
    """Code that branches on a value must branch alike after a crash, whichever way the value came."""
    got = after_kill["value"][kind]
    assert got.get("redelivered") is True, got
    assert got["live"] == got["replayed"]
    _, value, becomes = values.VALUES[kind]
    given = value if becomes is values.SAME else becomes
    assert got["live"] == [f"{described(given)} | {branch(given)}"] * WAYS * 2


@pytest.mark.parametrize("kind", values.ERRORS)
def test_exception_is_equal_live_and_replayed(after_kill: dict[str, dict[str, dict[str, object]]], kind: str) -> None:
    """Code that catches an exception must catch it alike after a crash: class, arguments, attributes, cause."""
    got = after_kill["error"][kind]
    assert got.get("redelivered") is True, got
    assert got["live"] == got["replayed"]
    wanted = values.ERRORS[kind][1]
    live = got["live"]
    assert isinstance(live, list)
    assert not [told for told in live if "returned" in told], "an error came back as a value"
    names = [told.split(" | ", 1)[1].split("(", 1)[0] for told in live]
    if wanted is not Exception:
        direct = [name for at, name in enumerate(names) if at % WAYS != WAYS - 1]
        assert set(direct) == {f"{wanted.__module__}.{wanted.__qualname__}"}
    assert {name for at, name in enumerate(names) if at % WAYS == WAYS - 1} == {"supervisor.core.errors.RunFailed"}


def test_at_least_the_promised_kinds() -> None:
    """The promise names 40 kinds of value and 20 of exception."""
    assert len(values.VALUES) >= 40
    assert len(values.ERRORS) >= 20
    assert StepFailed is values.StepFailed
