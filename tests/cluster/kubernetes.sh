#!/usr/bin/env bash
# Installs what a Kubernetes on loopback needs from Debian, and builds the four servers of Debian's
# source package `kubernetes` into build/cluster/kubernetes/: ten minutes on two cores, once.
# Wants root and 5 GB while it builds.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec </dev/null

state=$PWD/build/cluster
servers=(kube-apiserver kube-controller-manager kube-scheduler kubelet)
built=$state/kubernetes
mkdir -p "$state"

# A package is wanted where its program is not there.
wanted=(etcd:etcd-server containerd:containerd runc:runc buildah:buildah mmdebstrap:mmdebstrap gcc:gcc
    setpriv:util-linux iptables:iptables mount:mount)
[ -s "$built/version" ] || wanted+=(go:golang-go rsync:rsync jq:jq make:make dpkg-source:dpkg-dev)
for pair in "${wanted[@]}"; do
    command -v "${pair%%:*}" >/dev/null || missing+=("${pair#*:}")
done
[ -e /usr/include/stdlib.h ] || missing+=(libc6-dev)
if [ -n "${missing:-}" ]; then
    apt-get update -q
    # A policy that starts no service: this script starts its own, elsewhere.
    policy=/usr/sbin/policy-rc.d
    if ! [ -e "$policy" ]; then
        printf '#!/bin/sh\nexit 101\n' >"$policy"
        chmod +x "$policy"
        trap 'rm -f "$policy"' EXIT
    fi
    apt-get install -qy --no-install-recommends "${missing[@]}"
fi
[ ! -s "$built/version" ] || exit 0

# The machine's own list of sources, with deb-src for deb, read from a place of our own.
apt=(-o "Dir::Etc::SourceList=/dev/null" -o "Dir::Etc::SourceParts=$state/apt/sources"
    -o "Dir::State::Lists=$state/apt/lists" -o APT::Sandbox::User=root)
rm -rf "$state/apt" "$state/source" "$built"
mkdir -p "$state/apt/sources" "$state/apt/lists/partial" "$state/source" "$built"
for list in /etc/apt/sources.list /etc/apt/sources.list.d/*.list; do
    [ ! -e "$list" ] || sed -n 's/^deb /deb-src /p' "$list" >"$state/apt/sources/$(basename "${list%.list}").list"
done
for list in /etc/apt/sources.list.d/*.sources; do
    [ ! -e "$list" ] || sed 's/^Types:.*/Types: deb-src/' "$list" >"$state/apt/sources/$(basename "$list")"
done
apt-get -q "${apt[@]}" update
(cd "$state/source" && apt-get -q "${apt[@]}" source --download-only kubernetes)
dpkg-source --extract "$state"/source/kubernetes_*.dsc "$state/source/kubernetes"

# As debian/rules does it, for the servers alone; the caches stay below build/ and go with it.
cd "$state/source/kubernetes"
version=$(dpkg-parsechangelog --show-field Version)
upstream=${version##*really}
mkdir -p .go/src/k8s.io
ln -sfn ../../.. .go/src/k8s.io/kubernetes
env GOPATH="$PWD/.go" GOCACHE="$state/source/cache" GOFLAGS='' GO111MODULE=off CGO_ENABLED=0 \
    GOMEMLIMIT=3GiB HOME="$state/source" \
    nice make WHAT="${servers[*]/#/cmd/}"
cp "${servers[@]/#/_output/bin/}" build/pause/linux/pause.c "$built"
echo "${upstream%%-*} (Debian $version)" >"$built/version"
rm -rf "$state/source" "$state/apt"
