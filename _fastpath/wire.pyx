# cython: language_level=3, boundscheck=False, wraparound=False
"""The leaves of the loop, compiled: binary array parameters, the awaitable command, the black-box slot, the clock.

Same names and behaviour as wire.py, and every test runs on both. Owns its buffers; knows nothing of workflows or libpq.
"""
cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.mem cimport PyMem_Free, PyMem_Malloc, PyMem_Realloc
from cpython.object cimport PyObject
from cpython.pythread cimport PyThread_get_thread_ident
from libc.stdint cimport int16_t, int32_t, int64_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

cdef extern from *:
    """
    #include <arpa/inet.h>
    static inline uint64_t pgs_swap64(uint64_t v) { return __builtin_bswap64(v); }
    /* End an await with a value: setting the exception unnormalised spares making a StopIteration object. */
    static PyObject *pgs_stop_with(PyObject *value) {
        if (PyTuple_Check(value) || PyExceptionInstance_Check(value)) {
            PyObject *stop = PyObject_CallOneArg(PyExc_StopIteration, value);
            if (stop) { PyErr_SetObject(PyExc_StopIteration, stop); Py_DECREF(stop); }
        } else {
            PyErr_SetObject(PyExc_StopIteration, value);
        }
        return NULL;
    }
    typedef PySendResult (*pgs_sender)(PyObject *, PyObject *, PyObject **);
    /* What was written to shared memory stays before what is written next: a death in between is read as it was. */
    #define pgs_barrier() __asm__ volatile("" ::: "memory")
    /* Cython has no name for this slot. With it an await ends without raising StopIteration, where the interpreter asks for it. */
    static void pgs_set_sender(PyObject *type, pgs_sender sender) { ((PyTypeObject *)type)->tp_as_async->am_send = sender; }
    """
    uint32_t htonl(uint32_t)
    uint16_t htons(uint16_t)
    uint64_t pgs_swap64(uint64_t)
    object pgs_stop_with(object value)
    void pgs_barrier() noexcept

cdef extern from "Python.h":
    ctypedef enum PySendResult:
        PYGEN_RETURN
        PYGEN_ERROR
        PYGEN_NEXT
    PySendResult PyIter_Send(object iterator, object value, PyObject **result) except PYGEN_ERROR
    void Py_INCREF(PyObject *o)
    void Py_DECREF(PyObject *o)
    void PyErr_SetObject(PyObject *type, PyObject *value)

cdef extern from *:
    ctypedef PySendResult (*pgs_sender)(PyObject *, PyObject *, PyObject **) noexcept
    void pgs_set_sender(object type, pgs_sender sender)

EPOCH_2000_US = 946684800000000                     # PostgreSQL counts microseconds from 2000-01-01; in C only with LL, else it is a Python int
cdef enum:
    HEADER = 20                                     # dimensions, has-null, element type, length, lower bound
    FIRST_ROOM = 1 << 14
    SLOT_SIZE = 128
    NAME_AT = 48                                    # in a slot
    NAME_MAX = SLOT_SIZE - NAME_AT
SLOT_BYTES = SLOT_SIZE
cdef enum:
    TALLY_SIZE = 8 * (3 + BOUNDS)
# upper ends of the buckets of a step's durations; one bucket more has what is longer
cdef int64_t[BOUNDS] _bounds = [
    500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000, 60_000_000,
]
TALLY_BOUNDS_US = tuple(_bounds[i] for i in range(BOUNDS))
TALLY_BYTES = TALLY_SIZE


@cython.final
cdef class Column:
    """One parameter of `unnest`: values are appended in the binary form of an array, so sending copies nothing again."""

    def __cinit__(self, int oid):
        self.room = FIRST_ROOM
        self.data = <char *>PyMem_Malloc(self.room)
        if self.data is NULL:
            raise MemoryError()
        self.oid = oid
        self.used = HEADER
        self.count = 0
        self.nulls = 0

    def __dealloc__(self):
        PyMem_Free(self.data)

    cdef char *extend(self, Py_ssize_t size) except NULL:
        cdef char *grown
        cdef char *place
        if self.used + size > self.room:
            while self.used + size > self.room:
                self.room *= 2
            grown = <char *>PyMem_Realloc(self.data, self.room)
            if grown is NULL:
                raise MemoryError()
            self.data = grown
        place = self.data + self.used
        self.used += size
        self.count += 1
        return place

    cpdef void put(self, bytes value):
        cdef Py_ssize_t size = PyBytes_GET_SIZE(value)
        cdef char *place = self.extend(4 + size)
        cdef uint32_t length = htonl(<uint32_t>size)
        memcpy(place, &length, 4)
        memcpy(place + 4, PyBytes_AS_STRING(value), size)

    cpdef void put_null(self):
        memset(self.extend(4), 0xff, 4)
        self.nulls = 1

    cpdef void put_i16(self, int16_t value):
        cdef char *place = self.extend(6)
        cdef uint32_t length = htonl(2)
        cdef uint16_t swapped = htons(<uint16_t>value)
        memcpy(place, &length, 4)
        memcpy(place + 4, &swapped, 2)

    cpdef void put_i32(self, int32_t value):
        cdef char *place = self.extend(8)
        cdef uint32_t length = htonl(4)
        cdef uint32_t swapped = htonl(<uint32_t>value)
        memcpy(place, &length, 4)
        memcpy(place + 4, &swapped, 4)

    cpdef void put_i64(self, int64_t value):
        cdef char *place = self.extend(12)
        cdef uint32_t length = htonl(8)
        cdef uint64_t swapped = pgs_swap64(<uint64_t>value)
        memcpy(place, &length, 4)
        memcpy(place + 4, &swapped, 8)

    cpdef void put_moment(self, int64_t us):
        """A moment in us since 2000, as float8 seconds since 1970: to_timestamp() reads that exactly, and timestamptz's own input is slower."""
        cdef double seconds = <double>(us + 946684800000000LL) / 1e6
        cdef uint64_t bits
        memcpy(&bits, &seconds, 8)
        self.put_i64(<int64_t>bits)

    cpdef bytes take(self):
        """The array so far; the column is empty afterwards."""
        cdef uint32_t header[5]
        header[0] = htonl(1 if self.count else 0)
        header[1] = htonl(self.nulls)
        header[2] = htonl(self.oid)
        header[3] = htonl(self.count)
        header[4] = htonl(1)
        memcpy(self.data, header, HEADER)
        taken = PyBytes_FromStringAndSize(self.data, self.used if self.count else 12)
        self.used = HEADER
        self.count = 0
        self.nulls = 0
        return taken


@cython.final
@cython.freelist(4096)                              # more than one group of runs in flight; shells are recycled
cdef class Command:
    """One thing a workflow asked for. Awaiting it yields it once to the loop, then gives its value or raises its error.

    called_us    of a wait: when the code called it, us since 2000; 0: not known yet
    taken        somebody has it: it was awaited, or given to a group. One that ends without is told to its run
    """

    def __dealloc__(self):
        if not self.taken and self.run is not None:
            self.run.lost(self.kind, self.step, self.seq)

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        if not self.done:
            return self
        if self.error is not None:
            raise self.error
        return pgs_stop_with(self.value)


cdef PySendResult _send(PyObject *awaited, PyObject *value, PyObject **result) noexcept:
    """What `Command.__next__` does, in the form that an await prefers."""
    cdef Command command = <Command>awaited
    if not command.done:
        Py_INCREF(awaited)
        result[0] = awaited
        return PYGEN_NEXT
    if command.error is not None:
        result[0] = NULL
        kind = type(command.error)
        PyErr_SetObject(<PyObject *>kind, <PyObject *>command.error)
        return PYGEN_ERROR
    Py_INCREF(<PyObject *>command.value)
    result[0] = <PyObject *>command.value
    return PYGEN_RETURN


pgs_set_sender(Command, _send)


@cython.final
@cython.freelist(64)
cdef class Returned:
    """What `resume` gives when the coroutine has returned."""

    def __init__(self, value):
        self.value = value


cpdef object resume(object coroutine):
    """Run *coroutine* to its next command, or to its end (Returned). Whatever it raises comes through."""
    cdef PyObject *got = NULL
    cdef Returned end
    cdef PySendResult how = PyIter_Send(coroutine, None, &got)
    value = <object>got
    Py_DECREF(got)
    if how == PYGEN_NEXT:
        return value
    end = Returned.__new__(Returned)
    end.value = value
    return end


@cython.final
cdef class Slot:
    """One entry of the black box: which run and step is executing, since when. 128 bytes of shared memory.

    Layout: 16 run id (zeros: nothing), 4 seq (-1: workflow code), 2 length of the name, 1 whether it rests, 1 pad,
    8 started (us since 2000; of workflow code a number that no other entry of it has), 8 count of executions, 8 thread,
    80 name of the step, or of the workflow. The run id is written last.
    """

    def __cinit__(self, memory, Py_ssize_t offset):
        cdef char[::1] view = memory
        if offset < 0 or offset + SLOT_SIZE > view.shape[0]:
            raise ValueError(f"slot at {offset} is outside of {view.shape[0]} bytes")
        self.owner = memory
        self.at = &view[offset]

    cpdef void enter(self, bytes run_id, int32_t seq, int64_t now_us, bytes name=b""):
        cdef int64_t *words = <int64_t *>self.at
        if name is not self.name:                   # a worker executes few steps many times
            self._call(name)
        (<int32_t *>self.at)[4] = seq
        self.at[22] = 0
        words[3] = now_us
        words[4] += 1
        pgs_barrier()
        memcpy(self.at, PyBytes_AS_STRING(run_id), 16)

    cdef void _call(self, bytes name):
        cdef Py_ssize_t size = min(PyBytes_GET_SIZE(name), NAME_MAX)
        memcpy(self.at + NAME_AT, PyBytes_AS_STRING(name), size)
        (<uint16_t *>self.at)[10] = <uint16_t>size
        self.name = name

    cpdef void code(self, bytes run_id, bytes name=b""):
        """Workflow code of that run, of the workflow *name*, has the thread, between its steps. Reads no clock: it counts on from the last step's start."""
        if name is not self.name:
            self._call(name)
        (<int32_t *>self.at)[4] = -1
        (<int64_t *>self.at)[3] += 1
        pgs_barrier()
        memcpy(self.at, PyBytes_AS_STRING(run_id), 16)

    cpdef void leave(self):
        memset(self.at, 0, 16)

    cpdef void own(self):
        """Note that this slot is the calling thread's."""
        (<int64_t *>self.at)[5] = <int64_t>PyThread_get_thread_ident()


@cython.final
cdef class Tally:
    """Counters of one name in shared memory: numbers of 8 bytes that only grow. They have one writer, and a reader sees each old or new.

    A step's are: tries that failed, us that all took, and how many took how long, by TALLY_BOUNDS_US. They wait here, unseen, for the batch that
    makes them durable: `take` gives what has waited, `book` counts it. A workflow's: ends by outcome, counted at once.
    """

    def __cinit__(self, memory, Py_ssize_t offset):
        cdef char[::1] view = memory
        if offset < 0 or offset + TALLY_SIZE > view.shape[0]:
            raise ValueError(f"tally at {offset} is outside of {view.shape[0]} bytes")
        self.owner = memory
        self.numbers = <int64_t *>&view[offset]

    cpdef void add(self, int64_t took_us):
        """A try was completed after so long."""
        cdef int n = 0
        if took_us > 500:                           # inline steps are quicker
            while n < BOUNDS and took_us > _bounds[n]:
                n += 1
        elif took_us < 0:                           # the clock was set back
            took_us = 0
        self.tried[1] += took_us
        self.tried[2 + n] += 1

    cpdef void fail(self, int64_t took_us):
        """A try failed after so long."""
        self.tried[0] += 1
        self.add(took_us)

    cpdef bytes take(self):
        """What has waited, for `book`; nothing waits any more."""
        taken = PyBytes_FromStringAndSize(<char *>self.tried, TALLY_SIZE)
        memset(self.tried, 0, TALLY_SIZE)
        self.waits = False
        return taken

    cpdef void book(self, bytes tried):
        """Those tries are durable."""
        cdef int64_t *more = <int64_t *>PyBytes_AS_STRING(tried)
        cdef int n
        for n in range(3 + BOUNDS):
            self.numbers[n] += more[n]

    cpdef void count(self, int outcome):
        """A run ended so."""
        if 0 <= outcome < 3 + BOUNDS:
            self.numbers[outcome] += 1


@cython.final
cdef class Watched:
    """The coroutine of a task; its slot says whether it has the thread or rests, waiting for something."""

    cdef object coroutine
    cdef Slot slot

    def __init__(self, coroutine, Slot slot):
        self.coroutine, self.slot = coroutine, slot

    @property
    def cr_await(self):
        """What it awaits: the name that a coroutine has for it, so that whoever shows where a task waits sees through this one."""
        return self.coroutine

    def __await__(self):
        return self

    def __iter__(self):
        return self

    def __next__(self):
        cdef PyObject *got = NULL
        cdef PySendResult how
        self.slot.at[22] = 0
        try:
            how = PyIter_Send(self.coroutine, None, &got)
        finally:
            self.slot.at[22] = 1
        value = <object>got
        Py_DECREF(got)
        if how == PYGEN_NEXT:
            return value
        return pgs_stop_with(value)

    def throw(self, *error):
        self.slot.at[22] = 0
        try:
            return self.coroutine.throw(*error)
        finally:
            self.slot.at[22] = 1

    def close(self):
        self.coroutine.close()


cdef int64_t _held = 0


cpdef int64_t clock_us():
    """This machine's clock in microseconds since 2000-01-01, or what it is held at."""
    cdef timespec now
    if _held:
        return _held
    clock_gettime(CLOCK_REALTIME, &now)
    return <int64_t>now.tv_sec * 1000000 + now.tv_nsec // 1000 - 946684800000000LL


cpdef void hold_clock(int64_t us):
    """The clock of this process shows *us* from now on; 0: it goes again. For tests of workflows (supervisor.testing)."""
    global _held
    _held = us


cpdef int64_t id_time_us(bytes run_id):
    """The moment that a run id carries, in us since 2000: a run's time until it is given something."""
    cdef const unsigned char *at = <const unsigned char *>PyBytes_AS_STRING(run_id)
    cdef int64_t ms = 0
    cdef int i
    for i in range(6):
        ms = ms << 8 | at[i]
    return ms * 1000 - 946684800000000LL


cpdef unsigned long thread_id():
    """This thread, as the interpreter numbers it."""
    return PyThread_get_thread_ident()


def compiled() -> bool:
    return True
