#!/usr/bin/env python3
"""Answers the questions of GSM8K with Transformers' batched `generate` and with `loraxs eval`, and prints the ratio.

    python scripts/reference/generation_speed.py --model stories260k --questions gsm8k/test.jsonl \\
        --loraxs target/release/loraxs --threads 2

Both decode greedily on the CPU, in float32 or in --dtype, from the published prompt, with the same limit on new tokens. Transformers
gets the questions in the order of their lengths, padded on the left, in the batch size that is fastest on the first
`--probe` questions, with its default attention; reading the checkpoint is not counted. `loraxs` is timed as a whole
command. Without `--loraxs` only Transformers is measured.
Needs: torch 2.11, transformers 5.23.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = (  # as MetaMath evaluates GSM8K
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{question}\n\n### Response: Let's think step by step."
)


def prompts(path, limit):
    with open(path, encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [PROMPT.format(question=row["question"]) for row in rows[: limit or None]]


@torch.inference_mode()
def generate(model, encoded, size, new_tokens):
    """Seconds, and new tokens of every question; the questions are sorted by length."""
    start, written = time.perf_counter(), 0
    for at in range(0, len(encoded), size):
        batch = encoded[at : at + size]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        limits = {"max_new_tokens": new_tokens, "do_sample": False, "pad_token_id": 0}
        written += model.generate(ids, attention_mask=mask, **limits)[:, longest:].numel()
    return time.perf_counter() - start, written


def measure_transformers(options, questions):
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=getattr(torch, options.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    encoded = sorted((tokenizer(text)["input_ids"] for text in questions), key=len)
    probe = encoded[:: max(1, len(encoded) // options.probe)][: options.probe]
    generate(model, probe[:2], 2, 4)  # what is loaded late is loaded now
    rates = {}
    for size in options.batch_sizes:
        if size <= len(probe):
            seconds, _ = generate(model, probe, size, options.new_tokens)
            rates[size] = len(probe) / seconds
            print(f"transformers, batches of {size}: {rates[size]:.2f} questions/s", flush=True)
    best = max(rates, key=rates.get)
    seconds, written = generate(model, encoded, best, options.new_tokens)
    print(f"transformers, batches of {best}, {len(encoded)} questions of {len(encoded[0])} to {len(encoded[-1])} ", end="")
    print(f"tokens: {seconds:.1f} s, {len(encoded) / seconds:.2f} questions/s, {written / seconds:.0f} new tokens/s")
    return len(encoded) / seconds


def measure_loraxs(options, count):
    """The command over the same questions; JSON's strings are TOML's, too."""
    entry = {
        "task": "generation",
        "dir": str(options.questions.resolve().parent),
        "prompt": PROMPT,
        "answer": "{answer}",
        "scorers": ["gsm8k/metamath"],
        "max_new_tokens": options.new_tokens,
    }
    lines = ['["speed/gsm8k"]', f'files = {{ test = "{options.questions.name}" }}']
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        lines += [f"{key} = {json.dumps(value)}" for key, value in entry.items()]
        (place / "datasets.toml").write_text("\n".join(lines) + "\n")
        command = [str(options.loraxs.resolve()), "eval", "--model", str(options.model.resolve())]
        command += ["--task", "speed/gsm8k", "--datasets", "datasets.toml", "--limit", str(count), "--out", "out"]
        command += ["--device", "cpu", "--threads", str(options.threads)]
        command += ["--precision", {"float32": "fp32", "bfloat16": "bf16"}[options.dtype]]
        start = time.perf_counter()
        environment = os.environ | {"LORAXS_CACHE": str(place / "cache")}
        result = subprocess.run(command, cwd=place, env=environment, text=True, capture_output=True)
        seconds = time.perf_counter() - start
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)}\n{result.stderr}")
    print(f"loraxs, {count} questions: {seconds:.1f} s, {count / seconds:.2f} questions/s")
    return count / seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of a checkpoint")
    parser.add_argument("--questions", type=Path, required=True, help="JSON lines with `question` and `answer`")
    parser.add_argument("--loraxs", type=Path, help="the built command")
    parser.add_argument("--limit", type=int, default=0, help="questions; 0 takes all")
    parser.add_argument("--new-tokens", type=int, default=128, help="limit on a continuation")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--probe", type=int, default=256, help="questions that every batch size is tried on")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 16, 32, 64, 128, 256])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    questions = prompts(options.questions, options.limit)
    theirs = measure_transformers(options, questions)
    if options.loraxs:
        print(f"loraxs / transformers: {measure_loraxs(options, len(questions)) / theirs:.2f}")


if __name__ == "__main__":
    main()
