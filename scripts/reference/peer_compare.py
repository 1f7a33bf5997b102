#!/usr/bin/env python3
"""Trains the same GLUE tasks with `loraxs` and with a peer in Python, in turns, and prints a table.

    python scripts/reference/peer_compare.py --peer peer.py --python venv/bin/python --loraxs target/release/loraxs \\
        --data glue --model minilm-l6 --tasks sst2,stsb --limit 8000 --epochs 2 --lr 1e-2 --head-lr 1e-2 --seeds 3

The peer is called as `PYTHON PEER glue --model M --data DIR --task T --rank R --alpha A --lr X --cls-lr X --epochs N
--batch N --seq N --pad longest --warmup X --seed N [--max-train N] [--max-eval N]`, and its last line on standard
output is a JSON object with `best_<metric>` and `train_examples_per_s`. DIR holds <task>/{train,validation}.jsonl.
Both get the same machine, one after the other, seed by seed; peak memory is the resident set that the kernel reports
for each process, so the two are measured alike. Needs Python's standard library only.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TASKS = {  # text columns, labels (none: a regression), metrics as the GLUE script names them; the first picks the best
    "cola": (["sentence"], ["unacceptable", "acceptable"], ["matthews_correlation"]),
    "sst2": (["sentence"], ["negative", "positive"], ["accuracy"]),
    "mrpc": (["sentence1", "sentence2"], ["not_equivalent", "equivalent"], ["accuracy", "f1"]),
    "rte": (["sentence1", "sentence2"], ["entailment", "not_entailment"], ["accuracy"]),
    "qnli": (["question", "sentence"], ["entailment", "not_entailment"], ["accuracy"]),
    "stsb": (["sentence1", "sentence2"], [], ["pearson", "spearmanr"]),
}


def catalog(data):
    """The tasks as entries over the local files; JSON's strings and lists are TOML's, too."""
    entries = []
    for task, (text, labels, metrics) in TASKS.items():
        entry = {
            "task": "classification" if labels else "regression",
            "dir": str(data.resolve() / task),
            "text": text,
            "label": "label",
            "metrics": metrics,
        }
        if labels:
            entry["labels"] = labels
        lines = [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        lines.append('files = { train = "train.jsonl", validation = "validation.jsonl" }')
        entries.append(f'["peer/{task}"]\n' + "\n".join(lines) + "\n")
    return "\n".join(entries)


def recipe(options, task, seed):
    tables = {
        "model": {"name": options.model},
        "adapter": {"method": "lora-xs", "rank": options.rank, "alpha": options.alpha, "targets": options.targets},
        "data": {"dataset": f"peer/{task}", "max_length": options.max_length, "limit": options.limit},
        "train": {
            "epochs": options.epochs,
            "batch_size": options.batch,
            "micro_batch_size": options.batch,
            "learning_rate": options.lr,
            "head_learning_rate": options.head_lr,
            "warmup_ratio": options.warmup,
            "seed": seed,
        },
        "eval": {"every": "epoch", "metric": TASKS[task][2][0]},
    }
    if options.max_eval:
        tables["data"]["eval_limit"] = options.max_eval
    return "\n".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items())
        for name, table in tables.items()
    )


def measured(command, log):
    """Runs a command with its output in `log`; returns its largest resident set in MiB."""
    with open(log, "w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
        _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != 0:
        sys.exit(f"error: {shlex.join(command)}\nended with {process.returncode}:\n{log.read_text()[-3000:]}")
    return usage.ru_maxrss / 1024


def run_peer(options, task, seed, folder):
    command = [options.python, options.peer, "glue", "--model", options.model, "--data", str(options.data)]
    settings = {
        "task": task,
        "targets": ",".join(options.targets),
        "rank": options.rank,
        "alpha": options.alpha,
        "lr": options.lr,
        "cls-lr": options.head_lr,
        "epochs": options.epochs,
        "batch": options.batch,
        "seq": options.max_length,
        "pad": options.pad,
        "warmup": options.warmup,
        "seed": seed,
    }
    if options.limit:
        settings["max-train"] = options.limit
    if options.max_eval:
        settings["max-eval"] = options.max_eval
    for key, value in settings.items():
        command += [f"--{key}", str(value)]
    log = folder / f"peer-{task}-{seed}.log"
    memory = measured(command + options.peer_arguments, log)
    summary = next(json.loads(line) for line in reversed(log.read_text().splitlines()) if line.startswith("{"))
    return summary[f"best_{TASKS[task][2][0]}"], summary["train_examples_per_s"], memory


def run_loraxs(options, task, seed, folder):
    path, out = folder / f"{task}-{seed}.toml", folder / f"run-{task}-{seed}"
    path.write_text(recipe(options, task, seed))
    command = [options.loraxs, "train", "--recipe", str(path), "--out", str(out)]
    command += ["--datasets", str(folder / "datasets.toml"), *options.loraxs_arguments]
    memory = measured(command, folder / f"loraxs-{task}-{seed}.log")
    results = json.loads((out / "results.json").read_text())
    return results["best"]["metrics"][TASKS[task][2][0]], results["examples_per_second"], memory


def spread(values):
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def table_row(task, ours, peers):
    metric = TASKS[task][2][0]
    columns = [f"{task} ({metric})"]
    columns += [spread([run[0] for run in runs]) if runs else "" for runs in (ours, peers)]
    speeds = [statistics.mean(run[1] for run in runs) if runs else None for runs in (ours, peers)]
    columns += ["" if speed is None else f"{speed:.1f}" for speed in speeds]
    columns.append("" if None in speeds else f"{speeds[0] / speeds[1]:.2f}")
    columns += [f"{max(run[2] for run in runs):.0f}" if runs else "" for runs in (ours, peers)]
    return "| " + " | ".join(columns) + " |"


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="the peer's script")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the peer")
    parser.add_argument("--loraxs", default="target/release/loraxs", help="the binary")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True, help="folder of the checkpoint")
    parser.add_argument("--tasks", default="sst2,stsb,mrpc")
    parser.add_argument("--targets", default="query,value,attention.output.dense,output.dense")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--alpha", type=float, default=16.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--head-lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=float, default=0.06)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--limit", type=int, default=0, help="first N training rows, 0 = all")
    parser.add_argument("--max-eval", type=int, default=0, help="first N validation rows, 0 = all")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0 to N-1")
    parser.add_argument("--pad", choices=["longest", "max"], default="longest", help="how the peer pads")
    parser.add_argument("--skip-peer", action="store_true")
    parser.add_argument("--loraxs-arguments", type=shlex.split, default=[], help="more arguments, as one string")
    parser.add_argument("--peer-arguments", type=shlex.split, default=[], help="more arguments, as one string")
    parser.add_argument("--keep", type=Path, help="keep runs and logs in this folder")
    options = parser.parse_args()
    options.tasks, options.targets = options.tasks.split(","), options.targets.split(",")
    unknown = [task for task in options.tasks if task not in TASKS]
    if unknown:
        parser.error(f"unknown task {unknown[0]}; known are {', '.join(TASKS)}")
    if not options.peer and not options.skip_peer:
        parser.error("give --peer SCRIPT or --skip-peer")
    return options


def compare(options, folder):
    (folder / "datasets.toml").write_text(catalog(options.data))
    print("| task (metric) | loraxs | peer | loraxs, examples/s | peer, examples/s | ratio | loraxs, MiB | peer, MiB |")
    print("|---|---|---|---|---|---|---|---|")
    for task in options.tasks:
        ours, peers = [], []
        for seed in range(options.seeds):
            # The one that goes first changes from seed to seed: a warm file cache and a warm CPU favour the second.
            turns = [(run_loraxs, ours)] if options.skip_peer else [(run_loraxs, ours), (run_peer, peers)]
            for run, results in turns if seed % 2 == 0 else reversed(turns):
                score, speed, memory = run(options, task, seed, folder)
                results.append((score, speed, memory))
                name = run.__name__.removeprefix("run_")
                line = f"{task} seed {seed} {name}: {score:.4f}, {speed:.1f} examples/s, {memory:.0f} MiB"
                print(line, file=sys.stderr)
        print(table_row(task, ours, peers), flush=True)


def main():
    options = parse_arguments()
    if options.keep:
        options.keep.mkdir(parents=True, exist_ok=True)
        compare(options, options.keep)
    else:
        with tempfile.TemporaryDirectory(prefix="peer-compare-") as folder:
            compare(options, Path(folder))


if __name__ == "__main__":
    main()
