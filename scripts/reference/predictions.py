#!/usr/bin/env python3
"""Writes what the pipelines of Transformers answer.

    python scripts/reference/predictions.py tests/it/fixtures/predictions.json --encoders tests/it/fixtures/encoders \
        --decoders tests/it/fixtures/decoders

- `classes`: for each encoder with a head and each row of `data/validation.jsonl` that is no longer than the model, all
  labels with their scores by the pipeline `text-classification`, of the pair and of the first text alone
- `completions`: for two decoders, texts and what `generate` makes of them greedily, up to 12 tokens, each alone: as they are,
  and as a user's message in `template`; the token that ended a text is cut off

Needs: torch 2.11, transformers 5.24.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

TEXTS = ("What is 2 + 3?", "a", "Two words", "The cat sleeps. The dog does not, and never did.", "née 日本 ?", "1 2 3 4 5 6 7 8 9")
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
DECODERS = ("llama-biased", "qwen3-normed")
ENCODERS = ("bert-gelu", "roberta-gelu", "roberta-regression")


def answers(folder, rows):
    classify = pipeline("text-classification", model=str(folder), dtype=torch.float32, device="cpu")
    most = classify.model.config.max_position_embeddings - (2 if folder.name.startswith("roberta") else 0)
    options = {"function_to_apply": "none"} if classify.model.config.num_labels == 1 else {}
    found = []
    for row in rows:
        for texts in ({"text": row["sentence1"], "text_pair": row["sentence2"]}, {"text": row["sentence1"]}):
            if len(classify.tokenizer(**texts)["input_ids"]) <= most:
                found.append({**texts, "answer": classify([texts], top_k=None, **options)[0]})
    return found


def completions(folder):
    ends = json.loads((folder / "generation_config.json").read_text())["eos_token_id"]
    ends = ends if isinstance(ends, list) else [ends]

    def without_end(ids):
        return ids[:-1] if ids[-1] in ends else ids

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = []
    for text in TEXTS:
        inputs = tokenizer(text, return_tensors="pt")
        ids = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1]:]
        message = [{"role": "user", "content": text}]
        inputs = tokenizer.apply_chat_template(
            message, chat_template=TEMPLATE, add_generation_prompt=True, return_tensors="pt", return_dict=True
        )
        answer = model.generate(**inputs, do_sample=False, max_new_tokens=12)[0, inputs["input_ids"].shape[1]:]
        completion, answer = (tokenizer.decode(without_end(new.tolist()), skip_special_tokens=True) for new in (ids, answer))
        found.append({"text": text, "completion": completion, "answer": answer})
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoders", type=Path, required=True)
    parser.add_argument("--decoders", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = (args.encoders / "data/validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    classes = {name: answers(args.encoders / name, rows) for name in ENCODERS}
    texts = {name: completions(args.decoders / name) for name in DECODERS}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    args.out.write_text(json.dumps({**versions, "template": TEMPLATE, "classes": classes, "completions": texts}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
