#!/usr/bin/env python3
"""Writes what Transformers makes of every field of `config.json`, one field changed at a time.

    python scripts/reference/config_fields.py tests/it/fixtures/config_fields.json \\
        --encoders tests/it/fixtures/encoders --decoders tests/it/fixtures/decoders

For each family: `fields`, the names that its configuration class declares and those that its modeling code, the masks, the
caches and the rotary embeddings read beside; and `cases`, each with what is changed in a tiny checkpoint (`set`, and
`drop` for keys that are taken out) and its outcome: `error` where Transformers refuses or fails, `drawn` where it makes up
weights, `same` where the logits are those of the unchanged checkpoint, else the first 16 logits after the last token.
Logits are in float32 with eager attention, of one sequence, without a cache; where a continuation with a cache is another
than without, `cached` is true. Needs: torch 2.11, transformers 5.24. Nothing is random.
"""

import argparse
import dataclasses
import importlib
import inspect
import json
import re
import shutil
import tempfile
from pathlib import Path

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers import cache_utils, masking_utils, modeling_rope_utils
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

IDS = [7, 41, 19, 66, 5, 88, 23, 54, 31, 12, 90, 47]
SHOWN = 16
# Feed-forward layers in chunks sum in another order.
ROUNDING = 5e-6
CONTINUED = 6

LINEAR = {"rope_type": "linear", "factor": 2.5}
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40,
}
SHORT = [1.0, 1.1, 1.2]

# Values tried for each field in every family, besides null and a missing key; DROP removes the key.
DROP = "<drop>"
SHARED = {
    "architectures": [["Other"], None],
    "attn_implementation": ["sdpa"],
    "auto_map": [{"AutoModel": "modeling_other.Other"}],
    "bos_token_id": [9, None],
    "chunk_size_feed_forward": [1, 12, 5],
    "dtype": ["float16", None],
    "eos_token_id": [9, None, [4, 5]],
    "experts_implementation": ["eager"],
    "gradient_checkpointing": [True],
    "hidden_size": [12, 0],
    "id2label": [{"0": 1, "1": 2, "2": 3}, {"0": "a"}],
    "initializer_range": [0.5],
    "intermediate_size": [12, 0],
    "is_encoder_decoder": [True],
    "label2id": [{"a": 0}, None, ["a"]],
    "max_position_embeddings": [11, 4000, 0],
    "num_attention_heads": [1, 2, 5, 0],
    "num_hidden_layers": [1, 9, 0],
    "num_labels": [5],
    "output_attentions": [True],
    "output_hidden_states": [True],
    "pad_token_id": [None, 5, -1, 100000],
    "per_layer_config": [{}, {"1": {"rms_norm_eps": 0.3, "layer_norm_eps": 0.3}}],
    "pruned_heads": [{}, {"0": [1]}],
    "return_dict": [False],
    "task_specific_params": [{"a": 1}],
    "tie_last_hidden_states": [False],
    "tie_word_embeddings": [True, False],
    "torch_dtype": ["float16"],
    "torchscript": [True],
    "transformers_version": ["2.0"],
    "use_cache": [False],
    "vocab_size": [50, 4000],
}
DECODERS = {
    "attention_bias": [True, False],
    "attention_chunk_size": [3],
    "attention_dropout": [0.5],
    "attn_logit_softcapping": [1.5, None],
    "embd_pdrop": [0.5],
    "final_logit_softcapping": [1.5, None],
    "head_dim": [4, None],
    "hidden_act": ["relu", "gelu", "gelu_new", "quick_gelu", None],
    "hidden_activation": ["relu", "gelu", None],
    "hidden_dropout_prob": [0.5],
    "is_causal": [False, True, None, 0, "", "no"],
    "is_decoder": [True, False],
    "layer_types": [
        None,
        ["full_attention"],
        ["full_attention", "full_attention"],
        ["sliding_attention", "sliding_attention"],
        ["sliding_attention", "full_attention", "full_attention"],
        ["full_attention", "full_attention", "full_attention"],
        ["chunked_attention", "full_attention"],
        ["attention", "attention"],
    ],
    "max_window_layers": [0, 1, 99],
    "mlp_bias": [True, False],
    "no_rope_layers": [[0, 1]],
    "num_key_value_heads": [1, None, 5],
    "original_max_position_embeddings": [8],
    "partial_rotary_factor": [0.5, 1.0, None],
    "pretraining_tp": [2],
    "problem_type": ["regression"],
    "query_pre_attn_scalar": [3],
    "resid_pdrop": [0.5],
    "rms_norm_eps": [0.2],
    "rope_parameters": [
        None,
        {},
        {"rope_theta": 77.0},
        {"rope_type": "default", "rope_theta": 77.0, "partial_rotary_factor": 0.5},
        {"rope_theta": None},
        LINEAR,
        {"type": "linear", "factor": 2.5, "rope_theta": 77.0},
        {**LINEAR, "partial_rotary_factor": 0.5},
        {"rope_type": "linear"},
        LLAMA3,
        {key: value for key, value in LLAMA3.items() if key != "original_max_position_embeddings"},
        {"rope_type": "dynamic", "factor": 2.0},
        {"rope_type": "yarn", "factor": 2.0, "original_max_position_embeddings": 64},
        {"rope_type": "longrope", "short_factor": SHORT, "long_factor": SHORT},
        {"rope_type": "proportional", "rope_theta": 77.0},
        {"rope_type": "other"},
        {"full_attention": {"rope_type": "default", "rope_theta": 77.0}},
        {"full_attention": None, "rope_theta": 77.0},
    ],
    "rope_scaling": [None, {}, {"rope_theta": 77.0}, LINEAR, {"type": "linear", "factor": 2.5}, LLAMA3, {"factor": 2.0}],
    "rope_theta": [77.0, None],
    "rotary_dim": [4],
    "rotary_pct": [0.5],
    "sliding_window": [3, 100, None, 0],
    "use_bidirectional_attention": [True, False, None],
    "use_qk_norm": [True],
    "use_sliding_window": [True, False],
}
ENCODERS = {
    "add_cross_attention": [True],
    "attention_probs_dropout_prob": [0.5],
    "classifier_dropout": [0.5, None],
    "embedding_size": [12],
    "finetuning_task": ["mnli"],
    "hidden_act": ["relu", "gelu_new", "quick_gelu", None],
    "hidden_dropout_prob": [0.5],
    "is_causal": [False, True],
    "is_decoder": [True],
    "layer_norm_eps": [0.2],
    "position_embedding_type": ["relative_key", "absolute"],
    "problem_type": ["regression", "single_label_classification", "multi_label_classification"],
    "type_vocab_size": [1, 9],
}
# Fields that only mean something together.
TOGETHER = {
    "llama": [{"rope_theta": 77.0, "rope_scaling": LINEAR}, {"rope_theta": 77.0, "rope_parameters": {"rope_theta": 55.0}}],
    "mistral": [{"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 3}],
    "gemma2": [{"sliding_window": None, "layer_types": ["full_attention"] * 3}],
    "qwen2": [
        {"rope_theta": 77.0, "partial_rotary_factor": 0.5},
        {"use_sliding_window": True, "sliding_window": 3, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"use_sliding_window": False, "layer_types": ["full_attention", "sliding_attention", "full_attention"]},
        {"use_sliding_window": True, "sliding_window": None},
    ],
    "qwen3": [
        {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1},
        {"use_sliding_window": True, "sliding_window": 3},
    ],
    "phi3": [
        {"rope_parameters": DROP, "rope_scaling": {"type": "su", "short_factor": SHORT, "long_factor": SHORT}},
        {"rope_parameters": DROP, "partial_rotary_factor": 0.4},
        {"rope_parameters": DROP, "partial_rotary_factor": None},
        {"rope_parameters": {"rope_theta": 77.0, "partial_rotary_factor": 0.4}, "partial_rotary_factor": 1.0},
    ],
    "bert": [{"is_decoder": True, "add_cross_attention": True}],
}
CHECKPOINTS = {
    "llama": "llama-biased",
    "mistral": "mistral-window",
    "gemma": "gemma-tanh",
    "gemma2": "gemma2-capped",
    "qwen2": "qwen2-window-old",
    "qwen3": "qwen3-normed",
    "phi3": "phi3-window",
    "bert": "bert-gelu",
    "roberta": "roberta-gelu",
    "xlm-roberta": "roberta-gelu",
    "camembert": "roberta-gelu",
}
READ = re.compile(r"\bconfig\.([a-z]\w*)|getattr\((?:self\.)?(?:\w+_)?config, \"([a-z]\w*)\"")
# What the pattern finds that is no field.
METHODS = {"default_theta", "get_text_config", "json", "kv_sharing_modes", "number_of_conv_states",
           "standardize_rope_params", "validate_rope"}


def fields(family):
    """The fields that the configuration class declares, and others that the code reads."""
    module = family.replace("-", "_")
    modeling = importlib.import_module(f"transformers.models.{module}.modeling_{module}")
    sources = [modeling, cache_utils, masking_utils, modeling_rope_utils] if is_decoder(family) else [modeling]
    read = {a or b for source in sources for a, b in READ.findall(inspect.getsource(source))}
    declared = {field.name for field in dataclasses.fields(CONFIG_MAPPING[family])}
    return sorted(declared | (read - METHODS))


def is_decoder(family):
    return "bert" not in family


def load(folder, family):
    """The model, and whether weights were made up."""
    auto = AutoModelForCausalLM if is_decoder(family) else AutoModelForSequenceClassification
    model, info = auto.from_pretrained(
        folder, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    return model.eval(), bool(info["missing_keys"] or info["mismatched_keys"])


@torch.no_grad()
def continued(model, cached):
    """The most probable tokens, one after the other."""
    ids, past = list(IDS), None
    for _ in range(CONTINUED):
        shown = ids[-1:] if past is not None else ids
        out = model(torch.tensor([shown]), cache=past, use_cache=cached, return_dict=True)
        past = out.cache if cached else None
        ids.append(int(out.logits[0, -1].argmax()))
    return ids


@torch.no_grad()
def outcome(folder, family):
    try:
        model, drawn = load(folder, family)
        if drawn:
            return "drawn", False
        logits = model(torch.tensor([IDS]), return_dict=True).logits[0]
        logits = logits[-1] if is_decoder(family) else logits
        if not logits.isfinite().all():
            return "error", False
    except Exception as error:  # whatever it is, the config cannot be used
        print(f"    {type(error).__name__}: {str(error).strip().splitlines()[-1][:110] if str(error).strip() else ''}")
        return "error", False
    cached = False
    if is_decoder(family):
        try:
            cached = continued(model, True) != continued(model, False)
        except Exception:
            cached = True
    return logits, cached


def written(base, change, folder):
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    path = folder / "config.json"
    config = json.loads(path.read_text())
    for key, value in change.items():
        config[key] = value
    path.write_text(json.dumps({key: value for key, value in config.items() if value != DROP}))


def cases(family, base, folder):
    written(base, {"model_type": family}, folder)
    plain, _ = outcome(folder, family)
    tried = SHARED | (DECODERS if is_decoder(family) else ENCODERS)
    changes = [{key: value} for key in sorted(tried) for value in tried[key]] + TOGETHER.get(family, [])
    keys = sorted(json.loads((base / "config.json").read_text()).keys() - {"model_type"})
    changes += [{key: value} for key in keys for value in (DROP, None) if {key: value} not in changes]
    for change in changes:
        written(base, {"model_type": family, **change}, folder)
        found, cached = outcome(folder, family)
        if not isinstance(found, str):
            worst = float((found - plain).abs().max() / plain.abs().max()) if found.shape == plain.shape else 1.0
            found = "same" if worst < ROUNDING else [float(f"{x:.7g}") for x in found[:SHOWN].tolist()]
        given = {key: value for key, value in change.items() if value != DROP}
        case = {"set": given, "drop": [key for key, value in change.items() if value == DROP], "outcome": found}
        print(family, change, "->", found if isinstance(found, str) else "other logits", "cached" if cached else "")
        yield case | ({"cached": True} if cached else {})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--encoders", type=Path, required=True)
    parser.add_argument("--decoders", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    lines = []
    with tempfile.TemporaryDirectory() as place:
        for family, name in CHECKPOINTS.items():
            base = (options.decoders if is_decoder(family) else options.encoders) / name
            rows = [json.dumps(case) for case in cases(family, base, Path(place) / "model")]
            head = f'"{family}": {{"checkpoint": "{name}", "fields": {json.dumps(fields(family))}, "cases": [\n'
            lines.append(head + ",\n".join(rows) + "\n]}")
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    head = {"generator": "scripts/reference/config_fields.py", **versions, "ids": IDS}
    options.out.write_text(f"{json.dumps(head)[:-1]},\n\"families\": {{\n" + ",\n".join(lines) + "\n}}\n")


if __name__ == "__main__":
    main()
