//! `loraxs report`: runs side by side.

use super::Outcome;
use crate::cli::{ReportArgs, StudyFormat};
use crate::fault::{Result, usage};
use crate::files;
use crate::report::say;
use crate::study::{Study, mlflow, peft, records};

/// Prints or writes the report.
/// Fails when there is no finished run, or a file cannot be written.
pub fn run(args: &ReportArgs) -> Result<Outcome> {
    let format = format(args)?;
    let study = || Study::open(&args.paths);
    let text = match format {
        None => study()?.text(),
        Some(StudyFormat::Md) => study()?.markdown(),
        Some(StudyFormat::Csv) => study()?.csv()?,
        Some(StudyFormat::Json) => study()?.json()?,
        Some(StudyFormat::Peft | StudyFormat::Mlflow) => {
            let write = if format == Some(StudyFormat::Peft) { peft::write } else { mlflow::write };
            say(&write(&records(&args.paths)?, args.out.as_deref())?);
            return Ok(Outcome::Done);
        }
    };
    match &args.out {
        Some(path) => {
            files::write_bytes(path, format!("{}\n", text.trim_end()).as_bytes())?;
            say(&format!("wrote {}", path.display()));
        }
        None => say(text.trim_end()),
    }
    Ok(Outcome::Done)
}

/// Returns the format that is asked for; `None` is a table for a terminal.
fn format(args: &ReportArgs) -> Result<Option<StudyFormat>> {
    let Some(path) = args.out.as_deref().filter(|_| args.format.is_none()) else { return Ok(args.format) };
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match &*ending {
        "md" => Ok(Some(StudyFormat::Md)),
        "csv" => Ok(Some(StudyFormat::Csv)),
        "json" => Ok(Some(StudyFormat::Json)),
        _ => Err(usage(format!("`--out {}` does not say which format", path.display()))
            .hint("end it in `.md`, `.csv` or `.json`, or add `--format`")
            .into()),
    }
}
