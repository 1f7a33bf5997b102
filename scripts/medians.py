#!/usr/bin/env python3
"""Medians over seeds of all runs under some folders: scripts/medians.py FOLDER...

Prints one line per recipe, whatever its seed, named by task, method, rank and pair of learning rates, and by further
settings if those are not enough: the median of the best and of the last evaluation, and the interquartile range of the
best. A `*` marks the best median of each task, method and rank. Scores are in percent. Runs without a results.json are
left out, and each seed of a recipe counts once.
"""
import json
import pathlib
import statistics
import sys

COLUMNS = ("task", "metric", "method", "rank", "lr", "head lr", "seeds", "median", "IQR", "last", "", "")


def read(path):
    """What a run is called, all its settings but the seed, the seed, and its scores, best and last."""
    results = json.loads(path.read_text())
    recipe, metric = results["recipe"], results["metric"]
    adapter, train = recipe["adapter"], recipe["train"]
    method = adapter["method"] + (" random" if adapter["init"] == "random" else "")
    if train["init_from"]:
        method += " from adapter"
    key = (results["task"], metric, method, adapter["rank"], train["learning_rate"], train["head_learning_rate"])
    settings = {f"{table}.{name}": str(value) for table, keys in recipe.items() for name, value in keys.items()}
    seed = settings.pop("train.seed")
    return key, settings, seed, tuple(100 * results[which]["metrics"][metric] for which in ("best", "last"))


def apart(groups):
    """For each of some settings what sets it apart from the others, as `key=value`."""
    names = sorted({name for settings in groups for name in settings})
    varying = [name for name in names if len({settings.get(name) for settings in groups}) > 1]
    return [" ".join(f"{name}={settings.get(name)}" for name in varying) for settings in groups]


def spread(scores):
    """The distance between the quartiles, interpolated as numpy does."""
    if len(scores) < 2:
        return 0.0
    low, _, high = statistics.quantiles(scores, n=4, method="inclusive")
    return high - low


def main(folders):
    runs = {}
    for folder in folders:
        for path in sorted(pathlib.Path(folder).rglob("results.json")):
            if not path.with_name("recipe.toml").is_file():
                continue  # the results of an `eval`, not of a run
            try:
                key, settings, seed, scores = read(path)
            except (OSError, ValueError, KeyError, TypeError) as error:
                print(f"skipped {path}: {type(error).__name__}: {error}", file=sys.stderr)
                continue
            seeds = runs.setdefault(key, {}).setdefault(tuple(sorted(settings.items())), {})
            if seed in seeds:
                print(f"skipped {path}: another folder holds seed {seed} of the same recipe", file=sys.stderr)
            seeds.setdefault(seed, scores)
    best = {}
    for key, groups in runs.items():
        medians = [statistics.median(score[0] for score in seeds.values()) for seeds in groups.values()]
        best[key[:4]] = max(best.get(key[:4], float("-inf")), *medians)
    rows = [COLUMNS]
    for key, groups in sorted(runs.items()):
        for seeds, difference in zip(groups.values(), apart([dict(settings) for settings in groups])):
            first, last = zip(*seeds.values())
            median = statistics.median(first)
            mark = "*" if median == best[key[:4]] else ""
            figures = (f"{median:.2f}", f"{spread(first):.2f}", f"{statistics.median(last):.2f}", mark, difference)
            rows.append((*map(str, key), str(len(seeds)), *figures))
    widths = [max(map(len, column)) for column in zip(*rows)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
    if not runs:
        sys.exit("no finished run found")


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: medians.py FOLDER...")
    main(sys.argv[1:])
