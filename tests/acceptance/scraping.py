"""A host that serves metrics, and who scrapes it."""

from __future__ import annotations

import os
import re
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from tests.harness import Host, HostFactory, eventually

Labels = frozenset[tuple[str, str]]


class Scraped:
    """One answer of /metrics. `scraped["name"]`: a value without labels, or of the labels that are given."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}
        self.samples = {(sample.name, frozenset(sample.labels.items())): sample.value for family in self.families.values() for sample in family.samples}

    def get(self, name: str, **labels: str) -> float | None:
        return self.samples.get(("pgsupervisor_" + name, frozenset(labels.items())))

    def all(self, name: str) -> dict[Labels, float]:
        return {labels: value for (each, labels), value in self.samples.items() if each == "pgsupervisor_" + name}

    def sum(self, name: str) -> float:
        return sum(self.all(name).values())

    def counters(self) -> dict[tuple[str, Labels], float]:
        """Everything that may only grow."""
        kinds = {family.name: family.type for family in self.families.values()}
        growing = {name for name, kind in kinds.items() if kind in ("counter", "histogram")}
        return {key: value for key, value in self.samples.items() if any(key[0] in (name + "_total", name + "_bucket", name + "_sum", name + "_count") for name in growing)}


class Meter:
    """The metrics of one host, from outside."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.url = eventually(lambda: re.search(r"metrics on (http://\S+)/metrics", host.log()), 30, "the address")[1]
        self.port = int(self.url.rpartition(":")[2])

    def ask(self, path: str, timeout_s: float = 20.0, **headers: str) -> tuple[int, str, Any]:
        """Status, text and headers of an answer."""
        request = urllib.request.Request(self.url + path, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers

    def scrape(self) -> Scraped:
        status, text, _ = self.ask("/metrics")
        assert status == 200
        return Scraped(text)

    def exporter(self) -> int:
        """Its process."""

        def found() -> int | None:
            for pid in self.host.worker_pids():
                try:
                    words = Path(f"/proc/{pid}/cmdline").read_bytes()
                except OSError:
                    continue
                if b"metrics\0serve" in words or words.startswith(b"pgsupervisor: metrics"):
                    return pid
            return None

        return eventually(found, 30, "the process that serves metrics")

    def workers(self) -> list[int]:
        served_by = self.exporter()
        return [pid for pid in self.host.worker_pids() if pid != served_by]

    def kill_worker(self) -> int:
        pid = self.workers()[0]
        os.kill(pid, signal.SIGKILL)
        return pid


@contextmanager
def metered(hosts: HostFactory, app: str = "tests.apps.metered", procs: int = 2, **options: Any) -> Iterator[Meter]:
    """A host with metrics on a free port, up and scraped once."""
    host = hosts.start(app, procs=procs, args=("--metrics", "0", *options.pop("args", ())), **options).wait_up(procs)
    meter = Meter(host)
    try:
        eventually(lambda: meter.scrape().get("alive"), 60, "a first scrape")
        yield meter
    finally:
        host.stop()
