#!/usr/bin/env python3
"""Makes the parts of `quickstart/`: stories, their tokenizer, and a BERT with random weights.

    scripts/make-quickstart.py data FOLDER    train.jsonl and validation.jsonl of the task `quickstart/city`
    scripts/make-quickstart.py start FOLDER   the data of `quickstart/questions`, and the untrained base in FOLDER/base
    scripts/make-quickstart.py trunk IN OUT   the checkpoint IN without its classification head, as OUT

Needs only Python's standard library. Everything but the trained weights is the same bytes on every machine.
"""

import json
import math
import random
import re
import struct
import sys
from itertools import chain, islice
from pathlib import Path

SEED = 20240527
NAMES = "Ana Bob Cleo Dan Eva Finn Gus Hana".split()
COLOURS = "red green blue black white brown pink grey".split()
CITIES = "Paris Rome Oslo Cairo Lima Delhi Tokyo Boston".split()
THINGS = "key lamp cup book chair clock ball hat box vase bag coat mirror basket bottle knife".split()
MOODS = "late early cold warm quiet loud windy rainy sunny dark".split()
CARRIED = [
    "{carrier} carried the {colour} {thing} from {source} to {target}.",
    "{carrier} came to {target} from {source} with the {colour} {thing}.",
    "The {colour} {thing} was carried to {target} from {source} by {carrier}.",
    "From {source} to {target} went the {colour} {thing}, brought by {carrier}.",
]
SOUGHT = [
    "{seeker} looked for it in {wrong}.",
    "In {wrong} it was sought by {seeker}.",
    "{seeker} sought it in {wrong}.",
]
ASIDES = ["It is {mood} today.", "They say that it is {mood}.", "The evening was {mood}."]
QUESTIONS = {
    "carrier": ["Who carried it?", "Who brought the {thing}?"],
    "colour": ["What colour is it?", "Which colour has the {thing}?"],
    "source": ["Where was it before?", "From which city came the {thing}?"],
    "target": ["Where is it now?", "To which city went the {thing}?"],
    "seeker": ["Who sought it?", "Who looked for the {thing}?"],
    "wrong": ["Where was it sought?", "In which city was the {thing} not found?"],
}
# From easy to hard: number of stories, the sentences in them, and the questions about them.
LESSONS = [
    (10000, [CARRIED], ["carrier", "colour"]),
    (10000, [SOUGHT], ["seeker", "wrong"]),
    (60000, [CARRIED], ["carrier", "colour", "source", "target"]),
    (160000, [CARRIED, SOUGHT, ASIDES], list(QUESTIONS)),
]

WIDTH, LAYERS, HEADS, INTERMEDIATE, POSITIONS = 64, 4, 4, 256, 96
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def story(draw, parts):
    """Who carried a thing from where to where, who sought it in a third city, and an aside: the facts and the text."""
    facts = dict(zip(("carrier", "seeker"), draw.sample(NAMES, 2)))
    facts |= dict(zip(("source", "target", "wrong"), draw.sample(CITIES, 3)))
    facts |= {"colour": draw.choice(COLOURS), "thing": draw.choice(THINGS), "mood": draw.choice(MOODS)}
    sentences = [draw.choice(part).format(**facts) for part in parts]
    draw.shuffle(sentences)
    return facts, " ".join(sentences)


def city_rows(draw):
    """Stories labelled with the city that the thing is in at the end; nobody asks for it."""
    while True:
        facts, text = story(draw, [CARRIED, SOUGHT, ASIDES])
        yield {"story": text, "city": facts["target"]}


def question_rows(draw, parts, asked):
    """Stories of these parts with a question, labelled with the answer."""
    while True:
        facts, text = story(draw, parts)
        wanted = draw.choice(asked)
        question = draw.choice(QUESTIONS[wanted]).format(**facts)
        yield {"story": text, "question": question, "answer": facts[wanted]}


def write_rows(path, rows, seen=frozenset()):
    """Writes the rows, without those whose story is in `seen`; the stories written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = set()
    with open(path, "w", encoding="utf-8") as out:
        for row in rows:
            if row["story"] not in seen:
                written.add(row["story"])
                out.write(json.dumps(row) + "\n")
    return written


def vocabulary():
    """Special tokens, then every word and sign that a text may hold, in lower case."""
    templates = CARRIED + SOUGHT + ASIDES + list(chain.from_iterable(QUESTIONS.values()))
    words = NAMES + COLOURS + CITIES + THINGS + MOODS
    texts = [re.sub(r"{.*?}", " ", template) for template in templates] + words
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
    """Sines and cosines of the position, wavelengths from 2 pi up: attention finds neighbours from the start."""
    for position in range(POSITIONS):
        for i in range(WIDTH // 2):
            angle = position / 200 ** (2 * i / WIDTH)
            yield from (0.5 * math.sin(angle), 0.5 * math.cos(angle))


def random_weights(draw, words):
    """Weights from N(0, 1 / width), words from N(0, 0.5^2), positions as waves; unit norms, zero biases."""
    for name, shape in shapes(words):
        count = math.prod(shape)
        if "position" in name:
            values = list(waves())
        elif len(shape) == 1:
            values = [1.0 if name.endswith("LayerNorm.weight") else 0.0] * count
        else:
            spread = 0.5 if "word" in name else WIDTH**-0.5
            values = [draw.gauss(0.0, spread) for _ in range(count)]
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
    draw = random.Random(SEED)
    validation = write_rows(folder / "validation.jsonl", islice(question_rows(draw, *LESSONS[-1][1:]), 2000))
    lessons = (islice(question_rows(draw, parts, asked), count) for count, parts, asked in LESSONS)
    write_rows(folder / "train.jsonl", chain.from_iterable(lessons), validation)
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
            rows = city_rows(random.Random(SEED + 1))
            validation = write_rows(Path(folder) / "validation.jsonl", islice(rows, 1000))
            write_rows(Path(folder) / "train.jsonl", islice(rows, 4000), validation)
        case ["start", folder]:
            make_start(Path(folder))
        case ["trunk", source, target]:
            make_trunk(Path(source), Path(target))
        case _:
            sys.exit(__doc__.strip())


if __name__ == "__main__":
    main(sys.argv[1:])
