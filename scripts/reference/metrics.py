"""Writes tests/it/fixtures/metrics.json: metrics, their errors and learning-rate schedules to compare with.

    python scripts/reference/metrics.py

Values come from scikit-learn, SciPy and Transformers (their versions are written into the file); standard errors
from a bootstrap (20,000 draws, for correlations 4,000), and for accuracy from NumPy's sample standard deviation. Everything is seeded.
"""

import json
import math
import warnings
from pathlib import Path

import numpy as np
import scipy
import sklearn
import torch
import transformers
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

SEED = 20240527
DRAWS = 20_000
OUT = Path(__file__).parents[2] / "tests/it/fixtures/metrics.json"

warnings.filterwarnings("ignore")


def value(metric, predictions, golds):
    if metric == "accuracy":
        return accuracy_score(golds, predictions)
    if metric == "f1":
        return f1_score(golds, predictions, zero_division=0)
    if metric == "matthews_correlation":
        return matthews_corrcoef(golds, predictions)
    return {"pearson": pearsonr, "spearmanr": spearmanr}[metric](predictions, golds)[0]


def bootstrap_error(metric, predictions, golds, random, draws=DRAWS):
    n = len(golds)
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
        "schedules": schedules(),
    }
    # One case per line keeps the file readable in a diff.
    lines = [f'"{key}": {json.dumps(found[key])}' for key in ("versions", "seed")]
    for key in ("cases", "schedules"):
        rows = ",\n".join(json.dumps(row, separators=(",", ":")) for row in found[key])
        lines.append(f'"{key}": [\n{rows}\n]')
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
