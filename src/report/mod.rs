//! User-facing output of a run: log lines, progress, tables, and files for plotting tools.

mod json_lines;
pub mod metrics_log;
pub mod progress;
mod redacted;
pub mod tensorboard;

use std::io::{self, IsTerminal as _, Write};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use chrono::{DateTime, Local};
use comfy_table::{CellAlignment, ContentLineStyle, LineStyle, Table, TableStyle};
use indicatif::{MultiProgress, ProgressDrawTarget};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer as _, fmt};

use crate::fault::{hint_of, readable, shortened};
use json_lines::JsonLines;
pub use redacted::{hide, redacted};

/// Columns separated by spaces, a rule under the headers, nothing else.
const PLAIN: TableStyle = TableStyle::new()
    .header_lines(ContentLineStyle::none().junction(' '))
    .header_separator(LineStyle::none().fill('-').junction('-'))
    .content_lines(ContentLineStyle::none().junction(' '));

/// Target of the log points of a training, which a terminal shows as progress instead.
pub const POINTS: &str = "loraxs::points";

/// True if only errors are printed.
static QUIET: AtomicBool = AtomicBool::new(false);

/// All progress bars; hidden if standard error is not a terminal with escape codes, in quiet mode, and with
/// JSON lines.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// Sends log lines to standard error without tearing the progress bars.
///
/// `verbosity` is the count of `-v`, or -1 for `-q`: errors alone at -1, all of `loraxs` at 2; `RUST_LOG`, if set,
/// decides instead. `json` writes one object per line, with the fields of an event, of which only the sentence is shown
/// otherwise. A second call only changes the visibility of the bars.
pub fn init_logging(verbosity: i8, json: bool) {
    QUIET.store(verbosity < 0, Ordering::Relaxed);
    let variable = |name: &str| std::env::var_os(name).unwrap_or_default();
    // A terminal without escape codes, or whose user wants none.
    let plain = ["dumb", ""].map(Into::into).contains(&variable("TERM"));
    let escapes = !plain && variable("NO_COLOR").is_empty();
    if json || verbosity < 0 || !escapes {
        BARS.set_draw_target(ProgressDrawTarget::hidden());
    }
    // Log lines of libraries are shown only at the highest verbosity.
    let levels = match verbosity {
        ..0 => "error",
        0 if json => "warn,loraxs=info",
        0 => "warn,loraxs=info,loraxs::points=warn",
        1 => "warn,loraxs=debug",
        2.. => "debug,loraxs=trace",
    };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(levels));
    let terminal = io::stderr().is_terminal();
    let lines = fmt::layer().with_writer(move || BesideBars { json });
    let sentence = fmt::format::debug_fn(|writer, field, value| match field.name() {
        "message" => write!(writer, "{value:?}"),
        _ => Ok(()),
    });
    let lines = lines.with_target(false).with_ansi(terminal && escapes).fmt_fields(sentence);
    let lines = match (json, terminal) {
        (true, _) => lines.event_format(JsonLines).boxed(),
        (false, true) => lines.compact().without_time().boxed(),
        (false, false) => lines.compact().boxed(),
    };
    // An error here means that logging is set up already.
    let _ = tracing_subscriber::registry().with(filter).with(lines).try_init();
}

/// Longest log line in bytes; longer ones are shortened.
const LONGEST_EVENT: usize = 10_000;

/// Standard error, with the bars suspended.
struct BesideBars {
    /// True if each line is a JSON object, which must stay whole.
    json: bool,
}

impl Write for BesideBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut text = redacted(&String::from_utf8_lossy(bytes));
        if !self.json && text.len() > LONGEST_EVENT {
            text = format!("{}\n", shortened(&text));
        }
        BARS.suspend(|| io::stderr().write_all(text.as_bytes()))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// Removes the progress line from the terminal, for a process that ends at once.
pub fn clear_progress() {
    let _ = BARS.clear();
}

/// Returns the current local time, even before 1970, where `chrono::Local::now` panics.
pub fn local_time() -> DateTime<Local> {
    SystemTime::now().into()
}

/// Returns this process's peak memory in MiB; `None` if the system does not report it.
pub fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib / 1024.0)
}

/// Prints a line of results to standard output, except in quiet mode; write errors are ignored.
pub fn say(text: &str) {
    if QUIET.load(Ordering::Relaxed) {
        return;
    }
    BARS.suspend(|| {
        let _ = writeln!(io::stdout(), "{text}");
    });
}

/// Tells an error with its hint on standard error, after the name of the process that it is of, as text or as a JSON object.
pub fn report_error(whose: Option<&str>, error: &anyhow::Error, json: bool) {
    let told = |text: &str| readable(&redacted(text));
    let whose = whose.map(|whose| format!("{whose}: ")).unwrap_or_default();
    let (message, hint) = (told(&format!("{whose}{error:#}")), hint_of(error).map(told));
    let text = match (json, &hint) {
        (true, _) => serde_json::json!({"level": "ERROR", "message": message, "hint": hint}).to_string(),
        (false, None) => format!("error: {message}"),
        (false, Some(hint)) => format!("error: {message}\nhint: {hint}"),
    };
    // If standard error is closed, there is nobody left to tell.
    let _ = writeln!(io::stderr(), "{text}");
}

/// Formats a plain table: a rule under the headers, numbers right-aligned, no trailing spaces.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    let mut table = Table::new();
    table.load_style(PLAIN).set_header(headers.iter().copied()).add_rows(rows.iter().cloned());
    for (place, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 1));
        let mut cells =
            rows.iter().filter_map(|row| row.get(place)).filter(|cell| !cell.is_empty()).peekable();
        if cells.peek().is_some() && cells.all(|cell| is_number(cell)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table.trim_fmt()
}

/// Returns true if a cell reads as a number, common marks such as `%` allowed.
fn is_number(cell: &str) -> bool {
    let bare = cell.replace([',', '_'], "");
    bare.trim_end_matches(['%', 'x']).trim_end().parse::<f64>().is_ok() || cell == "-"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_numbers_to_the_right_and_leave_no_trailing_space() {
        let rows = [["query", "1,024", "0.5"], ["attention.output", "9", "-"]];
        let rows: Vec<Vec<String>> =
            rows.iter().map(|row| row.iter().map(|&cell| cell.to_owned()).collect()).collect();
        let expected = [
            "module            numbers  share",
            "---------------------------------",
            "query               1,024    0.5",
            "attention.output        9      -",
        ];
        assert_eq!(table(&["module", "numbers", "share"], &rows).lines().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn short_rows_and_no_rows_make_a_table_too() {
        assert!(table(&["a", "b"], &[]).contains('a'));
        assert!(table(&["a", "b"], &[vec!["only".to_owned()]]).contains("only"));
    }

    #[test]
    fn peak_memory_is_at_least_that_of_an_idle_program() {
        assert!(peak_rss_mib().is_some_and(|mib| mib > 1.0));
    }

    #[test]
    fn logging_may_be_set_up_twice() {
        init_logging(-1, true);
        init_logging(0, false);
    }
}
