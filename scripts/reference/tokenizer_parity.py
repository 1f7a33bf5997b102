"""Writes what Transformers' AutoTokenizer makes of real sentences and pairs: tests/it/fixtures/tokenizer_parity.json.

    python scripts/reference/tokenizer_parity.py DATA tests/it/fixtures/tokenizer_parity.json

DATA holds `data/glue/<task>/<split>.jsonl` (columns as in the hub's `nyu-mll/glue`), `models/minilm-l6` and
`tokenizers/roberta-base`. The texts themselves are not stored: per tokenizer, file and length the fixture keeps the
number of rows and tokens and the CRC-32 of all token ids and of all token types (little-endian 32-bit, row after row).
A few texts of our own with unusual characters are stored whole. Nothing is random. Written with transformers 5.23.0
and tokenizers 0.23.3.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import tokenizers
import transformers

FOLDERS = ["models/minilm-l6", "tokenizers/roberta-base"]
FILES = {
    "cola": (["train", "validation"], ["sentence"]),
    "sst2": (["train", "validation"], ["sentence"]),
    "mrpc": (["train", "validation"], ["sentence1", "sentence2"]),
    "stsb": (["train", "validation"], ["sentence1", "sentence2"]),
    "qnli": (["validation"], ["question", "sentence"]),
    "wnli": (["train", "validation"], ["sentence1", "sentence2"]),
}
# For each length, the first rows of each file: at the shorter one many texts are cut.
ROWS = {128: 2000, 24: 500}
UNUSUAL = [
    ["Été à Zürich, naïve façade: 3½ €…", None],
    ["日本語とEnglish混ざった文 한국어", "العربية हिन्दी ไทย"],
    ["emoji 👩‍👩‍👧‍👦 and 🏳️‍🌈 zero\u200bwidth\u00a0space", None],
    ["tabs\tand\nlines\r\nand\u2028more \x07 bell \ufffd", "   leading and trailing   "],
    ["", None],
    ["", ""],
    [" ", "one"],
    ["[MASK] <mask> [SEP] </s> [CLS] <s>", "<pad>[PAD][UNK]<unk>"],
    ["I'm you're we'll they've don't 'twas", "snake_case CamelCase x=1;y+=2 http://a.b/c?d=e#f"],
    ["Antidisestablishmentarianism " * 12, "short"],
    ["short", "pneumonoultramicroscopicsilicovolcanoconiosis " * 12],
    ["w" * 150 + " after a word that is too long", None],
    ["e\u0301 \u00e9 \ufb01 Ⅷ ß İ", "ĳ Ǆ"],
]


def encode(tokenizer, first, second, length):
    """Token ids and token types; all 0 where Transformers would not pass types to the model.

    Called with lists, as a whole data set is: a call with two texts drops an empty second one, frame and all.
    """
    made = tokenizer([first], None if second is None else [second], truncation=True, max_length=length)
    ids = made["input_ids"][0]
    return ids, made["token_type_ids"][0] if "token_type_ids" in made else [0] * len(ids)


def crc(rows):
    flat = np.concatenate([np.asarray(row, dtype="<u4") for row in rows])
    return zlib.crc32(flat.tobytes())


def main(data, out):
    entries, unusual = [], []
    for folder in FOLDERS:
        tokenizer = transformers.AutoTokenizer.from_pretrained(data / folder)
        for length, limit in ROWS.items():
            for task, (splits, columns) in FILES.items():
                for split in splits:
                    lines = (data / "data/glue" / task / f"{split}.jsonl").read_text(encoding="utf-8").split("\n")
                    rows = [json.loads(line) for line in lines if line][:limit]
                    made = [encode(tokenizer, r[columns[0]], r[columns[1]] if columns[1:] else None, length) for r in rows]
                    ids, types = zip(*made)
                    entries.append({
                        "tokenizer": folder, "file": f"data/glue/{task}/{split}.jsonl", "columns": columns,
                        "max_length": length, "rows": len(rows), "tokens": sum(map(len, ids)),
                        "ids": crc(ids), "types": crc(types),
                    })
            for first, second in UNUSUAL:
                ids, types = encode(tokenizer, first, second, length)
                unusual.append({
                    "tokenizer": folder, "text": first, "pair": second, "max_length": length,
                    "ids": ids, "types": types,
                })
    versions = {"transformers": transformers.__version__, "tokenizers": tokenizers.__version__}
    head = json.dumps({"script": "scripts/reference/tokenizer_parity.py", **versions})[:-1]
    lines = lambda values: ",\n".join(json.dumps(v) for v in values)
    out.write_text(f'{head},\n"files": [\n{lines(entries)}\n],\n"unusual": [\n{lines(unusual)}\n]}}\n')
    print(f"{out}: {sum(e['rows'] for e in entries)} rows, {len(unusual)} unusual texts, {out.stat().st_size} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
