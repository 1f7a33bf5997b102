"""Verdicts of the published scoring scripts, for tests/it/scoring.rs.

Runs lm-evaluation-harness, Math-Verify and the functions of three checkouts (MetaMath, LoRA-XS, LLM-Adapters) over the
gold answers of GSM8K and MATH against themselves, against perturbed answers and against each other, and over written
cases. Each line of the output is a case: rule, completion, gold, what the reference extracts, whether it is correct.

    python scripts/reference/scoring.py DATA ALL.jsonl --metamath DIR --loraxs DIR --llm-adapters DIR
    python scripts/reference/scoring.py ALL.jsonl tests/it/fixtures/scoring.jsonl --sample 22

DATA holds gsm8k/ and math/ as JSON lines. `--pairs FILE` adds [gold, predicted] pairs of answers, one JSON list per line.
SymPy's LaTeX parser, which minerva_math uses, needs antlr4-python3-runtime 4.11. The verdicts of Math-Verify in the output are
therefore replaced by `equivalence.py judge`, in an environment with 4.13.2.
"""

import argparse
import ast
import json
import logging
import random
import re
import warnings
from fractions import Fraction
from pathlib import Path

warnings.filterwarnings("ignore")
logging.disable(logging.CRITICAL)

SEED = 20240611
DELIMITER = "The answer is: "


def functions_of(path, names, given):
    """The functions of a script without running the script."""
    tree = ast.parse(Path(path).read_text())
    wanted = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in names]
    scope = dict(given)
    exec(compile(ast.Module(body=wanted, type_ignores=[]), str(path), "exec"), scope)
    return scope


def outcome(function, *arguments):
    """The value of a function; nothing where it raises, as where a script would stop."""
    try:
        return function(*arguments)
    except Exception:
        return None


class References:
    def __init__(self, arguments):
        from lm_eval.filters.extraction import RegexFilter
        from lm_eval.api.metrics import exact_match_hf_evaluate
        from lm_eval.tasks.hendrycks_math import utils as hendrycks
        from lm_eval.tasks.minerva_math import utils as minerva

        self.hendrycks, self.minerva, self.exact_match = hendrycks, minerva, exact_match_hf_evaluate
        self.strict = RegexFilter(regex_pattern=r"#### (\-?[0-9\.\,]+)")
        self.flexible = RegexFilter(regex_pattern=r"(-?[$0-9.,]{2,})|(-?[0-9]+)", group_select=-1)
        numbers = {"re": re, "Fraction": Fraction}
        self.number = functions_of(
            f"{arguments.metamath}/eval_gsm8k.py", {"is_number", "extract_answer_number"}, numbers
        )["extract_answer_number"]
        util = {}
        exec(Path(f"{arguments.metamath}/util.py").read_text(), util)
        self.util = util
        self.boxed = functions_of(f"{arguments.metamath}/eval_math.py", {"remove_boxed"}, {})["remove_boxed"]
        self.process = functions_of(
            f"{arguments.metamath}/eval_math.py",
            {"process_results"},
            {"util": type("util", (), util), "invalid_outputs": []},
        )["process_results"]
        choices = functions_of(f"{arguments.llm_adapters}/commonsense_evaluate.py", {"extract_answer"}, {"re": re})
        self.choice = choices["extract_answer"]
        last = functions_of(f"{arguments.llm_adapters}/evaluate.py", {"extract_answer_number"}, {"re": re})
        self.last_number = last["extract_answer_number"]
        numeric = functions_of(f"{arguments.loraxs}/instruction_tuning_eval/grader.py", {"is_digit", "math_equal"},
                               {"isclose": __import__("math").isclose, "Union": __import__("typing").Union})
        self.math_equal = numeric["math_equal"]

    def gsm8k(self, completion, gold):
        for rule, regex in [("gsm8k/strict", self.strict), ("gsm8k/flexible", self.flexible)]:
            found = regex.apply([[completion]], [{}])[0][0]
            score = self.exact_match(
                predictions=[found], references=[gold], ignore_case=True, ignore_punctuation=False,
                regexes_to_ignore=[",", r"\$", r"(?s).*#### ", r"\.$"],
            )["exact_match"]
            yield rule, None if found == "[invalid]" else found, bool(score)
        number = outcome(self.number, completion)
        target = int(gold.split("#### ")[1].replace(",", ""))
        shown = None if number is None else str(number)
        yield "gsm8k/metamath", shown, number is not None and float(number) == float(target)
        yield ("gsm8k/loraxs", shown,
               number is not None and (float(number) == float(target) or self.math_equal(number, target)))
        last = outcome(self.last_number, type("args", (), {"dataset": "AddSub"}), completion)
        right = last is not None and abs(float(gold.split("####")[1].replace(",", "")) - last) <= 0.001
        yield "gsm8k/llm-adapters", ..., right

    def math(self, predicted, gold):
        """Each rule gets the answer in the form in which it looks for it; `gold` is a solution."""
        from math_verify import parse, verify

        completion = f"So we have it. {DELIMITER}{predicted}"
        answer = outcome(lambda: self.boxed(self.util["last_boxed_only_string"](gold)))
        yield "math/metamath", completion, ..., bool(outcome(self.process, "", completion, answer))
        completion = f"It is ${predicted}$"
        # The harness stops where a gold answer has no box that it can open.
        right = outcome(self.hendrycks.process_results, {"solution": gold}, [completion])
        yield "math/is_equiv", completion, ..., bool(right and right["exact_match"])
        completion = f"Final Answer: The final answer is ${predicted}$. I hope it is correct."
        found = self.minerva.normalize_final_answer(self.minerva.get_unnormalized_answer(completion))
        answer = outcome(lambda: self.minerva.normalize_final_answer(
            self.minerva.remove_boxed(self.minerva.last_boxed_only_string(gold))))
        shown = None if found == "[invalidanswer]" else found
        yield "math/minerva", completion, shown, answer is not None and self.minerva.is_equiv(found, answer)
        completion = f"\\boxed{{{predicted}}}"
        yield "math/equivalence", completion, ..., bool(verify(parse(gold), parse(completion)))


def perturbed(answer, draw):
    """Another writing of an answer, or another answer."""
    def digit(text):
        places = [i for i, c in enumerate(text) if c.isdigit()]
        if not places:
            return text + "1"
        place = draw.choice(places)
        return text[:place] + str((int(text[place]) + draw.randint(1, 9)) % 10) + text[place + 1:]

    def swapped(text):
        parts = text.strip("()").split(",")
        return "(" + ",".join(reversed(parts)) + ")" if len(parts) > 1 else text + ",1"

    def decimal(text):
        match = re.fullmatch(r"(-?)\\[dt]?frac\{(\d+)\}\{(\d+)\}", text)
        if match and int(match[3]):
            return f"{match[1]}{int(match[2]) / int(match[3])}"
        return text + ".0" if text.isdigit() else text

    def slash(text):
        return re.sub(r"\\[dt]?frac\{(\w+)\}\{(\w+)\}", r"\1/\2", text)

    def grouped(text):
        return re.sub(r"\d{4,}", lambda match: f"{int(match[0]):,}", text)

    def braceless(text):
        places = [i for i, c in enumerate(text) if c in "{}"]
        if not places:
            return text + "}"
        place = draw.choice(places)
        return text[:place] + text[place + 1:]

    ways = [
        digit, digit, swapped, decimal, slash, grouped, braceless,
        lambda text: "-" + text,
        lambda text: text.lstrip("-"),
        lambda text: text.replace("\\frac", "\\dfrac"),
        lambda text: text.replace("\\frac", "\\tfrac"),
        lambda text: text.replace("dfrac", "frac"),
        lambda text: re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", text),
        lambda text: re.sub(r"\\sqrt\{(\d)\}", r"\\sqrt\1", text),
        lambda text: text.replace(",", ", ").replace("+", " + "),
        lambda text: text.replace(" ", ""),
        lambda text: text + "\\text{ units}",
        lambda text: text + "\\text{ cm}^2",
        lambda text: text + "^\\circ",
        lambda text: text + "\\%",
        lambda text: "\\$" + text,
        lambda text: "x = " + text,
        lambda text: "x=" + text,
        lambda text: text.replace("(", "[").replace(")", "]"),
        lambda text: text.replace("(", "\\left(").replace(")", "\\right)"),
        lambda text: text.replace("\\left", "").replace("\\right", ""),
        lambda text: text + ".",
        lambda text: text + " + 1",
        lambda text: "2 \\cdot " + text,
        lambda text: "\\{" + text + "\\}",
        lambda text: "\\text{" + text + "}",
        lambda text: text.replace("0.", "."),
        lambda text: text.replace("x", "y"),
        lambda text: text + "\n",
        lambda text: text[: len(text) // 2],
        lambda text: text[::-1],
    ]
    return draw.choice(ways)(answer)


GSM8K_FORMS = [
    "{work}\n#### {answer}", "{work}\n#### ${answer}", "so #### {answer}.", "#### {answer}..", "#### {answer}.0",
    "#### {answer},00", "The answer is: {answer}", "The answer is: ${answer}.", "The answer is: {answer}/1 or 7",
    "The answer is: {answer},234,567", "it is {answer} dollars", "#### {answer}\n#### 5", "The answer is: ",
    "no answer", "The answer is: {answer}.5", "The answer is: 7/0", "The answer is: -{answer}", "The answer is:{answer}",
    "The answer is: {answer}.\nThe answer is: 12 apples", "{answer} is it, the 1st of 2.", "..,, {answer} ..",
    "The answer is: {answer}00", "The answer is: 0.{answer}", "#### -{answer}", "####{answer}", "$ {answer} $.",
    "The answer is: {answer}/2", "The answer is: /{answer}", "The answer is: +{answer}", "The answer is: 1/{answer}",
]

WRITTEN = [
    (r"\tfrac{1}{2} + \frac1{72}", r"\\frac{1}{2} + 2/3"), ("10, 4, -2", "4, 10, -2"), (r"10\text{ units}", "10 "),
    (r"\tfrac{1}{2} +\! \frac1{72}", r"\\dfrac{1}{2} +\frac{1}{72}"), ("10", r"\$10"), ("0.1", ".1"), (r"10\%", "10"),
    (r"\left(x-2\right)\left(x+2\right)", "(x-2)(x+2)"), (r"10\sqrt{3} + \sqrt4", r"10\sqrt3 + \sqrt{4}"),
    (r"\frac34i", r"\frac{3}{4}i"), (r"\tfrac83", r"\frac{8}{3}"), ("1/2", r"\frac{1}{2}"), ("5", "x=5"),
    ("1000", "1,000"), ("0.5", r"\frac12"), ("x/2", "x/2"), (r"\frac", r"\frac"), (r"\frac1", r"\frac1"),
    (r"\sqrt", "2"), ("01/2", "01/2"), ("a=b=2", "2"), (r"2\text{ a}\text{ b}", "2"), ("", "0"),
    (r"\frac{1}{3}", "0.333333"), (r"\frac{1}{3}", "0.33"), ("(1,2)", "[1,2]"), (r"\{1,2\}", r"\{2,1\}"),
    (r"1\frac{1}{2}", r"\frac{3}{2}"), (r"(-\infty, 2)\cup(3,\infty)", r"(3,\infty)\cup(-\infty,2)"),
    (r"x^2-1", "(x-1)(x+1)"), (r"\sin^2 x+\cos^2 x", "1"), (r"\sqrt{8}", r"2\sqrt{2}"), (r"\frac{1}{\sqrt2}", r"\frac{\sqrt2}{2}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"), (r"1\pm\sqrt{2}", r"1+\sqrt{2}, 1-\sqrt{2}"),
    (r"\begin{pmatrix}1\\2\end{pmatrix}", r"\begin{pmatrix}1\\3\end{pmatrix}"), (r"5!", "120"), (r"\log_2 8", "3"),
    (r"|{-3}|", "3"), (r"e^{i\pi}", "-1"), (r"3.0\times10^{4}", "30000"), (r"y=2x+1", r"y=1+2x"), (r"2x+1", "y=2x+1"),
]

CHOICES = {
    "boolq": ("true", ["the correct answer is true", "false, not true", "untrue", "True", ""]),
    "piqa": ("solution1", ["the correct answer is solution1", "solution2 or solution1", "solution12", "solution3"]),
    "social_i_qa": ("answer2", ["the correct answer is answer2", "answer1 answer2", "answer25", "answer6", "2"]),
    "hellaswag": ("ending3", ["the correct answer is ending3", "ending4", "ending5 ending3", "ending"]),
    "winogrande": ("option2", ["the correct answer is option2", "option1option2", "option 2"]),
    "ARC-Easy": ("answer4", ["the correct answer is answer4", "answer5", "Answer4"]),
    "openbookqa": ("answer1", ["the correct answer is answer1", "\nanswer1.", "a nswer1"]),
}


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def cases(references, arguments, draw):
    answers = [row["answer"] for split in ("train", "test") for row in rows(f"{arguments.data}/gsm8k/{split}.jsonl")]
    texts = [(answer, answer) for answer in answers]
    for answer in draw.choices(answers, k=5000):
        work, number = answer.split("\n#### ")
        given = number if draw.random() < 0.7 else str(draw.randint(0, 3000))
        texts.append((draw.choice(GSM8K_FORMS).replace("{work}", work[-80:]).replace("{answer}", given), answer[-60:]))
    for completion, gold in texts:
        for rule, found, right in references.gsm8k(completion, gold):
            yield rule, completion, gold, found, right

    for dataset, (label, completions) in CHOICES.items():
        for completion in completions:
            found = references.choice(type("args", (), {"dataset": dataset}), completion)
            name = "arc" if dataset.startswith("ARC") else dataset
            yield f"commonsense/{name}", completion, label, found or None, found == label

    solutions = [row["solution"] for split in ("train", "test") for row in rows(f"{arguments.data}/math/{split}.jsonl")]
    hendrycks = references.hendrycks
    golds = [outcome(lambda: hendrycks.remove_boxed(hendrycks.last_boxed_only_string(text))) for text in solutions]
    golds = [gold for gold in golds if gold]
    pairs = list(WRITTEN)
    pairs += [(gold, perturbed(gold, draw)) for gold in draw.choices(golds, k=5000)]
    pairs += [(draw.choice(golds), draw.choice(golds)) for _ in range(1000)]
    pairs += [(gold, gold) for gold in golds]
    if arguments.pairs:
        pairs += [tuple(pair) for pair in rows(arguments.pairs)]
    for gold, predicted in pairs:
        gold = f"\\boxed{{{gold}}}"
        for rule, completion, found, right in references.math(predicted, gold):
            yield rule, completion, gold, found, right


def sample(path, count, draw):
    """Lines of `path`: of every rule `count` right and `count` wrong cases, none twice, none long."""
    groups = {}
    for line in sorted({line for line in Path(path).read_text().splitlines(keepends=True) if len(line) < 260}):
        case = json.loads(line)
        groups.setdefault((case["rule"], case["correct"]), []).append(line)
    for lines in groups.values():
        yield from sorted(draw.sample(lines, min(count, len(lines))))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("out")
    parser.add_argument("--metamath")
    parser.add_argument("--loraxs")
    parser.add_argument("--llm-adapters")
    parser.add_argument("--pairs", help="more pairs of answers")
    parser.add_argument("--sample", type=int, help="of an earlier output, this many right and wrong short cases a rule")
    arguments = parser.parse_args()
    draw = random.Random(SEED)
    if arguments.sample:
        Path(arguments.out).write_text("".join(sample(arguments.data, arguments.sample, draw)))
        return
    with open(arguments.out, "w") as out:
        for rule, completion, gold, found, right in cases(References(arguments), arguments, draw):
            case = {"rule": rule, "completion": completion, "gold": gold, "correct": right}
            if found is not ...:
                case["extracted"] = found
            out.write(json.dumps(case) + "\n")


main()
