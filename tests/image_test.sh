#!/usr/bin/env bash
# Builds the image on a plain Debian machine, without Docker or a registry, and runs the job in it
# the way k8s/base does. Wants root and about 8 GB in build/; `make image-test` runs it.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

for program in buildah podman runc mmdebstrap; do
    command -v "$program" >/dev/null || missing+=("$program")
done
if [ -n "${missing:-}" ]; then
    apt-get update -q
    apt-get install -qy --no-install-recommends "${missing[@]}"
fi

state=$PWD/build/image
mkdir -p "$state"
models=$(mktemp -d "$state/models.XXXX")
# Without overlay mounts each container is a whole copy of the image: slow, and it works everywhere.
driver=vfs layers=false
mkdir -p "$state"/probe/{lower,upper,work,merged}
if mount -t overlay probe "$state/probe/merged" -o \
    "lowerdir=$state/probe/lower,upperdir=$state/probe/upper,workdir=$state/probe/work" 2>/dev/null; then
    umount "$state/probe/merged"
    driver=overlay layers=true
fi
storage=(--root "$state/$driver" --runroot "$state/run" --storage-driver "$driver")
podman=(podman "${storage[@]}" --runtime runc --cgroup-manager cgroupfs --events-backend none)
trap '"${podman[@]}" rm --all --force >/dev/null; rm -rf "$models"' EXIT

say() { printf '\n--- %s\n' "$*"; }
fail() { printf 'FAILED: %s\n' "$*" >&2; exit 1; }

if ! buildah "${storage[@]}" inspect localhost/base >/dev/null 2>&1; then
    say "A base image from Debian's packages"
    # shellcheck disable=SC1091
    release=$(. /etc/os-release && echo "$VERSION_CODENAME")
    mmdebstrap --quiet --variant=minbase \
        --include=python3-minimal,python3-pip,python3-venv,ca-certificates "$release" "$state/base.tar"
    container=$(buildah "${storage[@]}" from scratch)
    buildah "${storage[@]}" add --quiet "$container" "$state/base.tar" / >/dev/null
    buildah "${storage[@]}" commit --quiet --rm "$container" localhost/base
    rm "$state/base.tar"
fi

say 'The image'
# The machine's certificates are lent to the build and do not become part of the image.
buildah "${storage[@]}" bud --isolation chroot --layers="$layers" --quiet \
    --build-arg BASE_IMAGE=localhost/base --volume /etc/ssl/certs:/etc/ssl/certs:ro \
    --tag localhost/regraft .

# As the pod of k8s/base: no network beyond the storage, nothing writable but /work and /tmp.
chmod 777 "$models"
confined=(--network none --read-only --cap-drop ALL --security-opt no-new-privileges
    --ulimit nofile=1024:1024 --ulimit nproc=4096:4096 --tmpfs /tmp
    --volume "$PWD/samples/clipart:/data:ro" --volume "$models:/models"
    --env REGRAFT_DATA=/data --env REGRAFT_MODELS=/models --env REGRAFT_WORK_DIR=/work)
options=("${confined[@]}" --memory 4g --tmpfs /work)

say 'The help, as user 65532'
"${podman[@]}" run --rm "${options[@]}" localhost/regraft run --help | grep -e '--data'
[ "$("${podman[@]}" run --rm "${options[@]}" localhost/regraft id -u)" = 65532 ] || fail 'not user 65532'

say 'A job that cannot start: exit code 2'
code=0
"${podman[@]}" run --rm "${options[@]}" localhost/regraft run || code=$?
[ "$code" = 2 ] || fail "no --name: exit code $code, expected 2"

say 'A job'
"${podman[@]}" run --rm "${options[@]}" --env REGRAFT_NAME=clipart localhost/regraft | tee "$models/result" || fail "the job failed"
grep -q '"status": *"published"' "$models/result" || fail 'not published'
[ -s "$(echo "$models"/clipart/*/saved_model.pb)" ] || fail 'no saved_model.pb'

say 'A job that is stopped: exit code 143 within the grace period'
stopped=$("${podman[@]}" run --detach "${options[@]}" --env REGRAFT_NAME=stopped localhost/regraft)
for _ in $(seq 60); do
    "${podman[@]}" logs "$stopped" 2>&1 | grep -q embed && break
    sleep 1
done
"${podman[@]}" stop --time 30 "$stopped" >/dev/null
code=$("${podman[@]}" inspect --format '{{.State.ExitCode}}' "$stopped")
[ "$code" = 143 ] || { "${podman[@]}" logs "$stopped"; fail "exit code $code, expected 143"; }
[ ! -e "$models/stopped" ] || [ -z "$(find "$models/stopped" -name saved_model.pb)" ] || fail 'published anyway'

say 'A second SIGTERM ends process 1 at once, whatever it is doing'
stopped=$("${podman[@]}" run --detach "${options[@]}" --env REGRAFT_NAME=stopped localhost/regraft)
for _ in $(seq 60); do
    "${podman[@]}" logs "$stopped" 2>&1 | grep -q embed && break
    sleep 1
done
"${podman[@]}" kill --signal TERM "$stopped" >/dev/null
"${podman[@]}" kill --signal TERM "$stopped" >/dev/null || true  # it may be gone by now
code=$("${podman[@]}" wait "$stopped")
[ "$code" = 143 ] || { "${podman[@]}" logs "$stopped"; fail "exit code $code, expected 143"; }

say 'Too little memory, and a full disk: exit code 2, with what to do'
for lack in '--memory 1g --tmpfs /work' '--memory 4g --tmpfs /work:size=100k'; do
    code=0
    # shellcheck disable=SC2086
    "${podman[@]}" run --rm "${confined[@]}" $lack --env REGRAFT_NAME=lacking localhost/regraft \
        >"$models/lacking.log" 2>&1 || code=$?
    tail -n 2 "$models/lacking.log"
    [ "$code" = 2 ] || fail "$lack: exit code $code, expected 2"
    grep -qE 'expected at least 2048 MiB|No space left|no room' "$models/lacking.log" || fail "$lack: not told"
done

say 'The image works'
