"""Modules import downwards only, and no file or function outgrows the reader."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

JOB = Path(__file__).resolve().parent.parent / "job"

# Each module and what it may import from `job`; "*" is everything.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": set(),
    "__main__": {"cli", "guard"},
    # The command line
    "cli": {"*"},
    "cli_announce": {"errors", "outcome", "platforms", "result"},
    "cli_backbone": {"*"},
    "cli_cache": {"*"},
    "cli_inspect": {"*"},
    "cli_submit": {"*"},
    "cli_versions": {"*"},
    "options": {"config", "errors", "platforms", "progress", "terminal"},
    "platforms": {"documents", "errors", "redact"},
    "terminal": {"progress"},
    "summary": {"config", "evaluate", "gate", "predict", "report", "result", "versions"},
    # The job on a cluster
    "submit.__init__": set(),
    "submit.tell": {"progress", "submit"},
    "submit.follow": {"errors", "progress", "result", "submit"},
    "submit.explain": {"documents", "errors", "submit"},
    "submit.state": {"submit"},
    "submit.watching": {"progress", "submit"},
    "submit.show": {"documents", "redact"},
    "submit.cluster": {"errors", "progress", "submit"},
    "submit.render": {"errors"},
    # The story and its steps
    "pipeline": {"*"},
    "release": {"*"},
    "assess": {"*"},
    "training": {"*"},
    "tuning": {"*"},
    "task": {"*"},
    "watch": {"*"},
    "stages": {"*"},
    "inspection": {"*"},
    "checkup": {"*"},
    "intake": {
        "config",
        "dataset",
        "doctor",
        "errors",
        "index",
        "places",
        "progress",
        "sources",
        "storage",
    },
    "divide": {
        "config",
        "dataset",
        "embed",
        "index",
        "ledger",
        "near",
        "progress",
        "split",
        "traits",
    },
    "service": {
        "cache",
        "config",
        "dataset",
        "documents",
        "errors",
        "gate",
        "images",
        "labelling",
        "manifest",
        "predict",
        "progress",
        "publish",
        "storage",
    },
    # What a step uses
    "serving": {"documents", "errors", "verify"},
    "versions": {"documents", "errors", "publish", "storage"},
    "publish": {"config", "documents", "errors", "storage"},
    "manifest": {
        "config",
        "dataset",
        "distort",
        "divide",
        "embed",
        "images",
        "labelling",
        "ledger",
        "result",
        "seal",
        "unknown",
    },
    "predict": {
        "dataset",
        "documents",
        "errors",
        "evaluate",
        "formats",
        "head",
        "images",
        "index",
        "labelling",
        "labels",
        "ledger",
        "publish",
        "sources",
        "split",
        "storage",
        "stream",
    },
    "verifier": {"errors", "images", "progress", "verify"},
    "verify": {"errors", "images", "parity", "seal"},
    "parity": {"export", "tflite", "tflite_metadata"},
    "lite": {"dataset", "evaluate", "export", "images", "labelling", "storage", "stream", "tflite"},
    "seal": {"documents"},
    "summaries": {"errors", "plots", "progress", "storage", "workdir"},
    "intermediate": {"export", "storage"},
    "report": {
        "calibrate",
        "doctor",
        "evaluate",
        "figures",
        "gate",
        "labelling",
        "lite",
        "multilabel",
        "page",
        "plots",
        "unknown",
    },
    "outcome": {"figures", "junit"},
    "junit": {"evaluate", "figures", "report"},
    "page": {"calibrate", "evaluate", "figures", "multilabel", "report", "thumbnails"},
    "figures": {"evaluate"},
    "plots": {"calibrate", "evaluate", "figures"},
    "thumbnails": {"images"},
    "labelling": {"calibrate", "evaluate", "gate", "multilabel", "targets"},
    "multilabel": {"errors", "evaluate"},
    "gate": {"config", "errors", "evaluate"},
    "evaluate": {"config", "errors"},
    "calibrate": set(),
    "tflite": {"errors", "export", "guard", "progress", "redact", "tflite_metadata"},
    "tflite_metadata": set(),
    "export": {"backbone", "config", "errors", "formats", "graphs", "head", "images"},
    "lbfgs": {"checkpoints", "fit", "head", "objective"},
    "objective": {"fit", "guard", "head"},
    "sgd": {"checkpoints", "fit", "guard", "head"},
    "fit": {"checkpoints", "head"},
    "checkpoints": {"errors", "progress", "storage"},
    "finetune": {
        "augment",
        "backbone",
        "descent",
        "errors",
        "feed",
        "fit",
        "guard",
        "head",
        "microbatch",
        "progress",
        "recipe",
        "replicas",
        "standing",
        "trainable",
    },
    "standing": {"backbone", "feed", "head", "recipe", "trainable"},
    "descent": {"errors", "head", "microbatch", "recipe", "replicas", "trainable"},
    "microbatch": {"errors", "guard", "progress", "replicas"},
    "replicas": {"cluster", "config", "errors", "guard", "progress", "rendezvous"},
    "rendezvous": {"cluster", "errors", "guard"},
    "cluster": {"errors"},
    "recipe": {"config"},
    "feed": {"errors", "images", "stream"},
    "augment": set(),
    "trainable": {"backbone", "errors", "interface", "modules"},
    "unknown": {"calibrate", "errors", "evaluate", "fit", "head", "lbfgs"},
    "head": set(),
    "workers": {"cache", "cluster", "config", "dataset", "errors", "progress"},
    "views": {"dataset", "embed", "progress", "targets"},
    "embed": {
        "backbone",
        "cache",
        "dataset",
        "errors",
        "formats",
        "forward",
        "images",
        "storage",
        "stream",
        "targets",
        "traits",
    },
    "upkeep": {"errors", "shards", "storage"},
    "cache": {"catalogue", "errors", "progress", "shards", "storage"},
    "catalogue": {"shards"},
    "shards": {"storage"},
    "forward": {"backbone", "errors", "memory", "progress", "stream"},
    "stream": {"dataset", "errors", "images", "storage"},
    "prefetch": {
        "backbone",
        "baked",
        "compiled",
        "errors",
        "interface",
        "modules",
        "progress",
        "storage",
    },
    "backbone": {
        "backbones",
        "baked",
        "compiled",
        "errors",
        "graphs",
        "interface",
        "modules",
        "progress",
        "storage",
    },
    "baked": {"documents", "errors", "modules"},
    "interface": {"errors", "modules"},
    "compiled": {"errors", "progress", "storage"},
    "modules": {"archives", "documents", "errors", "storage", "vetting"},
    "vetting": {"errors"},
    "archives": {"errors"},
    "backbones.__init__": set(),
    "backbones.efficientnet_lite": {"backbones", "errors"},
    "backbones.torch_weights": {"errors"},
    "distort": {"errors", "formats", "images"},
    "images": {"exif", "formats"},
    "formats": set(),
    "exif": set(),
    "near": {"neighbours", "traits"},
    "neighbours": set(),
    "traits": set(),
    # The data doctor
    "doctor.__init__": set(),
    "doctor.page": {"doctor", "figures", "page", "thumbnails"},
    "doctor.summary": {"doctor", "figures"},
    "doctor.charts": {"doctor"},
    "doctor.listing": {"doctor", "errors"},
    "doctor.examine": {"doctor"},
    "doctor.suspects": {"doctor"},
    "doctor.outliers": {"doctor"},
    "doctor.alike": {"doctor", "evaluate"},
    "doctor.drift": {"doctor"},
    "doctor.growth": {"doctor", "evaluate"},
    "doctor.folds": {"objective"},
    "doctor.reduce": {"guard"},
    "doctor.findings": {"stream"},
    "graphs": set(),
    # The ground
    "targets": {"dataset"},
    "index": {"dataset", "errors", "labels", "sources", "split"},
    "sources": {"dataset", "errors", "importfile", "labels", "places", "storage"},
    "places": {"config", "errors", "storage"},
    "importfile": {"config", "dataset", "documents", "errors"},
    "ledger": {"dataset", "errors", "split", "storage"},
    "split": {"dataset", "errors", "labels", "near"},
    "labels": {"config", "errors"},
    "dataset": {"storage"},
    "workdir": {"storage"},
    "memory": {"errors"},
    "storage": {"errors", "gcs", "guard"},
    "gcs": {"storage", "tries"},
    "tries": {"errors", "guard"},
    "progress": {"guard", "redact"},
    "redact": set(),
    "result": {"errors", "redact"},
    "endings": {"errors", "guard"},
    "documents": set(),
    "guard": {"errors"},
    "config.__init__": {"config"},
    "config.run": {"config", "errors"},
    "config.fitting": {"config", "errors"},
    "config.inputs": {"config", "errors"},
    "config.reading": {"config", "redact"},
    "config.inspecting": {"config", "errors"},
    "config.declare": {"errors"},
    "errors": set(),
}


def module_name(path: Path) -> str:
    """Give `backbones.torch_weights` for job/backbones/torch_weights.py."""
    return ".".join(path.relative_to(JOB).with_suffix("").parts)


MODULES = {module_name(path): path for path in sorted(JOB.rglob("*.py"))}


def job_imports(tree: ast.AST) -> set[str]:
    """Give the modules of `job` that a file imports, wherever it does so."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == "job":
            found |= {alias.name for alias in node.names} & {m.split(".")[0] for m in MODULES}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("job."):
            found.add(str(node.module).split(".")[1])
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("job.")}
    return found


def test_the_table_names_every_module() -> None:
    """A new module is given its place, a module that is gone leaves the table."""
    assert set(MODULES) == set(MAY_IMPORT)


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down(module: str) -> None:
    """A module imports only what its row allows."""
    allowed = MAY_IMPORT[module]
    if "*" not in allowed:
        assert job_imports(ast.parse(MODULES[module].read_text())) <= allowed


@pytest.mark.parametrize("module", MODULES)
def test_files_and_functions_stay_short(module: str) -> None:
    """Files have fewer than 300 lines, functions fewer than 40, docstrings included."""
    text = MODULES[module].read_text()
    assert text.count("\n") < 300
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length < 40, f"{module}.{node.name} has {length} lines"


def test_the_storage_sdk_and_click_stay_where_they_belong() -> None:
    """google.cloud stays in gcs.py and tries.py, click in the command line's modules."""
    command_line = {
        "cli", "cli_announce", "cli_backbone", "cli_cache", "cli_inspect", "cli_submit",
        "cli_versions", "options",
    }  # fmt: skip
    for package, home in (("google.cloud", {"gcs", "tries"}), ("click", command_line)):
        users = set()
        for module, path in MODULES.items():
            for node in ast.walk(ast.parse(path.read_text())):
                names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
                if any(name == package or name.startswith(package + ".") for name in names):
                    users.add(module)
        assert users == home
