"""Which ends of workers are deaths: who looks at a host after an ordinary stop must not find a massacre there."""

from __future__ import annotations

import pytest

from supervisor.core import ends


def row(worker: int, death: str | None, boot: str = "", state: str = "dead") -> ends.Row:
    return {"worker": worker, "boot": boot or f"process {worker}", "state": state, "death": death}


@pytest.mark.parametrize(
    ("death", "died"),
    [(ends.of_code(-9), True), (ends.of_code(-11), True), (ends.of_code(1), True), (ends.of_code(79), True), (ends.SESSION_GONE, True), (ends.of_code(0), False),
     (ends.of_code(-15), False), (ends.adopted_by(7), False)],
)  # fmt: skip
def test_a_death_is_what_nobody_asked_for(death: str, died: bool) -> None:
    """Killed, crashed or vanished; not told to end, nor on under a new number."""
    assert bool(ends.deaths([row(1, death)])) is died


def test_a_process_that_goes_on_under_a_new_number_has_not_died() -> None:
    """The leader may bury the number of a lost session before its process is back: then only the later number tells that it lives."""
    buried, back, other = row(1, ends.SESSION_GONE, "a"), row(2, None, "a", "alive"), row(3, ends.SESSION_GONE, "b")
    assert ends.deaths([buried, back, other]) == [other]


def test_the_living_and_the_lost_are_not_counted() -> None:
    assert ends.deaths([row(1, None, state="alive"), row(2, None, state="lost")]) == []
