#!/usr/bin/env python3
"""The table of scripts/compare-methods.sh, as Markdown: scripts/methods_table.py FOLDER

FOLDER holds TASK/METHOD/seed-N/ with finished runs. Scores are the best epoch on the validation split, in percent: mean
and standard deviation over the seeds found, with their number in brackets. File bytes are those of
adapter_model.safetensors, including the head. Speed and memory are means over the seeds.
"""

import json
import statistics
import sys
from pathlib import Path

COLUMNS = ("method", "task", "trained, without head", "file bytes", "score", "examples/s", "peak MiB")


def read(run):
    results = json.loads((run / "results.json").read_text())
    parameters, metric = results["parameters"], results["metric"]
    return {
        "trained": parameters["adapter"] + parameters["base"],
        "bytes": (run / "adapter" / "adapter_model.safetensors").stat().st_size,
        "metric": metric,
        "score": 100 * results["best"]["metrics"][metric],
        "speed": results["examples_per_second"],
        "memory": results["peak_memory_mib"],
    }


def row(method, task, runs):
    def mean(key):
        return statistics.mean(run[key] for run in runs)

    scores = [run["score"] for run in runs]
    spread = f" ± {statistics.stdev(scores):.2f}" if len(scores) > 1 else ""
    score = f"{runs[0]['metric']} {mean('score'):.2f}{spread} ({len(runs)})"
    numbers = [f"{runs[0][key]:,}" for key in ("trained", "bytes")]
    return (method, task, *numbers, score, f"{mean('speed'):.1f}", f"{mean('memory'):,.0f}")


def main(folder):
    found = {}
    for path in sorted(Path(folder).glob("*/*/seed-*/results.json")):
        run = path.parent
        found.setdefault((run.parent.parent.name, run.parent.name), []).append(read(run))
    if not found:
        sys.exit(f"no finished run in {folder}")
    print("| " + " | ".join(COLUMNS) + " |\n|" + "---|" * len(COLUMNS))
    for (task, method), runs in sorted(found.items(), key=lambda item: (item[0][0], -item[1][0]["trained"])):
        print("| " + " | ".join(row(method, task, runs)) + " |")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: methods_table.py FOLDER")
    main(sys.argv[1])
