#!/bin/bash
# lock.sh: resolves each image's pyproject.toml anew and writes its lock files: hashed, wheels of Linux x86-64 only, no addresses. They are pip
# requirement files, cut so that a build can install parts of one resolution in layers of their own:
#   operator/requirements.lock   everything
#   trainer/torch.lock           torch alone
#   trainer/cuda.lock            torch's CUDA libraries and triton, which the cpu targets leave out
#   trainer/rest.lock            the rest; trainer/test.lock: what only the target test adds
#   inference/{gpu,cpu}.lock     everything but what is in torch.lock and cuda.lock, which both images share
set -euo pipefail
cd "$(dirname "$0")"
cache=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

install_uv() {
  [ -e "$cache/uv/bin/uv" ] || python3 -m venv "$cache/uv"
  "$cache/uv/bin/pip" install --quiet --disable-pip-version-check --require-hashes -r uv-requirements.txt
}

# resolve DIR: makes $work/main.lock (what the image needs) and $work/all.lock (with its dependency groups).
# The markers go: they would let an install on another platform skip every package and succeed.
resolve() {
  local uv=("$cache/uv/bin/uv" --quiet --no-config --project "$work/$1") export=(export --frozen --no-emit-project --no-header --no-annotate)
  mkdir -p "$work/$1"
  cp "$1/pyproject.toml" "$work/$1/"
  "${uv[@]}" lock
  "${uv[@]}" "${export[@]}" --no-default-groups --output-file "$work/main.lock" > /dev/null
  "${uv[@]}" "${export[@]}" --all-groups --output-file "$work/all.lock" > /dev/null
  sed -i 's/ ; .* \\$/ \\/' "$work/main.lock" "$work/all.lock"
}

# only PATTERN FILE, without PATTERN FILE: the entries (a line "name==version" and its hashes) whose name does or does not match
only() { awk -F== -v pattern="^($1)\$" '/^[a-z]/ { keep = $1 ~ pattern } keep' "$2"; }
without() { awk -F== -v pattern="^($1)\$" '/^[a-z]/ { keep = $1 !~ pattern } keep' "$2"; }
names() { awk -F== '/^[a-z]/ { printf "%s%s", sep, $1; sep = "|" }' "$@"; }

# write FILE: standard input becomes the lock FILE
write() {
  { echo "# Written by images/lock.sh from pyproject.toml; do not edit."; cat; } > "$1"
  printf '%-28s %3d packages\n' "$1" "$(grep -c == "$1")"
}

install_uv

resolve operator
write operator/requirements.lock < "$work/main.lock"

cuda='triton|nvidia-.*|cuda-.*'
resolve trainer
only torch "$work/main.lock" | write trainer/torch.lock
only "$cuda" "$work/main.lock" | write trainer/cuda.lock
without "torch|$cuda" "$work/main.lock" | write trainer/rest.lock
without "$(names "$work/main.lock")" "$work/all.lock" | write trainer/test.lock

shared=$(names trainer/torch.lock trainer/cuda.lock)
only "$shared" "$work/main.lock" > "$work/shared.lock"

resolve inference/gpu
if ! only "$shared" "$work/main.lock" | diff "$work/shared.lock" - >&2; then
  echo "lock.sh: vLLM wants other versions of torch or CUDA than the trainer image (see above): pin both images to one torch" >&2
  exit 1
fi
without "$shared" "$work/main.lock" | write inference/gpu.lock

resolve inference/cpu
without "torch|$cuda" "$work/main.lock" | write inference/cpu.lock
