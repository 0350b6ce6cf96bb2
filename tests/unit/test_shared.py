"""What is made once for all who look at the same: one at a time, nothing older than the last change or a second, an error kept by nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

pytest.importorskip("starlette", reason="the extra [dashboard] is not installed")

from supervisor.dashboard import live, shared
from supervisor.db.connect import Dsn


class Pages:
    """Counts what is made; each is held back until it is let go."""

    def __init__(self) -> None:
        self.now = 100.0
        self.shared: shared.Shared[str] = shared.Shared(lambda: self.now)
        self.gates: list[asyncio.Event] = []

    def ask(self, address: str = "/a", error: Exception | None = None) -> asyncio.Task[str]:
        async def make() -> str:
            gate, n = asyncio.Event(), len(self.gates)
            self.gates.append(gate)
            await gate.wait()
            if error is not None:
                raise error
            return f"{address} {n}"

        return asyncio.ensure_future(self.shared.of(address, make))


def run(test: Callable[[Pages], Awaitable[Any]]) -> None:
    async def main() -> None:
        await test(Pages())

    asyncio.run(main())


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_who_asks_meanwhile_or_soon_after_is_given_the_same() -> None:
    async def test(pages: Pages) -> None:
        first, second, other = pages.ask(), pages.ask(), pages.ask("/b")
        await settle()
        assert len(pages.gates) == 2
        for gate in pages.gates:
            gate.set()
        assert (await first, await second, await other) == ("/a 0", "/a 0", "/b 1")
        pages.now += shared.KEPT_S
        assert await pages.ask() == "/a 0"
        pages.now += 0.01
        third = pages.ask()
        await settle()
        pages.gates[2].set()
        assert await third == "/a 2"

    run(test)


def test_after_a_change_nobody_is_given_what_was_begun_before_it() -> None:
    """Not even while that is still being made: then the next one waits for its end, so that a slow page is made once at a time."""

    async def test(pages: Pages) -> None:
        before = pages.ask()
        await settle()
        pages.shared.forget()
        after, same = pages.ask(), pages.ask()
        await settle()
        assert len(pages.gates) == 1
        pages.gates[0].set()
        await settle()
        assert len(pages.gates) == 2
        pages.gates[1].set()
        assert (await before, await after, await same) == ("/a 0", "/a 1", "/a 1")

    run(test)


def test_an_error_is_told_to_who_waited_and_kept_for_nobody() -> None:
    async def test(pages: Pages) -> None:
        first, second = pages.ask(error=ValueError("gone")), pages.ask()
        await settle()
        pages.gates[0].set()
        assert [str(each) for each in await asyncio.gather(first, second, return_exceptions=True)] == ["gone", "gone"]
        third = pages.ask()
        await settle()
        pages.gates[1].set()
        assert await third == "/a 1"

    run(test)


def test_who_goes_away_takes_the_page_from_nobody() -> None:
    async def test(pages: Pages) -> None:
        first, second = pages.ask(), pages.ask()
        await settle()
        first.cancel()
        await settle()
        pages.gates[0].set()
        assert await second == "/a 0"

    run(test)


def test_a_slow_page_is_joined_however_long_it_takes() -> None:
    async def test(pages: Pages) -> None:
        first = pages.ask()
        await settle()
        pages.now += 10 * shared.KEPT_S
        second = pages.ask()
        await settle()
        pages.gates[0].set()
        assert (await first, await second, len(pages.gates)) == ("/a 0", "/a 0", 1)

    run(test)


def test_no_more_are_kept_than_there_is_room_for() -> None:
    async def test(pages: Pages) -> None:
        asked = [pages.ask(f"/{n}") for n in range(2 * shared.KEPT_MAX)]
        await settle()
        for gate in pages.gates:
            gate.set()
        assert len(await asyncio.gather(*asked)) == 2 * shared.KEPT_MAX
        assert len(pages.shared._kept) <= shared.KEPT_MAX
        pages.now += 2 * shared.KEPT_S
        last = pages.ask("/last")
        await settle()
        pages.gates[-1].set()
        await last
        assert list(pages.shared._kept) == ["/last"]

    run(test)


def test_events_are_as_far_apart_as_their_pages_are_costly() -> None:
    made = live.Live(Dsn("", ""), "supervisor")
    assert made.apart_s() == live.APART_S
    made.spent(0.1)
    assert made.apart_s() == pytest.approx(0.1 * live.SPENT_SHARE)
    made.spent(60)
    assert made.apart_s() == live.APART_MAX_S
    made.told()
    assert made.apart_s() == live.APART_S
