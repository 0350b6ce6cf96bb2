"""The window over a file's runs: who is asked about when. Pure, by a clock of the test's own."""

from __future__ import annotations

from supervisor.files.awaiting import PAUSE_ASKING_S, PAUSE_S, Window

A, B, C = (bytes([n]) * 16 for n in range(3))


def test_a_run_is_asked_about_at_once_and_then_after_pauses_that_double() -> None:
    window, now = Window(), 100.0
    window.add([A, B], now)
    assert window.take(now, PAUSE_ASKING_S) == ([A, B], [])
    seen = []
    for _ in range(7):
        seen.append(round(window.next_at() - now, 6))
        now = window.next_at()
        assert window.take(now - 0.001, PAUSE_ASKING_S) == ([], [])
        assert window.take(now, PAUSE_ASKING_S) == ([], [A, B])
    assert seen == [PAUSE_S, 0.2, 0.4, 0.8, 1.6, PAUSE_ASKING_S, PAUSE_ASKING_S]


def test_groups_that_are_due_together_are_one_from_there_on() -> None:
    """A window that lets runs go one by one would else ask about each by itself."""
    window = Window()
    for n in range(50):
        window.add([bytes([n]) * 16], n / 1000)
    window.take(1.0, PAUSE_ASKING_S)
    fresh, again = window.take(2.0, PAUSE_ASKING_S)
    assert not fresh and len(again) == 50
    assert len(window.take(window.next_at(), PAUSE_ASKING_S)[1]) == 50 and window.next_at() > 2.0


def test_who_has_ended_is_asked_about_no_more() -> None:
    window = Window()
    window.add([A, B], 0.0)
    assert (window.leave(A), window.leave(A), window.leave(C)) == (1, 0, 0)
    assert window.take(0.0, PAUSE_ASKING_S) == ([B], []) and A not in window and len(window) == 1
    window.leave(B)
    assert window.take(1.0, PAUSE_ASKING_S) == ([], []) and window.next_at() == float("inf") and not window


def test_a_run_that_is_there_twice_is_asked_about_once_and_counts_twice() -> None:
    """Two records with one key; in one chunk or in two."""
    window = Window()
    window.add([A, B, A], 0.0)
    window.add([A, C], 0.0)
    assert sorted(window.take(0.0, PAUSE_ASKING_S)[0]) == [A, B, C]
    assert (window.leave(A), window.leave(B)) == (3, 1)


def test_all_are_asked_about_when_nobody_knows_which_was_announced() -> None:
    window = Window()
    window.add([A, B], 0.0)
    window.take(0.0, PAUSE_ASKING_S)
    window.take(1.0, PAUSE_ASKING_S)
    assert window.next_at() > 1.0
    window.ask_all(1.0)
    assert window.take(1.0, PAUSE_ASKING_S) == ([], [A, B])
