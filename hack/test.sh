#!/bin/bash
# test.sh: every check in order, the quick ones first; stops at the first that fails and ends with the number of tests.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "$0")/lib.sh"
cd "$root"

total=0
summary=()
# stage NAME COMMAND...: runs a stage, counts pytest's "N passed"
stage() {
  local name=$1 started=$SECONDS log passed
  shift
  log=$cache/log/test-$name.log
  say "$name"
  if ! "$@" 2>&1 | tee "$log"; then
    die "stage '$name' failed after $((SECONDS - started)) s; its output is in $log" "run 'make $name' while you mend it"
  fi
  # a stage without pytest counts none; awk reads every line, so that nothing here can fail
  passed=$(awk '{ while (match($0, /[0-9]+ passed/)) { n += substr($0, RSTART, RLENGTH) + 0; $0 = substr($0, RSTART + RLENGTH) } } END { print n + 0 }' "$log")
  total=$((total + passed))
  summary+=("$(printf '%-12s %4d tests %5d s' "$name" "$passed" $((SECONDS - started)))")
}

images=(operator trainer-cpu trainer-test inference-cpu)
hack/venv.sh
tests/devcluster/install
# Building images waits for downloads, compiling Kubernetes for the processors: side by side.
setsid images/build.sh "${images[@]}" > "$cache/log/test-images-early.log" 2>&1 &
early=$!
trap 'kill -- -$early 2> /dev/null || true' EXIT
# helm and kubectl are needed from the unit tests on
stage tools tests/devcluster/build
stage lint make --no-print-directory lint
stage types make --no-print-directory types
stage layers make --no-print-directory layers
stage unit make --no-print-directory unit
stage simulation .venv/bin/pytest -n 2 tests/simulation
stage simulate make --no-print-directory simulate SEEDS="${SIMULATE_SEEDS:-2000}"
stage generated make --no-print-directory generated
wait "$early" || true # what went wrong happens again below, where it is seen
trap - EXIT            # the number may be somebody else's by now
stage images images/build.sh "${images[@]}" s3
stage runtime make --no-print-directory runtime RUNTIME="-m 'not long'"
stage integration make --no-print-directory integration
stage crash make --no-print-directory test-crash KILLS=12
stage e2e make --no-print-directory e2e E2E="-m 'not long'"
[ -n "${KEEP_CLUSTER:-}" ] || tests/devcluster/down

say "summary"
printf '%s\n' "${summary[@]}"
echo "all stages in $SECONDS s"
echo "$total passed, 0 failed"
