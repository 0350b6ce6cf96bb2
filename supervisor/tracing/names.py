"""Names of spans' attributes and events. No convention of OpenTelemetry is about workflows, so they have a namespace of their own."""

from __future__ import annotations

from typing import Final

SCOPE: Final = "pgsupervisor"

RUN_ID: Final = "pgsupervisor.run.id"
RUN_KEY: Final = "pgsupervisor.run.key"
RUN_QUEUE: Final = "pgsupervisor.run.queue"
RUN_OUTCOME: Final = "pgsupervisor.run.outcome"  # completed, failed, cancelled, terminated, timed_out, continued
RUN_STEPS: Final = "pgsupervisor.run.steps"  # what its history holds: steps, and whatever else it was given
RUN_WAITS: Final = "pgsupervisor.run.waits"  # how many sleeps, signals, children and updates it was given
RUN_CONTINUED_AS: Final = "pgsupervisor.run.continued_as"
WORKFLOW: Final = "pgsupervisor.workflow.name"
STEP: Final = "pgsupervisor.step.name"
STEP_SEQ: Final = "pgsupervisor.step.seq"
STEP_ATTEMPT: Final = "pgsupervisor.step.attempt"
STEP_ATTEMPTS: Final = "pgsupervisor.step.attempts"  # of a step around them: how many there were
STEP_REDELIVERED: Final = "pgsupervisor.step.redelivered"  # may have begun before, in a process that died
STEP_HANDED_OVER: Final = "pgsupervisor.step.handed_over"  # raised CompleteLater: a token completes it
STEP_GIVEN_UP: Final = "pgsupervisor.step.given_up"  # nobody waited for it any more when it ended
STEP_SKIPPED: Final = "pgsupervisor.step.skipped"  # somebody gave it a result in the place of its own
WAIT: Final = "pgsupervisor.wait.name"
WAIT_SEQ: Final = "pgsupervisor.wait.seq"
LINK: Final = "pgsupervisor.link"  # what a linked span is: attempt, origin, continued, sender
WORKER: Final = "pgsupervisor.worker.number"

# events of a run's span, by the kind of what it was given (the loop's numbers)
WAITED: Final = {2: "timer", 3: "child", 5: "signal", 7: "cancellation", 9: "update"}
EVENT: Final = "pgsupervisor."
EXCEPTION, EXCEPTION_TYPE, EXCEPTION_MESSAGE, EXCEPTION_STACKTRACE = "exception", "exception.type", "exception.message", "exception.stacktrace"
