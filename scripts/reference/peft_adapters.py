#!/usr/bin/env python3
"""Writes adapters as PEFT saves them over the tiny checkpoints, with what they give there.

    python scripts/reference/peft_adapters.py tests/it/fixtures/peft \\
        --encoders tests/it/fixtures/encoders --decoders tests/it/fixtures/decoders

For two encoders and a decoder: LoRA, VeRA and TinyLoRA (tied in pairs), for the first also rank-stabilised LoRA and
VeRA without its projections in the file, with random factors of a trained adapter's size. OUT/<checkpoint>/<name>/ is what
`save_pretrained` wrote; OUT/<checkpoint>.json holds for every name the logits of the validation rows, one sequence at
a time, and for encoders the losses of twenty steps that start from the saved adapter: AdamW with decay on everything
trained, linear schedule with warm-up, clipping at 1, no dropout, in the order of the file.
OUT/<checkpoint>/published/adapter/ and published/reconstr_config.json are in the layout of the published LoRA-XS code
(github.com/MohammadrezaBanaei/LoRA-XS at e50b1a8): PEFT 0.10's names, the core as `<layer>_lora_latent_mapping`. Their
logits are those of y = W x + (alpha / r) B R A x, put into the weights by this script.
Needs: torch 2.11, transformers 5.23, peft 0.21, safetensors. Seed 20241126.
"""

import argparse
import json
import shutil
from pathlib import Path

import peft
import safetensors.torch
import torch
import torch.nn.functional as F
import transformers
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, get_linear_schedule_with_warmup

SEED = 20241126
ENCODER_TARGETS = ["query", "value", "attention.output.dense", "output.dense"]
DECODER_TARGETS = ["q_proj", "v_proj", "o_proj", "down_proj"]
SETTINGS = {
    "batch_size": 4,
    "max_steps": 20,
    "max_length": 24,
    "learning_rate": 1e-2,
    "head_learning_rate": 5e-3,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
}
METHODS = {
    "lora": lambda **shared: peft.LoraConfig(r=4, lora_alpha=6, **shared),
    "rslora": lambda **shared: peft.LoraConfig(r=4, lora_alpha=6, use_rslora=True, **shared),
    "vera": lambda **shared: peft.VeraConfig(r=12, projection_prng_key=3, **shared),
    "vera-seed": lambda **shared: peft.VeraConfig(r=12, projection_prng_key=3, save_projection=False, **shared),
    "tiny-lora": lambda **shared: peft.TinyLoraConfig(r=2, u=5, weight_tying=0.5, **shared),
}


def still(folder, decoder):
    """The checkpoint in float32 without dropout."""
    if decoder:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    quiet = dict.fromkeys(dropouts, 0.0)
    return AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32, **quiet)


@torch.no_grad()
def shake(model, generator):
    """Random numbers in everything trained but the head, which only moves a little."""
    for name, weight in sorted(model.named_parameters()):
        if weight.requires_grad:
            noise = torch.randn(weight.shape, generator=generator)
            head = "modules_to_save" in name
            weight.add_(noise * 0.02) if head else weight.copy_(noise * (1.0 if "tinylora" in name else 0.2))


def inputs_of(row, decoder):
    ids = torch.tensor([row["input_ids"]])
    return {"input_ids": ids} if decoder else {"input_ids": ids, "token_type_ids": torch.tensor([row["token_type_ids"]])}


@torch.no_grad()
def logits(model, rows, decoder):
    model.eval()
    found = [model(**inputs_of(row, decoder)).logits[0] for row in rows]
    return [(row[-1] if decoder else row).tolist() for row in found]


def read_rows(folder):
    return [json.loads(line) for line in open(folder.parent / "data" / "train.jsonl", encoding="utf-8")]


def losses(model, folder):
    """Twenty steps from where the adapter is."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model.train()
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    head = [weight for name, weight in trained if "modules_to_save" in name]
    rest = [weight for name, weight in trained if "modules_to_save" not in name]
    rates = [(rest, SETTINGS["learning_rate"]), (head, SETTINGS["head_learning_rate"])]
    groups = [{"params": weights, "lr": rate} for weights, rate in rates]
    optimizer = torch.optim.AdamW(groups, weight_decay=SETTINGS["weight_decay"])
    steps, size = SETTINGS["max_steps"], SETTINGS["batch_size"]
    schedule = get_linear_schedule_with_warmup(optimizer, round(SETTINGS["warmup_ratio"] * steps), steps)
    rows, found = read_rows(folder), []
    for start in range(0, steps * size, size):
        batch = rows[start : start + size]
        pairs = [[row[column] for row in batch] for column in ("sentence1", "sentence2")]
        options = {"padding": True, "truncation": True, "max_length": SETTINGS["max_length"]}
        inputs = tokenizer(*pairs, return_tensors="pt", **options)
        loss = F.cross_entropy(model(**inputs).logits, torch.tensor([row["label"] for row in batch]))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(rest + head, SETTINGS["max_grad_norm"])
        found.append(loss.item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return found, sum(weight.numel() for weight in rest)


def of_peft(folder, out, name, rows, decoder, shared):
    """One adapter of PEFT: written, and what it gives."""
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model = peft.get_peft_model(still(folder, decoder), METHODS[name](**shared))
    shake(model, generator)
    model.save_pretrained(out / name)
    (out / name / "README.md").unlink(missing_ok=True)
    path = out / name / "adapter_config.json"
    config = json.loads(path.read_text())
    # Sets come out in any order; paths are of one machine.
    config |= {"target_modules": sorted(config["target_modules"]), "base_model_name_or_path": folder.name}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    case = {"logits": logits(model, rows, decoder)}
    if not decoder:
        case["losses"], case["parameters"] = losses(model, folder)
    return case


@torch.no_grad()
def published(folder, out, rows, shared):
    """An adapter in the layout of the published LoRA-XS code, and what its formula gives."""
    rank, alpha = 4, 6
    generator = torch.Generator().manual_seed(SEED)
    model = still(folder, False)
    tensors = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and any(name.endswith(f".{end}") for end in shared["target_modules"]):
            u, s, vt = torch.linalg.svd(module.weight, full_matrices=False)
            a, b = (s[:rank, None] * vt[:rank]).contiguous(), u[:, :rank].contiguous()
            core = torch.randn(rank, rank, generator=generator) * 0.2
            tensors[f"base_model.model.{name}.lora_A.weight"] = a
            tensors[f"base_model.model.{name}.lora_B.weight"] = b
            tensors[f"base_model.model.{name}_lora_latent_mapping.weight"] = core
            module.weight += (alpha / rank) * b @ core @ a
    for name, weight in model.classifier.named_parameters():
        weight += torch.randn(weight.shape, generator=generator) * 0.02
        tensors[f"base_model.model.classifier.{name}"] = weight.detach().clone()
    adapter = out / "published" / "adapter"
    adapter.mkdir(parents=True)
    safetensors.torch.save_file(tensors, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {"peft_type": "LORA", "task_type": "SEQ_CLS", "r": rank, "lora_alpha": alpha, "lora_dropout": 0.0}
    config |= {"base_model_name_or_path": folder.name, "bias": "none", "fan_in_fan_out": False}
    config |= {"inference_mode": True, "init_lora_weights": True, "target_modules": shared["target_modules"]}
    config |= {"modules_to_save": ["classifier", "score"], "rank_pattern": {}, "alpha_pattern": {}}
    (adapter / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    svd = {"n_iter": 10, "random_state": 42, "rank": rank}
    settings = {"reconstruction_type": "svd", "reconstr_mode": "separated", "half_init_dec": False}
    settings |= {"replacement_module_random_init": False, "r_squared": True, "svd": svd}
    (out / "published" / "reconstr_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    return {"logits": logits(model, rows, False)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; what it held is removed")
    parser.add_argument("--encoders", type=Path, required=True, help="what encoder_parity.py wrote")
    parser.add_argument("--decoders", type=Path, required=True, help="what decoder_parity.py wrote")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(options.out, ignore_errors=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__}
    checkpoints = [(options.encoders / name, False) for name in ("bert-gelu", "roberta-gelu")]
    checkpoints.append((options.decoders / "llama-linear", True))
    for folder, decoder in checkpoints:
        out = options.out / folder.name
        targets = DECODER_TARGETS if decoder else ENCODER_TARGETS
        shared = {"target_modules": targets, "task_type": "CAUSAL_LM" if decoder else "SEQ_CLS"}
        if decoder:
            generator = torch.Generator().manual_seed(SEED)
            vocabulary = still(folder, True).config.vocab_size
            lengths = (3, 9, 17, 6)
            rows = [{"input_ids": torch.randint(5, vocabulary, (n,), generator=generator).tolist()} for n in lengths]
        else:
            rows = json.loads((folder / "expected.json").read_text())["tiny/pairs"]
        names = [name for name in METHODS if folder.name == "bert-gelu" or name not in ("rslora", "vera-seed")]
        cases = {name: of_peft(folder, out, name, rows, decoder, shared) for name in names}
        if not decoder:
            cases["published"] = published(folder, out, rows, shared)
        head = {"generator": "scripts/reference/peft_adapters.py", **versions, "settings": SETTINGS}
        if decoder:
            head["rows"] = rows
        lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in (head | {"cases": cases}).items())
        (options.out / f"{folder.name}.json").write_text(f"{{\n{lines}\n}}\n")
        for name, case in cases.items():
            shown = f", loss {case['losses'][0]:.4f} -> {case['losses'][-1]:.4f}" if "losses" in case else ""
            print(f"{folder.name} {name}: {len(case['logits'])} rows{shown}")


if __name__ == "__main__":
    main()
