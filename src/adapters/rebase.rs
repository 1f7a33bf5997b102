//! A change of basis: the core of a LoRA-XS adapter in other frozen factors that span the same directions.

use tch::{Kind, Tensor};

use super::svd::Factors;
use crate::fault::Result;

/// Returns the core R' `[r', r']` with B' R' A' nearest to B R A, for `core` R `[r, r]`, and the residual:
/// the Frobenius norm of the difference relative to that of B R A. It is zero where the rows of A' span
/// those of R A, and the columns of B' those of B R. `R' = B'⁺ B R A A'⁺`, in double precision.
///
/// # Errors
/// When libtorch fails.
pub fn rebased(from: &Factors, core: &Tensor, to: &Factors) -> Result<(Tensor, f64)> {
    let double = |factor: &Tensor| factor.f_to_kind(Kind::Double);
    let (a, b, new_a, new_b) = (double(&from.a)?, double(&from.b)?, double(&to.a)?, double(&to.b)?);
    let left = new_b.f_linalg_pinv(1e-12, false)?.f_matmul(&b)?; // [r', r]
    let right = a.f_matmul(&new_a.f_linalg_pinv(1e-12, false)?)?; // [r, r']
    let core = double(core)?;
    let found = left.f_matmul(&core)?.f_matmul(&right)?; // [r', r']
    let before = b.f_matmul(&core)?.f_matmul(&a)?; // [out, in]
    let after = new_b.f_matmul(&found)?.f_matmul(&new_a)?;
    let norm = |x: &Tensor| -> Result<f64> { Ok(x.f_norm()?.f_double_value(&[])?) };
    let (difference, size) = (norm(&(after - &before))?, norm(&before)?);
    let residual = if size > 0.0 { difference / size } else { difference };
    Ok((found.f_to_kind(Kind::Float)?, residual))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::adapters::basis::BasisSpec;
    use crate::adapters::basis::tests::basis_of;
    use crate::spec::{Sigma, SvdMethod};

    fn factors(spec: &BasisSpec) -> Factors {
        basis_of(spec).modules.swap_remove(0).1
    }

    #[test]
    fn a_core_moves_to_a_basis_of_the_same_span_and_back() {
        let spec = BasisSpec { rank: 4, method: SvdMethod::Exact, ..BasisSpec::default() };
        let from = factors(&spec);
        let core = Tensor::randn([4, 4], (Kind::Float, tch::Device::Cpu));
        for to in [
            BasisSpec { sigma: Sigma::Split, ..spec.clone() },
            BasisSpec { rank: 7, ..spec.clone() },
            BasisSpec { method: SvdMethod::Randomized, iterations: 40, ..spec.clone() },
        ] {
            let (found, residual) = rebased(&from, &core, &factors(&to)).unwrap();
            assert!(found.size() == [to.rank, to.rank] && residual < 1e-5, "{to:?}: {residual:e}");
            let (back, _) = rebased(&factors(&to), &found, &from).unwrap();
            assert!((back - &core).abs().max().double_value(&[]) < 1e-4, "{to:?}");
        }
    }

    #[test]
    fn a_basis_that_lacks_directions_leaves_a_residual() {
        let spec = BasisSpec { rank: 4, method: SvdMethod::Exact, ..BasisSpec::default() };
        let core = Tensor::ones([4, 4], (Kind::Float, tch::Device::Cpu));
        let (_, residual) =
            rebased(&factors(&spec), &core, &factors(&BasisSpec { rank: 2, ..spec.clone() })).unwrap();
        assert!(residual > 0.1, "{residual}");
    }
}
