"""The verbs, said once: what each asks of the database, in which order, and what it makes of the answers.

Generators without I/O: `Client` carries them over its session, `AsyncClient` over one of an event loop, `Within` over a
connection of the caller's. Owns the order (clock, start, conflict) and the errors; knows no sessions, locks or handles.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec

from supervisor.api.asked import KEY_MAX, Asked, Chunk, Parameters, check_text, encode_by_name, encodes, hash_of, record_encoder
from supervisor.api.handles import Moved, Progress, RunInfo, VersionInfo
from supervisor.core import codec
from supervisor.core.errors import ClockSkew, KeyMismatch, RunUnknown, UnknownWorkflow

if TYPE_CHECKING:
    from supervisor.api.hints import Hints
    from supervisor.api.signals import Message
    from supervisor.api.updates import UpdateMessage
    from supervisor.core.traces import Trace
    from supervisor.db.client_calls import Conflict, Outcome, QueryStanding, Questions, Sent, UpdateStanding, Verb, What
    from supervisor.db.operator_calls import Done, Operated

T = TypeVar("T")

LIST_MAX = 10_000
LIST_S = 30.0


class Started(msgspec.Struct, frozen=True):
    """What became of one start."""

    run_id: uuid.UUID
    created: bool
    asked: Asked
    key: str | None
    at: float  # time.monotonic()


class Verbs:
    """The verbs of one client. *hints* collects what is to be announced; None where nothing may be."""

    def __init__(self, questions: Questions, hints: Hints | None) -> None:
        self.questions, self._hints = questions, hints
        self._parameters: dict[str, Parameters] = {}

    @property
    def announces(self) -> bool:
        """Whether hosts may be told of what is done: not within a transaction of the caller's."""
        return self._hints is not None

    # ── start ────────────────────────────────────────────────────────────────────────────────────────────────

    def start(self, asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Verb[Started]:
        return (yield from self.start_encoded(asked, (yield from self._input(asked, args, kwargs))))

    def _input(self, asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Verb[bytes]:
        if asked.definition is not None:
            payload: bytes = asked.definition.encode_input(args, kwargs)
            return payload
        return encode_by_name(asked.name, (yield from self.parameters(asked.name)), args, kwargs)

    def _by_the_clock(self, start: Callable[[], Verb[T]]) -> Verb[T]:
        """Start under ids of the database's time; once more, with ids anew, where the clock was set since the last measure."""
        try:
            return (yield from start())
        except ClockSkew:
            yield from self.questions.measure_anew()
            return (yield from start())

    def signal(self, run_id: uuid.UUID, message: Message, trace: Trace | None = None) -> Verb[bool]:
        """Send a message to a run, in the span *trace*. False where one of its name and id was there already."""
        tell = None if self._hints is None or trace is not None else self._hints.may()
        sent = yield from self.questions.signal(run_id, message.name, message.payload, message.id or uuid.uuid4().hex, tell, trace)
        if not tell:
            self.tell(sent)
        return sent.stored or message.id is None  # without an id of the caller's, what was there is its own first try

    def signals(self, messages: Sequence[tuple[uuid.UUID, Message, None]]) -> Verb[list[bool]]:
        """Send messages, all or none, and answer for each as `signal`."""
        sent = yield from self.questions.signals([(run_id, each.name, each.payload, each.id or uuid.uuid4().hex) for run_id, each, _ in messages])
        for one in sent:
            self.tell(one)
        return [one.stored or each.id is None for one, (_, each, _) in zip(sent, messages, strict=True)]

    def update(self, run_id: uuid.UUID, message: UpdateMessage[Any], trace: Trace | None = None) -> Verb[None]:
        """Send an update to a run, in the span *trace*; one of its name and id that is there already is the same."""
        self.tell((yield from self.questions.update(run_id, message.name, message.payload, message.id, trace)))

    def send_with_start(self, what: What, message: Message | UpdateMessage[Any], asked: Asked, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Verb[Started]:
        payload = yield from self._input(asked, args, kwargs)
        key = asked.keyed()
        given = payload, key, None if key is None else hash_of(payload), message.name, message.payload, message.id or uuid.uuid4().hex

        def start() -> Verb[tuple[bytes, uuid.UUID, Sent]]:
            (run_id,) = yield from self.questions.run_ids(1)
            return (run_id, *(yield from self.questions.send_start(what, asked.name, run_id, *given, **asked.how)))

        run_id, named, sent = yield from self._by_the_clock(start)
        created = named.bytes == run_id
        if created and self._hints is not None:
            self._hints.add(asked.name, asked.queue, 1, asked.delay_s)
        self.tell(sent)
        return Started(named, created, asked, key, time.monotonic() if created else 0.0)

    def tell(self, sent: Sent) -> None:
        """Have it announced, by whoever may: to the worker that has the run, or to all that a run was woken."""
        if self._hints is None or not sent.stored:
            return
        if sent.owner is not None:
            self._hints.signalled(sent.owner)
        elif sent.woken:
            self._hints.add(sent.workflow, sent.queue, 1, 0.0)

    def tell_operated(self, done: Operated) -> None:
        """Likewise, of what an operator did."""
        if self._hints is not None and done.did:
            if done.owner is not None:
                self._hints.signalled(done.owner)
            if done.workflow is not None:
                self._hints.add(done.workflow, done.queue, 1, 0.0)

    def tell_slice(self, done: Sequence[Done]) -> None:
        """Likewise, of many runs: who waits for those that have ended, the workers that have some of them, all of what was woken."""
        if self._hints is not None:
            self._hints.operated(done)

    def start_record(self, asked: Asked, record: Any) -> Verb[Started]:
        encode = yield from self.encoder(asked)
        return (yield from self.start_encoded(asked, encode(record)))

    def encoder(self, asked: Asked) -> Verb[Callable[[Any], bytes]]:
        """What makes an input of a record."""
        if asked.definition is not None:
            encode: Callable[[Any], bytes] = asked.definition.encode_record
            return encode
        return record_encoder(asked.name, (yield from self.parameters(asked.name)))

    def start_encoded(self, asked: Asked, payload: bytes) -> Verb[Started]:
        key = asked.keyed()
        if key is None and asked.batch is None and asked.attributes is None and asked.trace is None:
            return (yield from self._start_one(asked, payload))
        chunk = Chunk([payload]) if key is None else Chunk([payload], [key], [hash_of(payload)])
        ids, conflicts = yield from self.start_chunk(asked, chunk)
        run_id = uuid.UUID(bytes=ids[0])
        if conflicts:
            if not conflicts[0].matches:
                raise KeyMismatch(asked.name, key or "", conflicts[0].run_id)
            return Started(conflicts[0].run_id, False, asked, key, 0.0)
        return Started(run_id, True, asked, key, time.monotonic())

    def starts(self, calls: Sequence[tuple[Asked, bytes]]) -> Verb[list[Started | KeyMismatch]]:
        """Start runs of one workflow that are to be started in the same way but for their keys, in one transaction; what each would be told alone."""
        asked, keys = calls[0][0], [each.keyed() for each, _ in calls]
        inputs = [payload for _, payload in calls]
        chunk = Chunk(inputs) if not any(keys) else Chunk(inputs, keys, [hash_of(payload) for payload in inputs])
        ids, conflicts = yield from self.start_chunk(asked, chunk)
        now = time.monotonic()
        found: list[Started | KeyMismatch] = [
            Started(uuid.UUID(bytes=run_id), True, each, key, now) for run_id, (each, _), key in zip(ids, calls, keys, strict=True)
        ]
        for at, run_id, matches in conflicts:
            key = keys[at] or ""
            found[at] = Started(run_id, False, calls[at][0], key, 0.0) if matches else KeyMismatch(asked.name, key, run_id)
        return found

    def _start_one(self, asked: Asked, payload: bytes) -> Verb[Started]:
        run_id = yield from self._by_the_clock(lambda: self._told(asked, payload))
        return Started(uuid.UUID(bytes=run_id), True, asked, None, time.monotonic())

    def _told(self, asked: Asked, payload: bytes) -> Verb[bytes]:
        """Start it and tell the hosts at once, where they may be told of one more."""
        (run_id,) = yield from self.questions.run_ids(1)
        hint = None if self._hints is None else self._hints.take_with(asked.name, asked.queue, asked.delay_s)
        yield from self.questions.start_one(
            asked.name, run_id, payload, queue=asked.queue, priority=asked.priority, delay_s=asked.delay_s, hint=hint
        )
        if self._hints is not None and hint is None:
            self._hints.add(asked.name, asked.queue, 1, asked.delay_s)
        return run_id

    def start_chunk(self, asked: Asked, chunk: Chunk) -> Verb[tuple[list[bytes], list[Conflict]]]:
        """Start a chunk of runs in one transaction: their ids, and the keys that named other runs already."""
        return (yield from self._by_the_clock(lambda: self._chunk(asked, chunk)))

    def _chunk(self, asked: Asked, chunk: Chunk) -> Verb[tuple[list[bytes], list[Conflict]]]:
        ids = yield from self.questions.run_ids(len(chunk.inputs))
        ended: list[bytes] = []
        conflicts = yield from self.questions.start(asked.name, ids, chunk.inputs, chunk.keys, chunk.hashes, ended=ended, **asked.how)
        # a start that is repeated meets its own key
        others = [conflict for conflict in conflicts if conflict.run_id.bytes != ids[conflict.at]]
        if self._hints is not None:
            self._hints.add(asked.name, asked.queue, len(ids) - len(others), asked.delay_s)
            self._hints.ended(ended)
        return ids, others

    def parameters(self, name: str) -> Verb[Parameters]:
        """What a registered workflow takes. Raises UnknownWorkflow."""
        if name not in self._parameters:
            stored = None
            if "\x00" not in name and encodes(name):
                stored = yield from self.questions.parameters(name)
            if stored is None:
                raise UnknownWorkflow(name)
            self._parameters[name] = msgspec.json.decode(stored, type=list[dict[str, Any]])
        return self._parameters[name]

    # ── ask ──────────────────────────────────────────────────────────────────────────────────────────────────

    def status(self, run_id: uuid.UUID, unsure: bool = False) -> Verb[RunInfo]:
        """Of a run that continued as new ones the newest's. unsure: it was started in a transaction that may not have committed."""
        found = yield from self.itself(run_id, unsure)
        if found.status == "continued":
            newest = yield from self.questions.newest(run_id)
            rows = yield from self.questions.find(ids=[newest.bytes], limit=1)
            return RunInfo(*rows[0]) if rows else found
        return found

    def itself(self, run_id: uuid.UUID, unsure: bool = False) -> Verb[RunInfo]:
        """Of that very run, whatever it went on as."""
        found = yield from self.questions.find(ids=[run_id.bytes], limit=1)
        if not found:
            raise RunUnknown(f"{run_id} yet: it was started in a transaction that has not committed or was rolled back" if unsure else run_id)
        return RunInfo(*found[0])

    def runs(
        self, limit: int, filter: str | None, timeout_s: float, before: uuid.UUID | None, workflow: str | None, status: str | None, key: str | None
    ) -> Verb[list[RunInfo]]:
        limit = min(limit, LIST_MAX)
        if filter is None:
            found = yield from self.questions.find(workflow=workflow, status=status, key=key, before=before, limit=limit)
        else:
            from supervisor.core.filters import Compare, both, parse_list

            equal = (("workflow", workflow), ("status", status), ("key", key))
            fits, order = parse_list(filter)
            asked = both(fits, *(Compare(name, "=", (value,)) for name, value in equal if value is not None))
            found = yield from self.questions.filtered(asked, before, limit, timeout_s, order)
        return [RunInfo(*each) for each in found]

    def home(self) -> Verb[str]:
        return (yield from self.questions.home())

    def outcomes(self, ids: Sequence[bytes], patience_s: float = 0.0) -> Verb[list[Outcome]]:
        return (yield from self.questions.outcomes(ids, patience_s))

    def published(self, run_id: uuid.UUID) -> Verb[dict[str, Any]]:
        found = yield from self.questions.published(run_id)
        return {key: msgspec.json.decode(value) for key, value in found}

    def published_value(self, run_id: uuid.UUID, key: str, kind: Any) -> Verb[Any]:
        """The value of one key as a *kind*; None where the run has not published it."""
        check_text("published", "key", key, KEY_MAX)
        found = yield from self.questions.published(run_id, key)
        return codec.Shape(kind, f"published value {key!r}").decode(found[0][1]) if found else None

    def progress(self, run_id: uuid.UUID) -> Verb[Progress | None]:
        found = yield from self.questions.progress(run_id)
        return None if found is None else msgspec.json.decode(found, type=Progress)

    def attributes(self, run_id: uuid.UUID) -> Verb[dict[str, Any]]:
        found: dict[str, Any] = msgspec.json.decode((yield from self.questions.attributes(run_id)))
        return found

    def ask_query(self, query_id: uuid.UUID, run_id: uuid.UUID, name: str, payload: bytes | None, within_s: float) -> Verb[str]:
        return (yield from self.questions.ask_query(query_id, run_id, name, payload, within_s))

    def tell_of_query(self, workflow: str) -> Verb[None]:
        return (yield from self.questions.tell_of_query(workflow))

    def update_standing(self, run_id: uuid.UUID, name: str, update_id: str) -> Verb[UpdateStanding | None]:
        return (yield from self.questions.update_standing(run_id, name, update_id))

    def query_answer(self, query_id: uuid.UUID) -> Verb[QueryStanding | None]:
        return (yield from self.questions.query_answer(query_id))

    def forget_query(self, query_id: uuid.UUID) -> Verb[None]:
        return (yield from self.questions.forget_query(query_id))

    def outcome_now(self, run_id: uuid.UUID, within: str) -> Verb[Outcome]:
        """How a run ended. Raises TimeoutError that says where it is when it has not; *within* says by when that was wanted."""
        outcomes = yield from self.questions.outcomes([run_id.bytes])  # it may have ended since it was last asked about
        if outcomes:
            return outcomes[0]
        now = yield from self.status(run_id)
        raise TimeoutError(
            f"run {run_id} of {now.workflow} has not ended {within}; it is {now.status}"
            + (f" ({now.wait})" if now.wait else "")
            + (f" at step {now.step}" if now.step else "")
            + f": python -m supervisor show {run_id}"
        )

    def versions(self, workflow: str | None) -> Verb[list[VersionInfo]]:
        from supervisor.db import version_calls

        return [VersionInfo(*each) for each in (yield from version_calls.versions(workflow))]

    def move(
        self, workflow: str, from_version: str | None, to_version: str, dry_run: bool, reason: str | None, actor: str | None,
        tell: Callable[[Moved], object] | None = None,
    ) -> Verb[Moved]:  # fmt: skip
        """Slice by slice; what was moved stays so, whatever becomes of the next. *tell* is called with how far it came."""
        from supervisor.db import version_calls

        moved = claimed = 0
        last: uuid.UUID | None = None
        while True:
            part = yield from version_calls.move_runs(workflow, from_version, to_version, last, dry_run, reason, actor)
            moved, claimed, last = moved + part.moved, claimed + part.claimed, part.last
            if tell is not None:
                tell(Moved(moved, claimed))
            if last is None:
                return Moved(moved, claimed)

    def cancel(self, run_id: uuid.UUID, reason: str | None, actor: str | None) -> Verb[bool]:
        """Whether it was live and not cancelled before."""
        told = yield from self.questions.cancel(run_id, reason, actor)
        if self._hints is not None:
            self._hints.operated(told)
        return bool(told)

    def terminate(self, run_id: uuid.UUID, reason: str | None, actor: str | None) -> Verb[bool]:
        done = yield from self.questions.terminate(run_id, reason, actor)
        if done and self._hints is not None:
            self._hints.ended([run_id.bytes])
        return done
