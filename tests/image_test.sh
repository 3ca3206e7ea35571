#!/usr/bin/env bash
# Builds the cpu variant of the image on a plain Debian machine, without Docker or a registry, and
# runs its job the way k8s/base does, from a bucket to a bucket. `make image-test` runs it; it wants
# root, 8 GB in build/ (several times that where overlays cannot be mounted) and the packages of .venv.
# With --write the table goes to docs/image.md.
set -euo pipefail
cd "$(dirname "$0")/.."
exec </dev/null

missing=()
for program in buildah podman runc mmdebstrap openssl; do
    command -v "$program" >/dev/null || missing+=("$program")
done
install() { apt-get update -qq && apt-get install -qqy --no-install-recommends "${missing[@]}"; }
if [ "${#missing[@]}" -gt 0 ] && ! install; then
    echo "NOT RUN: the image was neither built nor tried, as ${missing[*]} cannot be installed here"
    exit 0
fi

. tests/build_image.sh
work=$(mktemp -d "$images/work.XXXX")
rows=$work/rows
podman=(podman "${storage[@]}" --runtime runc --cgroup-manager cgroupfs --events-backend none)
clean_up() {
    # The store goes last: the jobs share its network.
    "${podman[@]}" rm --all --force >/dev/null 2>&1 || "${podman[@]}" rm --all --force >/dev/null
    "${podman[@]}" rmi --force localhost/regraft:prefetched >/dev/null 2>&1 || true
    [ -z "${web:-}" ] || kill "$web" 2>/dev/null || true
    rm -rf "$work"
}
trap clean_up EXIT

say() { printf '\n--- %s\n' "$*"; }
fail() {
    printf 'FAILED: %s\n' "$*" >&2
    [ ! -f "${log:-}" ] || tail -n 5 "$log" >&2
    exit 1
}
# check WHAT EXPECTED SEEN: a row of the table, and the end where the two differ.
check() {
    printf '| %s | %s | %s |\n' "$1" "$2" "$3" | tee -a "$rows"
    [ "$2" = "$3" ] || fail "$1: $3, expected $2"
}
note() { printf '| %s | | %s |\n' "$1" "$2" | tee -a "$rows"; }
now() { date +%s.%N; }
since() { awk -v from="$1" -v to="$(now)" 'BEGIN { printf "%.1f s", to - from }'; }

# --- Build -------------------------------------------------------------------------------------

say "A base image from Debian's packages"
make_base

# A TF Hub module behind HTTPS, with an authority of its own. The machine's certificates and that
# one are lent to the build and do not become part of the image.
say 'A module on a web server'
mkdir "$work/web"
TF_CPP_MIN_LOG_LEVEL=3 PYTHONPATH=tests:. .venv/bin/python -c '
import pathlib, sys, modules
modules.write_pooling(pathlib.Path(sys.argv[1]))' "$work/module" 2>/dev/null
tar -C "$work/module" -czf "$work/web/pooling.tar.gz" .
cp -rL /etc/ssl/certs "$work/certs"
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj '/CN=image test' \
    -addext 'subjectAltName=IP:127.0.0.1' -keyout "$work/key.pem" -out "$work/certs/test.pem" 2>/dev/null
cp "$work/certs/test.pem" "$work/certs/$(openssl x509 -hash -noout -in "$work/certs/test.pem").0"
port=$(PYTHONPATH=tests .venv/bin/python -c 'import gcs_server; print(gcs_server.free_port())')
handle=https://127.0.0.1:$port/pooling.tar.gz
(cd "$work/web" && exec openssl s_server -quiet -WWW -accept "127.0.0.1:$port" \
    -key "$work/key.pem" -cert "$work/certs/test.pem") >/dev/null 2>&1 &
web=$!

say 'The image'
start=$(now)
make_image "$work/certs" --tag localhost/regraft
note 'the cpu variant is built (what is cached counts)' "$(since "$start")"
make_image "$work/certs" --tag localhost/regraft:prefetched --build-arg "BACKBONES=$handle"
kill "$web"
inspect() { "${podman[@]}" image inspect --format "$1" localhost/regraft; }
note 'size, cpu variant on a Debian base' "$(inspect '{{.Size}}' | awk '{ printf "%.2f GB", $1 / 1e9 }')"
check 'label title' Regraft "$(inspect '{{index .Labels "org.opencontainers.image.title"}}')"
check 'label licenses' Apache-2.0 "$(inspect '{{index .Labels "org.opencontainers.image.licenses"}}')"
check 'label base.name' localhost/base "$(inspect '{{index .Labels "org.opencontainers.image.base.name"}}')"
check 'user of the image' 65532:65532 "$(inspect '{{.User}}')"
check 'health check in the image' none "$(inspect '{{if .HealthCheck}}some{{else}}none{{end}}')"

# --- Run ---------------------------------------------------------------------------------------

# As the pod of k8s/base: nothing is writable but /work and /tmp. The network namespace has only the
# loopback device in it, and the store: what a run reaches there is all that it needs.
limits=(--ulimit nofile=1024:1024 --ulimit nproc=4096:4096)
options=("${limits[@]}" --read-only --read-only-tmpfs=false --cap-drop ALL
    --security-opt no-new-privileges --memory 4g --tmpfs /work --tmpfs /tmp)
mkdir -p "$work"/seed/{data,poor,models} "$work/store"
cp -r samples/clipart/. "$work/seed/data"
mkdir "$work/seed/poor/fruit"
cp samples/clipart/fruit/strawberry.jpg "$work/seed/poor/fruit"
gcs=$(PYTHONPATH=tests .venv/bin/python -c 'import gcs_server; print(gcs_server.program())')
store=$("${podman[@]}" run --detach "${limits[@]}" --network none --user 0 --entrypoint /fake-gcs-server \
    --volume "$gcs:/fake-gcs-server:ro" --volume "$work/seed:/seed:ro" --volume "$work/store:/storage" \
    localhost/regraft -scheme http -host 127.0.0.1 -port 4443 -external-url http://127.0.0.1:4443 \
    -backend filesystem -filesystem-root /storage -data /seed)
options+=(--network "container:$store"
    --env STORAGE_EMULATOR_HOST=http://127.0.0.1:4443 --env REGRAFT_DATA=gs://data
    --env REGRAFT_MODELS=gs://models --env REGRAFT_WORK_DIR=/work --env REGRAFT_CHECKPOINT_INTERVAL=1)

# job LOG ARGUMENT...: runs a container to its end; sets `code`, `log` and `took`.
job() {
    log=$work/$1
    local from
    from=$(now)
    shift
    code=0
    "${podman[@]}" run --rm "${options[@]}" "$@" >"$log" 2>&1 || code=$?
    took=$(since "$from")
}
# result FIELD: what the result, the last line of stdout, says in the log.
result() { grep '^{"status"' "$log" | tail -n 1 | grep -oE "\"$1\": *[^,}]*" | head -n 1 | sed 's/^[^:]*: *//; s/"//g'; }

say 'Inside'
log=$work/probe
"${podman[@]}" run --rm "${options[@]}" --volume "$PWD/tests/image_probe.py:/probe.py:ro" \
    localhost/regraft python /probe.py >"$log" 2>"$log.err" || fail "$(cat "$log.err")"
while IFS=$'\t' read -r what expected seen; do check "$what" "$expected" "$seen"; done <"$log"
job help localhost/regraft --help
check '--help: exit code' 0 "$code"
note '--help: time, the start of the container included' "$took"

say 'Jobs that cannot start'
job usage localhost/regraft run
check 'no --name: exit code' 2 "$code"
job poor --env REGRAFT_NAME=poor --env REGRAFT_DATA=gs://poor localhost/regraft
check 'one image: exit code' 3 "$code"
job away --env REGRAFT_NAME=away --env STORAGE_EMULATOR_HOST=http://127.0.0.1:9 \
    --env REGRAFT_STORAGE_DEADLINE=1 localhost/regraft
check 'nothing answers where the store should be: exit code' 138 "$code"
job little --env REGRAFT_NAME=little --memory 1g localhost/regraft
check '1 GiB of memory: exit code' 2 "$code"
grep -q 'expected at least 2048 MiB' "$log" || fail 'it does not tell how much memory is needed'
job full --env REGRAFT_NAME=full --env REGRAFT_WORK_DIR=/small --tmpfs /small:size=100k,mode=1777 \
    localhost/regraft
check 'a --work-dir of 100 kB: exit code' 2 "$code"
grep -qE 'No space left|no room' "$log" || fail 'it does not tell that there is no room'

say 'From bucket to bucket, stopped by SIGTERM once embeddings are saved, and the same command again'
command=(--env REGRAFT_NAME=clipart localhost/regraft)
stopped=$("${podman[@]}" run --detach "${options[@]}" "${command[@]}")
until [ -n "$(find "$work/store/models" -path '*.embeddings*' -type f -print -quit)" ]; do
    [ -n "$("${podman[@]}" ps --quiet --filter "id=$stopped")" ] || break
    sleep 0.3
done
start=$(now)
"${podman[@]}" stop --time 30 "$stopped" >/dev/null
took=$(since "$start")
log=$work/stopped
"${podman[@]}" logs "$stopped" >"$log" 2>&1
check 'SIGTERM to process 1: exit code' 143 "$("${podman[@]}" inspect --format '{{.State.ExitCode}}' "$stopped")"
note 'from the signal to the end of the container' "$took"
check 'its status' preempted "$(result status)"
check 'versions published by then' 0 "$(find "$work/store/models" -name saved_model.pb | wc -l)"
job again "${command[@]}"
check 'the same command again: exit code' 0 "$code"
note 'its time, the start of the container included' "$took"
check 'its status' published "$(result status)"
check 'embeddings that it found saved by the first try' some "$([ "$(result hits)" -gt 0 ] && echo some || echo none)"
check 'the default backbone' 'comes with the image' "$(grep -o 'comes with the image' "$log" | head -n 1)"
check 'backbones compiled by the runs' 0 "$(find "$work/store/models" -name '*.graph' | wc -l)"
check 'versions published' 1 "$(find "$work/store/models" -path '*/clipart/*/saved_model.pb' | wc -l)"
job unchanged "${command[@]}"
check 'the same command a third time: status' unchanged "$(result status)"
check 'its exit code' 0 "$code"
job rejected --env REGRAFT_NAME=rejected --env REGRAFT_MIN_ACCURACY=1 localhost/regraft
check '--min-accuracy 1: exit code' 4 "$code"

say 'A second SIGTERM ends process 1 at once, whatever it is doing'
stopped=$("${podman[@]}" run --detach "${options[@]}" --env REGRAFT_NAME=stopped localhost/regraft)
until "${podman[@]}" logs "$stopped" 2>&1 | grep -q 'index: started'; do
    [ -n "$("${podman[@]}" ps --quiet --filter "id=$stopped")" ] || break
    sleep 0.3
done
"${podman[@]}" kill --signal TERM "$stopped" >/dev/null
"${podman[@]}" kill --signal TERM "$stopped" >/dev/null 2>&1 || true  # it may be gone by now
check 'two SIGTERM at once: exit code' 143 "$("${podman[@]}" wait "$stopped")"

say 'A TF Hub module that was prefetched; its server is gone'
hub=(--env REGRAFT_NAME=hub --env "REGRAFT_BACKBONE=$handle")
job fetched "${hub[@]}" localhost/regraft
check 'backbone behind https://, its server gone: exit code' 138 "$code"
job prefetched "${hub[@]}" localhost/regraft:prefetched
check 'the same in an image built with BACKBONES: exit code' 0 "$code"
check 'its status' published "$(result status)"
check 'its backbone' 'comes with the image' "$(grep -o 'comes with the image' "$log" | head -n 1)"

# --- Tell --------------------------------------------------------------------------------------

page() {
    cat <<EOF
# The image, tried

\`make image-test\` builds the image with Debian's own tools, on a base made from Debian's packages, and runs its job the
way \`k8s/base\` does: as user 65532, root file system read-only, no capabilities. The job reads a bucket and publishes to
one, on a fake-gcs-server. Job and store share a network namespace that has only the loopback device in it: the job needs no
network but its store. This page is what \`tests/image_test.sh --write\` saw.

$(date -u +%F), $(nproc) cores, $(buildah --version | cut -d' ' -f1-3), $(podman --version), $(runc --version | head -n 1), storage driver $driver. The
machine was shared with other work, so times are upper bounds.

| what was run | expected | seen |
|---|---|---|
EOF
    cat "$rows"
}
say 'The image works'
if [ "${1:-}" = --write ]; then page >docs/image.md; fi
