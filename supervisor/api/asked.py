"""What is to be started: the workflow, how, and its input as stored bytes; and the value of a run that ended.

Decides and encodes, does no I/O: every client, on threads, on an event loop or in the caller's transaction, does this first.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec

from supervisor.core import codec, kinds, traces
from supervisor.core.attributes import checked
from supervisor.core.errors import ClientInsideRun, InputInvalid, RunCancelled, RunFailed, RunTerminated, RunTimedOut, RunUnknown
from supervisor.core.registry import QUEUE_NAME, is_queue_name
from supervisor.core.retry import SECONDS_MAX

if TYPE_CHECKING:
    from supervisor.db.client_calls import Outcome

CHUNK_RUNS = 5_000  # runs per transaction of start_many: 40 ms of the server's time, 1 MB on the wire
KEY_MAX = 500
BATCH_NAME_MAX = 200

OnConflict = Literal["return", "reject", "replace", "restart_failed"]
KeyOf = Callable[[Any], "str | None"]
Parameters = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class How:
    """How a run is to be started, whatever names its workflow."""

    key: str | None = None
    queue: str | None = None
    priority: int = 5
    delay_s: float = 0.0
    batch: str | None = None
    on_conflict: OnConflict = "return"
    attributes: bytes | None = None  # a JSON object
    trace: traces.Trace | None = None  # whose span it is started in, where that is not the one that the calling code is in

    @property
    def how(self) -> dict[str, Any]:
        """What is said once for many runs: all but the key."""
        return {name: getattr(self, name) for name in _OF_MANY}


_OF_MANY = tuple(each.name for each in fields(How) if each.name != "key")


@dataclass(frozen=True, kw_only=True)
class Named(How):
    """A workflow by its registered name, with how it is to be started; for programs that do not import it."""

    workflow: str


@dataclass(frozen=True, kw_only=True)
class Asked(How):
    """What is to be started, and how. `definition` is None for a workflow that is not imported here."""

    name: str
    definition: Any = None

    @classmethod
    def of(cls, asked: Any) -> Asked:
        """What a caller gave in the workflow's place, and the span that it is in. Raises InputInvalid."""
        made = cls._of(asked)
        if made.trace is None and (trace := traces.caller()) is not None:
            return replace(made, trace=trace)
        return made

    @classmethod
    def _of(cls, asked: Any) -> Asked:
        if isinstance(asked, str):
            return cls(name=asked)
        if hasattr(asked, "encode_input"):
            return cls(name=asked.name, definition=asked)
        if isinstance(asked, How) and hasattr(asked, "workflow"):
            what = asked.workflow
            name, definition = (what, None) if isinstance(what, str) else (what.name, what)
            made = cls(name=name, definition=definition, key=asked.key, **asked.how)
            made.check()
            return made
        raise InputInvalid("start", f"{asked!r} is no workflow: give a function decorated with @workflow, its .options(…), or a name")

    def check(self) -> None:
        if self.on_conflict not in get_args(OnConflict):
            raise InputInvalid(self.name, f"on_conflict={self.on_conflict!r} is none of {', '.join(get_args(OnConflict))}")
        if not 0 <= self.delay_s < SECONDS_MAX:
            raise InputInvalid(self.name, f"delay of {self.delay_s!r} s: give 0 or more, and less than {SECONDS_MAX:g} (317 years)")
        if self.queue is not None and not is_queue_name(self.queue):
            raise InputInvalid(self.name, f"queue {self.queue!r}: give {QUEUE_NAME}")
        if self.batch is not None:
            check_text(self.name, "batch", self.batch, BATCH_NAME_MAX)

    def keyed(self) -> str | None:
        """Its key, checked: a policy for a key's conflict means nothing without one."""
        if self.key is None and self.on_conflict != "return":
            raise InputInvalid(self.name, f"on_conflict={self.on_conflict!r} says what a key does that names a run already; give key=, too")
        return check_key(self.name, self.key)


class Chunk(msgspec.Struct):
    """Some items of `start_many`, encoded."""

    inputs: list[bytes]
    keys: list[str | None] | None = None
    hashes: list[bytes] | None = None


def chunk_of(name: str, encode: Callable[[Any], bytes], items: Iterator[Any], key: KeyOf | None, runs_max: int = CHUNK_RUNS) -> Chunk | None:
    """Encode up to *runs_max* items; None when there are no more."""
    inputs: list[bytes] = []
    keys: list[str | None] = []
    add = inputs.append
    for item in items:
        add(encode(item))
        if key is not None:
            keys.append(check_key(name, key(item)))
        if len(inputs) == runs_max:
            break
    if not inputs:
        return None
    if key is None:
        return Chunk(inputs)
    return Chunk(inputs, keys, [hash_of(each) for each in inputs])


def hash_of(payload: bytes) -> bytes:
    """What is kept of an input beside its key, so that another input under the same key is noticed."""
    return sha256(payload).digest()


def check_key(workflow: str, key: object) -> str | None:
    return None if key is None else check_text(workflow, "key", key)


def check_text(workflow: str, what: str, text: object, length_max: int = KEY_MAX) -> str:
    """*text*, if it can name something in the database."""
    if not isinstance(text, str) or not 0 < len(text) <= length_max or "\x00" in text or not encodes(text):
        raise InputInvalid(workflow, f"{what} {text!r} must be text of 1 to {length_max} characters, without NUL and lone surrogates")
    return text


def encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def encode_attributes(attributes: Mapping[str, Any] | None) -> bytes | None:
    """The stored form of a start's attributes. Raises InputInvalid, PayloadRefused."""
    return None if attributes is None else codec.encode(checked(attributes), "attributes")


# ── a workflow that is not imported here: its parameters are in the catalogue ────────────────────────────────────


def encode_by_name(name: str, parameters: Parameters, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """The input of a call, by the parameters that the catalogue has. Raises InputInvalid or PayloadRefused."""
    names = [each["name"] for each in parameters]
    if len(args) > len(names):
        raise InputInvalid(name, f"it takes {len(names)} arguments ({', '.join(names) or 'none'}) and {len(args)} were given")
    values = dict(zip(names, args))
    for given, value in kwargs.items():
        if given in values or given not in names:
            why = "was given twice" if given in values else f"is not one of its parameters ({', '.join(names) or 'it has none'})"
            raise InputInvalid(name, f"{given!r} {why}")
        values[given] = value
    missing = [each["name"] for each in parameters if each.get("required") and each["name"] not in values]
    if missing:
        raise InputInvalid(name, f"required but not given: {', '.join(missing)}")
    for each in parameters:
        if "schema" in each and each["name"] in values and not kinds.fits(each["schema"], values[each["name"]]):
            raise InputInvalid(name, f"parameter {each['name']!r}: {kinds.refusal(each['schema'], values[each['name']])}")
    return codec.encode(values)


def record_encoder(name: str, parameters: Parameters) -> Callable[[Any], bytes]:
    """The encoder of records: the only parameter's value where there is one parameter, or a dict by name."""
    names = [each["name"] for each in parameters]

    def encode(record: Any) -> bytes:
        if len(names) == 1 and not kinds.by_name(names[0], parameters[0].get("schema"), record):
            return encode_by_name(name, parameters, (record,), {})
        if not isinstance(record, dict):
            raise InputInvalid(name, f"an item must be a dict with the parameters {', '.join(names)}, not {type(record).__name__}")
        return encode_by_name(name, parameters, (), record)

    return encode


# ── a run ────────────────────────────────────────────────────────────────────────────────────────────────────────


def value_of(outcome: Outcome, workflow: str, definition: Any) -> Any:
    """The value of a completed run; the error of any other."""
    if outcome.status == "completed":
        payload = b"null" if outcome.result is None else outcome.result
        return msgspec.json.decode(payload) if definition is None else definition.decode_result(payload)
    if outcome.status in ("cancelled", "terminated"):
        kind = RunCancelled if outcome.status == "cancelled" else RunTerminated
        why = "" if outcome.result is None else str(codec.decode_error(outcome.result))
        raise kind(outcome.run_id, workflow, why, outcome.ended_at)
    if outcome.status == "continued":
        raise RunFailed(outcome.run_id, workflow, "it has no result, for it continued as a new run")
    if outcome.status == "timed_out":
        raise RunTimedOut.of(outcome.run_id, workflow, outcome.ended_at)
    cause = codec.decode_error(outcome.result)
    raise RunFailed(outcome.run_id, workflow, codec.brief(cause), cause=cause) from cause


def id_of(run: Any) -> uuid.UUID:
    """The id of a handle, or an id itself. Raises RunUnknown for what is neither."""
    run = getattr(run, "id", run)
    if isinstance(run, uuid.UUID):
        return run
    try:
        return uuid.UUID(run)
    except (ValueError, AttributeError, TypeError):
        raise RunUnknown(f"{run!r}, which is not a run id (a uuid)") from None


def registered(workflow: str) -> Any:
    """The workflow of that name if this process has it; never imports."""
    from supervisor.core import registry

    return registry.find(workflow)


def refuse_inside_run() -> None:
    words = sys.modules.get("supervisor.api.words")  # not imported: nobody can be inside of a run
    if words is not None and words.inside_run():
        raise ClientInsideRun(
            "workflow code used a client; a replay would do it again: start a child with `await start(workflow, …)` or call it, "
            "or put the client's call into a step"
        )
