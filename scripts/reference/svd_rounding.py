#!/usr/bin/env python3
"""Prints how far the fp32 factors of one library are from those of another, and from fp64, on a checkpoint's layers.

    python scripts/reference/svd_rounding.py --model minilm-l6 --rank 16

For every layer that the GLUE recipes adapt: the largest difference of an entry of A = S_r V_r^T or B = U_r, one sign rule,
between `randomized_svd(W, rank, n_iter=10, random_state=42)` in fp32, the same in fp64, and the same steps (NumPy's start,
LU between the iterations, QR, SVD) by `torch.linalg` in either. Seen with torch 2.11.0, numpy 2.4.6, scikit-learn 1.9.1.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.utils.extmath import randomized_svd

TARGETS = ("query", "value", "attention.output.dense", "output.dense")
OVERSAMPLES, ITERATIONS, SEED = 10, 10, 42


def by_torch(weight, rank, kind):
    """U, S, V^T of a matrix by the steps of `randomized_svd`, which takes the transpose of a wide matrix."""
    wide = weight.shape[0] < weight.shape[1]
    m = torch.tensor(weight.T if wide else weight).to(kind)
    start = np.random.RandomState(SEED).normal(size=(m.shape[1], rank + OVERSAMPLES))
    q = torch.tensor(start).to(kind)
    for _ in range(ITERATIONS):
        for side in (m, m.T):
            p, lower, _ = torch.linalg.lu(side @ q)
            q = p @ lower
    q, _ = torch.linalg.qr(m @ q)
    inner, s, vt = torch.linalg.svd(q.T @ m, full_matrices=False)
    u = q @ inner
    u, vt = (vt.T, u.T) if wide else (u, vt)
    return (part.double().numpy() for part in (u[:, :rank], s[:rank], vt[:rank]))


def factors(u, s, vt):
    """B above A^T, the largest entry of each column of U positive."""
    u, s, vt = (np.asarray(part, dtype=np.float64) for part in (u, s, vt))
    signs = np.sign(u[np.abs(u).argmax(0), range(u.shape[1])])
    return np.concatenate([u * signs, vt.T * s * signs])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--rank", type=int, default=16)
    options = parser.parse_args()
    tensors = load_file(options.model / "model.safetensors")
    names = [n for n in tensors if "encoder." in n and n.endswith(tuple(f".{t}.weight" for t in TARGETS))]
    spread = {"scikit-learn, fp32 and fp64": [], "fp32, scikit-learn and torch": [], "fp64, scikit-learn and torch": []}
    for name in names:
        weight = tensors[name].float().numpy()
        settings = {"n_components": options.rank, "n_iter": ITERATIONS, "random_state": SEED}
        single, double = (factors(*randomized_svd(w, **settings)) for w in (weight, weight.astype(np.float64)))
        torch_single, torch_double = (factors(*by_torch(weight, options.rank, k)) for k in (torch.float32, torch.float64))
        for pairs, (one, other) in zip(spread.values(), ((single, double), (single, torch_single), (double, torch_double))):
            pairs.append(np.abs(one - other).max())
    for what, largest in spread.items():
        print(f"{what}: {min(largest):.0e} to {max(largest):.0e}, median {np.median(largest):.0e}, {len(largest)} layers")


if __name__ == "__main__":
    main()
