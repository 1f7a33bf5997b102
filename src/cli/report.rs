//! Arguments of `loraxs report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use super::values::path;

/// `loraxs report`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Folder of a run or of a sweep, or one that holds runs at any depth; can be repeated
    #[arg(required = true, value_name = "RUN|SWEEP", value_parser = path())]
    pub paths: Vec<PathBuf>,
    /// Format [default: by the ending of `--out`; without it, a table on standard output]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<StudyFormat>,
    /// File to write [default: standard output]
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub out: Option<PathBuf>,
}

/// Format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StudyFormat {
    /// The table in Markdown
    Md,
    /// One line for each run, with every varied key and number
    Csv,
    /// Everything: settings, and runs with all evaluations and log points
    Json,
}

const EXAMPLES: &str = "\
Examples:
  loraxs report runs/grid    print the table
  loraxs report runs/xs runs/lora --out table.md                 compare the runs of several folders
  loraxs report runs --format csv | column -s, -t                one line for each run";
