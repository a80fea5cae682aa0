"""Replies that no honest process sends: each is refused, cheaply, or is plain data."""

import json
import random
import struct
import time
import tracemalloc

import pytest
import torch

from labkit.grading import wire


def _body(tree, tensors=b""):
    text = tree if isinstance(tree, bytes) else json.dumps(tree).encode()
    return struct.pack(">I", len(text)) + text + tensors


def _tensors(shape, dtype="F32", offsets=None, data=b""):
    head = {"0": {"dtype": dtype, "shape": shape, "data_offsets": offsets or [0, len(data)]}}
    text = json.dumps(head).encode()
    return struct.pack("<Q", len(text)) + text + data


TENSOR = {"t": 0, "grad": False}
FORGED = {
    "nothing": b"",
    "half a length": b"\0\0",
    "length beyond the end": struct.pack(">I", 1 << 31) + b"{}",
    "no JSON": _body(b"\xff\xfe"),
    "deep list": _body(b"[" * 100_000 + b"]" * 100_000),
    "deep dict": _body(b'{"dict":' * 50_000 + b"1" + b"}" * 50_000),
    "many parts": _body([0] * 300_000),
    "long number": _body(b"9" * 100_000),
    "unknown object": _body({"run": "os.system"}),
    "a name": _body({"name": "labkit.grading.wire:send"}),
    "a dict of numbers": _body({"dict": [1, 2]}),
    "a dict with a list as key": _body({"dict": [[[1], 2]]}),
    "no such tensor": _body(TENSOR),
    "a tensor that is no number": _body({"t": [1], "grad": False}),
    "terabytes": _body(TENSOR, _tensors([1 << 40], offsets=[0, 1 << 42])),
    "negative shape": _body(TENSOR, _tensors([-4], data=bytes(4))),
    "shape overflow": _body(TENSOR, _tensors([1 << 32, 1 << 32], data=b"")),
    "offsets reversed": _body(TENSOR, _tensors([1], offsets=[4, 0], data=bytes(4))),
    "data too short": _body(TENSOR, _tensors([4], data=bytes(4))),
    "a tensor to loop over": _body(TENSOR, _tensors([1, 1 << 20], "U8", data=bytes(1 << 20))),
    "many dimensions": _body(TENSOR, _tensors([1] * 64, data=bytes(4))),
    "length of the header": _body(TENSOR, struct.pack("<Q", 1 << 62) + b"{}"),
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
}


@pytest.mark.parametrize("body", FORGED.values(), ids=FORGED.keys())
def test_forged_replies_are_refused(body):
    """Refused at once, and in less memory than a reply may have."""
    tracemalloc.start()
    began = time.perf_counter()
    with pytest.raises(wire.WireError):
        wire.unpack(body)
    assert time.perf_counter() - began < 10
    assert tracemalloc.get_traced_memory()[1] < 100e6
    tracemalloc.stop()


def test_every_damaged_message_is_refused_or_plain():
    """Bytes of true messages, changed at random: nothing but WireError or plain data comes out."""
    chance = random.Random(0)
    true = wire.pack(["nonce", "value", {"A": torch.ones(2, 3), "b": [1.5, None, True, "text"]}])
    refused = 0
    for _ in range(3_000):
        damaged = bytearray(true)
        for _ in range(chance.randint(1, 6)):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        try:
            _expect_plain(wire.unpack(bytes(damaged[: chance.choice([None, -1, -7, 40])])))
        except wire.WireError:
            refused += 1
    assert refused > 1_000


def _expect_plain(value):
    if type(value) is list:
        for item in value:
            _expect_plain(item)
    elif type(value) is dict:
        for key, item in value.items():
            assert type(key) is str
            _expect_plain(item)
    else:
        assert value is None or type(value) in (bool, int, float, str, torch.Tensor)
        assert not isinstance(value, torch.Tensor) or not value.requires_grad


@pytest.mark.parametrize("part", ["[]", '{"dict":[]}', "1"])
def test_the_largest_reply_of_small_parts_stays_small(part):
    """32 MB of text must not become a gigabyte of lists in the judge before they are counted."""
    body = _body(b"[" + b",".join([part.encode()] * (32_000_000 // (len(part) + 1))) + b"]")
    tracemalloc.start()
    try:
        with pytest.raises(wire.WireError):
            wire.unpack(body)
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()
