"""Images with any number of labels: thresholds, scores and comparisons are what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import expit
from sklearn import metrics as peers
from sklearn.linear_model import LogisticRegression
from sklearn.multiclass import OneVsRestClassifier

from job.calibrate import binary_reliability, bins_error, fit_binary_temperature
from job.checkpoints import Checkpoints
from job.config import RunConfig
from job.dataset import Example, Split
from job.errors import ConfigError, DataError
from job.fit import Session
from job.gate import compare_labels, judge
from job.head import Head
from job.labelling import TASKS, wholly
from job.lbfgs import fit
from job.multilabel import (
    NO_EVIDENCE,
    Mistake,
    average_precision,
    best_thresholds,
    check_targets,
    evaluate,
    mistakes,
)
from job.objective import GRADIENT_TOLERANCE
from job.storage import Entry, LocalStore
from job.targets import class_indices, target_matrix

LABELS = ("a", "b", "c", "d")
PLACES = {"data": ("d",), "models": "m", "name": "x"}

Pair = tuple[np.ndarray, np.ndarray]


def scenes(n: int, *, labels: int = 4, width: int = 20, seed: int = 0) -> Pair:
    """Draw features that are sums of what each label adds, rare and common labels among them."""
    random = np.random.default_rng(seed)
    parts = np.random.default_rng(99).normal(size=(labels, width))
    shares = np.linspace(0.1, 0.7, labels)
    targets = random.random((n, labels)) < shares
    features = targets @ parts + random.normal(size=(n, width)) + 10
    return features.astype(np.float32), targets


@st.composite
def scored(draw: st.DrawFn, labels: int = 1) -> Pair:
    """Draw scores on a coarse grid, so that many are the same, and targets."""
    n = draw(st.integers(1, 12))
    steps = draw(arrays(np.int64, (n, labels), elements=st.integers(0, 6)))
    return (steps / 6).astype(np.float32), draw(arrays(bool, (n, labels)))


def with_ones(targets: np.ndarray) -> np.ndarray:
    """Give the first image every label, so that each label occurs."""
    given_to_all = targets.copy()
    given_to_all[0] = True
    return given_to_all


# The head


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("l2", [1e-1, 1e-3])
def test_the_optimum_is_one_against_the_rest(l2: float, balanced: bool) -> None:
    """Kernel and bias to 1e-3 of scikit-learn's c regressions, each by itself, at that penalty."""
    features, targets = scenes(300)
    found = fit(
        (features, targets), scenes(50, seed=1), 4,
        activation="sigmoid", l2=l2, balanced=balanced,
    )  # fmt: skip
    one = LogisticRegression(
        C=1 / (300 * l2), tol=1e-10, max_iter=20_000, solver="newton-cg",
        class_weight="balanced" if balanced else None,
    )  # fmt: skip
    peer = OneVsRestClassifier(one).fit(features.astype(np.float64), targets)
    kernel = np.concatenate([each.coef_ for each in peer.estimators_]).T
    bias = np.concatenate([each.intercept_ for each in peer.estimators_])
    assert found.head.activation == "sigmoid"
    assert np.abs(found.head.kernel - kernel).max() < 1e-3
    assert np.abs(found.head.bias - bias).max() < 1e-3
    theirs = Head(kernel, bias, "sigmoid").log_loss(features, targets, balanced=balanced)
    assert abs(found.loss - theirs - l2 / 2 * (kernel**2).sum()) < 1e-6


@pytest.mark.parametrize("prepared_elements", [0, 2**20])
def test_the_gradient_at_the_head_is_nothing(prepared_elements: int) -> None:
    """On the features as they came, with the penalty that validation images chose."""
    features, targets = scenes(1000)
    found = fit(
        (features, targets), scenes(200, seed=1), 4,
        activation="sigmoid", prepared_elements=prepared_elements,
    )  # fmt: skip
    error = (found.head.probabilities(features.astype(np.float64)) - targets) / len(targets)
    slope = features.T @ error + found.l2 * found.head.kernel
    # Features of 10 make float32's rounding of the head into a few times the tolerance.
    assert max(np.abs(slope).max(), np.abs(error.sum(axis=0)).max()) < 5 * GRADIENT_TOLERANCE
    assert found.gradient_norm <= GRADIENT_TOLERANCE


def test_the_penalty_is_the_one_that_validates_best() -> None:
    """Every other penalty of the path has a validation loss that is no less."""
    train, validation = scenes(120), scenes(60, seed=1)
    found = fit(train, validation, 4, activation="sigmoid")
    losses = {
        l2: fit(train, validation, 4, activation="sigmoid", l2=l2).validation_loss
        for l2 in (found.l2 * 10**0.5, found.l2, found.l2 / 10**0.5)
    }
    assert min(losses, key=lambda l2: losses[l2]) == found.l2
    assert found.validation_loss == found.head.log_loss(*validation)


def test_a_second_run_and_one_that_goes_on_give_the_same_bytes(tmp_path: Path) -> None:
    """Neither threads nor a state that was kept on the way change a bit."""
    train, validation = scenes(3000), scenes(300, seed=1)
    whole = fit(train, validation, 4, activation="sigmoid").head
    again = fit(train, validation, 4, activation="sigmoid").head

    class Stopped(Exception):
        """What ends the first attempt."""

    def stop(side: str, step: int, **values: float) -> None:
        if step == 4:
            raise Stopped

    store = LocalStore(tmp_path)
    with pytest.raises(Stopped), Checkpoints(store, "fit", 0.0) as kept:
        fit(
            train,
            validation,
            4,
            activation="sigmoid",
            session=Session(observe=stop, checkpoints=kept),
        )
    steps: list[int] = []
    with Checkpoints(store, "fit", 0.0) as kept:
        session = Session(advance=steps.append, checkpoints=kept)
        resumed = fit(train, validation, 4, activation="sigmoid", session=session).head
    assert steps[0] == 3
    for other in (again, resumed):
        assert whole.kernel.tobytes() == other.kernel.tobytes()
        assert whole.bias.tobytes() == other.bias.tobytes()


def test_the_log_loss_is_the_labels_binary_losses_together() -> None:
    """Nats an image: the sum of scikit-learn's binary log losses; balanced, of weighted ones."""
    features, targets = scenes(5000)
    head = fit((features, targets), (features, targets), 4, activation="sigmoid", l2=1e-2).head
    scores = head.probabilities(features.astype(np.float64))
    plain = sum(peers.log_loss(targets[:, i], scores[:, i]) for i in range(4))
    assert head.log_loss(features, targets) == pytest.approx(plain, rel=1e-6)
    weights = 1 / np.where(targets, targets.mean(axis=0), 1 - targets.mean(axis=0))
    weighted = sum(
        peers.log_loss(targets[:, i], scores[:, i], sample_weight=weights[:, i]) for i in range(4)
    )
    assert head.log_loss(features, targets, balanced=True) == pytest.approx(weighted, rel=1e-6)


@pytest.mark.parametrize(("column", "what"), [(True, "every"), (False, "no")])
def test_a_label_that_tells_nothing_apart_is_refused(column: bool, what: str) -> None:
    """Where all images have it, or none, its bias would run away: the message names it."""
    targets = scenes(30)[1]
    check_targets(targets, LABELS)
    targets[:, 2] = column
    with pytest.raises(DataError, match=f"{what} training image has 'c'"):
        check_targets(targets, LABELS)


@pytest.mark.parametrize("solver", ["sgd", "finetune"])
def test_other_solvers_are_refused(solver: str) -> None:
    """They would fit a softmax; the hint names the one that does not."""
    with pytest.raises(ConfigError, match=rf"--solver {solver} .*multilabel") as caught:
        RunConfig(**PLACES, task="multilabel", solver=solver)
    assert "--solver lbfgs" in caught.value.hint


def test_a_minimum_of_another_task_is_refused() -> None:
    """One label an image has no average precision here."""
    with pytest.raises(ConfigError, match=r"--min-mean-average-precision .*single"):
        RunConfig(**PLACES, min_mean_average_precision=0.9)
    RunConfig(**PLACES, min_mean_average_precision=0.9, task="multilabel")


def test_the_task_decides_what_is_trained() -> None:
    """A version of another task is not `unchanged`."""
    single, several = (RunConfig(**PLACES, task=task).decisions() for task in TASKS)
    assert single != several


# Temperature


@pytest.mark.parametrize("scale", [0.4, 1.0, 3.0])
def test_the_temperature_undoes_an_overstatement(scale: float) -> None:
    """Logits that are k times what the labels were drawn from have a temperature near k."""
    random = np.random.default_rng(5)
    logits = 1.5 * random.normal(size=(2000, 3))
    targets = random.random(logits.shape) < expit(logits)
    assert fit_binary_temperature(scale * logits, targets) == pytest.approx(scale, rel=0.06)


def test_without_a_logit_on_the_wrong_side_the_scores_stay() -> None:
    """Nothing says how sure to be; nor does it where there is no image."""
    assert fit_binary_temperature(np.array([[2.0, -1.0]]), np.array([[True, False]])) == 1.0
    assert fit_binary_temperature(np.zeros((0, 2)), np.zeros((0, 2), bool)) == 1.0
    assert fit_binary_temperature(np.array([[2.0, 1.0]]), np.array([[True, False]])) > 1.0


def test_reliability_counts_every_label_of_every_image() -> None:
    """A bin's share is of those with the label; all scores are in one bin each."""
    scores = np.array([[0.9, 0.05], [0.9, 0.05], [0.9, 0.9]])
    targets = np.array([[True, False], [False, False], [True, True]])
    low, high = binary_reliability(scores, targets)
    assert (low.count, low.right, high.count, high.right) == (2, 0, 4, 3)
    assert bins_error((low, high)) == pytest.approx((2 * 0.05 + 4 * 0.15) / 6)


# Thresholds


@settings(max_examples=200, deadline=None)
@given(scored())
def test_no_threshold_does_better(drawn: Pair) -> None:
    """Of all cuts the chosen one has the largest F1, and selects the fewest of those with it."""
    scores, targets = drawn[0], with_ones(drawn[1])
    (threshold,) = best_thresholds(scores, targets)

    def selected(limit: float) -> tuple[float, int]:
        chosen = scores[:, 0] >= limit
        hits = int((chosen & targets[:, 0]).sum())
        return 2 * hits / int(chosen.sum() + targets.sum()), -int(chosen.sum())

    best = max(selected(limit) for limit in scores[:, 0])
    assert selected(threshold) == best
    assert threshold.dtype == np.float32


def test_a_threshold_lies_half_way() -> None:
    """Between the scores that it parts; below the last one half-way to 0."""
    scores = np.array([[0.9, 0.6], [0.5, 0.4], [0.1, 0.2]], np.float32)
    targets = np.array([[True, True], [True, True], [False, True]])
    assert best_thresholds(scores, targets) == pytest.approx([0.3, 0.1])


def test_neighbouring_scores_are_parted() -> None:
    """Where float32 has nothing between two scores the higher one is the threshold."""
    low = np.float32(0.7)
    high = np.nextafter(low, np.float32(1))
    (threshold,) = best_thresholds(np.array([[high], [low]]), np.array([[True], [False]]))
    assert low < threshold <= high


def test_a_label_without_images_is_cut_at_one_half() -> None:
    """No validation image has it, so nothing speaks for another threshold."""
    scores = np.array([[0.2, 0.9], [0.3, 0.8]], np.float32)
    found = best_thresholds(scores, np.array([[True, False], [False, False]]))
    assert found[1] == NO_EVIDENCE
    assert found[0] != NO_EVIDENCE


# Scores


@settings(max_examples=100, deadline=None)
@given(scored(labels=3))
def test_metrics_are_scikit_learns(drawn: Pair) -> None:
    """Average precision, F1 of both kinds, subset accuracy and each label's own scores."""
    scores, targets = drawn[0], with_ones(drawn[1])
    thresholds = np.array([0.2, 0.5, 0.6], np.float32)
    selected = scores >= thresholds
    report = evaluate(scores, targets, LABELS[:3], thresholds)
    expected = {
        "mean_average_precision": peers.average_precision_score(targets, scores, average="macro"),
        "micro_f1": peers.f1_score(targets, selected, average="micro", zero_division=0),
        "macro_f1": peers.f1_score(targets, selected, average="macro", zero_division=0),
        "subset_accuracy": peers.accuracy_score(targets, selected),
    }
    assert {name: report.metrics[name] for name in expected} == pytest.approx(expected)
    assert report.accuracy == report.metrics["subset_accuracy"]
    precision, recall, _, count = peers.precision_recall_fscore_support(
        targets, selected, zero_division=0
    )
    for i, score in enumerate(report.per_label):
        assert (score.precision, score.recall) == pytest.approx((precision[i], recall[i]))
        assert score.count == count[i]
        own = peers.average_precision_score(targets[:, i], scores[:, i])
        assert score.figures()["average_precision"] == pytest.approx(own)
        assert score.figures()["threshold"] == pytest.approx(thresholds[i])


def test_a_label_that_does_not_occur_is_left_out_of_the_means() -> None:
    """As balanced accuracy leaves out classes: it would be 0 whatever the model did."""
    scores = np.array([[0.9, 0.9], [0.1, 0.1]], np.float32)
    targets = np.array([[True, False], [False, False]])
    report = evaluate(scores, targets, LABELS[:2], np.float32([0.5, 0.5]))
    assert report.metrics["mean_average_precision"] == report.metrics["macro_f1"] == 1.0
    assert average_precision(scores[:, 1], targets[:, 1]) == 0.0
    assert report.metrics["subset_accuracy"] == 0.5


def test_scores_go_under_the_names_of_a_result() -> None:
    """The accuracy is called what it is, and has its interval."""
    targets = scenes(40)[1]
    scores = np.where(targets, 0.9, 0.1)
    scores[:4] = 0.9
    found = evaluate(scores, targets, LABELS, np.full(4, 0.5)).as_json("test")
    assert found["n_test"] == 40
    assert "test_accuracy" not in found
    low, high = found["test_subset_accuracy_ci95"]
    assert low < found["test_subset_accuracy"] < high


def test_mistakes_are_the_surest_first() -> None:
    """A wrong label with a high score and a true one with a low score lead."""
    scores = np.array([[0.9, 0.2], [0.05, 0.7]], np.float32)
    targets = np.array([[False, True], [True, True]])
    found = mistakes(scores, targets, scores >= 0.5)
    assert [(m.row, m.label, m.missed) for m in found] == [
        (1, 0, True), (0, 0, False), (0, 1, True),
    ]  # fmt: skip
    assert found[1] == Mistake(0, 0, pytest.approx(0.9), False)


# What the rest of the job asks


def example(name: str, *targets: int) -> Example:
    """Give an example with these labels."""
    return Example(Entry(name, 1, 0.0), targets, Split.TEST)


def test_targets_are_rows_of_labels() -> None:
    """None, one or several; where images have one label, its index."""
    several = [example("x"), example("y", 1), example("z", 0, 2)]
    assert target_matrix(several, 3).tolist() == [
        [False, False, False], [False, True, False], [True, False, True],
    ]  # fmt: skip
    assert class_indices(several[1:2], 3).tolist() == [1]
    with pytest.raises(ValueError, match="unpack"):
        class_indices(several, 3)


@pytest.mark.parametrize("task", TASKS)
def test_what_is_chosen_has_the_shape_of_targets(task: str) -> None:
    """So that to be right is to be equal, an image at a time or in all its labels."""
    labelling = TASKS[task]
    examples = [example("x", 0), example("y", 1), example("z", 1)]
    scores = np.array([[0.9, 0.2], [0.1, 0.8], [0.7, 0.3]], np.float32)
    targets = labelling.targets(examples, 2)
    chosen = labelling.choose(scores, np.float32([0.5, 0.5]))
    assert chosen.shape == targets.shape
    assert wholly(chosen == targets).tolist() == [True, True, False]


def test_a_label_that_got_worse_is_refused_by_its_own_test() -> None:
    """Twenty images newly without it, none in all labels better: the whole and the label fail."""
    names = [str(i) for i in range(100)]
    before = np.ones((100, 4), bool)
    after = before.copy()
    after[:20, 2] = False
    found = compare_labels(7, names, LABELS, before, after)
    assert (found.accuracy_before, found.accuracy_after) == (1.0, 0.8)
    assert found.broken == tuple(names[:20])
    assert [(c.n, c.fixed, c.broken) for c in found.per_label] == [
        (100, 0, 0), (100, 0, 0), (100, 0, 20), (100, 0, 0),
    ]  # fmt: skip
    # By hand: the least of five equal p-values and ones is multiplied by 5, the next by 4.
    assert (found.per_label[2].p_value, found.p_value) == pytest.approx((5 / 2**20, 5 / 2**20))
    scores = np.where(after, 0.9, 0.1).astype(np.float32)
    report = evaluate(scores, before, LABELS, np.full(4, 0.5, np.float32))
    verdict = judge(report, found, min_accuracy=0.9, min_recall_per_class=0.95, alpha=0.01)
    starts = [reason.split(" is ")[0] for reason in verdict.reasons]
    assert starts == ["the subset accuracy", "the recall of 'c'", "the subset accuracy", "'c'"]


@pytest.mark.parametrize(("minimum", "passed"), [(None, True), (0.75, True), (0.7501, False)])
def test_the_minimum_of_the_mean_average_precision_is_inclusive(
    minimum: float | None, passed: bool
) -> None:
    """One label ranked rightly, and one with its only image last of two: 0.75, by hand."""
    scores = np.array([[0.9, 0.4], [0.1, 0.6]], np.float32)
    targets = np.array([[True, True], [False, False]])
    report = evaluate(scores, targets, LABELS[:2], np.float32([0.5, 0.5]))
    verdict = judge(
        report, None, min_accuracy=None, min_recall_per_class=None, alpha=0.05,
        min_mean_average_precision=minimum,
    )  # fmt: skip
    assert verdict.passed is passed
    assert all("0.7500 on 2 test images" in reason for reason in verdict.reasons)


def test_labels_that_change_places_cancel_out() -> None:
    """As many images fixed as broken in every label: an equal model passes."""
    random = np.random.default_rng(3)
    before = random.random((400, 4)) < 0.9
    after = before[::-1]
    found = compare_labels(7, [str(i) for i in range(400)], LABELS, before, after)
    assert found.p_value == 1.0
    assert [label.p_value for label in found.per_label] == [1.0] * 4
