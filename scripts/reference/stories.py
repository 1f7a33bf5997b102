#!/usr/bin/env python3
"""Writes what Transformers continues stories with, and what LoRA-XS training in PyTorch gives, on a real small Llama.

    python scripts/reference/stories.py tests/it/fixtures/stories.json --model stories260k --rows metamath.jsonl

`stories`: token ids of a prompt, the 128 tokens that follow greedily (float32, one prompt at a time, no cache), the
smallest lead of a chosen token, and the SHA-256 of the continuation's text. `training`: the first rows of a file with
the columns `query` and `response`, by the template below; rows whose prompt leaves no room are skipped. Losses of
twenty steps and the mean loss over the held-out rows before and after. The training itself is that of
`decoder_training.py`. The fixture holds no text of the rows.
Needs: torch 2.11, transformers 5.23, scikit-learn 1.9.
"""

import argparse
import hashlib
import json
from pathlib import Path

import sklearn
import torch
import transformers
from decoder_training import SETTINGS, adapt, encode, mean_loss, train
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

PROMPTS = [
    "Once upon a time",
    "Lily and Tom went to the park. They saw a big",
    "One day, a little dog named Max found a red ball in the garden. Max was so happy that",
    "The",
]
NEW_TOKENS = 128
TARGETS = ["q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
TEMPLATES = {"prompt": "Question: {query}\nAnswer: ", "response": "{response}"}
COUNTS = {"train_rows": 120, "held_out_rows": 24}
TRAINING = SETTINGS | {"max_length": 256, "learning_rate": 4e-3, "rank": 8, "targets": TARGETS} | TEMPLATES | COUNTS


@torch.no_grad()
def story(model, tokenizer, text, count=NEW_TOKENS):
    prompt = tokenizer(text)["input_ids"]
    ids, lead = list(prompt), float("inf")
    for _ in range(count):
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    cached = model.generate(
        torch.tensor([prompt]), max_new_tokens=count, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert cached[0].tolist() == ids, "a cache changes what is generated"
    assert lead > 1e-3, f"rounding could decide how {text!r} goes on"
    told = tokenizer.decode(ids[len(prompt) :])
    print(f"{text} ...{told}\n  lead {lead:.1e}", flush=True)
    digest = hashlib.sha256(told.encode()).hexdigest()
    return {"prompt": text, "ids": prompt, "continuation": ids[len(prompt) :], "lead": lead, "sha256": digest}


def examples(tokenizer, rows, settings):
    """Encoded rows, without those whose prompt leaves no room."""
    prompt, response, room = (settings[key] for key in ("prompt", "response", "max_length"))
    kept = [row for row in rows if len(tokenizer(prompt.format(**row))["input_ids"]) < room]
    return [encode(tokenizer, row, prompt, response, room) for row in kept]


def training(folder, tokenizer, rows, settings):
    """Losses of LoRA-XS on the first rows, and of the rows after them before and after."""
    first = settings["train_rows"]
    parts = rows[:first], rows[first : first + settings["held_out_rows"]]
    train_rows, held_out = (examples(tokenizer, part, settings) for part in parts)
    model, layers = adapt(folder, settings["targets"], torch.float32, settings["rank"])
    case = {"train_rows": len(train_rows), "held_out_rows": len(held_out), "held_out_before": mean_loss(model, held_out)}
    case |= train(model, layers, train_rows, settings)
    case["held_out_after"] = mean_loss(model, held_out)
    print(f"{len(train_rows)} + {len(held_out)} rows, loss {case['losses'][0]:.4f} -> ", end="")
    print(f"{case['losses'][-1]:.4f}, held out {case['held_out_before']:.4f} -> {case['held_out_after']:.4f}")
    return case


def read(path, settings):
    with open(path, encoding="utf-8") as lines:
        count = settings["train_rows"] + settings["held_out_rows"]
        return [json.loads(line) for line, _ in zip(lines, range(count))]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines with `query` and `response`")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(options.model / "tokenizer.json"), **names)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager").eval()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "sklearn": sklearn.__version__}
    fixture = {"generator": "scripts/reference/stories.py", **versions}
    fixture["stories"] = [story(model, tokenizer, text) for text in PROMPTS]
    fixture["settings"] = TRAINING
    fixture["training"] = training(options.model, tokenizer, read(options.rows, TRAINING), TRAINING)
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in fixture.items())
    options.out.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
