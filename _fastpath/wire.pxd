# Table of contents of the leaves: what the loop may use without going through Python.
from libc.stdint cimport int16_t, int32_t, int64_t

cdef class Column:
    cdef:
        char *data
        Py_ssize_t used, room
        int oid, nulls
        readonly int count
    cpdef void put(self, bytes value)
    cpdef void put_null(self)
    cpdef void put_i16(self, int16_t value)
    cpdef void put_i32(self, int32_t value)
    cpdef void put_i64(self, int64_t value)
    cpdef void put_moment(self, int64_t us)
    cpdef bytes take(self)
    cdef char *extend(self, Py_ssize_t size) except NULL

cdef class Command:
    cdef public:
        object run, step, waiter, value, error, extra
        tuple args
        dict kwargs
        int seq, kind, attempt
        int64_t called_us
        bint done, redelivered, taken

cdef class Returned:
    cdef readonly object value

cdef class Slot:
    cdef:
        object owner
        bytes name
        char *at
    cpdef void enter(self, bytes run_id, int32_t seq, int64_t now_us, bytes name=*)
    cpdef void code(self, bytes run_id, bytes name=*)
    cdef void _call(self, bytes name)
    cpdef void leave(self)
    cpdef void own(self)

cdef enum:
    BOUNDS = 16

cdef class Tally:
    cdef:
        object owner
        int64_t *numbers
        int64_t tried[3 + BOUNDS]
        public bint waits
    cpdef void add(self, int64_t took_us)
    cpdef void fail(self, int64_t took_us)
    cpdef bytes take(self)
    cpdef void book(self, bytes tried)
    cpdef void count(self, int outcome)

cpdef object resume(object coroutine)
cpdef int64_t clock_us()
cpdef void hold_clock(int64_t us)
cpdef int64_t id_time_us(bytes run_id)
cpdef unsigned long thread_id()
