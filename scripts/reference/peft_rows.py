#!/usr/bin/env python3
"""Rows of PEFT's `method_comparison`, held against its own loader.

    python scripts/reference/peft_rows.py PEFT --keys tests/it/fixtures/peft_rows.json   what the loader demands
    python scripts/reference/peft_rows.py PEFT ROW.json...                               does it take these rows?

PEFT is a checkout of huggingface/peft (5d602fd). The first command takes every result of MetaMathQA/ there, and writes for each key that
all of them have (keys of `peft_config` and `optimizer_kwargs`, which are each method's own, aside) its type, and whether `load_df` of
processing.py still takes a row where the key is null, and one without it. The second loads rows that `loraxs report RUN --format peft`
wrote, and prints what the loader makes of them.
"""

import argparse
import copy
import json
import sys
import tempfile
from pathlib import Path

TASK = "MetaMathQA"
OF_METHOD = ("peft_config", "optimizer_kwargs")


def load(processing, rows):
    """Returns the data frame of these rows; raises what the loader raises."""
    with tempfile.TemporaryDirectory() as folder:
        for number, row in enumerate(rows):
            Path(folder, f"{number}.json").write_text(json.dumps(row))
        return processing.load_df(folder, TASK, print_fn=lambda *_: None)


def paths(value, path=()):
    """Yields every path to a value, with its type; of the metrics, only those of the last entry."""
    if isinstance(value, dict) and not (path and path[-1] in OF_METHOD):
        for key, below in value.items():
            yield from paths(below, (*path, key))
    elif path[-1] == "metrics":
        yield from paths(value[-1], (*path, -1))
    else:
        yield path, type(value).__name__


def changed(row, path, drop):
    row = copy.deepcopy(row)
    at = row
    for key in path[:-1]:
        at = at[key]
    if drop:
        del at[path[-1]]
    else:
        at[path[-1]] = None
    return row


def accepted(processing, row):
    try:
        return len(load(processing, [row])) == 1
    except (KeyError, TypeError, ValueError, AttributeError):
        return False


def demands(processing, folder):
    rows = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    known = [dict(paths(row)) for row in rows]
    found = {}
    for path in known[0]:
        kinds = {kinds.get(path) for kinds in known}
        if None in kinds:
            continue
        null, absent = (accepted(processing, changed(rows[0], path, drop)) for drop in (False, True))
        name = ".".join("last" if key == -1 else key for key in path)
        found[name] = {"types": sorted(kinds), "null": null, "absent": absent}
    return found


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("peft", type=Path)
    parser.add_argument("rows", type=Path, nargs="*")
    parser.add_argument("--keys", type=Path)
    args = parser.parse_args()
    folder = args.peft / "method_comparison"
    sys.path.insert(0, str(folder))
    import processing

    if args.keys:
        found = demands(processing, folder / TASK / "results")
        lines = (f"{json.dumps(name)}: {json.dumps(demand)}" for name, demand in found.items())
        args.keys.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    if args.rows:
        frame = load(processing, [json.loads(path.read_text()) for path in args.rows])
        shown = ["experiment_name", "peft_type", "test_accuracy", "num_trainable_params", "file_size", "train_time", "train_total_tokens"]
        print(frame[shown].to_string(index=False))
        if len(frame) != len(args.rows):
            sys.exit(f"the loader kept {len(frame)} of {len(args.rows)} rows")


if __name__ == "__main__":
    main()
