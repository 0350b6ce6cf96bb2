"""What operators' forms do beside the client's verbs: messages and answers to tokens whose reason is kept in the audit, filters that are kept by name.

In a transaction of the caller's, which bounds its time. Announced at its commit by what is called, for a form is sent by a person and seldom.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

import psycopg

from supervisor.db.client_calls import Questions, What
from supervisor.db.operator_calls import COMPLETED, FAILED
from supervisor.db.statements import Sql


def send(conn: psycopg.Connection[Any], schema: str, what: What, run_id: UUID, name: str, payload: bytes, message_id: str | None, reason: str, actor: str) -> bool:
    """Send a signal or an update. False where one of that name and id is there. Raises RunUnknown, RunClosed, InputInvalid."""
    return _asked(conn, schema, "form_send", f"{what} {name!r} to run {run_id}", "client", what, run_id, name, payload, message_id, reason, actor)


def complete(conn: psycopg.Connection[Any], schema: str, run_id: UUID, seq: int, value: bytes, reason: str, actor: str) -> bool:
    """Give a step that waits for its token a result. Raises OperationRefused, TokenClosed."""
    return _asked(conn, schema, "form_finish", f"complete of run {run_id}", "operator", run_id, seq, COMPLETED, value, True, reason, actor)


def fail(conn: psycopg.Connection[Any], schema: str, run_id: UUID, seq: int, error: bytes, retry: bool, reason: str, actor: str) -> bool:
    """Fail the try that waits for its token. Raises as `complete`."""
    return _asked(conn, schema, "form_finish", f"fail of run {run_id}", "operator", run_id, seq, FAILED, error, retry, reason, actor)


def save_view(conn: psycopg.Connection[Any], schema: str, name: str, asked: str, actor: str) -> None:
    """Keep a filter by a name, in place of one that has it. Raises InputInvalid."""
    _asked(conn, schema, "form_save_view", "the saved view", "operator", name, asked, actor)


def forget_view(conn: psycopg.Connection[Any], schema: str, name: str) -> bool:
    """Keep it no longer. False where there is none of that name."""
    return _asked(conn, schema, "form_forget_view", "the saved view", "operator", name)


def _asked(conn: psycopg.Connection[Any], schema: str, block: str, what: str, role: str, *values: object) -> bool:
    """What the only function of a block answers."""
    try:
        return bool(psycopg.RawCursor(conn).execute(Sql(schema).get(block).encode(), values).fetchall()[0][0])
    except psycopg.DatabaseError as error:
        if error.sqlstate is None or error.sqlstate.startswith(("57", "55", "40", "08")):
            raise  # of the transaction, not of what is asked
        raise Questions(schema).refusal(error, what, role) from None
