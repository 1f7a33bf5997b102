#!/usr/bin/env python3
"""Writes what Transformers generates under the settings of a `generation_config.json`.

    python scripts/reference/generation_settings.py tests/it/fixtures/generation_settings.json \
        --decoders tests/it/fixtures/decoders --stories DIR

- `settings`: the names of all settings that Transformers knows
- `cases`: for a decoder of DECODERS, a `generation_config.json`, a number of beams and each prompt of `expected.json`, the
  new tokens, alone and unpadded, to the end of the text, which is cut off
- `stories`: texts, and the tokens by which the checkpoint in DIR (a small Llama of stories) continues them greedily

The tokens that settings name are taken from the text without them, so that each setting changes a text.
Needs: torch 2.11, transformers 5.24. Nothing is random.
"""

import argparse
import json
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

NAMES = ("llama-biased", "gemma2-capped", "qwen3-normed")
NEW_TOKENS = 24
STORIES = ("Once upon a time", "Lily and Tom went to the park. They", "The big dog", "One day, a little girl named Mia")
STORY_SETTINGS = ({"repetition_penalty": 1.3}, {"no_repeat_ngram_size": 2},
                  {"repetition_penalty": 1.1, "no_repeat_ngram_size": 3, "min_new_tokens": 40})


def settings(said, prompt):
    """Settings that change a decoder's text, which is `said` without any, after `prompt`."""
    a, b, c, d = said[2], said[3], said[5], said[6]
    early = {"eos_token_id": [2, a, said[0]]}
    return {
        "repetition": {"repetition_penalty": 1.3},
        "repetition wanted": {"repetition_penalty": 0.8},
        "repetition of the prompt": {"encoder_repetition_penalty": 1.7},
        "unigrams": {"no_repeat_ngram_size": 1},
        "bigrams": {"no_repeat_ngram_size": 2},
        "bigrams of the prompt": {"encoder_no_repeat_ngram_size": 2, "sequence_bias": [[prompt[:1], 3.0]]},
        "bad words": {"bad_words_ids": [[said[0]], [a, b], [2], [c, d, 7]]},
        "minimum": {"min_length": 20, **early},
        "minimum of new tokens": {"min_new_tokens": 9, **early},
        "both minima": {"min_new_tokens": 5, "min_length": 30, **early},
        "suppressed": {"suppress_tokens": [a, said[0], -1, 5000]},
        "suppressed first": {"begin_suppress_tokens": [said[0]]},
        "forced first": {"forced_bos_token_id": 17, "begin_suppress_tokens": [17, said[1]]},
        "forced last": {"forced_eos_token_id": 2},
        "forced last of two": {"forced_eos_token_id": [7, 60]},
        "biased": {"sequence_bias": [[[a], 2.0], [[said[0], said[1]], -8.0], [[said[0], 40], 4.0], [[a, b, c], -3.5]]},
        "growing end": {"exponential_decay_length_penalty": [4, 1.35]},
        "invalid values": {"remove_invalid_values": True, "bad_words_ids": [[a]]},
        "normalised": {"renormalize_logits": True, "repetition_penalty": 1.6},
        "long": {"length_penalty": 2.5},
        "short": {"length_penalty": -1.0},
        "stops when full": {"early_stopping": True, "length_penalty": 0.4},
        "never stops": {"early_stopping": "never", "length_penalty": 1.5},
        "all at once": {"repetition_penalty": 1.15, "no_repeat_ngram_size": 3, "bad_words_ids": [[a]], "min_new_tokens": 6,
                        "suppress_tokens": [c], "begin_suppress_tokens": [said[0]], "forced_eos_token_id": 2,
                        "renormalize_logits": True, "exponential_decay_length_penalty": [10, 1.1]},
    }


def load(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def continued(model, ids, ends, **settings):
    prompt = torch.tensor([ids])
    # A padding token inside a prompt would be masked otherwise.
    whole = model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, **settings)[0].tolist()
    new = whole[len(ids):]
    return new[:next((i for i, token in enumerate(new) if token in ends), len(new))]


def with_config(folder, config):
    """The decoder, loaded with another `generation_config.json`."""
    with tempfile.TemporaryDirectory() as place:
        for path in folder.iterdir():
            (Path(place) / path.name).symlink_to(path.resolve())
        (Path(place) / "generation_config.json").unlink(missing_ok=True)
        (Path(place) / "generation_config.json").write_text(json.dumps(config))
        return load(place)


def cases(folder):
    own = json.loads((folder / "generation_config.json").read_text())
    prompts = [row["ids"] for row in json.loads((folder / "expected.json").read_text())["prompts"]]
    plain = load(folder)
    said = continued(plain, prompts[1], [], max_new_tokens=NEW_TOKENS, min_new_tokens=NEW_TOKENS)
    for name, changes in settings(said, prompts[1]).items():
        config = {**own, **changes}
        model, ends = with_config(folder, config), config["eos_token_id"]
        for beams in (1, 3):
            rows = [{"prompt": ids, "tokens": continued(model, ids, ends, num_beams=beams, max_new_tokens=NEW_TOKENS)}
                    for ids in prompts]
            without = [continued(plain, ids, ends, num_beams=beams, max_new_tokens=NEW_TOKENS) for ids in prompts]
            changed = sum(row["tokens"] != other for row, other in zip(rows, without))
            yield {"checkpoint": folder.name, "name": name, "beams": beams, "changed": changed,
                   "config": config, "rows": rows}


def stories(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    for config in STORY_SETTINGS:
        model = with_config(folder, {"bos_token_id": 1, "eos_token_id": 2, **config})
        for text in STORIES:
            ids = tokenizer(text)["input_ids"]
            yield {"config": config, "text": text, "ids": ids, "tokens": continued(model, ids, [2], max_new_tokens=64)}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--decoders", type=Path, required=True)
    parser.add_argument("--stories", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    fixture = {
        "generator": "scripts/reference/generation_settings.py",
        "torch": torch.__version__, "transformers": transformers.__version__,
        "settings": sorted(vars(GenerationConfig())),
        "cases": [case for name in NAMES for case in cases(args.decoders / name)],
        "stories": list(stories(args.stories)),
    }
    text = json.dumps(fixture, separators=(",", ":"))
    args.out.write_text(text.replace('},{"checkpoint', '},\n{"checkpoint').replace('},{"config', '},\n{"config') + "\n")
    for case in fixture["cases"]:
        print(case["checkpoint"], case["name"], case["beams"], case["changed"])


if __name__ == "__main__":
    main()
