//! `loraxs merge`.
use crate::cli::{Global, MergeArgs};
use crate::fault::Result;
pub fn run(_global: &Global, _args: &MergeArgs) -> Result<()> { Ok(()) }
