"""Which histories `replay` and `export` are about: named runs, or a sample of a workflow's."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any
from uuid import UUID

import click

if TYPE_CHECKING:
    from supervisor.core.histories import History
    from supervisor.db.histories import Histories

SAMPLE = 500
SAMPLE_MAX = 100_000


def _span(_ctx: click.Context, _param: click.Parameter, text: str) -> float:
    from supervisor.core.filters import span

    try:
        return span(text)
    except ValueError:
        raise click.BadParameter(f"{text!r} is no time: write 90s, 12h, 7d") from None


def choice(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options that say which."""
    for option in (
        click.option("--version", "of_version", metavar="VERSION", help="With --workflow: its live runs of this version, those that a move would move."),
        click.option("--sample", type=click.IntRange(1, SAMPLE_MAX), default=SAMPLE, show_default=True, help="With --workflow: at most so many, the newest and some of every time."),
        click.option("--since", metavar="SPAN", default="7d", show_default=True, callback=_span, help="With --workflow: those that were started since then: 12h, 7d."),
        click.option("--workflow", metavar="NAME", help="Runs of this workflow, live and ended."),
    ):
        command = option(command)
    return command


def chosen(histories: Histories, runs: Iterable[str], workflow: str | None, since_s: float, most: int, of_version: str | None) -> list[UUID]:
    """Ids of the runs. Raises RunUnknown for a name that is none."""
    named = [histories.find(each) for each in runs]
    return [*named, *(histories.sample(workflow, since_s, most, of_version) if workflow else ())]


def each(histories: Histories, ids: Iterable[UUID], left_out: list[str], strict: bool) -> Iterator[History]:
    """One after the other. What went meanwhile, or is too long, is noted in *left_out*; raised if *strict*, for runs that were named."""
    from supervisor.core.errors import HistoryTooLarge, RunUnknown

    for run_id in ids:
        try:
            yield histories.read(run_id)
        except (HistoryTooLarge, RunUnknown) as error:
            if strict:
                raise
            left_out.append(str(error))
