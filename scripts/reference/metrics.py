"""Writes tests/it/fixtures/metrics.json: metrics, their errors and learning-rate schedules to compare with.

    python scripts/reference/metrics.py

Values come from scikit-learn, SciPy, seqeval and Transformers (their versions are written into the file); standard errors
from a bootstrap (20,000 draws, for correlations 4,000), and for accuracy from NumPy's sample standard deviation. Everything is seeded.
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import scipy
import seqeval.metrics
import sklearn
import torch
import transformers
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    confusion_matrix,
    f1_score,
    matthews_corrcoef,
    mean_absolute_error,
    mean_squared_error,
    precision_recall_fscore_support,
    precision_score,
    r2_score,
    recall_score,
)

SEED = 20240527
DRAWS = 20_000
OUT = Path(__file__).parents[2] / "tests/it/fixtures/metrics.json"

warnings.filterwarnings("ignore")


RATIOS = {"f1": f1_score, "precision": precision_score, "recall": recall_score}
PLAIN = {
    "balanced_accuracy": balanced_accuracy_score,
    "mse": mean_squared_error,
    "mae": mean_absolute_error,
    "r2": r2_score,
}


def value(metric, predictions, golds):
    if metric in PLAIN:
        return PLAIN[metric](golds, predictions)
    ratio, _, average = metric.partition("_")
    if ratio in RATIOS and average:
        return RATIOS[ratio](golds, predictions, average=average, zero_division=0)
    if metric in ("precision", "recall"):
        return RATIOS[metric](golds, predictions, zero_division=0)
    if metric == "accuracy":
        return accuracy_score(golds, predictions)
    if metric == "f1":
        return f1_score(golds, predictions, zero_division=0)
    if metric == "matthews_correlation":
        return matthews_corrcoef(golds, predictions)
    return {"pearson": pearsonr, "spearmanr": spearmanr}[metric](predictions, golds)[0]


def bootstrap_error(metric, predictions, golds, random, draws=DRAWS):
    n = len(golds)
    ratio, _, average = metric.partition("_")
    if average in ("macro", "micro", "weighted") or metric == "balanced_accuracy":
        cells, counts = np.unique(np.stack([predictions, golds]), axis=1, return_counts=True)
        drawn = random.multinomial(n, counts / n, size=draws)
        labels = np.unique(cells)
        predicted, gold = (drawn @ (cells[row][:, None] == labels) for row in (0, 1))
        right = drawn @ ((cells[0] == cells[1])[:, None] & (cells[0][:, None] == labels))
        over, under = {"f1": (2 * right, predicted + gold), "precision": (right, predicted)}.get(ratio, (right, gold))
        if average == "micro":
            return float(np.std(over.sum(1) / under.sum(1), ddof=1))
        weights = gold / n if average == "weighted" else 1 / len(labels)
        return float(np.std((weights * over / np.maximum(under, 1)).sum(1), ddof=1))
    if metric in ("f1", "matthews_correlation"):  # the counts decide: draw them at once
        cells, counts = np.unique(np.stack([predictions, golds]), axis=1, return_counts=True)
        drawn = random.multinomial(n, counts / n, size=draws)
        if metric == "f1":
            both = drawn[:, (cells == 1).all(0)].sum(1)
            either = drawn @ (cells == 1).sum(0)
            return float(np.std(2 * both / either, ddof=1))
        labels = np.unique(cells)
        predicted = drawn @ (cells[0][:, None] == labels)
        gold = drawn @ (cells[1][:, None] == labels)
        right = drawn @ (cells[0] == cells[1])
        over = right * n - (predicted * gold).sum(1)
        under = np.sqrt((n**2 - (predicted**2).sum(1)) * (n**2 - (gold**2).sum(1)).astype(float))
        return float(np.std(over / under, ddof=1))
    rows = [random.integers(0, n, n) for _ in range(draws // 5)]
    return float(np.std([value(metric, predictions[r], golds[r]) for r in rows], ddof=1))


def case(name, metrics, predictions, golds, random=None):
    """One list of predictions and labels with the value of each metric; with `random`, errors as well."""
    predictions, golds = np.asarray(predictions), np.asarray(golds)
    scores = {}
    for metric in metrics:
        found = float(value(metric, predictions, golds))
        scores[metric] = {"value": None if math.isnan(found) else found}
        if metric == "accuracy" and len(golds) > 1:
            hits = (predictions == golds).astype(float)
            scores[metric]["stderr"] = float(hits.std(ddof=1) / math.sqrt(len(hits)))
        elif random is not None:
            scores[metric]["bootstrap"] = bootstrap_error(metric, predictions, golds, random)
    return {"name": name, "predictions": predictions.tolist(), "golds": golds.tolist(), "scores": scores}


def noisy(golds, classes, share, random):
    """Labels of which `share` were drawn again."""
    return np.where(random.random(len(golds)) < share, random.integers(0, classes, len(golds)), golds)


def class_cases(random):
    binary = ["accuracy", "f1", "matthews_correlation"]
    several = ["accuracy", "matthews_correlation"]
    cases = []
    for n, ones, share in [(2, 0.5, 0.5), (9, 0.4, 0.6), (71, 0.56, 1.0), (277, 0.53, 0.5), (408, 0.68, 0.3)]:
        golds = (random.random(n) < ones).astype(int)
        errors = random if n > 200 else None
        cases.append(case(f"binary of {n}", binary, noisy(golds, 2, share, random), golds, errors))
    golds = random.integers(0, 2, 50)
    cases += [
        case("all right", binary, golds, golds),
        case("all wrong", binary, 1 - golds, golds),
        case("one class predicted", binary, np.ones(50, int), golds),
        case("class 0 predicted", binary, np.zeros(50, int), golds),
        case("one class labelled", binary, golds, np.zeros(50, int)),
        case("one class, always right", binary, np.ones(50, int), np.ones(50, int)),
    ]
    golds = random.integers(0, 3, 500)
    cases.append(case("three classes", several, noisy(golds, 3, 0.4, random), golds, random))
    cases.append(case("a class never predicted", several, np.minimum(golds, 1), golds))
    cases.append(case("a class never labelled", several, noisy(golds, 5, 0.5, random), golds))
    return cases


def number_cases(random):
    metrics = ["pearson", "spearmanr"]
    cases = []
    for n, noise in [(3, 0.1), (10, 3.0), (60, 1.0), (300, 1.0), (400, 0.4)]:
        golds = random.random(n) * 5
        predictions = (golds + noise * random.standard_normal(n)).astype(np.float32).astype(float)
        errors = random if n > 200 else None
        cases.append(case(f"numbers of {n}", metrics, predictions, golds, errors))
    tied = random.integers(0, 26, 200) / 5  # the labels of STS-B repeat
    cases += [
        case("ties on one side", metrics, tied + random.standard_normal(200), tied, random),
        case("ties on both sides", metrics, np.round(tied + random.standard_normal(200)), tied, random),
        case("falling", metrics, -tied, tied),
        case("far from zero", metrics, 1e6 + random.integers(0, 64, 80) / 64, random.random(80)),
        case("constant predictions", metrics, np.full(20, 2.6), random.random(20)),
        case("constant labels", metrics, random.random(20), np.full(20, 0.1)),
    ]
    return cases


def averages(random):
    """Averages over classes, with errors by a bootstrap for the larger cases; per class and as a confusion matrix."""
    several = ["f1_macro", "f1_micro", "f1_weighted", "precision_macro", "recall_macro", "balanced_accuracy"]
    cases = []
    for n, classes, share in [(9, 2, 0.5), (70, 2, 0.6), (50, 7, 0.8), (600, 3, 0.4), (900, 5, 0.7)]:
        # Rare classes among frequent ones.
        golds = (classes * random.random(n) ** 1.7).astype(int)
        metrics = several + (["precision", "recall"] if classes == 2 else [])
        found = case(f"{classes} classes of {n}", metrics, noisy(golds, classes, share, random), golds, random if n > 200 else None)
        predictions, labels = np.array(found["predictions"]), list(range(classes))
        found["confusion_matrix"] = confusion_matrix(golds, predictions, labels=labels).tolist()
        each = precision_recall_fscore_support(golds, predictions, labels=labels, zero_division=0)
        found["classes"] = [[float(number) for number in row] for row in zip(*each)]
        cases.append(found)
    golds = random.integers(0, 3, 40)
    cases += [
        case("a class that is only predicted", several, np.where(golds == 0, 3, golds), golds),
        case("a class that is only a label", several, np.minimum(golds, 1), golds),
        case("nothing right", several, (golds + 1) % 3, golds),
        case("class 1 never predicted", ["precision", "recall"], np.zeros(20, int), np.arange(20) % 2),
        case("class 1 never labelled", ["precision", "recall"], np.arange(20) % 2, np.zeros(20, int)),
    ]
    return cases


def errors_of_numbers(random):
    cases = []
    for n, noise in [(2, 0.5), (30, 1.0), (400, 0.4)]:
        golds = random.random(n) * 5
        predictions = golds + noise * random.standard_normal(n)
        cases.append(case(f"errors of {n}", ["mse", "mae", "r2"], predictions, golds, random if n > 200 else None))
    cases.append(case("errors at constant labels", ["mse", "mae", "r2"], random.random(20), np.full(20, 0.5)))
    cases.append(case("no errors at constant labels", ["r2"], np.full(5, 0.5), np.full(5, 0.5)))
    return cases


def sets_of_labels(random):
    metrics = ["accuracy", "f1_micro", "f1_macro", "f1_weighted", "precision_macro", "recall_macro"]
    cases = []
    for name, n, classes, share in [("several", 40, 3, 0.4), ("a label that is never there", 60, 4, 0.3), ("one label", 30, 1, 0.5)]:
        golds = random.random((n, classes)) < np.linspace(0.6, 0.1, classes)
        if "never" in name:
            golds[:, -1] = False
        predictions = np.where(random.random((n, classes)) < share, random.random((n, classes)) < 0.3, golds)
        if "never" in name:
            predictions[:, -1] = False
        golds, predictions = golds.astype(int), predictions.astype(int)
        scores = {metric: {"value": float(value(metric, predictions, golds))} for metric in metrics} if classes > 1 else {}
        if classes == 1:  # scikit-learn takes one column for two classes
            scores["f1_micro"] = {"value": float(f1_score(golds[:, 0], predictions[:, 0]))}
        as_lists = [[np.flatnonzero(row).tolist() for row in rows] for rows in (predictions, golds)]
        cases.append({"name": name, "classes": classes, "predictions": as_lists[0], "golds": as_lists[1], "scores": scores})
    return cases


def tags_of_words(random):
    """Tags drawn at random, so that every odd sequence of parts occurs; seqeval without a scheme."""
    cases = []
    for name, tags in {
        "IOB2": ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"],
        "IOBES": ["O", "B-PER", "I-PER", "E-PER", "S-PER", "B-LOC", "I-LOC", "E-LOC", "S-LOC"],
        "odd": ["O", "B", "I", "I-a-b", "B-a-b", "PER", "B-PER", "X-LOC", ".-X"],
    }.items():
        golds = [random.integers(0, len(tags), random.integers(1, 12)).tolist() for _ in range(60)]
        predictions = [[tag if random.random() < 0.6 else int(random.integers(0, len(tags))) for tag in row] for row in golds]
        named = [[[tags[tag] for tag in row] for row in rows] for rows in (golds, predictions)]
        m, zero = seqeval.metrics, {"zero_division": 0}
        scores = {
            "accuracy": m.accuracy_score(*named),
            "precision": m.precision_score(*named, **zero),
            "recall": m.recall_score(*named, **zero),
            "f1": m.f1_score(*named, **zero),
            "f1_macro": m.f1_score(*named, average="macro", **zero),
            "f1_weighted": m.f1_score(*named, average="weighted", **zero),
        }
        scores = {metric: {"value": float(value)} for metric, value in scores.items()}
        cases.append({"name": name, "tags": tags, "predictions": predictions, "golds": golds, "scores": scores})
    return cases


def schedules():
    """Factors that `LambdaLR` applies before each optimiser step."""
    makers = {
        "linear": transformers.get_linear_schedule_with_warmup,
        "cosine": transformers.get_cosine_schedule_with_warmup,
        "constant": lambda optimiser, warmup, total: transformers.get_constant_schedule_with_warmup(optimiser, warmup),
    }
    cases = []
    for name, make in makers.items():
        for warmup, total in [(0, 7), (1, 7), (6, 50), (10, 10), (0, 1), (37, 113)]:
            optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
            schedule = make(optimiser, warmup, total)
            factors = []
            for _ in range(total + 1):
                factors.append(float(schedule.get_last_lr()[0]))
                optimiser.step()
                schedule.step()
            cases.append({"schedule": name, "warmup": warmup, "total": total, "factors": factors})
    return cases


def main():
    random = np.random.default_rng(SEED)
    found = {
        "versions": {m.__name__: m.__version__ for m in (np, scipy, sklearn, torch, transformers)},
        "seed": SEED,
        "cases": class_cases(random) + number_cases(random),
        "averages": averages(np.random.default_rng(SEED + 1)),
        "numbers": errors_of_numbers(np.random.default_rng(SEED + 2)),
        "sets": sets_of_labels(np.random.default_rng(SEED + 3)),
        "tags": tags_of_words(np.random.default_rng(SEED + 4)),
        "schedules": schedules(),
    }
    # One case per line keeps the file readable in a diff.
    lines = [f'"{key}": {json.dumps(found[key])}' for key in ("versions", "seed")]
    for key in ("cases", "averages", "numbers", "sets", "tags", "schedules"):
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found[key])
        lines.append(f'"{key}": [\n{rows}\n]')
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
