#!/usr/bin/env python3
"""Writes what the pipelines of Transformers answer.

    python scripts/reference/predictions.py tests/it/fixtures/predictions.json --encoders tests/it/fixtures/encoders

- `classes`: for each encoder with a head and each row of `data/validation.jsonl` that is no longer than the model, all
  labels with their scores by the pipeline `text-classification`, of the pair and of the first text alone

Needs: torch 2.11, transformers 5.24.
"""

import argparse
import json
from pathlib import Path

import torch
import transformers
from transformers import pipeline

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


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoders", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines = (args.encoders / "data/validation.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    classes = {name: answers(args.encoders / name, rows) for name in ENCODERS}
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    args.out.write_text(json.dumps({**versions, "classes": classes}, ensure_ascii=False, indent=1) + "\n")


if __name__ == "__main__":
    main()
