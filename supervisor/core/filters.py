"""Filters: what `list` and `cancel` are told to look for, from text to a tree. Pure; `db/filters.py` makes SQL of the tree.

    workflow = checkout AND (status in (failed, timed_out) OR wait = signal) AND age > 1h AND NOT key ^= "order-"
    attribute.stage = paid AND attribute.amount >= 100 AND attribute.due < 2026-12-01 ORDER BY attribute.amount DESC

Owns the words: fields, operators, values. Invariant: a tree holds only fields of `FIELDS`, operators that its field takes and
values of its field's kind, so whoever reads it need not check again. What does not fit is refused with its place and with
what would fit there.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from difflib import get_close_matches
from typing import NamedTuple, TypeAlias
from uuid import UUID

from supervisor.core.attributes import stored_time
from supervisor.core.errors import FilterInvalid

# a limit on everything: what a person types is far below
LENGTH_MAX = 20_000
TESTS_MAX = 500
DEPTH_MAX = 50
SPAN_MAX_S = 1000 * 365 * 86_400.0

LIVE = ("ready", "running", "waiting", "paused")
UNSUCCESSFUL = ("failed", "cancelled", "terminated", "timed_out")
STATUSES = (*LIVE, "completed", *UNSUCCESSFUL, "continued", "lost")
WAITS = tuple(
    "queued no_worker concurrency rate_limited fairness queue_paused run_paused step_running step_backoff timer signal update token child any_of "
    "debounce batch schedule_overlap nondeterminism code_missing attempts_exhausted crash_loop commit_rejected".split()
)


class Dated(str):
    """A time, as attributes have it; compares with times alone."""


Value: TypeAlias = str | int | float | bool | UUID | datetime


# ── the tree ─────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Compare:
    """One test. `op` is one of = != < <= > >= ^= ~ in null; `values` has one value, for `in` any number, for `null` none.

    `path` leads into the JSON of attribute, input, result and error; of a fingerprint it is the step. Spans are seconds. A text that was quoted is a str; bare
    words of JSON fields are int, float or bool where they read so.
    """

    field: str
    op: str
    values: tuple[Value, ...] = ()
    path: tuple[str, ...] = ()


@dataclass(frozen=True)
class Not:
    part: Filter


@dataclass(frozen=True)
class And:
    parts: tuple[Filter, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Filter, ...]


Filter: TypeAlias = Compare | Not | And | Or


class Order(NamedTuple):
    """By which attribute runs are listed, those that have it; None: by their starts."""

    attribute: str | None
    descending: bool


def both(*filters: Filter | None) -> Filter | None:
    """All of them together; None where there is none."""
    there = tuple(each for each in filters if each is not None)
    return And(there) if len(there) > 1 else there[0] if there else None


def open_to(verb: str, asked: Filter | None) -> Filter | None:
    """Of the runs that *asked* finds those that operators' *verb* may do something to."""
    statuses = None if verb == "fork" else (*LIVE, *UNSUCCESSFUL) if verb == "retry" else LIVE
    return both(asked, None if statuses is None else Compare("status", "in", statuses))


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────

ORDER = ("<", "<=", ">", ">=")
EQUAL = ("=", "!=", "in")
TEXT = ("^=", "~", "!~")
NULL = ("is null",)


class Field(NamedTuple):
    """A field's kind of value and the operators that it takes."""

    read: Callable[[str], Value]
    kind: str  # in words, for errors
    ops: tuple[str, ...]
    words: tuple[str, ...] = ()  # the closed list that its values are from
    paths: bool = False  # goes on with .name.name into JSON


def _whole(text: str) -> int:
    value = int(text)
    if abs(value) >= 2**31:
        raise ValueError
    return value


_SPAN_UNITS = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86_400.0, "day": 86_400.0, "days": 86_400.0, "w": 604_800.0}
_SPAN_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*")


def span(text: str) -> float:
    """Seconds of "90", "1h", "1h30m", "2 days"."""
    total, at = 0.0, 0
    while at < len(text):
        part = _SPAN_PART.match(text, at)
        if part is None or (not part[2] and part[0] != text) or (part[2] and part[2] not in _SPAN_UNITS):
            raise ValueError
        total, at = total + float(part[1]) * _SPAN_UNITS[part[2] or "s"], part.end()
    if not text or total > SPAN_MAX_S:
        raise ValueError
    return total


def _moment(text: str) -> datetime:
    """A date or a moment in ISO 8601; without a zone it is UTC."""
    made = datetime.fromisoformat(text)
    return made.replace(tzinfo=timezone.utc) if made.tzinfo is None else made.astimezone(timezone.utc)


_DATED = re.compile(r"\d{4}-\d\d-\d\d(T\d\d:\d\d.*)?")


def _attribute_value(text: str) -> Value:
    """A bare word as attributes have it: a number, true, false, a date or time, else a text."""
    return Dated(stored_time(_moment(text))) if _DATED.fullmatch(text) else _json_value(text)


def _json_value(text: str) -> Value:
    """A bare word as JSON has it: a number, true, false, else a text."""
    if text in ("true", "false"):
        return text == "true"
    if re.fullmatch(r"-?\d{1,18}", text):
        return int(text)
    if re.fullmatch(r"-?\d{1,18}\.\d{1,18}", text):
        return float(text)
    return text


_TEXT = Field(str, "a text", (*EQUAL, *ORDER, *TEXT, *NULL))
_NUMBER = Field(_whole, "a whole number", (*EQUAL, *ORDER, *NULL))
_JSON = Field(_json_value, "a text, a number, true or false", (*EQUAL, *ORDER, *TEXT, *NULL), paths=True)
_ATTRIBUTE = Field(_attribute_value, "a text, a number, true or false, a date or time", (*EQUAL, *ORDER, *TEXT, *NULL), paths=True)
_SPAN = Field(span, "a span of time (30s, 5m, 1h, 2d, 1h30m)", ORDER)
_MOMENT = Field(_moment, "a date or a time (2026-11-22, 2026-11-22T08:30)", ORDER)
_ID = Field(UUID, "a run's id", EQUAL)

FIELDS: dict[str, Field] = {
    "workflow": _TEXT,
    "status": Field(str, "a status", EQUAL, STATUSES),
    "wait": Field(str, "a reason for waiting", (*EQUAL, *NULL), WAITS),
    "waited": _SPAN,
    "age": _SPAN,
    "took": _SPAN,
    "started": _MOMENT,
    "ended": _MOMENT,
    "key": _TEXT,
    "queue": _TEXT,
    "batch": _TEXT,
    "schedule": Field(str, "a schedule's name", (*EQUAL, *NULL)),
    "step": _TEXT,
    "version": _TEXT,
    "error": _JSON,
    "fingerprint": Field(str, "an error's fingerprint", (*EQUAL, *NULL), paths=True),
    "attribute": _ATTRIBUTE,
    "input": _JSON,
    "result": _JSON,
    "priority": _NUMBER,
    "attempt": _NUMBER,
    "seq": _NUMBER,
    "steps": _NUMBER,
    "worker": _NUMBER,
    "run": _ID,
    "parent": Field(UUID, "a run's id", (*EQUAL, *NULL)),
}
_ALSO = {"id": "run", "run_id": "run", "attributes": "attribute", "created": "started", "created_at": "started", "ended_at": "ended", "duration": "took", "state": "status"}


# ── tokens ───────────────────────────────────────────────────────────────────────────────────────────────────────


class Token(NamedTuple):
    kind: str  # word, text (it was quoted), op, one of ( ) , or end
    text: str
    at: int
    end: int


_QUOTED = r'"(?:[^"\\]|\\.)*"|\'(?:[^\'\\]|\\.)*\''
_TOKEN = re.compile(
    rf"""\s*(?:(?P<text>{_QUOTED})
       | (?P<op><=|>=|!=|<>|==|\^=|!~|=|<|>|~)
       | (?P<mark>[(),])
       | (?P<word>(?:[^\s()=!<>~^,"']|(?<=\.)(?:{_QUOTED}))+))""",
    re.VERBOSE | re.DOTALL,
)
_PART = re.compile(rf"({_QUOTED})|([^.]+)", re.DOTALL)
_SAME_OP = {"<>": "!=", "==": "="}


def _tokens(text: str) -> list[Token]:
    found = []
    at = 0
    end = len(text.rstrip())
    while at < end:
        match = _TOKEN.match(text, at)
        if match is None:
            at += len(text[at:]) - len(text[at:].lstrip())
            if text[at] in "\"'":
                raise FilterInvalid(text, at, end, "the quote is not closed", f"close it: {text[at:end]}{text[at]}")
            raise FilterInvalid(text, at, at + 1, f"{text[at]!r} does not fit", "texts with other characters than letters, digits and - _ . : / stand in quotes")
        kind = str(match.lastgroup)
        word = match[kind]
        found.append(Token(word if kind == "mark" else kind, _SAME_OP.get(word, word) if kind == "op" else word, match.start(kind), match.end(kind)))
        at = match.end()
    return [*found, Token("end", "", end, end)]


def _unquoted(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text[1:-1], flags=re.DOTALL)


# ── the grammar ──────────────────────────────────────────────────────────────────────────────────────────────────


def parse(text: str) -> Filter:
    """The tree of *text*, which has no order. Raises FilterInvalid."""
    return _Parser(checked_text(text)).parse()


def parse_list(text: str) -> tuple[Filter | None, Order | None]:
    """The tree of *text*, and the order at its end: each may be missing, not both. Raises FilterInvalid."""
    return _Parser(checked_text(text)).parse_list()


def checked_text(text: str) -> str:
    """*text*, if it may be looked at. Raises FilterInvalid, which shows the place and says what would fit.

    Source: the grammar in docs/reading.md. AND binds closer than OR, NOT closer than AND; words of the grammar in any case.
    """
    if len(text) > LENGTH_MAX:
        raise FilterInvalid(text[:200], 0, 0, f"the filter has {len(text):,} characters and {LENGTH_MAX:,} are the most", "ask in parts")
    if any("\ud800" <= char <= "\udfff" or char == "\0" for char in text):
        at = next(at for at, char in enumerate(text) if "\ud800" <= char <= "\udfff" or char == "\0")
        raise FilterInvalid(text, at, at + 1, "there is a byte that is no text (UTF-8)", "leave it out")
    return text


class _Parser:
    """Recursive descent over the tokens; `_at` is the next one."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = _tokens(text)
        self._at = 0
        self._tests = 0

    def parse(self) -> Filter:
        if self._next.kind == "end":
            raise self._wrong("the filter is empty", "write one: workflow = checkout AND age > 1h")
        made = self._either(0)
        if self._is("order", "by"):
            raise self._wrong("an order does not fit here", "leave it out: runs that are ended, or counted, are in none")
        self._ends("AND, OR, or nothing more")
        return made

    def parse_list(self) -> tuple[Filter | None, Order | None]:
        if self._next.kind == "end":
            return self.parse(), None
        made = None if self._is("order", "by") else self._either(0)
        if not self._took("order", "by"):
            self._ends("AND, OR, ORDER BY, or nothing more")
            return made, None
        order = self._order()
        self._ends("nothing more")
        return made, order

    def _order(self) -> Order:
        token = self._next
        name, path = self._field()
        if name != "started" and (name != "attribute" or len(path) != 1):
            raise self._wrong(f"runs have no order by {token.text}", "they are listed by started or by attribute.NAME", token)
        descending = self._took("desc") or not self._took("asc") and name == "started"
        return Order(path[0] if path else None, descending)

    def _ends(self, fits: str) -> None:
        if self._next.kind != "end":
            raise self._wrong(f"{self._next.text!r} does not fit here", f"here fits {fits}")

    # ── one token ────────────────────────────────────────────────────────────────────────────────────────────

    @property
    def _next(self) -> Token:
        return self._tokens[self._at]

    def _take(self) -> Token:
        token = self._next
        self._at += token.kind != "end"
        return token

    def _is(self, *words: str) -> bool:
        """Whether the next tokens are these words of the grammar."""
        coming = self._tokens[self._at : self._at + len(words)]
        return len(coming) == len(words) and all(token.kind == "word" and token.text.lower() == word for token, word in zip(coming, words, strict=True))

    def _took(self, *words: str) -> bool:
        if not self._is(*words):
            return False
        self._at += len(words)
        return True

    def _wrong(self, why: str, remedy: str, token: Token | None = None) -> FilterInvalid:
        """The error at *token*, or at the next one; *remedy* has no "; ", at which the program breaks the line."""
        token = token or self._next
        if token.kind == "end" and token.at > 0:
            why = "the filter ends too early"
        return FilterInvalid(self._text, token.at, token.end, why, remedy)

    # ── AND OR NOT ───────────────────────────────────────────────────────────────────────────────────────────

    def _either(self, depth: int) -> Filter:
        parts = [self._both(depth)]
        while self._took("or"):
            parts.append(self._both(depth))
        return Or(tuple(parts)) if len(parts) > 1 else parts[0]

    def _both(self, depth: int) -> Filter:
        parts = [self._one(depth)]
        while self._took("and"):
            parts.append(self._one(depth))
        return And(tuple(parts)) if len(parts) > 1 else parts[0]

    def _one(self, depth: int) -> Filter:
        if depth > DEPTH_MAX:
            raise self._wrong(f"the filter is nested deeper than {DEPTH_MAX} levels", "ask in parts")
        if self._took("not"):
            return Not(self._one(depth + 1))
        if self._next.kind == "(":
            opened = self._take()
            made = self._either(depth + 1)
            if self._next.kind != ")":
                if self._next.kind == "end":
                    raise FilterInvalid(self._text, opened.at, opened.end, "the parenthesis is not closed", "close it: )")
                raise self._wrong(f"{self._next.text!r} does not fit here", "here fits AND, OR or )")
            self._take()
            return made
        return self._test()

    # ── one test ─────────────────────────────────────────────────────────────────────────────────────────────

    def _test(self) -> Filter:
        self._tests += 1
        if self._tests > TESTS_MAX:
            raise self._wrong(f"the filter has more than {TESTS_MAX} tests", "use in (…), or ask in parts")
        where = self._next
        name, path = self._field()
        field = FIELDS[name]
        op, op_token, negated = self._op(name, where, field)
        self._check_op(name, path, op, op_token)
        if op == "is null":
            made: Filter = Compare(name, "null", (), path)
        elif op == "in":
            made = Compare(name, "in", self._list(name, field), path)
        else:
            made = Compare(name, "~" if op == "!~" else op, (self._value(name, field, op),), path)
        return Not(made) if negated or op == "!~" else made

    def _field(self) -> tuple[str, tuple[str, ...]]:
        token = self._next
        if token.kind != "word" or token.text.lower() in ("and", "or", "in", "is"):
            raise self._wrong(f"{token.text!r} does not fit here", f"here fits NOT, ( or a field: {', '.join(FIELDS)}")
        first, *rest = [_unquoted(quoted) if quoted else bare for quoted, bare in _PART.findall(token.text)] or [""]
        name = _ALSO.get(first.lower(), first.lower())
        if name not in FIELDS:
            near = get_close_matches(name, [*FIELDS, *_ALSO], 1)
            raise self._wrong(f"there is no field {first!r}", f"did you mean {near[0]!r}?" if near else f"fields are {', '.join(FIELDS)}")
        if rest and not FIELDS[name].paths:
            raise self._wrong(f"{name} has no parts", f"write {name} alone: only attribute, input, result, error and fingerprint have parts")
        if name == "fingerprint" and len(rest) > 1:
            raise self._wrong("a fingerprint has one part, its step", "write fingerprint alone, or a step's name in quotes: fingerprint.\"a.b\"")
        self._take()
        return name, tuple(rest)

    def _op(self, name: str, where: Token, field: Field) -> tuple[str, Token, bool]:
        """The operator, where it stands, and whether a NOT is in it."""
        token = self._next
        if token.kind == "op":
            self._take()
            return token.text, token, False
        if self._took("in"):
            return "in", token, False
        if self._took("not", "in"):
            return "in", token, True
        if self._took("is", "null"):
            return "is null", token, False
        if self._took("is", "not", "null"):
            return "is null", token, True
        said = self._text[where.at : where.end]
        raise self._wrong(f"{token.text!r} is no operator", f"after {said} fits {_listed(field.ops)}")

    def _check_op(self, name: str, path: tuple[str, ...], op: str, token: Token) -> None:
        field = FIELDS[name]
        ops = field.ops
        if field.paths and not path and name not in ("error", "fingerprint"):
            ops = (*TEXT, *NULL)
            if op not in ops:
                raise self._wrong(f"{op} needs a part of {name}", f"name it, {name}.name {op} …: {name} alone takes {_listed(ops)}", token)
        if op not in ops:
            raise self._wrong(f"{name} does not take {op}", f"{name} takes {_listed(ops)}", token)

    def _list(self, name: str, field: Field) -> tuple[Value, ...]:
        if self._next.kind != "(":
            raise self._wrong(f"{self._next.text!r} does not fit here", f"after in fits a list: {name} in (one, two)")
        self._take()
        values = [self._value(name, field, "in")]
        while self._next.kind == ",":
            self._take()
            values.append(self._value(name, field, "in"))
        if self._next.kind != ")":
            raise self._wrong(f"{self._next.text!r} does not fit here", "here fits , or )")
        self._take()
        return tuple(values)

    def _value(self, name: str, field: Field, op: str) -> Value:
        token = self._next
        if token.kind not in ("word", "text"):
            raise self._wrong(f"{token.text!r} does not fit here", f"here fits {field.kind}{': ' + ', '.join(field.words) if field.words else ''}")
        if token.kind == "word" and token.text.lower() in ("and", "or"):
            raise self._wrong(f"{token.text} is a word of the grammar", f"here fits {field.kind}, and the word itself in quotes")
        said = _unquoted(token.text) if token.kind == "text" else token.text
        if field.words:
            value: Value = self._word(said.lower(), field, token)
        elif (field.paths and token.kind == "text") or op in TEXT:
            value = said
        else:
            try:
                value = field.read(said)
            except (ValueError, OverflowError):
                raise self._wrong(f"{said!r} is not {field.kind}", f"{name} {op} takes {field.kind}") from None
        self._take()
        return value

    def _word(self, said: str, field: Field, token: Token) -> str:
        if said in field.words:
            return said
        near = get_close_matches(said, field.words, 1)
        remedy = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(field.words)}"
        raise self._wrong(f"{said!r} is not {field.kind}", remedy, token)


def _listed(ops: Sequence[str]) -> str:
    return " ".join(ops[:-1]) + (" or " if len(ops) > 1 else "") + ops[-1]
