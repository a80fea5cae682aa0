#!/usr/bin/env bash
# Gradescope runs this for each submission: submission/ in, results/results.json out.
set -euo pipefail
cd "${AUTOGRADER:-/autograder}"
options=()
if [ -f source/private_checks.py ]; then options+=(--checks source/private_checks.py); fi
exec "${PYTHON:-venv/bin/python}" -m labkit.grading.after.gradescope \
  submission results/results.json LAB "${options[@]}"
