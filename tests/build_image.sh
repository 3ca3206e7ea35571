# shellcheck shell=bash
# The image, built with Debian's own tools and kept in build/image: what tests/image_test.sh and
# tests/cluster/image.sh share, so that neither builds what the other has. They read it with `.`,
# in the root of the checkout; it sets `images` (the folder), `driver` and `storage` (the options
# with which buildah and podman find it).

images=$PWD/build/image
# Without overlay mounts each container is a whole copy of the image: slow, and it works everywhere.
driver=vfs layers=false
mkdir -p "$images"/probe/{lower,upper,work,merged}
if mount -t overlay probe "$images/probe/merged" -o \
    "lowerdir=$images/probe/lower,upperdir=$images/probe/upper,workdir=$images/probe/work" 2>/dev/null; then
    umount "$images/probe/merged"
    driver=overlay layers=true
fi
storage=(--root "$images/$driver" --runroot "$images/run" --storage-driver "$driver")

# as_image NAME FILE [DESTINATION [OPTION...]]: an image of one file or archive; OPTIONs are those of
# `buildah config`.
as_image() {
    local container
    container=$(buildah "${storage[@]}" from scratch)
    buildah "${storage[@]}" add --quiet "$container" "$2" "${3:-/}" >/dev/null
    [ $# -le 3 ] || buildah "${storage[@]}" config "${@:4}" "$container"
    buildah "${storage[@]}" commit --quiet --rm "$container" "$1" >/dev/null
}

# make_base: localhost/base from Debian's packages, in the place of the official image of Python.
make_base() {
    ! buildah "${storage[@]}" inspect localhost/base >/dev/null 2>&1 || return 0
    local release
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mmdebstrap --quiet --variant=minbase --dpkgopt=force-unsafe-io \
        --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
        --include=python3-minimal,python3-pip,python3-venv,ca-certificates "$release" "$images/base.tar"
    as_image localhost/base "$images/base.tar"
    rm "$images/base.tar"
}

# make_image CERTIFICATES [OPTION...]: the cpu variant on that base; prints its ID. The folder of
# certificates is lent to the build and does not become part of the image.
make_image() {
    buildah "${storage[@]}" bud --isolation chroot --layers="$layers" --jobs 2 --quiet \
        --build-arg BASE_IMAGE=localhost/base --build-arg VARIANT=cpu \
        --volume "$1:/etc/ssl/certs:ro" "${@:2}" . 2> >(grep -v HEALTHCHECK >&2)
}
