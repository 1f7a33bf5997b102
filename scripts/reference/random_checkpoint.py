#!/usr/bin/env python3
"""Writes a checkpoint of a given shape with random weights: for speed and memory, meaningless for accuracy.

    python scripts/reference/random_checkpoint.py OUT --shape roberta-large --tokenizer FOLDER_WITH_tokenizer.json

Needs torch and transformers; seen with torch 2.11 and transformers 5.23.
"""

import argparse
import shutil
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

ROBERTA = dict(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, layer_norm_eps=1e-5)
SHAPES = {
    "roberta-large": (RobertaForSequenceClassification, RobertaConfig(
        **ROBERTA, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)),
    "roberta-base": (RobertaForSequenceClassification, RobertaConfig(**ROBERTA)),
    "bert-base": (BertForSequenceClassification, BertConfig()),
}

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("out", type=Path)
parser.add_argument("--shape", choices=SHAPES, default="roberta-large")
parser.add_argument("--tokenizer", type=Path, required=True)
parser.add_argument("--dtype", default="float32")
parser.add_argument("--seed", type=int, default=0)
options = parser.parse_args()

torch.manual_seed(options.seed)
model_class, config = SHAPES[options.shape]
model_class(config).to(getattr(torch, options.dtype)).save_pretrained(options.out)
for file in options.tokenizer.iterdir():
    shutil.copy(file, options.out)
