"""Send plain data as bytes between the judge and a submission's process.

A message is a frame on a stream socket: one byte for its kind, four for its length, then the body.
Data in a body is JSON for the structure and safetensors for the tensors. It cannot run code, and
the judge checks what comes from a submission: size, depth, number of parts, kinds and shapes.
"""

import contextlib
import errno
import json
import socket
import struct
import time
from collections.abc import Callable, Sequence

HEAD = struct.Struct(">cI")
SIZES = struct.Struct(">I")
DEPTH, PARTS, DIMENSIONS = 32, 100_000, 16
FULL = 300.0  # seconds to wait for others' descriptors in flight
LENGTH = 1 << 18  # of a reply's tensor in any dimension: a loop makes one tensor each
TEXT_BYTES = 4 << 20  # of the structure without tensors, so the judge reads it quickly


class WireError(Exception):
    """The message is cut off, too large, or forged."""


def send(sock: socket.socket, kind: bytes, body: bytes = b"") -> None:
    """Write one frame; `kind` is a single byte."""
    sock.sendall(HEAD.pack(kind, len(body)) + body)


def send_fds(
    sock: socket.socket, message: bytes, fds: Sequence[int], hopeless: Callable | None = None
) -> None:
    """As `socket.send_fds`, but retry if the user has too many descriptors in flight.

    The kernel refuses another one (ETOOMANYREFS) above the number of files that the sender may
    open. This raises that limit, then retries until `hopeless()` is true, or for some minutes.
    """
    end = time.monotonic() + FULL
    hopeless = hopeless or (lambda: time.monotonic() > end)
    while True:
        try:
            socket.send_fds(sock, [message], fds)
            return
        except OSError as error:
            if error.errno != errno.ETOOMANYREFS or hopeless():
                raise
        _raise_open_files()
        time.sleep(0.1)


def _raise_open_files():
    """Raise this process's limit on open files to the maximum."""
    import resource  # not on Windows, where nothing is graded

    with contextlib.suppress(OSError, ValueError):
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def receive(sock: socket.socket, most: int, end: float | None = None) -> tuple[bytes, bytes] | None:
    """`(kind, body)` of the next frame; None when the other side hangs up.

    WireError for more than `most` bytes. TimeoutError if it is incomplete at the time `end`, on the
    monotonic clock.
    """
    head = _exactly(sock, HEAD.size, end)
    if head is None:
        return None
    kind, size = HEAD.unpack(head)
    if size > most:
        raise WireError(f"a message of {size:,} bytes, but only {most:,} are allowed")
    body = _exactly(sock, size, end)
    if body is None:
        raise WireError("a message was cut off")
    return kind, body


def _exactly(sock, size, end):
    """`size` bytes, or None if the other side closes before the first one."""
    parts, missing = [], size
    while missing:
        if end is not None:  # the remaining time, however slowly bytes arrive
            left = end - time.monotonic()
            if left <= 0:
                raise TimeoutError
            sock.settimeout(left)
        part = sock.recv(min(missing, 1 << 20))
        if not part:
            if parts:
                raise WireError("a message was cut off")
            return None
        parts.append(part)
        missing -= len(part)
    return b"".join(parts)


def pack(value: object, reference: Callable | None = None) -> bytes:
    """`value` as bytes, with objects named by `reference`; TypeError for anything else."""
    from safetensors.torch import save

    tensors = []
    text = json.dumps(_encoded(value, tensors, reference)).encode()
    whole = {str(i): t.detach().cpu().contiguous().clone() for i, t in enumerate(tensors)}
    return SIZES.pack(len(text)) + text + (save(whole) if whole else b"")


def unpack(body: bytes, resolve: Callable | None = None) -> object:
    """The value given to `pack`; WireError for anything else.

    `resolve(name)` finds objects that were sent by name. Without it, names, tuples, dtypes and
    tensors that require grad are refused: a reply is plain data.
    """
    from safetensors.torch import load

    try:
        (size,) = SIZES.unpack_from(body)
        if size > TEXT_BYTES:
            raise WireError(f"a message of {size:,} bytes besides its tensors")
        tree = json.loads(body[SIZES.size : SIZES.size + size])
        data = body[SIZES.size + size :]
        tensors = load(data) if data else {}
        return _Decoder(tensors, resolve).decoded(tree, 0)
    except WireError:
        raise
    except Exception as error:  # json or safetensors on a forged message
        raise WireError(f"not a message: {type(error).__name__}") from None


def _encoded(value, tensors, reference):
    import torch

    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, torch.Tensor):
        tensors.append(value)
        return {"t": len(tensors) - 1, "grad": value.requires_grad}
    if type(value) is list:
        return [_encoded(item, tensors, reference) for item in value]
    if isinstance(value, tuple):
        return {"tuple": [_encoded(item, tensors, reference) for item in value]}
    if isinstance(value, dict):
        pairs = [[k, v] for k, v in value.items()]
        return {"dict": _encoded(pairs, tensors, reference)}
    if isinstance(value, torch.dtype | torch.device):
        return {type(value).__name__: str(value).removeprefix("torch.")}
    name = reference(value) if reference else None
    if name is None:
        raise TypeError(f"a {type(value).__name__} is not data")
    return {"name": name}


class _Decoder:
    """Decodes the tree of a message; counts its parts, so that a small one can't grow large."""

    def __init__(self, tensors, resolve):
        self.tensors, self.resolve, self.parts = tensors, resolve, 0

    def decoded(self, tree, depth):
        self.parts += 1
        if depth > DEPTH or self.parts > PARTS:
            raise WireError("a message that is nested too deeply or has too many parts")
        if tree is None or type(tree) in (bool, int, float, str):
            return tree
        if type(tree) is list:
            return [self.decoded(item, depth + 1) for item in tree]
        if "dict" in tree:
            pairs = [[self.decoded(part, depth + 1) for part in pair] for pair in tree["dict"]]
            if self.resolve is None and any(type(key) is not str for key, _ in pairs):
                raise WireError("a reply with a key that is not text")
            return dict(pairs)
        if "t" in tree:
            return self._tensor(self.tensors[str(tree["t"])], tree["grad"])
        if self.resolve is None:
            raise WireError("a reply with more than plain data")
        return self._special(tree, depth)

    def _tensor(self, tensor, grad):
        longest = LENGTH if self.resolve is None else 1 << 31
        if tensor.dim() > DIMENSIONS or max(tensor.shape, default=0) > longest:
            raise WireError("a reply with a tensor of a strange shape")
        if grad and self.resolve is None:
            raise WireError("a reply with a tensor that requires grad")
        return tensor.requires_grad_() if grad else tensor

    def _special(self, tree, depth):
        import torch

        ((kind, value),) = tree.items()
        if kind == "tuple":
            return tuple(self.decoded(item, depth + 1) for item in value)
        if kind == "dtype":
            return getattr(torch, value)
        if kind == "device":
            return torch.device(value)
        return self.resolve(value)
