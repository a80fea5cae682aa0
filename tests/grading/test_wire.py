"""Messages between the judge and a submission: what goes in comes out, and nothing else."""

import errno
import math
import os
import resource
import socket
import threading
import time

import pytest
import torch

from labkit.grading import wire


def _there_and_back(value):
    return wire.unpack(wire.pack(value), resolve=lambda name: name)


PLAIN = [None, True, -7, 10**40, 0.1, -0.0, math.inf, "ä \ud800 \0", [], {}]
PLAIN += [[1, [2, {"a": [None]}]], {"dict": 1, "t": 0, "name": "x", "tuple": []}]


@pytest.mark.parametrize("value", PLAIN, ids=repr)
def test_plain_data_comes_back_the_same(value):
    back = wire.unpack(wire.pack(value))
    assert back == value and type(back) is type(value)
    assert repr(back) == repr(value)


def test_data_for_a_check_keeps_its_kinds():
    value = {
        1: (2, "x"),
        ("a", 3): torch.bfloat16,
        None: torch.device("meta"),
        2.5: torch.Size((4,)),
    }
    back = _there_and_back(value)
    assert back == value
    assert type(back[1]) is tuple and back["a", 3] is torch.bfloat16


DTYPES = ["float64", "float32", "float16", "bfloat16", "int64", "int32", "int8", "uint8", "bool"]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_keep_bits_dtype_and_shape(dtype):
    dtype = getattr(torch, dtype)
    wide = (torch.randn(4, 6) * 9).to(dtype)
    for tensor in (wide, wide[::2, 1:3], wide.T, wide[0, 0], wide[:0]):
        back = wire.unpack(wire.pack([tensor]))[0]
        assert back.dtype == dtype and back.shape == tensor.shape
        assert torch.equal(back, tensor)


def test_nan_stays_nan_and_a_tensor_keeps_its_flag_and_a_memory_of_its_own():
    nan, tensor = wire.unpack(wire.pack([math.nan, torch.tensor([math.nan])]))
    assert math.isnan(nan) and tensor.isnan().all()
    x = torch.zeros(3, requires_grad=True)
    first, second, other = _there_and_back([x, x, x.detach()])
    assert first.requires_grad and second.requires_grad and not other.requires_grad
    first.data += 1
    assert torch.equal(second, x)


def test_what_is_no_data_is_named_or_refused():
    thing = object()
    assert wire.unpack(wire.pack([thing], lambda x: "it"), {"it": thing}.get) == [thing]
    for value in (thing, 1j, {1, 2}, print):
        with pytest.raises(TypeError):
            wire.pack(value)


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


def test_frames_arrive_whole_and_in_order(pair):
    (ours, theirs), big = pair, bytes(5_000_000)
    writer = threading.Thread(target=lambda: [wire.send(theirs, b"A", big), theirs.close()])
    writer.start()
    assert wire.receive(ours, len(big)) == (b"A", big)
    assert wire.receive(ours, 1) is None
    writer.join()


def test_a_frame_that_is_too_large_is_not_read(pair):
    wire.send(pair[1], b"A", bytes(100))
    with pytest.raises(wire.WireError, match="100 bytes"):
        wire.receive(pair[0], 99)


def test_half_a_frame_is_no_frame(pair):
    pair[1].sendall(wire.HEAD.pack(b"A", 10) + b"half")
    pair[1].close()
    with pytest.raises(wire.WireError, match="cut off"):
        wire.receive(pair[0], 100)


def test_bytes_that_drip_buy_no_time(pair):
    ours, theirs = pair
    done = threading.Event()

    def drip():
        theirs.sendall(wire.HEAD.pack(b"A", 1000))
        while not done.wait(0.05):
            theirs.sendall(b".")

    dripping = threading.Thread(target=drip)
    dripping.start()
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        wire.receive(ours, 1000, began + 0.5)
    assert time.monotonic() - began < 10
    done.set()
    dripping.join()


def test_descriptors_arrive_though_a_neighbour_has_many_under_way(pair, monkeypatch):
    """The kernel refuses above the sender's limit of open files: it is raised, and then waits."""
    ours, theirs = pair
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    low = min(soft, 256)
    real, tries = socket.send_fds, []

    def send(*given):
        tries.append(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
        if len(tries) < 3:
            raise OSError(errno.ETOOMANYREFS, "too many references")
        return real(*given)

    monkeypatch.setattr(socket, "send_fds", send)
    resource.setrlimit(resource.RLIMIT_NOFILE, (low, hard))
    try:
        wire.send_fds(ours, b"s1", [theirs.fileno()])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    message, fds, _, _ = socket.recv_fds(theirs, 10, 1)
    os.close(fds[0])
    assert (message, tries) == (b"s1", [low, hard, hard])
    monkeypatch.setattr(wire, "FULL", -1)  # no time is left
    for given in ({"hopeless": lambda: True}, {}):
        tries.clear()
        with pytest.raises(OSError, match="too many"):
            wire.send_fds(ours, b"s1", [0], **given)
