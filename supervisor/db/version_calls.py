"""What a client asks about versions of workflows: which there are, and giving runs of one to another."""

from __future__ import annotations

import uuid
from typing import NamedTuple

from supervisor.db.client_calls import Ask, Rows, Talk


class Slice(NamedTuple):
    """Runs of one version that were looked at: how many were moved, how many somebody has, and the last of them; None: that was all."""

    moved: int
    claimed: int
    last: uuid.UUID | None


def versions(workflow: str | None) -> Ask[Rows]:
    """Rows of the view versions, of one workflow or all, the newest first; a viewer's right is needed."""

    def talk(tries: int) -> Talk[Rows]:
        return (yield "client_versions", (workflow,))

    return Ask(talk, "the list of versions, which reads the views", role="viewer")


def move_runs(workflow: str, from_version: str | None, to_version: str, after: uuid.UUID | None, dry_run: bool, reason: str | None, actor: str | None) -> Ask[Slice]:
    """Move the next slice of a version's runs. Raises UnknownWorkflow, VersionUnknown, InputInvalid.

    Repeated when the session was lost: what the first try moved is not counted then.
    """

    def talk(tries: int) -> Talk[Slice]:
        rows = yield "client_move_runs", (workflow, from_version, to_version, after, dry_run, reason, actor)
        return Slice(*rows[0])

    return Ask(talk, f"move of runs of {workflow!r}", writes=True, role="operator")


__all__ = ["Slice", "move_runs", "versions"]
