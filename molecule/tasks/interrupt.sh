#!/usr/bin/env bash
# Starts a run with INVENTORY and PROFILE and kills it as soon as it has written the record, before its handlers.
set -euo pipefail
inventory=$1 profile=$2 record=$3
before=$(stat -c %Y.%i "$record")
setsid ansible-playbook -i "$inventory" playbooks/site.yml -e "profile=$profile" >/dev/null 2>&1 &
run=$!
for _ in $(seq 1200); do
  if [ "$(stat -c %Y.%i "$record")" != "$before" ]; then
    kill -KILL -- "-$run"
    exit 0
  fi
  sleep 0.01
done
echo "the run wrote no record" >&2
exit 1
