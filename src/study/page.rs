//! The report as one HTML page that needs nothing else: style, script, plots and numbers are inside.

use std::fmt::Write as _;
use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use super::Study;
use super::plot::{Figure, escaped, figures, properties, rules};
use super::record::{Record, SEED};
use super::settings::{Setting, plain, short_names};
use super::table::{SettingTable, counts, spread};
use crate::fault::Result;
use crate::files::url_part;

const STYLE: &str = include_str!("page/page.css");
const SCRIPT: &str = include_str!("page/page.js");

/// The sections with plots: name, heading, and the kinds of plots in them. The first comes before the table.
const SECTIONS: [(&str, &str, &[&str]); 6] = [
    ("overview", "Overview", &["pareto", "curves"]),
    ("rates", "Learning rates", &["heat"]),
    ("seeds", "Seeds", &["seeds"]),
    ("settings", "Settings", &["parallel"]),
    ("norms", "Change of each layer", &["norms"]),
    ("spectra", "Spectra", &["spectra"]),
];

/// Most tasks that get a figure of their best setting on top.
const TILES: usize = 6;

impl Study {
    /// Returns the page that will be at `place`, from where it links to the runs. With `is_live`, it loads itself again as runs go
    /// on.
    /// Fails where a value has no form in JSON.
    pub fn html(&self, place: &Path, is_live: bool) -> Result<String> {
        let figures = figures(self);
        let table = SettingTable::of(self);
        let data = serde_json::to_string(&self.data(place))?.replace('<', "\\u003c");
        let title = escaped(&self.title);
        let mut page = String::new();
        let style = format!(
            ":root{{{}}}@media(prefers-color-scheme:dark){{:root:not([data-theme=light]){{color-scheme:dark;{}}}}}\
             :root[data-theme=dark]{{color-scheme:dark;{}}}\n{STYLE}\n{}",
            properties(false),
            properties(true),
            properties(true),
            rules()
        );
        let live = if is_live { " data-live" } else { "" };
        // Writing to a text cannot fail.
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\"{live}>\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
             <meta name=\"generator\" content=\"loraxs {}\">\n<title>{title} · loraxs report</title>\n\
             <link rel=\"icon\" href=\"data:,\">\n<style>\n{style}</style>\n</head>\n<body>\n",
            env!("CARGO_PKG_VERSION")
        );
        let _ = writeln!(
            page,
            "<header class=\"top\"><div><h1>{title}</h1><p class=\"counts\">{}</p></div>\
             <button id=\"theme\" type=\"button\" title=\"Light or dark\" aria-label=\"Switch between light and dark\">◐</button></header>",
            escaped(&counts(self))
        );
        page.push_str(&self.tiles());
        page.push_str(&constants(&table));
        page.push_str(&toolbar(&figures));
        page.push_str("<main>\n");
        for one in &SECTIONS[..1] {
            page.push_str(&section(one, &figures));
        }
        let _ = writeln!(
            page,
            "<section id=\"results\"><h2>Results</h2><p class=\"about\">{}.</p>\
             <noscript><p class=\"about\">The table needs JavaScript; <code>loraxs report --format md</code> writes it as text.</p></noscript>\
             <div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"Results\"><table id=\"table\"></table></div>\
             <p><button id=\"more\" type=\"button\" hidden></button></p></section>",
            escaped(&sentence(self.method()))
        );
        for one in &SECTIONS[1..] {
            page.push_str(&section(one, &figures));
        }
        page.push_str(&self.rest());
        let _ = write!(
            page,
            "</main>\n<footer>Made by loraxs {}. Every number is that of the runs’ own <code>results.json</code>.</footer>\n\
             <div id=\"tip\" role=\"status\" hidden></div>\n<script type=\"application/json\" id=\"data\">{data}</script>\n\
             <script>\n{SCRIPT}</script>\n</body>\n</html>\n",
            env!("CARGO_PKG_VERSION")
        );
        Ok(page)
    }

    /// Returns what the script shows: all settings, and all runs by column.
    fn data(&self, place: &Path) -> Value {
        let from = place.parent().unwrap_or(Path::new(""));
        let column = |of: &dyn Fn(&Record) -> Value| Value::Array(self.records.iter().map(of).collect());
        let number = |of: fn(&Record) -> Option<f64>| column(&|run| json!(of(run)));
        let whole = |of: fn(&Record) -> Option<u64>| column(&|run| json!(of(run)));
        json!({
            "keys": self.keys,
            "names": short_names(&self.keys).iter().map(|name| plain(name)).collect::<Vec<_>>(),
            "settings": self.settings,
            "runs": {
                "name": column(&|run| run.name.clone().into()),
                "href": column(&|run| link(from, &run.folder).into()),
                "source": column(&|run| run.source.clone().into()),
                "state": column(&|run| run.status.word().into()),
                "seed": column(&|run| run.settings.get(SEED).cloned().unwrap_or_default()),
                "best": number(Record::best_value),
                "last": number(Record::last_value),
                "best_step": whole(|run| Some(run.best.as_ref()?.step)),
                "best_epoch": number(|run| run.best.as_ref()?.epoch),
                "steps": whole(|run| run.steps),
                "adapter": whole(|run| run.adapter_parameters),
                "head": whole(|run| run.head_parameters),
                "base": whole(|run| run.base_parameters),
                "adapter_bytes": whole(|run| run.adapter_bytes),
                "train_seconds": number(|run| run.train_seconds),
                "seconds": number(|run| run.seconds),
                "examples_per_second": number(|run| run.examples_per_second),
                "tokens_per_second": number(|run| run.tokens_per_second),
                "peak_memory_mib": number(|run| run.peak_memory_mib),
            },
        })
    }

    /// Returns the figures on top: the best setting of each task, and what it all took.
    fn tiles(&self) -> String {
        let mut tiles = Vec::new();
        let mut tasks: Vec<&str> = self.settings.iter().map(|setting| setting.task.as_str()).collect();
        tasks.dedup();
        let count = tasks.len();
        for task in tasks.into_iter().take(TILES) {
            let of_task = self.settings.iter().filter(|setting| setting.task == task);
            let merit = |setting: &&Setting| {
                let median = setting.best.median.unwrap_or(f64::NAN);
                if median.is_nan() {
                    f64::NEG_INFINITY
                } else if setting.higher_is_better {
                    median
                } else {
                    -median
                }
            };
            let Some(best) = of_task.max_by(|a, b| merit(a).total_cmp(&merit(b))) else { continue };
            let (value, rest) = match (best.best.median, best.best.deviation) {
                (Some(median), Some(deviation)) => (format!("{median:.4}"), format!(" ± {deviation:.4}")),
                _ => (spread(&best.best), String::new()),
            };
            let name = if count > 1 {
                format!("{task} · {}", best.metric)
            } else {
                format!("best {}", best.metric)
            };
            tiles.push((name, value, rest, best.label.clone()));
        }
        let seconds: f64 = self.records.iter().filter_map(|run| run.seconds).sum();
        let done = self.count("finished") + self.count("stopped");
        let per_run = seconds / done.max(1) as f64;
        tiles.push((
            "time of all runs".to_owned(),
            duration(seconds),
            String::new(),
            format!("{} each on average", duration(per_run)),
        ));
        let tile = |(name, value, rest, about): (String, String, String, String)| {
            let [name, value, rest, about] = [name, value, rest, about].map(|text| escaped(&text));
            format!(
                "<div class=\"tile\"><div class=\"name\">{name}</div><div class=\"value\">{value}<small>{rest}</small></div><div class=\"about\">{about}</div></div>\n"
            )
        };
        format!("<div class=\"tiles\">\n{}</div>\n", tiles.into_iter().map(tile).collect::<String>())
    }

    /// Returns the runs that are not in the table, or not in full.
    fn rest(&self) -> String {
        let all = self.left_out();
        if all.is_empty() {
            return String::new();
        }
        let row =
            |(name, why): (&str, String)| format!("<li><b>{}</b> {}</li>\n", escaped(name), escaped(&why));
        let count = all.len();
        let rows: String = all.into_iter().map(row).collect();
        format!(
            "<section id=\"rest\"><h2>Stopped, failed and unfinished</h2><details{}><summary>{count} of {} runs</summary><ul>\n{rows}</ul></details></section>\n",
            if count <= 20 { " open" } else { "" },
            self.records.len()
        )
    }
}

/// Returns a text with a capital first.
fn sentence(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map(|first| first.to_uppercase().chain(chars).collect()).unwrap_or_default()
}

fn constants(table: &SettingTable) -> String {
    let one = |(name, value): &(String, String)| {
        format!("<div><dt>{}</dt><dd>{}</dd></div>", escaped(&plain(name)), escaped(value))
    };
    format!("<dl class=\"constants\">{}</dl>\n", table.constants().iter().map(one).collect::<String>())
}

fn toolbar(figures: &[Figure]) -> String {
    let mut links = String::new();
    for (place, (name, heading, kinds)) in SECTIONS.into_iter().enumerate() {
        if place == 1 {
            links.push_str("<a href=\"#results\">Results</a>");
        }
        if figures.iter().any(|figure| kinds.contains(&figure.kind)) {
            let _ = write!(links, "<a href=\"#{name}\">{heading}</a>");
        }
    }
    format!(
        "<div class=\"bar\"><label><span class=\"hidden\">Filter settings</span><input id=\"filter\" type=\"search\" \
         placeholder=\"Filter: rank=4 learning rate&gt;1e-3 …\" autocomplete=\"off\" spellcheck=\"false\"></label>\
         <span id=\"shown\" aria-live=\"polite\"></span><nav aria-label=\"Sections\">{links}</nav></div>\n"
    )
}

/// Returns a section with its plots; empty if there are none. Plots that say the same of themselves say it once.
fn section((name, heading, kinds): &(&str, &str, &[&str]), figures: &[Figure]) -> String {
    let found: Vec<&Figure> = figures.iter().filter(|figure| kinds.contains(&figure.kind)).collect();
    let Some(first) = found.first() else {
        // A spectrum needs a file that may be gone.
        return match *name {
            "spectra" => format!(
                "<section id=\"{name}\"><h2>{heading}</h2><p class=\"about\">No basis of these runs is at hand: none was cut from a decomposition, or it is no longer in the cache.</p></section>\n"
            ),
            _ => String::new(),
        };
    };
    let is_same = found.iter().all(|figure| figure.about == first.about);
    let about =
        if is_same { format!("<p class=\"about\">{}</p>", escaped(&first.about)) } else { String::new() };
    let mut text = format!("<section id=\"{name}\"><h2>{heading}</h2>{about}<div class=\"grid\">\n");
    for figure in found {
        let class = if figure.is_wide { " class=\"wide\"" } else { "" };
        let title = if figure.title.is_empty() {
            String::new()
        } else {
            format!("<h3>{}</h3>", escaped(&figure.title))
        };
        let about = if is_same {
            String::new()
        } else {
            format!("<p class=\"about\">{}</p>", escaped(&figure.about))
        };
        let scroll = if figure.is_wide { " tabindex=\"0\"" } else { "" };
        let _ = writeln!(
            text,
            "<figure{class}><figcaption>{title}{about}</figcaption><div class=\"drawing\"{scroll}>{}</div></figure>",
            figure.svg
        );
    }
    text + "</div></section>\n"
}

/// Returns a time as people read it.
fn duration(seconds: f64) -> String {
    let whole = seconds.round().max(0.0) as u64;
    match whole {
        0..10 => format!("{seconds:.1} s"),
        10..120 => format!("{whole} s"),
        120..7_200 => format!("{} min", whole / 60),
        7_200..172_800 => format!("{} h {} min", whole / 3_600, whole % 3_600 / 60),
        _ => format!("{} d {} h", whole / 86_400, whole % 86_400 / 3_600),
    }
}

/// Returns the link from a page in the folder `from` to `to`.
fn link(from: &Path, to: &Path) -> String {
    let whole = |path: &Path| -> PathBuf {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        path.canonicalize().or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
    };
    let (from, to) = (whole(from), whole(to));
    let common = from.components().zip(to.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(common).map(|_| "..".to_owned());
    let name = |part: Component<'_>| url_part(part.as_os_str().to_string_lossy().as_bytes(), ",=");
    let parts: Vec<String> = up.chain(to.components().skip(common).map(name)).collect();
    let path = if parts.is_empty() { ".".to_owned() } else { parts.join("/") };
    // Results of another tool are a file.
    if to.is_file() { path } else { path + "/" }
}
