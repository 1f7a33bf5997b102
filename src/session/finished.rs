//! Checks of a finished run: its results, its adapter, and the base that it was trained on.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::environment::OpenBase;
use super::run_folder::{ADAPTER, RESULTS};
use crate::adapters::file::WEIGHTS;
use crate::fault::{Result, fault};
use crate::files;

/// Name of the file by which tokenizers are compared; earlier releases kept a copy of it beside the adapter.
pub const TOKENIZER: &str = "tokenizer.json";

/// The part of the file that is read again; older versions wrote less.
#[derive(Debug, Deserialize)]
struct Known {
    base: KnownBase,
    #[serde(default)]
    adapter: BTreeMap<String, String>,
    #[expect(dead_code, reason = "what is asked for is that it is there")]
    steps: u64,
}

#[derive(Debug, Deserialize)]
struct KnownBase {
    #[serde(default)]
    config_hash: Option<String>,
    #[serde(default)]
    tokenizer_hash: Option<String>,
}

fn known(run: &Path) -> Result<Known> {
    let path = run.join(RESULTS);
    let fields: Result<Map<String, Value>> = files::read_json(&path);
    let known = fields.and_then(|fields| {
        Known::deserialize(Value::Object(fields)).with_context(|| format!("`{}` is damaged", path.display()))
    });
    known.map_err(|error| {
        let hint = format!(
            "delete `{}`: then `train --resume` continues from the newest checkpoint",
            path.display()
        );
        fault(format!("{error:#}")).hint(hint).into()
    })
}

/// Checks that the adapter of a finished run is the one that it wrote.
fn check_adapter(run: &Path, known: &Known) -> Result<()> {
    let folder = run.join(ADAPTER);
    for (name, checksum) in &known.adapter {
        let path = folder.join(name);
        if path.exists() && files::checksum(&path)? != *checksum {
            return Err(fault(format!("`{}` has changed since the run wrote it", path.display()))
                .hint(format!(
                    "restore it, or use it as it is with `--model BASE --adapter {}`",
                    folder.display()
                ))
                .into());
        }
    }
    Ok(())
}

/// Checks that a finished run's results and adapter are as it wrote them, and that the base still has the `config.json`
/// and the tokenizer that it was trained with.
/// The error names the file that is damaged, missing or another.
pub fn check_subject(run: &Path, base: &OpenBase) -> Result<()> {
    let changed = |path: PathBuf, like: &str| {
        fault(format!("`{}` is not the one `{}` was trained with", path.display(), run.display())).hint(
            format!(
                "restore it{like}, or use it as it is with `--model BASE --adapter {}`",
                run.join(ADAPTER).display()
            ),
        )
    };
    let [kept, own] = [&run.join(ADAPTER), &base.base.folder].map(|folder| folder.join(TOKENIZER));
    let found = own.exists().then(|| files::checksum(&own)).transpose()?;
    if run.join(RESULTS).exists() {
        let known = known(run)?;
        check_adapter(run, &known)?;
        if known.base.config_hash.is_some_and(|hash| hash != base.config_hash) {
            return Err(changed(base.base.folder.join("config.json"), "").into());
        }
        if found.is_some() && known.base.tokenizer_hash.is_some_and(|hash| Some(hash) != found) {
            return Err(changed(own, "").into());
        }
    }
    if kept.exists() && found.is_some() && Some(files::checksum(&kept)?) != found {
        return Err(changed(own, &format!(" (the run kept `{}`)", kept.display())).into());
    }
    Ok(())
}

/// Refuses a run that is marked as finished without sound results and an adapter.
/// The error names the file that is missing or damaged.
pub fn refuse_half_done(out: &Path) -> Result<()> {
    let (results, adapter) = (out.join(RESULTS), out.join(ADAPTER).join(WEIGHTS));
    let hint =
        format!("delete `{}`: then `--resume` continues from the newest checkpoint", results.display());
    if let Err(error) = known(out).and_then(|known| check_adapter(out, &known)) {
        return Err(fault(format!("{error:#}")).hint(hint).into());
    }
    if adapter.exists() {
        return Ok(());
    }
    Err(fault(format!("`{}` is finished, but `{}` is missing", out.display(), adapter.display()))
        .hint(hint)
        .into())
}
