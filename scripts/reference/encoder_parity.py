#!/usr/bin/env python3
"""Writes tiny random BERT and RoBERTa checkpoints, a small data set, and what Transformers computes from them.

    python scripts/reference/encoder_parity.py tests/it/fixtures/encoders

OUT/data holds JSON lines and a catalog; every other folder of OUT is a checkpoint as Transformers writes it, of odd
shapes, together with `expected.json`: token ids and, computed in float32 from one sequence at a time without
padding, the logits (or, where the checkpoint has no head, the last hidden state of the first token and the output of
the pooler). Everything is drawn from the seed below, so a second run writes the same bytes.
Needs: torch 2.11, transformers 5.23, tokenizers 0.23, safetensors.
"""

import argparse
import json
import shutil
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import safetensors.torch
import tokenizers
import torch
import transformers
from tokenizers import models, pre_tokenizers, trainers
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForSequenceClassification,
    RobertaTokenizer,
)

SEED = 20240527
MAX_LENGTH = 24
LABELS = ["same", "other", "reversed"]

SENTENCES = """
the cat sleeps on the warm stone wall
a small boat left the harbour before sunrise
she counted seven birds above the river
our train was late again because of the snow
the baker opens his shop at five in the morning
nobody knew who had painted the old bridge green
rain fell on the tin roof all night long
the teacher gave every child a red pencil
he reads the same book every winter
two dogs ran after one yellow ball
the soup needs more salt and less pepper
my neighbour grows tomatoes on the balcony
a letter arrived without a stamp
the clock in the hall stopped at noon
they built a bridge of rope and wood
the music was loud but the room was empty
in spring the river carries ice to the sea
the painter mixed blue and yellow to make green
an old man fed the birds in the park
the shop sells bread and milk and salt
his sister plays the violin in the evening
the road to the village is closed in winter
we walked along the sea until the sun went down
a cold wind came from the north
the child lost a red shoe in the snow
every morning the fisherman mends his net
the moon was bright enough to read by
she wrote the number on the back of her hand
the last bus leaves the station at ten
green apples are better for the cake
the dog waits at the door of the shop
he found a coin under the wooden floor
""".strip().splitlines()

# The rows of the validation split: short, long beyond MAX_LENGTH, cased, accented, unknown to the tokenizers,
# with digits and punctuation, with surrounding and repeated blanks, with special tokens in the text.
VALIDATION = [
    ("rain", "snow", 1),
    ("The cat sleeps.", "the cat sleeps", 0),
    ("Two dogs ran after one yellow ball!", "ball yellow one after ran dogs two", 2),
    ("Is the café near the river?", "It isn't; it's near the sea, isn't it?", 1),
    ("  she   counted seven birds ", "seven birds", 0),
    ("In 1997 the train left at 05:45 (platform 3).", "the train was late", 1),
    (
        "the road to the village is closed in winter and the last bus leaves the station at ten",
        "nobody knew who had painted the old bridge green because rain fell on the tin roof all night long",
        1,
    ),
    (
        "we walked along the sea until the sun went down and the moon was bright enough to read by and "
        "a cold wind came from the north and rain fell on the tin roof all night long",
        "the moon was bright",
        0,
    ),
    (
        "bread",
        "every morning the fisherman mends his net and the baker opens his shop at five in the morning and "
        "the dog waits at the door of the shop",
        1,
    ),
    ("日本 naïve Ωmega 🙂 zebra", "émigré quartz 🙂🙂", 1),
    ("a-b_c/d\\e#f@g&h*i", "100% of $3.50 = \"cheap\"", 1),
    ("an old man fed the birds", "birds the fed man old an", 2),
    # Special tokens spelled out. RoBERTa counts positions over the tokens that are not padding, so `<pad>` counts too.
    ("rain <pad> fell <mask> on the roof", "snow [MASK] fell [SEP] on </s> it", 1),
]


def lively(model, seed):
    """Draws every weight anew: the default initialisation is so small that logits are nearly zero."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=random)
            if name.endswith("LayerNorm.weight"):
                weight.copy_(1 + 0.2 * noise)
            elif "embeddings" in name and weight.dim() == 2:
                weight.copy_(0.5 * noise)
            else:
                weight.copy_((0.25 if weight.dim() == 2 else 0.2) * noise)
    return model.eval()


def corpus():
    return SENTENCES + [text for first, second, _ in VALIDATION for text in (first, second)]


def bert_tokenizer(words, limit):
    """Letters, endings and the most frequent words. (The trainer of WordPiece breaks ties at random.)"""
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    letters = sorted(set("".join(SENTENCES)) - {" "})
    count = Counter(word for sentence in SENTENCES for word in sentence.split() if len(word) > 1)
    frequent = sorted(count, key=lambda word: (-count[word], word))[:words]
    endings = ["##ed", "##er", "##es", "##ing", "##ow", "##th", "##ter"]
    pieces = special + list(".,?!'-059") + letters + [f"##{letter}" for letter in letters] + endings + frequent
    return BertTokenizer(vocab={piece: index for index, piece in enumerate(pieces)}, model_max_length=limit)


def roberta_tokenizer(size, limit, special):
    trained = tokenizers.Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    trained.train_from_iterator(corpus(), trainer)
    merges = [tuple(pair) for pair in json.loads(trained.to_str())["model"]["merges"]]
    return RobertaTokenizer(vocab=ordered(trained.get_vocab()), merges=merges, model_max_length=limit)


def ordered(vocabulary):
    return dict(sorted(vocabulary.items(), key=lambda item: item[1]))


def config(kind, tokenizer, spare_rows=0, **settings):
    """Half of the fields differ from Transformers' defaults, so that a reader of `config.json` must honour them."""
    heads = {"num_labels": 3, "id2label": dict(enumerate(LABELS)), "label2id": {n: i for i, n in enumerate(LABELS)}}
    if settings.pop("regression", False):
        heads = {"num_labels": 1, "problem_type": "regression"}
    shared = {
        "vocab_size": len(tokenizer) + spare_rows,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }
    return kind(**{**shared, **heads, **settings})


def checkpoints():
    """Yields (folder, model, tokenizer, options of save_pretrained)."""
    usual = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    words, pairs = bert_tokenizer(100, 40), roberta_tokenizer(397, 38, usual)
    odd = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 52, "num_hidden_layers": 2}
    small = {"hidden_size": 30, "num_attention_heads": 5, "intermediate_size": 41, "num_hidden_layers": 1}

    settings = config(BertConfig, words, hidden_act="gelu", layer_norm_eps=3e-6, **odd)
    yield "bert-gelu", BertForSequenceClassification(settings), words, {}
    settings = config(BertConfig, words, hidden_act="gelu_new", layer_norm_eps=1e-5, **small)
    yield "bert-gelu-new-bf16", BertForSequenceClassification(settings).bfloat16(), words, {}
    settings = config(BertConfig, words, spare_rows=3, hidden_act="silu", classifier_dropout=0.2, **odd)
    yield "bert-silu-sharded", BertForSequenceClassification(settings), words, {"max_shard_size": "45KB"}
    settings = config(BertConfig, words, hidden_act="relu", layer_norm_eps=2e-4, **small)
    yield "bert-relu-trunk", BertModel(settings), words, {}
    settings = config(BertConfig, words, hidden_act="gelu", layer_norm_eps=1e-12, **small)
    yield "bert-legacy", BertForPreTraining(settings), words, {}

    odd |= {"type_vocab_size": 1}
    small |= {"type_vocab_size": 1}
    settings = config(RobertaConfig, pairs, hidden_act="gelu", layer_norm_eps=3e-6, **odd)
    yield "roberta-gelu", RobertaForSequenceClassification(settings), pairs, {}
    settings = config(RobertaConfig, pairs, regression=True, hidden_act="gelu_new", layer_norm_eps=1e-5, **odd)
    yield "roberta-regression", RobertaForSequenceClassification(settings), pairs, {}
    # The padding token is not at its usual place: positions start behind it, at 5.
    moved = roberta_tokenizer(397, 35, ["<s>", "</s>", "<unk>", "<mask>", "<pad>"])
    settings = config(RobertaConfig, moved, hidden_act="relu", layer_norm_eps=2e-4, **small)
    yield "roberta-relu-fp16", RobertaForSequenceClassification(settings).half(), moved, {}
    settings = config(RobertaConfig, pairs, spare_rows=2, hidden_act="silu", layer_norm_eps=1e-5, **small)
    yield "roberta-masked-lm", RobertaForMaskedLM(settings), pairs, {}


def make_legacy(folder):
    """Renames tensors to what BERT checkpoints of 2018 hold, and adds the buffer that they carry."""
    path = folder / "model.safetensors"
    tensors = safetensors.torch.load_file(path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    for new, name in old.items():
        tensors = {key.replace(new, name): value for key, value in tensors.items()}
    tensors["bert.embeddings.position_ids"] = torch.arange(40).unsqueeze(0)
    safetensors.torch.save_file(tensors, path, metadata={"format": "pt"})


def as_written(tensor):
    """Float32 numbers as the shortest decimal that reads back as the same float32."""
    return [float(str(number)) for number in tensor.flatten().numpy().astype(np.float32)]


@torch.no_grad()
def expected(folder):
    """What Transformers makes of the saved folder, in float32 whatever the stored precision."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    has_head = "ForSequenceClassification" in json.loads((folder / "config.json").read_text())["architectures"][0]
    kind = AutoModelForSequenceClassification if has_head else AutoModel
    model = kind.from_pretrained(folder, dtype=torch.float32).eval()
    exact = kind.from_pretrained(folder, dtype=torch.float64).eval()
    out, worst = {}, 0.0
    for name, pair in (("tiny/pairs", True), ("tiny/sentences", False)):
        rows, got, want = [], [], []
        for first, second, _ in VALIDATION:
            texts = (first, second) if pair else (first,)
            inputs = tokenizer(*texts, truncation=True, max_length=MAX_LENGTH, return_tensors="pt")
            ids = inputs["input_ids"][0].tolist()
            types = inputs["token_type_ids"][0].tolist() if "token_type_ids" in inputs else [0] * len(ids)
            row = {"input_ids": ids, "token_type_ids": types}
            result, check = model(**inputs), exact(**inputs)
            if has_head:
                row["logits"] = as_written(result.logits)
                got, want = got + [result.logits], want + [check.logits]
            else:
                row["first_hidden"] = as_written(result.last_hidden_state[0, 0])
                # A masked language model is saved without a pooler; the one that AutoModel then draws means nothing.
                if any("pooler" in key for key in stored_keys(folder)):
                    row["pooled"] = as_written(result.pooler_output)
                got, want = got + [result.last_hidden_state[0, 0]], want + [check.last_hidden_state[0, 0]]
            rows.append(row)
        got, want = torch.stack(got).double(), torch.stack(want)
        worst = max(worst, float((got - want).abs().max() / want.abs().max()))
        out[name] = rows
    return out, worst


def stored_keys(folder):
    return sorted(key for path in folder.glob("*.safetensors") for key in safetensors.torch.load_file(path))


def write_json_lines(path, rows):
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def train_rows(count=96):
    """Pairs whose label follows from the words: a part of the sentence, the same part reversed, or another one."""
    random = np.random.RandomState(SEED)
    rows = []
    for index in range(count):
        words = SENTENCES[random.randint(len(SENTENCES))].split()[: random.randint(3, 9)]
        kept = random.randint(1, min(len(words), 5))
        start = random.randint(len(words) - kept + 1)
        label = int(random.randint(3))
        if label == 1:
            part = SENTENCES[random.randint(len(SENTENCES))].split()[:kept]
        else:
            part = words[start : start + kept][:: -1 if label == 2 else 1]
        first = " ".join(words)
        if index % 6 == 5:  # beyond MAX_LENGTH in both tokenizers
            first += " and " + " ".join(SENTENCES[random.randint(len(SENTENCES))] for _ in range(2))
        shared = len(set(part) & set(words)) / len(set(part) | set(words))
        row = {"sentence1": first, "sentence2": " ".join(part), "label": label, "score": round(5 * shared, 3)}
        rows.append(row)
    return rows


CATALOG = """\
# Written by scripts/reference/encoder_parity.py.

["tiny/pairs"]
task    = "classification"
dir     = "."
files   = { train = "train.jsonl", validation = "validation.jsonl", test = "test.jsonl" }
text    = ["sentence1", "sentence2"]
label   = "label"
labels  = ["same", "other", "reversed"]
metrics = ["accuracy"]

["tiny/sentences"]
task    = "classification"
dir     = "."
files   = { train = "train.jsonl", validation = "validation.jsonl", test = "test.jsonl" }
text    = ["sentence1"]
label   = "label"
labels  = ["same", "other", "reversed"]
metrics = ["accuracy"]

["tiny/score"]
task    = "regression"
dir     = "."
files   = { train = "train.jsonl", validation = "validation.jsonl" }
text    = ["sentence1", "sentence2"]
label   = "score"
metrics = ["pearson", "spearmanr"]
"""


def write_data(folder):
    folder.mkdir(parents=True)
    (folder / "datasets.toml").write_text(CATALOG)
    write_json_lines(folder / "train.jsonl", train_rows())
    scores = [0.5, 5, 2.5, 1.25, 4, 0, 0.8, 3.2, 0.1, 1, 2, 4.75, 1.5]
    names = ("sentence1", "sentence2", "label")
    rows = [dict(zip(names, row)) | {"score": float(score)} for row, score in zip(VALIDATION, scores)]
    write_json_lines(folder / "validation.jsonl", rows)
    write_json_lines(folder / "test.jsonl", [row | {"label": -1} for row in train_rows(5)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder to write; what it holds is replaced")
    out = parser.parse_args().out
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    shutil.rmtree(out, ignore_errors=True)
    write_data(out / "data")
    for name, model, tokenizer, options in checkpoints():
        folder = out / name
        lively(model, SEED + zlib.crc32(name.encode()) % 1000).save_pretrained(folder, **options)
        tokenizer.save_pretrained(folder)
        if name == "bert-legacy":
            make_legacy(folder)
        rows, worst = expected(folder)
        head = {
            "generator": "scripts/reference/encoder_parity.py",
            "seed": SEED,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "max_length": MAX_LENGTH,
        }
        lines = ",\n".join(
            f"{json.dumps(data)}: [\n" + ",\n".join(json.dumps(row) for row in part) + "\n]"
            for data, part in rows.items()
        )
        header = json.dumps(head, indent=1)[:-2]
        (folder / "expected.json").write_text(f"{header},\n{lines}\n}}\n")
        for path in folder.iterdir():
            path.chmod(0o644)
        size = sum(path.stat().st_size for path in folder.iterdir()) // 1024
        spread = {len(row["input_ids"]) for part in rows.values() for row in part}
        print(f"{name}: {size} KiB, lengths {min(spread)}..{max(spread)}, float32 against float64 {worst:.1e}")


if __name__ == "__main__":
    main()
