"""py-spy on running processes: one pass each, all at once; what to type where the kernel does not let it."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from supervisor.core.errors import MissingExtra, SupervisorError
from supervisor.profile.samples import Sample, read_speedscope
from supervisor.host.stacks import Process, account, owner_of

END_WITHIN_S = 60.0  # after the last sample: symbols of native frames are read late
TICK_S = 0.2
CAP_SYS_PTRACE = 19
_REFUSALS = ("permission denied", "operation not permitted", "eperm", "cap_sys_ptrace", "sys_ptrace")


class MayNotProfile(SupervisorError):
    """The kernel does not let this process look into that one."""

    code = "may_not_profile"


class SamplerFailed(SupervisorError):
    """py-spy ended without a profile."""

    code = "sampler_failed"


def find_sampler() -> str:
    """py-spy's path: beside this interpreter, else on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if os.access(beside, os.X_OK) else shutil.which("py-spy")
    if found is None:
        raise MissingExtra("profile", "profile", "py-spy")
    return found


def sample(processes: Sequence[Process], seconds: float, rate: int, native: bool, progress: Callable[[float], None]) -> dict[Process, list[Sample]]:
    """Sample all *processes* at once for *seconds*; *progress* is told how many of them have passed. ^C ends early, with what there is.

    Raises MayNotProfile and SamplerFailed for the first process that refused; an ended process gives what was seen of it.
    """
    program = find_sampler()
    with tempfile.TemporaryDirectory(prefix="pgsupervisor-profile-") as folder:
        files = {process: Path(folder) / f"{process.pid}.json" for process in processes}
        running = {}
        for process in processes:
            words = [program, "record", "--pid", str(process.pid), "--duration", str(max(1, round(seconds))), "--rate", str(rate), "--format", "speedscope"]
            words += ["--full-filenames", "--output", str(files[process]), *(["--native"] if native else [])]
            # in a session of its own: ^C in the terminal is for us, and passed on once
            running[process] = subprocess.Popen(words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            _wait(running, seconds, progress)
            return {process: _read(process, running[process], files[process]) for process in processes}
        finally:
            for child in running.values():
                if child.poll() is None:
                    child.kill()
                child.communicate()


def _wait(running: dict[Process, subprocess.Popen[bytes]], seconds: float, progress: Callable[[float], None]) -> None:
    began = time.monotonic()
    try:
        while any(child.poll() is None for child in running.values()) and time.monotonic() - began < seconds + END_WITHIN_S:
            progress(min(seconds, time.monotonic() - began))
            time.sleep(TICK_S)
            if any(child.poll() not in (None, 0) for child in running.values()):
                break  # refused: the others would only waste the caller's time
    except KeyboardInterrupt:
        for child in running.values():
            child.send_signal(signal.SIGINT)
        for child in running.values():
            child.wait(END_WITHIN_S)


def _read(process: Process, child: subprocess.Popen[bytes], file: Path) -> list[Sample]:
    if child.poll() is None:
        raise SamplerFailed(f"py-spy did not end at {process.title}; try again without --native, or with a smaller --rate")
    said = (child.stdout.read() if child.stdout is not None else b"").decode("utf-8", "replace")
    if child.returncode != 0 or not file.exists():
        refused = any(word in said.lower() for word in _REFUSALS)
        raise MayNotProfile(advice(Refusal.of(process))) if refused else SamplerFailed(f"py-spy failed at {process.title}: {_brief(said)}; `python -m supervisor stacks` works without it")
    return read_speedscope(json.loads(file.read_bytes()), f"{'parent' if process.number < 0 else f'worker {process.number}'} (pid {process.pid})")


def _brief(said: str) -> str:
    lines = [line.strip() for line in said.splitlines() if line.strip() and not line.startswith("py-spy>")]
    return " ".join(lines)[:300].replace("; ", ", ") or "it said nothing"


# ── refused ──────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Refusal:
    """What decides whether this process may trace that one.

    owner         the account that the other process belongs to; None: the same as ours
    root          whether we are root
    capable       whether we have CAP_SYS_PTRACE; attainable: whether anybody here can have it
    yama          kernel.yama.ptrace_scope; None where the kernel has none
    filtered      whether a seccomp filter is on us
    """

    title: str
    command: str
    owner: str | None = None
    root: bool = False
    capable: bool = False
    attainable: bool = True
    yama: int | None = None
    filtered: bool = False

    @classmethod
    def of(cls, process: Process) -> Refusal:
        status = dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)
        owner = owner_of(process.pid)
        yama = Path("/proc/sys/kernel/yama/ptrace_scope")
        return cls(
            process.title,
            shlex.join([sys.executable, "-m", "supervisor", *sys.argv[1:]]),
            account(owner) if owner not in (None, os.geteuid()) else None,
            os.geteuid() == 0,
            bool(int(status["CapEff"], 16) >> CAP_SYS_PTRACE & 1),
            bool(int(status["CapBnd"], 16) >> CAP_SYS_PTRACE & 1),
            int(yama.read_text()) if yama.exists() else None,
            status.get("Seccomp", "0").strip() == "2",
        )


def advice(refusal: Refusal) -> str:
    """Why py-spy was refused, and what to type."""
    r = refusal
    by_root = f'sudo env "PATH=$PATH" {r.command}'
    container = "docker run --cap-add=SYS_PTRACE … (Kubernetes: securityContext: {capabilities: {add: [SYS_PTRACE]}})"
    start = f"the kernel does not let us look into {r.title}"
    if r.yama == 3:
        return f"{start}: kernel.yama.ptrace_scope is 3, which forbids it to everybody until the next boot; put kernel.yama.ptrace_scope = 1 into /etc/sysctl.d/10-ptrace.conf and boot again"
    if not r.attainable:
        return f"{start}: this is a container without CAP_SYS_PTRACE; start it with that: {container}"
    if r.owner is not None and not r.root:
        return f"{start}: it belongs to {r.owner}, and only that account and root may; type: {by_root}"
    if r.root and not r.capable:
        return f"{start}: this account is root without CAP_SYS_PTRACE; start the container or service with it: {container}"
    if r.yama and not r.capable:
        until_boot = ", or for everybody until the next boot: sudo sysctl kernel.yama.ptrace_scope=0" if r.yama == 1 else ""
        return f"{start}: kernel.yama.ptrace_scope is {r.yama}, so only root may; type: {by_root}{until_boot}"
    if r.filtered:
        return f"{start}: a seccomp filter forbids ptrace; start the container with: {container}, or with --security-opt seccomp=unconfined"
    return f"{start}, though the account is right: the process may have dropped privileges or be traced already; type: {by_root}"
