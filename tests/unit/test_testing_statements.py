"""The test kit knows what the engine sends: a statement, or a question of a client, that is new there is missed here and not in a user's test."""

from __future__ import annotations

import inspect

import pytest

from supervisor.db.client_calls import Questions
from supervisor.engine.batch import HOT
from supervisor.testing.questions import MemoryQuestions
from supervisor.testing.statements import Statements

# what a client asks that has no meaning without a database; NotInMemory says so
WITHOUT = {"filtered", "announcement", "announcement_of_signals", "announcement_of_ends", "refusal", "text", "met", "prepares", "measure"}


@pytest.mark.parametrize("name", HOT)
def test_every_statement_of_a_worker_is_known(name):
    assert hasattr(Statements, f"_{name}"), f"supervisor/testing/statements.py does not know {name}; see sql/queries/loop.sql"


@pytest.mark.parametrize("name", [name for name, _ in inspect.getmembers(Questions, inspect.isfunction) if not name.startswith("_")])
def test_every_question_of_a_client_is_known(name):
    known = {name for name, _ in inspect.getmembers(MemoryQuestions, inspect.isfunction)}
    assert name in known or name in WITHOUT, f"supervisor/testing/questions.py does not answer {name}; add it, or to WITHOUT"
