//! The witness of a basis: two numbers per module, by which an adapter recognises the basis of its cores.
//!
//! Singular vectors are free in sign, and free to rotate where singular values meet. The numbers are the
//! bilinear forms xᵀ A y and uᵀ B v with fixed pseudo-random entries ±1, so that turning or exchanging columns
//! changes them. Each varies, over bases, with a standard deviation of the Frobenius norm of its factor, in
//! which differences are therefore measured.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::RngCore as _;
use tch::{Kind, Tensor};

use crate::adapters::basis::Basis;
use crate::adapters::svd::{Factors, generator};
use crate::fault::{Result, fault};

/// Largest difference, relative to the Frobenius norm of the factor, of one basis computed twice. Rounding to
/// fp32 moves a witness by about 1e-8, a turned column by about 1/√r, and by less than 1e-4 only by rare chance.
const TOLERANCE: f64 = 1e-4;

/// Returns the two numbers of every module of `basis`, in its order: for A, then for B.
///
/// # Errors
/// When libtorch fails.
pub fn witness(basis: &Basis) -> Result<Vec<[f64; 2]>> {
    basis.modules.iter().map(|(name, factors)| forms(name, factors)).collect()
}

/// Checks that `basis` is the one that gave `expected`, up to rounding.
///
/// # Errors
/// Names the first module that differs, with both numbers.
pub fn check(basis: &Basis, expected: &[[f64; 2]]) -> Result<()> {
    if basis.modules.len() != expected.len() {
        let (wanted, found) = (expected.len(), basis.modules.len());
        let message = format!("the adapter has a witness for {wanted} modules, the basis has {found}");
        return Err(fault(message).hint(HINT).into());
    }
    for ((name, factors), expected) in basis.modules.iter().zip(expected) {
        let found = forms(name, factors)?;
        let sides = [("A", &factors.a), ("B", &factors.b)];
        for ((side, factor), (found, expected)) in sides.into_iter().zip(found.into_iter().zip(*expected)) {
            let norm = factor.f_to_kind(Kind::Double)?.f_norm()?.f_double_value(&[])?;
            let near = (found - expected).abs() <= TOLERANCE * norm;
            // False for NaN.
            if !near {
                return Err(fault(format!(
                    "the basis is not the one that the adapter was trained in: the witness of {side} of module \
                     `{name}` is {found:?}, expected {expected:?}"
                ))
                .hint(HINT)
                .into());
            }
        }
    }
    Ok(())
}

const HINT: &str = "check that base and revision are those of the training; otherwise pass the basis that it used \
                    (`--basis DIR`), or train with `adapter.with_basis = true`, which stores it in the adapter";

/// Computes xᵀ A y and uᵀ B v in double precision.
fn forms(name: &str, factors: &Factors) -> Result<[f64; 2]> {
    let mut words = generator("witness", 0, name);
    let mut form = |factor: &Tensor| -> Result<f64> {
        let (rows, columns) = factor.size2()?;
        let (left, right) = (signs(rows, &mut words)?, signs(columns, &mut words)?);
        let factor = factor.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)?;
        Ok(left.f_dot(&factor.f_mv(&right)?)?.f_double_value(&[])?)
    };
    Ok([form(&factors.a)?, form(&factors.b)?])
}

/// Draws `count` pseudo-random signs, +1 or -1.
fn signs(count: i64, words: &mut ChaCha8Rng) -> Result<Tensor> {
    let signs: Vec<f64> = (0..count).map(|_| if words.next_u32() >> 31 == 0 { 1.0 } else { -1.0 }).collect();
    Ok(Tensor::f_from_slice(&signs)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::basis::BasisSpec;
    use crate::adapters::basis::tests::{basis_of, modules};
    use crate::spec::{Init, SvdMethod};

    fn spec() -> BasisSpec {
        BasisSpec { rank: 8, ..BasisSpec::default() }
    }

    /// Replaces the basis of module `index` by B G and Gᵀ A, with G orthogonal: the same product, other cores.
    fn turned(index: usize, rotation: &Tensor) -> Basis {
        let mut basis = basis_of(&spec());
        let factors = &mut basis.modules[index].1;
        factors.a = rotation.transpose(0, 1).matmul(&factors.a);
        factors.b = factors.b.matmul(rotation);
        basis
    }

    /// Returns the rotation by `angle` in the plane of directions `i` and `j`.
    fn rotation(i: i64, j: i64, angle: f64) -> Tensor {
        let turn = Tensor::eye(8, (Kind::Float, tch::Device::Cpu));
        let put = |row: i64, column: i64, value: f64| {
            let _ = turn.get(row).get(column).fill_(value);
        };
        put(i, i, angle.cos());
        put(j, j, angle.cos());
        put(i, j, -angle.sin());
        put(j, i, angle.sin());
        turn
    }

    #[test]
    fn the_same_basis_passes_however_it_was_computed() {
        let expected = witness(&basis_of(&spec())).unwrap();
        let threads = tch::get_num_threads();
        tch::set_num_threads(3);
        check(&basis_of(&spec()), &expected).unwrap();
        tch::set_num_threads(threads);
        let mut noisy = basis_of(&spec());
        for (_, factors) in &mut noisy.modules {
            factors.a = &factors.a * (1.0 + 1e-6);
            factors.b = &factors.b + 1e-7;
        }
        check(&noisy, &expected).unwrap();
    }

    #[test]
    fn any_column_turned_is_caught() {
        let expected = witness(&basis_of(&spec())).unwrap();
        for index in 0..5 {
            for column in 0..8 {
                let flip = Tensor::eye(8, (Kind::Float, tch::Device::Cpu));
                let _ = flip.get(column).get(column).fill_(-1.0);
                let error = format!("{:#}", check(&turned(index, &flip), &expected).unwrap_err());
                assert!(error.contains(&format!("`layer.{index}.dense`")), "{error}");
            }
        }
    }

    #[test]
    fn any_rotation_of_two_columns_is_caught() {
        let expected = witness(&basis_of(&spec())).unwrap();
        let pairs = (0..8).flat_map(|i| (0..i).map(move |j| (i, j)));
        for (i, j) in pairs {
            for angle in [0.02, 0.3, std::f64::consts::FRAC_PI_2] {
                assert!(check(&turned(2, &rotation(i, j, angle)), &expected).is_err(), "{i} {j} {angle}");
            }
        }
    }

    #[test]
    fn another_basis_and_numbers_that_are_none_are_refused() {
        let basis = basis_of(&spec());
        let expected = witness(&basis).unwrap();
        let random = basis_of(&BasisSpec { init: Init::Random, ..spec() });
        assert!(check(&random, &expected).is_err());
        assert!(check(&basis, &expected[1..]).unwrap_err().to_string().contains("4 modules"));
        let mut none = expected.clone();
        none[3][1] = f64::NAN;
        let error = check(&basis, &none).unwrap_err();
        assert!(error.to_string().contains("B of module `layer.3.dense`"), "{error}");
        assert!(crate::fault::hint_of(&error).is_some_and(|hint| hint.contains("--basis")));
        let converged = basis_of(&BasisSpec { method: SvdMethod::Exact, ..spec() });
        check(&converged, &witness(&converged).unwrap()).unwrap();
        assert_eq!(expected.len(), modules().len());
    }
}
