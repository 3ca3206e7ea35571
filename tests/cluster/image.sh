#!/usr/bin/env bash
# Builds the image with Debian's own tools and imports nothing: it leaves build/cluster/images.tar,
# which holds localhost/regraft and localhost/pause (what Kubernetes holds a pod's namespaces with).
# The store of buildah is that of tests/image_test.sh, so that neither builds what the other has.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null

state=$PWD/build/cluster
images=$PWD/build/image
mkdir -p "$state" "$images"/probe/{lower,upper,work,merged}
driver=vfs layers=false
if mount -t overlay probe "$images/probe/merged" -o \
    "lowerdir=$images/probe/lower,upperdir=$images/probe/upper,workdir=$images/probe/work" 2>/dev/null; then
    umount "$images/probe/merged"
    driver=overlay layers=true
fi
buildah=(nice buildah --root "$images/$driver" --runroot "$images/run" --storage-driver "$driver")

if ! "${buildah[@]}" inspect localhost/base >/dev/null 2>&1; then
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    [ -s "$images/base.tar" ] || mmdebstrap --quiet --variant=minbase \
        --include=python3-minimal,python3-pip,python3-venv,ca-certificates "$release" "$images/base.tar"
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add --quiet "$container" "$images/base.tar" / >/dev/null
    "${buildah[@]}" commit --quiet --rm "$container" localhost/base
    rm "$images/base.tar"
fi

# VARIANT is for a Dockerfile that knows it; another one says that it does not, and builds.
# The machine's certificates are lent to the build and do not become part of the image.
"${buildah[@]}" bud --isolation chroot --layers="$layers" --quiet \
    --build-arg BASE_IMAGE=localhost/base --build-arg VARIANT=cpu \
    --volume /etc/ssl/certs:/etc/ssl/certs:ro --tag localhost/regraft . >"$state/image.id"
if [ "$(cat "$state/image.id")" = "$(cat "$state/containerd/imported.id" 2>/dev/null)" ]; then
    exit
fi
rm -f "$state/regraft.tar"
"${buildah[@]}" push --quiet localhost/regraft "docker-archive:$state/regraft.tar:localhost/regraft:latest"
if ! [ -s "$state/pause.tar" ]; then
    gcc -Os -static -DVERSION=3.2 -o "$state/pause" "$state/kubernetes/pause.c"
    container=$("${buildah[@]}" from scratch)
    "${buildah[@]}" add --quiet "$container" "$state/pause" /pause >/dev/null
    "${buildah[@]}" config --entrypoint '["/pause"]' "$container"
    "${buildah[@]}" commit --quiet --rm "$container" localhost/pause
    "${buildah[@]}" push --quiet localhost/pause "docker-archive:$state/pause.tar:localhost/pause:latest"
fi
