#!/usr/bin/env python3
"""Checks that what `loraxs merge` wrote gives, in Transformers and PEFT, the logits that `loraxs eval` wrote.

    python scripts/reference/export_check.py --predictions OUT/predictions/glue/mrpc.jsonl \\
        --data validation.jsonl --text sentence1,sentence2 --max-length 128 \\
        --merged MERGED --peft PEFT --base BASE

--merged names a folder of `loraxs merge`, loaded as it is; --peft one of `loraxs merge --format peft`, loaded over
--base. Each row of the data file runs by itself, without padding, in float32. A difference is the largest one between
two logits over the largest logit; the exit status is 1 where one exceeds --tolerance.
Needs: torch, transformers, and peft for --peft. Seen with torch 2.11, transformers 5.23, peft 0.21.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def read_json_lines(path):
    reader = gzip.open if path.suffix == ".gz" else open
    with reader(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines if line.strip()]


def load_merged(folder):
    model, report = AutoModelForSequenceClassification.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    wrong = {kind: sorted(keys) for kind, keys in report.items() if keys and kind.endswith("_keys")}
    if wrong:
        sys.exit(f"error: {folder} is not the checkpoint of a {type(model).__name__}: {wrong}")
    return model


def load_peft(base, folder, labels):
    from peft import PeftModel

    # A head of another shape in the base is no matter: the adapter brings its own.
    model = AutoModelForSequenceClassification.from_pretrained(
        base, dtype=torch.float32, num_labels=labels, ignore_mismatched_sizes=True
    )
    return PeftModel.from_pretrained(model, folder)


@torch.no_grad()
def logits(model, tokenizer, rows, columns, max_length):
    model.eval()
    out = []
    for row in rows:
        texts = [row[column] for column in columns]
        # As lists of one: given alone, an empty second text would count as none.
        lists = [[text] for text in texts]
        inputs = tokenizer(*lists, truncation=True, max_length=max_length, return_tensors="pt")
        out.append(model(**inputs).logits[0])
    return torch.stack(out)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--predictions", type=Path, required=True, help='JSON lines with "index" and "logits"')
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of the split that was scored")
    parser.add_argument("--text", default="sentence1,sentence2", help="text columns, in order")
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--limit", type=int, help="check the first N predictions only")
    parser.add_argument("--merged", type=Path)
    parser.add_argument("--peft", type=Path)
    parser.add_argument("--base", type=Path, help="the checkpoint under --peft")
    parser.add_argument("--tolerance", type=float, default=1e-5)
    options = parser.parse_args()
    if not options.merged and not options.peft:
        parser.error("nothing to check: give --merged, --peft or both")
    if options.peft and not options.base:
        parser.error("--peft needs --base")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()

    predictions = read_json_lines(options.predictions)[: options.limit]
    data = read_json_lines(options.data)
    rows = [data[prediction["index"]] for prediction in predictions]
    want = torch.tensor([prediction["logits"] for prediction in predictions], dtype=torch.float32)
    if want.dim() == 1:  # a regression written as plain numbers
        want = want.unsqueeze(1)
    tokenizer = AutoTokenizer.from_pretrained(options.merged or options.base)
    loaded = {}
    if options.merged:
        loaded["merged"] = load_merged(options.merged)
    if options.peft:
        loaded["peft"] = load_peft(options.base, options.peft, want.shape[1])
    failed = False
    for name, model in loaded.items():
        got = logits(model, tokenizer, rows, options.text.split(","), options.max_length)
        difference = float((got - want).abs().max() / want.abs().max())
        bad = not difference <= options.tolerance  # also where it is not a number
        failed |= bad
        print(f"{name}: {len(rows)} rows, largest relative difference {difference:.2e}{' TOO LARGE' if bad else ''}")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
