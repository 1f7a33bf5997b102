#!/usr/bin/env python3
"""Writes the heads that Transformers draws after `torch.manual_seed` for the checkpoints of `encoder_parity.py`.

    python scripts/reference/head_draws.py tests/it/fixtures/head_draws.json --encoders tests/it/fixtures/encoders

For each case and each tensor that the checkpoint lacks: its first and last numbers and the sum of all. `without_pooler`
says that the pooler was taken out of the checkpoint before.
Needs: torch 2.11, transformers 5.23, safetensors.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import safetensors.torch
import torch
from transformers import AutoModelForSequenceClassification

CASES = [  # checkpoint, without its pooler, classes, seed
    ("bert-relu-trunk", False, 3, 0),
    ("bert-relu-trunk", False, 1, 2**33 + 7),
    ("bert-relu-trunk", True, 2, 1),
    ("roberta-masked-lm", False, 3, 2),
]
SHOWN = 4


def take_out_the_pooler(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    kept = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    safetensors.torch.save_file(kept, path, metadata={"format": "pt"})


def drawn(folder, classes, seed):
    torch.manual_seed(seed)
    model, info = AutoModelForSequenceClassification.from_pretrained(
        folder, num_labels=classes, dtype=torch.float32, output_loading_info=True
    )
    tensors = {name: model.get_parameter(name).detach() for name in sorted(info["missing_keys"])}
    return {
        name: {
            "shape": list(tensor.shape),
            "first": tensor.flatten()[:SHOWN].tolist(),
            "last": tensor.flatten()[-SHOWN:].tolist(),
            "sum": tensor.double().sum().item(),
        }
        for name, tensor in tensors.items()
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoders", type=Path, required=True)
    options = parser.parse_args()
    cases = []
    for checkpoint, without_pooler, classes, seed in CASES:
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder) / checkpoint
            shutil.copytree(options.encoders / checkpoint, folder)
            if without_pooler:
                take_out_the_pooler(folder)
            tensors = drawn(folder, classes, seed)
        case = {"checkpoint": checkpoint, "without_pooler": without_pooler, "classes": classes, "seed": seed}
        cases.append({**case, "tensors": tensors})
    options.out.write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
