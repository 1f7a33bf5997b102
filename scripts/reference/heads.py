#!/usr/bin/env python3
"""Writes what heads for classes, sets of labels, numbers and words give in Transformers, before and after twenty steps.

    python scripts/reference/heads.py tests/it/fixtures/heads \\
        --encoders tests/it/fixtures/encoders --decoders tests/it/fixtures/decoders

OUT/data holds JSON lines and a catalog; OUT/training.json settings and, for each case, the losses of twenty steps of
LoRA-XS and a head drawn by `from_pretrained` after `torch.manual_seed`, and then the logits of the validation rows, one row
at a time, and their metrics by scikit-learn and seqeval. A step's loss is the mean over its whole batch: of examples, of
labels and examples, or of words, whose label is on their first token as in Transformers' `run_ner.py`; classes weigh as in
`torch.nn.CrossEntropyLoss(weight=...)`. Factors, LoRA-XS and AdamW are those of `training_parity.py`.

    python scripts/reference/heads.py --merged DIR --predictions FILE --data FILE --task heads/words --max-length 24

checks that a folder written by `loraxs merge` loads in Transformers as the class that its config names and gives the
logits of `loraxs eval`. Needs: torch 2.11, transformers 5.24, scikit-learn 1.9, seqeval 1.2.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import seqeval.metrics
import sklearn
import sklearn.metrics
import torch
import torch.nn.functional as F
import transformers
from encoder_parity import SENTENCES, write_json_lines
from sklearn.utils.class_weight import compute_class_weight
from training_parity import LoraXs, factors, one_key_a_line
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    get_linear_schedule_with_warmup,
)

SETTINGS = {
    "rank": 3,
    "alpha": 6.0,
    "seed": 11,
    "max_length": 24,
    "batch_size": 4,
    "max_steps": 20,
    "learning_rate": 2e-2,
    "head_learning_rate": 1e-1,
    "warmup_ratio": 0.1,
    "weight_decay": 0.01,
    "max_grad_norm": 1.0,
}
CLASSES = ["weather", "people", "animals", "things"]
SETS = ["people", "animals", "water", "colour", "never"]
TAGS = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
ENCODERS = ["query", "value", "attention.output.dense", "output.dense"]
DECODERS = ["q_proj", "v_proj", "o_proj", "down_proj"]
FUSED = ["qkv_proj", "o_proj", "gate_up_proj"]
CASES = [  # checkpoint, data set, weights of classes
    ("encoders/bert-relu-trunk", "heads/sets", None),
    ("encoders/roberta-masked-lm", "heads/sets", None),
    ("encoders/bert-relu-trunk", "heads/classes", "balanced"),
    ("encoders/roberta-masked-lm", "heads/classes", [0.5, 2.0, 1.0, 0.25]),
    ("encoders/bert-relu-trunk", "heads/words", None),
    ("encoders/roberta-masked-lm", "heads/words", [0.3, 1.0, 2.0, 1.5, 0.7]),
    ("decoders/llama-biased", "heads/classes", None),
    ("decoders/mistral-window", "heads/classes", "balanced"),
    ("decoders/gemma-tanh", "heads/classes", None),
    ("decoders/gemma2-capped", "heads/score", None),
    ("decoders/qwen2-open", "heads/sets", None),
    ("decoders/qwen3-window", "heads/classes", None),
    ("decoders/phi3-window", "heads/classes", None),
    ("decoders/llama-llama3", "heads/words", None),
]
CATALOG = """\
# Written by scripts/reference/heads.py.

["heads/classes"]
task    = "classification"
files   = { train = "train.jsonl", validation = "validation.jsonl" }
text    = "text"
label   = "class"
labels  = ["weather", "people", "animals", "things"]
metrics = ["f1_macro", "accuracy", "f1_micro", "f1_weighted", "precision_macro", "recall_macro", "balanced_accuracy"]

["heads/sets"]
task    = "multi-label"
files   = { train = "train.jsonl", validation = "validation.jsonl" }
text    = "text"
label   = "sets"
labels  = ["people", "animals", "water", "colour", "never"]
metrics = ["f1_micro", "f1_macro", "accuracy", "f1_weighted", "precision_macro", "recall_macro"]

["heads/columns"]
like    = "heads/sets"
label   = ["people", "animals", "water", "colour", "never"]

["heads/words"]
task    = "token-classification"
files   = { train = "train.jsonl", validation = "validation.jsonl" }
text    = "words"
label   = "tags"
labels  = ["O", "B-PER", "I-PER", "B-LOC", "I-LOC"]
metrics = ["f1", "precision", "recall", "accuracy", "f1_macro", "f1_weighted"]

["heads/score"]
task    = "regression"
files   = { train = "train.jsonl", validation = "validation.jsonl" }
text    = "text"
label   = "score"
metrics = ["pearson", "spearmanr", "mse", "mae", "r2"]
"""
KINDS = {
    "people": "she baker nobody teacher child he neighbour they man sister we fisherman painter",
    "animals": "cat birds dogs dog",
    "water": "boat harbour river rain ice sea fisherman",
    "colour": "green red yellow blue",
}
PLACES = "wall harbour river bridge shop roof balcony hall sea park village station floor room".split()


def tagged(words):
    """A person or a place, with the article before it, is an entity."""
    tags = []
    for at, word in enumerate(words):
        kind = "PER" if word in KINDS["people"].split() else "LOC" if word in PLACES else None
        if kind and at and words[at - 1] in ("the", "a", "every", "an"):
            tags[at - 1] = f"B-{kind}"
        begins = not (tags and tags[-1].endswith(str(kind)))
        tags.append(f"{'B' if begins else 'I'}-{kind}" if kind else "O")
    return tags


def rows(count, seed):
    """Parts of sentences of mixed lengths; every seventh goes beyond `max_length`, in words and in tokens."""
    random, made = np.random.RandomState(seed), []
    for index in range(count):
        words = SENTENCES[random.randint(len(SENTENCES))].split()
        words = words[random.randint(3) :][: random.randint(2, 9)]
        if index % 7 == 6:
            words += sum((SENTENCES[random.randint(len(SENTENCES))].split() for _ in range(3)), [])
        tags = tagged(words)
        if index % 5 == 4:  # without a token in BERT, and one that is cut into several
            words, tags = words[:1] + ["\u200b", "snow-white"] + words[1:], tags[:1] + ["O", "I-LOC"] + tags[1:]
        held = [name for name, list in KINDS.items() if set(words) & set(list.split())]
        label = 1 if "people" in held else 2 if "animals" in held else 0 if "water" in held else 3
        score = round(len(words) / 4 + 0.5 * len(held), 3)
        row = {"text": " ".join(words), "class": CLASSES[label], "score": score, "sets": held, "words": words}
        row |= {"tags": tags if index % 2 else [TAGS.index(tag) for tag in tags]}
        made.append(row | {name: int(name in held) for name in SETS})
    return made


def write_data(folder):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "datasets.toml").write_text(CATALOG)
    for name, count, seed in (("train", 80, 5), ("validation", 26, 6)):
        write_json_lines(folder / f"{name}.jsonl", rows(count, seed))


def read(folder, split):
    return [json.loads(line) for line in open(folder / f"{split}.jsonl", encoding="utf-8")]


def tokenizer_of(folder, task):
    family = AutoConfig.from_pretrained(folder).model_type
    if family == "qwen2":  # for this family, AutoTokenizer does not take the class that the folder names
        return transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    spaced = task == "heads/words" and family == "roberta"
    return AutoTokenizer.from_pretrained(folder, **({"add_prefix_space": True} if spaced else {}))


def encode(tokenizer, task, row, max_length):
    """The inputs of one row, and its target."""
    options = {"truncation": True, "max_length": max_length, "return_tensors": "pt"}
    if task != "heads/words":
        inputs = tokenizer(row["text"], **options)
        if task == "heads/classes":
            return inputs, torch.tensor([CLASSES.index(row["class"])])
        if task == "heads/sets":
            return inputs, torch.tensor([[float(name in row["sets"]) for name in SETS]])
        return inputs, torch.tensor([row["score"]])
    inputs = tokenizer(row["words"], is_split_into_words=True, **options)
    tags = [tag if isinstance(tag, int) else TAGS.index(tag) for tag in row["tags"]]
    labels, before = [], None
    for word in inputs.word_ids():  # as `tokenize_and_align_labels` of run_ner.py, without `label_all_tokens`
        labels.append(-100 if word is None or word == before else tags[word])
        before = word
    return inputs, torch.tensor([labels])


def summed_loss(task, logits, target, weights):
    """The summed loss of a row, and by how much it is divided in the mean."""
    if task == "heads/score":
        return F.mse_loss(logits.squeeze(-1), target.to(logits.dtype), reduction="sum"), 1
    if task == "heads/sets":
        return F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype)), 1
    logits, target = logits.flatten(0, -2), target.flatten()
    weight = None if weights is None else torch.tensor(weights, dtype=logits.dtype)
    total = F.cross_entropy(logits, target, weight=weight, reduction="sum")
    known = target[target != -100]
    return total, (len(known) if weight is None else weight[known].sum())


def adapted(folder, task, dtype):
    names = {"heads/classes": CLASSES, "heads/sets": SETS, "heads/words": TAGS}.get(task, ["LABEL_0"])
    kind = AutoModelForTokenClassification if task == "heads/words" else AutoModelForSequenceClassification
    off = ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout", "attention_dropout", "resid_pdrop")
    config = AutoConfig.from_pretrained(folder)
    for key in off:
        if hasattr(config, key) or key == "classifier_dropout":
            setattr(config, key, 0.0)
    config.id2label, config.label2id = dict(enumerate(names)), {name: i for i, name in enumerate(names)}
    config.problem_type = None
    torch.manual_seed(SETTINGS["seed"])
    model = kind.from_pretrained(folder, config=config, dtype=dtype, attn_implementation="eager").train()
    trained = {name for name, _ in model.named_parameters() if name.startswith(("classifier", "score"))}
    targets = ENCODERS if "encoders" in str(folder) else FUSED if "phi3" in str(folder) else DECODERS
    model.requires_grad_(False)
    for path, module in list(model.named_modules()):
        if isinstance(module, torch.nn.Linear) and any(path.endswith(f".{target}") for target in targets):
            if "pooler" in path or path.startswith(("classifier", "score")):
                continue
            basis = factors(module.weight.detach().float().double(), SETTINGS["rank"], "randomized")
            core = torch.zeros(SETTINGS["rank"], SETTINGS["rank"])
            model.set_submodule(path, LoraXs(module, basis, SETTINGS["alpha"] / SETTINGS["rank"], 0.0, core))
    for name, weight in model.named_parameters():
        weight.requires_grad_(name in trained or name.endswith(".R"))
    return model, targets


def train(model, examples, task, weights):
    parts = {True: [], False: []}
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            parts[name.endswith(".R")].append(weight)
    rates = {True: SETTINGS["learning_rate"], False: SETTINGS["head_learning_rate"]}
    groups = [{"params": parts[key], "lr": rates[key]} for key in (True, False)]
    optimizer = torch.optim.AdamW(groups, weight_decay=SETTINGS["weight_decay"])
    steps, size, losses = SETTINGS["max_steps"], SETTINGS["batch_size"], []
    schedule = get_linear_schedule_with_warmup(optimizer, round(SETTINGS["warmup_ratio"] * steps), steps)
    for start in range(0, size * steps, size):
        sums = [
            summed_loss(task, model(**inputs).logits, target, weights) for inputs, target in examples[start : start + size]
        ]
        loss = sum(total for total, _ in sums) / sum(count for _, count in sums)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parts[True] + parts[False], SETTINGS["max_grad_norm"])
        losses.append(loss.item())
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return losses


@torch.no_grad()
def scored(model, examples, task):
    """Logits of each row, of words those of their first tokens; and the metrics."""
    model.eval()
    logits, golds, sums = [], [], []
    for inputs, target in examples:
        found = model(**inputs).logits
        sums.append(summed_loss(task, found, target, None))
        first = target[0] != -100 if task == "heads/words" else slice(None)
        logits.append(found[0][first] if task == "heads/words" else found[0])
        golds.append(target[0][first] if task == "heads/words" else target[0])
    metrics = {"loss": float(sum(total for total, _ in sums) / sum(count for _, count in sums))}
    return logits, metrics | METRICS[task](logits, golds)


def of_classes(logits, golds):
    p, g = [int(row.argmax()) for row in logits], [int(gold) for gold in golds]
    m, zero = sklearn.metrics, {"zero_division": 0}
    return {
        "accuracy": m.accuracy_score(g, p),
        "f1_macro": m.f1_score(g, p, average="macro", **zero),
        "f1_micro": m.f1_score(g, p, average="micro", **zero),
        "f1_weighted": m.f1_score(g, p, average="weighted", **zero),
        "precision_macro": m.precision_score(g, p, average="macro", **zero),
        "recall_macro": m.recall_score(g, p, average="macro", **zero),
        "balanced_accuracy": m.balanced_accuracy_score(g, p),
    }


def of_sets(logits, golds):
    p, g = (torch.stack(logits).sigmoid() >= 0.5).int().numpy(), torch.stack(golds).int().numpy()
    m, zero = sklearn.metrics, {"zero_division": 0}
    return {
        "accuracy": m.accuracy_score(g, p),
        "f1_micro": m.f1_score(g, p, average="micro", **zero),
        "f1_macro": m.f1_score(g, p, average="macro", **zero),
        "f1_weighted": m.f1_score(g, p, average="weighted", **zero),
        "precision_macro": m.precision_score(g, p, average="macro", **zero),
        "recall_macro": m.recall_score(g, p, average="macro", **zero),
    }


def of_words(logits, golds):
    named = lambda rows: [[TAGS[int(tag)] for tag in row] for row in rows]  # noqa: E731
    p, g = named(row.argmax(-1) for row in logits), named(golds)
    m, zero = seqeval.metrics, {"zero_division": 0}
    return {
        "accuracy": m.accuracy_score(g, p),
        "precision": m.precision_score(g, p, **zero),
        "recall": m.recall_score(g, p, **zero),
        "f1": m.f1_score(g, p, **zero),
        "f1_macro": m.f1_score(g, p, average="macro", **zero),
        "f1_weighted": m.f1_score(g, p, average="weighted", **zero),
    }


def of_numbers(logits, golds):
    p, g = [float(row) for row in logits], [float(gold) for gold in golds]
    m = sklearn.metrics
    return {"mse": m.mean_squared_error(g, p), "mae": m.mean_absolute_error(g, p), "r2": m.r2_score(g, p)}


METRICS = {"heads/classes": of_classes, "heads/sets": of_sets, "heads/words": of_words, "heads/score": of_numbers}


def run_case(place, data, checkpoint, task, asked):
    folder = place / checkpoint
    tokenizer = tokenizer_of(folder, task)
    train_rows, held_out = (read(data, split) for split in ("train", "validation"))
    weights = asked
    if asked == "balanced":
        classes = [CLASSES.index(row["class"]) for row in train_rows]
        weights = compute_class_weight("balanced", classes=np.arange(len(CLASSES)), y=classes).tolist()
    pairs = [[encode(tokenizer, task, row, SETTINGS["max_length"]) for row in rows] for rows in (train_rows, held_out)]
    model, targets = adapted(folder, task, torch.float32)
    exact, _ = adapted(folder, task, torch.float64)
    heads = {name: weight for name, weight in model.state_dict().items() if name.startswith(("classifier", "score"))}
    exact.load_state_dict(heads, strict=False)  # float64 draws other numbers
    case = {"checkpoint": checkpoint, "dataset": task, "targets": targets, "class_weights": asked}
    case["losses"] = train(model, pairs[0], task, weights)
    logits, case["metrics"] = scored(model, pairs[1], task)
    case["logits"] = [number for row in logits for number in row.flatten().tolist()]
    strays = max(abs(a / b - 1) for a, b in zip(case["losses"], train(exact, pairs[0], task, weights)))
    print(f"{checkpoint} {task}: loss {case['losses'][0]:.4f} -> {case['losses'][-1]:.4f}, ", end="")
    shown = ", ".join(f"{name} {value:.3f}" for name, value in case["metrics"].items())
    print(f"{shown}; float32 strays {strays:.1e}")
    return case


def check(options):
    """Compares a merged folder with the predictions of loraxs; returns True if they agree."""
    config = json.loads((options.merged / "config.json").read_text())
    kind = getattr(transformers, config["architectures"][0])
    model, told = kind.from_pretrained(options.merged, dtype=torch.float32, output_loading_info=True)
    strange = {key: sorted(names) for key, names in told.items() if names}
    tokenizer, task = tokenizer_of(options.merged, options.task), options.task
    rows = [json.loads(line) for line in open(options.data, encoding="utf-8")]
    lines = [json.loads(line) for line in open(options.predictions, encoding="utf-8")]
    logits, _ = scored(model, [encode(tokenizer, task, row, options.max_length) for row in rows], task)
    found = torch.cat([torch.tensor(line["logits"]).flatten() for line in lines])
    expected = torch.cat([row.flatten() for row in logits])
    off = float((found - expected).abs().max() / expected.abs().max())
    names = [config["id2label"][key] for key in sorted(config["id2label"], key=int)]
    print(f"{options.merged}: {kind.__name__}, {names}, {config.get('problem_type')}: logits off by {off:.1e}, {strange}")
    if task != "heads/words":  # a padded batch finds each text's end
        tokenizer.pad_token = tokenizer.pad_token or tokenizer.convert_ids_to_tokens(model.config.pad_token_id)
        texts = {"padding": True, "truncation": True, "max_length": options.max_length, "return_tensors": "pt"}
        with torch.no_grad():
            padded = model(**tokenizer([row["text"] for row in rows], **texts)).logits.flatten()
        off = max(off, float((padded - expected).abs().max() / expected.abs().max()))
        print(f"in a padded batch off by {off:.1e}")
    return off < 1e-5 and not strange


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, nargs="?", help="folder to write")
    parser.add_argument("--encoders", type=Path, help="what encoder_parity.py wrote")
    parser.add_argument("--decoders", type=Path, help="what decoder_parity.py wrote")
    parser.add_argument("--merged", type=Path)
    parser.add_argument("--predictions", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--task", choices=list(METRICS))
    parser.add_argument("--max-length", type=int, default=SETTINGS["max_length"])
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if options.merged:
        sys.exit(0 if check(options) else 1)
    write_data(options.out / "data")
    place = options.encoders.parent
    versions = {"torch": torch.__version__, "transformers": transformers.__version__, "sklearn": sklearn.__version__}
    head = {"generator": "scripts/reference/heads.py", **versions, "settings": SETTINGS}
    text = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in head.items())
    lines = ",\n".join(one_key_a_line(run_case(place, options.out / "data", *case)) for case in CASES)
    (options.out / "training.json").write_text(f'{{\n{text},\n"cases": [\n{lines}\n]\n}}\n')


if __name__ == "__main__":
    main()
