#!/usr/bin/env bash
# Starts a run with INVENTORY and PROFILE, and stops its host as soon as the run has written the record there: the
# only node of BED, in CONTAINER. The host comes back when the run has ended: a restart that is over before the run's
# next task is one that the run need not notice. Prints the output of the run, and exits with 0 if the run failed.
set -euo pipefail
inventory=$1 profile=$2 bed=$3 container=$4
look() { podman exec "$container" stat -c %Y.%i /var/lib/magi-llama/deployment.json; }
said=$(mktemp)
trap 'rm -f "$said"' EXIT
before=$(look)
ansible-playbook -i "$inventory" playbooks/site.yml -e "profile=$profile" >"$said" 2>&1 &
run=$!
for _ in $(seq 600); do
  now=$(look)
  if [ "$now" != "$before" ]; then
    podman stop --time 10 "$container" >/dev/null
    code=0
    wait "$run" || code=$?
    python3 tests/nodes/nodes.py restart --name "$bed"
    cat "$said"
    echo "the run ended with $code"
    [ "$code" -ne 0 ]
    exit
  fi
  sleep 0.05
done
echo "the run wrote no record" >&2
exit 1
