#!/usr/bin/env python3
"""Writes what twenty steps of LoRA-XS in PyTorch give on the tiny decoders of `decoder_parity.py`.

    python scripts/reference/decoder_training.py tests/it/fixtures/decoders

OUT/data holds an instruction data set and its catalog; OUT/training.json settings and, for each case, losses, gradient
norms before clipping, learning rates, the trained cores, the mean loss of the validation rows before and after, and
the gradients of the first batch at cores drawn at random.

A row is prompt and response as one text and the token that ends it, cut to `max_length`; the loss of a step is the sum
over all targets (the response and its end) of all its rows, divided by their number. LoRA-XS, factors, AdamW and
clipping are those of `training_parity.py`; the schedule is Transformers' cosine with warm-up. Sequences are computed
one at a time, attention is eager. Every case is run a second time in float64, to show the rounding error of float32.
Needs: torch 2.11, transformers 5.23, scikit-learn 1.9.
"""

import argparse
import json
from pathlib import Path

import sklearn
import torch
import torch.nn.functional as F
import transformers
from training_parity import LoraXs, factors, one_key_a_line
from transformers import AutoModelForCausalLM, AutoTokenizer, get_cosine_schedule_with_warmup

SETTINGS = {
    "rank": 4,
    "alpha": 8.0,
    "svd": "randomized",
    "init_std": 0.0,
    "dropout": 0.0,
    "max_length": 84,
    "batch_size": 4,
    "max_steps": 20,
    "learning_rate": 1e-2,
    "schedule": "cosine",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "shuffle": False,
}
EVERY = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
CASES = {  # checkpoint: targets
    "llama-biased": EVERY,
    "gemma2-capped": EVERY,
    "qwen3-window": EVERY,
    "phi3-window": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}
NAMES = ["Ann", "Tom", "Bea", "Joe"]
THINGS = ["apples", "pens", "eggs", "boxes", "dozen jugs of whey"]
CATALOG = """\
# Written by scripts/reference/decoder_training.py.

["tiny/instructions"]
task     = "instruction"
dir      = "."
files    = { train = "train.jsonl", validation = "validation.jsonl" }
prompt   = "{question}\\n### Response: "
response = "{answer}"
"""


def rows(count, seed):
    """Sums in words of mixed lengths, in the letters of the tokenizer; every eighth goes beyond `max_length`."""
    random = torch.Generator().manual_seed(seed)

    def draw(below):
        return int(torch.randint(below, (1,), generator=random))

    made = []
    for index in range(count):
        first, second, name, thing = draw(900), draw(90), NAMES[draw(len(NAMES))], THINGS[draw(len(THINGS))]
        question = [f"{first} + {second}?", f"{name} has {first} {thing} and gives {second} of them to Ann. Left?"][
            draw(2)
        ]
        total = first + second if question.endswith("+ " + f"{second}?") else first - second
        answer = f"The answer is: {total}" if draw(2) else f"{total}"
        if index % 8 == 7:
            answer = f"Let's think step by step. {name} pays, so the other has {total} {thing}.\n" + answer
        made.append({"question": question, "answer": answer})
    return made


def write_data(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "datasets.toml").write_text(CATALOG)
    for name, count, seed in (("train", 80, 1), ("validation", 12, 2)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows(count, seed)))


def encode(tokenizer, row, prompt, response, max_length):
    """Token ids of prompt, response and end; targets are the ids themselves, or -100 in the prompt."""
    alone = tokenizer(prompt.format(**row))["input_ids"]
    ids = tokenizer(prompt.format(**row) + response.format(**row))["input_ids"] + [tokenizer.eos_token_id]
    targets = [-100] * len(alone) + ids[len(alone) :]
    assert len(alone) < max_length, "a row without a target"
    return ids[:max_length], targets[:max_length]


def read(folder, split, tokenizer):
    prompt = "{question}\n### Response: "
    lines = [json.loads(line) for line in open(folder / "data" / f"{split}.jsonl", encoding="utf-8")]
    return [encode(tokenizer, row, prompt, "{answer}", SETTINGS["max_length"]) for row in lines]


def token_losses(model, examples):
    """The sum of the losses of all targets, and how many there are."""
    total, count = 0.0, 0
    for ids, targets in examples:
        logits, following = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, :-1], targets[1:]
        total = total + F.cross_entropy(logits, torch.tensor(following), ignore_index=-100, reduction="sum")
        count += sum(target != -100 for target in following)
    return total, count


@torch.no_grad()
def mean_loss(model, examples):
    total, count = token_losses(model, examples)
    return total.item() / count


def adapt(folder, targets, dtype, rank=SETTINGS["rank"]):
    """The checkpoint with LoRA-XS on its targets; factors are computed in float64."""
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").train()
    model.requires_grad_(False)
    for path, module in plain.named_modules():
        if isinstance(module, torch.nn.Linear) and path.split(".")[-1] in targets:
            basis = factors(module.weight.detach().double(), rank, SETTINGS["svd"])
            frozen, core = model.get_submodule(path), torch.zeros(rank, rank)
            adapted = LoraXs(frozen, basis, SETTINGS["alpha"] / rank, SETTINGS["dropout"], core)
            model.set_submodule(path, adapted)
    return model, {path: module for path, module in model.named_modules() if isinstance(module, LoraXs)}


def train(model, layers, examples, settings):
    """Losses, gradient norms and learning rates of every step."""
    cores = [layer.R for layer in layers.values()]
    optimizer = torch.optim.AdamW(cores, lr=settings["learning_rate"], weight_decay=settings["weight_decay"])
    steps, size = settings["max_steps"], settings["batch_size"]
    schedule = get_cosine_schedule_with_warmup(optimizer, int(settings["warmup_ratio"] * steps), steps)
    log = {"losses": [], "grad_norms": [], "learning_rates": []}
    for start in range(0, steps * size, size):
        total, count = token_losses(model, examples[start : start + size])
        loss = total / count
        loss.backward()
        log["grad_norms"].append(torch.nn.utils.clip_grad_norm_(cores, settings["max_grad_norm"]).item())
        log["losses"].append(loss.item())
        log["learning_rates"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return log


def gradients(folder, targets, examples):
    """Cores drawn at random, and the gradient of the first step's loss with respect to each."""
    model, layers = adapt(folder, targets, torch.float32)
    random, drawn = torch.Generator().manual_seed(3), {}
    for path, layer in layers.items():
        drawn[path] = 0.3 * torch.randn(layer.R.shape, generator=random)
        layer.R.data.copy_(drawn[path])
    total, count = token_losses(model, examples[: SETTINGS["batch_size"]])
    (total / count).backward()
    return {
        "random_loss": (total / count).item(),
        "random_cores": {path: core.tolist() for path, core in drawn.items()},
        "random_gradients": {path: layer.R.grad.tolist() for path, layer in layers.items()},
    }


def run_case(out, checkpoint, targets):
    tokenizer = AutoTokenizer.from_pretrained(out / checkpoint)
    train_rows, held_out = (read(out, split, tokenizer) for split in ("train", "validation"))
    model, layers = adapt(out / checkpoint, targets, torch.float32)
    case = {"checkpoint": checkpoint, "targets": targets, "validation_before": mean_loss(model, held_out)}
    case |= train(model, layers, train_rows, SETTINGS)
    case["validation_after"] = mean_loss(model, held_out)
    case["cores"] = {path: layer.R.tolist() for path, layer in layers.items()}
    exact, exact_layers = adapt(out / checkpoint, targets, torch.float64)
    case["losses_float64"] = train(exact, exact_layers, train_rows, SETTINGS)["losses"]
    case |= gradients(out / checkpoint, targets, train_rows)
    strays = max(abs(a / b - 1) for a, b in zip(case["losses"], case["losses_float64"]))
    lengths = [len(ids) for ids, _ in train_rows]
    print(f"{checkpoint}: loss {case['losses'][0]:.4f} -> {case['losses'][-1]:.4f}, held out ", end="")
    print(f"{case['validation_before']:.4f} -> {case['validation_after']:.4f}, lengths {min(lengths)}..", end="")
    print(f"{max(lengths)}, cut {sum(ids[-1] != 2 for ids, _ in train_rows)}, float32 strays {strays:.1e}")
    return case


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder that decoder_parity.py wrote")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write_data(out / "data")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "sklearn": sklearn.__version__}
    head = {"generator": "scripts/reference/decoder_training.py", **versions, "settings": SETTINGS}
    text = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in head.items())
    lines = ",\n".join(one_key_a_line(run_case(out, *case)) for case in CASES.items())
    (out / "training.json").write_text(f'{{\n{text},\n"cases": [\n{lines}\n]\n}}\n')


if __name__ == "__main__":
    main()
