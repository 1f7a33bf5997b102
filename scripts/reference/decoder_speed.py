#!/usr/bin/env python3
"""Training speed of LoRA-XS on a language model compared with a peer on Transformers and PEFT, in turns.

    python scripts/reference/decoder_speed.py --peer peer.py --model smollm2-135m-instruct --text train.jsonl \\
        --loraxs target/release/loraxs --threads 2 --precision bf16

Both train all tokens of sequences of one length, so that nobody pads; the peer with its command line `lm --model --dtype
--batch --seq --steps --rank --targets` on random tokens, loraxs on the texts of --text (JSON lines with `query` and
`response`), joined until they are long enough. Prints tokens per second for each turn (the median of the steps after the
third) and the ratio of the medians of the turns.
Needs: what the peer needs; a built loraxs.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SKIPPED = 3


def write_rows(options, path):
    """Rows of one text each, longer than a sequence."""
    with open(options.text, encoding="utf-8") as lines, open(path, "w", encoding="utf-8") as out:
        text, rows = "", 0
        for line in lines:
            row = json.loads(line)
            text += f"{row['query']} {row['response']} "
            if len(text) > 16 * options.length:
                out.write(json.dumps({"text": text}) + "\n")
                text, rows = "", rows + 1
            if rows == options.batch * (options.steps + SKIPPED):
                return
    sys.exit(f"{options.text} is too short")


def ours(options, folder):
    write_rows(options, folder / "rows.jsonl")
    entry = 'task = "instruction"\nfiles = { train = "rows.jsonl" }\nprompt = "Text:"\nresponse = " {text}"\n'
    (folder / "datasets.toml").write_text(f'["speed/rows"]\n{entry}')
    sections = {
        "model": {"name": str(options.model.resolve())},
        "adapter": {"method": "lora-xs", "rank": options.rank, "alpha": options.rank, "targets": TARGETS},
        "data": {"dataset": "speed/rows", "max_length": options.length},
        "train": {
            "max_steps": options.steps + SKIPPED,
            "batch_size": options.batch,
            "micro_batch_size": options.batch,
            "precision": options.precision,
            "shuffle": False,
            "log_every": 1,
        },
        "eval": {"every": "never"},
    }
    recipe = "".join(
        f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in keys.items())
        for name, keys in sections.items()
    )
    (folder / "recipe.toml").write_text(recipe)
    command = [options.loraxs.resolve(), "train", "--recipe", "recipe.toml", "--datasets", "datasets.toml", "--out", "run"]
    command += ["--device", "cpu", "--threads", str(options.threads), "-q"]
    environment = os.environ | {"LORAXS_CACHE": str(folder.parent / "cache")}
    subprocess.run(list(map(str, command)), cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    points = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = [point["tokens_per_second"] for point in points if point["kind"] == "train"]
    return statistics.median(rates[SKIPPED:]), json.loads((folder / "run/results.json").read_text())["peak_memory_mib"]


def theirs(options):
    dtype = {"fp32": "float32", "bf16": "bfloat16"}[options.precision]
    command = [sys.executable, options.peer, "lm", "--model", options.model, "--dtype", dtype, "--batch", options.batch]
    command += ["--seq", options.length, "--steps", options.steps, "--rank", options.rank, "--alpha", options.rank]
    command += ["--targets", ",".join(TARGETS), "--device", "cpu"]
    environment = os.environ | {"OMP_NUM_THREADS": str(options.threads)}
    output = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, env=environment)
    summary = json.loads(output.stdout.splitlines()[-1])
    return summary["tokens_per_s"], summary["peak_gib"] * 1024


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--loraxs", type=Path, default=Path("target/release/loraxs"))
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    turns = []
    with tempfile.TemporaryDirectory() as place:
        for turn in range(options.repeats):
            folder = Path(place, str(turn))
            folder.mkdir()
            (mine, memory), (other, theirs_memory) = ours(options, folder), theirs(options)
            turns.append((mine, other))
            print(f"loraxs {mine:.0f} tokens/s, {memory:.0f} MiB; peer {other:.0f} tokens/s, {theirs_memory:.0f} MiB", flush=True)
    mine, other = (statistics.median(side) for side in zip(*turns))
    print(f"{options.precision}: loraxs / peer: {mine / other:.2f}")


if __name__ == "__main__":
    main()
