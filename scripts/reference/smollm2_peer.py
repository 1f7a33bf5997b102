#!/usr/bin/env python3
"""LoRA-XS on a language model by Transformers and PEFT: trains as a resolved recipe of `loraxs` says, and answers prompts.

    python scripts/reference/smollm2_peer.py train --recipe RUN/recipe.toml --model DIR --datasets FILE --out OUT
    python scripts/reference/smollm2_peer.py answer --model DIR --task gsm8k --datasets FILE --out answers.jsonl --limit 300

`train` puts PEFT's LoRA layers on the model and a trained R between frozen factors of each layer's own weight, decomposed in
float64 and kept in the base's precision, R in float32. It draws R and the order of the rows after `torch.manual_seed` and a
`DataLoader`, pads to the longest row of a micro batch, takes Transformers' own loss over all targets of a step, and AdamW with
the recipe's schedule. OUT gets `steps.jsonl`, `summary.json`, `cores.safetensors` and the merged checkpoint in `merged/`.
`answer` is greedy batched `generate`: prompts in the order of their lengths, padded on the left; a stop text cuts the
answer afterwards. What the file holds already is not answered again.
Rows, prompts and responses come from the catalog of the repository and --datasets.
Needs: torch 2.11, transformers 5.23, peft 0.21, scikit-learn 1.9, safetensors.
"""

import argparse
import gzip
import json
import time
import tomllib
import types
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from sklearn.utils.extmath import randomized_svd
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    get_constant_schedule_with_warmup,
    get_cosine_schedule_with_warmup,
    get_linear_schedule_with_warmup,
)

BUILT_IN = Path(__file__).resolve().parents[2] / "datasets.toml"
KINDS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def data_set(name, datasets):
    """The keys of an entry of --datasets over those of the built-in one that it is like, and its files by split."""
    own, built_in = (tomllib.loads(path.read_text(encoding="utf-8")) for path in (datasets, BUILT_IN))
    if "files" not in own.get(name, {}):
        raise SystemExit(f"error: {datasets} names no files of `{name}`")

    def whole(entry):
        return whole(built_in[entry["like"]]) | entry if "like" in entry else entry

    folder = datasets.parent / own[name].get("dir", "")
    return whole(own[name]), {split: folder / file for split, file in own[name]["files"].items()}


def read(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file] if ".jsonl" in path.name else json.load(file)


def examples(tokenizer, entry, path, data):
    """Ids and labels of the first `limit` usable rows; a row whose prompt fills `max_length` is none."""
    found = []
    for row in read(path):
        prompt = entry["prompt"].format(**row)
        alone = len(tokenizer(prompt)["input_ids"])
        if alone >= data["max_length"]:
            continue
        ids = tokenizer(prompt + entry["response"].format(**row))["input_ids"] + [tokenizer.eos_token_id]
        ids = ids[: data["max_length"]]
        found.append((ids, [-100] * alone + ids[alone:]))
        if len(found) == data["limit"]:
            break
    return found


def padded(batch, pad):
    longest = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([ids + [pad] * (longest - len(ids)) for ids, _ in batch])
    labels = torch.tensor([labels + [-100] * (longest - len(labels)) for _, labels in batch])
    mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in batch])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def factors(weights, adapter, kept):
    """A [r, in] and B [out, r] of each weight [out, in], decomposed in float64; a file keeps them for the next training."""
    if kept and kept.exists():
        found = load_file(kept)
        if found[f"{next(iter(weights))}.A"].shape[0] == adapter["rank"]:
            return found
    found = {}
    for name, weight in weights.items():
        u, s, vt = randomized_svd(
            weight.detach().double().numpy().T,
            n_components=adapter["rank"],
            n_iter=adapter["svd_iterations"],
            random_state=adapter["svd_seed"],
        )
        found |= {f"{name}.A": torch.tensor((u * s).T.copy()).float(), f"{name}.B": torch.tensor(vt.T.copy()).float()}
    if kept:
        save_file(found, kept)
    return found


def adapted(model, adapter, kept):
    """The model with PEFT's LoRA layers turned into those of LoRA-XS, and these by their names."""
    rank = adapter["rank"]
    config = LoraConfig(r=rank, lora_alpha=adapter["alpha"], target_modules=adapter["targets"], task_type="CAUSAL_LM")
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "lora_A")}
    weights = {name: layer.get_base_layer().weight for name, layer in layers.items()}
    frozen = factors(weights, adapter, kept)
    for name, layer in layers.items():
        layer.lora_A["default"].weight.data = frozen[f"{name}.A"].to(weights[name])
        layer.lora_B["default"].weight.data = frozen[f"{name}.B"].to(weights[name])
        layer.lora_R = torch.nn.Parameter(torch.randn(rank, rank) * adapter["init_std"])
        layer.forward = types.MethodType(forward, layer)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith("lora_R"))
    return model, layers


def forward(layer, x, *_, **__):
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    inner = F.linear(F.linear(F.linear(x, a), layer.lora_R.to(a.dtype)), b)
    return layer.get_base_layer()(x) + inner * layer.scaling["default"]


@torch.no_grad()
def merge(layers):
    for layer in layers.values():
        weight = layer.get_base_layer().weight
        a, b = (factor["default"].weight.float() for factor in (layer.lora_A, layer.lora_B))
        weight.copy_(weight.float() + layer.scaling["default"] * (b @ layer.lora_R @ a))


def schedule(optimizer, recipe, steps):
    warmup = recipe["warmup_steps"] or int(recipe["warmup_ratio"] * steps)
    if recipe["schedule"] == "constant":
        return get_constant_schedule_with_warmup(optimizer, warmup)
    kinds = {"linear": get_linear_schedule_with_warmup, "cosine": get_cosine_schedule_with_warmup}
    return kinds[recipe["schedule"]](optimizer, warmup, steps)


def steps_of(model, loader, recipe, steps, pad, size):
    """One line a step; the gradient of a step is that of the mean over all its targets."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=recipe["learning_rate"], weight_decay=recipe["weight_decay"])
    rates, done = schedule(optimizer, recipe, steps), 0
    while done < steps:
        for batch in loader:
            start, loss = time.perf_counter(), 0.0
            targets = sum(label != -100 for _, labels in batch for label in labels[1:])
            passes = [padded(batch[at : at + size], pad) for at in range(0, len(batch), size)]
            for inputs in passes:
                part = model(**inputs, num_items_in_batch=targets, use_cache=False).loss
                part.backward()
                loss += part.item()
            limit = recipe["max_grad_norm"] or float("inf")
            norm = torch.nn.utils.clip_grad_norm_(trained, limit).item()
            rate = rates.get_last_lr()[0]
            optimizer.step()
            rates.step()
            optimizer.zero_grad()
            done += 1
            yield {
                "step": done,
                "loss": loss,
                "grad_norm": norm,
                "learning_rate": rate,
                "examples": len(batch),
                "tokens": sum(len(ids) for ids, _ in batch),
                "computed": sum(inputs["input_ids"].numel() for inputs in passes),
                "seconds": time.perf_counter() - start,
            }
            if done == steps:
                return


def train(options):
    recipe = tomllib.loads(options.recipe.read_text(encoding="utf-8"))
    data, training = recipe["data"], recipe["train"]
    entry, files = data_set(data["dataset"], options.datasets)
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    rows = examples(tokenizer, entry, files[data["train"]], data)
    torch.manual_seed(training["seed"])
    began = time.perf_counter()
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=KINDS[training["precision"]])
    model, layers = adapted(model, recipe["adapter"], options.factors)
    made = time.perf_counter() - began
    order = torch.Generator().manual_seed(training["seed"])
    batch, shuffle = training["batch_size"], training["shuffle"]
    loader = torch.utils.data.DataLoader(rows, batch, shuffle=shuffle, collate_fn=list, generator=order)
    steps = training["max_steps"] or training["epochs"] * len(loader)
    lines = []
    with open(options.out / "steps.jsonl", "w") as log:
        for line in steps_of(model.train(), loader, training, steps, tokenizer.pad_token_id, options.micro_batch_size):
            print(json.dumps(line), file=log, flush=True)
            lines.append(line)
    total = {key: sum(line[key] for line in lines) for key in ("seconds", "examples", "tokens", "computed")}
    cores = {name.removeprefix("base_model.model."): layer.lora_R.detach() for name, layer in layers.items()}
    save_file(cores, options.out / "cores.safetensors")
    merge(layers)
    for saved in (model.unload(), tokenizer):
        saved.save_pretrained(options.out / "merged")
    summary = total | {"steps": steps, "layers": len(layers), "trained": sum(core.numel() for core in cores.values())}
    summary |= {"factors_seconds": made, "tokens_per_second": total["tokens"] / total["seconds"]}
    (options.out / "summary.json").write_text(json.dumps(summary) + "\n")


@torch.inference_mode()
def answer(options):
    entry, files = data_set(options.task, options.datasets)
    rows = read(files["test"])[: options.limit or None]
    done = {json.loads(line)["index"] for line in open(options.out, encoding="utf-8")} if options.out.exists() else set()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model, dtype=KINDS[options.precision]).eval()
    prompts = {index: entry["prompt"].format(**row) for index, row in enumerate(rows) if index not in done}
    encoded = sorted(((index, tokenizer(text)["input_ids"]) for index, text in prompts.items()), key=lambda row: len(row[1]))
    pad, count = tokenizer.pad_token_id, options.max_new_tokens or entry.get("max_new_tokens", 256)
    with open(options.out, "a", encoding="utf-8") as out:
        for at in range(0, len(encoded), options.batch_size):
            start, batch = time.perf_counter(), encoded[at : at + options.batch_size]
            longest = max(len(ids) for _, ids in batch)
            ids = torch.tensor([[pad] * (longest - len(ids)) + ids for _, ids in batch])
            mask = torch.tensor([[0] * (longest - len(ids)) + [1] * len(ids) for _, ids in batch])
            settings = {"max_new_tokens": count, "do_sample": False, "pad_token_id": pad}
            found = model.generate(ids, attention_mask=mask, **settings)[:, longest:]
            seconds = (time.perf_counter() - start) / len(batch)
            for (index, _), ids in zip(batch, found.tolist()):
                ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
                text = tokenizer.decode(ids, skip_special_tokens=True)
                ends = [text.find(stop) for stop in entry.get("stop", []) if stop in text]
                text = text[: min(ends)] if ends else text
                record = {"index": index, "prompt": prompts[index], "completion": text, "tokens": len(ids)}
                record |= {"gold": entry["answer"].format(**rows[index]), "seconds": seconds}
                print(json.dumps(record), file=out, flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("job", choices=["train", "answer"])
    parser.add_argument("--model", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--datasets", type=Path, required=True, help="catalog with the places of the files")
    parser.add_argument("--out", type=Path, required=True, help="train: a folder; answer: a file")
    parser.add_argument("--recipe", type=Path, help="train: a resolved recipe, `RUN/recipe.toml`")
    parser.add_argument("--factors", type=Path, help="train: a file that keeps the factors of the base for the next one")
    parser.add_argument("--micro-batch-size", type=int, default=4, help="train: rows in one pass; more are padded more")
    parser.add_argument("--task", help="answer: a data set of the catalog")
    parser.add_argument("--limit", type=int, default=0, help="answer: first N rows, 0 = all")
    parser.add_argument("--max-new-tokens", type=int, default=0, help="answer: 0 = as the catalog says")
    parser.add_argument("--batch-size", type=int, default=32, help="answer: prompts in one batch")
    parser.add_argument("--precision", choices=KINDS, default="bf16", help="answer: of weights and arithmetic")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.job == "train":
        options.out.mkdir(parents=True, exist_ok=True)
        train(options)
    else:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        answer(options)


if __name__ == "__main__":
    main()
