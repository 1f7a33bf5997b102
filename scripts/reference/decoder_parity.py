#!/usr/bin/env python3
"""Writes tiny random decoders of every family, and what Transformers computes from them.

    python scripts/reference/decoder_parity.py tests/it/fixtures/decoders

Every folder of OUT is a checkpoint as Transformers writes it, of odd shapes, with a tokenizer of letters and frequent
pairs, together with `expected.json`, computed in float32 with eager attention from one sequence at a time:

- `sequences`: token ids; `log_probabilities` of each id after the first, given those before it; `logits` after the last
- `prompts`: token ids, the 64 tokens of greatest logit in turn with no token ending the text (`continuation`), and how
  many of them `generate` gives in a left-padded batch with the ends of `generation_config.json` (`stops_after`)

Configs named `*-old` are rewritten to the keys of older versions. Weights are drawn again until at every step of every
continuation the best token leads by MARGIN, so that rounding decides nothing, no continuation repeats a few tokens,
and one ends early. A second run writes the same bytes.
Needs: torch 2.11, transformers 5.23, tokenizers 0.23, safetensors.
"""

import argparse
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedTokenizerFast

SEED = 20240611
MARGIN = 1e-3
KINDS = 10
NEW_TOKENS = 64
SEQUENCES = (1, 2, 7, 12, 33)
PROMPTS = (1, 3, 8, 21)

CORPUS = """
Below is an instruction that describes a task. Write a response that appropriately completes the request.
### Instruction:
### Response: Let's think step by step.
Tom has 12 apples and gives 5 of them to Ann. How many apples are left?
There are 3 boxes with 48 pens each, so 3 * 48 = 144 pens.
The answer is: 7
What is 906 - 27 + 35? She pays $1.50 (one and a half) for it!
A train runs 60 miles an hour; the other, 45. Question: who arrives first?
Just quickly mix five "dozen" eggs / 2 jugs of whey, or not
""".strip()


def tokenizer(size, begins):
    """Letters of the corpus and `size` tokens in all; `begins`: whether a text starts with `<s>`."""
    trained = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))
    trained.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never", split=False)
    trained.decoder = decoders.Metaspace(prepend_scheme="never", split=False)
    special = ["<unk>", "<s>", "</s>", "<pad>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, show_progress=False, max_token_length=4)
    trained.train_from_iterator([CORPUS], trainer)
    if begins:
        trained.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=trained, model_max_length=128, **names)


def shape(width, heads, inner, layers=2, **settings):
    """Fields that every family knows; none at its default."""
    sizes = {"hidden_size": width, "num_attention_heads": heads, "intermediate_size": inner}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    shared = {"num_hidden_layers": layers, "rms_norm_eps": 3e-5, "max_position_embeddings": 128, "vocab_size": 101}
    return {**sizes, **ends, **shared, **settings}


def rope(theta=10000.0, **settings):
    return {"rope_type": "default", "rope_theta": theta, **settings}


LINEAR = {"rope_type": "linear", "factor": 2.5}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}

# Folder: (family, fields, stored type, largest shard, whether texts begin with <s>). Families differ where they can.
CHECKPOINTS = {
    "llama-biased": ("llama", shape(30, 6, 41, num_key_value_heads=2, head_dim=8, attention_bias=True, mlp_bias=True,
                                    rope_parameters=rope(500.0)), "bfloat16", None, True),
    "llama-first-old": ("llama", shape(24, 3, 37, vocab_size=107), "float16", None, True),
    "llama-linear": ("llama", shape(28, 2, 40, mlp_bias=True, tie_word_embeddings=True,
                                    rope_parameters=rope(**LINEAR)), "bfloat16", None, True),
    "llama-linear-old": ("llama", shape(24, 4, 35, num_key_value_heads=2, rope_parameters=rope(700.0, **LINEAR)),
                         "bfloat16", None, True),
    "llama-llama3": ("llama", shape(36, 6, 33, num_key_value_heads=3, head_dim=12, attention_bias=True,
                                    rope_parameters=rope(300.0, **LLAMA3)), "bfloat16", None, True),
    "llama-llama3-old": ("llama", shape(24, 2, 44, num_key_value_heads=1, tie_word_embeddings=True,
                                        rope_parameters=rope(9000.0, **LLAMA3)), "float32", "20KB", True),
    "mistral-window": ("mistral", shape(30, 6, 38, num_key_value_heads=3, head_dim=6, sliding_window=7,
                                        rope_parameters=rope(900.0)), "bfloat16", None, True),
    "mistral-open-old": ("mistral", shape(24, 4, 39, num_key_value_heads=4, sliding_window=None,
                                          rope_parameters=rope(1e6)), "bfloat16", "12KB", True),
    "gemma-tanh": ("gemma", shape(24, 3, 42, num_key_value_heads=1, head_dim=14), "bfloat16", None, True),
    "gemma-biased-old": ("gemma", shape(27, 3, 36, num_key_value_heads=3, head_dim=6, attention_bias=True,
                                        rope_parameters=rope(400.0)), "bfloat16", None, True),
    "gemma2-capped": ("gemma2", shape(28, 4, 34, 3, num_key_value_heads=2, head_dim=10, sliding_window=6,
                                      query_pre_attn_scalar=17, attn_logit_softcapping=2.5,
                                      final_logit_softcapping=6.0), "bfloat16", None, True),
    "gemma2-open": ("gemma2", shape(24, 2, 45, num_key_value_heads=1, head_dim=8, sliding_window=5,
                                    layer_types=["full_attention", "sliding_attention"], attention_bias=True,
                                    query_pre_attn_scalar=8, attn_logit_softcapping=None,
                                    final_logit_softcapping=None, tie_word_embeddings=False), "bfloat16", None, True),
    "qwen2-open": ("qwen2", shape(30, 5, 37, num_key_value_heads=1, sliding_window=4, max_window_layers=0,
                                  rope_parameters=rope(2000.0)), "bfloat16", None, False),
    "qwen2-window-old": ("qwen2", shape(24, 4, 33, 3, num_key_value_heads=2, use_sliding_window=True,
                                        sliding_window=8, max_window_layers=1, tie_word_embeddings=True),
                         "bfloat16", None, False),
    "qwen3-normed": ("qwen3", shape(26, 4, 40, num_key_value_heads=2, head_dim=10, tie_word_embeddings=True,
                                    rope_parameters=rope(5000.0)), "bfloat16", None, False),
    "qwen3-window": ("qwen3", shape(24, 3, 38, 3, num_key_value_heads=1, head_dim=8, attention_bias=True,
                                    use_sliding_window=True, sliding_window=6,
                                    layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
                     "bfloat16", None, False),
    "phi3-window": ("phi3", shape(30, 5, 36, sliding_window=9, rope_parameters=rope(800.0)),
                    "bfloat16", None, True),
    "phi3-partial-old": ("phi3", shape(32, 4, 35, num_key_value_heads=2,
                                       rope_parameters=rope(partial_rotary_factor=0.5)), "bfloat16", None, True),
}

# Keys that configs of older versions lack, since they came later.
LATER = ("rope_parameters", "layer_types", "dtype", "head_dim", "use_cache", "pretraining_tp", "transformers_version")


def make_old(path, family):
    """Rewrites a config to the keys of the years of its family: `rope_theta`, `rope_scaling`, `torch_dtype`."""
    config = json.loads(path.read_text())
    rope_parameters = config["rope_parameters"]
    old = {key: value for key, value in config.items() if key not in LATER or (key == "head_dim" and family == "gemma")}
    old["torch_dtype"] = config["dtype"]
    theta, kind = rope_parameters.pop("rope_theta"), rope_parameters.pop("rope_type")
    if "partial_rotary_factor" in rope_parameters:
        old["partial_rotary_factor"] = rope_parameters.pop("partial_rotary_factor")
    if theta != 10000.0:
        old["rope_theta"] = theta
    if kind != "default":  # the key of a linear scaling was `type` at first
        old["rope_scaling"] = {"type" if kind == "linear" else "rope_type": kind, **rope_parameters}
    elif family == "gemma":
        old["hidden_act"] = "gelu"  # written in the first releases, and meant as the approximation by tanh
    else:
        old["rope_scaling"] = None
    if path.parent.name == "llama-first-old":  # before there were groups
        old.pop("num_key_value_heads")
        old.pop("attention_bias")
        old.pop("mlp_bias")
    path.write_text(json.dumps(old, indent=1) + "\n")


def lively(model, seed):
    """Draws every weight anew: the default initialisation is so small that logits are nearly equal."""
    random = torch.Generator().manual_seed(seed)
    centred = model.config.model_type.startswith("gemma")
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            # A tied model repeats its input unless the layers speak up.
            if name.endswith("norm.weight"):
                mean = 2.0 if tied and ("post_feedforward" in name or name == "model.norm.weight") else 1.0
                weight.copy_(mean - centred + 0.2 * noise)
            elif "embed_tokens" in name:
                weight.copy_((0.15 if tied else 0.6) * noise)
            else:
                weight.copy_((0.8 if tied and name.endswith(("o_proj.weight", "down_proj.weight")) else 0.3) * noise)
    return model.eval()


def draw(random, lengths, size):
    return [random.randint(size, size=length).tolist() for length in lengths]


def as_written(tensor):
    """Float32 numbers as the shortest decimal that reads back as the same float32."""
    return [float(str(number)) for number in tensor.flatten().numpy().astype(np.float32)]


@torch.no_grad()
def greedy(model, prompt):
    """The continuation without a cache, and the smallest lead of a chosen token."""
    ids, lead = list(prompt), float("inf")
    for _ in range(NEW_TOKENS):
        best = model(torch.tensor([ids]), use_cache=False).logits[0, -1].topk(2)
        lead = min(lead, float(best.values[0] - best.values[1]))
        ids.append(int(best.indices[0]))
    return ids[len(prompt) :], lead


def load(folder, dtype):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval()


@torch.no_grad()
def scored(model, exact, sequences):
    rows, worst = [], 0.0
    for ids in sequences:
        logits, check = model(torch.tensor([ids])).logits[0], exact(torch.tensor([ids])).logits[0]
        worst = max(worst, float((logits - check).abs().max() / check.abs().max()))
        following = logits.log_softmax(-1)[:-1].gather(1, torch.tensor(ids[1:], dtype=torch.long).unsqueeze(1))
        rows.append({"ids": ids, "log_probabilities": as_written(following), "logits": as_written(logits[-1])})
    return rows, worst


@torch.no_grad()
def generated(model, prompts, ends):
    """What `generate` makes of all prompts in one batch, padded on the left, without what follows an end."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[3] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    settings = GenerationConfig(max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=ends, pad_token_id=3)
    rows = model.generate(ids, attention_mask=mask, generation_config=settings)[:, longest:].tolist()
    stops = [next((i + 1 for i, token in enumerate(row) if token in ends), len(row)) for row in rows]
    return [row[:stop] for row, stop in zip(rows, stops)]


def second_end(continuations):
    """A token that occurs late in some completion and never in most, as a second end-of-text token besides `</s>`."""
    def places(token):
        return [row.index(token) if token in row else NEW_TOKENS for row in continuations]

    held = {token for row in continuations for token in row if token > 3}
    return max(held, key=lambda token: (sum(place == NEW_TOKENS for place in places(token)), min(places(token)), token))


def attempt(folder, name, seed):
    """Writes one checkpoint; returns what is expected of it, the smallest lead and float32's error."""
    family, fields, dtype, shard, begins = CHECKPOINTS[name]
    config = AutoConfig.for_model(family, **fields)
    shutil.rmtree(folder, ignore_errors=True)
    model = lively(AutoModelForCausalLM.from_config(config), seed).to(getattr(torch, dtype))
    model.save_pretrained(folder, **({"max_shard_size": shard} if shard else {}))
    if name.endswith("-old"):
        make_old(folder / "config.json", family)
    model, random = load(folder, torch.float32), np.random.RandomState(seed)
    prompts = draw(random, PROMPTS, fields["vocab_size"])
    pairs = [greedy(model, prompt) for prompt in prompts]
    rows, leads = [row for row, _ in pairs], [lead for _, lead in pairs]
    ends = [2, second_end(rows)]
    stopped = generated(model, prompts, ends)
    assert all(row[: len(part)] == part for row, part in zip(rows, stopped)), "a batch changes what is generated"
    expected = {"prompts": [
        {"ids": ids, "continuation": row, "stops_after": len(part)} for ids, row, part in zip(prompts, rows, stopped)
    ]}
    sequences = draw(random, SEQUENCES, fields["vocab_size"])
    expected["sequences"], worst = scored(model, load(folder, torch.float64), sequences)
    settings = {"bos_token_id": 1, "eos_token_id": ends, "pad_token_id": 3}
    (folder / "generation_config.json").write_text(json.dumps(settings) + "\n")
    tokenizer(96, begins).save_pretrained(folder)
    path = folder / "tokenizer.json"  # without the indentation a third of the size
    path.write_text(json.dumps(json.loads(path.read_text()), ensure_ascii=False))
    return expected, min(leads), worst


def write(out, name):
    first = SEED + zlib.crc32(name.encode()) % 1000000
    for seed in range(first, first + 100):
        expected, lead, worst = attempt(out / name, name, seed)
        kinds = [len(set(row["continuation"])) for row in expected["prompts"]]
        stops = [row["stops_after"] for row in expected["prompts"]]
        if lead >= MARGIN and min(kinds) >= KINDS and min(stops) < NEW_TOKENS - 4:
            break
    else:
        raise SystemExit(f"{name}: no seed gives clear and varied continuations")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    head = {"generator": "scripts/reference/decoder_parity.py", "seed": seed, **versions}
    parts = ",\n".join(
        f"{json.dumps(key)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]" for key, rows in expected.items()
    )
    (out / name / "expected.json").write_text(f"{json.dumps(head)[:-1]},\n{parts}\n}}\n")
    for path in (out / name).iterdir():
        path.chmod(0o644)
    size = sum(path.stat().st_size for path in (out / name).iterdir()) // 1024
    print(f"{name}: {size} KiB, seed +{seed - first}, lead {lead:.1e}, kinds {kinds}, stops {stops}, ", end="")
    print(f"float32 against float64 {worst:.1e}", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; the checkpoints in it are replaced")
    parser.add_argument("--only", nargs="*", default=list(CHECKPOINTS), help="checkpoints to write")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in options.only:
        write(options.out, name)


if __name__ == "__main__":
    main()
