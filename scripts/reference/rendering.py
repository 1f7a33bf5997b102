"""Writes what Transformers and the published code make of instructions, prompts and conversations.

    python scripts/reference/rendering.py DATA tests/it/fixtures/rendering

DATA holds `tokenizers/llama2`, `tokenizers/mistral` and `data/{metamath,gsm8k,math,commonsense}`. Of real rows the
fixture keeps, per tokenizer, file and length, the number of usable rows, tokens and targets and the CRC-32 of all token
ids and of all masks (little-endian 32-bit, row after row). Templates and steps are those of LoRA-XS main_math_tuning.py
@0be0770, main_commonsense_tuning.py and commonsense_eval.py @e50b1a8, and MetaMath eval_gsm8k.py and eval_math.py;
truncation, end token and mask are applied in their order. Conversations and their templates are our own, in the forms
of well-known ones; their tokenizer is trained here on those texts and stored. Nothing is random. Written with
transformers 5.24.0 and tokenizers 0.23.3.
"""

import gzip
import json
import shutil
import sys
import tempfile
import zlib
from itertools import islice
from pathlib import Path

import numpy as np
import tokenizers
import transformers
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

ALPACA = "Below is an instruction that describes a task. Write a response that appropriately completes the request."
INDENT = " " * 16
MATH = ALPACA + "\n\n### Instruction:\n{}\n\n### Response:"
COMMONSENSE = (
    ALPACA + "{}\n\n" + INDENT + "### Instruction:\n" + INDENT + "{}\n\n" + INDENT + "### Response:\n" + INDENT
)

TOKENIZERS = {
    "tokenizers/llama2": ({}, {}),
    "tokenizers/mistral": ({"eos_token": "</s>"}, {"model_type": "mistral"}),
}
# Settings under which Transformers builds the tokenizer in different ways.
VARIANTS = [
    ("tokenizers/llama2", {}, {}),
    ("tokenizers/llama2", {"legacy": True}, {}),
    ("tokenizers/llama2", {"add_prefix_space": False}, {}),
    ("tokenizers/llama2", {"add_bos_token": False, "add_eos_token": True}, {}),
    ("tokenizers/llama2", {}, {"model_type": "mistral"}),
    ("tokenizers/llama2", {}, {"model_type": "llama"}),
    ("tokenizers/mistral", {"tokenizer_class": "LlamaTokenizerFast", "legacy": False}, {"model_type": "llama"}),
    ("tokenizers/mistral", {}, {"model_type": "mistral", "eos_token_id": 2}),
]
TEXTS = ["", " ", "a", "  two", "\n   three", "a</s>", "a b </s>", "x<s>y", "<s>", "</s> z", "é 日本 👩‍👩‍👧", "tab\there",
         "### Response:", "1,000 + 23.5%", "▁already", "a\u00a0b", "    if x:\n        y()"]
PROMPT_ROWS = 500
LENGTHS = {"metamathqa": [512, 200], "commonsense-170k": [256, 90]}


def rows(path, limit):
    if path.name.endswith(".json"):
        return json.loads(path.read_text())[:limit]
    with (gzip.open if path.name.endswith(".gz") else open)(path, "rt") as file:
        return [json.loads(line) for line in islice(file, limit)]


def crc(lists):
    flat = [np.asarray(one, dtype="<u4") for one in lists]
    return zlib.crc32(np.concatenate(flat).tobytes()) if flat else 0


def load(data, name, settings, config):
    """The tokenizer of a folder with these settings on top of its own."""
    with tempfile.TemporaryDirectory() as folder:
        for file in (data / name).iterdir():
            shutil.copy(file, folder)
        for file, changes in (("tokenizer_config.json", settings), ("config.json", config)):
            path = Path(folder) / file
            old = json.loads(path.read_text()) if path.exists() else {}
            if old or changes:
                path.write_text(json.dumps(old | changes))
        return AutoTokenizer.from_pretrained(folder)


def metamath(tokenizer, row, length):
    source = MATH.format(row["query"])
    ids = tokenizer(source + row["response"] + tokenizer.eos_token, truncation=True, max_length=length)["input_ids"]
    masked = len(tokenizer(source, truncation=True, max_length=length)["input_ids"])
    return ids, [int(i >= masked) for i in range(len(ids))]


def commonsense(tokenizer, row, length):
    assert not row["input"]
    source = COMMONSENSE.format("  ", row["instruction"])
    ids = tokenizer(source + row["output"], truncation=True, max_length=length)["input_ids"]
    if ids[-1] != tokenizer.eos_token_id and len(ids) < length:
        ids.append(tokenizer.eos_token_id)
    masked = len(tokenizer(source, truncation=True, max_length=length)["input_ids"])
    return ids, [int(i >= masked) for i in range(len(ids))]


def instruction(data, tokenizer, name):
    files = [
        ("metamathqa", "data/metamath/surrogate_gsm8k_math_train.jsonl", metamath, 300),
        ("metamathqa", "data/metamath/metamathqa_12rows.jsonl", metamath, 12),
        ("commonsense-170k", "data/commonsense/train.jsonl.gz", commonsense, 300),
    ]
    for dataset, file, render, limit in files:
        for length in LENGTHS[dataset]:
            made = [render(tokenizer, row, length) for row in rows(data / file, limit)]
            used = [(ids, mask) for ids, mask in made if any(mask)]
            yield {
                "tokenizer": name, "dataset": dataset, "file": file, "max_length": length, "limit": limit,
                "rows": len(used), "tokens": sum(len(ids) for ids, _ in used),
                "targets": sum(sum(mask) for _, mask in used),
                "ids": crc(ids for ids, _ in used), "mask": crc(mask for _, mask in used),
            }


def prompts(data, tokenizer, name):
    step = " Let's think step by step."
    files = [("gsm8k", "data/gsm8k/test.jsonl", lambda r: MATH.format(r["question"]) + step),
             ("math", "data/math/test.jsonl", lambda r: MATH.format(r["problem"]) + step)]
    for task, file in [("boolq",) * 2, ("piqa",) * 2, ("social_i_qa",) * 2, ("openbookqa",) * 2,
                       ("arc-easy", "ARC-Easy"), ("arc-challenge", "ARC-Challenge")]:
        ask = lambda r: COMMONSENSE.format(" ", r["instruction"])  # noqa: E731
        files.append((f"commonsense/{task}", f"data/commonsense/test/{file}.json", ask))
    for dataset, file, ask in files:
        made = [tokenizer(ask(row))["input_ids"] for row in rows(data / file, PROMPT_ROWS)]
        yield {"tokenizer": name, "dataset": dataset, "file": file, "rows": len(made),
               "tokens": sum(map(len, made)), "ids": crc(made)}


# Conversations ------------------------------------------------------------------------------------------------------

SPECIAL = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|im_start|>", "<|im_end|>",
           "<bos>", "<start_of_turn>", "<end_of_turn>", "<s>", "</s>", "[INST]", "[/INST]"]
TEMPLATES = {
    "headers": ("<|begin_of_text|>", "<|eot_id|>", """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system = "" %}
{%- endif %}
{%- if system != "" or tools is not none %}
    {{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system }}
    {%- if tools is not none %}
        {%- for t in tools %}
            {{- "\\n" + t | tojson(indent=4) }}
        {%- endfor %}
    {%- endif %}
    {{- "<|eot_id|>" }}
{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message.role == 'assistant' %}
        {%- generation -%}
        {{- message['content'] | trim + '<|eot_id|>' }}
        {%- endgeneration -%}
    {%- else %}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""),
    "chatml": (None, "<|im_end|>", """\
{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n'}}{% if message['role'] == 'assistant' %}\
{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}{% else %}\
{{ message['content'] + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""),
    "turns": ("<bos>", "<end_of_turn>", """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
  {% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
    {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
  {% endif %}
  {% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}
  {%- if role == 'model' -%}
    {{- '<start_of_turn>model\\n' -}}{% generation %}{{- message['content'] | trim + '<end_of_turn>' -}}\
{% endgeneration %}{{- '\\n' -}}
  {%- else -%}
    {{- '<start_of_turn>' + role + '\\n' + message['content'] | trim + '<end_of_turn>\\n' -}}
  {%- endif -%}
{% endfor %}
{% if add_generation_prompt %}{{'<start_of_turn>model\\n'}}{% endif %}"""),
    "inst": ("<s>", "</s>", """\
{{ bos_token }}{%- set ns = namespace(index=0) -%}
{%- for message in messages -%}
    {%- if message['role'] == 'user' -%}
        {{- ' [INST] ' + message['content'].strip() + ' [/INST]' -}}
        {%- set ns.index = ns.index + 1 -%}
    {%- elif message['role'] == 'assistant' -%}
        {%- if ns.index == 0 %}{{ raise_exception('After the optional system message, a user must speak') }}{% endif -%}
        {%- generation -%}{{ ' ' + message['content'] + eos_token }}{%- endgeneration -%}
    {%- elif message['role'] == 'system' and loop.first -%}
        {{- ' ' + message.content | upper ~ ' ' ~ loop.index -}}
    {%- else -%}
        {{ raise_exception('Only user and assistant roles are supported, found ' ~ message['role'] ~ '!') }}
    {%- endif -%}
{%- endfor -%}"""),
    "python": (None, "<|im_end|>", """\
{%- macro part(content) -%}
{%- if content is string -%}{{ content }}{%- else -%}
{%- for item in content -%}{%- if item.type == 'text' -%}{{ item.text.lstrip('\\n').split('</think>')[-1] }}{%- endif -%}\
{%- endfor -%}{%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
{%- if message.tool_calls is defined and message.tool_calls -%}
{%- for call in message['tool_calls'] -%}\
{{ '<|im_start|>call ' ~ (call | tojson) ~ ' ' ~ call.get('id', 'none') ~ '<|im_end|>' }}{%- endfor -%}
{%- continue -%}
{%- endif -%}
{%- for key, value in message.items() -%}\
{%- if key not in ['role', 'content'] -%}{{ key ~ '=' }}{{ value }};{%- endif -%}{%- endfor -%}
{{- '<|im_start|>' ~ message.role.title() ~ ' ' ~ loop.index ~ '\\n' -}}
{%- if message.role == 'assistant' -%}{%- generation -%}{{ part(message.content) }}{{ '<|im_end|>' }}{%- endgeneration -%}
{%- else -%}{{ part(message.content) }}{{ '<|im_end|>' }}{%- endif -%}
{%- endfor -%}"""),
}
CALL = {"id": "a1", "type": "function", "function": {"name": "sum", "arguments": {"x": [1, 2.5], "é": None}}}
TOOL = {"type": "function", "function": {"name": "sum", "description": "Adds \"numbers\" <b>.", "parameters": {}}}
CONVERSATIONS = [
    {"messages": [{"role": "user", "content": "What is 2 + 2?"}, {"role": "assistant", "content": "It is 4."}]},
    {"messages": [
        {"role": "system", "content": " Be brief. "},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue.\n"},
        {"role": "user", "content": "Another? é 日本"},
        {"role": "assistant", "content": "  Grün – naïve 👍  "},
    ]},
    {"messages": [
        {"role": "user", "content": "Blue."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Blue."},
        {"role": "assistant", "content": "Blue."},
    ]},
    {"messages": [{"role": "user", "content": "Add."}, {"role": "assistant", "content": "Yes."}], "tools": [TOOL]},
    {"messages": [{"role": "assistant", "content": "I begin."}, {"role": "user", "content": "So you do."}]},
    {"messages": [
        {"role": "user", "content": [{"type": "text", "text": "\n\nthought</think>One part,"},
                                     {"type": "text", "text": " two."}], "name": "Ann", "vip": True, "age": 3.0},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "3.5", "name": None},
        {"role": "assistant", "content": "It is 3.5.", "final": False},
    ]},
]

# Messages that hold other than texts, or keys that are not there
ODD_TEMPLATE = (None, "<|im_end|>", """\
{%- for m in messages -%}
<|im_start|>{{ m.role }}|{{ m.content }}|{{ m.content is defined }}|{{ m.content is string }}|{{ m | tojson }}
{%- if m.tool_calls %}{% for c in m.tool_calls %}{{ c.function.arguments if c.function.arguments is string else c.function.arguments | tojson }}\
{% endfor %}{% endif -%}
{% if m.role != 'user' %}{% generation %}{{ m.content }}{{ m.reasoning_content }}{{ m.thinking }}<|im_end|>{% endgeneration %}{% endif %}
{% endfor -%}
{{ tools }}""")
USER = {"role": "user", "content": "Hi."}
ODD = [
    {"messages": [USER, {"role": "assistant", "content": None}]},
    {"messages": [USER, {"role": "assistant"}]},
    {"messages": [USER, {"role": "bot", "content": "x", "name": None}]},
    {"messages": [USER, {"content": "no role"}]},
    {"messages": [USER, {"role": None, "content": 3}, {"role": 5, "content": 1.50}, {"role": "gpt", "content": True}]},
    {"messages": [USER, {"role": "assistant", "content": {"a": [None, {"b": -0.0}]}}]},
    {"messages": [USER, {"role": "assistant", "content": ["a", {"type": "text", "text": "b", "x": None}, 1e16]}]},
    {"messages": [USER, {"role": "assistant", "content": "", "tool_calls": [
        {"function": {"name": "f", "arguments": "{\"a\": 1}"}}, {"function": {"name": "g", "arguments": {"é": [1, None]}}}]}]},
    {"messages": [USER, {"role": "assistant", "content": "x", "reasoning": "why", "z": 1}]},
    {"messages": [USER, {"role": "assistant", "thinking": "t", "content": "x", "reasoning_content": "r"}]},
    {"messages": [USER, {"role": "assistant", "content": "x", "thinking": None, "reasoning": ""}]},
    {"messages": [USER, {"role": "assistant", "content": "x"}], "tools": []},
    {"messages": [USER, {"role": "assistant", "content": "x"}], "tools": [{"name": "f", "strict": None}]},
    {"messages": [USER, {"role": "assistant", "content": "x"}], "tools": ["f"]},
    {"messages": [USER, {"role": "assistant", "content": "x", "items": 1, "keys": [], "get": "g"}]},
    {"messages": [USER, "x"]},
    {"messages": [USER, None]},
    {"messages": [USER, {}]},
    {"messages": []},
    {"messages": [USER, {"role": "assistant", "content": "a\u2028b\u0000c\t\ufeff"}]},
    {"messages": [USER, {"role": "assistant", "content": 18446744073709551615}]},
]


def trained(out):
    """A small byte-level tokenizer that knows the special tokens."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=len(SPECIAL) + 256 + 40, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
    )
    tokenizer.train_from_iterator([json.dumps(CONVERSATIONS, ensure_ascii=False)], trainer)
    tokenizer.save(str(out / "tokenizer.json"), pretty=False)


def chat(out):
    for name, form in TEMPLATES.items():
        # The last conversation is for the one template that knows its form; Python would print it where others put it
        yield rendered(out, name, form, CONVERSATIONS if name == "python" else CONVERSATIONS[:-1])


def rendered(out, name, form, conversations):
    bos, eos, template = form
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(out / "tokenizer.json"), bos_token=bos, eos_token=eos, chat_template=template
    )
    entries = []
    for row in conversations:
        try:
            text = tokenizer.apply_chat_template(tokenize=False, conversation=row["messages"], tools=row.get("tools"))
            asked = tokenizer.apply_chat_template(
                tokenize=False, conversation=row["messages"], tools=row.get("tools"), add_generation_prompt=True
            )
            made = tokenizer.apply_chat_template(
                row["messages"], tools=row.get("tools"), return_dict=True, return_assistant_tokens_mask=True
            )
            mask = made["assistant_masks"]
            entries.append({"text": text, "asked": asked[len(text):], "ids": made["input_ids"], "mask": mask})
        except Exception as error:  # whatever the template or Jinja says
            entries.append({"error": str(error)})
    return {"name": name, "bos_token": bos, "eos_token": eos, "template": template, "expected": entries}


def main():
    data, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    fixture = {
        "transformers": transformers.__version__, "tokenizers": tokenizers.__version__,
        "instruction": [], "prompts": [], "texts": [],
    }
    for name, (settings, config) in TOKENIZERS.items():
        tokenizer = load(data, name, settings, config)
        fixture["instruction"] += instruction(data, tokenizer, name)
        fixture["prompts"] += prompts(data, tokenizer, name)
    for name, settings, config in VARIANTS:
        tokenizer = load(data, name, settings, config)
        ids = [tokenizer(text)["input_ids"] for text in TEXTS]
        texts = [tokenizer.decode(one, skip_special_tokens=True) for one in ids]
        fixture["texts"].append({"tokenizer": name, "settings": settings, "config": config, "ids": ids, "texts": texts})
    fixture["of"] = TEXTS
    (out / "real.json").write_text(json.dumps(fixture, indent=1) + "\n")
    trained(out)
    odd = rendered(out, "odd", ODD_TEMPLATE, ODD)
    odd = {"template": {k: odd[k] for k in odd if k != "expected"}, "conversations": ODD, "expected": odd["expected"]}
    made = {"conversations": CONVERSATIONS, "templates": list(chat(out)), "odd": odd}
    (out / "chat.json").write_text(json.dumps(made, ensure_ascii=False, indent=1) + "\n")


main()
