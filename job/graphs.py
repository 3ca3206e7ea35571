"""TensorFlow functions with their variables made constants: faster, and a graph like any other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf
from tensorflow.core.protobuf import config_pb2, meta_graph_pb2
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2
from tensorflow.python.grappler import tf_optimizer

# What the nodes of a frozen graph call its one input, and its one output.
SOURCE, RESULT = "source", "result"

# What does not depend on the input is computed once, here, and not by each who loads the graph:
# batch normalisation goes into the kernels. Nothing that depends on the device is done.
FOLDING = ("pruning", "constfold", "dependency")


def frozen_graph(compute: Callable[[tf.Tensor], tf.Tensor], spec: tf.TensorSpec) -> Any:
    """Give `compute`, which maps a tensor of `spec` to a tensor, as a GraphDef for `insert`.

    It holds no variables and no placeholder: what its nodes call SOURCE is given on insertion. What
    does not depend on that is computed already.
    """

    def named(source: tf.Tensor) -> tf.Tensor:
        return tf.identity(compute(source), name=RESULT)

    spec = tf.TensorSpec(spec.shape, spec.dtype, name=SOURCE)
    function = tf.function(named, autograph=False).get_concrete_function(spec)
    frozen = convert_variables_to_constants_v2(function)
    meta = meta_graph_pb2.MetaGraphDef(graph_def=frozen.graph.as_graph_def())
    meta.collection_def["train_op"].node_list.value.append(RESULT)  # what is to be kept
    config = config_pb2.ConfigProto()
    config.graph_options.rewrite_options.optimizers.extend(FOLDING)
    config.graph_options.rewrite_options.min_graph_nodes = -1  # small graphs too
    graph_def = tf_optimizer.OptimizeGraph(config, meta)
    for node in list(graph_def.node):
        if node.name == SOURCE:
            graph_def.node.remove(node)
        elif f"^{SOURCE}" in node.input:  # constants wait for the input, which means nothing
            node.input.remove(f"^{SOURCE}")
    return graph_def


def insert(graph_def: Any, source: tf.Tensor, name: str) -> tf.Tensor:
    """Put a graph of `frozen_graph` behind `source`, in the graph that is being built."""
    (result,) = tf.graph_util.import_graph_def(
        graph_def, input_map={f"{SOURCE}:0": source}, return_elements=[f"{RESULT}:0"], name=name
    )
    return result
