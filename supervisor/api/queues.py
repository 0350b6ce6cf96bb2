"""Queues that are paused and resumed: the verbs of both kinds of client. What a pause is stands in sql (0042), who looks at it in sql/queries/loop.sql."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from supervisor.api.verbs import Verbs
    from supervisor.db.client_calls import Verb

T = TypeVar("T")


def switch(verb: str, name: str, reason: str | None, actor: str | None) -> Verb[bool]:
    from supervisor.db import queue_calls

    done: bool = yield from getattr(queue_calls, verb)(name, reason, actor)
    return done


class QueueVerbs:
    """The verbs of `Client` and `Within`. *reason* and *actor* are kept in the view audits, with the role of the session."""

    def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    def pause_queue(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Claim nothing more from a queue until it is resumed; runs that workers have in memory go on, those that wake wait for the resume.

        An operator's verb. False where it is paused: who paused it first, and why, stays. One round trip, however many runs stand in it.
        Raises QueueUnknown, PermissionMissing.
        """
        return self._carry(lambda verbs: switch("pause", name, reason, actor))

    def resume_queue(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Claim from it again: hosts that serve it begin in about 20 ms, in your own transaction as soon after its commit.

        An operator's verb. False where it is not paused. Raises QueueUnknown, PermissionMissing.
        """
        return self._carry(lambda verbs: switch("resume", name, reason, actor))


class AsyncQueueVerbs:
    """`QueueVerbs`, awaited."""

    async def _carry(self, make: Callable[[Verbs], Verb[T]]) -> T:
        raise NotImplementedError

    async def pause_queue(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Claim nothing more from a queue until it is resumed; see `Client.pause_queue`."""
        return await self._carry(lambda verbs: switch("pause", name, reason, actor))

    async def resume_queue(self, name: str, reason: str | None = None, *, actor: str | None = None) -> bool:
        """Claim from it again; see `Client.resume_queue`."""
        return await self._carry(lambda verbs: switch("resume", name, reason, actor))
