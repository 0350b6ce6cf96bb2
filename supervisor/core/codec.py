"""Payloads: Python values to JSON bytes and back, and exceptions likewise.

What is stored is what comes back: a value that JSON would change silently is refused with its path, and the caller
is given the decoded value at once, so a live run sees what its replay will see. Nothing is imported, evaluated or
unpickled on the way back: an exception's class is looked up among those that are imported already.
"""

from __future__ import annotations

import math
import os
import re
import sys
import traceback
from collections.abc import Callable
from hashlib import blake2b
from types import TracebackType
from typing import Any

import msgspec

from supervisor.core.errors import PayloadRefused, ResultInvalid, StepFailed

PAYLOAD_MAX_BYTES = 2 * 1024 * 1024  # one payload; a bigger one belongs in a table or an object store, its address here
DEPTH_MAX = 64  # nesting that every JSON reader copes with
ERROR_MAX_BYTES = 16 * 1024  # an error is read by people
MESSAGE_MAX, SHORT_MAX = 4000, 500  # characters of its message; where it is too big with that
TEXT_MAX = (4000, 1300, 600, 80)  # characters of each text among its arguments: the first with which all fit; 1,300 of three bytes, 600 of escapes
CAUSES_MAX = 4
_NO_JSON = "can't be written as JSON"

EXACT = frozenset({type(None), bool, int, str, float})  # what JSON gives back unchanged when no annotation says otherwise


# ── values ───────────────────────────────────────────────────────────────────────────────────────────────────────


def _to_builtin(value: Any) -> Any:
    """What msgspec does not know: pydantic models, by duck typing."""
    dump = getattr(value, "model_dump", None)
    if dump is not None:
        return dump(mode="json")
    raise NotImplementedError(f"a {type(value).__module__}.{type(value).__qualname__} {_NO_JSON}")


def _from_builtin(kind: type, value: Any) -> Any:
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    if isinstance(kind, type) and isinstance(value, kind):
        return value
    raise NotImplementedError(f"JSON can't be read as a {kind!r}")


encode_raw: Callable[[Any], bytes] = msgspec.json.Encoder(enc_hook=_to_builtin).encode


def encode(value: Any, where: str = "$") -> bytes:
    """Encode *value*, checked: no NaN, no key that is not a string, no NUL, at most 2 MiB and 64 levels.

    Raises   PayloadRefused with the path of what JSON can't hold.
    Cost     0.3 µs for a scalar; a walk over every element of a container.
    """
    check(value, where, strict_keys=True)
    return _encoded(value, where)


def _encoded(value: Any, where: str) -> bytes:
    try:
        encoded = encode_raw(value)
    except Exception as error:  # noqa: BLE001 - an object of the user's may raise whatever it likes when it is looked at
        why = str(error) if type(error) is NotImplementedError and error.args and str(error).endswith(_NO_JSON) else brief(error)
        raise PayloadRefused(where, f"{why}; a result must be JSON, a dataclass, Struct, TypedDict, attrs or pydantic") from None
    if len(encoded) > PAYLOAD_MAX_BYTES:
        raise PayloadRefused(where, f"{len(encoded):,} bytes of JSON, more than {PAYLOAD_MAX_BYTES:,}; store it elsewhere and return where it is")
    return encoded


def check(value: Any, path: str = "$", depth: int = 0, *, strict_keys: bool) -> bool:
    """Walk *value*; raise PayloadRefused at the first thing JSON would change. Returns whether a key was no string."""
    kind = type(value)
    if kind is str:
        if "\x00" in value:
            raise PayloadRefused(path, "text with a NUL character, which jsonb can't hold; remove it")
        if len(value) > PAYLOAD_MAX_BYTES:
            raise PayloadRefused(path, f"{len(value):,} characters, more than {PAYLOAD_MAX_BYTES:,} bytes; store it elsewhere")
        return False
    if kind is float:
        if not math.isfinite(value):
            raise PayloadRefused(path, f"{value!r} has no JSON form and would come back as null; use None or a string")
        return False
    if kind is int or kind is bool or value is None:
        return False
    if isinstance(value, (bytes, bytearray)) and len(value) > PAYLOAD_MAX_BYTES:
        raise PayloadRefused(path, f"{len(value):,} bytes, more than {PAYLOAD_MAX_BYTES:,}; store it elsewhere")
    if depth >= DEPTH_MAX:
        raise PayloadRefused(path, f"nested deeper than {DEPTH_MAX} levels")
    return _check_inside(value, path, depth + 1, strict_keys)


def _check_inside(value: Any, path: str, depth: int, strict_keys: bool) -> bool:
    odd_keys = False
    if isinstance(value, dict):
        for key, item in value.items():
            if type(key) is not str:
                if strict_keys:
                    raise PayloadRefused(f"{path}[{key!r}]", f"a key of type {type(key).__name__} would come back as text; use strings, or annotate dict[{type(key).__name__}, …]")
                odd_keys = True
            elif "\x00" in key:
                raise PayloadRefused(f"{path}[{key!r}]", "a key with a NUL character, which jsonb can't hold")
            odd_keys |= check(item, f"{path}[{key!r}]", depth, strict_keys=strict_keys)
    elif isinstance(value, (list, tuple, set, frozenset)):
        for index, item in enumerate(value):
            odd_keys |= check(item, f"{path}[{index}]", depth, strict_keys=strict_keys)
    elif isinstance(value, float) and not math.isfinite(value):
        raise PayloadRefused(path, f"{value!r} has no JSON form")
    elif isinstance(value, str) and "\x00" in value:
        raise PayloadRefused(path, "text with a NUL character, which jsonb can't hold")
    else:
        for name in _field_names(value):
            try:
                item = getattr(value, name, None)
            except Exception as error:  # noqa: BLE001
                raise PayloadRefused(f"{path}.{name}", brief(error)) from None
            odd_keys |= check(item, f"{path}.{name}", depth, strict_keys=strict_keys)
    return odd_keys


def _field_names(value: Any) -> tuple[str, ...]:
    """Names of the data fields of a Struct, dataclass, attrs or pydantic object; none for anything else."""
    kind = type(value)
    for attribute in ("__struct_fields__", "__dataclass_fields__", "model_fields"):
        names = getattr(kind, attribute, None)
        if names is not None:
            return tuple(names)
    return tuple(field.name for field in getattr(kind, "__attrs_attrs__", ()))


class Shape:
    """How values of one annotation are written and read; decided once, followed by the hot path.

    exact    types whose values come back unchanged, so the caller may use them as they are
    decode   bytes → value of the annotated type; raises msgspec.ValidationError
    """

    __slots__ = ("annotation", "decode", "exact", "floats", "name", "plain")

    def __init__(self, annotation: Any = Any, name: str = "value") -> None:
        self.annotation = annotation
        self.name = name
        self.decode: Callable[[bytes], Any] = msgspec.json.Decoder(annotation, dec_hook=_from_builtin).decode
        self.exact = _exact_types(annotation)
        self.plain = _is_plain(annotation)
        self.floats = self.plain and "FloatType" in repr(msgspec.inspect.type_info(annotation))  # NaN would be written as null

    def encode(self, value: Any) -> bytes:
        """Checked JSON of *value*. Raises PayloadRefused. Cost: 0.3 µs where the annotation rules out surprises."""
        if self.plain:
            encoded = _encoded(value, "$")
            if b"\\u0000" in encoded or self.floats and b"null" in encoded:
                check(value, strict_keys=False)
            return encoded
        odd_keys = check(value, strict_keys=False)
        try:
            encoded = _encoded(value, "$")
        except PayloadRefused:
            check(value, strict_keys=True)  # names the path, if a key is to blame
            raise
        if odd_keys and self._read(encoded) != value:
            check(value, strict_keys=True)
        return encoded

    def explain(self, value: Any, error: Exception) -> Exception:
        """The error that `settle` raises for *value*, where a quicker way has failed with *error*."""
        try:
            self.settle(value)
        except Exception as told:
            return told
        return error

    def settle(self, value: Any) -> tuple[bytes, Any]:
        """Encode a result and give back what a replay would decode. Raises PayloadRefused or ResultInvalid, which name whose it is."""
        try:
            encoded = self.encode(value)
        except PayloadRefused as error:
            raise error.of(f"result of {self.name}") from None
        return encoded, self._read(encoded)

    def _read(self, encoded: bytes) -> Any:
        try:
            return self.decode(encoded)
        except (msgspec.ValidationError, msgspec.DecodeError, NotImplementedError, TypeError, ValueError) as error:
            raise ResultInvalid(self.name, str(error)) from None


def _exact_types(annotation: Any) -> frozenset[type]:
    if annotation is Any:
        return EXACT
    if annotation is None or annotation is type(None):
        return frozenset({type(None)})
    if annotation in (bool, int, str, float):
        return frozenset({annotation})
    parts = getattr(annotation, "__args__", None)
    if parts and type(annotation).__name__ in ("UnionType", "_UnionGenericAlias", "Union"):
        return frozenset().union(*(_exact_types(part) for part in parts))
    return frozenset()


def _is_plain(annotation: Any) -> bool:
    """Whether no value of the annotation can hold odd keys or unbounded nesting; NaN shows as null in what is written."""
    try:
        return _plain_info(msgspec.inspect.type_info(annotation), 0)
    except (TypeError, ValueError, RecursionError, NotImplementedError):
        return False


def _plain_info(info: Any, depth: int) -> bool:
    mi = msgspec.inspect
    if depth > 8:
        return False
    if isinstance(info, (mi.IntType, mi.FloatType, mi.StrType, mi.BoolType, mi.NoneType, mi.UUIDType, mi.DateTimeType, mi.DateType, mi.LiteralType, mi.EnumType)):
        return True
    if isinstance(info, (mi.StructType, mi.DataclassType, mi.TypedDictType)):
        return all(_plain_info(field.type, depth + 1) for field in info.fields)
    if isinstance(info, mi.UnionType):
        return all(_plain_info(part, depth + 1) for part in info.types)
    if isinstance(info, (mi.ListType, mi.SetType, mi.FrozenSetType, mi.VarTupleType)):
        return _plain_info(info.item_type, depth + 1)
    return False


# ── exceptions ───────────────────────────────────────────────────────────────────────────────────────────────────


class StoredError(msgspec.Struct, omit_defaults=True):
    """An exception as it is stored. `args` is absent when they are no JSON; `state` holds its public JSON attributes."""

    type: str
    message: str
    args: Any = None
    state: dict[str, Any] | None = None
    cause: "StoredError | None" = None
    traceback: str | None = None


_error_decode = msgspec.json.Decoder(StoredError).decode
_ORIGIN = "_pgsupervisor_origin"  # (traceback, fingerprint) of an error that came from another process
_PLACE = re.compile(r'^  File "(.*)", line (\d+), in (.+)$', re.MULTILINE)  # of a stored traceback
_HOME = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LEADING = ("supervisor/_fastpath/", _HOME + "_fastpath/", _HOME + "engine/")  # files whose frames call the app's code; compiled ones have names of their own
_LAST_RESORT = b'{"type":"builtins.Exception","message":"the error could not be described"}'


def encode_error(error: BaseException) -> bytes:
    """Describe *error* as JSON, at most 16 KiB, whatever it is: an unprintable exception, NUL, lone surrogates."""
    try:
        stored = _describe(error, CAUSES_MAX)
        encoded = encode_raw(stored)
        if len(encoded) > ERROR_MAX_BYTES:
            stored.traceback, stored.cause = None, None
            encoded = encode_raw(stored)
        if len(encoded) > ERROR_MAX_BYTES:
            stored.message = cut(stored.message, SHORT_MAX)
            encoded = encode_raw(stored)
        return encoded
    except BaseException:  # noqa: BLE001 - the failure path itself never fails
        return _LAST_RESORT


def _describe(error: BaseException, causes: int) -> StoredError:
    kind = type(error)
    cause = error.__cause__
    return StoredError(
        type=clean(f"{kind.__module__}.{kind.__qualname__}")[:500],
        message=cut(clean(_message(error)), MESSAGE_MAX),
        args=_fitting(list(error.args)),
        state=_fitting({k: v for k, v in vars(error).items() if not k.startswith("_")}) or None if hasattr(error, "__dict__") else None,
        cause=_describe(cause, causes - 1) if cause is not None and causes > 0 else None,
        traceback=clean(_trace(error))[-6000:],
    )


def _message(error: BaseException) -> str:
    try:
        return str(error)
    except BaseException as second:  # noqa: BLE001
        return f"(its __str__ raised {type(second).__name__})"


def brief(error: BaseException) -> str:
    """Type and message of any exception, at most 1,000 characters, fit for JSON and for another error's message."""
    name, text = type(error).__name__, clean(_message(error))
    told = text if text.startswith(f"{name}:") or name == "StepFailed" else f"{name}: {text}" if text else name
    return told if len(told) <= 1000 else f"{told[:1000]}…"


def keep_origin(error: BaseException, encoded: bytes, fingerprint: str) -> None:
    """Note on a rebuilt *error* where it was raised, in another process: what it is encoded to next says so too."""
    vars(error)[_ORIGIN] = (_error_decode(encoded).traceback or "", fingerprint)


def _origin(error: BaseException) -> tuple[str, str] | None:
    try:
        found: tuple[str, str] | None = object.__getattribute__(error, "__dict__").get(_ORIGIN)
    except BaseException:  # noqa: BLE001 - a class of the user's may hide its attributes
        return None
    return found


def _trace(error: BaseException) -> str:
    try:
        if (origin := _origin(error)) is not None:
            return origin[0]
        return "".join(traceback.format_tb(_from_the_app(error.__traceback__), limit=-12))
    except BaseException:  # noqa: BLE001
        return ""


def _from_the_app(trace: TracebackType | None) -> TracebackType | None:
    """*trace* without the engine's frames that lead to the app's code; all of it where none is the app's."""
    found = trace
    while found is not None and found.tb_frame.f_code.co_filename.startswith(_LEADING):
        found = found.tb_next
    return found or trace


def clean(text: str) -> str:
    """*text* without what PostgreSQL or JSON refuse: NUL and lone surrogates are written as escapes."""
    return text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")


def cut(text: str, length_max: int) -> str:
    """*text*, or its beginning with a mark that says how long it was."""
    return text if len(text) <= length_max else f"{text[:length_max]}… ({len(text):,} characters)"


def _fitting(values: Any) -> Any:
    """The list or dict *values* as JSON has it, its texts cut where it is too big: a long message is no other error. None where that does not help."""
    stored = _json_or_none(values)
    for length_max in TEXT_MAX:
        if stored is not None:
            break
        stored = _json_or_none({k: _shorter(v, length_max) for k, v in values.items()} if isinstance(values, dict) else [_shorter(v, length_max) for v in values])
    return stored


def _shorter(value: Any, length_max: int) -> Any:
    return cut(value, length_max) if isinstance(value, str) else value


def _json_or_none(value: Any) -> Any:
    try:
        if check(value, strict_keys=True) or len(encode_raw(value)) > ERROR_MAX_BYTES // 4:
            return None
        return msgspec.json.decode(encode_raw(value))
    except BaseException:  # noqa: BLE001
        return None


def decode_error(encoded: bytes | None) -> BaseException:
    """Rebuild a stored exception: its class if that is imported already and can be made again, else StepFailed."""
    try:
        stored = _error_decode(encoded or _LAST_RESORT)
    except msgspec.MsgspecError as error:
        return StepFailed("unreadable", f"the stored error can't be read: {error}")
    return _rebuild(stored)


def _rebuild(stored: StoredError) -> BaseException:
    kind = _imported_exception(stored.type)
    error = _construct(kind, stored) if kind is not None and stored.args is not None else None
    if error is None:
        error = StepFailed(stored.type.removeprefix("builtins."), stored.message)
    if stored.cause is not None:
        error.__cause__ = _rebuild(stored.cause)
    return error


def _imported_exception(type_name: str) -> type[Exception] | None:
    """The class of that qualified name among loaded modules. Never imports."""
    parts = type_name.split(".")
    for cut in range(len(parts) - 1, 0, -1):
        found: Any = sys.modules.get(".".join(parts[:cut]))
        if found is None:
            continue
        for part in parts[cut:]:
            found = vars(found).get(part) if hasattr(found, "__dict__") else None
        # StopIteration raised at an await would end it with a value instead
        return found if isinstance(found, type) and issubclass(found, Exception) and not issubclass(found, StopIteration) else None
    return None


def _construct(kind: type[Exception], stored: StoredError) -> Exception | None:
    """Make it without running code of its own: a class with its own `__init__` gets its args and attributes put back."""
    try:
        own = any("__init__" in vars(base) or "__new__" in vars(base) for base in kind.__mro__ if base.__module__ != "builtins")
        base: Any = next(base for base in kind.__mro__ if base.__module__ == "builtins") if own else kind
        error = base.__new__(kind) if own else kind.__new__(kind, *stored.args)
        base.__init__(error, *stored.args)
        error.args = tuple(stored.args)
        for name, value in (stored.state or {}).items():
            setattr(error, name, value)
        _message(error)
        return error if isinstance(error, kind) else None
    except Exception:  # noqa: BLE001 - any class can refuse its own arguments
        return None


def fingerprint(error: BaseException) -> str:
    """12 hex digits, equal for errors of one type raised at one place, whatever their message says."""
    if (origin := _origin(error)) is not None:
        return origin[1]
    place = ""
    trace = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        place = f"{code.co_filename}:{code.co_name}"
        trace = trace.tb_next
    return blake2b(f"{type(error).__module__}.{type(error).__qualname__}@{place}".encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()


def told(encoded: bytes | None) -> tuple[str, str]:
    """What groups stored errors of runs, and what to say of one: a fingerprint of type and line, and type with message.

    The last line known of a run's error is the workflow's that called the step: the number tells its steps apart.
    """
    try:
        stored = _error_decode(encoded or _LAST_RESORT)
    except msgspec.MsgspecError as error:
        stored = StoredError("unreadable", f"the stored error can't be read: {error}")
    places = _PLACE.findall(stored.traceback or "")
    at = ":".join(places[-1]) if places else ""
    digest = blake2b(f"{stored.type}@{at}".encode("utf-8", "backslashreplace"), digest_size=6).hexdigest()
    return digest, f"{stored.type.removeprefix('builtins.')}: {stored.message}" if stored.message else stored.type


def crash_fingerprint(crash: bytes) -> str:
    """12 hex digits, equal for crashes of one kind in one step; *crash* is the JSON that is recorded of one."""
    facts = msgspec.json.decode(crash)
    return blake2b(f"WorkerCrash {facts['signal']} {facts['exit_code']} in {facts['step']}".encode(), digest_size=6).hexdigest()