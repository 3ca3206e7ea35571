"""A Kubernetes of one node: etcd, containerd and four servers, all of them on 127.0.0.1.

    with cluster(folder) as there:
        ...  # there.kubeconfig, there.ask(path), there.ctr(command)

Nothing of the machine's own is used or changed: containerd has its own root, state and socket
below `folder`, the kernel settings that a kubelet writes are put back, and at the end no process,
container, mount or cgroup is left. Images stay imported in `folder`/containerd for the next time.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import ssl
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster import leftovers
from tests.gcs_server import free_port

# Who may do all, and who may do what a Role says; nothing but loopback can reach the cluster.
ADMIN, CI = "admin", "ci"
# Kubernetes takes an address for a node's name; it is then what the API server finds it by.
NODE = "127.0.0.1"
LOCAL = "127.0.0.1"
# Before a command: the kernel kills it when this process is gone, however that came about.
DIES_WITH_US = ("setpriv", "--pdeathsig", "KILL", "--")


@dataclass
class Cluster:
    """What runs, where its files are, and how to reach it."""

    folder: Path
    run: Path
    port: int
    started: list[tuple[str, subprocess.Popen[bytes]]] = field(default_factory=list)

    def kubeconfig(self, user: str) -> Path:
        """Give the file that lets a client in as ADMIN or as CI."""
        return self.run / f"{user}.kubeconfig"

    @property
    def containerd(self) -> str:
        """The socket of containerd."""
        return str(self.run / "containerd.sock")

    def ctr(self, *arguments: str) -> str:
        """Ask containerd, in the namespace of Kubernetes; gives what it prints."""
        return leftovers.ctr(self.containerd, *arguments)

    def start(self, name: str, *command: str | Path) -> None:
        """Start a server that dies with this process; its log is `name`.log."""
        # A session of its own: Ctrl-C at a terminal must reach it in the order of `stop`.
        with (self.run / f"{name}.log").open("wb") as log:
            server = subprocess.Popen(
                [*DIES_WITH_US, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.started.append((name, server))

    def wait(self, what: str, ready: Callable[[], Any], seconds: int = 120) -> None:
        """Wait until `ready` is true; RuntimeError with the end of a dead server's log."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            for name, server in self.started:
                if server.poll() is not None:
                    raise RuntimeError(f"{name} ended with {server.returncode}:\n{self.log(name)}")
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                if ready():
                    return
            time.sleep(0.2)
        logs = "\n".join(f"{name}: {self.log(name)}" for name, _ in self.started)
        raise RuntimeError(f"{what}: not ready after {seconds} s\n{logs}")

    def log(self, name: str) -> str:
        """Give the end of a server's log."""
        return (self.run / f"{name}.log").read_text(errors="replace")[-2000:]

    def ask(self, path: str, method: str = "GET", body: Any = None) -> Any:
        """Ask the API server as the administrator; OSError when it does not do it."""
        trust = ssl.create_default_context(cafile=self.run / "certificates/apiserver.crt")
        url = f"https://{LOCAL}:{self.port}{path}"
        headers = {"Authorization": f"Bearer {token(ADMIN)}", "Content-Type": "application/json"}
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=method)
        with urllib.request.urlopen(request, context=trust, timeout=10) as answer:
            return json.loads(answer.read()) if path.startswith("/api") else answer.read()

    def stop(self) -> None:
        """End the servers, the last one first; one that does not end in 10 s is killed."""
        for _, server in reversed(self.started):
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(10)
            except subprocess.TimeoutExpired:
                server.kill()
                server.wait()
        self.started.clear()


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Keep a cluster alive whose programs are in `folder`/kubernetes; RuntimeError if one dies."""
    run = folder / "run"
    # The kernel takes 107 bytes for the path of a socket.
    if len(str(run / "containerd.sock.ttrpc")) > 100:
        raise RuntimeError(f"{run} is too long for the name of a socket: use a shorter checkout")
    leftovers.remove(run)
    run.mkdir(parents=True)
    there = Cluster(folder, run, free_port())
    with leftovers.settings_kept(folder / "settings.json"):
        try:
            control_plane(there)
            node(there)
            yield there
        finally:
            # A second Ctrl-C must not leave half of it.
            handlers = {one: signal.signal(one, signal.SIG_IGN) for one in leftovers.SIGNALS}
            end(there)
            for one, handler in handlers.items():
                signal.signal(one, handler)


def end(there: Cluster) -> None:
    """End all of it, and remove it."""
    # The kubelet first, or it starts again what is removed; containerd last, it removes.
    runtime = [pair for pair in there.started if pair[0] == "containerd"]
    there.started = [pair for pair in there.started if pair[0] != "containerd"]
    there.stop()
    there.started = runtime
    leftovers.remove_containers(there.containerd)
    there.stop()
    if "KEEP_LOGS" in os.environ:
        shutil.copytree(there.run, there.folder / "logs", dirs_exist_ok=True, ignore=only_logs)
    leftovers.remove(there.run)


def only_logs(folder: str, names: list[str]) -> list[str]:
    """Name what is no log, for copytree."""
    return [name for name in names if not name.endswith(".log")]


def control_plane(there: Cluster) -> None:
    """Start etcd, the API server, the controllers and the scheduler; returns when they answer."""
    run, programs = there.run, there.folder / "kubernetes"
    store, peers = (f"http://{LOCAL}:{free_port()}" for _ in range(2))
    there.start(
        "etcd",
        *("etcd", "--data-dir", run / "etcd", "--initial-cluster", f"default={peers}"),
        *("--listen-client-urls", store, "--advertise-client-urls", store),
        *("--listen-peer-urls", peers, "--initial-advertise-peer-urls", peers),
    )
    users = f'{token(ADMIN)},{ADMIN},{ADMIN},"system:masters"\n{token(CI)},{CI},{CI}\n'
    (run / "tokens").write_text(users)
    (run / "tokens").chmod(0o600)
    private, public = run / "accounts.key", run / "accounts.pub"
    for command in (
        f"openssl genrsa -out {private} 2048",
        f"openssl rsa -in {private} -pubout -out {public}",
    ):
        subprocess.run(command.split(), check=True, capture_output=True)
    there.start(
        "kube-apiserver",
        *(programs / "kube-apiserver", f"--etcd-servers={store}", f"--bind-address={LOCAL}"),
        *(f"--advertise-address={LOCAL}", f"--secure-port={there.port}", "--insecure-port=0"),
        *(f"--cert-dir={run / 'certificates'}", f"--token-auth-file={run / 'tokens'}"),
        *("--authorization-mode=RBAC", "--endpoint-reconciler-type=none"),
        *("--service-account-issuer=https://kubernetes.default.svc", "--anonymous-auth=false"),
        *(f"--service-account-key-file={public}", f"--service-account-signing-key-file={private}"),
        *("--service-cluster-ip-range=10.255.0.0/24", "--feature-gates=TTLAfterFinished=true"),
    )
    there.wait("the API server", lambda: there.ask("/readyz"))
    for user in (ADMIN, CI):
        there.kubeconfig(user).write_text(json.dumps(client_settings(there, user)))
        there.kubeconfig(user).chmod(0o600)
    client = f"--kubeconfig={there.kubeconfig(ADMIN)}"
    common = (client, "--leader-elect=false", "--port=0", f"--bind-address={LOCAL}")
    there.start(
        "kube-controller-manager",
        *(programs / "kube-controller-manager", *common, f"--secure-port={free_port()}"),
        *(f"--service-account-private-key-file={private}", f"--cert-dir={run / 'controllers'}"),
        "--feature-gates=TTLAfterFinished=true",
    )
    there.start(
        "kube-scheduler",
        *(programs / "kube-scheduler", *common, f"--secure-port={free_port()}"),
        f"--cert-dir={run / 'scheduler'}",
    )
    account = "/api/v1/namespaces/default/serviceaccounts/default"
    there.wait("the account of pods", lambda: there.ask(account).get("secrets"))


def token(user: str) -> str:
    """Give the token by which the API server knows a user."""
    return f"token-of-{user}"


def client_settings(there: Cluster, user: str) -> dict[str, Any]:
    """Give the content of a user's kubeconfig."""
    authority = str(there.run / "certificates/apiserver.crt")
    server = {"server": f"https://{LOCAL}:{there.port}", "certificate-authority": authority}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "test", "cluster": server}],
        "users": [{"name": user, "user": {"token": token(user)}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
        "current-context": "test",
    }


def node(there: Cluster) -> None:
    """Start containerd and the kubelet; returns when the node can run pods."""
    run = there.run
    (run / "network").mkdir()
    # Pods use the node's own network. A node counts as ready once some network is described.
    described = {"cniVersion": "0.4.0", "name": "none", "plugins": [{"type": "loopback"}]}
    (run / "network/none.conflist").write_text(json.dumps(described))
    (run / "containerd.toml").write_text(containerd_settings(there))
    there.start("containerd", "containerd", "--config", run / "containerd.toml")
    there.wait("containerd", lambda: there.ctr("version"))
    (run / "kubelet.json").write_text(json.dumps(KUBELET | {"port": free_port()}))
    there.start(
        "kubelet",
        *(there.folder / "kubernetes/kubelet", f"--config={run / 'kubelet.json'}"),
        *(f"--kubeconfig={there.kubeconfig(ADMIN)}", f"--hostname-override={NODE}"),
        *("--container-runtime=remote", f"--container-runtime-endpoint=unix://{there.containerd}"),
        *(f"--root-dir={run / 'kubelet'}", f"--cert-dir={run / 'kubelet-certificates'}"),
        f"--volume-plugin-dir={run / 'volume-plugins'}",
    )

    def is_ready() -> bool:
        conditions = there.ask(f"/api/v1/nodes/{NODE}")["status"]["conditions"]
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    there.wait("the node", is_ready)


# What a small machine and a container without CAP_SYS_RESOURCE need, and nothing that would
# change the machine: no chains in iptables, no eviction, no images removed for want of disk.
KUBELET = {
    "apiVersion": "kubelet.config.k8s.io/v1beta1",
    "kind": "KubeletConfiguration",
    "address": LOCAL,
    "readOnlyPort": 0,
    "healthzPort": 0,
    "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
    "authorization": {"mode": "AlwaysAllow"},
    "cgroupDriver": "cgroupfs",
    "cgroupsPerQOS": False,
    "enforceNodeAllocatable": [],
    "failSwapOn": False,
    "oomScoreAdj": 0,
    "makeIPTablesUtilChains": False,
    "imageGCHighThresholdPercent": 100,
    "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%"},
    "featureGates": {"DevicePlugins": False},
}


def containerd_settings(there: Cluster) -> str:
    """Give containerd's configuration: its own folders, and what a container may need."""
    overlay = leftovers.can_mount_overlay(there.run)
    return f"""
version = 2
root = "{there.folder / "containerd"}"
state = "{there.run / "containerd"}"
[grpc]
address = "{there.containerd}"
[plugins."io.containerd.internal.v1.opt"]
path = "{there.run / "opt"}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/pause:latest"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
conf_dir = "{there.run / "network"}"
bin_dir = "/usr/lib/cni"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{"overlayfs" if overlay else "native"}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
Root = "{there.run / "runc"}"
"""
