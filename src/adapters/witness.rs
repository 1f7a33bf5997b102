//! The witness of a basis: two numbers a module, by which an adapter recognises the basis of its cores.
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

/// Largest difference, relative to the Frobenius norm of the factor, of one basis computed twice. Another
/// machine or device moves a witness by about 1e-7; a turned column moves it by about 1/√r.
const TOLERANCE: f64 = 1e-3;

/// The two numbers of every module of `basis`, in its order: for A, then for B.
///
/// # Errors
/// When libtorch fails.
pub fn witness(basis: &Basis) -> Result<Vec<[f64; 2]>> {
    basis.modules.iter().map(|(name, factors)| forms(name, factors)).collect()
}

/// Whether `basis` is the one that gave `expected`, up to rounding.
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
            // NaN is near nothing.
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

const HINT: &str = "check that base and revision are those of the training; otherwise give the basis that it used \
                    (`--basis DIR`), or train with `adapter.with_basis = true`, which stores it in the adapter";

/// xᵀ A y and uᵀ B v in double precision.
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

/// `count` pseudo-random numbers +1 or -1.
fn signs(count: i64, words: &mut ChaCha8Rng) -> Result<Tensor> {
    let signs: Vec<f64> = (0..count).map(|_| if words.next_u32() >> 31 == 0 { 1.0 } else { -1.0 }).collect();
    Ok(Tensor::f_from_slice(&signs)?)
}
