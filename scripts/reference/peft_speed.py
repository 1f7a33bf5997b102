#!/usr/bin/env python3
"""Speed and memory of each method compared with PEFT's implementation, in turns.

    python scripts/reference/peft_speed.py --model minilm-l6 --data sst2/train.jsonl --datasets datasets.toml --task glue/sst2

Both train the same rows in the same order with the same batch on the CPU, with --threads threads, in float32, dropout
as in the checkpoint; PEFT pads each batch to its longest row. Prints a Markdown table: examples per second, from the first
optimiser step to the last, and the peak resident memory of the process. Every figure is the best of --repeats turns
(highest speed, lowest memory), because other work on a machine only ever slows a run down.
Needs: torch 2.11, transformers 5.23, peft 0.21; a built loraxs.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

TARGETS = ["query", "value", "attention.output.dense", "output.dense"]
METHODS = {  # recipe keys
    "lora": {"rank": 8, "alpha": 16.0},
    "vera": {"rank": 256},
    "tiny-lora": {"rank": 2, "u": 64},
}


def of_peft(method):
    import peft

    shared = {"target_modules": TARGETS, "task_type": "SEQ_CLS"}
    if method == "lora":
        return peft.LoraConfig(r=8, lora_alpha=16, **shared)
    if method == "vera":
        return peft.VeraConfig(r=256, **shared)
    return peft.TinyLoraConfig(r=2, u=64, **shared)


def worker(options):
    """PEFT's side, in a process of its own."""
    import peft
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=torch.float32, num_labels=2)
    model = peft.get_peft_model(model, of_peft(options.worker)).train()
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3)
    count = options.steps * options.batch_size
    with open(options.data, encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count))]
    start = time.perf_counter()
    for first in range(0, count, options.batch_size):
        batch = rows[first : first + options.batch_size]
        texts = [row["sentence"] for row in batch]
        inputs = tokenizer(texts, padding=True, truncation=True, max_length=128, return_tensors="pt")
        loss = torch.nn.functional.cross_entropy(model(**inputs).logits, torch.tensor([row["label"] for row in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"speed": count / seconds, "memory": peak}))


def theirs(options, method):
    shared = ["--model", options.model, "--data", options.data, "--steps", options.steps]
    shared += ["--batch-size", options.batch_size, "--threads", options.threads]
    command = [sys.executable, __file__, "--worker", method, *map(str, shared)]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    output = subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment)
    return json.loads(output.stdout.splitlines()[-1])


def ours(options, method):
    keys = [f"{key} = {value}" for key, value in METHODS[method].items()]
    recipe = "\n".join(
        [f"[model]\nname = {json.dumps(str(options.model))}\n[adapter]\nmethod = \"{method}\"", *keys]
        + [f"targets = {json.dumps(TARGETS)}\n[data]\ndataset = \"{options.task}\"\nmax_length = 128"]
        + [f"limit = {options.steps * options.batch_size}\n[train]\nmax_steps = {options.steps}"]
        + [f"batch_size = {options.batch_size}\nshuffle = false\n[eval]\nevery = \"never\"\n"]
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "recipe.toml")
        path.write_text(recipe)
        command = [options.loraxs, "train", "--recipe", path, "--out", Path(folder, "run"), "--device", "cpu"]
        command += ["--threads", str(options.threads), "--datasets", options.datasets, "-q"]
        subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
        results = json.loads(Path(folder, "run", "results.json").read_text())
    return {"speed": results["examples_per_second"], "memory": results["peak_memory_mib"]}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--data", required=True, help="JSON lines with `sentence` and `label`")
    parser.add_argument("--datasets", help="the catalog in which --task is that file")
    parser.add_argument("--task", default="glue/sst2")
    parser.add_argument("--loraxs", default="target/release/loraxs")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--worker", choices=METHODS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    print("| method | loraxs, examples/s | PEFT, examples/s | loraxs, peak MiB | PEFT, peak MiB |\n|---|---|---|---|---|")
    for method in METHODS:
        turns = [(ours(options, method), theirs(options, method)) for _ in range(options.repeats)]
        speeds = [max(turn[side]["speed"] for turn in turns) for side in (0, 1)]
        memory = [min(turn[side]["memory"] for turn in turns) for side in (0, 1)]
        print(f"| {method} | {speeds[0]:.1f} | {speeds[1]:.1f} | {memory[0]:,.0f} | {memory[1]:,.0f} |", flush=True)


if __name__ == "__main__":
    main()
