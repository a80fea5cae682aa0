#!/usr/bin/env bash
# Gradescope runs this for each submission. It reads submission/ and writes results/results.json.
set -euo pipefail
cd "${AUTOGRADER:-/autograder}"
options=()
if [ -f source/private_checks.py ]; then options+=(--checks source/private_checks.py); fi
exec "${PYTHON:-venv/bin/python}" -m labkit.grading.after.gradescope \
  submission results/results.json LAB "${options[@]}"
