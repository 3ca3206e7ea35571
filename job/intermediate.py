"""Graphs of a run that is not done yet, for those who want to look at it on the way.

They lie in the store of a model as `.intermediate/<run>/<step>.pb`: TensorFlow Serving takes no
such name for a version.
"""

from __future__ import annotations

from job.export import Classifier, frozen_bytes
from job.storage import Store


def write_intermediate(store: Store, run: str, step: int, classifier: Classifier) -> str:
    """Write a classifier as it is at a step; gives the URI of the file.

    It is the frozen graph that `export` would write: input `image`, output `final_result`. `store`
    is the model's. One of the same run and step is replaced: the run was resumed.

    Raises the errors of the store.
    """
    name = f".intermediate/{run}/{step}.pb"
    store.write(name, frozen_bytes(classifier))
    return f"{store.uri}/{name}"
