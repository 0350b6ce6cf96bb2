"""Whose time a sample counts for, what the three files hold, and what to type where the kernel refuses."""

from __future__ import annotations

import xml.etree.ElementTree as xml

import pytest

from supervisor.profile.flame import svg
from supervisor.profile.sampler import Refusal, advice
from supervisor.profile.samples import DATABASE, ENCODING, LOOP, OTHER, USER, Frame, Sample, attributed, read_speedscope, summed, to_raw, to_speedscope, waits

PYTHON = "/usr/lib/python3.11/"
SITE = "/venv/lib/python3.11/site-packages/"
ASYNCIO = Frame("BaseEventLoop._run_once", PYTHON + "asyncio/base_events.py", 1922)
PUMP = Frame("Worker._pump", SITE + "supervisor/engine/worker.py", 234)
EXECUTE = Frame("Loop_execute", "/build/supervisor/_fastpath/loop.py", 278)
CHARGE = Frame("charge", "/srv/shop.py", 12)
LIBRARY = Frame("post", SITE + "httpx/_api.py", 300)
JSON = Frame("dumps", PYTHON + "json/__init__.py", 231)
MATH = Frame("math_sqrt", "/tmp/Python-3.11.7/Modules/mathmodule.c", 1330)
MALLOC = Frame("malloc", "/usr/lib/x86_64-linux-gnu/libc.so.6", 0)
MSGSPEC = Frame("JSONEncoder_encode", SITE + "msgspec/_core.cpython-311-x86_64-linux-gnu.so", 0)
PUT = Frame("Column_put", "/build/supervisor/_fastpath/wire.pyx", 91)
RESUME = Frame("wire_resume", "/build/supervisor/_fastpath/wire.pyx", 197)
HELPER = Frame("__Pyx_PySequence_ContainsTF", "/build/supervisor/_fastpath/loop.py", 871)
PIPELINE = Frame("Pipeline.send", SITE + "supervisor/db/pipeline.py", 73)
SYNC = Frame("PQpipelineSync", "/usr/lib/x86_64-linux-gnu/libpq.so.5.15", 0)
INSIDE = Frame("0x7fecb3fbf220", "/usr/lib/x86_64-linux-gnu/libpq.so.5.15", 0)
SEND = Frame("send", "/usr/lib/x86_64-linux-gnu/libc.so.6", 0)
BOOT = Frame("_run_code", "<frozen runpy>", 88)
ENGINE = (BOOT, ASYNCIO, PUMP, EXECUTE)
TRACING = Frame("Traces.composed", SITE + "supervisor/tracing/__init__.py", 50)
OTEL = Frame("Tracer.start_span", SITE + "opentelemetry/sdk/trace/__init__.py", 1100)


@pytest.mark.parametrize(
    ("stack", "group", "shown"),
    [
        ((*ENGINE, CHARGE), USER, CHARGE),
        ((*ENGINE, CHARGE, MATH), USER, CHARGE),
        ((*ENGINE, CHARGE, JSON), USER, CHARGE),
        ((*ENGINE, CHARGE, LIBRARY), USER, CHARGE),
        ((*ENGINE, LIBRARY, JSON, MALLOC), USER, LIBRARY),  # an app that is installed like a library
        (ENGINE, LOOP, EXECUTE),
        ((*ENGINE, HELPER), LOOP, EXECUTE),
        ((*ENGINE, MALLOC), LOOP, EXECUTE),
        ((*ENGINE, RESUME), LOOP, RESUME),
        ((BOOT, ASYNCIO), OTHER, ASYNCIO),
        ((*ENGINE, MSGSPEC), ENCODING, MSGSPEC),
        ((*ENGINE, PUT), ENCODING, PUT),
        ((*ENGINE, PIPELINE), DATABASE, PIPELINE),
        ((*ENGINE, PIPELINE, SYNC, INSIDE, SEND), DATABASE, SYNC),
        ((MALLOC,), OTHER, MALLOC),
        ((*ENGINE, TRACING, OTEL), LOOP, TRACING),  # what tracing costs is not the app's
        ((*ENGINE, CHARGE, OTEL), USER, CHARGE),  # but what the app traces is
    ],
)
def test_a_sample_counts_for_whoever_asked_for_the_work(stack, group, shown):
    """`dict_lookup 12 %` helps nobody; the line that looks up does."""
    assert attributed(stack) == (group, shown)


def test_waiting_is_no_work():
    assert waits((ASYNCIO, Frame("EpollSelector.select", PYTHON + "selectors.py", 468)))
    assert waits((ASYNCIO, Frame("select_epoll_poll", "/x.c", 1), Frame("epoll_wait", "/lib/libc.so.6", 0)))
    in_queue = Frame("PyThread_acquire_lock_timed", "/usr/lib/libpython3.11.so.1.0", 0)
    assert waits((Frame("Executors._work", SITE + "supervisor/engine/executors.py", 106), in_queue, Frame("0x7fb3036aed90", "/usr/lib/libc.so.6", 0)))
    assert not waits((PIPELINE, SYNC, SEND)) and not waits((CHARGE,))


def test_shares_are_of_what_was_computed():
    waiting = (ASYNCIO, Frame("EpollSelector.select", PYTHON + "selectors.py", 468))
    samples = [Sample("t", (*ENGINE, CHARGE), 6), Sample("t", ENGINE, 3), Sample("t", (*ENGINE, MATH), 1), Sample("t", waiting, 90)]
    found = summed(samples)
    assert (found["samples"], found["samples_waiting"]) == (10, 90)
    assert {group["group"]: group["share"] for group in found["groups"]} == {USER: 0.6, LOOP: 0.4, ENCODING: 0, DATABASE: 0, OTHER: 0}
    assert found["groups"][0]["lines"] == [{"file": "/srv/shop.py", "line": 12, "function": "charge", "share": 0.6}]
    assert summed([])["groups"] == []


def test_the_files_hold_what_was_sampled():
    samples = [Sample("worker 0 (pid 7), Thread 7", (*ENGINE, CHARGE), 6), Sample("worker 0 (pid 7), Thread 7", ENGINE, 4)]
    document = to_speedscope(samples, 100, "x")
    back = read_speedscope(document, "worker 0 (pid 7)")
    assert {(sample.stack, sample.times) for sample in back} == {(sample.stack, 1) for sample in samples}
    assert document["profiles"][0]["endValue"] == pytest.approx(0.1)
    assert to_raw(samples).splitlines()[0].endswith(";Loop_execute (_fastpath/loop.py:278);charge (srv/shop.py:12) 6")


def test_the_flame_graph_is_well_formed_whatever_names_hold():
    odd = Frame("<lambda> & \"co\"", "/srv/<odd>&.py", 1)
    root = xml.fromstring(svg([Sample("t", (*ENGINE, odd), 3), Sample("t", (*ENGINE, CHARGE), 1), Sample("u", ENGINE, 1)], "a < b"))
    titles = [title.text or "" for title in root.iter("{http://www.w3.org/2000/svg}title")]
    assert any(title.startswith('<lambda> & "co"') and "60.0%" in title for title in titles)
    assert not any("runpy" in title for title in titles), "what all stacks begin with is left out"
    xml.fromstring(svg([], "idle"))


def test_the_sampler_does_not_show_who_answers_for_the_worker():
    """The thread that sleeps until somebody asks for stacks is no work of the app."""
    document = {"shared": {"frames": []}, "profiles": [{"name": 'Thread 1 "stacks"', "samples": [[]]}, {"name": 'Thread 2 "step-1"', "samples": [[]]}]}
    assert [sample.thread for sample in read_speedscope(document, "worker 0")] == ['worker 0, Thread 2 "step-1"']


COMMAND = "python -m supervisor profile --worker 1"


@pytest.mark.parametrize(
    ("facts", "words"),
    [
        ({"owner": "shop"}, ["belongs to shop", f'sudo env "PATH=$PATH" {COMMAND}']),
        ({"yama": 1}, ["ptrace_scope is 1", f'sudo env "PATH=$PATH" {COMMAND}', "sudo sysctl kernel.yama.ptrace_scope=0"]),
        ({"yama": 2}, ["ptrace_scope is 2", f'sudo env "PATH=$PATH" {COMMAND}']),
        ({"yama": 3, "root": True, "capable": True}, ["ptrace_scope is 3", "/etc/sysctl.d/", "boot again"]),
        ({"root": True, "attainable": False}, ["container", "--cap-add=SYS_PTRACE"]),
        ({"yama": 1, "attainable": False}, ["container", "--cap-add=SYS_PTRACE", "Kubernetes"]),
        ({"root": True}, ["root without CAP_SYS_PTRACE", "--cap-add=SYS_PTRACE"]),
        ({"filtered": True}, ["seccomp", "--security-opt seccomp=unconfined"]),
        ({}, ["privileges", "sudo"]),
    ],
)
def test_a_refusal_says_what_to_type(facts, words):
    """The commonest reason why nobody profiles in production."""
    told = advice(Refusal(**{"title": "worker 1 (pid 7)", "command": COMMAND, **facts}))
    assert "worker 1 (pid 7)" in told and all(word in told for word in words), told
    assert "sysctl kernel.yama.ptrace_scope=0" not in told or facts.get("yama") == 1
