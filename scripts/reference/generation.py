#!/usr/bin/env python3
"""Writes what Transformers generates by beam search, and what its filters leave of logits.

    python scripts/reference/generation.py tests/it/fixtures/generation.json --decoders tests/it/fixtures/decoders \
        --stories DIR

- `beams`: for each decoder of DECODERS and each prompt of its `expected.json`, the new tokens of a search with 4 beams,
  alone and unpadded, for each length penalty; the token that ended a text is cut off
- `filters`: random logits, and the probabilities that temperature, top-k and top-p leave of them
- `stories`: texts, and the 64 tokens by which the checkpoint in DIR (a small Llama of stories) continues them greedily

Needs: torch 2.11, transformers 5.23.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers.generation.logits_process import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

SEED = 20240612
BEAMS = 4
PENALTIES = (1.0, 0.3)
FILTERS = ((0.1, 40, 0.75), (0.7, 0, 0.9), (1.3, 5, 1.0), (1.0, 0, 0.2), (2.0, 12, 0.6))
STORIES = ("Once upon a time", "Lily and Tom went to the park. They", "The big dog", "One day, a little girl named Mia",
           "Tom said, \"I am")


def load(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def searched(folder):
    """New tokens of each prompt, for each penalty."""
    model, ends = load(folder), json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]
    found = []
    for row in json.loads((folder / "expected.json").read_text())["prompts"]:
        for penalty in PENALTIES:
            config = GenerationConfig(num_beams=BEAMS, do_sample=False, max_new_tokens=24, length_penalty=penalty,
                                      eos_token_id=ends, pad_token_id=3, bos_token_id=1)
            prompt = torch.tensor([row["ids"]])
            # A padding token inside a prompt would be masked otherwise.
            ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), generation_config=config)[0].tolist()
            new = ids[len(row["ids"]):]
            first = next((i for i, token in enumerate(new) if token in ends), len(new))
            found.append({"prompt": row["ids"], "length_penalty": penalty, "tokens": new[:first]})
    return found


def filtered(generator):
    logits = torch.randn(31, generator=generator) * 3
    rows = []
    for temperature, top_k, top_p in FILTERS:
        scores = TemperatureLogitsWarper(temperature)(None, logits[None])
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
        probabilities = scores.softmax(-1)[0].tolist()
        rows.append({"temperature": temperature, "top_k": top_k, "top_p": top_p, "probabilities": probabilities})
    return {"logits": logits.tolist(), "rows": rows}


def stories(folder):
    model = load(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in STORIES:
        ids = tokenizer(text)["input_ids"]
        out = model.generate(torch.tensor([ids]), do_sample=False, max_new_tokens=64, min_new_tokens=64)
        found.append({"text": text, "ids": ids, "continuation": out[0, len(ids):].tolist()})
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--decoders", type=Path, required=True)
    parser.add_argument("--stories", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    folders = sorted(path.parent for path in args.decoders.glob("*/expected.json"))
    fixture = {
        "generator": "scripts/reference/generation.py", "seed": SEED,
        "torch": torch.__version__, "transformers": transformers.__version__,
        "beams": {folder.name: searched(folder) for folder in folders},
        "filters": filtered(torch.Generator().manual_seed(SEED)),
        "stories": stories(args.stories),
    }
    args.out.write_text(json.dumps(fixture, separators=(",", ":")).replace('},{"prompt', '},\n{"prompt') + "\n")


if __name__ == "__main__":
    main()
