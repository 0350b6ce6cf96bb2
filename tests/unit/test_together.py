"""Who carries for whom when threads meet, also when one of them is interrupted: nobody waits for ever and nobody is answered by another's error."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from supervisor.api.together import Call, Kind, Together, together
from supervisor.core.errors import DatabaseUnavailable, InputInvalid
from tests.harness import eventually


class Stage:
    """A session that answers when it is let; what was carried together is noted."""

    def __init__(self) -> None:
        self.session = threading.RLock()
        self.carried: list[list[object]] = []
        self.fails: BaseException | None = None
        self.kind = Kind(self._one, self._many)
        self.together = Together(self.session, self._carry)

    def _one(self, _verbs: Any, what: object) -> Any:
        return what
        yield

    def _many(self, _verbs: Any, many: Sequence[object]) -> Any:
        return many
        yield

    def _carry(self, calls: Sequence[Call]) -> None:
        self.carried.append([call.what for call in calls])
        fails, self.fails = self.fails, None
        if fails is not None:
            raise fails
        for _ in together(None, calls):  # type: ignore[arg-type]
            raise AssertionError("it asks nothing")

    def call(self, what: object, alike: object = None) -> Call:
        return Call(self.kind, alike, what)

    def waiting(self, n: int) -> None:
        eventually(lambda: len(self.together._calls) == n, 5, f"{n} calls wait")


@pytest.fixture
def stage() -> Stage:
    return Stage()


def test_what_is_alike_is_carried_together(stage: Stage) -> None:
    with ThreadPoolExecutor(8) as threads:
        with stage.session:
            calls = []
            for n, alike in enumerate("aabab"):
                calls.append(threads.submit(stage.together.do, stage.call(n, alike)))
                stage.waiting(n + 1)
        assert [call.result(timeout=5) for call in calls] == [0, 1, 2, 3, 4]
    assert stage.carried == [[0, 1, 3], [2, 4]] and not stage.together.busy


def test_an_error_of_the_database_is_everybodys(stage: Stage) -> None:
    stage.fails = DatabaseUnavailable("gone")
    with ThreadPoolExecutor(8) as threads:
        with stage.session:
            calls = [threads.submit(stage.together.do, stage.call(n)) for n in range(3)]
            stage.waiting(3)
        for call in calls:
            with pytest.raises(DatabaseUnavailable, match="gone"):
                call.result(timeout=5)
        assert threads.submit(stage.together.do, stage.call("next")).result(timeout=5) == "next"


def test_who_carries_is_interrupted(stage: Stage) -> None:
    """It is told of its own interrupt alone; the others are told that nobody knows, and who comes next is served."""
    stage.fails = KeyboardInterrupt()
    with ThreadPoolExecutor(8) as threads:
        with stage.session:
            leads = threads.submit(stage.together.do, stage.call("leads"))
            stage.waiting(1)
            follows = threads.submit(stage.together.do, stage.call("follows"))
            stage.waiting(2)
        with pytest.raises(KeyboardInterrupt):
            leads.result(timeout=5)
        with pytest.raises(DatabaseUnavailable, match="whether it was done is not known"):
            follows.result(timeout=5)
        assert threads.submit(stage.together.do, stage.call("next")).result(timeout=5) == "next"


class Interrupted:
    """A lock on which waiting is interrupted, once it was made to wait."""

    def __init__(self, then: Any = None) -> None:
        self.then = then

    def acquire(self) -> None:
        if self.then is not None:
            self.then()
        raise KeyboardInterrupt

    def release(self) -> None:
        pass


@pytest.mark.parametrize("promoted", [False, True])
def test_who_waits_is_interrupted(stage: Stage, promoted: bool) -> None:
    """Its call is not carried; where it was to carry those that came after it, the next of them does."""
    gone = stage.call("gone", "own" if promoted else None)
    with ThreadPoolExecutor(8) as threads:
        with stage.session:
            leads = threads.submit(stage.together.do, stage.call("leads"))
            stage.waiting(1)
            with stage.together._lock:
                stage.together._calls.append(gone)
            gone.turn = Interrupted()
            follows = threads.submit(stage.together.do, stage.call("follows", "other"))
            stage.waiting(3)
            if not promoted:
                stage.together._leave(gone)
        assert leads.result(timeout=5) == "leads"
        if promoted:  # it leads now, and its thread is interrupted before it notices
            eventually(lambda: gone.leads, 5)
            assert not follows.done()
            stage.together._leave(gone)
        assert follows.result(timeout=5) == "follows"
    assert stage.carried == [["leads"], ["follows"]] and not stage.together.busy


def test_one_refusal_is_one_callers() -> None:
    """Together they are refused, so each is asked by itself."""

    def one(_verbs: Any, what: int) -> Any:
        if what == 2:
            raise InputInvalid("start", "2 is too much")
        return what
        yield

    def many(_verbs: Any, whats: Sequence[int]) -> Any:
        raise InputInvalid("start", "one of them is too much")
        yield

    calls = [Call(Kind(one, many), None, n) for n in range(4)]
    for _ in together(None, calls):  # type: ignore[arg-type]
        pass
    assert [call.answer for call in calls] == [0, 1, None, 3]
    with pytest.raises(InputInvalid, match="2 is too much"):
        calls[2].result()
