#!/usr/bin/env python3
"""Writes prompts for the assistant's turn, and conversations, as Transformers makes them.

    python scripts/reference/chat.py tests/it/fixtures/chat.json --fixtures tests/it/fixtures --model smollm2-135m-instruct

`prompts`: the conversations of `rendering/chat.json`, without an assistant's turn at the end, under its templates, by
`apply_chat_template` with `add_generation_prompt=True`: text and token ids, or null where the template objects. `conversations`: what `generate` answers
greedily to each message after those before it, in float32, with the settings of the checkpoint: `tiny` by the decoder `llama-biased`
under `template`, `smollm2` by SmolLM2-135M-Instruct. Nothing is random. Written with torch 2.11, transformers 5.24.
"""

import argparse
import json
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
TINY = {"system": None, "messages": ["What is 2 + 3?", "And 4 + 5?", "Why?"], "max_new_tokens": 10}
SMOLLM2 = {
    "system": "You answer in one sentence.",
    "messages": ["Name a colour of the rainbow.", "Which fruit has this colour?", "Write 'naïve café' and an emoji 🙂."],
    "max_new_tokens": 40,
}


def prompts(folder):
    """Every conversation under every template."""
    fixture = json.loads((folder / "chat.json").read_text())
    found = []
    for template in fixture["templates"]:
        names = {name: template[name] for name in ("bos_token", "eos_token") if template[name]}
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **names)
        tokenizer.chat_template = template["template"]
        rows = []
        for row in fixture["conversations"]:
            options = {"tools": row.get("tools"), "add_generation_prompt": True}
            turns = row["messages"][: -1 if row["messages"][-1]["role"] == "assistant" else None]
            try:
                text = tokenizer.apply_chat_template(turns, tokenize=False, **options)
            except Exception:  # whatever a template raises
                rows.append(None)
                continue
            ids = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False, **options)
            rows.append({"text": text, "ids": ids})
        found.append(rows)
    return found


@torch.no_grad()
def conversation(folder, system, messages, max_new_tokens):
    """The settings with the answers."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    turns = [{"role": "system", "content": system}] if system else []
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    answers = []
    for message in messages:
        turns.append({"role": "user", "content": message})
        encoded = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        made = model.generate(**encoded, do_sample=False, max_new_tokens=max_new_tokens)
        ids = made[0, encoded["input_ids"].shape[1] :].tolist()
        # A token that ends an answer is none of its text, also one that the tokenizer does not call special.
        ids = ids[:-1] if ids[-1] in ends else ids
        answers.append(tokenizer.decode(ids, skip_special_tokens=True))
        turns.append({"role": "assistant", "content": answers[-1]})
    return {"system": system, "messages": messages, "max_new_tokens": max_new_tokens, "answers": answers}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--fixtures", type=Path, required=True, help="folder of the fixtures")
    parser.add_argument("--model", type=Path, required=True, help="folder of SmolLM2-135M-Instruct")
    options = parser.parse_args()
    torch.set_num_threads(1)  # the order of summation, and so the last digit, depends on the number of threads
    transformers.logging.set_verbosity_error()
    fixture = {"generator": "scripts/reference/chat.py", "torch": torch.__version__, "transformers": transformers.__version__}
    fixture["template"] = TEMPLATE
    fixture["prompts"] = prompts(options.fixtures / "rendering")
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(options.fixtures / "decoders" / "llama-biased", folder, dirs_exist_ok=True)
        (Path(folder) / "chat_template.jinja").write_text(TEMPLATE)
        fixture["tiny"] = conversation(folder, **TINY)
    fixture["smollm2"] = conversation(options.model, **SMOLLM2)
    lines = ",\n".join(f'"{key}": {json.dumps(value, ensure_ascii=False)}' for key, value in fixture.items())
    options.out.write_text(f"{{\n{lines}\n}}\n")


if __name__ == "__main__":
    main()
