#!/usr/bin/env python3
"""Writes what Transformers and PyTorch compute with SmolLM2-135M-Instruct, a real language model.

    python scripts/reference/real_model.py tests/it/fixtures/real_model.json --model smollm2-135m-instruct \\
        --rows tests/it/fixtures/decoders/data/train.jsonl

`weights`: the SHA-256 of one layer's stored numbers, by which a test knows the checkpoint. `logits`: token ids of texts,
the largest logits after the last token with their ids, their sum of squares, and the log-probability of every token after the first.
`stories`: what follows a prompt greedily. All in float32, one text at a time. `training`: twenty steps of LoRA-XS
on the instructions that `decoder_training.py` wrote, as in `stories.py`.
Needs: torch 2.11, transformers 5.23, scikit-learn 1.9.
"""

import argparse
import hashlib
import json
from pathlib import Path

import sklearn
import torch
import transformers
from decoder_training import EVERY, SETTINGS
from safetensors import safe_open
from stories import read, story, training
from transformers import AutoModelForCausalLM, AutoTokenizer

LAYER = "model.layers.0.self_attn.q_proj.weight"
CHAT = "<|im_start|>system\nYou answer briefly.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
TEXTS = [
    CHAT.format("Which is the largest ocean?") + "The Pacific Ocean.<|im_end|>\n",
    "def mean(numbers):\n    return sum(numbers) / len(numbers)\n\n\n",
    "Für Élise, 1810: naïve café — 12,345 × 6.7 = ½?",
    "The",
]
PROMPTS = [CHAT.format("Name three colours of the rainbow."), CHAT.format("What is 12 + 30?"), "Water boils when", "Il était"]
NEW_TOKENS = 24
LARGEST = 20
TEMPLATES = {"prompt": "{question}\n### Response: ", "response": "{answer}"}
COUNTS = {"batch_size": 2, "train_rows": 40, "held_out_rows": 8}
TRAINING = SETTINGS | {"max_length": 64, "learning_rate": 2e-4, "rank": 8, "targets": EVERY} | TEMPLATES | COUNTS


@torch.no_grad()
def scored(model, tokenizer, text):
    ids = tokenizer(text)["input_ids"]
    logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    largest = logits[-1].topk(LARGEST)
    following = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:], dtype=torch.long)[:, None])[:, 0]
    return {
        "text": text,
        "ids": ids,
        "largest": dict(zip(map(str, largest.indices.tolist()), largest.values.tolist())),
        "squares": logits[-1].double().square().sum().item(),
        "log_probabilities": following.tolist(),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--rows", type=Path, required=True, help="JSON lines that decoder_training.py wrote")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32, attn_implementation="eager").eval()
    with safe_open(options.model / "model.safetensors", "pt") as weights:
        stored = weights.get_tensor(LAYER).contiguous().view(torch.uint8).numpy().tobytes()
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "sklearn": sklearn.__version__}
    fixture = {"generator": "scripts/reference/real_model.py", **versions}
    fixture["weights"] = {"layer": LAYER, "sha256": hashlib.sha256(stored).hexdigest()}
    fixture["logits"] = [scored(model, tokenizer, text) for text in TEXTS]
    fixture["stories"] = [story(model, tokenizer, text, NEW_TOKENS) for text in PROMPTS]
    fixture["settings"] = TRAINING
    fixture["training"] = training(options.model, tokenizer, read(options.rows, TRAINING), TRAINING)
    lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in fixture.items())
    options.out.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
