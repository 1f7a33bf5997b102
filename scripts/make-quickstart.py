#!/usr/bin/env python3
"""Makes what `quickstart/` is made from: stories, their tokenizer, and a BERT of random weights.

    scripts/make-quickstart.py data FOLDER    train.jsonl and validation.jsonl of the task `quickstart/key`
    scripts/make-quickstart.py start FOLDER   the data of `quickstart/questions`, and the untrained base in FOLDER/base
    scripts/make-quickstart.py trunk IN OUT   the checkpoint IN without its classification head, as OUT

Python's standard library alone, and one seed: the files are the same bytes wherever they are made.
"""

import itertools
import json
import math
import random
import struct
import sys
from pathlib import Path

SEED = 20240527
NAMES = "Ana Bob Cleo Dan Eva Finn Gus Hana".split()
COLOURS = "red green blue black white brown pink grey".split()
PLACES = "kitchen garden cellar attic garage library office hall".split()
THINGS = "key lamp cup book chair clock ball hat box vase bag coat mirror basket bottle knife".split()
MOODS = "late early cold warm quiet loud windy rainy sunny dark".split()
FACTS = [
    "The {colour} {thing} of {name} is in the {place}.",
    "{name} keeps a {colour} {thing} in the {place}.",
    "In the {place} {name} has a {colour} {thing}.",
]
ASIDES = ["It is {mood} today.", "They say that it is {mood}.", "The evening was {mood}."]
QUESTIONS = {
    "name": ["Who owns the {thing}?", "To whom does the {thing} belong?", "Whose {thing} is it?"],
    "colour": ["What colour is the {thing}?", "Which colour has the {thing}?"],
    "place": ["Where is the {thing}?", "In which room is the {thing}?"],
}
ANSWERS = {"name": NAMES, "colour": COLOURS, "place": PLACES}
# Most facts in a story -> number of stories to pretrain on, in this order.
LESSONS = {1: 60000, 2: 60000, 3: 180000}

WIDTH, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 64, 4, 4, 256, 96
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def story(random, things):
    """One fact about each of these things, in a random order, with an aside; the facts and the text."""
    columns = [random.sample(words, len(things)) for words in (NAMES, COLOURS, PLACES)]
    facts = [dict(zip(("thing", "name", "colour", "place"), row)) for row in zip(things, *columns)]
    sentences = [random.choice(FACTS).format(**fact) for fact in facts]
    aside = random.choice(ASIDES).format(mood=random.choice(MOODS))
    random.shuffle(sentences)
    sentences.insert(random.randrange(len(sentences) + 1), aside)
    return facts, " ".join(sentences)


def key_rows(random):
    """Stories that mention the key, labelled with the room it is in; nobody asks for it."""
    while True:
        facts, text = story(random, ["key", *random.sample(THINGS[1:], 2)])
        yield {"story": text, "room": facts[0]["place"]}


def question_rows(random, longest):
    """Stories of up to `longest` facts with a question about any of them, labelled with the answer."""
    while True:
        facts, text = story(random, random.sample(THINGS, random.randint(1, longest)))
        fact, wanted = random.choice(facts), random.choice(list(QUESTIONS))
        question = random.choice(QUESTIONS[wanted]).format(thing=fact["thing"])
        yield {"story": text, "question": question, "answer": fact[wanted]}


def write_rows(path, parts, seen):
    """Writes `count` rows of each part (rows, count); a story that is in `seen` is left out, and all are put there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8") as out:
        for rows, count in parts:
            fresh = (row for row in rows if row["story"] not in seen)
            for row in itertools.islice(fresh, count):
                seen.add(row["story"])
                out.write(json.dumps(row) + "\n")


def vocabulary():
    """Special tokens, then every word and sign that a text may hold, in lower case."""
    templates = FACTS + ASIDES + [question for questions in QUESTIONS.values() for question in questions]
    blank = {"colour": "", "thing": "", "name": "", "place": "", "mood": ""}
    texts = [template.format(**blank) for template in templates] + NAMES + COLOURS + PLACES + THINGS + MOODS
    spaced = "".join(c if c.isalnum() else f" {c} " for c in " ".join(texts).lower())
    return SPECIAL + sorted(set(spaced.split()))


def tokenizer(words):
    """`tokenizer.json` and `tokenizer_config.json` of BERT, in which every word is one token."""
    ids = {word: i for i, word in enumerate(words)}
    cls, sep = ({"SpecialToken": {"id": token, "type_id": 0}} for token in ("[CLS]", "[SEP]"))
    sequence = lambda name, kind: {"Sequence": {"id": name, "type_id": kind}}
    last = {"SpecialToken": {"id": "[SEP]", "type_id": 1}}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    full = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": ids[token], "content": token, **flags} for token in SPECIAL],
        "normalizer": {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True,
                       "strip_accents": None, "lowercase": True},
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [cls, sequence("A", 0), sep],
            "pair": [cls, sequence("A", 0), sep, sequence("B", 1), last],
            "special_tokens": {t: {"id": t, "ids": [ids[t]], "tokens": [t]} for t in ("[CLS]", "[SEP]")},
        },
        "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": True},
        "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
                  "max_input_chars_per_word": 100, "vocab": ids},
    }
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": POSITIONS}
    names = ("pad", "unk", "cls", "sep", "mask")
    config.update({f"{name}_token": token for name, token in zip(names, SPECIAL)})
    return full, config


def config(words):
    """`config.json` of a small BERT."""
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": INTERMEDIATE,
        "vocab_size": len(words),
        "max_position_embeddings": POSITIONS,
        "type_vocab_size": 2,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.02,
        "pad_token_id": 0,
        "torch_dtype": "float32",
    }


def shapes(words):
    """Names and shapes of the trunk's tensors, in the order of the checkpoint."""
    linear = lambda name, out, inputs: [(f"{name}.weight", (out, inputs)), (f"{name}.bias", (out,))]
    norm = lambda name: [(f"{name}.weight", (WIDTH,)), (f"{name}.bias", (WIDTH,))]
    rows = {"word": len(words), "position": POSITIONS, "token_type": 2}
    found = [(f"bert.embeddings.{name}_embeddings.weight", (n, WIDTH)) for name, n in rows.items()]
    found += norm("bert.embeddings.LayerNorm")
    for layer in range(LAYERS):
        at = f"bert.encoder.layer.{layer}"
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found += linear(f"{at}.{name}", WIDTH, WIDTH)
        found += norm(f"{at}.attention.output.LayerNorm")
        found += linear(f"{at}.intermediate.dense", INTERMEDIATE, WIDTH)
        found += linear(f"{at}.output.dense", WIDTH, INTERMEDIATE)
        found += norm(f"{at}.output.LayerNorm")
    return found + linear("bert.pooler.dense", WIDTH, WIDTH)


def waves():
    """Sines and cosines of the position at wavelengths from 2 pi up, so that attention finds neighbours from the start."""
    for position in range(POSITIONS):
        for i in range(WIDTH // 2):
            angle = position / 200 ** (2 * i / WIDTH)
            yield from (0.5 * math.sin(angle), 0.5 * math.cos(angle))


def random_weights(random, words):
    """Weights from N(0, 1 / width), words from N(0, 0.5^2), positions as waves; unit norms, zero biases."""
    for name, shape in shapes(words):
        count = math.prod(shape)
        if "position" in name:
            values = list(waves())
        elif len(shape) == 1:
            values = [1.0 if name.endswith("LayerNorm.weight") else 0.0] * count
        else:
            spread = 0.5 if "word" in name else WIDTH**-0.5
            values = [random.gauss(0.0, spread) for _ in range(count)]
        yield name, shape, struct.pack(f"<{count}f", *values)


def write_safetensors(path, tensors):
    """Writes (name, shape, fp32 bytes) triples; format: https://github.com/huggingface/safetensors#format"""
    header, start = {"__metadata__": {"format": "pt"}}, 0
    tensors = list(tensors)
    for name, shape, data in tensors:
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, start + len(data)]}
        start += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(data for _, _, data in tensors))


def read_safetensors(path):
    """Yields (name, shape, bytes), sorted by name; fp32 only."""
    content = path.read_bytes()
    (length,) = struct.unpack_from("<Q", content)
    header = json.loads(content[8 : 8 + length])
    for name in sorted(name for name in header if name != "__metadata__"):
        start, end = (8 + length + offset for offset in header[name]["data_offsets"])
        yield name, header[name]["shape"], content[start:end]


def write_json(path, value):
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def make_start(folder):
    draw, seen = random.Random(SEED), set()
    write_rows(folder / "validation.jsonl", [(question_rows(draw, 3), 2000)], seen)
    # From easy to hard: the recipe does not shuffle.
    lessons = [(question_rows(draw, longest), count) for longest, count in LESSONS.items()]
    write_rows(folder / "train.jsonl", lessons, seen)
    base, words = folder / "base", vocabulary()
    base.mkdir(exist_ok=True)
    full, settings = tokenizer(words)
    write_json(base / "tokenizer.json", full)
    write_json(base / "tokenizer_config.json", settings)
    write_json(base / "config.json", config(words))
    write_safetensors(base / "model.safetensors", random_weights(random.Random(SEED), words))


def make_trunk(source, target):
    target.mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (target / name).write_bytes((source / name).read_bytes())
    write_json(target / "config.json", config(vocabulary()))
    tensors = read_safetensors(source / "model.safetensors")
    write_safetensors(target / "model.safetensors", (t for t in tensors if not t[0].startswith("classifier.")))


def main(arguments):
    match arguments:
        case ["data", folder]:
            rows, seen = key_rows(random.Random(SEED + 1)), set()
            write_rows(Path(folder) / "train.jsonl", [(rows, 4000)], seen)
            write_rows(Path(folder) / "validation.jsonl", [(rows, 1000)], seen)
        case ["start", folder]:
            make_start(Path(folder))
        case ["trunk", source, target]:
            make_trunk(Path(source), Path(target))
        case _:
            sys.exit(__doc__.strip())


if __name__ == "__main__":
    main(sys.argv[1:])
