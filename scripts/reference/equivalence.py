"""Verdicts of Math-Verify for the rule `math/equivalence`, for tests/it/scoring.rs.

    python scripts/reference/equivalence.py pairs MATH-VERIFY/tests PAIRS.jsonl
    python scripts/reference/equivalence.py judge CASES.jsonl OUT.jsonl [--lines 43:5043] [--form 'The final answer is ${}$.']
    python scripts/reference/equivalence.py beside tests/it/fixtures/equivalence.jsonl

`pairs` collects every (gold, prediction, expected) of Math-Verify's own tests from a checkout, with the options that a test
sets as `options`. `judge` replaces the verdicts of `math/equivalence` in the output of `scoring.py` by those of the installed
Math-Verify; `--form` puts the boxed prediction into a sentence. `beside` adds Math-Verify's verdict to each written case.
Math-Verify needs antlr4-python3-runtime 4.13.2: with 4.11, which `scoring.py` needs for `minerva_math`, it does not parse
percent signs.
"""

import argparse
import ast
import json
import logging
import math
import warnings
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

GIVEN = {"gold", "pred", "expected", "result"}


def parametrized(path):
    """The rows of each `parametrize` of a test file that names a gold answer and a prediction."""
    for function in ast.parse(path.read_text()).body:
        for decorator in getattr(function, "decorator_list", []):
            if not ast.unparse(decorator).startswith("pytest.mark.parametrize("):
                continue
            names = [name.strip() for name in ast.literal_eval(decorator.args[0]).split(",")]
            if {"gold", "pred"} <= set(names):
                rows = eval(compile(ast.Expression(decorator.args[1]), str(path), "eval"), {"math": math})
                yield from (dict(zip(names, row)) for row in rows)


def pairs(folder):
    for path in sorted(Path(folder).glob("test_*.py")):
        for row in parametrized(path):
            case = {"rule": "math/equivalence", "completion": row["pred"], "gold": row["gold"]}
            case["correct"] = bool(row.get("expected", row.get("result")))
            options = {name: value for name, value in row.items() if name not in GIVEN}
            yield case | ({"options": options} if options else {})


def verdict(case):
    from math_verify import parse, verify

    try:
        return bool(verify(parse(case["gold"]), parse(case["completion"])))
    except Exception:
        return False


def judged(cases, form):
    for case in cases:
        if form:
            answer = case["completion"].removeprefix("\\boxed{").removesuffix("}")
            case["completion"] = form.replace("{}", answer)
        yield case | {"correct": verdict(case)}


def read(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def write(path, cases):
    Path(path).write_text("".join(json.dumps(case, ensure_ascii=False) + "\n" for case in cases))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["pairs", "judge", "beside"])
    parser.add_argument("source")
    parser.add_argument("out", nargs="?")
    parser.add_argument("--lines", help="of the cases of the rule, from:to")
    parser.add_argument("--form", help="a sentence with {} for the answer")
    arguments = parser.parse_args()
    if arguments.what == "pairs":
        write(arguments.out, pairs(arguments.source))
    elif arguments.what == "judge":
        cases = [case for case in read(arguments.source) if case["rule"] == "math/equivalence"]
        if arguments.lines:
            cases = cases[slice(*map(int, arguments.lines.split(":")))]
        write(arguments.out, judged(cases, arguments.form))
    else:
        write(arguments.source, [case | {"math_verify": verdict(case)} for case in read(arguments.source)])


main()
