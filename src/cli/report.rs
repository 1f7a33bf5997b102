//! Arguments of `loraxs report`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::spec::request::path;

/// `loraxs report`.
#[derive(Debug, Clone, Args)]
#[command(after_help = EXAMPLES)]
pub struct ReportArgs {
    /// Folder of a run or of a sweep, or one that holds runs at any depth; or a JSON file of PEFT's `method_comparison` or of
    /// lm-evaluation-harness; can be repeated
    #[arg(required = true, value_name = "RUN|SWEEP", value_parser = path())]
    pub paths: Vec<PathBuf>,
    /// Format [default: by the ending of `--out`; `html` with `--watch`; else a table for a terminal]
    #[arg(long, value_name = "FORMAT")]
    pub format: Option<StudyFormat>,
    /// File to write; a folder of `mlflow`, and of `peft` for several runs [default: standard output; of `html`, `report.html` in
    /// the first folder; of `mlflow`, mlruns]
    #[arg(long, value_name = "FILE", value_parser = path())]
    pub out: Option<PathBuf>,
    /// Also write the plots into DIR, each as SVG and PNG
    #[arg(long, value_name = "DIR", value_parser = path())]
    pub plots: Option<PathBuf>,
    /// Write the report again whenever runs have gone on, until all have ended; the page loads itself again
    #[arg(long)]
    pub watch: bool,
}

/// Format of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum StudyFormat {
    /// One self-contained page with table and plots
    Html,
    /// The table in Markdown
    Md,
    /// One line for each run, with every varied key and number
    Csv,
    /// Everything: settings, and runs with all evaluations and log points
    Json,
    /// A row for PEFT's `method_comparison`, as JSON; of several runs, a folder of them
    Peft,
    /// MLflow's file store, a folder
    Mlflow,
}

const EXAMPLES: &str = "\
Examples:
  loraxs report runs/grid                             print the table
  loraxs report runs/grid --format html               write the page runs/grid/report.html
  loraxs report runs/grid --watch                     keep the page up to date while runs go on
  loraxs report runs/xs runs/lora --out table.md      compare the runs of several folders
  loraxs report runs --out runs.csv --plots figures   one line a run, and the plots as SVG and PNG
  loraxs report runs/metamath peft/method_comparison/MetaMathQA/results     beside PEFT's results
  loraxs report runs/grid --format mlflow --out mlruns           for MLflow";
