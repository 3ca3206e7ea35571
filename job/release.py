"""What leaves the job: the bundle, the refused model's report, the summaries, the server's word."""

from __future__ import annotations

import logging
import tempfile
import uuid
from dataclasses import replace
from pathlib import Path

from job.backbone import resolve
from job.cache import EmbeddingCache
from job.checkpoints import Checkpoints
from job.config import VERSION, RunConfig
from job.dataset import Split
from job.embed import Embeddings
from job.errors import ConfigError, GateRejected, PublishError, UnavailableError
from job.export import EXPORTERS, export
from job.intake import open_place
from job.junit import junit
from job.lite import Asked, write_tflite
from job.manifest import write_manifest
from job.progress import Progress, log
from job.publish import LAST_FILE, PREVIOUS, move_channel, read_channels, read_listing
from job.report import Facts, markdown, write_report
from job.result import Result, append_summary
from job.seal import describe_files, file_problems
from job.service import unchanged_version
from job.serving import compare_answers, wait_available
from job.stages import Plan, Source, as_classifier, make_plan, open_cache
from job.storage import Store, download
from job.training import Trained
from job.verify import MAX_GOLDENS, Golden, golden_record, write_warmup
from job.versions import withdraw
from job.workdir import work_folder

# REST carries answers as decimal text.
REST_TOLERANCE = 1e-4


def find_unchanged(
    config: RunConfig, plan: Plan, backbone: str, cache: EmbeddingCache | None
) -> int | None:
    """Give the version in service if a run would train it again; None otherwise.

    A run that was killed right after it had published may have left `stable` behind.
    """
    same = unchanged_version(config, plan.data, plan.index, plan.serving, backbone, cache)
    if same is not None:
        move_channel(plan.models, same, forward=True)
        Checkpoints(plan.models, plan.serving.inputs if plan.serving else "").clear()
        deliver(config, plan.models, same)
    return same


def foresee(config: RunConfig, progress: Progress, result: Result) -> None:
    """Make the plan of a run, and tell whether the run would find nothing to do; changes nothing.

    `result.status` is then planned or unchanged.
    """
    result.seconds = progress.seconds
    plan = make_plan(config, progress, result)
    result.status = "planned"
    if plan.serving is None or config.force or config.resplit:
        return  # a run it is, whatever the backbone: it need not be fetched to tell
    with work_folder(config.work_dir) as folder, progress.phase("backbone"):
        found = resolve(config.backbone, cache_dir=config.work_dir or folder)
        cache = open_cache(config, found.digest, result)
        same = unchanged_version(config, plan.data, plan.index, plan.serving, found.digest, cache)
    if same is not None:
        result.finish("unchanged", plan.models.uri, same)


def pass_gate(config: RunConfig, plan: Plan, facts: Facts, result: Result) -> None:
    """Leave the summaries; raise GateRejected, the report being kept, when the gate says no."""
    leave_summaries(config, facts)
    if not facts.verdict.passed:
        reject(plan, facts, result)


def write_bundle(
    config: RunConfig,
    source: Source,
    trained: Trained,
    facts: Facts,
    progress: Progress,
    result: Result,
) -> tuple[Path, list[Golden]]:
    """Write all that a version consists of into a folder; gives it and its golden images."""
    bundle, embeddings = source.scratch / "bundle", trained.embeddings
    with progress.phase("export", len(EXPORTERS) + len(config.tflite)) as advance:
        goldens = choose_goldens(source.plan, embeddings, facts)
        classifier = as_classifier(
            config, trained.backbone, trained.head, facts.labels,
            thresholds=trained.thresholds, unknown=trained.unknown,
        )  # fmt: skip
        export(classifier, bundle, advance=advance)
        asked = ask_again(source.plan, embeddings, facts, goldens)
        lite = write_tflite(
            bundle, config.tflite, classifier, asked,
            threads=config.fetch_threads, advance=advance,
        )  # fmt: skip
        result.metrics |= {"formats": {s.file: s.as_json() for s in lite}} if lite else {}
        write_warmup(bundle, goldens)
        write_report(bundle / "report", replace(facts, lite=lite))
        write_manifest(
            bundle, config, trained.divided, source.backbone.digest, result,
            inputs=trained.inputs,
            features=trained.backbone.digest,
            temperature=trained.temperature,
            thresholds=trained.thresholds,
            unknown=trained.unknown,
            golden=golden_record(goldens)
            | {"tflite_tolerance": {score.file: score.tolerance for score in lite}},
        )  # fmt: skip
    return bundle, goldens


def ask_again(plan: Plan, embeddings: Embeddings, facts: Facts, goldens: list[Golden]) -> Asked:
    """Give what the TFLite files are to be asked, with the trained model's answers."""
    return Asked(
        plan.data,
        embeddings.index.examples,
        facts.scores,
        {golden.name: golden.prediction for golden in goldens},
        facts.labelling,
        facts.thresholds,
    )


def choose_goldens(plan: Plan, embeddings: Embeddings, facts: Facts) -> list[Golden]:
    """Give the smallest test image of each of the first labels, with the trained model's answer.

    The images travel with the version as its warm-up records, so small ones will do.
    """
    tests = [e for e in embeddings.index.examples if e.split is Split.TEST]
    smallest: dict[int, int] = {}
    for row in sorted(range(len(tests)), key=lambda row: tests[row].entry.size):
        for label in tests[row].targets:
            smallest.setdefault(label, row)
    # Where images have several labels, one may be the smallest of more than one.
    chosen = list(dict.fromkeys(row for _, row in sorted(smallest.items())))[:MAX_GOLDENS]
    try:
        contents = [plan.data.read(tests[row].name, tests[row].entry) for row in chosen]
    except FileNotFoundError as error:
        raise UnavailableError(
            f"{error}: the image was replaced while the job ran", hint="run again"
        ) from error
    return [
        Golden(tests[row].name, content, facts.scores[row])
        for row, content in zip(chosen, contents, strict=True)
    ]


def leave_summaries(config: RunConfig, facts: Facts) -> None:
    """Write the Markdown summary and the JUnit file where they are asked for.

    Raises ConfigError when one of the files cannot be written.
    """
    append_summary(config.summary_file, markdown(facts))
    try:
        if config.junit_file:
            config.junit_file.write_text(junit(facts), "utf-8", "backslashreplace")
    except OSError as error:
        raise ConfigError(f"{error.filename}: {error.strerror}", hint="check the path") from error


def reject(plan: Plan, facts: Facts, result: Result) -> None:
    """Keep the report of a refused model below `.rejected/` and raise GateRejected."""
    place = f".rejected/{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as folder:
        write_report(Path(folder) / "report", facts)
        plan.models.put_tree(Path(folder), place)
    result.uri = f"{plan.models.uri}/{place}"
    raise GateRejected(
        "; ".join(facts.verdict.reasons),
        hint=f"see {result.uri}/report/index.html; the version in service stays",
    )


def hand_over(
    config: RunConfig, models: Store, version: int, goldens: list[Golden], progress: Progress
) -> None:
    """See the new version served, and deliver it where else it is wanted; as the two raise."""
    confirm_serving(config, models, version, goldens, progress)
    deliver(config, models, version)


def confirm_serving(
    config: RunConfig, models: Store, version: int, goldens: list[Golden], progress: Progress
) -> None:
    """Wait until the server answers with the new version as the trained model did.

    Raises PublishError, the version having been withdrawn, when it does not.
    """
    if config.serving_url is None:
        return
    try:
        with progress.phase("serving"):
            url, name = config.serving_url.rstrip("/"), config.name
            wait_available(url, name, version, timeout=config.serving_timeout)
            wrong = compare_answers(url, name, version, goldens, tolerance=REST_TOLERANCE)
            if wrong:
                raise PublishError(f"the server answers otherwise: {'; '.join(wrong[:3])}")
    except BaseException as error:
        take_back(models, version)
        log(f"version {version} was withdrawn: {error}", level=logging.ERROR, version=version)
        raise


def deliver(config: RunConfig, models: Store, version: int) -> None:
    """Put a version's files where `--deliver` asks for them, `saved_model.pb` last of all.

    An earlier one's `saved_model.pb` goes first, so that no mixture of the two is a model; what
    else lies there is not looked at. Raises PublishError when a file is not what its manifest says.
    """
    if config.deliver is None:
        return
    place = open_place(config, config.deliver.replace(VERSION, str(version)))
    source = models.child(str(version))
    with tempfile.TemporaryDirectory(dir=config.work_dir) as name:
        folder = Path(name)
        download(source, source.list(), folder)
        if wrong := file_problems(folder):
            raise PublishError(
                f"{source.uri}: {'; '.join(wrong[:3])}",
                hint=f"version {version} is not delivered: roll back to another, or use --force",
            )
        files = [file for file in describe_files(folder) if file != LAST_FILE]
        place.delete(LAST_FILE)
        for file in (*files, LAST_FILE):
            place.write(file, folder / file)
    log(f"version {version} is also in {place.uri}", version=version)


def take_back(models: Store, version: int) -> None:
    """Withdraw a version that was just published; what was in service before is again.

    It is not marked as rolled back: the next run may try again.
    """
    older = [other for other in read_listing(models).versions if other < version]
    if older:
        previous = read_channels(models).get(PREVIOUS)
        move_channel(models, previous if previous in older else max(older))
    withdraw(models, version)
