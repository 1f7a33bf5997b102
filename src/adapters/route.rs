//! Which run or adapter each row of a batch belongs to, and products with a matrix for each run.

use tch::{Kind, Tensor};

use crate::torch::{cast, dims2, dims3, fused, joined};

/// The run or adapter of each row of `[m, ..]`.
#[derive(Debug)]
pub enum Route {
    /// Lengths of consecutive blocks of rows, one for each run. Further rows belong to the last run.
    Blocks(Vec<i64>),
    /// Index of each row's run, int64 `[m]`. Products gather a matrix for every row, which suits few rows.
    Rows(Tensor),
    /// All rows belong to this run of several: they are computed as if it were the only one.
    One(i64),
}

impl Route {
    /// Creates the route of rows that all belong to one run.
    pub fn one_run() -> Self {
        Self::Blocks(vec![0])
    }

    /// Creates the route of blocks of rows, one for each run.
    pub fn of_blocks(lengths: Vec<i64>) -> Self {
        let mut filled = (0..).zip(&lengths).filter(|(_, length)| **length > 0);
        match (filled.next(), filled.next()) {
            (Some((run, _)), None) if lengths.len() > 1 => Self::One(run),
            _ => Self::Blocks(lengths),
        }
    }

    /// Returns the part of `[k, ..]` that belongs to the route's blocks: all of it, or `[1, ..]` of the only run.
    pub fn own(&self, x: &Tensor) -> Tensor {
        match self {
            Self::One(run) => x.narrow(0, *run, 1),
            Self::Blocks(_) | Self::Rows(_) => x.shallow_clone(),
        }
    }

    /// Returns the lengths of the blocks in `m` rows, if they have blocks: one for each part of [`Route::own`].
    pub fn blocks(&self, m: i64) -> Option<Vec<i64>> {
        let lengths = match self {
            Self::Blocks(lengths) => lengths,
            Self::One(_) => return Some(vec![m]),
            Self::Rows(_) => return None,
        };
        let mut lengths = lengths.clone();
        let further = m - lengths.iter().sum::<i64>();
        lengths.iter_mut().rev().take(1).for_each(|last| *last += further);
        Some(lengths)
    }

    /// Computes `x Mᵀ` with the matrix M of each row's run.
    ///
    /// # Shapes
    /// `x` `[m, i]`, `matrices` `[k, o, i]` of the same kind, or [`fused::wide`], to `[m, o]`.
    pub fn multiply(&self, x: &Tensor, matrices: &Tensor) -> Tensor {
        let ([m, i], matrices) = (dims2(x), self.own(matrices));
        if let Some(blocks) = self.blocks(m).filter(|_| matrices.kind() == Kind::Double) {
            return fused::through(x, &matrices, None, &blocks);
        }
        let (matrices, [k, _o, _i]) = (cast(&matrices, x.kind()), dims3(&matrices));
        match self {
            Self::Rows(rows) => {
                x.unsqueeze(1).bmm(&matrices.index_select(0, rows).transpose(1, 2)).squeeze_dim(1)
            }
            _ if self.is_even(m, k) => {
                x.reshape([k, m / k, i]).bmm(&matrices.transpose(1, 2)).flatten(0, 1) // [m, o]
            }
            _ => {
                let blocks = x.split_with_sizes(self.blocks(m).unwrap_or_default(), 0);
                let filled = (0..).zip(&blocks).filter(|(_, block)| block.numel() > 0);
                joined(filled.map(|(run, block)| block.mm(&matrices.get(run).tr())).collect())
            }
        }
    }

    /// Computes `y + x Mᵀ`, in `y`'s memory where possible: `y` is no view. Shapes as in [`Route::multiply`].
    pub fn add_product(&self, mut y: Tensor, x: &Tensor, matrices: &Tensor) -> Tensor {
        let own = self.own(matrices);
        let ([m, o], [k, _o, i]) = (dims2(&y), dims3(&own));
        match self.is_even(m, k) {
            // One product that adds into the result: no separate read and write of y.
            true if k == 1 => y.addmm_(x, &own.get(0).tr()),
            true => {
                let (y, x) = (y.view([k, m / k, o]), x.reshape([k, m / k, i]));
                y.baddbmm(&x, &own.transpose(1, 2), 1.0, 1.0).flatten(0, 1)
            }
            false => y.g_add_(&self.multiply(x, matrices)),
        }
    }

    /// Computes `x Mᵀ + b` with the matrix and the vector of each row's run.
    ///
    /// # Shapes
    /// As in [`Route::multiply`]; `vectors` `[k, o]`.
    pub fn affine(&self, x: &Tensor, matrices: &Tensor, vectors: &Tensor) -> Tensor {
        let own = self.own(matrices);
        let ([m, i], [k, _o, _i]) = (dims2(x), dims3(&own));
        if let Some(blocks) = self.blocks(m).filter(|_| own.kind() == Kind::Double) {
            return fused::through(x, &own, Some(&self.own(vectors)), &blocks);
        }
        if self.is_even(m, k) {
            let (x, vectors) = (x.reshape([k, m / k, i]), self.own(vectors));
            return vectors.unsqueeze(1).baddbmm(&x, &own.transpose(1, 2), 1.0, 1.0).flatten(0, 1);
        }
        self.multiply(x, matrices) + self.spread(vectors, m)
    }

    /// Gives each of `m` rows the vector of its run: `[k, o]` to `[m, o]`.
    pub fn spread(&self, vectors: &Tensor, m: i64) -> Tensor {
        match self {
            Self::Rows(rows) => vectors.index_select(0, rows),
            Self::Blocks(_) | Self::One(_) => {
                let lengths = self.blocks(m).unwrap_or_default();
                let vectors = self.own(vectors).split(1, 0);
                let blocks =
                    vectors.iter().zip(&lengths).map(|(vector, &length)| vector.expand([length, -1], false));
                joined(blocks.collect())
            }
        }
    }

    /// Returns true if `m` rows are k blocks of one length.
    fn is_even(&self, m: i64, k: i64) -> bool {
        let Some(lengths) = self.blocks(m) else { return false };
        assert_eq!(lengths.len() as i64, k, "runs of the rows and of their matrices");
        lengths.iter().all(|length| *length == lengths[0])
    }
}

impl Clone for Route {
    fn clone(&self) -> Self {
        match self {
            Self::Blocks(lengths) => Self::Blocks(lengths.clone()),
            Self::Rows(rows) => Self::Rows(rows.shallow_clone()),
            Self::One(run) => Self::One(*run),
        }
    }
}
