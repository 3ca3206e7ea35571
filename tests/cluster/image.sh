#!/usr/bin/env bash
# Builds the image, and localhost/pause (what Kubernetes holds a pod's namespaces with), and imports
# neither: it leaves image.id, pause.tar and, where containerd does not have the image yet, regraft.tar
# in build/cluster.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null

. tests/build_image.sh
state=$PWD/build/cluster
mkdir -p "$state"
make_base
make_image /etc/ssl/certs --tag localhost/regraft >"$state/image.id"
push() { buildah "${storage[@]}" push --quiet "localhost/$1" "docker-archive:$state/$1.tar:localhost/$1:latest"; }
if ! [ -s "$state/pause.tar" ]; then
    gcc -Os -static -DVERSION=3.2 -o "$state/pause" "$state/kubernetes/pause.c"
    as_image localhost/pause "$state/pause" /pause --entrypoint '["/pause"]'
    push pause
fi
if [ "$(cat "$state/image.id")" != "$(cat "$state/containerd/imported.id" 2>/dev/null)" ]; then
    rm -f "$state/regraft.tar"
    push regraft
fi
