"""The sum of sessions: what is asked for, what is there, what to lower."""

from __future__ import annotations

import pytest

from supervisor import ConfigInvalid
from supervisor.host.sessions import Room, check_room


LOOP, TWO = ["loop"], ["loop", "transactional steps"]
THREE = [*TWO, "queries"]


@pytest.mark.parametrize(
    ("most", "reserved", "used", "procs", "sessions"),
    [(100, 3, 0, 93, LOOP), (100, 3, 1, 46, TWO), (100, 3, 77, 16, LOOP), (100, 3, 61, 16, TWO), (100, 10, 85, 1, LOOP), (100, 3, 63, 10, THREE)],
)
def test_what_just_fits(most: int, reserved: int, used: int, procs: int, sessions: list[str]) -> None:
    """The last one that fits is let in, the first one that does not is refused."""
    check_room(Room(most, reserved, used), procs, sessions)
    with pytest.raises(ConfigInvalid):
        check_room(Room(most, reserved, used), procs + 1, sessions)


def test_the_refusal_says_the_sum_and_what_to_lower() -> None:
    with pytest.raises(ConfigInvalid) as refused:
        check_room(Room(100, 3, 70), 16, TWO)
    assert str(refused.value) == (
        "this host needs 16 workers × 2 (loop, transactional steps) + 4 of the parent = 36 sessions, and the server has room for 27: "
        "max_connections 100 - 3 reserved - 70 in use; lower --procs to 11, end sessions of others, or raise max_connections to 109"
    )


def test_what_is_beside_the_host_has_sessions_too() -> None:
    """Counted, they are not what the last worker is refused for, nor what a page is missing when somebody looks."""
    check_room(Room(100, 3, 70), 23, LOOP)
    check_room(Room(100, 3, 70), 21, LOOP, {"metrics": 2})
    with pytest.raises(ConfigInvalid, match=r"22 workers × 1 \(loop\) \+ 4 of the parent \+ 2 of metrics = 28 sessions, .* room for 27: .*; lower --procs to 21,"):
        check_room(Room(100, 3, 70), 22, LOOP, {"metrics": 2})
    both = {"metrics": 2, "the dashboard": 7}
    check_room(Room(100, 3, 70), 14, LOOP, both)
    with pytest.raises(ConfigInvalid, match=r"15 workers × 1 \(loop\) \+ 4 of the parent \+ 2 of metrics \+ 7 of the dashboard = 28 sessions, .* room for 27: .*; lower --procs to 14,"):
        check_room(Room(100, 3, 70), 15, LOOP, both)


def test_where_nothing_fits_no_number_is_named() -> None:
    """More in use than there is room for, while superusers are connected."""
    with pytest.raises(ConfigInvalid, match="room for 0: .*; not even one worker fits: end sessions of others, or raise max_connections to 108"):
        check_room(Room(100, 3, 100), 1)
