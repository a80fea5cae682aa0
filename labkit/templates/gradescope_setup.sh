#!/usr/bin/env bash
# Gradescope runs this once, as root on Ubuntu, when it builds the autograder's image.
set -euo pipefail
source=$(cd "$(dirname "$0")" && pwd)
home=${AUTOGRADER:-/autograder}

export DEBIAN_FRONTEND=noninteractive
apt-get update
apt-get install -y --no-install-recommends bubblewrap python3-venv

# uv uses the image's Python if it is new enough and otherwise installs one (Ubuntu 22.04).
python3 -m venv "$home/uv"
"$home/uv/bin/pip" install --quiet uv
uv=$home/uv/bin/uv
export UV_PYTHON_INSTALL_DIR=$home/python
"$uv" venv --quiet --python '>=3.11,<3.14' "$home/venv"
export VIRTUAL_ENV=$home/venv
# torch without CUDA is 3 GB smaller; if its package index does not answer, use the default index.
"$uv" pip install --quiet torch --index-url https://download.pytorch.org/whl/cpu ||
  "$uv" pip install --quiet torch
"$uv" pip install --quiet "$source[grading]" -c "$source/constraints.txt"
"$home/venv/bin/labkit" --version
