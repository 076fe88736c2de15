#!/usr/bin/env bash
# Several workers on this machine, described to each by TF_CONFIG: how many, then the flags of elrt-train.
#
#   examples/cluster/tf_config.sh 2 --run_dir=runs/two --batch_size=128
#
# On real hosts each starts its own worker, with `"host1:2222", "host2:2222"` as addresses and its own index.
# Ends with 0 if all workers did, and ends all of them if one fails. SIGTERM and Ctrl-C reach every worker: they save.
set -euo pipefail

workers=${1:?how many workers}
shift

ports=$(python3 - "$workers" <<'END'
import socket, sys

sockets = [socket.create_server(("", 0)) for _ in range(int(sys.argv[1]))]
print(*[one.getsockname()[1] for one in sockets])
END
)
addresses=$(printf ', "localhost:%s"' $ports)
cluster="{\"worker\": [${addresses#, }]}"

trap : INT TERM # ends the wait below
pids=()
for ((index = 0; index < workers; index++)); do
  # One GPU to a worker, where there are some.
  CUDA_VISIBLE_DEVICES=$index TF_CONFIG="{\"cluster\": $cluster, \"task\": {\"type\": \"worker\", \"index\": $index}}" \
    elrt-train "$@" &
  pids+=($!)
done

status=0
for _ in "${pids[@]}"; do
  wait -n || { status=$? && break; }
done
kill "${pids[@]}" 2>/dev/null || true
# A worker that waits for one which never came does not hear SIGTERM.
for ((second = 0; second < 60; second++)); do
  kill -0 "${pids[@]}" 2>/dev/null || break
  sleep 1 || true
done
kill -KILL "${pids[@]}" 2>/dev/null || true
wait
exit $status
