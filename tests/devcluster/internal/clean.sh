#!/usr/bin/env bash
# Ends every process of the instance and removes its namespace, cgroups and state, whatever is left of them.
# The caller holds the lock.
. "$(dirname "${BASH_SOURCE[0]}")/../lib.sh"

# Process 1 takes the whole pid namespace and every mount along.
if pid=$(node_pid); then
  kill -KILL "$pid"
  until_ok 30 test ! -e "/proc/$pid" || die "process $pid does not end" "see what it waits for: cat /proc/$pid/stack"
fi
# Everything that still works in the network namespace is ours, the forwarders above all.
namespace_pids() { ip netns pids "$NAME" 2> /dev/null; }
no_process_left() {
  local pids
  pids=$(namespace_pids) || return 0
  # shellcheck disable=SC2086  # a list of numbers
  [ -z "$pids" ] || { kill -KILL $pids && return 1; }
}
until_ok 30 no_process_left ||
  die "processes do not end: $(namespace_pids | xargs)" "see what they wait for: cat /proc/PID/stack"
[ ! -e "$NETNS" ] || ip netns delete "$NAME"
until_ok 30 "$HERE/internal/cgroups.sh" remove ||
  die "cgroups below /sys/fs/cgroup/*/$NAME are still in use" "end the processes in their cgroup.procs"
rm -rf --one-file-system "$STATE"
