"""`python tests/gpu/card COMMAND…` runs a command in which torch finds a card (see card.cpp).

PRETENDED_CAPABILITY=7.5 makes it a card without bf16, like a T4.
"""

import os
import subprocess
import sys
from pathlib import Path

import torch

HERE = Path(__file__).parent
TORCH = Path(torch.__file__).parent


def build():
    """Compile card.cpp beside this torch, if that is not done yet; the library's path."""
    source, made = HERE / "card.cpp", HERE / "build" / f"card-{torch.__version__}.so"
    if not made.exists() or made.stat().st_mtime < source.stat().st_mtime:
        made.parent.mkdir(exist_ok=True)
        headers = ["-I", TORCH / "include", "-I", TORCH / "include/torch/csrc/api/include"]
        libraries = ["-L", TORCH / "lib", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{TORCH / 'lib'}"]
        compiler = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-fPIC", "-shared"]
        subprocess.run([*compiler, *headers, source, *libraries, "-o", made], check=True)
    return made


if __name__ == "__main__":
    path = os.pathsep.join(filter(None, [str(HERE), os.environ.get("PYTHONPATH")]))
    found = {"PRETENDED_CARD": str(build()), "PYTHONPATH": path}
    os.execvpe(sys.argv[1], sys.argv[1:], os.environ | found)
