"""What a page is, before anybody draws it: panels, cells, the why banner, the verbs that it offers. No HTML and no SQL here.

`data` is what the page's `.json` says; the rest is for people. Three templates draw all pages: `list` (one table, filter, bulk bar), `detail` and `form`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import urlencode

from supervisor.db.pages import Said

WORDS = ("and", "or", "not", "in", "is", "null", "order", "by")  # of the filter's grammar: as values in quotes


# ── cells ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Link:
    kind: ClassVar[str] = "link"
    text: object
    href: str


@dataclass(frozen=True)
class Pip:
    """A status, with a sign beside its word: readable without colour."""

    kind: ClassVar[str] = "pip"
    status: str
    more: str | None = None


@dataclass(frozen=True)
class When:
    kind: ClassVar[str] = "when"
    at: datetime | None


@dataclass(frozen=True)
class Took:
    kind: ClassVar[str] = "took"
    seconds: float | None


@dataclass(frozen=True)
class Count:
    """A number, and the list that proves it. `least`: there may be more."""

    kind: ClassVar[str] = "count"
    n: int | float | None
    href: str | None = None
    least: bool = False


@dataclass(frozen=True)
class Size:
    kind: ClassVar[str] = "size"
    bytes: int | None


@dataclass(frozen=True)
class Json:
    """A payload. `cut`: only its beginning is here, of so many bytes."""

    kind: ClassVar[str] = "json"
    value: Any
    cut: int | None = None


@dataclass(frozen=True)
class Failure:
    """A stored error: type, message, traceback."""

    kind: ClassVar[str] = "failure"
    error: Any


@dataclass(frozen=True)
class Code:
    kind: ClassVar[str] = "code"
    text: str


@dataclass(frozen=True)
class Pick:
    """A box by which a run is chosen for the bulk bar."""

    kind: ClassVar[str] = "pick"
    run_id: object


@dataclass(frozen=True)
class Do:
    """A verb on what a row of a list is about."""

    kind: ClassVar[str] = "do"
    action: Action


@dataclass(frozen=True)
class Twig:
    """A cell so many levels down a tree, and what is said of it beside; without one the place where the page itself stands."""

    kind: ClassVar[str] = "twig"
    depth: int
    cell: Link | None
    more: str = ""


Cell = Do | Link | Pip | When | Took | Count | Size | Json | Failure | Code | Pick | Twig | str | int | None


# ── panels ───────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Table:
    kind: ClassVar[str] = "table"
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    empty: str = "nothing"
    note: str = ""
    more: Link | None = None


@dataclass
class Facts:
    kind: ClassVar[str] = "facts"
    title: str
    items: Sequence[tuple[str, Cell]]
    note: str = ""
    wide: bool = False


@dataclass
class Findings:
    """What is not as it should be; empty where all is well."""

    kind: ClassVar[str] = "findings"
    title: str
    bad: Sequence[str]
    good: str = ""


@dataclass
class Chart:
    """Lines over time. `times` in seconds since 1970; `lines`: name and values."""

    kind: ClassVar[str] = "chart"
    title: str
    times: Sequence[int]
    lines: Sequence[tuple[str, Sequence[float | None]]]
    note: str = ""


@dataclass
class Text:
    kind: ClassVar[str] = "text"
    title: str
    text: str
    note: str = ""
    empty: str = "nothing"


@dataclass
class Refused:
    """A part of a page that could not be had, and why."""

    kind: ClassVar[str] = "refused"
    title: str
    why: str


# ── verbs ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Input:
    """A field of a form. `kind`: as HTML's; area for several lines, decimal and numeric for numbers that stay as they were typed, select for one of `options`, zone
    for a text that they complete, check for a box that is ticked, hidden. `wrong`: why it was refused."""

    name: str
    label: str
    value: str = ""
    kind: str = "text"
    needed: bool = True
    help: str = ""
    wrong: str = ""
    options: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Action:
    """A verb that is offered: a form that asks for a reason. `first`: it frees what the banner speaks of; `key`: tells several of one page apart; `what` it is done to."""

    verb: str
    label: str
    href: str
    says: str
    inputs: Sequence[Input] = ()
    first: bool = False
    harsh: bool = False
    key: str = ""
    what: str = "the run"


@dataclass(frozen=True)
class Form:
    """A page that is a form: its fields in groups, what it carries unseen, its buttons (the first is Enter's), what is wrong as label, field and words."""

    href: str
    groups: Sequence[tuple[str, Sequence[Input]]]
    hidden: Mapping[str, str]
    buttons: Sequence[tuple[str, str]]
    wrong: Sequence[tuple[str, str, str]] = ()


@dataclass(frozen=True)
class Why:
    """The banner: what it waits for, since when, what frees it, who can act."""

    status: str
    sentence: str
    code: str | None = None
    since: datetime | None = None
    wake_at: datetime | None = None
    freed_by: str = ""
    who: str = ""
    notes: Sequence[tuple[str, Cell]] = ()
    commands: Sequence[str] = ()  # that do what its words say, as one types them


# ── pages ────────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass
class Search:
    """The filter of a list."""

    text: str = ""
    wrong: str = ""
    saved: Sequence[tuple[str, str]] = ()
    kept: Sequence[Mapping[str, Any]] = ()  # of those the ones that somebody keeps: name, filter, saved_by, saved_at
    may_keep: bool = False


@dataclass
class Page:
    title: str
    nav: str
    data: Any
    template: str = "list"
    panels: Sequence[Any] = ()
    lead: str = ""
    crumbs: Sequence[tuple[str, Cell]] = ()
    search: Search | None = None
    older: str | None = None
    newest: str | None = None
    by_name: bool = False
    bulk: Sequence[tuple[str, str]] = ()
    why: Why | None = None
    actions: Sequence[Action] = ()
    links: Sequence[Link] = ()  # to what else can be done, or seen
    form: Form | None = None
    back: str = ""
    journal: Any = None
    said: Sequence[Said] = ()
    status: int = 200


def url(path: str, **query: object) -> str:
    """A link of ours, with what of *query* is given."""
    given = {name: str(value) for name, value in query.items() if value not in (None, "")}
    return f"{path}?{urlencode(given)}" if given else path


def json_of(link: str | None) -> str | None:
    """The same page for programs."""
    path, mark, query = (link or "").partition("?")
    return f"{path}.json{mark}{query}" if link else None


def runs_where(**tests: object) -> str:
    """The list of runs by these tests, in the words of the filter."""
    return url("/runs", q=" AND ".join(f"{name} = {quoted(value)}" for name, value in tests.items() if value is not None))


def quoted(value: object) -> str:
    """A value as the filter's grammar reads it back."""
    text = str(value)
    bare = text.replace("_", "").isalnum() and text.isascii() and text.lower() not in WORDS
    return text if bare else in_quotes(text)


def in_quotes(text: str) -> str:
    """Likewise, whatever it is."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def run_link(run_id: object, text: object = None) -> Link:
    return Link(Code(short_id(run_id) if text is None else str(text)), f"/runs/{run_id}")


def short_id(run_id: object) -> str:
    """A part of an id that tells runs apart: its beginning is the time, its end the cell."""
    return f"…{str(run_id)[-12:-3]}"


@dataclass(frozen=True)
class Asked:
    """What a page is asked with."""

    params: Mapping[str, str] = field(default_factory=dict)
    query: Mapping[str, str] = field(default_factory=dict)
    may_act: bool = False
    may_operate: bool = False
    log_dir: Path | None = None

    def get(self, name: str, default: str = "") -> str:
        return self.query.get(name, default)

    def moment(self, name: str) -> datetime | None:
        """A time that the address names; None where it names none."""
        try:
            return datetime.fromisoformat(self.get(name))
        except ValueError:
            return None
