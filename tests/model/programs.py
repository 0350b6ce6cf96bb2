"""Programs at random: what a workflow may do, as far as the promises say what becomes of it.

A program is data: its style and a list of commands, at most `COMMANDS` of them with those inside of others. Hypothesis draws it, and
shrinks one that fails. What would be a race has one possible winner: the others wait for what never comes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from hypothesis import strategies as st

COMMANDS = 20
GENERATIONS = 3
CLOSES = ["abandon", "request_cancel", "terminate"]
STYLES = st.sampled_from(["async", "def"])
CALM_STEPS = ["inline", "plain", "task", "thread", "tx", "tx task"]

_texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"), max_size=8)
_scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(-1e15, 1e15) | _texts
VALUES = st.integers(0, 9) | _scalars | st.lists(_scalars, max_size=3) | st.dictionaries(_texts, _scalars, max_size=2)


@dataclass(frozen=True)
class Place:
    """What fits where a command is drawn. `alone`: nothing else of the run happens at that moment."""

    style: str
    generation: int = 0
    fails: bool = True
    cancels: bool = True
    alone: bool = True


class Drawn:
    """One program being drawn: how many commands are left, which names of signals are taken."""

    def __init__(self, draw: Callable[[Any], Any], most: int) -> None:
        self.draw, self.left, self.names = draw, most, 0

    def block(self, place: Place, most: int = COMMANDS) -> list[Any]:
        body: list[Any] = []
        while self.left > 0 and len(body) < most and (not body or self.draw(st.integers(0, 7))):
            self.left -= 1
            word = self.draw(st.sampled_from(self.words(place)))
            body.append(getattr(self, word)(place))
        return body

    def words(self, place: Place) -> list[str]:
        """The simplest first."""
        found = ["step", "step", "step", "step", "sleep", "signal", "attempt", "attempt"] * (2 if place.fails else 1)
        if place.generation < GENERATIONS - 1:
            found += ["child"]
        if place.alone:
            found += ["publish", "patched", "drawn", "drawn", "once", "shield", "gather", "first", "compensate", "finish"]
            if place.generation < GENERATIONS - 1:
                found += ["start", "join", "leave"]
        if place.fails:
            found += ["broken", "late"]
        if place.fails and place.alone:
            found += ["broken_gather", "broken_first", "late_shield"]
        if place.cancels:
            found += ["guard", "guard", "cancelled"]
        return found

    # ── commands ─────────────────────────────────────────────────────────────────────────────────────────────────

    def step(self, place: Place) -> list[Any]:
        fails = self.draw(st.sampled_from([0, 0, 0, 1, 2, 3]))
        how = self.draw(st.sampled_from(["", "after"])) if fails else ""
        return ["step", self.draw(st.sampled_from(CALM_STEPS)), fails, how, self.draw(VALUES)]

    def once(self, place: Place) -> list[Any]:
        return ["step", "once", 0, "", self.draw(VALUES)]

    def broken(self, place: Place) -> list[Any]:
        """A step that fails for good."""
        how = self.draw(st.sampled_from(["", "lookup", "for good", "hangs", "gated"]))
        if how in ("hangs", "gated"):
            return ["step", how, 0, "", None]
        return ["step", self.draw(st.sampled_from(CALM_STEPS)), self.draw(st.integers(1, 4)) if how else 4, how, None]

    def sleep(self, place: Place) -> list[Any]:
        return ["sleep", self.draw(st.integers(0, 25))]

    def signal(self, place: Place) -> list[Any]:
        if place.alone:
            name = self.draw(st.sampled_from(["a", "b"]))
        else:
            self.names += 1
            name = f"of branch {self.names}"
        return ["signal", name, self.draw(VALUES), self.draw(st.sampled_from(["before", "with", "after"]))]

    def late(self, place: Place) -> list[Any]:
        return ["late", self.draw(st.integers(0, 25))]

    def child(self, place: Place) -> list[Any]:
        return ["child", *self.kid(place, replace(place, alone=True))]

    def kid(self, place: Place, inside: Place) -> list[Any]:
        style = self.draw(STYLES)
        return [style, self.block(replace(inside, style=style, generation=place.generation + 1), 6)]

    def start(self, place: Place) -> list[Any]:
        close = self.draw(st.sampled_from(CLOSES))
        return ["start", close, *self.kid(place, place if close == "abandon" else replace(place, cancels=False))]

    def join(self, place: Place) -> list[Any]:
        return ["join"]

    def leave(self, place: Place) -> list[Any]:
        close = self.draw(st.sampled_from(CLOSES))
        style, body = self.kid(place, replace(place, fails=close == "abandon" and place.fails, cancels=False))
        return ["leave", close, style, body if close == "abandon" else [*body, self.never()]]

    def never(self) -> list[Any]:
        return ["never", self.draw(st.sampled_from(["signal", "sleep"]))]

    # ── at once ──────────────────────────────────────────────────────────────────────────────────────────────────

    def member(self, place: Place) -> list[Any]:
        calm = replace(place, fails=False, cancels=False, alone=False)
        self.left -= 1
        words = ["step", "signal"]
        if place.generation < GENERATIONS - 1:
            words.append("child")
        if place.style == "async":
            words += ["sleep", "branch"]
        word = self.draw(st.sampled_from(words))
        return ["branch", self.block(calm, 4)] if word == "branch" else getattr(self, word)(calm)

    def loser(self, place: Place) -> list[Any]:
        self.left -= 1
        if place.style == "def":
            return ["never", "signal"]
        how = self.draw(st.sampled_from(["signal", "sleep"]))
        return ["cleans", how, [self.step(place)]] if self.draw(st.booleans()) else ["never", how]

    def losers(self, place: Place, least: int = 0) -> list[Any]:
        return [self.loser(place) for _ in range(self.draw(st.integers(least, 2)))]

    def loses(self, place: Place) -> list[Any]:
        """A child that is cancelled when nobody waits for it any more."""
        style, body = self.kid(place, replace(place, fails=False, cancels=False))
        return ["loses", style, [*body, self.never()]]

    def among(self, place: Place, one: list[Any]) -> list[Any]:
        """It, and losers."""
        others = self.losers(place)
        if place.generation < GENERATIONS - 1 and self.left > 1 and self.draw(st.booleans()):
            self.left -= 1
            others.append(self.loses(place))
        at = self.draw(st.integers(0, len(others)))
        return [*others[:at], one, *others[at:]]

    def gather(self, place: Place) -> list[Any]:
        return ["gather", [self.member(place) for _ in range(self.draw(st.integers(0, 3)))]]

    def broken_gather(self, place: Place) -> list[Any]:
        return ["gather", self.among(place, self.broken(place))]

    def first(self, place: Place) -> list[Any]:
        return ["first", self.among(place, self.member(place))]

    def broken_first(self, place: Place) -> list[Any]:
        return ["first", self.among(place, self.broken(place))]

    def shield(self, place: Place) -> list[Any]:
        word = self.draw(st.sampled_from(["step", "signal", "child"] if place.generation < GENERATIONS - 1 else ["step", "signal"]))
        return ["shield", self.draw(st.sampled_from([60.0, None])), getattr(self, word)(place)]

    def late_shield(self, place: Place) -> list[Any]:
        child = place.generation < GENERATIONS - 1 and self.draw(st.booleans())
        return ["shield", self.draw(st.integers(0, 25)) / 1000, self.loses(place) if child else ["never", "signal"]]

    # ── what is said without waiting, and blocks ─────────────────────────────────────────────────────────────────

    def publish(self, place: Place) -> list[Any]:
        return ["publish", self.draw(st.sampled_from(["x", "y"])), self.draw(VALUES)]

    def compensate(self, place: Place) -> list[Any]:
        return ["compensate", self.draw(st.sampled_from([0, 0, 1, 3]))]

    def patched(self, place: Place) -> list[Any]:
        return ["patched"]

    def drawn(self, place: Place) -> list[Any]:
        return ["drawn"]

    def attempt(self, place: Place) -> list[Any]:
        return ["attempt", self.block(replace(place, fails=True), 5), self.block(place, 2) if self.draw(st.booleans()) else []]

    def finish(self, place: Place) -> list[Any]:
        return ["finish", self.block(place, 5), self.block(replace(place, cancels=False), 2)]

    def guard(self, place: Place) -> list[Any]:
        body = self.block(place, 4)
        body.append(self.cancelled(place))
        cleanup = [self.step(place) for _ in range(self.draw(st.integers(0, 2)))]
        return ["guard", body, cleanup, self.draw(st.sampled_from(["go on", "raise", "fail"]))]

    def cancelled(self, place: Place) -> list[Any]:
        self.left -= 1
        words = ["never", "gather"] + (["child"] if place.generation < GENERATIONS - 1 else [])
        word = self.draw(st.sampled_from(words))
        if word == "gather":
            return ["cancelled", ["gather", self.losers(place, 1)]]
        if word == "child":
            style, body = self.kid(place, replace(place, fails=False, cancels=False))
            return ["cancelled", ["child", style, [*body, self.never()]]]
        return ["cancelled", self.never()]


@st.composite
def _programs(draw: Callable[[Any], Any]) -> dict[str, Any]:
    style = draw(STYLES)
    body = Drawn(draw, draw(st.integers(1, COMMANDS))).block(Place(style))
    return {"style": style, "body": body, "then": draw(st.none() | st.just(["retry"]) | st.integers(0, COMMANDS).map(lambda row: ["fork", row]))}


def size(value: Any) -> int:
    """How many commands there are in a program's body, with those inside of others."""
    if not isinstance(value, list):
        return 0
    return (bool(value) and isinstance(value[0], str) and value[0] in WORDS) + sum(map(size, value))


WORDS = {
    "step", "sleep", "signal", "late", "child", "loses", "start", "join", "leave", "never", "cleans", "gather", "first", "shield", "publish", "compensate", "patched",
    "drawn", "attempt", "finish", "guard", "cancelled",
}  # fmt: skip
# `{"style": …, "body": [command, …], "then": None, ["retry"] or ["fork", row]}`
programs = _programs().filter(lambda program: size(program["body"]) <= COMMANDS)
