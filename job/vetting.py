"""A SavedModel is a program: what it may do is read off its graphs before anything of it runs.

An operation passes that computes something from its inputs, or that keeps variables, tables or
random numbers in memory. Everything else is refused: files, processes, servers, Python, and what
TensorFlow does not know. The saver that every SavedModel has writes and reads files; it passes
where saving or restoring leads to it and nothing else does.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

from job.errors import ConfigError

# Of the operations that TensorFlow says keep a state, those that keep it in memory, or none.
HARMLESS = re.compile(
    r"If|While|Case|StatefulPartitionedCall|XlaCallModule|Assert|CheckNumerics(V2)?|GuaranteeConst|"
    r"Variable(V2|Shape)?|VarHandleOp|VarIsInitializedOp|DestroyResourceOp|DisableCopyOnRead|"
    r"(Read|Assign|AssignAdd|AssignSub)VariableOp|"
    r"Resource(Apply|SparseApply|Gather|Scatter|StridedSlice|CountUpTo)\w*|"
    r"Random(?!Dataset)\w*|Stateful(Random|Uniform|StandardNormal|TruncatedNormal)\w*|Rng\w*|"
    r"(Parameterized)?TruncatedNormal|Multinomial|NonDeterministicInts|SampleDistortedBoundingBox|"
    r"TensorArray\w*|Stack\w*|\w*HashTable\w*|LookupTable\w*|InitializeTableV2"
)
# Of those without a state, the ones that reach out all the same; some have a path as an attribute.
HARMFUL = re.compile(
    r"ReadFile|MatchingFiles|PyFunc\w*|Debug\w*|Abort|InitializeTableFrom\w*|Reader\w*|"
    r"\w*Dataset\w*|\w*Snapshot\w*|EncodeProto|DecodeProto\w*|ImmutableConst|"
    r"GenerateVocabRemapping|MlirPassthroughOp"
)
WRITES = {"SaveV2", "MergeV2Checkpoints"}
READS = {"RestoreV2"}


def vet_module(folder: Path) -> None:
    """Check that the SavedModel in a folder does nothing but compute; nothing of it is run.

    Raises ConfigError when it is damaged, or with the name of the first operation that does more.
    """
    path = folder / "saved_model.pb"
    try:
        saved = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    except Exception as error:  # The file is not there, or protobuf cannot read it.
        raise ConfigError(
            f"TensorFlow cannot load {folder}: {error}",
            hint="the module is damaged or incomplete: fetch or write it again",
        ) from error
    for meta_graph in saved.meta_graphs:
        for unit, node in _Program(meta_graph).refused():
            raise ConfigError(
                f"its operation {node.op} ({node.name!r} in {unit}) is not one that a feature "
                "vector needs: it may read or write files, run programs or reach the network",
                hint="use another module, or export this one again without that operation",
            )


class _Program:
    """A meta graph in units: a function of its library, or a single node of its main graph."""

    def __init__(self, meta_graph: Any) -> None:
        graph = meta_graph.graph_def
        self._meta_graph = meta_graph
        self._gradients = {g.function_name: g.gradient_func for g in graph.library.gradient}
        self._main = {_node(node.name) for node in graph.node}
        self._units: dict[str, list[Any]] = {}
        for node in graph.node:
            self._units.setdefault(_node(node.name), []).append(node)
        for function in graph.library.function:
            self._units.setdefault(_function(function.signature.name), []).extend(function.node_def)

    def refused(self) -> Iterator[tuple[str, Any]]:
        """Give every node that must not be there, with the unit that it is in."""
        saver = self._meta_graph.saver_def
        saving = self._reach([_node(saver.save_tensor_name)])
        restoring = self._reach([_node(saver.restore_op_name)])
        running = self._reach([*self._entries(), *(self._main - saving - restoring)])
        for unit, nodes in self._units.items():
            passing = set()
            if unit in saving - restoring - running:
                passing |= WRITES
            if unit in (saving | restoring) - running:
                passing |= READS
            yield from ((unit, n) for n in nodes if not (n.op in passing or self._computes(n.op)))

    def _computes(self, operation: str) -> bool:
        definition = op_def_registry.get(operation)
        if definition is None:
            return _function(operation) in self._units
        if definition.is_stateful:
            return HARMLESS.fullmatch(operation) is not None
        return HARMFUL.fullmatch(operation) is None

    def _entries(self) -> Iterator[str]:
        """Give the units that are run when the module is loaded or called."""
        yield from map(_function, self._meta_graph.object_graph_def.concrete_functions)
        for signature in self._meta_graph.signature_def.values():
            yield from (_node(output.name) for output in signature.outputs.values())
        for collection in self._meta_graph.collection_def.values():
            yield from map(_node, collection.node_list.value)  # initialisers are in one

    def _reach(self, units: Iterable[str]) -> set[str]:
        """Give these units and all that are run for them."""
        found: set[str] = set()
        left = [unit for unit in units if unit in self._units]
        while left:
            unit = left.pop()
            if unit in found or unit not in self._units:
                continue
            found.add(unit)
            for node in self._units[unit]:
                called = [f.name for a in node.attr.values() for f in (a.func, *a.list.func)]
                called += [node.op, *(self._gradients.get(name, "") for name in called)]
                left += map(_function, called)
                if unit in self._main:
                    left += map(_node, node.input)
        return found


def _node(tensor: str) -> str:
    """Give the unit of a tensor: name, name:0 and ^name are all of one node."""
    return f"the main graph's node {tensor.lstrip('^').split(':')[0]!r}"


def _function(name: str) -> str:
    return f"function {name!r}"
