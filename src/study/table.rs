//! The table of a study: a row for each setting, as papers print it.

use super::Study;
use super::settings::{Setting, Spread, short_names, shown};
use crate::report::table;

/// Runs that are listed one by one below a table.
const LISTED: usize = 20;

/// A table with what is said around it.
pub struct SettingTable {
    headers: Vec<String>,
    rows: Vec<Vec<String>>,
    /// True for the rows of the best settings.
    best: Vec<bool>,
    /// What is the same in all rows.
    constants: Vec<(String, String)>,
    above: Vec<String>,
    below: Vec<String>,
}

impl SettingTable {
    /// Makes the table of a study. What is the same in all rows is said above it.
    pub fn of(study: &Study) -> Self {
        let settings = &study.settings;
        let mut columns: Vec<(String, Vec<String>)> = Vec::new();
        let mut constants = study.constants();
        let column = |of: &dyn Fn(&Setting) -> String| settings.iter().map(of).collect::<Vec<_>>();
        let differ = |cells: &[String]| cells.iter().any(|cell| Some(cell) != cells.first());
        let tool = |row: &Setting| {
            row.runs.first().and_then(|&run| study.records.get(run)).map(|run| run.source.clone())
        };
        let tools = column(&|row| tool(row).unwrap_or_default());
        let [tasks, metrics] = [column(&|row| row.task.clone()), column(&|row| row.metric.clone())];
        for (name, cells) in [("tool", tools), ("task", tasks), ("metric", metrics)] {
            if differ(&cells) {
                columns.push((name.to_owned(), cells));
            }
        }
        for (place, name) in short_names(&study.keys).into_iter().enumerate() {
            columns.push((name, column(&|row| row.values.get(place).map(shown).unwrap_or_default())));
        }
        let best = |row: &Setting| match row.stderr {
            Some(stderr) => format!("{} (s.e. {stderr:.4})", spread(&row.best)),
            None => spread(&row.best),
        };
        columns.push(("best".to_owned(), column(&best)));
        columns.push(("last".to_owned(), column(&|row| spread(&row.last))));
        columns.push(("best epoch".to_owned(), column(&|row| number(row.best_epoch.median, 1))));
        columns.push(("seeds".to_owned(), column(&|row| seeds(row))));
        let numbers = [
            ("parameters", column(&|row| count(row.parameters))),
            ("head", column(&|row| count(row.head_parameters))),
            ("file", column(&|row| row.adapter_bytes.map_or("–".to_owned(), size))),
            ("seconds", column(&|row| number(row.seconds.median, 1))),
            ("examples/s", column(&|row| number(row.examples_per_second.median, 1))),
            ("peak MiB", column(&|row| number(row.peak_memory_mib, 0))),
        ];
        for (name, cells) in numbers {
            match cells.first() {
                Some(first) if settings.len() > 1 && !differ(&cells) => {
                    constants.extend((first != "–").then(|| (name.to_owned(), first.clone())));
                }
                _ => columns.push((name.to_owned(), cells)),
            }
        }
        let said: Vec<String> = constants.iter().map(|(name, value)| format!("{name} {value}")).collect();
        let (headers, columns): (Vec<String>, Vec<Vec<String>>) = columns.into_iter().unzip();
        let row = |place: usize| columns.iter().filter_map(|cells| cells.get(place).cloned()).collect();
        Self {
            headers,
            rows: (0..settings.len()).map(row).collect(),
            best: settings.iter().map(|row| row.is_best).collect(),
            constants,
            above: vec![counts(study), said.join(" · "), study.method().to_owned()],
            below: left_out(study),
        }
    }

    /// Returns what is the same in all rows, with its name.
    pub fn constants(&self) -> &[(String, String)] {
        &self.constants
    }

    /// Returns the table for a terminal; `*` marks the best settings.
    pub fn text(&self) -> String {
        let mark = self.best.contains(&true);
        let mut headers: Vec<&str> = self.headers.iter().map(String::as_str).collect();
        let mut rows = self.rows.clone();
        let mut above = self.above.clone();
        if mark {
            headers.insert(0, "");
            for (row, best) in rows.iter_mut().zip(&self.best) {
                row.insert(0, if *best { "*" } else { "" }.to_owned());
            }
            above.push("* best of what was searched, for each kind of adapter and task".to_owned());
        }
        [above, vec![String::new(), table(&headers, &rows)], self.below.clone()].concat().join("\n")
    }

    /// Returns the table in Markdown, the best settings in bold.
    pub fn markdown(&self, title: &str) -> String {
        let cell = |text: &str| {
            text.replace('\\', "\\\\").replace('|', "\\|").replace(['\n', '\r'], " ").replace('<', "&lt;")
        };
        let line = |cells: Vec<String>| format!("| {} |", cells.join(" | "));
        let mut lines = vec![format!("# {}", cell(title)), String::new()];
        for sentence in &self.above {
            lines.extend([cell(sentence), String::new()]);
        }
        lines.push(line(self.headers.iter().map(|name| cell(name)).collect()));
        lines.push(line(self.headers.iter().map(|_| "---".to_owned()).collect()));
        for (row, best) in self.rows.iter().zip(&self.best) {
            let bold = |text: &String| if *best { format!("**{}**", cell(text)) } else { cell(text) };
            lines.push(line(row.iter().map(bold).collect()));
        }
        lines.push(String::new());
        lines.extend(
            self.below.iter().filter(|text| !text.is_empty()).map(|text| format!("- {}", cell(text))),
        );
        lines.join("\n").trim_end().to_owned()
    }
}

/// Returns how many runs there are, and how many did not finish.
pub fn counts(study: &Study) -> String {
    let plural = |count: usize, word: &str| format!("{count} {word}{}", if count == 1 { "" } else { "s" });
    let mut parts = vec![plural(study.records.len(), "run"), plural(study.settings.len(), "setting")];
    for state in ["stopped", "failed", "unfinished"] {
        let count = study.count(state);
        parts.extend((count > 0).then(|| format!("{count} {state}")));
    }
    parts.extend((study.waiting > 0).then(|| format!("{} to begin", study.waiting)));
    parts.join(", ")
}

fn left_out(study: &Study) -> Vec<String> {
    let all = study.left_out();
    if all.is_empty() {
        return Vec::new();
    }
    let lines = all.iter().take(LISTED).map(|(name, why)| format!("{name}: {why}"));
    let more = all.len().saturating_sub(LISTED);
    let rest = (more > 0).then(|| format!("… and {more} more"));
    std::iter::once(String::new()).chain(lines).chain(rest).collect()
}

/// Returns how many seeds have a value, and of how many runs if that is fewer.
pub fn seeds(row: &Setting) -> String {
    match row.runs.len() {
        all if all == row.best.count => all.to_string(),
        all => format!("{} of {all}", row.best.count),
    }
}

/// Returns median and deviation.
pub fn spread(spread: &Spread) -> String {
    match (spread.median, spread.deviation) {
        (Some(median), Some(deviation)) => format!("{median:.4} ± {deviation:.4}"),
        (median, _) => number(median, 4),
    }
}

fn number(value: Option<f64>, digits: usize) -> String {
    value.map_or("–".to_owned(), |value| format!("{value:.digits$}"))
}

/// Returns a count with commas.
pub fn count(value: Option<u64>) -> String {
    let Some(value) = value else { return "–".to_owned() };
    let digits = value.to_string();
    let groups: Vec<&str> =
        digits.as_bytes().rchunks(3).rev().filter_map(|group| std::str::from_utf8(group).ok()).collect();
    groups.join(",")
}

/// Returns a size in bytes as people read it.
pub fn size(bytes: u64) -> String {
    match bytes as f64 {
        bytes if bytes < 1e3 => format!("{bytes} B"),
        bytes if bytes < 1e6 => format!("{:.1} kB", bytes / 1e3),
        bytes if bytes < 1e9 => format!("{:.1} MB", bytes / 1e6),
        bytes => format!("{:.2} GB", bytes / 1e9),
    }
}
