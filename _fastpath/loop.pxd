# Table of contents of the loop. The source is loop.py; this file says which of it is C.
cimport cython
from libc.stdint cimport int64_t
from supervisor._fastpath.wire cimport Column, Command, Returned, Slot, Tally, clock_us, id_time_us, resume, thread_id

cdef int _mode
cdef unsigned long _thread
cdef Run _run

cdef class Step:
    cdef public:
        object fn, shape, exact, encode_raw, decode, retry, info, sync
        Aio aio
        str name
        bytes wire_name
        list tallies
        bint is_async, inline, special, floats

cdef class Aio:
    cdef Step step

cdef class Workflow:
    cdef public:
        object fn, shape, exact, encode_raw, read_input, info
        Tally ends
        str name
        bytes wire_name
        bint is_async
        int seq_warn, number

cdef class Run:
    cdef readonly bytes id
    cdef public:
        Workflow workflow
        object coro, history, later, parent, past, drawn, key, patches
        Command call
        dict open, dropped
        list fresh, fibers
        object end, forgotten
        int64_t batch, now_us, deadline_us
        unsigned long home
        int seq, seq_max, pos, executing, resumed, status
        bint gone, in_tx, timers

cdef class Fiber:
    cdef public:
        object coro, group, waits
        int index
        bint ended

cdef class Group:
    cdef public:
        list members, results
        object names, outcome, held
        int remaining, fibers
        bint settled, failed

cdef class Loop:
    cdef public:
        object worker, current, cause
        dict live
        unsigned long thread
        list runs, ready, fresh
        object completions
        int64_t number, clock_offset_us, bytes_max
        int64_t bytes_now
        int64_t steps_total, slow_us
        bint mixed
        Slot slot
    cdef:
        Column s_run, s_seq, s_pos, s_kind, s_status, s_name, s_result, s_started, s_ended
        Column f_run, f_status, f_steps, f_result, f_ended
        list finished, tried

    cpdef int64_t now_us(self)
    @cython.locals(run=Run, run_id=bytes, workflow_id=bytes, queue=bytes, prio=bytes, at=bytes, last_queue=bytes, last_prio=bytes, last_at=bytes, last_id=bytes, row=int)
    cpdef void admit(self, object result, dict workflows, dict marks, list others) except *
    cpdef void begin_run(self, Run run, bytes payload) except *
    @cython.locals(run=Run, cmd=Command, i=int, n=int, until=int64_t)
    cpdef int execute(self, list runs, int64_t time_max_us) except -1
    @cython.locals(step=Step)
    cdef bint _on_loop(self, Command cmd) except -1
    @cython.locals(run=Run)
    cpdef bint take_over(self, Command cmd) except -1
    cpdef void hand_to(self, unsigned long thread) except *
    @cython.locals(step=Step, started=int64_t, ended=int64_t)
    cdef void _inline(self, Run run, Command cmd) except *
    @cython.locals(step=Step)
    cpdef void settle(self, Run run, Command cmd, object value, int64_t started, int64_t ended) except *
    @cython.locals(tally=Tally, tallies=list, number=int)
    cpdef Tally tally_of(self, Workflow workflow, Step step)
    cdef void _kind_and_status(self, int kind, int status) except *
    @cython.locals(step=Step)
    cpdef void record(self, Run run, Command cmd, int status, bytes encoded, int64_t started, int64_t ended) except *
    cpdef void deliver(self, Run run, Command cmd, object value, object error) except *
    cdef void _advance(self, Run run) except *
    cdef bint _is_too_long(self, Run run, Command cmd, list work) except -1
    cpdef void drive(self, Run run, list work) except *
    @cython.locals(workflow=Workflow)
    cdef object _resume(self, Run run, object coro)
    @cython.locals(workflow=Workflow)
    cdef bint _forgot(self, Run run) except -1
    cdef void _return(self, Run run, object value) except *
    cdef void _finish(self, Run run, int status, bytes encoded) except *
    cpdef void touch(self, Run run) except *
    @cython.locals(run=Run, tally=Tally)
    cpdef void acknowledge(self, list runs, list finished, list tried) except *

cpdef int mode() except -1
cpdef object block(Command cmd)
cdef Command _command(Step step, tuple args, dict kwargs)
