"""The test kit knows what the engine sends: a statement, or a question of a client, that is new there is missed here and not in a user's test."""

from __future__ import annotations

import inspect
import re
from types import ModuleType

import pytest

from supervisor.db import operator_calls, schedule_calls, version_calls
from supervisor.db.client_calls import Questions
from supervisor.engine.batch import HOT
from supervisor.testing.blocks import Blocks
from supervisor.testing.questions import MemoryQuestions
from supervisor.testing.statements import Statements
from supervisor.testing.tables import Tables

# what a client asks that has no meaning without a database; NotInMemory says so
WITHOUT = {"announcement", "announcement_of_signals", "announcement_of_ends", "refusal", "text", "met", "prepared", "measure"}


@pytest.mark.parametrize("name", HOT)
def test_every_statement_of_a_worker_is_known(name):
    assert hasattr(Statements, f"_{name}"), f"supervisor/testing/statements.py does not know {name}; see sql/queries/loop.sql"


@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(Questions, inspect.isfunction) if not name.startswith("_")])
def test_every_question_of_a_client_is_known(name):
    known = {name for name, _ in inspect.getmembers(MemoryQuestions, inspect.isfunction)}
    assert name in known or name in WITHOUT, f"supervisor/testing/questions.py does not answer {name}; add it, or to WITHOUT"


def blocks_of(*modules: ModuleType) -> set[str]:
    return {name for module in modules for name in re.findall(r'"(client_\w+)"', inspect.getsource(module))}


def test_every_other_statement_of_a_client_is_known():
    """Schedules fire by a leader, and there is none in memory."""
    known = set(Blocks(Tables(lambda: 0), b"", lambda: b"")._known)
    missed = (blocks_of(operator_calls, version_calls) | {"client_pause_queue", "client_resume_queue"}) - known
    assert len(known) > 5 and not missed, f"supervisor/testing/blocks.py does not know {missed}; see sql/queries/client.sql"
    assert not blocks_of(schedule_calls) & known
