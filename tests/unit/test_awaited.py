"""What the parent learns of runs that ended, and whom it tells; without a database."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest

from supervisor._fastpath.loop import UUID
from supervisor._fastpath.wire import Column
from supervisor.core import awaited as hints
from supervisor.engine import endings
from supervisor.engine.endings import Endings
from supervisor.host import awaited
from supervisor.host.awaited import Awaited

TOKEN, OTHER = "0123abcd", "89abcdef"


def run_id(n: int) -> bytes:
    return n.to_bytes(16, "big")


def sent(ids: list[bytes]) -> bytes:
    """The parameter of `finish` with these ids, as the loop makes it."""
    column = Column(UUID)
    for each in ids:
        column.put(each)
    return bytes(column.take())


def readable(fd: int) -> bool:
    return bool(select.select([fd], [], [], 0)[0])


# ── what is said ─────────────────────────────────────────────────────────────────────────────────────────────────


def test_ids_survive_the_way_through_notifications() -> None:
    """A notification has at most 7,999 bytes."""
    ids = [os.urandom(16) for _ in range(1000)]
    payloads = hints.asked(TOKEN, ids)
    assert [hints.read_asked(each)[0] for each in payloads] == [TOKEN] * 3
    assert [each for payload in payloads for each in hints.read_asked(payload)[1]] == ids
    assert max(map(len, payloads)) <= 7900
    assert [each for payload in hints.texts(ids) for each in hints.ids_of(payload)] == ids


@pytest.mark.parametrize("payload", ["", " ", TOKEN, f"{TOKEN} ", f"{TOKEN} x", f"{TOKEN} AAAA", f"../.... {'A' * 24}", "ü" * 100, f"{TOKEN}0 AAAA"])
def test_what_cant_be_read_is_nothing(payload: str) -> None:
    """Whoever may connect may notify."""
    assert hints.read_asked(payload)[1] == []


# ── what is noted ────────────────────────────────────────────────────────────────────────────────────────────────


def test_what_workers_note_the_parent_reads() -> None:
    """Across the end of a ring, from several workers, each once."""
    made = Endings(3)
    workers = [made.of(number) for number in range(3)]
    assert not workers[0].wanted and not readable(made.fd)
    made.want(True)
    assert all(worker.wanted for worker in workers)
    read: list[bytes] = []
    for turn in range(8):
        for number, worker in enumerate(workers):
            worker.note(sent([run_id(100_000 * number + 2500 * turn + n) for n in range(2500)]))
        assert readable(made.fd)
        ids, overrun = made.take()
        assert not overrun and not readable(made.fd)
        read += ids
    assert sorted(read) == [run_id(100_000 * number + n) for number in range(3) for n in range(20_000)]


def test_a_successor_goes_on_in_the_ring_of_its_number() -> None:
    """The parent has read up to somewhere."""
    made = Endings(1)
    made.of(0).note(sent([run_id(1)]))
    made.of(0).note(sent([run_id(2)]))
    assert made.take() == ([run_id(1), run_id(2)], False)


@pytest.mark.parametrize("batches", [[endings.ENTRIES + 1], [5000, 5000], [2500] * 7])
def test_a_ring_that_was_overrun_says_so(batches: list[int]) -> None:
    """A parent that hung for a while: then everybody asks about everything."""
    made = Endings(1)
    for count in batches:
        made.of(0).note(sent([run_id(n) for n in range(count)]))
    assert made.take()[1]
    made.of(0).note(sent([run_id(7)]))
    assert made.take() == ([run_id(7)], False)


# ── who is told ──────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Told:
    """A parent with one worker: `said` is what went out, `answer` says that it has."""

    endings: Endings = field(default_factory=lambda: Endings(1))
    said: list[tuple[str, str]] = field(default_factory=list)
    answers: list[Callable[[bool], None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.part = Awaited(self.endings, self._say)
        self.worker = self.endings.of(0)

    def _say(self, tokens: list[str], payloads: list[str], said: Callable[[bool], None]) -> None:
        self.said += zip(tokens, payloads, strict=True)
        self.answers.append(said)

    def ended(self, *ids: bytes) -> None:
        """A batch of the worker's is durable, and the parent's loop turns."""
        if self.worker.wanted:
            self.worker.note(sent(list(ids)))
        self.turn()

    def turn(self) -> None:
        self.part._next_at = 0.0  # the pause is over
        self.part.act(set(), set())

    def answer(self, done: bool = True) -> None:
        self.answers.pop()(done)

    def ids(self, token: str) -> list[bytes]:
        return [each for to, payload in self.said if to == token for each in hints.ids_of(payload)]


def awaits(told: Told, token: str, *ids: bytes) -> None:
    for payload in hints.asked(token, ids):
        told.part.heard(payload)


def test_each_client_hears_of_what_it_awaits() -> None:
    """Nobody else's runs, each once; a run that two await is told to both."""
    told = Told()
    awaits(told, TOKEN, run_id(1), run_id(2))
    awaits(told, OTHER, run_id(2), run_id(3))
    awaits(told, OTHER, run_id(2))
    told.ended(run_id(1), run_id(2), run_id(9))
    assert told.ids(TOKEN) == [run_id(1), run_id(2)] and told.ids(OTHER) == [run_id(2)]
    told.answer()
    told.said.clear()
    told.ended(run_id(1), run_id(2))
    assert told.said == []


def test_while_nobody_awaits_anything_nothing_is_noted_and_nothing_watched() -> None:
    """The flag costs a worker one look per batch, and the parent does not turn for it."""
    told = Told()
    assert not told.worker.wanted and told.part.sockets() == ([], []) and told.part.due() == float("inf")
    awaits(told, TOKEN, run_id(1))
    assert told.worker.wanted and told.part.sockets() == ([told.endings.fd], [])


def test_what_is_awaited_is_forgotten_unless_it_is_said_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is gone costs its hosts two minutes."""
    told = Told()
    awaits(told, TOKEN, run_id(1), run_id(2))
    told.part._forget_at = 0.0
    told.turn()
    awaits(told, TOKEN, run_id(2))
    told.part._forget_at = 0.0
    told.turn()
    told.ended(run_id(1), run_id(2))
    assert told.ids(TOKEN) == [run_id(2)]
    for _ in range(2):
        told.part._forget_at = 0.0
        told.turn()
    assert not told.worker.wanted and told.part.due() == float("inf")


def test_one_statement_at_a_time_and_fifty_a_second() -> None:
    """What ends meanwhile is told with the next one."""
    told = Told()
    awaits(told, TOKEN, *map(run_id, range(1000)))
    told.ended(*map(run_id, range(400)))
    assert len(told.answers) == 1 and len(told.said) == 2
    told.ended(run_id(500))
    assert len(told.answers) == 1
    assert told.part.sockets() == ([], []), "it is not even looked at"
    told.answer()
    told.part._next_at = time.monotonic() + 60.0
    assert told.part.sockets() == ([], []) and told.part.due() == min(told.part._next_at, told.part._forget_at), "the loop must turn when the pause is over"
    told.part._next_at = float("inf")
    told.part.act(set(), set())
    assert len(told.answers) == 0 and told.part.sockets() == ([], []), "a pause of 20 ms"
    told.turn()
    assert told.ids(TOKEN)[-1] == run_id(500)


def test_an_answer_that_was_lost_becomes_ask_about_everything() -> None:
    """The session was lost in the middle of it."""
    told = Told()
    awaits(told, TOKEN, run_id(1))
    told.ended(run_id(1))
    told.answer(False)
    told.turn()
    assert told.said[-1] == (TOKEN, hints.ALL)


def test_after_an_overrun_everybody_asks_about_everything() -> None:
    """What was in the ring is not known any more."""
    told = Told()
    awaits(told, TOKEN, run_id(1))
    awaits(told, OTHER, run_id(2))
    for _ in range(5):
        told.worker.note(sent(list(map(run_id, range(100, 2600)))))
    told.turn()
    assert sorted(told.said) == [(TOKEN, hints.ALL), (OTHER, hints.ALL)]


def test_there_is_an_end_to_what_a_host_remembers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever may connect may notify, as often as they like."""
    monkeypatch.setattr(awaited, "AWAITED_MAX", 100)
    told = Told()
    awaits(told, TOKEN, *map(run_id, range(1000)))
    assert len(told.part._newer) == 100
