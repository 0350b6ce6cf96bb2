"""What users import: `from supervisor import workflow, step, sleep, …` passes through here, each name on first use."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

_HOMES = {
    "supervisor.api.decorators": ("StartOptions", "Workflow", "step", "workflow"),
    "supervisor.api.words": ("ChildRun", "compensate", "continue_as_new", "current", "deprecate_patch", "first", "gather", "heartbeat", "now", "patched", "progress", "publish", "random", "set_attributes", "shield", "sleep", "sleep_until", "start", "uuid4"),
    "supervisor.api.signals": ("Signal",),
    "supervisor.api.transaction": ("AsyncTransaction", "Transaction"),
    "supervisor.api.client": ("Client",),
    "supervisor.api.client_async": ("AsyncClient",),
    "supervisor.api.bulk": ("Bulk",),
    "supervisor.api.handles": ("AsyncBatch", "AsyncRun", "Batch", "Moved", "Progress", "Run", "RunInfo", "VersionInfo"),
    "supervisor.api.queries": ("Query",),
    "supervisor.api.schedules": ("Schedule", "ScheduleFire", "ScheduleInfo", "ScheduleTerms"),
    "supervisor.api.updates": ("AsyncUpdateHandle", "Update", "UpdateHandle", "handlers_finished"),
    "supervisor.core.retry": ("Retry",),
    "supervisor.core.cancelled": ("Cancelled",),
    "supervisor.core.context": ("Current",),
    "supervisor.core.errors": (
        "AsyncioInWorkflow", "BatchUnknown", "ClientInsideRun", "ClientMisused", "ClockSkew", "CompensationFailed", "CompensationPending", "CompleteLater", "CompletionFailed", "ConfigInvalid", "DatabaseUnavailable", "DefinitionError", "FilterInvalid", "HeartbeatMissed", "HistoryTooLarge", "HistoryTooLong", "HistoryUnreadable", "InputInvalid", "KeyExists", "KeyMismatch",
        "MissingExtra", "NonRetryable", "OperationRefused", "OutsideWorkflow", "PayloadRefused", "PermissionMissing", "QueryFailed", "QueryReadOnly", "QueryTooLong", "QueryUnknown", "ReadTimeout", "ReplayMismatch", "ResultInvalid", "RetryAfter", "RunCancelled", "RunClosed",
        "QueueUnknown", "RunEnded", "RunFailed", "RunTerminated", "RunTimedOut", "RunUnknown", "ScheduleExists", "ScheduleInvalid", "ScheduleUnknown", "SchemaMissing", "SchemaTooNew", "SchemaTooOld", "StepDied", "StepFailed", "StepInterrupted", "StepTimeout",
        "SupervisorError", "TokenClosed", "TokenUnknown", "TransactionMisused", "UnknownWorkflow",
        "UpdateFailed", "UpdateRejected", "UpdateUnfinished", "UpdateUnknown", "VersionUnknown",
    ),
}  # fmt: skip
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

if TYPE_CHECKING:  # the same names, for type checkers; tests/typing compares the two
    from supervisor.api.client import Client as Client
    from supervisor.api.client_async import AsyncClient as AsyncClient
    from supervisor.api.decorators import StartOptions as StartOptions, Workflow as Workflow, step as step, workflow as workflow
    from supervisor.api.bulk import Bulk as Bulk
    from supervisor.api.handles import AsyncBatch as AsyncBatch, AsyncRun as AsyncRun, Batch as Batch, Moved as Moved, Progress as Progress, Run as Run, RunInfo as RunInfo, VersionInfo as VersionInfo
    from supervisor.api.queries import Query as Query
    from supervisor.api.schedules import Schedule as Schedule, ScheduleFire as ScheduleFire, ScheduleInfo as ScheduleInfo, ScheduleTerms as ScheduleTerms
    from supervisor.api.signals import Signal as Signal
    from supervisor.api.transaction import AsyncTransaction as AsyncTransaction, Transaction as Transaction
    from supervisor.api.updates import (
        AsyncUpdateHandle as AsyncUpdateHandle, Update as Update, UpdateHandle as UpdateHandle, handlers_finished as handlers_finished,
    )  # fmt: skip
    from supervisor.api.words import (
        ChildRun as ChildRun, compensate as compensate, continue_as_new as continue_as_new, current as current, deprecate_patch as deprecate_patch, first as first, gather as gather, heartbeat as heartbeat, now as now, patched as patched, progress as progress,
        publish as publish, random as random, set_attributes as set_attributes, shield as shield, sleep as sleep,
        sleep_until as sleep_until, start as start, uuid4 as uuid4,
    )  # fmt: skip
    from supervisor.core.cancelled import Cancelled as Cancelled
    from supervisor.core.context import Current as Current
    from supervisor.core.errors import (
        AsyncioInWorkflow as AsyncioInWorkflow, BatchUnknown as BatchUnknown, ClientInsideRun as ClientInsideRun, ClientMisused as ClientMisused, ClockSkew as ClockSkew, CompensationFailed as CompensationFailed, CompensationPending as CompensationPending, CompleteLater as CompleteLater, CompletionFailed as CompletionFailed, ConfigInvalid as ConfigInvalid,
        DatabaseUnavailable as DatabaseUnavailable, DefinitionError as DefinitionError, FilterInvalid as FilterInvalid, HeartbeatMissed as HeartbeatMissed, HistoryTooLarge as HistoryTooLarge, HistoryTooLong as HistoryTooLong, HistoryUnreadable as HistoryUnreadable, InputInvalid as InputInvalid,
        KeyExists as KeyExists, KeyMismatch as KeyMismatch, MissingExtra as MissingExtra, NonRetryable as NonRetryable, OperationRefused as OperationRefused, OutsideWorkflow as OutsideWorkflow,
        PayloadRefused as PayloadRefused, PermissionMissing as PermissionMissing, QueryFailed as QueryFailed, QueryReadOnly as QueryReadOnly, QueryTooLong as QueryTooLong,
        QueryUnknown as QueryUnknown, ReadTimeout as ReadTimeout, ReplayMismatch as ReplayMismatch, ResultInvalid as ResultInvalid, RetryAfter as RetryAfter,
        RunCancelled as RunCancelled, RunClosed as RunClosed, RunEnded as RunEnded, RunFailed as RunFailed, RunTerminated as RunTerminated, RunTimedOut as RunTimedOut, RunUnknown as RunUnknown,
        QueueUnknown as QueueUnknown, ScheduleExists as ScheduleExists, ScheduleInvalid as ScheduleInvalid, ScheduleUnknown as ScheduleUnknown, SchemaMissing as SchemaMissing, SchemaTooNew as SchemaTooNew, SchemaTooOld as SchemaTooOld, StepDied as StepDied,
        StepFailed as StepFailed, StepInterrupted as StepInterrupted, StepTimeout as StepTimeout, SupervisorError as SupervisorError,
        TokenClosed as TokenClosed, TokenUnknown as TokenUnknown, TransactionMisused as TransactionMisused, UnknownWorkflow as UnknownWorkflow, UpdateFailed as UpdateFailed, UpdateRejected as UpdateRejected,
        UpdateUnfinished as UpdateUnfinished, UpdateUnknown as UpdateUnknown, VersionUnknown as VersionUnknown,
    )  # fmt: skip
    from supervisor.core.retry import Retry as Retry
else:

    def __getattr__(name: str) -> Any:
        home = _HOME_OF.get(name)
        if home is None:
            raise AttributeError(f"supervisor has no {name!r}")
        return getattr(import_module(home), name)

    __all__ = sorted(_HOME_OF)
