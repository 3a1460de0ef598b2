"""How values cross between processes, with the other side played here or by a real process."""

import array
import gc
import os
import pickle
import subprocess
import sys
import threading
from functools import partial
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quantum_async.engine.executors import transport
from quantum_async.engine.executors.packing import _Pickler as CloudPickler
from quantum_async.engine.executors.transport import (
    OUT_OF_BAND,
    SPILL,
    PayloadTooLargeError,
    Segment,
    dump,
    is_spilled,
    load,
    open_segment,
    size_of,
)

MB = 1_000_000
plain = partial(pickle.Pickler, protocol=pickle.HIGHEST_PROTOCOL)
cloud = partial(CloudPickler, protocol=pickle.HIGHEST_PROTOCOL)
on_linux = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="segments are memfds")


class Array:
    """What NumPy's arrays do: the buffer goes out of band."""

    def __init__(self, content):
        self.content = content

    def __reduce_ex__(self, protocol):
        return Array, (pickle.PickleBuffer(self.content),)

    def __eq__(self, other):
        return bytes(self.content) == bytes(other.content)

    __hash__ = None

    @property
    def writable(self):
        return not memoryview(self.content).readonly


class Unpicklable:
    def __reduce_ex__(self, protocol):
        raise RuntimeError("not this one")


@pytest.fixture
def segment():
    with Segment.create() as segment:
        yield segment


def no_segment():
    raise AssertionError("it is small")


def size_in(segment):
    return os.fstat(segment.fileno()).st_size


def sent(value, segment, make_pickler=plain):
    return load(dump(value, make_pickler, segment.open), segment.path)


def exact_bytes(size):
    """Return bytes whose pickle, all in all, has that size."""
    value = b"x" * (size - 100)
    extra = size - size_of(dump(value, plain, partial(os.open, os.devnull, os.O_RDWR)))
    return value + b"x" * extra


def descriptors():
    gc.collect()
    return sorted(os.readlink(one) for one in Path("/proc/self/fd").iterdir() if one.exists())


# -- round trips ----------------------------------------------------------------------------

VALUES = {
    "nothing": None,
    "nested": {"a": [1, 2.5, (None, {"deep": {"er": {1, 2}}})], "b": "ü" * 1000},
    "bytes": os.urandom(10 * MB),
    "bytearray": bytearray(os.urandom(10 * MB)),
    "text": "é" * MB,
    "stdlib array": array.array("d", range(MB)),
    "list of numbers": list(range(MB)),
    "small buffer": Array(bytearray(b"small")),
    "buffer in the call": Array(bytearray(os.urandom(OUT_OF_BAND))),
    "buffer": Array(bytearray(os.urandom(MB))),
    "big buffer": Array(bytearray(os.urandom(10 * MB))),
    "empty buffers": [Array(b""), Array(bytearray()), b"", bytearray(), b"x" * SPILL],
    "many buffers": [Array(bytearray([n % 256]) * (OUT_OF_BAND - 2 + n % 5)) for n in range(500)],
    "many big bytes": [bytes([n]) * 70_000 for n in range(100)],
    "all sorts": {"b": b"b" * MB, "a": Array(b"a" * MB), "n": 1, "c": bytearray(b"c" * SPILL)},
}


@pytest.mark.parametrize("make_pickler", [plain, cloud], ids=["pickle", "cloudpickle"])
@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_out_as_it_went_in(name, make_pickler, segment):
    value = VALUES[name]
    copy = sent(value, segment, make_pickler)
    assert copy == value
    assert type(copy) is type(value)


tree = st.recursive(
    st.none()
    | st.integers()
    | st.text()
    | st.integers(0, 400_000).map(bytes)
    | st.integers(0, 400_000).map(bytearray)
    | st.integers(0, 400_000).map(bytearray).map(Array)
    | st.integers(0, 400_000).map(bytes).map(Array),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(), inner, max_size=5),
    max_leaves=12,
)


@given(tree)
def test_any_value_comes_out_as_it_went_in(value):
    with Segment.create() as segment:
        blob = dump(value, plain, segment.open)
        assert is_spilled(blob) == (size_of(blob) >= SPILL)
        assert load(blob, segment.path) == value


def test_what_cloudpickle_sends_by_value_can_carry_big_content(segment):
    big = os.urandom(MB)
    assert sent(lambda: big, segment, cloud)() == big


@pytest.mark.parametrize("size", [OUT_OF_BAND, SPILL, 10 * MB])
def test_a_buffer_may_be_changed_exactly_if_it_could_be_before(size, segment):
    changeable, fixed = sent([Array(bytearray(size)), Array(bytes(size))], segment)
    assert changeable.writable
    assert not fixed.writable
    memoryview(changeable.content)[-1] = 1
    assert changeable.content[-1] == 1
    assert 1 not in os.pread(segment.fileno(), 20 * MB, size)  # nobody else sees that


@pytest.mark.parametrize("size", [OUT_OF_BAND, 10 * MB])
def test_a_buffer_is_a_whole_object(size, segment):
    # Constructors look behind the view (the example in pickle's documentation does): there must
    # be no more than the buffer.
    one, two = sent([Array(bytearray(b"1") * size), Array(bytearray(b"2") * size)], segment)
    assert bytes(memoryview(one.content).obj) == b"1" * size
    assert bytes(memoryview(two.content).obj) == b"2" * size


def test_an_object_that_is_referred_to_twice_is_one_object_afterwards(segment):
    shared = Array(bytearray(b"s" * MB))
    a, b, big, same = sent([shared, shared, *[VALUES["bytes"]] * 2], segment)
    assert a is b
    assert big is same
    assert size_in(segment) < 12 * MB  # and it crossed once


def test_two_objects_over_one_buffer_each_have_a_copy_afterwards(segment):
    buffer = bytearray(b"s" * MB)
    a, b = sent([Array(buffer), Array(buffer)], segment)
    a.content[0] = 0
    assert b.content[0] == ord("s")


def test_numpy_arrays_are_writable_and_cross_out_of_band(segment):
    numpy = pytest.importorskip("numpy")
    for shape in [(0,), (10,), (200, 300), (1000, 1000)]:
        value = numpy.random.default_rng(1).random(shape)
        for one in (value, value.T, value[::2]):
            copy = sent(one, segment)
            assert numpy.array_equal(copy, one)
            assert copy.flags.writeable
    value.flags.writeable = False
    assert not sent(value, segment).flags.writeable


def test_a_buffer_that_is_not_contiguous_is_refused_as_pickle_refuses_it(segment):
    with pytest.raises(pickle.PicklingError, match="non-contiguous"):
        dump(Array(memoryview(bytes(MB))[::2]), plain, segment.open)


# -- small and big ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [bytes, lambda content: Array(bytearray(content))])
def test_a_small_value_is_whole_inside_the_call(kind):
    value = [kind(bytes(SPILL // 3 - 100)) for _ in range(3)]
    assert SPILL // 3 - 100 > OUT_OF_BAND
    blob = dump(value, plain, no_segment)
    assert not is_spilled(blob)
    assert load(blob) == value


def test_the_segment_is_used_from_the_threshold_on(segment):
    below, at = exact_bytes(SPILL - 1), exact_bytes(SPILL)
    assert len(at) == len(below) + 1
    blob = dump(below, plain, no_segment)
    assert size_of(blob) == SPILL - 1
    assert load(blob) == below
    blob = dump(at, plain, segment.open)
    assert is_spilled(blob)
    assert size_of(blob) == size_in(segment) == SPILL
    assert load(blob, segment.path) == at


def test_many_small_things_are_big_together(segment):
    value = [b"%d" % n for n in range(100_000)]
    blob = dump(value, plain, segment.open)
    assert is_spilled(blob)
    assert load(blob, segment.path) == value


def test_only_a_header_is_left_of_a_big_value(segment):
    value = [Array(bytes(10 * MB)), bytes(10 * MB), bytearray(10 * MB)]
    blob = dump(value, plain, segment.open)
    assert len(blob) < 100
    assert size_of(blob) == size_in(segment) > 30 * MB


def test_the_segment_is_opened_once(segment):
    opened = []

    def open_it():
        opened.append(segment.open())
        return opened[-1]

    dump(VALUES["all sorts"], plain, open_it)
    assert len(opened) == 1
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(opened[0])


def test_the_buffers_are_free_again_after_the_dump(segment):
    small, big = bytearray(OUT_OF_BAND), bytearray(MB)
    dump([Array(small), Array(big), big], plain, segment.open)
    with pytest.raises(RuntimeError):
        dump([Array(small), Array(big), Unpicklable()], plain, segment.open)
    small.append(1)  # a BufferError if somebody looks at it
    big.append(1)


def test_content_that_changes_while_it_is_pickled_was_taken_before(segment):
    scratch = bytearray(b"1" * 70_000)

    class Changes:
        def __reduce_ex__(self, protocol):
            scratch[:] = b"2" * 70_000
            return str, ()

    assert sent([scratch, Changes()], segment)[0] == b"1" * 70_000


# -- limits and errors ------------------------------------------------------------------------


@pytest.mark.parametrize("value", [bytes(MB), Array(bytes(MB)), list(range(MB)), bytearray(MB)])
def test_a_limit_is_held(value, segment):
    size = size_of(dump(value, plain, segment.open))
    assert load(dump(value, plain, segment.open, limit=size), segment.path) == value
    for limit in (0, 1000, size - 1):
        with pytest.raises(PayloadTooLargeError) as caught:
            dump(value, plain, segment.open, limit=limit)
        assert caught.value.limit == limit
        assert limit < caught.value.size <= size


def test_what_is_too_big_at_once_is_never_written(segment):
    for value in (bytes(MB), Array(bytes(MB)), bytearray(MB)):
        with pytest.raises(PayloadTooLargeError, match=r"1,000,\d\d\d bytes.*500,000"):
            dump(value, plain, no_segment, limit=500_000)


def test_the_error_of_a_limit_can_travel_itself():
    error = PayloadTooLargeError(20, 10)
    copy = pickle.loads(pickle.dumps(error))
    assert (copy.size, copy.limit, str(copy)) == (20, 10, str(error))


def test_what_cannot_be_pickled_leaves_nothing_behind(segment):
    with pytest.raises(RuntimeError, match="not this one"):
        dump([bytes(10 * MB), Array(bytes(MB)), Unpicklable()], plain, segment.open)
    assert size_in(segment) == 0
    with pytest.raises(RuntimeError, match="not this one"):
        dump([1, Unpicklable()], plain, no_segment)
    assert sent(VALUES["all sorts"], segment) == VALUES["all sorts"]  # it can still be used


def test_a_segment_that_cannot_be_opened_is_the_error():
    with pytest.raises(FileNotFoundError):
        dump(bytes(MB), plain, partial(open_segment, "/nowhere/at/all"))


@on_linux
def test_memory_that_runs_out_is_an_error_and_not_a_crash(segment):
    resource = pytest.importorskip("resource")
    signal = pytest.importorskip("signal")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MB, before[1]))
    try:
        with pytest.raises(OSError, match="large"):
            dump([bytes(700_000), Array(bytes(700_000))], plain, segment.open)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert size_in(segment) == 0


def test_a_value_whose_segment_is_not_given_or_too_short_is_refused(segment):
    blob = dump([Array(bytes(MB)), bytes(MB)], plain, segment.open)
    with pytest.raises(ValueError, match="no segment was given"):
        load(blob)
    for size in (0, 100, MB, size_of(blob) - 1):
        os.ftruncate(segment.fileno(), size)
        with pytest.raises(EOFError, match="fewer bytes"):
            load(blob, segment.path)
    with pytest.raises(EOFError, match="fewer bytes"):
        load(dump(Array(bytes(OUT_OF_BAND)), plain, no_segment)[:-1])


@pytest.mark.parametrize("rubbish", [b"", b"rubbish", b"\xff" * 40, bytes(17)])
def test_rubbish_is_an_error(rubbish, segment):
    with pytest.raises((EOFError, ValueError, pickle.UnpicklingError, transport.struct.error)):
        load(rubbish, segment.path)


# -- segments ---------------------------------------------------------------------------------


def test_a_segment_may_be_written_again_and_closed_once_it_was_read(segment):
    first, second = Array(bytearray(b"1" * 10 * MB)), Array(bytearray(b"2" * MB))
    one, same = sent(first, segment), sent(first, segment)
    two = sent(second, segment)  # shorter: what is left of the first is not looked at
    assert one == same == first
    assert two == second
    memoryview(two.content)[0] = 0
    segment.close()
    assert one == same == first
    assert two.content[:2] == b"\x002"


def test_a_segment_can_be_read_through_a_descriptor_as_often_as_one_likes(segment):
    for value in (VALUES["bytes"], VALUES["all sorts"]):
        blob = dump(value, plain, partial(os.dup, segment.fileno()))  # wherever that one stands
        for _ in range(2):
            assert load(blob, segment.fileno()) == value


def test_closing_twice_closes_nothing_of_others():
    segment = Segment.create()
    number = segment.fileno()
    segment.close()
    with open(os.devnull) as file:
        assert file.fileno() == number
        segment.close()
        os.fstat(number)


@on_linux
def test_a_segment_that_was_closed_is_never_somebody_elses_file(tmp_path):
    segment = Segment.create()
    segment.close()
    with pytest.raises(FileNotFoundError):
        segment.open()
    victim = tmp_path / "precious"
    victim.write_text("data")
    with victim.open("r+") as file:
        assert segment.path.endswith(f"/{file.fileno()}")
        before = descriptors()
        with pytest.raises(FileNotFoundError, match="closed by its owner"):
            dump(bytes(MB), plain, segment.open)
        assert descriptors() == before
    assert victim.read_text() == "data"


@on_linux
def test_a_segment_is_not_passed_on_to_subprocesses(segment):
    assert not os.get_inheritable(segment.fileno())
    descriptor = segment.open()
    assert not os.get_inheritable(descriptor)
    os.close(descriptor)


def test_elsewhere_a_segment_is_a_temporary_file(monkeypatch, tmp_path):
    import tempfile

    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with Segment.create() as segment:
        copy = sent(VALUES["all sorts"], segment)
        assert [str(one) for one in tmp_path.iterdir()] == [segment.path]
    assert not list(tmp_path.iterdir())
    assert copy == VALUES["all sorts"]
    segment.close()


@on_linux
def test_no_descriptor_is_left_on_any_path():
    before = descriptors()
    kept = []
    for _ in range(20):
        with Segment.create() as segment:
            kept.append(sent(VALUES["all sorts"], segment))
            kept.append(sent(VALUES["big buffer"], segment))
            blob = dump(VALUES["bytes"], plain, segment.open)
            with pytest.raises(RuntimeError):
                dump([bytes(MB), Unpicklable()], plain, segment.open)
            with pytest.raises(PayloadTooLargeError):
                dump([bytes(MB), bytes(MB)], plain, segment.open, limit=MB * 3 // 2)
            with pytest.raises(EOFError):
                load(blob, segment.path)
    assert descriptors() == before  # although there are copies


# -- two processes ------------------------------------------------------------------------------

OTHER_SIDE = """
import os, pickle, sys
from functools import partial
from quantum_async.engine.executors.transport import dump, load, open_segment

plain = partial(pickle.Pickler, protocol=5)

class Fatal:
    def __reduce_ex__(self, protocol):
        os._exit(7)

while True:
    try:
        blob, arguments, result, then = pickle.load(sys.stdin.buffer)
    except EOFError:
        break
    value = load(blob, arguments)
    if then == "die":
        value = [value, Fatal()]
    pickle.dump(dump(value, plain, partial(open_segment, result)), sys.stdout.buffer)
    sys.stdout.buffer.flush()
"""


class Echo:
    """A process that sends back what it gets."""

    def __init__(self):
        self.process = subprocess.Popen(
            [sys.executable, "-c", OTHER_SIDE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def __call__(self, value, arguments, result, then=""):
        blob = dump(value, plain, arguments.open)
        pickle.dump((blob, arguments.path, result.path, then), self.process.stdin)
        self.process.stdin.flush()
        return load(pickle.load(self.process.stdout), result.path)

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        return self.process.wait()


@pytest.fixture
def echo():
    echo = Echo()
    yield echo
    echo.close()


@pytest.fixture
def other_segment():
    with Segment.create() as segment:
        yield segment


# Only what a process that cannot import this file can unpickle.
TRAVELLERS = [name for name, value in VALUES.items() if b"Array" not in pickle.dumps(value, 5)]


@pytest.mark.slow
def test_values_cross_to_another_process_and_back(echo, segment, other_segment):
    for name in TRAVELLERS:
        assert echo(VALUES[name], segment, other_segment) == VALUES[name]
    buffers = [pickle.PickleBuffer(bytearray([n]) * MB) for n in range(20)]
    got = echo(buffers, segment, other_segment)  # out of band; they come back as what holds them
    assert [bytes(one) for one in got] == [bytes(one) for one in buffers]


@pytest.mark.slow
def test_one_segment_will_do_for_both_ways(echo, segment):
    for size in (10 * MB, MB, 1, 3 * MB, SPILL):
        value = os.urandom(size)
        assert echo(value, segment, segment) == value


@pytest.mark.slow
def test_a_writer_that_dies_half_way_leaves_nothing_that_could_be_taken_for_a_value(
    echo, segment, other_segment
):
    with pytest.raises(EOFError):
        echo(VALUES["bytes"], segment, other_segment, "die")
    assert echo.close() == 7
    assert size_in(other_segment) > 10 * MB  # half a value, of which no header was sent
    other_segment.close()
    with Segment.create() as fresh:
        second = Echo()
        assert second(b"x" * MB, segment, fresh) == b"x" * MB
        assert second.close() == 0


@pytest.mark.slow
def test_300_megabytes_cross(echo, segment, other_segment):
    block = os.urandom(MB)
    value = [block * 150, bytearray(block * 150)]
    assert echo(value, segment, other_segment) == value


@pytest.mark.slow
def test_threads_do_not_disturb_each_other():
    wrong = []

    def work(letter):
        value = [Array(bytearray(letter * MB)), letter * MB]
        with Segment.create() as segment:
            wrong.extend(n for n in range(30) if sent(value, segment) != value)

    threads = [threading.Thread(target=work, args=(letter,)) for letter in (b"a", b"b", b"c", b"d")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_sizes_have_64_bits():
    layout = [2**33, 2**34, 2**35]
    blob = transport._HEADER.pack(True, 2**32 + 1, 3) + transport.struct.pack("=3Q", *layout)
    assert size_of(blob) == 2**32 + 1 + sum(layout)


def test_a_write_that_stops_early_is_continued(segment, monkeypatch):
    class Slow(transport.io.FileIO):
        """A system that writes little at once, as Linux does from 2 GiB on."""

        def write(self, view):
            pieces.append(view.nbytes)
            return super().write(view[:100_000])

    pieces = []
    monkeypatch.setattr(transport.io, "FileIO", Slow)
    value = [bytes(MB), Array(os.urandom(MB))]
    assert sent(value, segment) == value
    assert sum(a - b == 100_000 for a, b in pairwise(pieces)) > 15
