//! Low-rank factors of one weight matrix: W ≈ B A with A = S_r V_rᵀ and B = U_r.
//!
//! | factor | shape | value |
//! |---|---|---|
//! | A | [r, in] | singular values times right singular vectors, as rows |
//! | B | [out, r] | left singular vectors, as columns |
//!
//! These are the frozen factors of LoRA-XS (arXiv 2405.17604, section 3; the authors decompose Wᵀ with
//! scikit-learn, <https://github.com/MohammadrezaBanaei/LoRA-XS> at e50b1a8). The randomised method is
//! algorithm 4.3 of Halko, Martinsson and Tropp (arXiv 0909.4061) with the choices of scikit-learn's
//! `randomized_svd`: ten extra directions, LU between the products, NumPy's stream as the start.
//!
//! Everything is computed in double precision and rounded once. Factors must come out the same on every
//! machine, thread count and device; in single precision the vectors of close singular values, and the sign
//! rule where two entries are nearly as large, would not. It also keeps TF32 out on a GPU.

use anyhow::Context as _;
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};
use tch::{Device, Kind, Tensor};

use crate::adapters::numpy_random::LegacyNormal;
use crate::fault::{Result, fault, usage};
use crate::spec::Spectrum;

/// Directions sampled beyond the rank, scikit-learn's `n_oversamples`.
const OVERSAMPLES: i64 = 10;

/// The precision of the decompositions; the factors are rounded to fp32 at the end.
const COMPUTE: Kind = Kind::Double;

impl Spectrum {
    /// Returns the `rank` positions out of `count` (ascending), 0 being the largest singular value.
    fn positions(self, count: i64, rank: i64, seed: u64) -> Vec<i64> {
        match self {
            Spectrum::Top => (0..rank).collect(),
            Spectrum::Middle => {
                let first = (count - rank) / 2;
                (first..first + rank).collect()
            }
            Spectrum::Bottom => (count - rank..count).collect(),
            Spectrum::Random => sorted_choice(count, rank, &mut generator("spectrum", seed, "")),
        }
    }
}

/// A, B and the share of W that they keep; fp32 on the weight's device.
#[derive(Debug)]
pub struct Factors {
    /// [r, in]: S_r V_rᵀ.
    pub a: Tensor,
    /// [out, r]: U_r.
    pub b: Tensor,
    /// `[r]`: the singular values, descending; zeros for random factors.
    pub s: Tensor,
    /// Share of the squared Frobenius norm of W that the directions carry, 0 to 1; 0 for random factors.
    pub captured_energy: f64,
}

/// Computes the first `rank` singular directions of `weight` [out, in], by seeded power iterations.
///
/// Agrees with scikit-learn's `randomized_svd(W.T, rank, n_iter=iterations, random_state=seed)` up to signs,
/// also where the iterations have not converged.
///
/// # Errors
/// When `rank` exceeds a side of the weight, the seed does not fit NumPy's 32 bits, or libtorch fails.
pub fn randomized(weight: &Tensor, rank: i64, iterations: u32, seed: u64) -> Result<Factors> {
    check_rank(&weight.size(), rank)?;
    let seed = u32::try_from(seed).map_err(|_| {
        usage(format!("the seed of a randomized SVD must be below 2^32, found {seed}"))
            .hint("NumPy's random stream takes 32-bit seeds")
    })?;
    let _guard = tch::no_grad_guard();
    let w = weight.f_to_kind(COMPUTE)?;
    let (out, input) = w.size2()?;
    // M is W or Wᵀ, whichever is tall; of a square W it is Wᵀ, as the published code decomposes Wᵀ.
    let m = if input < out { w.shallow_clone() } else { w.f_transpose(0, 1)? }; // [long, short]
    let q = range(&m, rank + OVERSAMPLES, iterations, seed)?; // [long, q]
    let (u, s, v) = q.f_transpose(0, 1)?.f_matmul(&m)?.f_svd(true, true)?; // of [q, short]
    let long = q.f_matmul(&u.f_narrow(1, 0, rank)?)?; // [long, r]
    let short = v.f_narrow(1, 0, rank)?; // [short, r]
    let s = s.f_narrow(0, 0, rank)?; // [r]
    if input < out { finish(&w, &long, &s, &short) } else { finish(&w, &short, &s, &long) }
}

/// Computes the chosen `rank` singular directions of `weight` [out, in], from its full decomposition.
///
/// # Errors
/// When `rank` exceeds a side of the weight, or libtorch fails.
pub fn exact(weight: &Tensor, rank: i64, spectrum: Spectrum, seed: u64) -> Result<Factors> {
    let count = check_rank(&weight.size(), rank)?;
    let _guard = tch::no_grad_guard();
    let w = weight.f_to_kind(COMPUTE)?;
    let (u, s, v) = w.f_svd(true, true)?; // [out, k], [k], [in, k]
    let chosen = Tensor::f_from_slice(&spectrum.positions(count, rank, seed))?.f_to_device(w.device())?;
    finish(&w, &u.f_index_select(1, &chosen)?, &s.f_index_select(0, &chosen)?, &v.f_index_select(1, &chosen)?)
}

/// Draws random factors for a weight of shape [`out`, `input`]: both Kaiming-uniform with a = √5, that is
/// U(-1/√fan_in, 1/√fan_in), where fan_in is `input` for A and `rank` for B.
///
/// A function of (`seed`, `name`) alone: drawn on the CPU, whatever torch's own generator did before.
///
/// # Errors
/// When a size is not positive, or libtorch fails.
pub fn kaiming([out, input]: [i64; 2], rank: i64, seed: u64, name: &str, device: Device) -> Result<Factors> {
    let mut words = generator("kaiming", seed, name);
    let mut draw = |rows: i64, columns: i64| -> Result<Tensor> {
        let count = usize::try_from(rows.saturating_mul(columns))
            .with_context(|| format!("cannot draw a matrix of shape [{rows}, {columns}]"))?;
        let bound = 1.0 / (columns as f64).sqrt();
        // 24 bits fill an fp32 mantissa; written out, because a library may change its way to a float.
        let uniform = |word: u32| f64::from(word >> 8) / f64::from(1u32 << 24);
        let values: Vec<f32> =
            (0..count).map(|_| ((2.0 * uniform(words.next_u32()) - 1.0) * bound) as f32).collect();
        Ok(Tensor::f_from_slice(&values)?.f_view([rows, columns])?.f_to_device(device)?)
    };
    let (a, b) = (draw(rank, input)?, draw(out, rank)?);
    Ok(Factors { a, b, s: Tensor::f_zeros([rank], (Kind::Float, device))?, captured_energy: 0.0 })
}

/// Creates a generator that depends on its three arguments and on nothing else.
pub(crate) fn generator(purpose: &str, seed: u64, name: &str) -> ChaCha8Rng {
    let mut hash = blake3::Hasher::new();
    hash.update(purpose.as_bytes()).update(&[0]).update(&seed.to_le_bytes()).update(name.as_bytes());
    ChaCha8Rng::from_seed(*hash.finalize().as_bytes())
}

/// Draws `rank` of the numbers below `count`, ascending, each choice equally likely (Knuth's algorithm S).
fn sorted_choice(count: i64, rank: i64, words: &mut ChaCha8Rng) -> Vec<i64> {
    let mut chosen = Vec::new();
    for position in 0..count {
        let (wanted, left) = (rank - chosen.len() as i64, count - position);
        // Below 2^32 positions the bias of the remainder stays below 2^-32.
        if words.next_u64() % left.unsigned_abs() < wanted.unsigned_abs() {
            chosen.push(position);
        }
    }
    chosen
}

/// Returns the number of singular values of a weight of this shape, or why `rank` of them cannot be had.
///
/// # Errors
/// When the shape is not a matrix's, or the rank exceeds one of its sides.
pub(crate) fn check_rank(shape: &[i64], rank: i64) -> Result<i64> {
    let &[out, input] = shape else {
        return Err(fault(format!("expected a weight of shape [out, in], found {shape:?}")).into());
    };
    let most = out.min(input);
    if rank < 1 || rank > most {
        return Err(usage(format!(
            "rank {rank} does not fit a weight of shape [{out}, {input}]: expected 1 to {most}"
        ))
        .hint("choose a smaller rank, or leave this module out of the targets")
        .into());
    }
    Ok(most)
}

/// Finds an orthonormal basis [long, q] of nearly the first singular directions' range of `m` [long, short].
fn range(m: &Tensor, directions: i64, iterations: u32, seed: u32) -> Result<Tensor> {
    let (_, short) = m.size2()?;
    let count = usize::try_from(short * directions)?;
    // Drawn on the CPU: every device starts from the same matrix.
    let start = LegacyNormal::new(seed).take_f32(count);
    let mut q = Tensor::f_from_slice(&start)?.f_view([short, directions])?.f_to_device(m.device())?;
    q = q.f_to_kind(m.kind())?; // [short, q]
    let transposed = m.f_transpose(0, 1)?;
    for _ in 0..iterations {
        // Up to two iterations scikit-learn's `auto` normalises nothing.
        if iterations <= 2 {
            q = transposed.f_matmul(&m.f_matmul(&q)?)?;
        } else {
            q = lu_normalised(&m.f_matmul(&q)?)?; // [long, q]
            q = lu_normalised(&transposed.f_matmul(&q)?)?; // [short, q]
        }
    }
    Ok(Tensor::f_linalg_qr(&m.f_matmul(&q)?, "reduced")?.0)
}

/// Computes P L of x = P L U, [n, min(n, q)]: spans the columns of `x` [n, q], kept apart for less than a QR.
fn lu_normalised(x: &Tensor) -> Result<Tensor> {
    let (rows, columns) = x.size2()?;
    // Unchecked, because a zero pivot (W of low rank) is no obstacle: only L is wanted.
    let (packed, pivots, _) = Tensor::f_linalg_lu_factor_ex(x, true, false)?;
    let mut lower = packed.f_narrow(1, 0, rows.min(columns))?.f_tril(-1)?;
    let _ = lower.f_fill_diagonal_(1.0, false)?;
    // Pivot i says that row i was exchanged with row pivots[i], counted from 1. Row i of L so belongs to
    // row order[i] of x.
    let mut order: Vec<i64> = (0..rows).collect();
    for (row, pivot) in Vec::<i64>::try_from(&pivots)?.into_iter().enumerate() {
        order.swap(row, usize::try_from(pivot - 1)?);
    }
    let mut place = vec![0i64; order.len()];
    for (row, &source) in (0i64..).zip(&order) {
        if let Some(slot) = usize::try_from(source).ok().and_then(|source| place.get_mut(source)) {
            *slot = row;
        }
    }
    Ok(lower.f_index_select(0, &Tensor::f_from_slice(&place)?.f_to_device(x.device())?)?)
}

/// Builds factors from singular vectors `u` [out, r], `v` [in, r] and values `s` `[r]`, by the sign rule.
fn finish(w: &Tensor, u: &Tensor, s: &Tensor, v: &Tensor) -> Result<Factors> {
    let square = |x: &Tensor| -> Result<f64> { Ok(x.f_square()?.f_sum(Kind::Double)?.f_double_value(&[])?) };
    let (kept, total) = (square(s)?, square(w)?);
    let a = v.f_mul(s)?.f_transpose(0, 1)?.f_to_kind(Kind::Float)?; // [r, in]
    let (a, b) = with_fixed_signs(&a, &u.f_to_kind(Kind::Float)?)?;
    let captured_energy = if total > 0.0 { (kept / total).min(1.0) } else { 0.0 };
    Ok(Factors { a, b, s: s.f_to_kind(Kind::Float)?.f_contiguous()?, captured_energy })
}

/// Applies the sign rule: the entry of largest magnitude of each column of `b` [out, r] becomes positive (the
/// first one of equals), and the row of `a` [r, in] turns with it.
fn with_fixed_signs(a: &Tensor, b: &Tensor) -> Result<(Tensor, Tensor)> {
    let largest = b.f_gather(0, &b.f_abs()?.f_argmax(0, true)?, false)?; // [1, r]
    let negative = largest.f_lt(0.0)?;
    let sign = largest.f_ones_like()?.f_masked_fill(&negative, -1.0)?; // [1, r]
    Ok((a.f_mul(&sign.f_transpose(0, 1)?)?.f_contiguous()?, b.f_mul(&sign)?.f_contiguous()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPU: (Kind, Device) = (Kind::Float, Device::Cpu);

    fn far(left: &Tensor, right: &Tensor) -> f64 {
        (left.to_kind(Kind::Double) - right.to_kind(Kind::Double)).abs().max().double_value(&[])
    }

    /// Returns a matrix with singular values 5, 4, 3, 2, 1 along the coordinate axes.
    fn diagonal() -> Tensor {
        Tensor::from_slice(&[5f32, 4.0, 3.0, 2.0, 1.0]).diag_embed(0, 0, 1).constant_pad_nd([0, 2, 0, 0])
    }

    #[test]
    fn the_spectrum_chooses_the_singular_values() {
        let values = |spectrum, rank| {
            Vec::<f32>::try_from(&exact(&diagonal(), rank, spectrum, 3).unwrap().s.round()).unwrap()
        };
        assert_eq!(values(Spectrum::Top, 2), [5.0, 4.0]);
        assert_eq!(values(Spectrum::Middle, 3), [4.0, 3.0, 2.0]);
        assert_eq!(values(Spectrum::Bottom, 2), [2.0, 1.0]);
        assert_eq!(values(Spectrum::Random, 5), [5.0, 4.0, 3.0, 2.0, 1.0]);
        assert_eq!(values(Spectrum::Random, 2), values(Spectrum::Random, 2));
    }

    #[test]
    fn random_directions_are_spread_evenly_and_follow_the_seed() {
        let mut counts = [0; 10];
        for seed in 0..2000 {
            let chosen = Spectrum::Random.positions(10, 3, seed);
            assert!(chosen.len() == 3 && chosen.is_sorted());
            chosen.iter().for_each(|&position| counts[position as usize] += 1);
        }
        assert!(counts.iter().all(|count| (500..700).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_first_largest_entry_of_each_column_of_b_is_positive() {
        let b = Tensor::from_slice(&[-2f32, 1.0, 0.0, 2.0, 0.5, -3.0]).view([3, 2]); // columns -2 0 .5, 1 2 -3
        let a = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([2, 2]);
        let (fixed_a, fixed_b) = with_fixed_signs(&a, &b).unwrap();
        assert_eq!(fixed_b, Tensor::from_slice(&[2f32, -1.0, 0.0, -2.0, -0.5, 3.0]).view([3, 2]));
        assert_eq!(fixed_a, -&a);
        let tied = Tensor::from_slice(&[1f32, -1.0]).view([2, 1]);
        assert_eq!(with_fixed_signs(&a.narrow(0, 0, 1), &tied).unwrap().1, tied);
        assert_eq!(with_fixed_signs(&a.narrow(0, 0, 1), &-&tied).unwrap().1, tied);
    }

    #[test]
    fn full_rank_factors_give_the_weight_back() {
        for shape in [[12, 20], [20, 12], [16, 16]] {
            let w = kaiming(shape, 1, 0, "w", Device::Cpu).unwrap();
            let w = w.b.matmul(&w.a) + Tensor::eye_m(shape[0], shape[1], CPU);
            let rank = shape[0].min(shape[1]);
            let found = [randomized(&w, rank, 10, 42).unwrap(), exact(&w, rank, Spectrum::Top, 0).unwrap()];
            for Factors { a, b, captured_energy, .. } in found {
                assert!(far(&b.matmul(&a), &w) < 1e-6);
                assert!(far(&b.transpose(0, 1).matmul(&b), &Tensor::eye(rank, CPU)) < 1e-6);
                assert!((captured_energy - 1.0).abs() < 1e-9);
            }
        }
    }

    #[test]
    fn weights_of_low_rank_and_of_zeros_are_decomposed() {
        let thin = kaiming([30, 50], 2, 0, "w", Device::Cpu).unwrap();
        let found = randomized(&thin.b.matmul(&thin.a), 4, 10, 42).unwrap();
        assert!(far(&found.b.matmul(&found.a), &thin.b.matmul(&thin.a)) < 1e-6);
        let zero = randomized(&Tensor::zeros([8, 6], CPU), 2, 10, 42).unwrap();
        assert!(zero.captured_energy == 0.0 && far(&zero.a, &Tensor::zeros([2, 6], CPU)) == 0.0);
        assert_eq!(zero.b.isfinite().all().int64_value(&[]), 1);
    }

    #[test]
    fn weights_in_half_precision_give_the_factors_of_their_values() {
        for kind in [Kind::BFloat16, Kind::Half] {
            let low = diagonal().to_kind(kind);
            let (found, expected) =
                (randomized(&low, 2, 10, 42).unwrap(), randomized(&diagonal(), 2, 10, 42).unwrap());
            assert!(found.a == expected.a && found.b == expected.b && found.a.kind() == Kind::Float);
        }
    }

    #[test]
    fn two_iterations_are_not_normalised_and_none_are_allowed() {
        for iterations in [0, 1, 2] {
            let found = randomized(&diagonal(), 2, iterations, 42).unwrap();
            assert!(far(&found.s, &Tensor::from_slice(&[5f32, 4.0])) < 1e-5);
        }
    }

    #[test]
    fn random_factors_fill_their_range_and_depend_on_seed_and_name_alone() {
        let draw = |seed, name| kaiming([64, 100], 16, seed, name, Device::Cpu).unwrap();
        let first = draw(1, "x");
        tch::manual_seed(7);
        assert!(first.a == draw(1, "x").a && first.b == draw(1, "x").b);
        assert!(first.a != draw(2, "x").a && first.a != draw(1, "y").a);
        for (factor, bound) in [(&first.a, 0.1), (&first.b, 0.25)] {
            let largest = factor.abs().max().double_value(&[]);
            assert!(largest <= bound && largest > 0.99 * bound);
            let spread = factor.std(true).double_value(&[]) / (bound / 3f64.sqrt());
            assert!((spread - 1.0).abs() < 0.05, "{spread}");
        }
        assert_eq!((first.a.size(), first.b.size(), first.s.size()), (vec![16, 100], vec![64, 16], vec![16]));
    }
}
