"""Writes what TRL makes of rows of every shape that people hold: token ids, and which of them are trained on.

    python scripts/reference/shapes.py DATA tests/it/fixtures/shapes

DATA holds `data/{gsm8k,commonsense}`; the shortest of their rows are the texts. Each shape has 50 rows, which are stored
with the CRC-32 of all token ids and of all masks (little-endian 32-bit, row after row) as `SFTTrainer` prepares them:
conversations with `assistant_only_loss`, prompts and completions with `completion_only_loss`, plain text whole. TRL
knows neither ShareGPT's roles nor Alpaca's columns: the former are renamed first, the prompt of the latter is written
here as stanford_alpaca's `train.py` words it. A second length cuts some rows, and leaves those out of which nothing would
be trained on. The tokenizer is trained here on the texts; its chat template is our own, in the form of ChatML, with
tools. The first position is never a target.
Written with trl 1.16.0, transformers 5.24.0.
"""

import gzip
import json
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np
import transformers
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

ROWS = 50
TEMPLATE = """\
{%- if tools %}{{ '<|start|>system\\n' }}{%- if messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{%- endif %}\
{{ 'Tools:' }}{%- for tool in tools %}{{ '\\n' + tool | tojson }}{%- endfor %}{{ '<|end|>\\n' }}{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}{{ '<|start|>assistant\\n' }}{% generation %}{{ message.content or '' }}\
{%- for call in message.tool_calls or [] %}{{ '<call>' + call.function.name + ' ' + call.function.arguments | tojson + '</call>' }}\
{%- endfor %}{{ '<|end|>' }}{% endgeneration %}{{ '\\n' }}
{%- elif not (tools and loop.first and message.role == 'system') %}\
{{ '<|start|>' + message.role + '\\n' + message.content + '<|end|>\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start|>assistant\\n' }}{%- endif %}"""
ALPACA = (
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Response:"
)
ALPACA_INPUT = (
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.\n\n"
    "### Instruction:\n{instruction}\n\n### Input:\n{input}\n\n### Response:"
)
TOOL = {
    "type": "function",
    "function": {
        "name": "calculate",
        "description": "Computes a sum, a difference, a product or a quotient.",
        "parameters": {"type": "object", "properties": {"term": {"type": "string"}}, "required": ["term"]},
    },
}


def tokenizer_of(texts, folder):
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<|endoftext|>", "<|start|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    raw.train_from_iterator(texts, trainer)
    whole = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|endoftext|>", pad_token="<|end|>")
    whole.chat_template = TEMPLATE
    whole.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "vocab_size": 600}))
    return AutoTokenizer.from_pretrained(folder)


def conversations(solved):
    """ShareGPT: a system message in every third row, two questions in every second."""
    for i in range(ROWS):
        pairs = solved[i : i + 1 + i % 2]
        turns = [{"from": "system", "value": "Answer briefly."}] if i % 3 == 0 else []
        for question, answer in pairs:
            turns += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        yield {"conversations": turns}


def with_tools(solved):
    """A call, its result and the answer; the tools are a list in one half and JSON text in the other."""
    for i, (question, answer) in enumerate(solved[:ROWS]):
        call = {"type": "function", "function": {"name": "calculate", "arguments": {"term": f"{i} + é"}}}
        messages = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "content": str(i), "name": "calculate"},
            {"role": "assistant", "content": answer},
        ]
        if i % 4 == 0:
            messages.insert(0, {"role": "system", "content": "Use the tools."})
        yield {"messages": messages, "tools": json.dumps([TOOL]) if i % 2 else [TOOL]}


def asked(solved):
    for i, (question, answer) in enumerate(solved[:ROWS]):
        prompt = [{"role": "user", "content": question}]
        if i % 2:
            prompt.insert(0, {"role": "system", "content": "Think first."})
        yield {"prompt": prompt, "completion": [{"role": "assistant", "content": answer}]}


def shapes(solved, tasks):
    rows = list(conversations(solved))
    # TRL renames the keys of these messages and no role; the roles are those of Axolotl's ShareGPT.
    roles = {"human": "user", "gpt": "assistant", "system": "system"}
    named = [[{"role": roles[m["from"]], "content": m["value"]} for m in row["conversations"]] for row in rows]
    yield "conversations", rows, [{"messages": messages} for messages in named]
    yield "tools", list(with_tools(solved)), None
    yield "messages-completion", list(asked(solved)), None
    texts = [{"prompt": question + "\n", "completion": answer} for question, answer in solved[:ROWS]]
    yield "prompt-completion", texts, None
    yield "text", [{"text": f"{question} {answer}"} for question, answer in solved[:ROWS]], None
    rows = [
        {"instruction": task, "input": solved[i][0] if i % 2 else "", "output": output}
        for i, (task, output) in enumerate(tasks[:ROWS])
    ]
    form = lambda row: (ALPACA_INPUT if row["input"] else ALPACA).format(**row)
    yield "alpaca", rows, [{"prompt": form(row), "completion": row["output"]} for row in rows]


def crc(lists):
    return zlib.crc32(np.concatenate([np.asarray(one, dtype="<u4") for one in lists]).tobytes())


def prepared(rows, tokenizer, model, length):
    """The rows as TRL prepares them; one at a time, since a table cannot hold lists and texts in one column."""
    conversational = isinstance(next(iter(rows[0].values())), list) and "prompt" not in rows[0]
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            output_dir=folder, max_length=length, assistant_only_loss=conversational, report_to="none", use_cpu=True,
            bf16=False, shuffle_dataset=False,
        )
        for row in rows:
            trainer = SFTTrainer(
                model=model, args=args, train_dataset=Dataset.from_list([row]), processing_class=tokenizer
            )
            yield from trainer.train_dataset


def main():
    data, out = Path(sys.argv[1]) / "data", Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    lines = [json.loads(line) for line in (data / "gsm8k/train.jsonl").read_text().splitlines()]
    solved = sorted(((row["question"], row["answer"]) for row in lines), key=lambda pair: (len("".join(pair)), pair))
    with gzip.open(data / "commonsense/train.jsonl.gz", "rt") as file:
        lines = [json.loads(line) for line in file]
    tasks = sorted({(row["instruction"], row["output"]) for row in lines}, key=lambda pair: (len("".join(pair)), pair))
    tokenizer = tokenizer_of([text for pair in solved[:200] + tasks[:200] for text in pair], out)
    config = LlamaConfig(
        vocab_size=600, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        num_key_value_heads=1,
    )
    model = LlamaForCausalLM(config)
    made = {}
    for name, rows, as_trl in shapes(solved, tasks):
        entry = {"rows": rows}
        whole = [row["input_ids"] for row in prepared(as_trl or rows, tokenizer, model, 4096)]
        for length in (4096, sorted(map(len, whole))[ROWS * 2 // 3]):
            kept = list(prepared(as_trl or rows, tokenizer, model, length))
            mask = [[int(i > 0 and label != -100) for i, label in enumerate(row["labels"])] for row in kept]
            ids = [row["input_ids"] for row in kept]
            assert len(kept) == ROWS or length < 4096, (name, length)
            entry[str(length)] = {
                "rows": len(kept), "tokens": sum(map(len, ids)), "targets": sum(map(sum, mask)), "ids": crc(ids),
                "mask": crc(mask),
            }
        entry["longest"] = max(map(len, whole))
        made[name] = entry
    with open(out / "rows.json", "w") as file:
        json.dump(made, file, ensure_ascii=False, separators=(",", ":"))
    print(transformers.__version__, {name: {k: v for k, v in e.items() if k != "rows"} for name, e in made.items()})


main()
