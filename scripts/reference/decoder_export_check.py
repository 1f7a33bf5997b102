#!/usr/bin/env python3
"""Checks that what `loraxs merge` wrote of a decoder gives, in Transformers and PEFT, the logits of base and adapter.

    python scripts/reference/decoder_export_check.py --base BASE --adapter RUN/adapter --data rows.jsonl \\
        --merged MERGED --merged SHARDS --peft PEFT
    python scripts/reference/decoder_export_check.py --base BASE --answers EVAL/predictions/gsm8k.jsonl \\
        --merged MERGED --peft PEFT

With --adapter, by logits. The adapter is LoRA-XS with its basis in the file (`adapter.with_basis = true`), so that nothing here depends on how
`loraxs` multiplies: the expected logits are those of Transformers on the base, where each adapted layer adds
(alpha / r) * B R A x beside W x. --merged names folders of `loraxs merge --dtype fp32`, loaded as they are, which may lack
no tensor and have none too many; --peft one of `--format peft`, loaded over --base. Each row's columns, joined, run by
themselves without padding, in float32. A difference is the largest one between two logits over the largest logit; the
exit status is 1 where one exceeds --tolerance.
With --answers, by the completions of `loraxs eval`, greedy: Transformers continues the same prompts, one at a time, each
for as many tokens as its answer has. In float32 all must be equal; in bfloat16, where rounding decides between near equals,
how many are is printed.
Needs: torch, transformers, safetensors, and peft for --peft. Seen with torch 2.11, transformers 5.23, peft 0.21.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def load(folder, kind=torch.float32):
    model, report = AutoModelForCausalLM.from_pretrained(
        folder, dtype=kind, attn_implementation="eager", output_loading_info=True
    )
    wrong = {kind: sorted(keys) for kind, keys in report.items() if keys and kind.endswith("_keys")}
    if wrong:
        sys.exit(f"error: {folder} is not the checkpoint of a {type(model).__name__}: {wrong}")
    return model


def with_adapter(model, folder):
    """Hooks that add what the adapter adds."""
    config = json.loads((folder / "adapter_config.json").read_text())
    tensors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    for core, name in zip(tensors["lora_xs_R"], config["modules"], strict=True):
        a, b = tensors[f"{name}.A"], tensors[f"{name}.B"]

        def add(_, inputs, output, a=a, b=b, core=core):
            return output + scale * (inputs[0] @ a.T @ core.T @ b.T)

        model.get_submodule(name).register_forward_hook(add)
    return model


def with_peft(base, folder, kind=torch.float32):
    from peft import PeftModel

    return PeftModel.from_pretrained(load(base, kind), folder)


@torch.no_grad()
def logits(model, rows):
    model.eval()
    return torch.cat([model(torch.tensor([row]), use_cache=False).logits[0] for row in rows])


def loaded(options, kind=torch.float32):
    """Every exported form, by its folder, one at a time."""
    for folder in options.merged:
        yield folder, load(folder, kind)
    if options.peft:
        yield options.peft, with_peft(options.base, options.peft, kind)


def logits_agree(options, tokenizer):
    lines = options.data.read_text(encoding="utf-8").splitlines()
    texts = ["\n".join(str(value) for value in json.loads(line).values()) for line in lines]
    rows = [tokenizer(text)["input_ids"][: options.max_length] for text in texts]
    plain = logits(load(options.base), rows)
    want = logits(with_adapter(load(options.base), options.adapter), rows)
    far = float((plain - want).abs().max() / want.abs().max())
    print(f"base: {len(rows)} rows, the adapter changes logits by up to {far:.2e}")
    agree = far >= 1e-3  # an adapter that does nothing would prove nothing
    for name, model in loaded(options):
        difference = float((logits(model, rows) - want).abs().max() / want.abs().max())
        good = difference <= options.tolerance  # not where it is not a number
        agree &= good
        print(f"{name}: largest relative difference {difference:.2e}{'' if good else ' TOO LARGE'}")
    return agree


@torch.no_grad()
def answers_agree(options, tokenizer):
    with open(options.answers, encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    agree = True
    for name, model in loaded(options, getattr(torch, options.precision)):
        model.eval()
        equal = 0
        for record in records:
            prompt = torch.tensor([tokenizer(record["prompt"])["input_ids"]])
            count = record["tokens"] + (record["finish"] == "end")
            settings = {"max_new_tokens": max(count, 1), "do_sample": False, "pad_token_id": tokenizer.pad_token_id}
            ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), **settings)[0, prompt.shape[1] :]
            text = tokenizer.decode(ids, skip_special_tokens=True)
            equal += text == record["completion"] or record["finish"] == "stop" and text.startswith(record["completion"])
        agree &= equal == len(records) or options.precision != "float32"
        print(f"{name} in {options.precision}: {equal} of {len(records)} answers are equal")
    return agree


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--adapter", type=Path, help="LoRA-XS with its basis in the file")
    parser.add_argument("--data", type=Path, help="JSON lines with texts")
    parser.add_argument("--answers", type=Path, help="predictions of `loraxs eval`")
    parser.add_argument("--max-length", type=int, default=96)
    parser.add_argument("--merged", type=Path, action="append", default=[])
    parser.add_argument("--peft", type=Path)
    parser.add_argument("--tolerance", type=float, default=1e-5)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32", help="of --answers")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    if not options.merged and not options.peft:
        parser.error("nothing to check: give --merged, --peft or both")
    if bool(options.adapter) != bool(options.data) or not (options.adapter or options.answers):
        parser.error("nothing to check by: give --adapter and --data, --answers or all")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(options.threads)
    tokenizer = AutoTokenizer.from_pretrained(options.merged[0] if options.merged else options.base)
    agree = not options.adapter or logits_agree(options, tokenizer)
    agree &= not options.answers or answers_agree(options, tokenizer)
    sys.exit(0 if agree else 1)


if __name__ == "__main__":
    main()
