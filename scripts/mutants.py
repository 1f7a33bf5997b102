#!/usr/bin/env python3
"""Mutation testing: changes the code in one place at a time and reports which changes the tests catch.

    scripts/mutants.py [--seed 0] [--count 90] [--only src/train,src/eval] [--again OUTPUT] [--config KEY=VALUE ...]

Comparisons, sums, numbers, truth values, statements and results of functions are drawn from the folders below `src/`
that FOLDERS names. All changes go into one build of a copy of the tree, each behind a switch that LORAXS_MUTANT turns
on, so that the crate is compiled once; those that do not compile are left out. Each is then tested with the tests that
FOLDERS names for its folder. A change that passes all tests is a survivor: if it matters, write a test for it.
"""

import argparse
import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# The tests of `tests/it` for each folder, beside the unit tests in it.
FOLDERS = {
    "src/train": "training:: decoder_training:: resume:: contract:: cli_runs:: metrics:: forked::",
    "src/eval": "metrics:: eval_generation:: parity:: cli_runs:: decoder_training:: forked::",
    "src/generate": "generation:: eval_generation:: generation_settings:: cli_decoders:: forked::",
    "src/adapters": "contract:: interchange:: svd:: training:: cli_runs:: cli_inputs:: forked::",
    "src/scoring": "scoring::",
    "src/session": "cli_runs:: dry_run:: resume:: cli_inputs:: interchange:: heads:: forked::",
}
SWITCH = """
/// Whether the change of this number is turned on.
#[doc(hidden)]
pub fn mutant(number: u32) -> bool {
    static ON: std::sync::LazyLock<Option<u32>> =
        std::sync::LazyLock::new(|| std::env::var("LORAXS_MUTANT").ok()?.parse().ok());
    *ON == Some(number)
}
"""
NAME = r"[A-Za-z_]\w*(?:\.\w+|::\w+|\(\)|\[\w+\])*"
VALUE = rf"(?:\d[\d_]*(?:\.\d+)?(?:e-?\d+)?|{NAME})"
BEFORE = r"(?<![\w.)\]*/+%-] )(?:(?<=[(|{=,] )|(?<=if )|(?<=while )|(?<=&& )|(?<=\|\| )|(?<=return )|(?<=[(\[])|(?<=^))"
AFTER = r"(?= \{| =>| &&| \|\||[),;\]]|$)"
OTHER = {
    "<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "==",
    "+": "-", "-": "+", "*": "/", "/": "*", "%": "/",
}


def changes(line, begins):
    """Ways to change a line: what they are called, and the line with `{on}` for the switch; `begins`: a statement does."""
    found = []

    def put(kind, match, other):
        if line[: match.start()].replace('\\"', "").count('"') % 2:
            return  # inside a text
        whole = match.group(0)
        text = f"(if {{on}} {{{{ {other} }}}} else {{{{ {whole} }}}})"
        start, end = (line[: match.start()], line[match.end() :])
        found.append((f"{kind}: `{whole}` → `{other}`", escaped(start) + text.replace(whole, escaped(whole)) + escaped(end)))

    for match in re.finditer(rf"{BEFORE}({VALUE}) (<=|>=|<|>|==|!=) ({VALUE}){AFTER}", line):
        left, sign, right = match.groups()
        put("comparison", match, f"{left} {OTHER[sign]} {right}")
    for match in re.finditer(rf"{BEFORE}({VALUE}) ([-+*/%]) ({VALUE}){AFTER}", line):
        left, sign, right = match.groups()
        put("sum", match, f"{left} {OTHER[sign]} {right}")
    for match in re.finditer(r"(?<=[ (\[])(\d+)(?=[),; \]]|$)", line):
        put("number", match, str(int(match.group(1)) + 1))
    for match in re.finditer(r"(?<=[ (])(true|false)(?=[),; ]|$)", line):
        put("truth", match, "false" if match.group(1) == "true" else "true")
    match = re.match(r"(\s*(?:\} else )?if )((?!let\b)[^{}]*?) (&&|\|\|) ([^{}]*)( \{)$", line)
    if match and not re.search(r"\blet\b|&&|\|\|", match.group(2) + match.group(4)):
        head, left, sign, right, tail = match.groups()
        other = "||" if sign == "&&" else "&&"
        text = f"(if {{on}} {{{{ {escaped(f'{left} {other} {right}')} }}}} else {{{{ {escaped(f'{left} {sign} {right}')} }}}})"
        found.append((f"logic: `{sign}` → `{other}` in `{left} {sign} {right}`", escaped(head) + text + escaped(tail)))
    match = re.match(r"(\s*)((?:self\.|\*)?[a-z_][\w.]*(?:\(.*\)\??| [-+*/]?= .*);)$", line)
    if match and begins and not re.match(r"\s*(let|return|use|break|continue|pub|const|static|type|assert)\b", line):
        indent, statement = match.groups()
        if statement.count("(") == statement.count(")"):
            found.append((f"statement left out: `{statement}`", f"{escaped(indent)}if !{{on}} {{{{ {escaped(statement)} }}}}"))
    match = re.match(r"\s*(?:pub(?:\([a-z]+\))? )?fn (\w+)\(.*\) -> (bool|usize|u64|i64|f64|String|(?:Vec|Option)<.*>) \{$", line)
    if match:
        found.append((f"nothing returned by `{match.group(1)}`", f"{escaped(line)} if {{on}} {{{{ return Default::default(); }}}}"))
    return found


def escaped(text):
    return text.replace("{", "{{").replace("}", "}}")


def candidates(tree, folder):
    """Every change of the code of a folder: file, line from 0, name, text with `{on}`."""
    found = []
    for path in sorted((tree / folder).rglob("*.rs")):
        code = re.split(r"^#\[cfg\(test\)\]", path.read_text(), flags=re.M)[0]
        before = "{"
        for number, line in enumerate(code.splitlines()):
            begins, before = before.endswith(("{", "}", ";")), line.split(" //")[0].rstrip() or before
            if re.match(r"\s*(//|#|use |const |static |pub const |pub static |mod |pub mod )", line):
                continue
            found += [(path, number, name, text) for name, text in changes(line, begins)]
    return found


def write(tree, chosen):
    """Puts the chosen changes into the tree."""
    files = {}
    for number, (path, line, _, text) in chosen.items():
        lines = files.setdefault(path, path.read_text().splitlines())
        lines[line] = text.format(on=f"crate::mutant({number})")
    for path, lines in files.items():
        path.write_text("\n".join(lines) + "\n")
    library = tree / "src/lib.rs"
    library.write_text(library.read_text() + SWITCH)


def cargo(tree, *args):
    command = ["cargo", *args]
    result = subprocess.run(command, cwd=tree, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    return result.returncode, [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")], result.stderr


def wrong_places(messages):
    """Files and lines that do not compile."""
    for message in messages:
        message = message.get("message")
        if isinstance(message, dict) and message.get("level") == "error":
            for span in message["spans"]:
                yield span["file_name"], span["line_start"] - 1


def compiled(tree, chosen, config):
    """Leaves out what does not compile, and builds the tests; returns the programs."""
    while True:
        subprocess.run(["git", "checkout", "-q", "--", "src"], cwd=tree, check=True)
        write(tree, chosen)
        code, messages, errors = cargo(tree, *config, "check", "--release", "--lib", "--message-format=json")
        if code == 0:
            break
        wrong = set(wrong_places(messages))
        left = {n: c for n, c in chosen.items() if (str(c[0].relative_to(tree)), c[1]) not in wrong}
        if len(left) == len(chosen):
            sys.exit(f"the changed tree does not compile:\n{errors}\n{sorted(wrong)}")
        chosen = left
    code, messages, errors = cargo(tree, *config, "test", "--release", "--no-run", "--message-format=json")
    if code != 0:
        sys.exit(errors)
    programs = {m["target"]["name"]: m["executable"] for m in messages if m.get("executable") and m.get("profile", {}).get("test")}
    unit = [m["executable"] for m in messages if m.get("executable") and "lib" in m.get("target", {}).get("kind", [])]
    return chosen, unit[0], programs["it"]


def passes(tree, program, filters, number, limit):
    """Whether a program's tests pass; a run that does not end counts as a failure."""
    environment = {**os.environ, "LORAXS_MUTANT": str(number)}
    try:
        result = subprocess.run(
            [program, *filters], cwd=tree, env=environment, timeout=limit, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    except subprocess.TimeoutExpired:
        return False, "no end"
    failed = re.search(r"^test (\S+) \.\.\. FAILED$", result.stdout, re.M)
    return result.returncode == 0, failed.group(1) if failed else f"exit {result.returncode}"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--count", type=int, default=90, help="changes drawn, equally from all folders")
    parser.add_argument("--only", default=",".join(FOLDERS), help="folders, separated by commas")
    parser.add_argument("--config", action="append", default=[], help="for cargo, such as profile.release.opt-level=1")
    parser.add_argument("--again", type=Path, help="output of an earlier run: only its survivors are tried")
    parser.add_argument("--list", action="store_true", help="print what would be changed, and stop")
    args = parser.parse_args()

    tree = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "mutants"
    subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT, stderr=subprocess.DEVNULL)
    subprocess.run(["git", "worktree", "add", "-q", "--detach", str(tree)], cwd=ROOT, check=True)
    if (ROOT / ".cargo").exists():
        shutil.copytree(ROOT / ".cargo", tree / ".cargo", dirs_exist_ok=True)
    try:
        tried(args, tree)
    finally:
        subprocess.run(["git", "worktree", "remove", "--force", str(tree)], cwd=ROOT)


def tried(args, tree):
    draw, chosen, folders = random.Random(args.seed), {}, args.only.split(",")
    for folder in folders:
        found = candidates(tree, folder)
        draw.shuffle(found)
        taken = set()
        # More than are wanted, because some do not compile
        for change in found:
            if (change[0], change[1]) not in taken and len(taken) < 1.6 * args.count / len(folders):
                taken.add((change[0], change[1]))
                chosen[len(chosen) + 1] = change
    if args.list:
        for path, line, name, text in chosen.values():
            print(f"{path.relative_to(tree)}:{line + 1}: {name}\n    {text}")
        return
    config = [part for value in args.config for part in ("--config", value)]
    chosen, unit, whole = compiled(tree, chosen, config)
    print(f"{len(chosen)} changes compile")
    survivors, counts = [], {folder: [0, 0] for folder in folders}
    earlier = args.again.read_text() if args.again else None
    again = lambda change: earlier is None or f"{change}: SURVIVED\n" in earlier  # noqa: E731
    limits = {}
    for folder in folders:
        start = time.monotonic()
        module = folder.removeprefix("src/") + "::"
        for program, filters in [(unit, [module]), (whole, FOLDERS[folder].split())]:
            passed, why = passes(tree, program, filters, 0, 900)
            if not passed:
                sys.exit(f"without a change, {why} fails")
        limits[folder] = 5 * (time.monotonic() - start) + 20
    for number, (path, line, name, _) in chosen.items():
        place = path.relative_to(tree)
        folder = next(folder for folder in folders if str(place).startswith(folder + "/"))
        if counts[folder][0] >= args.count / len(folders) or not again(f"{place}:{line + 1}: {name}"):
            continue
        module = folder.removeprefix("src/") + "::"
        caught = None
        for program, filters in [(unit, [module]), (whole, FOLDERS[folder].split())]:
            passed, why = passes(tree, program, filters, number, limits[folder])
            if not passed:
                caught = why
                break
        counts[folder][0] += 1
        counts[folder][1] += caught is not None
        print(f"{place}:{line + 1}: {name}: {f'caught by {caught}' if caught else 'SURVIVED'}", flush=True)
        if not caught:
            survivors.append(f"{place}:{line + 1}: {name}")
    print("\n| folder | changes | caught |\n|---|---|---|")
    for folder, (tried_there, caught) in counts.items():
        print(f"| `{folder}` | {tried_there} | {caught} |")
    every, caught = (sum(count[i] for count in counts.values()) for i in (0, 1))
    print(f"| all | {every} | {caught} ({100 * caught / max(every, 1):.0f} %) |\n")
    print("\n".join(survivors))


if __name__ == "__main__":
    main()
