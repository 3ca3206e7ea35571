"""A fit as people watch it: summaries for TensorBoard, and frozen graphs on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace

from job.backbone import Backbone
from job.config import RunConfig
from job.errors import RegraftError
from job.export import Classifier, frozen_classifier
from job.fit import Fit, Pair
from job.head import Head
from job.intermediate import write_intermediate
from job.labelling import TASKS, Thresholds
from job.progress import log
from job.stages import Source, as_classifier
from job.summaries import open_summaries

# Seconds between two uploads of summaries to a bucket, which takes whole files.
FLUSH_SECONDS = 60.0

# Weights are drawn so often in the course of a run.
HISTOGRAMS = 20


class Watch:
    """What a run leaves for those who watch it, as `--summaries` and `--intermediate-interval` say.

    To be used as a context. Nothing here ends a run but a signal.
    """

    def __init__(
        self, config: RunConfig, source: Source, labels: tuple[str, ...], run: str
    ) -> None:
        """Watch the run whose files are to be called `run`."""
        if not source.replicas.is_chief:  # which leaves all that there is to see
            config = replace(config, summaries=None, intermediate_interval=None)
        self._config, self._source, self._labels, self._run = config, source, labels, run
        self._stack = ExitStack()
        self._flushed_at = time.monotonic()
        self._drawn = 0

    def __enter__(self) -> Watch:
        """Open the summaries."""
        summaries = open_summaries(self._config.summaries, self._run)
        self._summaries = self._stack.enter_context(summaries)
        return self

    def __exit__(self, *error: object) -> None:
        """Write the rest of them."""
        self._stack.close()

    def observe(self, side: str, step: int, **values: float) -> None:
        """Draw scores of a side of the split."""
        self._summaries.scalars(side, step, **values)
        if time.monotonic() - self._flushed_at >= FLUSH_SECONDS:
            self._summaries.flush()
            self._flushed_at = time.monotonic()

    def reached(
        self, step: int, head: Callable[[], Head], backbone: Callable[[], Backbone], steps: int
    ) -> None:
        """Draw the weights and leave a frozen graph, where it is time for them.

        `head` and `backbone` give those after `step` of `steps` steps, and are called if needed.
        """
        if self._config.summaries and HISTOGRAMS * step // steps > self._drawn:
            self._drawn = HISTOGRAMS * step // steps
            now = head()
            self._summaries.histograms(step, kernel=now.kernel, bias=now.bias)
        interval = self._config.intermediate_interval
        if interval and step % interval == 0:
            classifier = self._classifier(backbone(), head())
            try:
                uri = write_intermediate(self._source.plan.models, self._run, step, classifier)
                log(f"the graph of step {step} is {uri}", step=step, uri=uri)
            except (RegraftError, OSError) as error:
                message = f"the graph of step {step} is not kept: {error}"
                log(message, level=logging.WARNING, step=step)

    def conclude(
        self, fit: Fit, backbone: Backbone, head: Head, validation: Pair, thresholds: Thresholds
    ) -> None:
        """Draw the graph, the weights, and what the head takes the validation images for."""
        if self._config.summaries is None:
            return
        features, targets = validation
        scores = head.probabilities(features)
        report = TASKS[self._config.task].evaluate(scores, targets, self._labels, thresholds)
        step = fit.iterations
        self._summaries.scalars("validation", step, final_accuracy=report.accuracy)
        self._summaries.histograms(step, kernel=fit.head.kernel, bias=fit.head.bias)
        if report.confusion is not None:
            self._summaries.confusion("validation", step, report.confusion, self._labels)
        self._summaries.graph(frozen_classifier(self._classifier(backbone, head)))

    def _classifier(self, backbone: Backbone, head: Head) -> Classifier:
        return as_classifier(self._config, backbone, head, self._labels)
