//! Placement of a basis's singular values: on A, on B, or on both.

use super::svd::Factors;
use crate::fault::Result;
use crate::spec::Sigma;

impl Sigma {
    pub(super) fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Moves the singular values of `factors` from A to where `self` puts them.
    pub(super) fn moved(self, factors: Factors) -> Result<Factors> {
        let power = match self {
            Self::A => return Ok(factors),
            Self::B => 1.0,
            Self::Split => 0.5,
        };
        let Factors { a, b, s, captured_energy } = factors;
        let moved = s.f_pow_tensor_scalar(power)?; // [r]
        // A zero singular value has a zero row in A: nothing to divide.
        let divisor = moved.f_where_self(&moved.f_gt(0.0)?, &moved.f_ones_like()?)?;
        Ok(Factors { a: a.f_div(&divisor.f_unsqueeze(1)?)?, b: b.f_mul(&moved)?, s, captured_energy })
    }
}
