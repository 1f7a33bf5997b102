#!/usr/bin/env python3
"""LoRA-XS on a real language model, by `loraxs` and by PEFT: trained, scored before and after, as Markdown tables.

    python scripts/reference/smollm2.py --model smollm2-135m-instruct --data DATA --loraxs target/release/loraxs --out runs/smollm2

The recipes `smollm2-commonsense` and `smollm2-metamath` are trained by `loraxs` and, as the resolved recipe of that run says, by
`smollm2_peer.py` on Transformers and PEFT; base and both results answer the same prompts greedily in bf16. The same rules judge
both: those of this script, which must give the verdicts that `loraxs` gives. Beside that twenty steps in fp32, whose
losses are compared, and the exported adapter: merged folder and plain LoRA answer in Transformers and PEFT as in `loraxs`.
Results in OUT are not computed again, so an interrupted call can be continued. --parts selects among `train`, `score`,
`fp32` and `export`; the tables show what is there. Memory is the largest resident set that the kernel reports for a process.
DATA holds commonsense/train.jsonl.gz, commonsense/test/*.json, metamath/surrogate_gsm8k_math_train.jsonl and gsm8k/test.jsonl.
Needs: Python's standard library; for the peer torch 2.11, transformers 5.23, peft 0.21, scikit-learn 1.9.
"""

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path

from peer_compare import measured

HERE = Path(__file__).resolve().parent
RECIPES = {"commonsense": "smollm2-commonsense", "metamath": "smollm2-metamath"}
FILES = {  # data set: split, file
    "commonsense-170k": ("train", "commonsense/train.jsonl.gz"),
    "metamathqa": ("train", "metamath/surrogate_gsm8k_math_train.jsonl"),
    "commonsense/boolq": ("test", "commonsense/test/boolq.json"),
    "commonsense/piqa": ("test", "commonsense/test/piqa.json"),
    "commonsense/social_i_qa": ("test", "commonsense/test/social_i_qa.json"),
    "commonsense/arc-easy": ("test", "commonsense/test/ARC-Easy.json"),
    "gsm8k": ("test", "gsm8k/test.jsonl"),
}
LABELS = {
    "commonsense/boolq": "true|false",
    "commonsense/piqa": "solution1|solution2",
    "commonsense/social_i_qa": "answer[1-5]",
    "commonsense/arc-easy": "answer[1-5]",
}
TASKS = {"commonsense": list(LABELS), "metamath": ["gsm8k"]}
SIDES = ("loraxs", "peft")


def number(text):
    """The number after the last `The answer is: `, rounded, as MetaMath's `eval_gsm8k.py` reads it."""
    found = re.search(r"[\-+]?\d*[\.,/]?\d+", text.rpartition("The answer is: ")[2].strip())
    if "The answer is: " not in text or not found:
        return None
    above, _, below = found.group().replace(",", "").partition("/")
    try:
        return round(float(above) / (1 if below in ("", "0") else float(below)))
    except (ValueError, OverflowError, ZeroDivisionError):
        return None


def flexible(text):
    """The last number of a text, as `flexible-extract` of lm-evaluation-harness reads it."""
    found = re.findall(r"(-?[$0-9.,]{2,})|(-?[0-9]+)", text)
    return plain(max(found[-1])) if found else None


def plain(text):
    return re.sub(r"\.$", "", re.sub(r"(?s).*#### ", "", text.strip().replace(",", "").replace("$", "")))


def verdicts(task, record):
    """Whether each rule takes a completion for right."""
    text, gold = record["completion"], record["gold"]
    if task != "gsm8k":
        found = re.search(LABELS[task], text)
        return {task: bool(found) and found.group() == gold.strip()}
    return {
        "gsm8k/metamath": number(text) == float(gold.split("#### ")[1].replace(",", "")),
        "gsm8k/flexible": flexible(text) == plain(gold),
    }


def lines(path):
    with open(path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def catalog(data):
    """The data sets over local files; JSON's strings are TOML's, too."""
    text = "# Written by scripts/reference/smollm2.py.\n"
    for name, (split, file) in FILES.items():
        path = json.dumps(str(data.resolve() / file))
        text += f"\n[{json.dumps(name)}]\nlike = {json.dumps(name)}\nfiles = {{ {split} = {path} }}\n"
    return text


class Work:
    """The commands, each with its folder below OUT, where what is done already is not done again."""

    def __init__(self, options):
        self.options, self.out = options, options.out.resolve()
        self.model, self.datasets = options.model.resolve(), self.out / "datasets.toml"
        self.out.mkdir(parents=True, exist_ok=True)
        self.datasets.write_text(catalog(options.data))

    def run(self, made, command):
        """Runs a command that makes the file `made`, and keeps what it took."""
        took = self.out / "took" / f"{made.relative_to(self.out).as_posix().replace('/', '-')}.json"
        if took.exists():
            return
        took.parent.mkdir(exist_ok=True)
        made.parent.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        memory = measured(list(map(str, command)), took.with_suffix(".log"))
        seconds = time.perf_counter() - start
        took.write_text(json.dumps({"seconds": seconds, "memory": memory}) + "\n")
        print(f"{made.relative_to(self.out)}: {seconds:.0f} s, {memory:.0f} MiB", file=sys.stderr, flush=True)

    def took(self, made):
        return json.loads((self.out / "took" / f"{made.relative_to(self.out).as_posix().replace('/', '-')}.json").read_text())

    def loraxs(self, made, *arguments):
        shared = ["--datasets", self.datasets, "--device", "cpu", "--threads", self.options.threads, "--offline"]
        self.run(made, [self.options.loraxs.resolve(), *arguments, *shared])

    def peer(self, made, job, *arguments):
        shared = ["--datasets", self.datasets, "--threads", self.options.threads]
        self.run(made, [self.options.python, HERE / "smollm2_peer.py", job, *arguments, *shared])

    def train(self, kind, folder, *sets):
        """Both trainings of a recipe: the run folder, and the peer's."""
        run, peer = folder / "loraxs", folder / "peft"
        sets = [f"model.name={self.model}", *sets, *self.options.set]
        arguments = ["train", "--recipe", RECIPES[kind], "--out", run, "--resume"]
        self.loraxs(run / "results.json", *arguments, *(word for set in sets for word in ("--set", set)))
        arguments = ["--recipe", run / "recipe.toml", "--model", self.model, "--out", peer]
        arguments += ["--factors", self.out / "factors.safetensors"]
        self.peer(peer / "summary.json", "train", *arguments)

    def answers(self, side, subject, task):
        """The file of the answers of a subject (`base` or a recipe) by one side."""
        place = self.out / "scores" / subject / side
        return place / task / "predictions" / f"{task}.jsonl" if side == "loraxs" else place / f"{task}.jsonl"

    def score(self, subject, task):
        limit, new_tokens = self.options.limit, 32
        if task == "gsm8k":
            limit, new_tokens = self.options.gsm8k_limit, self.options.new_tokens
        shared = ["--task", task, "--limit", limit, "--max-new-tokens", new_tokens, "--precision", "bf16"]
        ours, theirs = (self.answers(side, subject, task) for side in SIDES)
        source = ["--model", self.model] if subject == "base" else ["--run", self.out / subject / "loraxs"]
        self.loraxs(ours, "eval", *source, *shared, "--split", "test", "--beams", 1, "--out", ours.parents[1 + task.count("/")])
        source = self.model if subject == "base" else self.out / subject / "peft" / "merged"
        self.peer(theirs, "answer", "--model", source, *shared, "--batch-size", self.options.batch_size, "--out", theirs)

    def export(self, kind):
        """Exports of the trained adapter, and whether they answer in Transformers and PEFT as in `loraxs`."""
        place, run = self.out / "export", ["--run", self.out / kind / "loraxs"]
        # A large ΔW beside small weights: one rounding of their sum moves the logits further than `merge` takes by itself.
        forms = {
            "merged": ["--tolerance", "0.5"],
            "merged-fp32": ["--dtype", "fp32", "--tolerance", "1e-3"],
            "lora": ["--format", "peft", "--tolerance", "1e-3"],
        }
        for form, more in forms.items():
            self.loraxs(place / form / "config.json", "merge", *run, "--out", place / form, *more)
        subjects = {"fp32": run, "bf16": ["--model", place / "merged"]}
        for precision, subject in subjects.items():
            for task, new_tokens in (("commonsense/boolq", 32), ("gsm8k", 64)):
                answers = place / precision / task / "predictions" / f"{task}.jsonl"
                more = ["--limit", self.options.exported, "--max-new-tokens", new_tokens, "--beams", 1, "--split", "test"]
                more += ["--precision", precision, "--out", answers.parents[1 + task.count("/")]]
                self.loraxs(answers, "eval", *subject, "--task", task, *more)
                check = [self.options.python, HERE / "decoder_export_check.py", "--base", self.model, "--answers", answers]
                check += ["--precision", {"fp32": "float32", "bf16": "bfloat16"}[precision]]
                check += ["--threads", self.options.threads]
                check += ["--merged", place / ("merged-fp32" if precision == "fp32" else "merged")]
                check += ["--peft", place / "lora"] if precision == "fp32" else []
                self.run(place / precision / task / "check", check)


def strays(ours, theirs):
    """The largest difference of two losses of a step, relative to the peer's."""
    return max(abs(a["loss"] / b["loss"] - 1) for a, b in zip(ours, theirs, strict=True))


def steps(folder):
    """The steps of both trainings in a folder."""
    ours = [line for line in lines(folder / "loraxs" / "metrics.jsonl") if line["kind"] == "train"]
    return ours, lines(folder / "peft" / "steps.jsonl")


def mean(part):
    return sum(line["loss"] for line in part) / len(part)


def show_training(work):
    print("| recipe | side | rows | tokens | seconds | tokens/s | examples/s | peak MiB | loss, first and last tenth |")
    print("|---|---|---|---|---|---|---|---|---|")
    for kind, name in RECIPES.items():
        folder = work.out / kind
        if not (folder / "peft" / "summary.json").exists():
            continue
        ours, theirs = steps(folder)
        rates = max(abs(a["learning_rate"] - b["learning_rate"]) for a, b in zip(ours, theirs, strict=True))
        assert rates < 1e-9, "the learning rates are not the same"
        results, summary = (json.loads((folder / path).read_text()) for path in ("loraxs/results.json", "peft/summary.json"))
        seconds, tokens = results["train_seconds"], results["tokens_per_second"] * results["train_seconds"]
        assert abs(tokens / summary["tokens"] - 1) < 1e-6, f"{tokens} tokens, the peer {summary['tokens']}"
        speeds = {"loraxs": (seconds, "results.json", ours), "peft": (summary["seconds"], "summary.json", theirs)}
        for side, (seconds, made, part) in speeds.items():
            tenth, memory = math.ceil(len(part) / 10), work.took(folder / side / made)["memory"]
            print(f"| {name} | {side} | {summary['examples']:,} | {summary['tokens']:,} | {seconds:.0f} ", end="")
            print(f"| {summary['tokens'] / seconds:.1f} | {summary['examples'] / seconds:.2f} | {memory:,.0f} ", end="")
            print(f"| {mean(part[:tenth]):.4f}, {mean(part[-tenth:]):.4f} |")
        print(f"\n{name}: {summary['seconds'] / speeds['loraxs'][0]:.2f} times the speed; losses of the first 20 steps within ", end="")
        print(f"{strays(ours[:20], theirs[:20]):.1e}; {summary['computed'] / summary['tokens']:.3f} padded tokens for one.\n")


def judged(task, path):
    """Right answers by rule; where the records hold the verdicts of `loraxs`, they are the same."""
    records = lines(path)
    found = [verdicts(task, record) for record in records]
    for record, own in zip(records, found):
        theirs = {rule: judged["correct"] for rule, judged in record.get("verdicts", {}).items() if rule in own}
        assert theirs == {rule: own[rule] for rule in theirs}, f"{path}: other verdicts of row {record['index']}"
    return {rule: [own[rule] for own in found] for rule in found[0]}


def percent(right):
    share = sum(right) / len(right)
    return f"{100 * share:.1f} ± {100 * math.sqrt(share * (1 - share) / max(len(right) - 1, 1)):.1f}"


def show_scores(work):
    print("| rule | rows | base, loraxs | base, Transformers | LoRA-XS, loraxs | LoRA-XS, PEFT | equal answers, base | trained |")
    print("|---|---|---|---|---|---|---|---|")
    for kind, tasks in TASKS.items():
        for task in tasks:
            paths = [work.answers(side, subject, task) for subject in ("base", kind) for side in SIDES]
            if not all(path.exists() for path in paths):
                continue
            cells = [judged(task, path) for path in paths]
            texts = [{line["index"]: line["completion"] for line in lines(path)} for path in paths]
            equal = [sum(a[i] == b[i] for i in b) / len(b) for a, b in (texts[:2], texts[2:])]
            for rule in cells[0]:
                right = " | ".join(percent(cell[rule]) for cell in cells)
                print(f"| {rule} | {len(texts[0])} | {right} | {100 * equal[0]:.0f} % | {100 * equal[1]:.0f} % |")
    print("\nScores in percent ± standard error.\n\n| prompts | of | loraxs, seconds | Transformers, seconds |\n|---|---|---|---|")
    for kind, tasks in TASKS.items():
        for subject in ("base", kind):
            for task in tasks:
                ours, theirs = (work.answers(side, subject, task) for side in SIDES)
                if ours.exists() and theirs.exists():
                    spent = json.loads((ours.parents[1 + task.count("/")] / "results.json").read_text())[task]["seconds"]
                    print(f"| {task} | {subject} | {spent:.0f} | {sum(line['seconds'] for line in lines(theirs)):.0f} |")


def show_checks(work):
    for kind in RECIPES:
        folder = work.out / "fp32" / kind
        if (folder / "peft" / "summary.json").exists():
            ours, theirs = steps(folder)
            print(f"\n{RECIPES[kind]} in fp32: losses of {len(ours)} steps within {strays(ours, theirs):.1e}")
    for path in sorted((work.out / "took").glob("export-*-check.log")):
        found = [line for line in path.read_text().splitlines() if line.endswith("answers are equal")]
        print(f"\n{path.stem.removesuffix('-check')}:", *found, sep="\n")


def do(work, part, kinds):
    short = ["train.precision=fp32", f"train.max_steps={work.options.fp32_steps}"]
    short += ["train.batch_size=4", "train.micro_batch_size=4"]
    for kind in kinds:
        if part == "train":
            work.train(kind, work.out / kind)
        elif part == "fp32":
            work.train(kind, work.out / "fp32" / kind, *short)
        for task in TASKS[kind] if part == "score" else []:
            work.score("base", task)
            work.score(kind, task)
    if part == "export":
        work.export(kinds[0])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument("--loraxs", type=Path, default=Path("target/release/loraxs"), help="the binary")
    parser.add_argument("--python", default=sys.executable, help="the Python that runs the peer")
    parser.add_argument("--out", type=Path, required=True, help="folder of everything that is made")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--parts", default="train,score,fp32,export", help="what is done, in this order")
    parser.add_argument("--kinds", default=",".join(RECIPES), help="which recipes")
    parser.add_argument("--limit", type=int, default=300, help="first rows of each commonsense set")
    parser.add_argument("--gsm8k-limit", type=int, default=300, help="first rows of GSM8K, 0 = all")
    parser.add_argument("--new-tokens", type=int, default=256, help="limit of an answer to GSM8K")
    parser.add_argument("--batch-size", type=int, default=32, help="prompts in a batch of the peer")
    parser.add_argument("--fp32-steps", type=int, default=20)
    parser.add_argument("--exported", type=int, default=20, help="prompts that check the exports")
    parser.add_argument("--set", action="append", default=[], help="override a key of both recipes")
    options = parser.parse_args()
    work, kinds, parts = Work(options), options.kinds.split(","), options.parts.split(",")
    try:
        for part in parts:
            do(work, part, kinds)
    finally:
        show_training(work)
        show_scores(work)
        show_checks(work)


if __name__ == "__main__":
    main()
