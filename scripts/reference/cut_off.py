#!/usr/bin/env python3
"""What sums that are cut off, as tensor cores do, cost products of fp32 by halves (src/torch/halves.h).

  cut_off.py sums                      mean and largest errors of products over Σ |x w|, calculated: sixteen terms are added
                                       exactly to a sum, which is then cut off to fp32
  cut_off.py weights FROM TO --shrink A B | --disturb A
                                       copies a checkpoint of BERT with the layers' weights shrunk by A, those of
                                       output.dense by B, or disturbed at random by A of themselves

Needs: torch, safetensors.
"""

import argparse
import shutil
from pathlib import Path

import torch


def cut(x):
    y = x.float()
    return torch.where(y.double().abs() > x.abs(), torch.nextafter(y, torch.zeros_like(y)), y).double()


def rounded(x, bits):
    mantissa, exponent = torch.frexp(x)
    return torch.ldexp(torch.round(torch.ldexp(mantissa, torch.tensor(bits))), exponent - bits)


def parts(x, bits, count):
    found = []
    for _ in range(count):
        found.append(rounded(x, bits))
        x = x - found[-1]
    return found


def product(x, w, pairs, step, block):
    total = torch.zeros(len(x[0]), len(w[0]), dtype=torch.double)
    for at in range(0, x[0].shape[1], block):
        one = torch.zeros_like(total)
        for i, j in pairs:
            for k in range(at, min(at + block, x[0].shape[1]), step):
                one = cut(one + x[i][:, k : k + step] @ w[j][:, k : k + step].T)
        total = (total + one).float().double()
    return total


def sums():
    torch.manual_seed(0)
    for k in (1024, 4096):
        x, w = (torch.randn(48, k).double() * scale for scale in (1, 0.05))
        x, w = x.float().double(), w.float().double()
        exact, scale = x @ w.T, x.abs() @ w.abs().T
        small_first = [(1, 0), (0, 1), (0, 0)]

        def show(name, found):
            off = (found - exact).abs() / scale
            print(f"{k} numbers, {name}: mean {off.mean():.1e}, largest {off.max():.1e}")

        show("three bf16", product(parts(x, 8, 3), parts(w, 8, 3), [(2, 0), (0, 2), (1, 1), *small_first], 16, k))
        show("two TF32", product(parts(x, 11, 2), parts(w, 11, 2), small_first, 8, k))
        for block in (k, 512, 256, 128):
            show(f"two fp16, {block} at a time", product(parts(x, 11, 2), parts(w, 11, 2), small_first, 16, block))
        chain = torch.zeros_like(exact)
        for i in range(k):
            chain = (chain + torch.outer(x[:, i], w[:, i])).float().double()
        show("fp32, one after another", chain)


def weights(options):
    from safetensors.torch import load_file, save_file

    shutil.copytree(options.source, options.to)
    state, generator = load_file(options.to / "model.safetensors"), torch.Generator().manual_seed(7)
    for name, weight in state.items():
        if not name.endswith(("dense.weight", "query.weight", "key.weight", "value.weight")):
            continue
        if options.disturb:
            factor = 1 + options.disturb * torch.randn(weight.shape, generator=generator)
        else:
            factor = 1 - options.shrink["output.dense" in name and "attention" not in name]
        state[name] = (weight.double() * factor).float().contiguous()
    save_file(state, options.to / "model.safetensors", metadata={"format": "pt"})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("sums")
    changed = commands.add_parser("weights")
    changed.add_argument("source", type=Path)
    changed.add_argument("to", type=Path)
    how = changed.add_mutually_exclusive_group(required=True)
    how.add_argument("--shrink", type=float, nargs=2)
    how.add_argument("--disturb", type=float)
    options = parser.parse_args()
    sums() if options.command == "sums" else weights(options)


if __name__ == "__main__":
    main()
