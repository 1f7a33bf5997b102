//! `loraxs report`: runs side by side.

use std::path::PathBuf;
use std::thread::sleep;
use std::time::Duration;

use super::Outcome;
use crate::cli::{ReportArgs, StudyFormat};
use crate::fault::{Result, usage};
use crate::files;
use crate::report::say;
use crate::study::{Study, last_change, mlflow, peft, records};
use crate::train::interrupt;

/// Seconds between two looks at runs that go on.
const PAUSE: u64 = 3;

/// Prints or writes the report; with `--watch`, again and again until all runs have ended.
/// Fails when there is no finished run, or a file cannot be written.
pub fn run(args: &ReportArgs) -> Result<Outcome> {
    let format = format(args)?;
    if let Some(StudyFormat::Peft | StudyFormat::Mlflow) = format {
        if args.watch {
            return Err(usage("`--watch` keeps a report up to date, not the files of another tool")
                .hint("write them when the runs have ended, without `--watch`")
                .into());
        }
        let write = if format == Some(StudyFormat::Peft) { peft::write } else { mlflow::write };
        say(&write(&records(&args.paths)?, args.out.as_deref())?);
        return Ok(Outcome::Done);
    }
    if !args.watch {
        report(args, format)?;
        return Ok(Outcome::Done);
    }
    let _awaited = interrupt::awaited();
    let mut seen = None;
    loop {
        let change = last_change(&args.paths);
        if seen != Some(change) {
            seen = Some(change);
            if report(args, format)? {
                return Ok(Outcome::Done);
            }
        }
        for _ in 0..PAUSE * 10 {
            if interrupt::requested() {
                return Ok(Outcome::Interrupted);
            }
            sleep(Duration::from_millis(100));
        }
    }
}

/// Makes one report; returns true if all runs have ended.
fn report(args: &ReportArgs, format: Option<StudyFormat>) -> Result<bool> {
    let study = Study::open(&args.paths)?;
    let is_live = args.watch && !study.is_over();
    if is_live && study.settings.is_empty() {
        say("no run has finished yet");
        return Ok(false);
    }
    study.check()?;
    let out = out(args, format);
    let text = match format {
        Some(StudyFormat::Peft | StudyFormat::Mlflow) | None => study.text(),
        Some(StudyFormat::Html) => study.html(out.as_deref().unwrap_or(".".as_ref()), is_live)?,
        Some(StudyFormat::Md) => study.markdown(),
        Some(StudyFormat::Csv) => study.csv()?,
        Some(StudyFormat::Json) => study.json()?,
    };
    match &out {
        Some(path) => {
            files::write_bytes(path, format!("{}\n", text.trim_end()).as_bytes())?;
            say(&format!("wrote {}", path.display()));
        }
        None => say(text.trim_end()),
    }
    if let Some(folder) = &args.plots {
        let count = study.write_plots(folder)?;
        say(&format!("wrote {count} plots, each as SVG and PNG, to {}", folder.display()));
    }
    Ok(study.is_over())
}

/// Returns the format that is asked for; `None` is a table for a terminal.
fn format(args: &ReportArgs) -> Result<Option<StudyFormat>> {
    let Some(path) = args.out.as_deref().filter(|_| args.format.is_none()) else {
        return Ok(args.format.or(args.watch.then_some(StudyFormat::Html)));
    };
    let ending = path.extension().unwrap_or_default().to_string_lossy().to_ascii_lowercase();
    match &*ending {
        "html" | "htm" => Ok(Some(StudyFormat::Html)),
        "md" => Ok(Some(StudyFormat::Md)),
        "csv" => Ok(Some(StudyFormat::Csv)),
        "json" => Ok(Some(StudyFormat::Json)),
        _ => Err(usage(format!("`--out {}` does not say which format", path.display()))
            .hint("end it in `.html`, `.md`, `.csv` or `.json`, or add `--format`")
            .into()),
    }
}

/// Returns the file to write; `None` is standard output.
fn out(args: &ReportArgs, format: Option<StudyFormat>) -> Option<PathBuf> {
    let folder = args.paths.iter().find(|path| path.is_dir());
    let page = || folder.cloned().unwrap_or_default().join("report.html");
    args.out.clone().or_else(|| (format == Some(StudyFormat::Html)).then(page))
}
