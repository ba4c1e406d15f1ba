#!/bin/sh
# The virtual environment's `molecule`. molecule names its ephemeral folder, in ANSIBLE_HOME, after the last part of the
# checkout's path only, so two clones would share it. SSH's sockets stay in the user's home, because their paths must be short.
set -eu
checkout=$(dirname "$(readlink -f "$0")")/../..
checkout=$(cd "$checkout" && pwd)
export ANSIBLE_HOME="${ANSIBLE_HOME:-$checkout/.cache/ansible}"
export ANSIBLE_SSH_CONTROL_PATH_DIR="${ANSIBLE_SSH_CONTROL_PATH_DIR:-$HOME/.ansible/cp}"
export PATH="$checkout/.venv/bin:$PATH"
exec "$checkout/.venv/bin/python" -m molecule "$@"
