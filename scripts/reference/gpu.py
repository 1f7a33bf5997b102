#!/usr/bin/env python3
"""Measures `loraxs` on a GPU against Transformers and PEFT: training, generation, decomposition, memory. `scripts/gpu.sh` calls it.

Checkpoints of the published shapes are written with random weights; texts and tokenizers are real. Both sides train on
the same rows in the same order; speeds are medians over steps after the first ten, and tokens are counted without padding.
Each part prints lines as it goes and adds to OUT/gpu.json; a part that fails does not stop the others.

The peer is a Python file with `convert(model, targets, rank, alpha, init)`, which puts LoRA-XS adapters on a model of
Transformers through PEFT and returns it first; without one, only `loraxs` is measured. --tiny rehearses every part on small shapes.
Needs: torch, transformers, safetensors; peft for the peer.
"""

import argparse
import gc
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
import traceback
from pathlib import Path

import torch
import transformers

ENCODER_TARGETS = ["query", "value", "attention.output.dense", "output.dense"]
DECODER_TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPT = "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n### Instruction:\n{query}\n\n### Response:"
SKIPPED = 10
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16}


class Bench:
    def __init__(self, options):
        self.options, self.results, self.warm = options, {}, {}
        self.device = torch.device(options.device)
        options.out.mkdir(parents=True, exist_ok=True)
        options.place.mkdir(parents=True, exist_ok=True)

    def note(self, key, **values):
        self.results[key] = values
        shown = ", ".join(f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}" for name, value in values.items())
        print(f"{key}: {shown}", flush=True)
        (self.options.out / "gpu.json").write_text(json.dumps(self.results, indent=1))

    def sync(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def free(self):
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak(self):
        return torch.cuda.max_memory_allocated() / 2**20 if self.device.type == "cuda" else float("nan")

    def loraxs(self, *arguments, name, limit=200, graphs=True, halves=True, kernels=True):
        """Runs the command; returns its seconds. Its output goes to OUT/<name>.log."""
        log = self.options.out / f"{name}.log"
        environment = os.environ | {"LORAXS_CACHE": str(self.options.place / "cache"), "HF_HUB_OFFLINE": "1", **{f"LORAXS_{name}": str(int(on)) for name, on in [("CUDA_GRAPHS", graphs), ("FP32_HALVES", halves), ("CUDA_KERNELS", kernels)]}}
        device = self.options.device
        if self.options.standin:
            device, environment["LD_LIBRARY_PATH"] = "cuda:0", str(self.options.standin)
            # It computes on a CPU, products by halves in fp64.
            limit *= 4
        command = [str(self.options.loraxs), *map(str, arguments), "--device", device]
        start = time.perf_counter()
        with open(log, "w") as out:
            done = subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, env=environment, timeout=limit, cwd=self.options.place)
        if done.returncode:
            raise RuntimeError(f"loraxs {arguments[0]} ended with {done.returncode}: {log.read_text()[-1500:]}")
        return time.perf_counter() - start

    # Checkpoints

    def checkpoint(self, name, config, tokenizer):
        """Writes random weights for a configuration of Transformers; returns the folder, and how long it took."""
        from safetensors.torch import save_file
        from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

        folder = self.options.place / name
        if (folder / "config.json").exists():
            return folder
        start = time.perf_counter()
        folder.mkdir(parents=True)
        decoder = config.model_type in ("mistral", "llama")
        make = AutoModelForCausalLM if decoder else AutoModelForSequenceClassification
        with torch.device(self.device):
            torch.manual_seed(0)
            model = make.from_config(config, dtype=torch.bfloat16 if decoder else torch.float32)
        state = {key: value for key, value in model.state_dict().items() if not key.startswith("classifier") and not (config.tie_word_embeddings and key == "lm_head.weight" and decoder)}
        shards, size, index = [{}], 0, {}
        for key, value in state.items():
            if size > 4 << 30:
                shards.append({})
                size = 0
            shards[-1][key] = value.cpu().contiguous()
            size += value.numel() * value.element_size()
        for number, shard in enumerate(shards, 1):
            file = f"model-{number:05}-of-{len(shards):05}.safetensors" if len(shards) > 1 else "model.safetensors"
            save_file(shard, folder / file, metadata={"format": "pt"})
            index |= dict.fromkeys(shard, file)
        if len(shards) > 1:
            (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))
        for file in Path(tokenizer).iterdir():
            if "tokenizer" in file.name or file.name in ("vocab.txt", "special_tokens_map.json"):
                shutil.copyfile(file, folder / file.name)
        config.save_pretrained(folder)
        del model, state, shards
        self.free()
        print(f"written {name}: {time.perf_counter() - start:.1f} s", flush=True)
        return folder

    def encoder(self):
        from transformers import BertConfig

        sizes = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128)
        if not self.options.tiny:  # RoBERTa-large's
            sizes = dict(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)
        config = BertConfig(vocab_size=30522, **sizes)
        return self.checkpoint("encoder", config, self.options.encoder_tokenizer)

    def decoder(self):
        from tokenizers import Tokenizer
        from transformers import MistralConfig

        vocabulary = Tokenizer.from_file(str(self.options.decoder_tokenizer / "tokenizer.json")).get_vocab_size()
        sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        if not self.options.tiny:  # Mistral-7B's, but for the vocabulary
            sizes = dict(hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32, num_key_value_heads=8)
        special = dict(sliding_window=None, bos_token_id=1, eos_token_id=2, pad_token_id=None, max_position_embeddings=4096)
        config = MistralConfig(vocab_size=(vocabulary + 63) // 64 * 64, tie_word_embeddings=False, **special, **sizes)
        return self.checkpoint("decoder", config, self.options.decoder_tokenizer)

    def small_decoder(self):
        from tokenizers import Tokenizer
        from transformers import LlamaConfig

        vocabulary = Tokenizer.from_file(str(self.options.decoder_tokenizer / "tokenizer.json")).get_vocab_size()
        sizes = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
        if not self.options.tiny:  # SmolLM2-135M's
            sizes = dict(hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3)
        special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=None, max_position_embeddings=8192)
        config = LlamaConfig(vocab_size=(vocabulary + 63) // 64 * 64, tie_word_embeddings=True, **special, **sizes)
        return self.checkpoint("small", config, self.options.decoder_tokenizer)

    # Parts

    def doctor(self):
        seconds = self.loraxs("doctor", "--offline", name="doctor", limit=60)
        print((self.options.out / "doctor.log").read_text(), flush=True)
        self.note("doctor", seconds=seconds)

    def machine(self):
        values = {"torch": torch.__version__, "cpus": os.cpu_count()}
        if self.device.type == "cuda":
            smi = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
            values["gpu"] = subprocess.run(smi, capture_output=True, text=True).stdout.strip()
        n = 512 if self.options.tiny else 8192
        for name, tf32, dtype in [("fp32", False, torch.float32), ("tf32", True, torch.float32), ("bf16", False, torch.bfloat16)]:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            a, b = (torch.randn(n, n, device=self.device, dtype=dtype) for _ in range(2))
            a @ b
            self.sync()
            start = time.perf_counter()
            for _ in range(10):
                a @ b
            self.sync()
            self.warm[name] = 10 * 2 * n**3 / (time.perf_counter() - start)
            values[f"{name} TFLOP/s"] = self.warm[name] / 1e12
        torch.backends.cuda.matmul.allow_tf32 = False
        x = torch.empty((1 << 20) if self.options.tiny else (2 << 30), device=self.device, dtype=torch.uint8)
        y = torch.empty_like(x)
        y.copy_(x)
        self.sync()
        start = time.perf_counter()
        for _ in range(10):
            y.copy_(x)
        self.sync()
        self.warm["bytes"] = 10 * 2 * x.numel() / (time.perf_counter() - start)
        small = torch.zeros(8, device=self.device)
        self.sync()
        start = time.perf_counter()
        for _ in range(5000):
            small.add_(1)
        self.sync()
        values["µs/launch"] = (time.perf_counter() - start) / 5000 * 1e6
        self.note("machine", **values, **{"TB/s": self.warm["bytes"] / 1e12})

    def recipe(self, folder, model, targets, dataset, **train):
        rank = train.pop("rank", 16)
        tables = {
            "model": {"name": str(model)},
            "adapter": {"method": "lora-xs", "rank": rank, "alpha": rank, "targets": targets},
            "data": {"dataset": dataset, "max_length": train.pop("max_length", 128)},
            "train": {"shuffle": False, "log_every": 1, "learning_rate": 1e-4, **train},
            "eval": {"every": "never"},
        }
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in table.items()) for name, table in tables.items()]
        (folder / "recipe.toml").write_text("\n".join(lines))
        return folder / "recipe.toml"

    def train(self, name, *recipe, limit, graphs=True, halves=True, **train):
        """Trains; returns tokens and examples per second after the first steps, and the run's output."""
        folder = self.options.place / "runs" / name
        shutil.rmtree(folder, ignore_errors=True)
        path = self.recipe(folder, *recipe, **train)
        seconds = self.loraxs("train", "--recipe", path, "--datasets", self.options.place / "datasets.toml", "--out", folder / "run", name=name.replace("/", "-"), limit=limit, graphs=graphs, halves=halves)
        points = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
        points = [point for point in points if point["kind"] == "train"]
        results = json.loads((folder / "run/results.json").read_text())
        tokens = statistics.median(point["tokens_per_second"] for point in points[len(points) // 2 :])
        examples = tokens * results["examples_per_second"] / results["tokens_per_second"]
        return tokens, examples, [point["loss"] for point in points], results, seconds

    def data(self, new_tokens=None):
        data, place = self.options.data.resolve(), self.options.place
        query = ["query", "response"]
        rows = [json.loads(line) for line in open(data / "metamath/surrogate_gsm8k_math_train.jsonl", encoding="utf-8")]
        (place / "metamath.jsonl").write_text("".join(json.dumps({key: row[key] for key in query}) + "\n" for row in rows))
        entries = []
        for task, text in [("sst2", ["sentence"]), ("mrpc", ["sentence1", "sentence2"])]:
            entries.append(f'["gpu/{task}"]\ntask = "classification"\ndir = {json.dumps(str(data / "glue" / task))}\ntext = {json.dumps(text)}\n'
                           'label = "label"\nlabels = ["a", "b"]\nmetrics = ["accuracy"]\nfiles = { train = "train.jsonl", validation = "validation.jsonl" }\n')
        entries.append(f'["gpu/metamath"]\ntask = "instruction"\nfiles = {{ train = "metamath.jsonl" }}\nprompt = {json.dumps(PROMPT)}\nresponse = "{{response}}"\n')
        entries.append(f'["gpu/gsm8k"]\ntask = "generation"\ndir = {json.dumps(str(data / "gsm8k"))}\nfiles = {{ test = "test.jsonl" }}\n'
                       f'prompt = {json.dumps(PROMPT.replace("query", "question"))}\nanswer = "{{answer}}"\nscorers = ["gsm8k/metamath"]\nmax_new_tokens = {new_tokens or self.options.new_tokens}\n')
        (place / "datasets.toml").write_text("\n".join(entries))
        return rows

    def peer(self):
        spec = importlib.util.spec_from_file_location("peer", self.options.peer)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    def steps_of_peer(self, model, batches, loss_of):
        """Trains one step a batch; returns seconds of each step after the first, and the losses."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(parameters, lr=1e-4)
        seconds, losses = [], []
        for batch in batches:
            self.sync()
            start = time.perf_counter()
            loss = loss_of(model, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            seconds.append(time.perf_counter() - start)
        return seconds, losses

    def glue_steps(self):
        """Steps of `glue`; the peer and the runs beside it take an eighth of them."""
        return 24 if self.options.tiny else 320

    def glue(self):
        self.data()
        model, steps = self.encoder(), self.glue_steps()
        for task, precision in itertools.product(self.options.tasks, self.options.precisions):
            settings = dict(batch_size=32, micro_batch_size=32, max_steps=steps, precision=precision, schedule="constant", warmup_ratio=0.0)
            tokens, examples, losses, results, _ = self.train(f"{task}-{precision}", model, ENCODER_TARGETS, f"gpu/{task}", limit=60, **settings)
            short = settings | dict(max_steps=steps // 8)
            # On the batches of the peer, so that its peak can be compared.
            _, plain, others, results_plain, _ = self.train(f"{task}-{precision}-plain", model, ENCODER_TARGETS, f"gpu/{task}", limit=60, graphs=False, **short)
            apart = max(abs(a - b) / b for a, b in zip(losses, others))
            if precision == "fp32":
                _, slow, others, results_slow, _ = self.train(f"{task}-fp32-units", model, ENCODER_TARGETS, f"gpu/{task}", limit=60, halves=False, **short)
                away = [abs(a - b) / b for a, b in zip(losses, others)]
                self.note(f"glue {task} fp32 units", **{"examples/s": slow, "MiB": results_slow["peak_memory_mib"], "first loss apart": away[0], "losses apart": max(away)})
            parameters = sum(p.numel() for p in self.encoder_trunk(model))
            share = 4 * parameters * tokens / self.warm[precision] if precision in self.warm else float("nan")
            self.note(f"glue {task} {precision} loraxs", **{"examples/s": examples, "tokens/s": tokens, "share of 4N floor": share,
                      "MiB": results["peak_memory_mib"], "MiB of the peer's batches": results_plain["peak_memory_mib"],
                      "first loss": losses[0], "last loss": losses[-1], "examples/s without recordings": plain, "losses apart": apart})

    def sweep(self):
        """Sixteen runs of the encoder together, and one after another: runs an hour, and how far their losses are apart."""
        self.data()
        found = {}
        for together in (16, 1):
            folder = self.options.place / "runs" / f"sweep-{together}"
            shutil.rmtree(folder, ignore_errors=True)
            steps = 4 if self.options.tiny else 40
            path = self.recipe(folder, self.encoder(), ENCODER_TARGETS, "gpu/sst2", batch_size=32, max_steps=steps, precision="bf16", checkpoint_every="never")
            varied = ["train.learning_rate=1e-4,5e-4,1e-3,2e-3", "train.seed=0,1,2,3", f"together={together}"]
            varied = [argument for sweep in varied for argument in ("--sweep", sweep)]
            self.loraxs("train", "--recipe", path, "--datasets", self.options.place / "datasets.toml", "--out", folder / "sweep", *varied, name=f"sweep-{together}", limit=200)
            runs = sorted(path.parent for path in folder.glob("sweep/*/results.json"))
            results = [json.loads((run / "results.json").read_text()) for run in runs]
            points = [json.loads(line) for run in runs for line in (run / "metrics.jsonl").read_text().splitlines()]
            seconds = sum(result["train_seconds"] for result in results)
            found[together] = seconds, [point["loss"] for point in points if point["kind"] == "train"]
            self.note(f"sweep, {together} together", **{"runs/hour": 3600 * len(runs) / seconds, "MiB": max(result["peak_memory_mib"] for result in results)})
        (together, losses), (alone, others) = found[16], found[1]
        apart = max(abs(a - b) / b for a, b in zip(losses, others, strict=True))
        self.note("sweep", **{"times the runs an hour": alone / together, "losses apart": apart})

    def processes(self):
        """One process, and two that share the device: how far their losses are apart, and the seconds of a step in sums."""
        self.data()
        found = {}
        for count in (1, 2):
            folder = self.options.place / "runs" / f"processes-{count}"
            shutil.rmtree(folder, ignore_errors=True)
            steps = 4 if self.options.tiny else 40
            # Micro batches are given whole, so that their masks are those of one process.
            settings = dict(batch_size=32, micro_batch_size=16, max_steps=steps, precision="fp32", log_every=1, checkpoint_every="never")
            path = self.recipe(folder, self.encoder(), ENCODER_TARGETS, "gpu/sst2", **settings)
            self.loraxs("train", "--recipe", path, "--datasets", self.options.place / "datasets.toml", "--out", folder / "run", "--processes", str(count), name=f"processes-{count}", limit=120)
            results = json.loads((folder / "run" / "results.json").read_text())
            points = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
            found[count] = [point["loss"] for point in points if point["kind"] == "train"]
            self.note(f"processes, {count}", **{"examples/s": results["examples_per_second"], "processes": results["processes"]})
        apart = max(abs(a - b) / b for a, b in zip(found[1], found[2], strict=True))
        self.note("processes", **{"losses apart": apart})

    def encoder_trunk(self, folder):
        from transformers import AutoModel

        if not hasattr(self, "_trunk"):
            with torch.device("meta"):
                from transformers import AutoConfig

                model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
            self._trunk = [p for name, p in model.named_parameters() if "encoder" in name]
        return self._trunk

    def glue_peer(self):
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        self.data()
        folder, steps = self.encoder(), self.glue_steps() // 8
        tokenizer = AutoTokenizer.from_pretrained(folder)
        for task, precision, padding in itertools.product(self.options.tasks, self.options.precisions, ["max_length", "longest"]):
            torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
            model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2, dtype=DTYPES[precision])
            model = self.peer().convert(model, ENCODER_TARGETS, 16, 16, "random")[0].to(self.device).train()
            columns = ["sentence"] if task == "sst2" else ["sentence1", "sentence2"]
            with open(self.options.data / "glue" / task / "train.jsonl", encoding="utf-8") as lines:
                rows = [json.loads(line) for line in itertools.islice(lines, 32 * steps)]
            batches = []
            for at in range(0, len(rows), 32):
                part = rows[at : at + 32]
                texts = [[row[column] for row in part] for column in columns]
                encoded = tokenizer(*texts, padding=padding, truncation=True, max_length=128, return_tensors="pt")
                batches.append((encoded.to(self.device), torch.tensor([row["label"] for row in part]).to(self.device)))
            loss_of = lambda model, batch: torch.nn.functional.cross_entropy(model(**batch[0]).logits.float(), batch[1])
            self.free()
            seconds, _ = self.steps_of_peer(model, batches, loss_of)
            seconds = seconds[min(SKIPPED, steps // 2) :]
            torch.backends.cuda.matmul.allow_tf32 = False
            self.note(f"glue {task} {precision} peer, {padding}", **{"examples/s": 32 / statistics.median(seconds), "MiB": self.peak()})
            del model, batches
            self.free()

    def svd(self):
        folder = self.decoder()
        seconds = self.loraxs("init-svd", "--model", folder, "--rank", 8 if self.options.tiny else 64, name="svd", limit=150)
        self.note("svd", seconds=seconds)

    def lm(self):
        self.data()
        folder, rank = self.decoder(), 8 if self.options.tiny else 64
        for budget in [512] if self.options.tiny else self.options.budgets:
            settings = dict(rank=rank, max_length=512, batch_size=2 if self.options.tiny else 32, max_steps=6 if self.options.tiny else self.options.lm_steps)
            settings |= dict(micro_batch_tokens=budget, precision="bf16")
            tokens, examples, losses, results, seconds = self.train(f"lm-{budget}", folder, DECODER_TARGETS, "gpu/metamath", limit=200, **settings)
            parameters = self.decoder_parameters(folder)
            share = 4 * parameters * tokens / self.warm["bf16"] if "bf16" in self.warm else float("nan")
            self.note(f"lm bf16 {budget} loraxs", **{"tokens/s": tokens, "examples/s": examples, "share of 4N floor": share, "MiB": results["peak_memory_mib"],
                      "first loss": losses[0], "last loss": losses[-1], "seconds in all": seconds})

    def small(self):
        self.data()
        folder, steps = self.small_decoder(), 24 if self.options.tiny else 480
        settings = dict(rank=8, max_length=512, batch_size=8, micro_batch_tokens=8192, precision="bf16", schedule="constant", warmup_ratio=0.0)
        tokens, _, losses, results, _ = self.train("small", folder, DECODER_TARGETS, "gpu/metamath", limit=60, max_steps=steps, **settings)
        short = dict(max_steps=steps // 12, graphs=False)
        plain, _, others, _, _ = self.train("small-plain", folder, DECODER_TARGETS, "gpu/metamath", limit=60, **short, **settings)
        apart = max(abs(a - b) / b for a, b in zip(losses, others))
        share = 4 * self.decoder_parameters(folder) * tokens / self.warm["bf16"] if "bf16" in self.warm else float("nan")
        self.note("small bf16 loraxs", **{"tokens/s": tokens, "share of 4N floor": share, "MiB": results["peak_memory_mib"],
                  "first loss": losses[0], "last loss": losses[-1], "tokens/s without recordings": plain, "losses apart": apart})

    def small_peer(self):
        self.lm_peer(self.small_decoder(), 8, "small", 20)

    def decoder_parameters(self, folder):
        c = json.loads((folder / "config.json").read_text())
        d, wide = c["hidden_size"], c["intermediate_size"]
        kv = d // c["num_attention_heads"] * c["num_key_value_heads"]
        return c["num_hidden_layers"] * (2 * d * d + 2 * d * kv + 3 * d * wide)

    def vocabulary(self, folder):
        c = json.loads((folder / "config.json").read_text())
        return c["vocab_size"] * c["hidden_size"]

    def lm_peer(self, folder=None, rank=64, name="lm", steps=12):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        rows, folder = self.data(), folder or self.decoder()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, attn_implementation="sdpa").to(self.device)
        model = self.peer().convert(model, DECODER_TARGETS, 8 if self.options.tiny else rank, rank, "random")[0].to(self.device).train()
        size, steps = (2, 3) if self.options.tiny else (8, steps)
        batches, counts = [], []
        for at in range(0, size * steps, size):
            encoded = []
            for row in rows[at : at + size]:
                prompt = tokenizer(PROMPT.format(query=row["query"]))["input_ids"]
                encoded.append(((prompt + tokenizer(row["response"])["input_ids"] + [2])[:512], len(prompt)))
            longest = max(len(ids) for ids, _ in encoded)
            ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in encoded])
            mask = torch.tensor([[1] * len(ids) + [0] * (longest - len(ids)) for ids, _ in encoded])
            labels = torch.tensor([[-100] * min(start, longest) + ids[start:] + [-100] * (longest - max(len(ids), start)) for ids, start in encoded])
            batches.append(dict(input_ids=ids.to(self.device), attention_mask=mask.to(self.device), labels=labels.to(self.device)))
            counts.append(int(mask.sum()))
        self.free()
        seconds, _ = self.steps_of_peer(model, batches, lambda model, batch: model(**batch, use_cache=False).loss)
        skipped = min(3, steps - 1)
        rates = [count / second for count, second in zip(counts[skipped:], seconds[skipped:])]
        padded = [batch["input_ids"].numel() / second for batch, second in zip(batches[skipped:], seconds[skipped:])]
        self.note(f"{name} bf16 peer", **{"tokens/s": statistics.median(rates), "with padding": statistics.median(padded), "batch": size, "MiB": self.peak()})
        del model, batches
        self.free()

    def generate(self, kernels=True):
        from tokenizers import Tokenizer

        folder, new = self.decoder(), self.options.new_tokens
        config = json.loads((folder / "config.json").read_text())
        of_token = 4 * config["num_hidden_layers"] * config["num_key_value_heads"] * config["hidden_size"] // config["num_attention_heads"]
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        rows = [json.loads(line)["question"] for line in open(self.options.data / "gsm8k/test.jsonl", encoding="utf-8")]
        for count, slots in [(4, 4)] if self.options.tiny else self.options.slots:
            seconds, prompt = [], statistics.mean(len(tokenizer.encode(PROMPT.format(query=row)).ids) for row in rows[:count])
            for tokens in (new, 3 * new):
                self.data(tokens)
                name = f"generate{'' if kernels else ' plain'} {count} in {slots}, {tokens}"
                out = self.options.place / "runs" / name
                shutil.rmtree(out, ignore_errors=True)
                arguments = ["eval", "--model", folder, "--task", "gpu/gsm8k", "--limit", count, "--precision", "bf16", "--out", out, "--datasets", self.options.place / "datasets.toml"]
                all_seconds = self.loraxs(*arguments, "--batch-size", slots, name=name.replace(" ", "-").replace(",", ""), limit=120, kernels=kernels)
                seconds.append(json.loads((out / "results.json").read_text())["gpu/gsm8k"]["seconds"])
                self.note(name, **{"seconds": seconds[-1], "in all": all_seconds, "new tokens/s": count * tokens / seconds[-1]})
            # Further steps, without prompts and recordings: each reads every weight, and the keys and values so far.
            step = (seconds[1] - seconds[0]) / (2 * new) / (count / slots)
            read = 2 * (self.decoder_parameters(folder) + self.vocabulary(folder)) + slots * (prompt + 2 * new) * of_token
            self.note(f"generate{'' if kernels else ' plain'} {count} in {slots}", **{"ms a further step": 1e3 * step, "share of bandwidth": read / step / self.warm.get("bytes", float("nan"))})

    def generate_plain(self):
        """The same by libtorch's kernels alone; only where it is asked for."""
        self.generate(kernels=False)

    def generate_peer(self):
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self.data()
        folder = self.decoder()
        tokenizer = AutoTokenizer.from_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).to(self.device).eval()
        rows = [json.loads(line) for line in open(self.options.data / "gsm8k/test.jsonl", encoding="utf-8")]
        for count, new in [(4, 4)] if self.options.tiny else [(count, 64) for count, _ in self.options.slots]:
            ids = sorted((tokenizer(PROMPT.format(query=row["question"]))["input_ids"] for row in rows[:count]), key=len)
            longest = len(ids[-1])
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in ids]).to(self.device)
            batch = torch.tensor([[0] * (longest - len(row)) + row for row in ids]).to(self.device)
            limits = dict(do_sample=False, pad_token_id=0, eos_token_id=None)
            with torch.inference_mode():
                model.generate(batch, attention_mask=mask, max_new_tokens=4, **limits)
                self.sync()
                start = time.perf_counter()
                model.generate(batch, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, **limits)
                self.sync()
            seconds = time.perf_counter() - start
            self.note(f"generate peer, batch {count}", **{"new tokens/s": count * new / seconds, "seconds": seconds, "new tokens": new, "MiB": self.peak()})
        del model
        self.free()


PARTS = ["doctor", "machine", "glue", "glue_peer", "sweep", "processes", "svd", "lm", "lm_peer", "small", "small_peer", "generate", "generate_peer"]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loraxs", type=Path, default=Path("target/release/loraxs"))
    parser.add_argument("--peer", type=Path, help="the peer's script")
    parser.add_argument("--data", type=Path, required=True, help="folder with glue, gsm8k and metamath")
    parser.add_argument("--encoder-tokenizer", type=Path, required=True, help="folder of a BERT tokenizer with 30,522 words")
    parser.add_argument("--decoder-tokenizer", type=Path, required=True, help="folder of a decoder's tokenizer")
    parser.add_argument("--out", type=Path, default=Path("gpu-out"))
    parser.add_argument("--place", type=Path, default=Path("/tmp/loraxs-gpu"), help="folder for checkpoints and runs, 20 GB")
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--parts", type=lambda text: text.split(","), default=PARTS)
    parser.add_argument("--tasks", type=lambda text: text.split(","), default=["sst2", "mrpc"])
    parser.add_argument("--precisions", type=lambda text: text.split(","), default=["fp32", "tf32", "bf16"])
    parser.add_argument("--budgets", type=lambda text: [int(part) for part in text.split(",")], default=[8192])
    parser.add_argument("--slots", type=lambda text: [tuple(map(int, part.split(":"))) for part in text.split(",")], default=[(256, 256), (64, 64)],
                        help="prompts and slots of each run of generation, as 256:256,64:64")
    parser.add_argument("--lm-steps", type=int, default=12)
    parser.add_argument("--new-tokens", type=int, default=128)
    parser.add_argument("--tiny", action="store_true", help="small shapes, to rehearse")
    parser.add_argument("--standin", type=Path, help="folder that `scripts/standin.sh --library` prints, to rehearse loraxs's part without a GPU")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in ["loraxs", "data", "out", "place", "peer", "standin"]:
        if getattr(options, name):
            setattr(options, name, getattr(options, name).resolve())
    if options.tiny:
        options.new_tokens = 4
    bench, failed = Bench(options), []
    for part in options.parts:
        if part.endswith("_peer") and not options.peer:
            continue
        start = time.perf_counter()
        try:
            getattr(bench, part)()
        except Exception as error:  # noqa: BLE001 - the others continue
            failed.append(part)
            traceback.print_exc(limit=3, file=sys.stdout)
            bench.note(f"{part} failed", error=str(error)[-1500:])
        print(f"-- {part}: {time.perf_counter() - start:.1f} s", flush=True)
    sys.exit(f"failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
