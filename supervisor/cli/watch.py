"""`--watch`: one look after the other, until q or ^C; for list, show, queues and workers.

Owns the repetition alone: what is looked at, and how it reads, is the command's. While the database is away it says so and
goes on trying. At most half of the time is spent with looking, whatever the interval.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import click

from supervisor.cli.output import plain, print_json, say

if TYPE_CHECKING:
    from rich.text import Text

T = TypeVar("T")

option = click.option("--watch", "watching", is_flag=True, help="Again and again, until q or ^C; with --json a line for everything that is new or has changed.")
interval = click.option("--interval", type=click.FloatRange(0.1, 3600), default=2.0, show_default=True, help="Seconds between two looks of --watch.")


@dataclass(frozen=True)
class Watched(Generic[T]):
    """What is looked at again and again.

    look     asks for it; DatabaseUnavailable is told, and the next look comes
    text     a look as people read it
    objects  a look as JSON: by what each object is known again, and the object
    ended    whether a look is the last, for nothing of it can change any more
    """

    look: Callable[[], T]
    text: Callable[[T], str]
    objects: Callable[[T], Iterable[tuple[Hashable, Any]]]
    ended: Callable[[T], bool] = lambda _: False


def watch(watched: Watched[Any], interval_s: float, as_json: bool) -> None:
    """A text that is drawn anew; in a pipe one text after the other; with --json what is new and what has changed."""
    with contextlib.suppress(KeyboardInterrupt):
        if as_json:
            _changes(watched, interval_s)
        elif sys.stdout.isatty():
            _screen(watched, interval_s)
        else:
            _texts(watched, interval_s)


def _screen(watched: Watched[T], interval_s: float) -> None:
    from rich.text import Text

    from supervisor.cli.screen import live

    last: list[str] = []

    def draw() -> Text | None:
        found = _look(watched)
        if isinstance(found, str):
            return Text(f"{found}; trying again")
        last[:] = [watched.text(found)] if watched.ended(found) else []
        return None if last else Text(watched.text(found), no_wrap=True, overflow="crop")

    live(draw, interval_s)
    if last:
        click.echo(last[0])  # the screen is gone, and what became of it is what was waited for


def _texts(watched: Watched[T], interval_s: float) -> None:
    for turn, found in enumerate(_looks(watched, interval_s)):
        click.echo(("\n" if turn else "") + watched.text(found))
        sys.stdout.flush()


def _changes(watched: Watched[T], interval_s: float) -> None:
    seen: dict[Hashable, Any] = {}
    for found in _looks(watched, interval_s):
        objects = dict(watched.objects(found))
        for mark, made in objects.items():
            if mark not in seen or seen[mark] != made:
                print_json(made)
        sys.stdout.flush()
        seen = objects


def _looks(watched: Watched[T], interval_s: float) -> Iterator[T]:
    """Look after look, the last one too."""
    from supervisor.cli.screen import until_interrupted

    for _ in until_interrupted():
        began = time.monotonic()
        found = _look(watched)
        took_s = time.monotonic() - began
        if isinstance(found, str):
            say(f"{found}; trying again")
        else:
            yield found
            if watched.ended(found):
                return
        time.sleep(max(interval_s, took_s))


def _look(watched: Watched[T]) -> T | str:
    """What there is, or why it can't be seen."""
    from supervisor.core.errors import DatabaseUnavailable

    try:
        return watched.look()
    except DatabaseUnavailable as error:
        return plain(error)
