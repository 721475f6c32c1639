#!/usr/bin/env bash
# Draws docs/diagrams/*.svg from the texts beside them (*.dot) with graphviz. Each picture names the SHA-256 of its text, so
# that a test sees one that was forgotten.
set -euo pipefail
cd "$(dirname "$0")/../docs/diagrams"

for source in *.dot; do
  digest=$(sha256sum "$source" | cut -d ' ' -f 1)
  dot -Tsvg "$source" | sed "/^<svg /i <!-- made by scripts/diagrams.sh from $source, SHA-256 $digest -->" >"${source%.dot}.svg"
done
