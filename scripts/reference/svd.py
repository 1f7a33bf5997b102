#!/usr/bin/env python3
"""Writes tests/it/fixtures/svd.safetensors: small matrices and their factors by scikit-learn and NumPy.

    python scripts/reference/svd.py [tests/it/fixtures/svd.safetensors]

Made with numpy 2.4.6, scipy 1.17.1, scikit-learn 1.9.1, safetensors 0.8.0; matrices from seed 7.
Per case: `<case>.W` [out, in] and three times {A,B,S}, with A = S_r V_r^T [r, in] and B = U_r [out, r]:
`<case>.single` from `randomized_svd(W.T, rank, n_iter=10, random_state=42)` as it is called for fp32 weights,
`<case>.double` from the same call and the same start in double precision, which removes scikit-learn's own
rounding, and `<case>.exact`, the first directions of `numpy.linalg.svd` in double precision.
"""
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.utils.extmath import randomized_svd


def decaying(rng, out, inp, rate):
    """A matrix with singular values rate^0, rate^1, ..."""
    count = min(out, inp)
    u, _ = np.linalg.qr(rng.normal(size=(out, count)))
    v, _ = np.linalg.qr(rng.normal(size=(inp, count)))
    return (u * rate ** np.arange(count)) @ v.T


class RoundedStart(np.random.RandomState):
    """Draws what scikit-learn draws for an fp32 matrix, which it rounds to fp32."""

    def normal(self, size):
        return super().normal(size=size).astype(np.float32).astype(np.float64)


def factors(u, s, vt):
    """A, B, S from the decomposition of W^T."""
    return {"A": (u * s).T, "B": vt.T, "S": s}


def cases(rng):
    """Name, weight and rank. The flat spectra are those where ten iterations do not converge."""
    yield "wide", rng.normal(size=(64, 112)), 4
    yield "tall", rng.normal(size=(112, 64)), 4
    yield "square", rng.normal(size=(48, 48)), 6
    yield "full_rank", decaying(rng, 12, 20, 0.7), 12
    yield "low_rank_and_noise", rng.normal(size=(56, 5)) @ rng.normal(size=(5, 44)) + 0.05 * rng.normal(size=(56, 44)), 8
    yield "decaying", decaying(rng, 64, 48, 0.85), 16


def main():
    path = Path(sys.argv[1] if len(sys.argv) > 1 else "tests/it/fixtures/svd.safetensors")
    rng, tensors = np.random.default_rng(7), {}
    for name, weight, rank in cases(rng):
        weight = weight.astype(np.float32)
        double = weight.astype(np.float64)
        settings = {"n_components": rank, "n_iter": 10}
        u, s, vt = np.linalg.svd(double.T, full_matrices=False)
        found = {
            "single": factors(*randomized_svd(weight.T, random_state=42, **settings)),
            "double": factors(*randomized_svd(double.T, random_state=RoundedStart(42), **settings)),
            "exact": factors(u[:, :rank], s[:rank], vt[:rank]),
        }
        tensors[f"{name}.W"] = weight
        for method, values in found.items():
            for factor, value in values.items():
                tensors[f"{name}.{method}.{factor}"] = np.ascontiguousarray(value, np.float32)
    save_file(tensors, path, {"script": "scripts/reference/svd.py"})


if __name__ == "__main__":
    main()
