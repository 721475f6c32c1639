#!/usr/bin/env bash
# Resolves pyproject.toml's dependencies for every supported Python into constraints.txt, with hashes.
set -euo pipefail
cd "$(dirname "$0")/.."
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
python3 -m venv "$scratch"
"$scratch/bin/pip" --quiet install uv
"$scratch/bin/uv" pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
  --no-header --group dev pyproject.toml --output-file constraints.txt "$@"
