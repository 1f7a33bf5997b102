//! A split of a data set: its rows, converted in the order of its files.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use anyhow::Context as _;
use rayon::prelude::*;

use super::Skipped;
use super::dataset::Dataset;
use super::row::{Columns, Refusal, Wanted};
use super::rows::Rows;
use crate::fault::{Result, fault, reading};

/// Number of unusable rows that are shown.
const SHOWN: usize = 3;
/// Rows converted at once, at most.
const CHUNK: usize = 8192;

/// A split of a data set, with its files at hand.
#[derive(Debug, Clone, Copy)]
pub struct Split<'a> {
    /// The catalog entry.
    pub dataset: &'a Dataset,
    /// Name of the split.
    pub name: &'a str,
    /// Its files, in order.
    pub files: &'a [PathBuf],
    /// Number of usable rows to keep from the start, 0 = all.
    pub limit: usize,
}

/// Requirements on rows.
pub(super) struct Need<'a> {
    /// Columns that must exist.
    pub columns: &'a [&'a str],
    /// Columns whose values are used; `None` for all.
    pub kept: Option<&'a [&'a str]>,
    /// Hint at what decides which rows can be used.
    pub hint: &'static str,
}

impl Split<'_> {
    /// Converts the usable rows, numbered over all files and counting the others, at most `limit` of them.
    ///
    /// # Errors
    /// When a file cannot be read, a column does not exist, no row can be used, or a row shows that none should be.
    pub(super) fn convert<T: Send>(
        &self,
        need: &Need<'_>,
        convert: impl Fn(usize, &Columns) -> std::result::Result<T, Refusal> + Sync,
    ) -> Result<(Vec<T>, Skipped)> {
        let (mut found, mut skipped, mut before, mut advice) = (Vec::new(), Skipped::default(), 0, None);
        let most = if self.limit == 0 { usize::MAX } else { self.limit };
        let &Need { columns, kept, hint } = need;
        let task = &self.dataset.task;
        let classes = task.labelled().and_then(|(_, label)| Some((label.first()?.as_str(), task.labels())));
        let field = self.dataset.field.as_deref();
        let wanted = Wanted { columns, split: self.name, field, kept, classes };
        for path in self.files {
            if found.len() == most {
                break;
            }
            let _reading = reading(path);
            let mut rows = Rows::open(path, &wanted)?;
            while found.len() < most {
                let piece = rows.next(most.clamp(64, CHUNK))?;
                if piece.is_empty() {
                    rows.check(columns.iter().copied())?;
                    break;
                }
                let each = piece.par_iter().enumerate().map(|(i, row)| match &row.columns {
                    Ok(columns) => convert(before + i, columns),
                    Err(reason) => Err(reason.clone().into()),
                });
                for (row, converted) in piece.iter().zip(each.collect::<Vec<_>>()) {
                    let place = || format!("`{}` {} {}", path.display(), rows.unit, row.number);
                    match converted {
                        _ if found.len() == most => break,
                        Ok(item) => found.push(item),
                        Err(Refusal::Row(reason)) => {
                            skipped.count += 1;
                            if skipped.first.len() < SHOWN {
                                skipped.first.push(format!("{}: {reason}", place()));
                            }
                        }
                        Err(Refusal::All(fault)) => return Err(anyhow::Error::new(fault).context(place())),
                    }
                }
                before += piece.len();
            }
            advice = advice.or(rows.advice());
        }
        if found.is_empty() {
            let (name, first) = (&self.dataset.name, skipped.first.join("; "));
            let message = format!("no row of `{name}` {} can be used: {first}", self.name);
            return Err(fault(message).hint(advice.unwrap_or(hint)).into());
        }
        Ok((found, skipped))
    }

    /// Warns of rows that could not be used, beside `used` ones.
    pub(super) fn warn_of(&self, skipped: &Skipped, used: usize) {
        if skipped.count > 0 {
            let (name, total) = (&self.dataset.name, skipped.count + used);
            let first = skipped.first.join("; ");
            tracing::warn!(
                "`{name}` {}: {} of {total} rows cannot be used: {first}",
                self.name,
                skipped.count
            );
        }
    }

    /// Hashes the contents of its files piece by piece: mapped files would count as memory of the process.
    pub(super) fn hash_into(&self, hasher: &mut blake3::Hasher) -> Result<()> {
        let mut piece = vec![0; 1 << 20];
        for path in self.files {
            let mut file = blake3::Hasher::new();
            let cannot = || format!("cannot read `{}`", path.display());
            let mut input = File::open(path).with_context(cannot)?;
            loop {
                let count = input.read(&mut piece).with_context(cannot)?;
                if count == 0 {
                    break;
                }
                file.update_rayon(piece.get(..count).unwrap_or_default());
            }
            // The name is included for its ending, the format; the folder is not: caches and data sets move.
            let name = path.file_name().unwrap_or_default();
            hasher.update(file.finalize().as_bytes()).update(name.as_encoded_bytes());
        }
        Ok(())
    }
}
