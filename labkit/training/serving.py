"""Serve a model over OpenAI's protocol in a separate process, such as `transformers serve`."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

from labkit.errors import LabError

NEEDS = ("fastapi", "openai", "uvicorn")
INSTALL = "pip install 'lora-labs[serve]'"


def missing(needs: Sequence[str] = ()) -> list[str]:
    """Which of these packages, or of those that this module needs, are not installed."""
    return [name for name in needs or NEEDS if not find_spec(name)]


@contextmanager
def transformers_serve(folder: str | Path, seconds: float = 120) -> Iterator[str]:
    """Serve the model in `folder` on this machine while the block runs; yields the base URL.

    Needs no network. LabError when a package is missing, when the server exits, or when it does not
    answer within `seconds`.
    """
    if missing():
        raise LabError(f"{', '.join(missing())} missing: {INSTALL}")
    quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    command = [_command(), "serve", str(folder)]
    with running("transformers serve", command, os.environ | quiet, seconds) as address:
        yield address


@contextmanager
def running(name: str, command: list[str], env: Mapping[str, str], seconds: float) -> Iterator[str]:
    """Run the OpenAI-compatible server `name` while the block runs; yields the base URL.

    `command` gets --host and --port, a free port on this machine. LabError when the server exits,
    or when its /health does not answer within `seconds`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, env=env, stdout=log, stderr=log)
        try:
            _wait(name, server, f"http://127.0.0.1:{port}/health", seconds, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            stop(server)


def stop(server: subprocess.Popen) -> None:
    """Terminate a server and wait until it has exited."""
    server.terminate()
    try:
        server.wait(10)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _command():
    here = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    return shutil.which("transformers", path=here) or "transformers"


def _wait(name, server, address, seconds, log):
    """Return once `address` answers; LabError with the server's last line when it does not."""
    until = time.monotonic() + seconds
    while time.monotonic() < until and server.poll() is None:
        try:
            return urllib.request.urlopen(address, timeout=2).close()
        except OSError:
            time.sleep(0.3)
    log.seek(0)
    lines = [line.strip() for line in log if line.strip()] or ["no output"]
    state = "ended" if server.poll() is not None else f"did not answer in {seconds} s"
    raise LabError(f"{name} {state}: {lines[-1]}")
