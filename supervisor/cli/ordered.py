"""What the verbs on queues, schedules and versions have in common: their options, and how they say what they did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import click

from supervisor.cli import options
from supervisor.cli.output import plain, print_json


class Order(NamedTuple):
    """Why, who, where."""

    reason: str | None
    actor: str
    dsn: str | None
    schema: str | None
    as_json: bool

    def done(self, kind: str, name: str, what: str, *, done: bool = True, **more: Any) -> int | None:
        """Say what became of the *kind* of that name, with what *more* there is; the exit code."""
        if self.as_json:
            print_json({kind: name, "done": done, "state": what, **more})
        else:
            told = " ".join(f"{key} {value}" for key, value in more.items() if value is not None)
            click.echo(f"{what} {plain(name)}" + (f": {told}" if told else ""))
        return None if done else 1


def ordered(function: Callable[..., int | None]) -> Callable[..., int | None]:
    """The options that all verbs take, gathered into an Order."""

    def told(reason: str | None, actor: str | None, dsn: str | None, schema: str | None, as_json: bool, **own: Any) -> int | None:
        return function(Order(reason, actor or options.actor(), dsn, schema, as_json), **own)

    told.__doc__ = function.__doc__
    for option in (
        options.as_json, options.schema, options.dsn,
        options.said_by, options.reason,
    ):  # fmt: skip
        told = option(told)
    return told
