# Shared by the scripts of this folder: where things are.
# shellcheck shell=bash
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${FINETUNE_CACHE:-$HOME/.cache/finetune-operator}
devcluster=$root/tests/devcluster
export FINETUNE_CACHE=$cache
mkdir -p "$cache/log"

say() { printf '\033[1m== %s\033[0m\n' "$*"; }
die() {
  printf 'error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf '  cure: %s\n' "$2" >&2
  exit 1
}
