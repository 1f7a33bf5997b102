#!/usr/bin/env python3
"""Writes what twenty training steps in PyTorch give on the tiny checkpoints of `encoder_parity.py`.

    python scripts/reference/training_parity.py tests/it/fixtures/training \\
        --encoders tests/it/fixtures/encoders

LoRA-XS, y = W x + (alpha / r) B R A x with A = S V^T and B = U of W ~ U S V^T, started at R = 0, and full
fine-tuning; both without shuffling, with AdamW (betas 0.9, 0.999, eps 1e-8, decay on every
trained tensor), Transformers' linear schedule with warm-up, and gradient clipping over all trained tensors together.
Batches are padded to their longest row and masked. LoRA-XS trains R and `classifier*`; full trains everything.
OUT/<family>.json holds settings, losses, gradient norms before clipping, the trained cores, and the Euclidean norms
of the other trained tensors at the end. OUT/<family>-basis.safetensors holds the frozen factors as <svd>.<module>.A,
.B and .S, signed so that the largest entry of each column of B is positive.
Every case without dropout is run a second time in float64, to show the rounding error of float32.
Cases with dropout follow `torch.manual_seed`; their LoRA-XS draws what PEFT draws for LoRA layers, then starts at
R = 0.01 torch.randn(r, r) in scikit-learn's own signs, so that R and the masks come from the same place of the same stream.
Needs: torch 2.11, transformers 5.23, peft 0.21, scikit-learn 1.9, safetensors.
"""

import argparse
import json
from pathlib import Path

import safetensors.torch
import sklearn
import torch
import torch.nn.functional as F
import transformers
from peft import LoraConfig, get_peft_model
from sklearn.utils.extmath import randomized_svd
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

TARGETS = ["query", "value", "attention.output.dense", "output.dense"]
SETTINGS = {
    "rank": 4,
    "alpha": 8.0,
    "targets": TARGETS,
    "init_std": 0.01,  # with dropout; else 0
    "seed": 7,
    "max_length": 24,
    "batch_size": 4,
    "max_steps": 20,
    "head_learning_rate": 5e-3,
    "schedule": "linear",
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
    "shuffle": False,
}
CASES = {  # checkpoint, data set, method, kind of SVD, learning rate, dropout
    "bert": [
        ("bert-gelu", "tiny/pairs", "lora-xs", "randomized", 1e-2, 0.0),
        ("bert-gelu", "tiny/pairs", "lora-xs", "exact", 1e-2, 0.0),
        ("bert-gelu", "tiny/pairs", "full", None, 1e-3, 0.0),
        ("bert-gelu", "tiny/pairs", "lora-xs", "randomized", 1e-2, 0.1),
        ("bert-gelu", "tiny/pairs", "full", None, 1e-3, 0.1),
    ],
    "roberta": [
        ("roberta-gelu", "tiny/pairs", "lora-xs", "randomized", 1e-2, 0.0),
        ("roberta-gelu", "tiny/pairs", "lora-xs", "exact", 1e-2, 0.0),
        ("roberta-gelu", "tiny/pairs", "full", None, 1e-3, 0.0),
        ("roberta-regression", "tiny/score", "lora-xs", "randomized", 1e-2, 0.0),
        ("roberta-regression", "tiny/score", "full", None, 1e-3, 0.0),
        ("roberta-regression", "tiny/score", "lora-xs", "randomized", 3e-3, 0.2),
    ],
}


class LoraXs(torch.nn.Module):
    """A frozen linear layer with frozen factors and a trained core between them."""

    def __init__(self, base, basis, scale, dropout, core):
        super().__init__()
        self.base, self.scale, self.dropout = base, scale, torch.nn.Dropout(dropout)
        self.register_buffer("A", basis["A"].to(base.weight))
        self.register_buffer("B", basis["B"].to(base.weight))
        self.R = torch.nn.Parameter(core.to(base.weight))

    def forward(self, x):
        return self.base(x) + self.scale * F.linear(F.linear(F.linear(self.dropout(x), self.A), self.R), self.B)


def factors(weight, rank, svd):
    """A [r, in], B [out, r] and S [r] of a weight [out, in], computed in float32."""
    if svd == "randomized":
        u, s, vt = randomized_svd(weight.numpy().T, n_components=rank, n_iter=10, random_state=42)
        right, s, left = torch.tensor(u.copy()), torch.tensor(s.copy()), torch.tensor(vt.T.copy())
        assert (right.gather(0, right.abs().argmax(0, keepdim=True)) > 0).all(), "scikit-learn's signs, see turned()"
    else:
        left, s, vt = torch.linalg.svd(weight, full_matrices=False)
        left, s, right = left[:, :rank], s[:rank], vt[:rank].T
    largest = left.abs().argmax(0)
    sign = left[largest, torch.arange(rank)].sign()
    return {"A": (right * s * sign).T.contiguous(), "B": (left * sign).contiguous(), "S": s.contiguous()}


def adapted(model):
    return sorted(
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and any(name.endswith(f".{target}") for target in TARGETS)
    )


def read_rows(folder, dataset):
    rows = [json.loads(line) for line in open(folder / "data" / "train.jsonl", encoding="utf-8")]
    label = "score" if dataset == "tiny/score" else "label"
    return [((row["sentence1"], row["sentence2"]), row[label]) for row in rows]


def batches(tokenizer, rows):
    size, steps = SETTINGS["batch_size"], SETTINGS["max_steps"]
    assert size * steps <= len(rows), "the cases stay within one epoch"
    for start in range(0, size * steps, size):
        texts, labels = zip(*rows[start : start + size])
        options = {"padding": True, "truncation": True, "max_length": SETTINGS["max_length"]}
        yield tokenizer(*map(list, zip(*texts)), return_tensors="pt", **options), torch.tensor(labels)


def draw_as_peft(folder, model):
    """Takes from PyTorch's generator what making LoRA layers with PEFT takes; the cores of all layers that follow."""
    other = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(SETTINGS["seed"])
    get_peft_model(other, LoraConfig(r=SETTINGS["rank"], target_modules=TARGETS))
    paths = [path for path, _ in model.named_modules() if path in adapted(model)]
    return {path: torch.randn(SETTINGS["rank"], SETTINGS["rank"]) for path in paths}


def turned(core, basis):
    """A core that stands for scikit-learn's signs (the largest entry of each row of A is positive), for those of `basis`."""
    sign = basis["A"].gather(1, basis["A"].abs().argmax(1, keepdim=True)).sign()
    return sign * core * sign.T


def train(folder, dataset, method, bases, learning_rate, dropout, dtype):
    """Losses, gradient norms and learning rates of every step, and the model at the end."""
    dropouts = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout")
    torch.manual_seed(SETTINGS["seed"])
    noise = dict.fromkeys(dropouts, dropout)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype, **noise).train()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if method == "lora-xs":
        model.requires_grad_(False)
        model.classifier.requires_grad_(True)
        cores = draw_as_peft(folder, model)
        std = SETTINGS["init_std"] if dropout else 0.0
        for path, basis in bases.items():
            scale, core = SETTINGS["alpha"] / SETTINGS["rank"], turned(std * cores[path], basis)
            model.set_submodule(path, LoraXs(model.get_submodule(path), basis, scale, dropout, core))
    trained = [(key, weight) for key, weight in model.named_parameters() if weight.requires_grad]
    head = [weight for key, weight in trained if key.startswith("classifier")]
    rest = [weight for key, weight in trained if not key.startswith("classifier")]
    groups = [{"params": rest, "lr": learning_rate}, {"params": head, "lr": SETTINGS["head_learning_rate"]}]
    optimizer = torch.optim.AdamW(groups, weight_decay=SETTINGS["weight_decay"])
    steps = SETTINGS["max_steps"]
    schedule = get_linear_schedule_with_warmup(optimizer, round(SETTINGS["warmup_ratio"] * steps), steps)
    log = {"losses": [], "grad_norms": [], "learning_rates": []}
    for inputs, labels in batches(tokenizer, read_rows(folder.parent, dataset)):
        logits = model(**inputs).logits
        if logits.shape[1] == 1:
            loss = F.mse_loss(logits.squeeze(-1), labels.to(dtype))
        else:
            loss = F.cross_entropy(logits, labels)
        loss.backward()
        log["grad_norms"].append(torch.nn.utils.clip_grad_norm_(rest + head, SETTINGS["max_grad_norm"]).item())
        log["losses"].append(loss.item())
        log["learning_rates"].append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    counts = {"adapter" if method == "lora-xs" else "trunk": rest, "head": head}
    log["parameters"] = {key: sum(weight.numel() for weight in part) for key, part in counts.items()}
    return log, model


def run_case(encoders, checkpoint, dataset, method, svd, learning_rate, dropout):
    """One case of the fixture, and the basis that it used."""
    folder = encoders / checkpoint
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
    bases = {}
    if method == "lora-xs":
        weights = {path: plain.get_submodule(path).weight.detach() for path in adapted(plain)}
        bases = {path: factors(weight, SETTINGS["rank"], svd) for path, weight in weights.items()}
    log, model = train(folder, dataset, method, bases, learning_rate, dropout, torch.float32)
    exact = log if dropout else train(folder, dataset, method, bases, learning_rate, dropout, torch.float64)[0]
    case = {"checkpoint": checkpoint, "dataset": dataset, "method": method, "svd": svd, "dropout": dropout}
    case |= {"learning_rate": learning_rate, **log}
    case |= {} if dropout else {"losses_float64": exact["losses"]}
    case["cores"] = {path: model.get_submodule(path).R.tolist() for path in bases}
    # The gradient of a key's bias is zero but for rounding (softmax ignores a shift), so AdamW moves it at random.
    weights = {key: weight for key, weight in model.named_parameters() if weight.requires_grad}
    kept = [key for key in weights if not key.endswith(("key.bias", ".R"))]
    case["norms"] = {key: weights[key].norm().item() for key in kept}
    strays = max(abs(a / b - 1) for a, b in zip(case["losses"], exact["losses"]))
    print(f"{checkpoint} {method} {svd}: loss {log['losses'][0]:.4f} -> {log['losses'][-1]:.4f}, ", end="")
    print(f"gradient norms {min(log['grad_norms']):.2f}..{max(log['grad_norms']):.2f}, float32 strays {strays:.1e}")
    return case, bases


def one_key_a_line(case):
    return "{\n" + ",\n".join(f' "{key}": {json.dumps(value)}' for key, value in case.items()) + "\n}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write")
    parser.add_argument("--encoders", type=Path, required=True, help="what encoder_parity.py wrote")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    options.out.mkdir(parents=True, exist_ok=True)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "sklearn": sklearn.__version__}
    for family, cases in CASES.items():
        written, tensors = [], {}
        for case in cases:
            result, bases = run_case(options.encoders, *case)
            written.append(result)
            if result["dataset"] == "tiny/pairs" and not result["dropout"]:  # the regression case is there for its losses
                for path, basis in bases.items():
                    tensors |= {f"{result['svd']}.{path}.{key}": value for key, value in basis.items()}
        head = {"generator": "scripts/reference/training_parity.py", **versions, "settings": SETTINGS}
        text = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in head.items())
        lines = ",\n".join(one_key_a_line(case) for case in written)
        (options.out / f"{family}.json").write_text(f'{{\n{text},\n"cases": [\n{lines}\n]\n}}\n')
        safetensors.torch.save_file(tensors, options.out / f"{family}-basis.safetensors")
        (options.out / f"{family}-basis.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
