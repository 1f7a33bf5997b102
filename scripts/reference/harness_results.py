#!/usr/bin/env python3
"""Results files as lm-evaluation-harness writes them, in `tests/it/fixtures/harness/`.

    pip install lm_eval==0.4.13                     (torch 2.11.0, transformers 5.24.0)
    python3 scripts/reference/harness_results.py tests/it/fixtures/harness

The harness scores a stand-in for a model, which always answers alike, on two tasks of a few sums: one by generation with two filters,
one by choice. What differs from call to call (time, machine, paths) is replaced.
"""

import json
import sys
import tempfile
from pathlib import Path

from lm_eval import simple_evaluate
from lm_eval.api.model import LM
from lm_eval.loggers import EvaluationTracker
from lm_eval.tasks import TaskManager

GENERATION = """
task: sums
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}, train: {rows}}}}}
test_split: test
fewshot_split: train
output_type: generate_until
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_target: "{{{{answer}}}}"
num_fewshot: 2
filter_list:
  - name: strict-match
    filter: [{{function: regex, regex_pattern: "#### (\\\\-?[0-9]+)"}}, {{function: take_first}}]
  - name: flexible-extract
    filter: [{{function: regex, group_select: -1, regex_pattern: "(-?[0-9]+)"}}, {{function: take_first}}]
metric_list: [{{metric: exact_match, aggregation: mean, higher_is_better: true}}]
"""
CHOICE = """
task: sums_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: ["4", "5", "6"]
doc_to_target: "{{{{['4', '5', '6'].index(answer)}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
# Times, machines, versions and paths.
REPLACED = ("date", "pretty_env_info", "transformers_version", "upper_git_hash", "git_hash", "start_time", "end_time", "task_hashes",
            "tokenizer_pad_token", "tokenizer_eos_token", "tokenizer_bos_token", "eot_token_id", "max_length")


class Four(LM):
    """Answers 4, with the mark of the strict filter where the question holds a 2."""

    def generate_until(self, requests, disable_tqdm=False):
        return ["So it is #### 4" if " 2 " in request.args[0].rsplit("Question", 1)[1] else "4" for request in requests]

    def loglikelihood(self, requests, disable_tqdm=False):
        return [(-float(len(request.args[1])), False) for request in requests]

    def loglikelihood_rolling(self, requests, disable_tqdm=False):
        raise NotImplementedError


def main(out):
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder, "rows.jsonl")
        sums = [("1 + 3", "4"), ("2 + 2", "4"), ("2 + 3", "5"), ("3 + 3", "6"), ("2 x 2", "4")]
        rows.write_text("".join(json.dumps({"question": f"What is {a} ?", "answer": b}) + "\n" for a, b in sums))
        for name, task in (("sums", GENERATION), ("sums_choice", CHOICE)):
            Path(folder, f"{name}.yaml").write_text(task.format(rows=rows))
        tracker = EvaluationTracker(output_path=f"{folder}/out")
        manager = TaskManager(include_path=folder, include_defaults=False)
        results = simple_evaluate(model=Four(), tasks=["sums", "sums_choice"], task_manager=manager)
        samples = results.pop("samples")
        results["config"]["model"], results["config"]["model_args"] = "hf", {"pretrained": "example/model", "dtype": "float32"}
        tracker.general_config_tracker.model_name = "example/model"
        tracker.general_config_tracker.model_name_sanitized = "example__model"
        tracker.save_results_aggregated(results=results, samples=samples)
        (path,) = Path(folder, "out").rglob("results_*.json")
        whole = json.loads(path.read_text().replace(folder, "/rows"))
    for key in REPLACED:
        if key in whole:
            whole[key] = None
    whole["date"], whole["total_evaluation_time_seconds"] = 1795700000.0, "1.5"
    (out / "results_2026-11-26T12-00-00.000000.json").write_text(json.dumps(whole, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
