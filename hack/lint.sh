#!/bin/bash
# lint.sh: Python, shell scripts and Dockerfiles.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
cd "$root"

.venv/bin/ruff check .
.venv/bin/ruff format --check --quiet . || die "files are not formatted" "make format"
mapfile -t scripts < <(git ls-files --cached --others --exclude-standard | while read -r file; do
  [ -f "$file" ] && head -c 64 "$file" | head -n 1 | grep -aqE '^#!.*\b(ba)?sh\b' && echo "$file"
done)
.venv/bin/shellcheck --external-sources --source-path=SCRIPTDIR "${scripts[@]}"
mapfile -t dockerfiles < <(git ls-files --cached --others --exclude-standard '*Dockerfile')
.venv/bin/hadolint --config images/.hadolint.yaml "${dockerfiles[@]}"
echo "lint: ${#scripts[@]} scripts and ${#dockerfiles[@]} Dockerfiles are clean"
