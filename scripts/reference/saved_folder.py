"""Writes a folder by `save_to_disk` of Hugging Face's `datasets` and the same rows as Parquet, with a column of classes.

    python scripts/reference/saved_folder.py tests/it/fixtures/saved

Written with datasets 5.2.0; nothing is random.
"""

import shutil
import sys
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value

FEATURES = Features({
    "review": Value("string"),
    "stars": ClassLabel(names=["good", "bad", "fair"]),
    "score": Value("float32"),
    "words": List(Value("string")),
    "tags": List(ClassLabel(names=["O", "B-X"])),
    "meta": {"id": Value("int32"), "flag": Value("bool")},
})


def rows(texts):
    return Dataset.from_list(
        [
            {
                "review": text, "stars": i % 3, "score": i / 4, "words": (text or "").split(),
                "tags": [j % 2 for j, _ in enumerate((text or "").split())], "meta": {"id": i, "flag": i % 2 == 0},
            }
            for i, text in enumerate(texts)
        ],
        features=FEATURES,
    )


out = Path(sys.argv[1])
shutil.rmtree(out, ignore_errors=True)
train = rows(["a fine day", "a grey é day", "so so", "very fine", None, "never again"])
DatasetDict({"train": train, "test": rows(["fine", "grey", "so"])}).save_to_disk(out / "reviews", num_shards={"train": 2, "test": 1})
train.to_parquet(out / "train.parquet")
