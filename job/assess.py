"""How good what was trained is, and whether that is good enough: evaluate and gate."""

from __future__ import annotations

from job.backbone import Backbone
from job.checkup import Checkup
from job.config import RunConfig
from job.dataset import Split
from job.evaluate import Report
from job.gate import Comparison, Verdict, judge
from job.intake import read_quietly
from job.labelling import TASKS
from job.manifest import packages
from job.progress import Progress
from job.redact import redact
from job.report import Facts
from job.result import Result
from job.service import Answered, compare_with_service
from job.stages import Plan
from job.training import Trained
from job.unknown import Rejection, reject


def assess(
    config: RunConfig, plan: Plan, trained: Trained, checkup: Checkup | None, progress: Progress,
    result: Result,
) -> Facts:  # fmt: skip
    """Score the head on the test images, which neither fit nor the choice of L2 has seen."""
    embeddings, backbone, labelling = trained.embeddings, trained.backbone, TASKS[config.task]
    features, targets = trained.test
    examples = tuple(e for e in embeddings.index.examples if e.split is Split.TEST)
    labels = embeddings.index.labels
    with progress.phase("evaluate"):
        scores = trained.head.probabilities(features)
        report = labelling.evaluate(scores, targets, labels, trained.thresholds)
        unknown = reject(trained.unknown, scores, targets) if trained.unknown else None
        result.metrics = figures(report, trained, unknown)
    with progress.phase("gate"):
        right = labelling.choose(scores, trained.thresholds) == targets
        tested = Answered(examples, backbone.digest, features, right)
        comparison = compared(config, plan, labels, tested)
    return Facts(
        name=config.name,
        task=config.task,
        labels=labels,
        names=tuple(example.name for example in examples),
        classes=targets,
        scores=scores,
        thresholds=trained.thresholds,
        uncalibrated=trained.fit.head.probabilities(features),
        temperature=trained.temperature,
        report=report,
        comparison=comparison,
        verdict=pass_judgement(config, report, comparison),
        images=result.images,
        seconds=result.seconds,
        provenance=provenance(config, backbone, trained),
        read_image=lambda name: read_quietly(plan.data, name),
        unknown=unknown,
        findings=checkup.lines if checkup else (),
        listing=checkup.listing if checkup else "",
    )


def compared(
    config: RunConfig, plan: Plan, labels: tuple[str, ...], tested: Answered
) -> Comparison | None:
    """Compare with the version in service, if there is one."""
    return compare_with_service(config, plan.data, plan.models, plan.serving, labels, tested)


def figures(report: Report, trained: Trained, unknown: Rejection | None) -> dict[str, object]:
    """Give the `metrics` of a result: those of the test images, and how the head was found."""
    found: dict[str, object] = report.as_json("test") | {
        "validation_log_loss": round(trained.fit.validation_loss, 6),
        "train_loss": None if trained.fit.loss is None else round(trained.fit.loss, 6),
        "gradient_norm": trained.fit.gradient_norm,
        "l2": trained.fit.l2,
        "temperature": round(trained.temperature, 6),
        "test_recall": {s.label: round(s.recall, 4) for s in report.per_label},
    }
    if unknown is not None:
        found["test_false_reject_rate"] = round(unknown.false_reject_rate, 6)
    return found


def pass_judgement(config: RunConfig, report: Report, comparison: Comparison | None) -> Verdict:
    """Ask the gate with the minima and the significance of the configuration."""
    return judge(
        report,
        comparison,
        min_accuracy=config.min_accuracy,
        min_recall_per_class=config.min_recall_per_class,
        min_mean_average_precision=config.min_mean_average_precision,
        alpha=config.gate_alpha,
    )


def provenance(config: RunConfig, backbone: Backbone, trained: Trained) -> dict[str, str]:
    """Give what the report shows of where a model comes from."""
    return {
        "data": ", ".join(map(redact, config.data)),
        "backbone": redact(backbone.handle),
        "backbone digest": backbone.digest,
        "solver": config.solver,
        "L2 penalty": f"{trained.fit.l2:.3g}",
        "split": f"{config.validation_percent:g} % validation, {config.test_percent:g} % test",
        **packages(),
    }
