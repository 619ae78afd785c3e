# shellcheck shell=bash
# Loopback forwarders of one instance. Each is a process known by a key, with three files in $STATE/forwards:
# KEY.pid, KEY.target (what it was asked for and the address that this meant) and KEY.port (written once it serves).

# forwarder_pid KEY: its pid, if it lives. The command line is checked because pids are reused.
forwarder_pid() {
  local pid
  pid=$(cat "$STATE/forwards/$1.pid" 2> /dev/null) || return 1
  grep -qazxF -- "$STATE/forwards/$1.port" "/proc/$pid/cmdline" 2> /dev/null && echo "$pid"
}

stop_forwarder() {
  local pid
  if pid=$(forwarder_pid "$1"); then
    kill "$pid"
    until_ok 5 test ! -e "/proc/$pid" || kill -KILL "$pid"
  fi
  rm -f "$STATE/forwards/$1".*
}

# start_forwarder KEY FIRST-LAST NAME IP:PORT: listens on the first free port of the range. The same KEY, NAME and
# address again: nothing is done. Another NAME or address under KEY: the old forwarder ends first.
start_forwarder() {
  local files=$STATE/forwards/$1 target="$3 $4" log=$LOGS/forward-$1.log
  if forwarder_pid "$1" > /dev/null && [ "$(cat "$files.target")" = "$target" ]; then return; fi
  stop_forwarder "$1"
  setsid "$PYTHON" "$HERE/internal/forwarder.py" --listen "$2" --netns "$NETNS" --connect "$4" --ready "$files.port" \
    < /dev/null > "$log" 2>&1 9>&- &
  echo $! > "$files.pid"
  echo "$target" > "$files.target"
  until_ok 10 forwarder_settled "$1" || true
  [ -e "$files.port" ] ||
    die "no loopback port of $2 can be forwarded: $(tail -n 1 "$log")" "see who holds it: ss -ltnp 'sport = :${2%-*}'"
}
# Settled: it serves, or it has ended. Not by forwarder_pid: just after its start the process still has the command line of this shell.
forwarder_settled() { [ -e "$STATE/forwards/$1.port" ] || ! kill -0 "$(cat "$STATE/forwards/$1.pid")" 2> /dev/null; }

# The API server's port on 127.0.0.1 stays the same from one `up` to the next, unless somebody else has taken it.
forward_api() {
  local first=16443
  [ "$NAME" = ftdev ] || first=$((16500 + $(cksum <<< "$NAME" | cut -d' ' -f1) % 1000))
  start_forwarder api "$first-$((first + 20))" kube-apiserver "$NODE_IP:$API_PORT"
  write_kubeconfig "$KUBECONFIG_FILE" "https://127.0.0.1:$(cat "$STATE/forwards/api.port")" admin
}
