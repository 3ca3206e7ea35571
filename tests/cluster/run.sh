#!/usr/bin/env bash
# A real Kubernetes on this machine, and `python -m job submit` at work with it; `make cluster-test`.
# Wants root, Debian, 8 GB of memory and 15 GB in build/; the first time it builds Kubernetes and
# the image (a quarter of an hour), later both are there. SCENARIOS are names in scenarios.py: only
# those run, and docs/cluster.md stays as it is.
#
#     tests/cluster/run.sh [SCENARIOS]
set -euo pipefail
cd "$(dirname "$0")/../.."

mkdir -p build/cluster
exec 9>build/cluster/lock
flock --nonblock 9 || { echo 'Another cluster test is at work in this checkout' >&2; exit 1; }
tests/cluster/kubernetes.sh 9>&-
tests/cluster/image.sh 9>&-
.venv/bin/python -m tests.cluster.run "$@"
