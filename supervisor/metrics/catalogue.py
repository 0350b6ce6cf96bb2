"""Every metric there is: name, type, labels, meaning. The collector makes nothing that is not here, and docs/metrics.md lists what is.

Names follow Prometheus: base units, `_total` for what only grows. Labels are names of workflows, steps, queues and tables, numbers of workers, and words
of this program: never a run, a key or a value of somebody's. Imports nothing.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

PREFIX = "pgsupervisor_"
Kind = Literal["counter", "gauge", "histogram", "info"]


class Metric(NamedTuple):
    """One family. Its unit is the word that its name ends with, where that is seconds or bytes."""

    kind: Kind
    labels: tuple[str, ...]
    meaning: str

    def unit(self, name: str) -> str:
        return next((unit for unit in ("seconds", "bytes") if name.removesuffix("_total").endswith("_" + unit)), "")


# of this host, from its memory: true whatever the database does
HOST = {
    "build_info": Metric("info", ("version", "python", "loop"), "Versions; loop says whether it is compiled"),
    "schema_version": Metric("gauge", (), "The migration that this program needs"),
    "start_time_seconds": Metric("gauge", (), "When this host began, in seconds since 1970"),
    "alive": Metric("gauge", (), "1 while the host's own loop turns, as /livez says"),
    "draining": Metric("gauge", (), "1 while the host is being stopped"),
    "leader": Metric("gauge", (), "1 where this host leads: of all hosts of a schema one does"),
    "leader_term": Metric("gauge", (), "The number of its term; 0 where another one leads"),
    "workers": Metric("gauge", ("state",), "Worker processes by what they say of themselves"),
    "workers_wanted": Metric("gauge", (), "Worker processes that there should be"),
    "workers_ready": Metric("gauge", (), "Worker processes that are up and not told to end"),
    "worker_restarts_total": Metric(
        "counter", ("reason",), "Workers that had to be replaced: ended by a signal, by an exit code, told to end from outside, without a database, unfit because too many threads hang"
    ),
    "worker_crashes_charged_total": Metric("counter", (), "Deaths of workers that were charged to a step, or to workflow code that held the loop; three park its run as attempts_exhausted"),
    "worker_cpu_seconds_total": Metric("counter", ("worker",), "CPU time of the processes of each worker number"),
    "worker_memory_bytes": Metric("gauge", ("worker",), "Resident memory of each worker"),
    "log_records_dropped_total": Metric("counter", (), "Log records that were lost because they came faster than the log process writes, or it was dead"),
    "runs_claimed_total": Metric("counter", (), "Runs taken by workers, again after each wait"),
    "runs_ended_total": Metric("counter", (), "Runs that workers ended, durably"),
    "runs_in_memory": Metric("gauge", (), "Runs that workers have in memory"),
    "steps_recorded_total": Metric("counter", (), "Rows of history written: steps, timers, children, signals"),
    "steps_executing": Metric("gauge", (), "Steps that execute at this moment"),
    "step_failures_total": Metric("counter", (), "Tries of steps that raised or ran out of time"),
    "commits_total": Metric("counter", (), "Batches that the database has acknowledged"),
    "commit_duration_seconds": Metric("histogram", (), "From sending a batch to its acknowledgement; the claim in it included"),
    "runs_finished_total": Metric("counter", ("workflow", "outcome"), "Runs by how they ended, where a worker of this host ended them"),
    "step_attempts_total": Metric("counter", ("workflow", "step", "outcome"), "Tries of steps, completed or failed, counted when that is durable; one that was lost with its worker counts once, when it is repeated"),
    "step_duration_seconds": Metric("histogram", ("workflow", "step"), "How long tries of steps took, failed ones included"),
}
# of the schema, from the database: every host tells the same
STORED = {
    "database_up": Metric("gauge", (), "1 where the database has answered; all that follows is missing where it has not"),
    "database_answered": Metric("gauge", ("part",), "1 where this part was answered within its time, and may be seen by this role"),
    "database_schema_version": Metric("gauge", (), "The migration that the schema is at"),
    "queue_ready_runs": Metric("gauge", ("queue",), "Runs that a worker could take now; counted up to 10,000 of each priority"),
    "queue_oldest_ready_seconds": Metric("gauge", ("queue",), "For how long the oldest of them could have been taken; 0 without any"),
    "waiting_runs": Metric("gauge", ("wait",), "Runs that wait, by the code of what for; counted up to 10,000 of each"),
    "parked_runs": Metric("gauge", ("wait",), "Runs that were put aside until somebody acts, by why; counted up to 10,000 of each"),
    "database_workers": Metric("gauge", ("state",), "Workers of all hosts: alive; lost, which are gone and not yet released"),
    "database_leaders": Metric("gauge", (), "Supervisors that lead: 1, or 0"),
    "database_leader_age_seconds": Metric("gauge", (), "Since the last sign of life of who leads; twice a second is usual"),
    "table_live_rows": Metric("gauge", ("table",), "Rows by the server's statistics, partitions with their table"),
    "table_dead_rows": Metric("gauge", ("table",), "Rows that VACUUM has to remove"),
    "table_bytes": Metric("gauge", ("table",), "Size with indexes, partitions with their table"),
    "table_partitions": Metric("gauge", ("table",), "How many partitions a table of the history has"),
    "database_xid_age": Metric("gauge", (), "Transactions since the oldest that is not frozen; at two billion the database stops"),
    "database_oldest_xmin_age": Metric("gauge", (), "Transactions since the oldest snapshot that keeps dead rows alive, of those that this role may see"),
    "database_oldest_transaction_seconds": Metric("gauge", (), "For how long the oldest open transaction has been open, of those that this role may see"),
    "database_connections": Metric("gauge", (), "Sessions of the server in use"),
    "database_connections_limit": Metric("gauge", (), "max_connections"),
}
METRICS = {**HOST, **STORED}
