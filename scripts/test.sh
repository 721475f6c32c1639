#!/usr/bin/env bash
# The test suite, in parallel (each test has its own simulated TPM), with coverage of lines and branches when the whole
# suite runs.
set -euo pipefail
cd "$(dirname "$0")/.."
if [ $# -gt 0 ]; then exec pytest "$@"; fi
rm -f .coverage .coverage.*
pytest -n "${TEST_PROCESSES:-$(($(nproc) * 2))}" --dist worksteal --cov --cov-report=
coverage report
