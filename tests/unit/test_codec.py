"""Payloads and stored errors: what is stored comes back, what JSON would change is refused with its path.

Nothing ever raises on the failure path.
"""

from __future__ import annotations

import datetime as dt
import json
import sys
from dataclasses import dataclass
from typing import Any, TypedDict
from uuid import UUID

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor.core import codec
from supervisor.core.errors import NonRetryable, PayloadRefused, ResultInvalid, RetryAfter, RunFailed, StepFailed, StepTimeout

_text = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\x00"))
_scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | _text
_json = st.recursive(_scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_text, inner, max_size=4), max_leaves=20)


_anything = st.recursive(
    _scalars | st.just(float("nan")) | st.just("a\x00") | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text | st.integers(), inner, max_size=3),
    max_leaves=10,
)


class Money(msgspec.Struct):
    cents: int
    tags: list[str] = []


@dataclass
class Holder:
    value: Any


class Options(TypedDict, total=False):
    n: int


def _same(one: Any, other: Any) -> bool:
    """Equal, and of equal types all the way down: 1 is not 1.0 and not True here, and -0.0 is not 0.0."""
    return repr(one) == repr(other)


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────


@settings(max_examples=500, deadline=None)
@given(_json)
def test_json_values_come_back_as_they_are(value: Any) -> None:
    """Whatever JSON can hold is held, and is valid for jsonb."""
    encoded, back = codec.Shape(Any, "x").settle(value)
    assert _same(back, value)
    assert codec.encode(value) == encoded
    assert "\\u0000" not in encoded.decode()
    json.loads(encoded)


@settings(max_examples=300, deadline=None)
@given(_anything)
def test_any_value_comes_back_or_is_refused(value: Any) -> None:
    """There is no third way: never changed, never another exception."""
    try:
        _, back = codec.Shape(Any, "x").settle(value)
    except PayloadRefused as refused:
        assert refused.path.startswith("$")
    else:
        assert _same(back, value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (float("nan"), "$"), ([1, float("inf")], "$[1]"), ({"a": {"b": [float("-inf")]}}, "$['a']['b'][0]"), ({1: "x"}, "$[1]"),
        ({"a": {(1, 2): 3}}, "$['a'][(1, 2)]"),
        ("a\x00b", "$"), (["x", "\x00"], "$[1]"), ({"\x00": 1}, "$['\\x00']"), (Holder(float("nan")), "$.value"),
        (Holder(Holder({2: 3})), "$.value.value[2]"),
        (Money(1, ["\x00"]), "$.tags[0]"), ((1, (2, float("nan"))), "$[1][1]"), (object(), "$"), (print, "$"),
        ("x" * (codec.PAYLOAD_MAX_BYTES + 1), "$"),
        (b"x" * (codec.PAYLOAD_MAX_BYTES + 1), "$"), ("\ud800", "$"),
    ],
)  # fmt: skip
def test_refused_value_names_its_path(value: Any, path: str) -> None:
    """A refusal without a place costs an afternoon."""
    with pytest.raises(PayloadRefused) as caught:
        codec.Shape(Any, "x").settle(value)
    assert caught.value.path == path
    assert caught.value.code == "payload_refused"


def test_depth_and_size_are_limited_exactly() -> None:
    """64 levels and 2 MiB are let in; one more is not, and a list that contains itself ends the walk."""
    value: Any = 1
    for _ in range(codec.DEPTH_MAX):
        value = [value]
    codec.encode(value)
    with pytest.raises(PayloadRefused, match="64"):
        codec.encode([value])
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(PayloadRefused, match="64"):
        codec.encode(endless)
    codec.encode("x" * (codec.PAYLOAD_MAX_BYTES - 2))
    for too_large in ("x" * (codec.PAYLOAD_MAX_BYTES - 1), ["é" * 1_100_000]):
        with pytest.raises(PayloadRefused, match="2,097,152"):
            codec.encode(too_large)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (dict[int, str], {1: "a", -2: "b"}), (dict[dt.date, list[int]], {dt.date(2024, 2, 29): [1]}), (dict[UUID, int], {UUID(int=1): 1}),
        (tuple[int, ...], (1, 2)), (set[str], {"a"}), (frozenset[int], frozenset({1})), (bytes, b"\x00\xff"), (Money, Money(1, ["x"])),
        (list[Money], [Money(1)]), (Options, {"n": 1}), (int | None, None), (dt.datetime, dt.datetime(2024, 1, 1, tzinfo=dt.UTC)),
        (float, 1.0), (Holder, Holder([1])),
    ],
)  # fmt: skip
def test_annotated_value_comes_back_as_annotated(annotation: Any, value: Any) -> None:
    """The annotation says what JSON can't."""
    assert _same(codec.Shape(annotation, "x").settle(value)[1], value)


@pytest.mark.parametrize(
    ("annotation", "value"),
    [
        (int, "1"), (int, 1.5), (str, 1), (Money, {"cents": "x"}), (list[int], [1, None]), (dict[int, str], {"a": "b"}), (None, 1),
        (Money, None), (bool, 1), (dt.date, "x"),
    ],
)  # fmt: skip
def test_value_that_does_not_fit_its_annotation_is_told(annotation: Any, value: Any) -> None:
    with pytest.raises((ResultInvalid, PayloadRefused), match="step x|JSON"):
        codec.Shape(annotation, "step x").settle(value)


def test_exact_types_are_those_whose_values_need_no_decoding() -> None:
    """The hot path uses such a value as it is: a subclass or a wider type must not slip in."""
    assert codec.Shape(int).exact == {int}
    assert codec.Shape(None).exact == {type(None)}
    assert codec.Shape(int | str | None).exact == {int, str, type(None)}
    assert codec.Shape(Any).exact == codec.EXACT
    assert codec.Shape(float | list[int]).exact == {float}
    for annotation in (Money, list[int], bytes, dt.date, dict[str, int]):
        assert not codec.Shape(annotation).exact
    assert bool not in codec.Shape(int).exact
    assert int not in codec.Shape(float).exact, "an int that is annotated float comes back as a float"


# ── errors ───────────────────────────────────────────────────────────────────────────────────────────────────────


class OwnInit(Exception):
    def __init__(self, a: int, *, b: str) -> None:
        if a < 0:
            raise AssertionError("made with the wrong arguments")
        self.a, self.b = a, b
        super().__init__(f"{a} {b}")


class Refusing(Exception):
    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(name)


class LongOwn(Exception):
    def __init__(self, text: str) -> None:
        super().__init__(text)


class FromSystem(ConnectionError):
    """As libraries have it: an OSError with an `__init__` of its own."""

    def __init__(self, host: str) -> None:
        super().__init__(7, host)
        self.host = "there"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise KeyError("no")

    __repr__ = __str__


class Exiting(Exception):
    def __str__(self) -> str:
        raise SystemExit(1)


def _back(error: BaseException) -> BaseException:
    encoded = codec.encode_error(error)
    assert len(encoded) <= codec.ERROR_MAX_BYTES
    assert b"\\u0000" not in encoded
    json.loads(encoded.decode())
    return codec.decode_error(encoded)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x"), ValueError(), KeyError("k"), KeyError(1, "b"), OwnInit(1, b="c"), TimeoutError("t"), StepTimeout("s"),
        RetryAfter(30), NonRetryable("n"),
        RunFailed("id", "wf", "why"), StepFailed("Other", "m"), PayloadRefused("$", "w"), msgspec.ValidationError("v"),
        FileNotFoundError(2, "No such file"), AssertionError(), FromSystem("lost"),
    ],
)  # fmt: skip
def test_imported_exception_is_rebuilt(error: Exception) -> None:
    """Class, arguments, attributes and text: code that catches it can't tell."""
    back = _back(error)
    assert type(back) is type(error)
    assert (back.args, str(back), vars(back)) == (error.args, str(error), vars(error))


@pytest.mark.parametrize(
    "error",
    [
        Unprintable("u"), Exiting(), Refusing("r"), ValueError("a\x00b"), ValueError("\ud800"), ValueError(object()), ValueError({1: 2}),
        ValueError(float("nan")),
        ValueError("x" * 100_000), ExceptionGroup("g", [ValueError()]), SystemExit(1), KeyboardInterrupt(), GeneratorExit(),
        StopIteration(5),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), type("Local", (Exception,), {"__module__": "no.such.module"})("l"),
        type("odd name", (Exception,), {"__module__": "\x00"})("odd name"),
    ],
)  # fmt: skip
def test_any_exception_gives_an_exception(error: BaseException) -> None:
    """The failure path itself never fails, and never gives back what would end the worker or an await with a value."""
    back = _back(error)
    assert isinstance(back, Exception)
    assert not isinstance(back, StopIteration)
    if not isinstance(back, type(error)):
        assert isinstance(back, StepFailed)
        assert type(error).__name__.encode("utf-8", "backslashreplace")[:5] in back.type_name.encode() or "Exception" in back.type_name


@pytest.mark.parametrize("text", ["x" * 4_200, "x" * 1_000_000, "é" * 4_200, "語" * 4_200, "\x01" * 4_200, "𝄞" * 100_000])
@pytest.mark.parametrize("make", [RuntimeError, LongOwn, lambda text: KeyError(1, text, text), FromSystem], ids=["builtin", "own", "several", "from_oserror"])
def test_a_long_message_is_cut_and_the_class_stays(make: Any, text: str) -> None:
    """`except RuntimeError` must not depend on how much the error has to say."""
    error = make(text)
    error.__cause__ = make(text)
    error.detail = text
    back: Any = _back(error)
    assert type(back) is type(error)
    told = back.args[-1]
    assert told.startswith(text[:80]) and told.endswith(f"… ({len(text):,} characters)") and len(told) < 4_100
    assert str(told) in str(back) or "\\" in repr(told)
    assert back.detail.startswith(text[:80]) and back.detail.endswith(" characters)")
    assert str(_back(RuntimeError("x" * 4_000))) == "x" * 4_000


def test_causes_are_kept_to_a_depth_and_circles_end() -> None:
    """Four causes tell the story."""
    error: Exception = ValueError("0")
    for n in range(1, 10):
        outer = ValueError(str(n))
        outer.__cause__ = error
        error = outer
    told, at = [], _back(error)
    while at is not None:
        told.append(str(at))
        at = at.__cause__  # type: ignore[assignment]
    assert told == ["9", "8", "7", "6", "5"]
    circle = ValueError("c")
    circle.__cause__ = circle
    assert str(_back(circle)) == "c"


def test_rebuilding_imports_nothing_and_runs_no_init() -> None:
    """The history is data: a name in it must never load or run code."""
    assert "antigravity" not in sys.modules
    stored = {"type": "antigravity.Error", "message": "m", "args": []}
    back = codec.decode_error(json.dumps(stored).encode())
    assert isinstance(back, StepFailed) and "antigravity" not in sys.modules
    back = codec.decode_error(json.dumps({"type": f"{__name__}.OwnInit", "message": "m", "args": [-1]}).encode())
    assert isinstance(back, OwnInit) and back.args == (-1,)
    no_exceptions = "os.system subprocess.Popen builtins.object builtins.SystemExit sys.modules json . builtins.ValueError.mro".split()
    for name in ("", *no_exceptions):
        assert isinstance(codec.decode_error(json.dumps({"type": name, "message": "m", "args": ["x"]}).encode()), StepFailed), name


@pytest.mark.parametrize("stored", [b"", None, b"{", b"[]", b'{"type":1}', b"\xff", b"null"])
def test_unreadable_error_is_an_error_still(stored: bytes | None) -> None:
    assert isinstance(codec.decode_error(stored), Exception)


def test_brief_and_clean_never_raise() -> None:
    """What they give is fit for JSON, for PostgreSQL and for one line of a log."""
    for error in (Unprintable(), Exiting(), ValueError("x" * 9999), ValueError("a\x00\ud800"), ValueError()):
        told = codec.brief(error)
        assert len(told) <= 1001 and "\x00" not in told
        told.encode()
    assert codec.brief(ValueError("m")) == "ValueError: m"
    assert codec.clean("a\x00b\ud800") == "a\\x00b\\ud800"


def test_fingerprint_tells_places_apart_and_not_messages() -> None:
    """A thousand failures of one line are one failure."""

    def raised(message: str) -> Exception:
        try:
            raise ValueError(message)
        except ValueError as error:
            return error

    def elsewhere() -> Exception:
        try:
            raise ValueError("a")
        except ValueError as error:
            return error

    assert codec.fingerprint(raised("a")) == codec.fingerprint(raised("b")) != codec.fingerprint(elsewhere())
    assert len(codec.fingerprint(Unprintable())) == 12


def test_a_stored_traceback_begins_with_the_app():
    """The frames that call the app are the same for every error there is."""
    engine: dict[str, Any] = {}
    exec(compile("def call(fn):\n    fn()", "supervisor/_fastpath/loop.py", "exec"), engine)

    def app() -> None:
        engine["call"](lambda: 1 / 0)

    for caller, of_engine in ((lambda: engine["call"](app), 1), (lambda: engine["call"](None), 1)):
        try:
            caller()
        except Exception as error:
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # this test's own frame
            error.__traceback__ = error.__traceback__ and error.__traceback__.tb_next  # and the lambda's
            text = msgspec.json.decode(codec.encode_error(error))["traceback"]
            assert text.count("_fastpath") == of_engine, "those in between stay, and all where none is the app's"
            assert (" in app" in text.splitlines()[0]) == (text.count("File") > 1)
