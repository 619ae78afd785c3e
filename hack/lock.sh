#!/bin/bash
# lock.sh: lock files of the development environment and of the images, with hashes and without index addresses.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
cd "$root"
"$cache/uv/bin/uv" pip compile pyproject.toml --extra operator --extra runtime --extra dev --generate-hashes \
  --no-header --no-annotate --no-emit-index-url --python-version 3.11 --quiet --output-file requirements-dev.lock
images/lock.sh
