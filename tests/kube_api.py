"""A stand-in for a Kubernetes API server: real HTTP, real processes in the place of pods.

    python tests/kube_api.py FOLDER    # serves until it is killed; FOLDER/kubeconfig reaches it

It has what `submit` and `kubectl get` use: discovery, server-side apply, create, get, list, watch
and delete, the logs of pods; tests/kube_jobs.py runs the Jobs. What goes wrong in a cluster is
switched on by the attributes of `KubeApi`.
"""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import yaml
from kube_http import Server
from kube_jobs import Controller
from kube_objects import KubeApi


@contextlib.contextmanager
def kube_api(folder: Path) -> Iterator[KubeApi]:
    """Serve an API with its Job controller; folder/kubeconfig reaches it."""
    api = KubeApi(folder)
    server = Server(api)
    threading.Thread(target=server.serve_forever, args=[0.05], daemon=True).start()
    host, port = server.server_address[:2]
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "here",
        "clusters": [{"name": "here", "cluster": {"server": f"http://{host!s}:{port}"}}],
        "users": [{"name": "me", "user": {"token": api.token}}],
        "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
    }  # fmt: skip
    (folder / "kubeconfig").write_text(yaml.safe_dump(config))
    controller = Controller(api)
    try:
        yield api
    finally:
        controller.stop()
        server.shutdown()
        server.server_close()


if __name__ == "__main__":
    with kube_api(Path(sys.argv[1])):
        threading.Event().wait()
