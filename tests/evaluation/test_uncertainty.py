"""The intervals cover the truth as often as they say, and the standard errors equal known formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from conftest import REAL_DATA

from multilora.errors import InputError
from multilora.evaluation.statistics.intervals import (
    clustered_stderr,
    indices_of,
    mean_stderr,
    score_interval,
    t_quantile,
)
from multilora.evaluation.statistics.uncertainty import main_uncertainty, mean_uncertainty
from multilora.example import choice_example, free_example
from multilora.metrics import METRICS, Metric
from multilora.metrics.sums import SumMetric
from multilora.recipe import TaskSection
from multilora.tasks import Task, make_task
from multilora.tasks.superglue import CB_WORDS, YES_NO

RUNS = 1500


def own_task(**options):
    return make_task(TaskSection(name="mine", path="x", prompt="p", response="r", **options))


def superglue(name):
    return make_task(TaskSection(name=f"superglue/{name}"))


def coverage(intervals, truth):
    return np.mean([low - 1e-12 <= truth <= high + 1e-12 for low, high in intervals])


def bounds(uncertainty):
    return uncertainty.low, uncertainty.high


def naive(values):
    """The mean ± 1.96 standard errors."""
    mean, stderr = float(np.mean(values)), mean_stderr(values)
    return mean - 1.96 * stderr, mean + 1.96 * stderr


def clustered_answers(rng, clusters, p, correlation, largest=9):
    """Answers of 0 or 1 in clusters of 1 to `largest`, each cluster with its own probability (beta-binomial)."""
    scale = 1 / correlation - 1
    sizes = rng.integers(1, largest + 1, size=clusters)
    index = np.repeat(np.arange(clusters), sizes)
    values = rng.random(len(index)) < rng.beta(p * scale, (1 - p) * scale, size=clusters)[index]
    return values.astype(float), index


@pytest.mark.parametrize("n", [10, 20, 50])
@pytest.mark.parametrize("p", [0.05, 0.5, 0.95])
def test_coverage_for_independent_items(n, p):
    """Wilson's coverage is at least 0.914 here (n = 10); the mean ± 1.96 standard errors falls to 0.40."""
    rng = np.random.default_rng(0)
    samples = [(rng.random(n) < p).astype(float) for _ in range(RUNS)]
    assert 0.90 <= coverage([bounds(mean_uncertainty(values)) for values in samples], p) <= 0.99
    if p != 0.5:
        assert coverage([naive(values) for values in samples], p) < (0.65 if n < 50 else 0.94)


@pytest.mark.parametrize("n", [10, 20, 50])
def test_coverage_for_scores_between_0_and_1(n):
    rng = np.random.default_rng(0)
    samples = [rng.beta(0.8, 0.4, size=n) for _ in range(RUNS)]
    assert 0.93 <= coverage([bounds(mean_uncertainty(list(values))) for values in samples], 2 / 3) <= 0.98


@pytest.mark.parametrize("clusters", [10, 20, 50])
@pytest.mark.parametrize(("p", "correlation"), [(0.05, 0.1), (0.05, 0.5), (0.5, 0.1), (0.5, 0.5), (0.95, 0.5)])
def test_coverage_for_clusters(clusters, p, correlation):
    """Wilson's interval for as many independent items falls to 0.68."""
    rng = np.random.default_rng(0)
    samples = [clustered_answers(rng, clusters, p, correlation) for _ in range(RUNS)]
    assert 0.89 <= coverage([bounds(mean_uncertainty(values, index)) for values, index in samples], p) <= 0.985
    if correlation == 0.5:
        assert coverage([bounds(mean_uncertainty(values)) for values, _ in samples], p) < 0.87


@pytest.mark.parametrize("name", ["cb", "multirc"])
@pytest.mark.parametrize(("clusters", "p"), [(10, 0.6), (20, 0.9), (50, 0.6), (50, 0.9)])
def test_coverage_for_metrics_of_a_set(name, clusters, p):
    """Macro F1 and accuracy of independent examples; F1a and EM of questions in correlated passages."""
    task = superglue(name)
    rng = np.random.default_rng(0)
    words = CB_WORDS if name == "cb" else YES_NO

    def sample(clusters):
        if name == "cb":
            correct, index = (rng.random(clusters) < p).astype(float), np.zeros(clusters, dtype=int)
        else:
            correct, index = clustered_answers(rng, clusters, p, 0.3)
        references = rng.integers(len(words), size=len(correct))
        groups = [f"{passage}/{question % 2}" if name == "multirc" else "" for question, passage in enumerate(index)]
        examples = [choice_example("q", words, r, group=g) for r, g in zip(references, groups, strict=True)]
        predictions = [words[r if c else (r + 1) % len(words)] for r, c in zip(references, correct, strict=True)]
        return examples, predictions

    truth = task.score(*sample(40_000))["score"]
    intervals = [bounds(main_uncertainty(task, *sample(clusters))) for _ in range(300)]
    assert 0.90 <= coverage(intervals, truth) <= 0.995


def test_standard_error_of_a_mean():
    assert mean_stderr([1, 1, 1, 0]) == pytest.approx(math.sqrt(0.75 * 0.25 / 3))
    assert mean_stderr([1.0]) is None


def test_standard_error_equals_lm_evaluation_harness():
    harness = pytest.importorskip("lm_eval.api.metrics")
    values = [0.0, 1.0, 1.0, 0.25, 0.5]
    assert mean_stderr(values) == pytest.approx(harness.mean_stderr(values))


def test_wilson_intervals():
    """The bounds for 0 of n are 0 and z² / (n + z²)."""
    z = 1.959964
    nothing = mean_uncertainty([0.0] * 20)
    assert (nothing.stderr, nothing.low, nothing.method, nothing.clusters) == (0.0, 0.0, "wilson", None)
    assert nothing.high == pytest.approx(z**2 / (20 + z**2), abs=1e-6)
    everything = mean_uncertainty([1.0] * 20)
    assert (everything.low, everything.high) == (pytest.approx(1 - nothing.high), 1.0)
    half = mean_uncertainty([0.0, 1.0] * 5)
    assert (half.low, half.high) == (pytest.approx(0.2366, abs=1e-4), pytest.approx(0.7634, abs=1e-4))


def test_quantiles_of_students_t():
    """Table of Student's t, two-sided 95 %."""
    table = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 9: 2.2622, 30: 2.0423, 100: 1.9840, 5000: 1.9604}
    for freedom, quantile in table.items():
        assert t_quantile(freedom) == pytest.approx(quantile, abs=5e-5)


def test_clustered_standard_error_by_hand():
    """Mean 0.5; residuals of the clusters sum to 1, -0.5, -0.5: sqrt(3 / 2 * 1.5) / 4."""
    values, clusters = [1.0, 1.0, 0.0, 0.0], np.array([0, 0, 1, 2])
    assert clustered_stderr(values, clusters) == pytest.approx(math.sqrt(1.5 * 1.5) / 4)
    assert clustered_stderr(values, np.zeros(4, dtype=int)) is None


def test_clustered_standard_error_of_the_paper():
    """Miller (2024): SE² = s² / n + sum over pairs in a cluster of the product of their residuals / n²."""
    values, clusters = clustered_answers(np.random.default_rng(0), 12, 0.6, 0.4)
    n, residuals = len(values), values - values.mean()
    pairs = sum(
        residuals[i] * residuals[j] for i in range(n) for j in range(n) if i != j and clusters[i] == clusters[j]
    )
    paper = np.var(values, ddof=1) / n + pairs / n**2
    single_items = (residuals**2).sum() * (1 / (n * (n - 1)) - 1 / n**2)
    assert clustered_stderr(values, clusters) == pytest.approx(math.sqrt((paper - single_items) * 12 / 11))


def test_clusters_of_one_item_are_independent_items():
    values = [0.0, 1.0, 1.0, 0.2, 0.9]
    assert clustered_stderr(values, np.arange(5)) == pytest.approx(mean_stderr(values))


def test_the_jackknife_of_a_mean_is_its_standard_error():
    values = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    examples = [choice_example("q", list("xy"), 0) for _ in values]
    predictions = ["x" if value else "y" for value in values]
    task = own_task(choices=["x", "y"])
    task._metrics = {"mean": Metric(lambda e, p: float(np.mean([a == "x" for a in p])), answers="choice", per="set")}
    uncertainty = main_uncertainty(task, examples, predictions)
    assert uncertainty.method == "jackknife"
    assert uncertainty.stderr == pytest.approx(mean_stderr(values))


@pytest.mark.parametrize("name", ["cb", "multirc"])
def test_sums_and_repeated_scoring_agree(name):
    """The jackknife from sums equals that which scores every subset."""
    rng = np.random.default_rng(1)
    words = CB_WORDS if name == "cb" else YES_NO
    references = rng.integers(len(words), size=60)
    examples = [choice_example("q", words, r, group=f"{i // 6}/{i // 2}") for i, r in enumerate(references)]
    predictions = [words[r if rng.random() < 0.7 else 0] for r in references]
    task = superglue(name)
    fast = main_uncertainty(task, examples, predictions)
    metric = task._metrics["score"]
    task._metrics = {"score": Metric(lambda e, p: metric(e, p), answers="choice", per="set")}
    slow = main_uncertainty(task, examples, predictions)
    assert fast.stderr == pytest.approx(slow.stderr)
    assert (fast.method, fast.clusters) == ("jackknife", 10)


def test_many_classes_are_deleted_in_groups(monkeypatch):
    """The standard error from 50 random groups of examples is near that from single examples."""
    rng = np.random.default_rng(0)
    references = rng.integers(3, size=2000)
    examples = [choice_example("q", CB_WORDS, int(r)) for r in references]
    predictions = [CB_WORDS[r if rng.random() < 0.8 else 0] for r in references]
    single = main_uncertainty(superglue("cb"), examples, predictions).stderr
    monkeypatch.setattr("multilora.evaluation.statistics.uncertainty.MOST_SUMS", 1000)
    assert main_uncertainty(superglue("cb"), examples, predictions).stderr == pytest.approx(single, rel=0.25)
    assert main_uncertainty(superglue("cb"), examples, predictions).stderr != single


def test_accuracy_over_subjects_has_the_error_of_strata():
    """Each subject's variance, divided by the number of subjects squared."""
    rng = np.random.default_rng(0)
    subjects = rng.integers(4, size=400)
    examples = [choice_example("q", list("AB"), 0, group=str(subject)) for subject in subjects]
    values = (rng.random(400) < 0.2 + 0.2 * subjects).astype(float)
    predictions = ["A" if value else "B" for value in values]
    task = make_task(TaskSection(name="mmlu"))
    assert main_uncertainty(task, examples, predictions).clusters is None
    assert main_uncertainty(task, examples, predictions).stderr == pytest.approx(mean_stderr(values))
    task._metrics = {"accuracy_over_subjects": task._metrics["accuracy_over_subjects"]}
    strata = sum(np.var(values[subjects == s], ddof=1) / sum(subjects == s) for s in range(4)) / 4**2
    assert main_uncertainty(task, examples, predictions).stderr == pytest.approx(math.sqrt(strata), rel=0.02)


def test_bleu_from_sums_is_the_corpus_score_of_every_subset():
    sacrebleu = pytest.importorskip("sacrebleu")
    rng = np.random.default_rng(0)
    words = ["the", "a", "cat", "dog", "sat", "ran", "on", "under", "mat", "house", "fast"]
    texts = [" ".join(rng.choice(words, size=9)) for _ in range(12)]
    answers = [" ".join(w if rng.random() < 0.8 else "bird" for w in text.split()) for text in texts]
    examples = [free_example("p", text, text) for text in texts]
    metric = METRICS["bleu"].function
    assert isinstance(metric, SumMetric)
    total = metric.sums(examples, answers, np.zeros(12, dtype=int), 1)
    without = metric.combine(total - metric.sums(examples, answers, np.arange(12), 12))
    for index in range(12):
        kept = [i for i in range(12) if i != index]
        expected = sacrebleu.corpus_bleu([answers[i] for i in kept], [[texts[i] for i in kept]]).score / 100
        assert without[index] == pytest.approx(expected)


@pytest.mark.parametrize("metric", ["bleu", "chrf", "rouge_l", "token_f1"])
def test_metrics_of_text_have_intervals_around_their_values(metric):
    if METRICS[metric].requires:
        pytest.importorskip(METRICS[metric].requires)
    texts = [f"the number {i} is between {i - 1} and {i + 1} as you know" for i in range(60)]
    answers = [text if i % 3 else text.replace("between", "among") for i, text in enumerate(texts)]
    task = own_task(metric=metric)
    examples = [free_example("p", text, text) for text in texts]
    value = task.score(examples, answers)[metric]
    uncertainty = main_uncertainty(task, examples, answers)
    assert 0 < uncertainty.stderr < 0.05
    assert 0 <= uncertainty.low < value < uncertainty.high <= 1


def test_one_item_or_cluster_says_nothing():
    one = main_uncertainty(own_task(metric="token_f1"), [free_example("p", "b c", "b c")], ["b"])
    assert (one.stderr, one.low, one.high) == (None, 0.0, 1.0)
    examples = [choice_example("q", YES_NO, 0, group=f"0/{i}") for i in range(5)]
    passage = main_uncertainty(superglue("multirc"), examples, ["yes"] * 5)
    assert (passage.stderr, passage.low, passage.high, passage.clusters) == (None, 0.0, 1.0, 1)


def test_a_perfect_f1_has_no_empty_interval():
    examples = [choice_example("q", CB_WORDS, i % 3) for i in range(30)]
    uncertainty = main_uncertainty(superglue("cb"), examples, [CB_WORDS[i % 3] for i in range(30)])
    assert (uncertainty.stderr, uncertainty.high) == (0.0, 1.0)
    assert 0.8 < uncertainty.low < 0.95


def test_a_task_with_its_own_score():
    class Halved(type(own_task())):
        def score(self, examples, predictions):
            return {"half": sum(map(float, predictions)) / len(predictions) / 2}

    task = Halved(TaskSection(name="mine", path="x", prompt="p", response="r"))
    examples = [free_example("p", "1", "1")] * 40
    uncertainty = main_uncertainty(task, examples, ["1", "0"] * 20)
    assert uncertainty.stderr == pytest.approx(mean_stderr([0.5, 0.0] * 20))


def test_a_score_of_another_scale():
    class Percent(type(own_task())):
        def score(self, examples, predictions):
            return {"percent": 100 * sum(map(float, predictions)) / len(predictions)}

    task = Percent(TaskSection(name="mine", path="x", prompt="p", response="r"))
    uncertainty = main_uncertainty(task, [free_example("p", "1", "1")] * 40, ["1", "0"] * 20)
    assert uncertainty.stderr == pytest.approx(100 * mean_stderr([1.0, 0.0] * 20))
    assert uncertainty.high - uncertainty.low == pytest.approx(2 * t_quantile(39) * uncertainty.stderr)


def test_a_task_without_a_metric():
    with pytest.raises(InputError, match="task 'mine' has no metric"):
        main_uncertainty(own_task(metric="none"), [free_example("p", "a")], ["a"])


def test_intervals_contain_the_value():
    for value in (0.0, 1e-9, 1 / 3, 1 - 1e-9, 1.0):
        for stderr in (None, 0.0, 1e-12, 0.1):
            low, high = score_interval(value, stderr, 5, t_quantile(4))
            assert 0 <= low <= value <= high <= 1


def test_names_are_numbered_in_order():
    assert indices_of(["b", "a", "b", "c"]).tolist() == [0, 1, 0, 2]


def test_clusters_of_the_tasks():
    example = choice_example("q", YES_NO, 0, group="12/3")
    assert superglue("multirc").cluster_of(example) == "12"
    assert superglue("cb").cluster_of(choice_example("q", CB_WORDS, 0)) == ""
    assert make_task(TaskSection(name="mmlu")).cluster_of(example) == ""

    class Grouped(Task):
        whole_groups = True

        def load(self, split):
            raise NotImplementedError

    assert Grouped(TaskSection(name="mine", path="x")).cluster_of(example) == "12/3"


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data beside the checkout")
def test_multirc_counts_passages():
    """If passages differ in difficulty, the error of passages is 1.5 to 4 times that of independent questions."""
    task = make_task(TaskSection(name="superglue/multirc", path=str(REAL_DATA / "superglue" / "MultiRC")))
    examples = task.load("eval").to_list()
    rng = np.random.default_rng(0)
    difficulty = {}
    predictions = []
    for example in examples:
        p = difficulty.setdefault(task.cluster_of(example), rng.beta(4, 1.3))
        predictions.append(YES_NO[example["correct"][0] ^ (rng.random() > p)])
    passages = main_uncertainty(task, examples, predictions)
    assert passages.clusters == 83
    task.cluster_of = lambda example: example["group"]
    questions = main_uncertainty(task, examples, predictions)
    assert questions.clusters == 953
    assert 1.5 < passages.stderr / questions.stderr < 4


@pytest.mark.skipif(not REAL_DATA.is_dir(), reason="no real data beside the checkout")
def test_passages_of_real_tasks():
    path = REAL_DATA / "superglue" / "BoolQ"
    section = TaskSection(
        name="superglue/boolq", path=str(path / "fewglue_train32.jsonl"), eval_path=str(path / "val.jsonl")
    )
    task = make_task(section)
    assert len({task.cluster_of(example) for example in task.load("eval").to_list()}) == 2939
    task = make_task(TaskSection(name="superglue/wsc", path=str(REAL_DATA / "superglue" / "WSC")))
    assert len({task.cluster_of(example) for example in task.load("eval").to_list()}) == 41
