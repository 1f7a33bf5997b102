//! `report`: tables, files and the page, over runs that are written here as `train` writes them.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::support::{Place, errors};

/// What sets a run apart.
#[derive(Clone)]
struct Made {
    task: &'static str,
    metric: &'static str,
    method: &'static str,
    rank: u64,
    rates: [f64; 2],
    seed: u64,
    /// Values of the metric, epoch by epoch; NaN is written as `null`.
    values: Vec<f64>,
}

impl Default for Made {
    fn default() -> Self {
        let values = vec![0.5, 0.8125, 0.75];
        Self {
            task: "glue/stsb",
            metric: "pearson",
            method: "lora-xs",
            rank: 4,
            rates: [1e-3, 5e-3],
            seed: 0,
            values,
        }
    }
}

impl Made {
    fn recipe(&self) -> Value {
        json!({
            "model": {"name": "minilm", "revision": "main"},
            "adapter": {"method": self.method, "rank": self.rank, "alpha": self.rank as f64, "init": "random", "targets": ["query", "value"]},
            "data": {"dataset": self.task, "max_length": 64},
            "train": {"epochs": 3, "batch_size": 32, "learning_rate": self.rates[0], "head_learning_rate": self.rates[1], "seed": self.seed},
            "eval": {"every": "epoch", "metric": self.metric},
        })
    }

    fn evaluation(&self, epoch: usize) -> Value {
        json!({"step": epoch * 10, "epoch": epoch as f64, "metrics": {self.metric: self.values[epoch - 1], "other": 0.125}})
    }

    fn log(&self) -> String {
        let mut lines = Vec::new();
        for epoch in 1..=self.values.len() {
            let at = epoch as f64;
            lines.push(json!({"kind": "train", "step": epoch * 10, "epoch": at, "loss": 2.0 / at + self.rates[0], "learning_rate": 1e-3, "grad_norm": 1.0, "tokens_per_second": 9.0}));
            lines.push(json!({"kind": "eval", "step": epoch * 10, "task": self.task, "metrics": {self.metric: self.values[epoch - 1]}}));
        }
        lines.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Writes a run that has not ended.
    fn begin(&self, run: &Path) {
        fs::create_dir_all(run.join("adapter")).unwrap();
        fs::write(run.join("adapter/adapter_model.safetensors"), vec![0; 100 + 4 * self.rank as usize])
            .unwrap();
        let recipe: toml::Table = serde_json::from_value(self.recipe()).unwrap();
        fs::write(run.join("recipe.toml"), toml::to_string(&recipe).unwrap()).unwrap();
        fs::write(run.join("metrics.jsonl"), self.log()).unwrap();
    }

    /// Writes a finished run.
    fn finish(&self, run: &Path) {
        self.begin(run);
        let up = !["loss", "mse"].contains(&self.metric);
        let merit = |epoch: &usize| if up { self.values[epoch - 1] } else { -self.values[epoch - 1] };
        let defined = (1..=self.values.len()).filter(|epoch| self.values[epoch - 1].is_finite());
        let best = defined.max_by(|a, b| merit(a).total_cmp(&merit(b)));
        let odd = 1.0 + 0.1 * self.seed as f64 + 1e-3 / 3.0 * self.rank as f64;
        let layer =
            |layer: usize| (format!("encoder.layer.{layer}.attention.self.query"), odd * layer as f64);
        let results = json!({
            "task": self.task, "metric": self.metric,
            "best": best.map(|epoch| self.evaluation(epoch)),
            "last": self.evaluation(self.values.len()),
            "steps": 30, "seed": self.seed,
            "parameters": {"adapter": self.rank * self.rank * 24, "base": 0, "head": 385},
            "train_seconds": 7.5 * odd, "seconds": 9.25 * odd, "tokens_per_second": 2_000.1 * odd, "examples_per_second": 120.7 * odd,
            "peak_memory_mib": 512.3 + self.rank as f64, "device": "cpu", "base": {"hash": "0"},
            "ended": "finished", "together": 1,
            "delta_norm": (1..4).map(layer).collect::<BTreeMap<String, f64>>(),
            "recipe": self.recipe(),
        });
        fs::write(run.join("results.json"), serde_json::to_string_pretty(&results).unwrap()).unwrap();
    }
}

/// Writes a grid of so many learning rates for six ranks, three head rates and five seeds; returns its folder.
fn grid(place: &Place, rates: usize) -> PathBuf {
    let grid = place.path("grid");
    for (rank, rate, head, seed) in [2, 4, 8, 12, 16, 25].into_iter().flat_map(|rank| {
        (0..rates).flat_map(move |rate| {
            (0..3).flat_map(move |head| (0..5).map(move |seed| (rank, rate, head, seed)))
        })
    }) {
        let rates = [5e-4 * (rate + 1) as f64, 1e-3 * f64::from(head + 1)];
        let value = |epoch: f64| {
            0.5 + 0.01 * rank as f64 + 0.02 * rates[0].log10() + 0.003 * (seed as f64) + 0.01 * epoch
        };
        let made = Made { rank, rates, seed, values: [1.0, 3.0, 2.0].map(value).to_vec(), ..Made::default() };
        made.finish(&grid.join(format!(
            "rank={rank},learning_rate={},head_learning_rate={},seed={seed}",
            rates[0], rates[1]
        )));
    }
    grid
}

fn out(output: &std::process::Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// The numbers that a page shows.
fn data_of(page: &str) -> Value {
    let start = page.find("id=\"data\">").unwrap() + "id=\"data\">".len();
    let end = start + page[start..].find("</script>").unwrap();
    serde_json::from_str(&page[start..end]).unwrap()
}

/// Runs `report` with these arguments for a page, and returns it.
fn page(place: &Place, args: &[&str]) -> String {
    place.run(&[&["report"], args, &["--out", "page.html"]].concat(), 0);
    fs::read_to_string(place.path("page.html")).unwrap()
}

#[test]
fn one_run_makes_every_kind_of_report() {
    let place = Place::new();
    Made::default().finish(&place.path("run"));
    let text = out(&place.run(&["report", "run"], 0));
    for part in [
        "1 run, 1 setting",
        "task glue/stsb · metric pearson",
        "selected by the validation metric",
        "0.8125",
        "0.7500",
        "9.3",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let markdown = out(&place.run(&["report", "run", "--format", "md"], 0));
    assert!(
        markdown.starts_with("# run\n")
            && markdown.contains("| 0.8125 | 0.7500 | 2.0 | 1 | 384 | 385 | 116 B |"),
        "{markdown}"
    );
    let csv = out(&place.run(&["report", "run", "--format", "csv"], 0));
    assert_eq!(csv.lines().count(), 2);
    let all: Value =
        serde_json::from_str(&out(&place.run(&["report", "run", "--format", "json"], 0))).unwrap();
    assert_eq!(all["runs"][0]["evaluations"][2]["metrics"]["pearson"], 0.75);
    assert_eq!(all["runs"][0]["points"][0]["loss"], 2.001);
    assert_eq!(all["settings"][0]["best"]["count"], 1);
    place.run(&["report", "run", "--format", "html"], 0);
    let page = fs::read_to_string(place.path("run/report.html")).unwrap();
    for section in ["overview", "results", "norms"] {
        assert!(page.contains(&format!("<section id=\"{section}\">")), "{section}");
    }
    for section in ["rates", "seeds", "settings", "rest"] {
        assert!(!page.contains(&format!("<section id=\"{section}\">")), "{section}");
    }
    let outside = page.replace("http://www.w3.org/2000/svg", "");
    assert!(!outside.contains("http:") && !outside.contains("https:") && !outside.contains("@import"));
}

#[test]
fn runs_that_differ_in_their_seed_are_one_row_and_the_best_of_each_kind_is_marked() {
    let place = Place::new();
    for (rank, rate, base) in [(4, 1e-3, 0.5), (4, 2e-3, 0.6), (8, 1e-3, 0.8), (8, 2e-3, 0.7)] {
        for (seed, more) in [(0, 0.0), (1, 0.05), (2, 0.01)] {
            let values = vec![0.1, base + more, base];
            Made { rank, rates: [rate, 5e-3], seed, values, ..Made::default() }
                .finish(&place.path(&format!("runs/{rank}-{rate}-{seed}")));
        }
    }
    let text = out(&place.run(&["report", "runs"], 0));
    let rows: Vec<&str> = text.lines().filter(|line| line.contains('±')).skip(1).collect();
    assert_eq!(rows.len(), 4, "{text}");
    assert!(
        text.contains("learning_rate") && !text.contains("alpha") && !text.contains("  head_learning_rate"),
        "{text}"
    );
    // The deviation of 0, 0.05 and 0.01 with n − 1.
    assert!(
        rows[1].starts_with("*     4")
            && rows[1].contains("0.6100 ± 0.0265")
            && rows[1].contains("0.6000 ± 0.0000"),
        "{text}"
    );
    assert!(
        rows[2].starts_with("*     8") && !rows[0].starts_with('*') && !rows[3].starts_with('*'),
        "{text}"
    );
    let csv = out(&place.run(&["report", "runs", "--format", "csv"], 0));
    let mut rows = csv::Reader::from_reader(csv.as_bytes());
    let headers = rows.headers().unwrap().clone();
    assert_eq!(
        headers.iter().take(9).collect::<Vec<_>>(),
        ["name", "source", "state", "task", "metric", "rank", "learning_rate", "seed", "best"]
    );
    assert_eq!(rows.records().count(), 12);
    // A seed counts once, wherever it was trained, and a run that halving stopped is no match for those that went to their end.
    let with = |seed| Made { rates: [1e-3, 5e-3], seed, values: vec![0.1, 0.9, 0.9], ..Made::default() };
    with(0).finish(&place.path("runs/zz"));
    with(3).finish(&place.path("runs/stopped"));
    let results = place.path("runs/stopped/results.json");
    let mut stopped: Value = crate::support::json(&results);
    (stopped["ended"], stopped["steps"]) = ("halving".into(), 10.into());
    fs::write(results, stopped.to_string()).unwrap();
    let output = place.run(&["report", "runs"], 0);
    assert!(errors(&output).contains("has a recipe and a seed that another run has"), "{}", errors(&output));
    let told = out(&output);
    let stopped = told.lines().filter(|line| line.contains("0.9000") && !line.contains("±"));
    assert_eq!(stopped.count(), 1, "{told}");
}

#[test]
fn of_a_loss_less_is_better_and_undefined_metrics_are_no_numbers() {
    let place = Place::new();
    for (rank, values) in [(2, [3.0, 1.5, 2.0]), (4, [3.0, 2.5, 2.5]), (8, [f64::NAN; 3])] {
        for rate in [1e-3, 2e-3] {
            let made = Made {
                task: "mine",
                metric: "loss",
                rank,
                rates: [rate, 5e-3],
                values: values.iter().map(|v| v + rate).collect(),
                ..Made::default()
            };
            made.finish(&place.path(&format!("runs/{rank}-{rate}")));
        }
    }
    let text = out(&place.run(&["report", "runs"], 0));
    let best: Vec<&str> =
        text.lines().filter(|line| line.starts_with("* ") && !line.contains("best of")).collect();
    assert!(best.len() == 2 && best[0].contains("1.5010") && best[1].contains("2.5010"), "{text}");
    let page = page(&place, &["runs"]);
    let data = data_of(&page);
    let undefined = &data["settings"][4];
    assert_eq!((&undefined["best"]["median"], &undefined["best"]["count"]), (&Value::Null, &json!(0)));
    assert!(page.contains("<div class=\"value\">1.5010"), "the least loss is the best");
}

/// Columns of a page's runs, and where `results.json` has them.
const SAME: [(&str, &str); 14] = [
    ("best", "/best/metrics/pearson"),
    ("last", "/last/metrics/pearson"),
    ("best_step", "/best/step"),
    ("best_epoch", "/best/epoch"),
    ("steps", "/steps"),
    ("adapter", "/parameters/adapter"),
    ("head", "/parameters/head"),
    ("base", "/parameters/base"),
    ("train_seconds", "/train_seconds"),
    ("seconds", "/seconds"),
    ("examples_per_second", "/examples_per_second"),
    ("tokens_per_second", "/tokens_per_second"),
    ("peak_memory_mib", "/peak_memory_mib"),
    ("seed", "/seed"),
];

#[test]
fn every_number_of_the_page_is_that_of_the_results() {
    let place = Place::new();
    let grid = grid(&place, 3);
    Made::default().begin(&grid.join("not-yet"));
    let failed = grid.join("failed");
    Made { seed: 7, ..Made::default() }.begin(&failed);
    fs::write(failed.join("failed.json"), r#"{"error": "the loss is not finite", "hint": null, "step": 17}"#)
        .unwrap();
    let page = page(&place, &["grid"]);
    let data = data_of(&page);
    let runs = &data["runs"];
    let names = runs["name"].as_array().unwrap();
    assert_eq!((names.len(), data["settings"].as_array().unwrap().len()), (272, 54));
    let mut compared = 0;
    for (at, name) in names.iter().enumerate() {
        let path = grid.join(name.as_str().unwrap()).join("results.json");
        let Ok(text) = fs::read_to_string(&path) else { continue };
        let results: Value = serde_json::from_str(&text).unwrap();
        for (column, place) in SAME {
            assert_eq!(Some(&runs[column][at]), results.pointer(place), "{name}: {column}");
            compared += 1;
        }
        assert_eq!(
            runs["adapter_bytes"][at],
            100 + 4 * results["recipe"]["adapter"]["rank"].as_u64().unwrap()
        );
    }
    assert_eq!(compared, 270 * 14);
    for setting in data["settings"].as_array().unwrap() {
        let mut best: Vec<f64> = setting["runs"]
            .as_array()
            .unwrap()
            .iter()
            .map(|run| runs["best"][run.as_u64().unwrap() as usize].as_f64().unwrap())
            .collect();
        best.sort_by(f64::total_cmp);
        assert_eq!((best.len(), setting["best"]["median"].as_f64()), (5, Some(best[2])));
    }
    assert!(page.contains("272 runs, 54 settings, 1 failed, 1 unfinished"));
    assert!(
        page.contains("failed at step 17: the loss is not finite")
            && page.contains("unfinished after step 30")
    );
    // A heat map for each rank, and a link that leads to the run.
    let section =
        &page[page.find("<section id=\"rates\">").unwrap()..page.find("<section id=\"seeds\">").unwrap()];
    assert_eq!(section.matches("<figure>").count(), 6);
    assert_eq!(section.matches("<rect class=\"f-h").count(), 54);
    assert_eq!(runs["href"][0], format!("grid/{}/", names[0].as_str().unwrap()));
    assert!(page.len() < 1_000_000, "{} bytes", page.len());
}

#[test]
fn five_thousand_runs_take_seconds_and_fit_into_five_megabytes() {
    let place = Place::new();
    grid(&place, 56);
    let start = Instant::now();
    let page = page(&place, &["grid"]);
    let taken = start.elapsed();
    assert_eq!(data_of(&page)["runs"]["name"].as_array().unwrap().len(), 5_040);
    assert!(page.len() < 5_000_000, "{} bytes", page.len());
    assert!(taken < Duration::from_secs(60), "{taken:?}");
}

#[test]
fn names_are_shown_and_never_run() {
    let place = Place::new();
    let name = "<img src=x onerror=alert(1)> \"'&amp; |日本語 %41#?😀";
    Made::default().finish(&place.path("runs").join(name));
    let failed = place.path("runs/<b>failed");
    Made { method: "<i>", ..Made::default() }.begin(&failed);
    fs::write(
        failed.join("failed.json"),
        r#"{"error": "</script><script>alert(2)</script>|\u001b[31m", "hint": null, "step": null}"#,
    )
    .unwrap();
    let page = page(&place, &["runs"]);
    for raw in ["<img", "<script>alert", "<b>failed", "\u{1b}"] {
        assert!(!page.contains(raw), "{raw}");
    }
    let data = data_of(&page);
    assert_eq!(data["runs"]["name"][1], name);
    assert_eq!(data["runs"]["href"][1], "runs/%3Cimg%20src%3Dx%20onerror%3Dalert%281%29%3E%20%22%27%26amp%3B%20%7C%E6%97%A5%E6%9C%AC%E8%AA%9E%20%2541%23%3F%F0%9F%98%80/".replace("%3D", "="));
    let markdown = out(&place.run(&["report", "runs", "--format", "md"], 0));
    assert!(
        !markdown.contains("<script>") && markdown.contains("&lt;b>failed: failed: &lt;/script>"),
        "{markdown}"
    );
}

#[test]
fn two_tasks_and_several_methods_are_told_apart() {
    let place = Place::new();
    for (task, metric) in [("glue/stsb", "pearson"), ("glue/cola", "matthews_correlation")] {
        for (method, rank) in [("lora-xs", 4), ("lora-xs", 8), ("lora", 4), ("vera", 64)] {
            for seed in 0..2 {
                let values = vec![0.5, 0.6 + 0.001 * rank as f64 + 0.01 * seed as f64];
                Made { task, metric, method, rank, seed, values, ..Made::default() }
                    .finish(&place.path(&format!("runs/{}/{method}-{rank}-{seed}", task.replace('/', "-"))));
            }
        }
    }
    let text = out(&place.run(&["report", "runs"], 0));
    let rows: Vec<&str> = text.lines().filter(|line| line.contains("glue/")).collect();
    assert_eq!(rows.len(), 8, "{text}");
    assert!(rows[0].starts_with("glue/cola  matthews_correlation  lora "), "{text}");
    assert!(!text.lines().any(|line| line.starts_with('*')), "nothing was searched: {text}");
    let page = page(&place, &["runs/glue-stsb", "runs/glue-cola"]);
    assert!(
        page.contains("glue/stsb · pearson against parameters")
            && page.contains("glue/cola · validation matthews_correlation")
    );
    assert_eq!(data_of(&page)["runs"]["name"][0], "glue-cola/lora-4-0");
}

#[test]
fn what_cannot_be_read_is_left_out_with_a_warning() {
    let place = Place::new();
    Made::default().finish(&place.path("runs/a"));
    Made { seed: 1, ..Made::default() }.finish(&place.path("runs/b"));
    Made { seed: 2, ..Made::default() }.begin(&place.path("runs/c"));
    let torn = Made::default().log() + "{\"kind\":\"eval\",\"st";
    fs::write(place.path("runs/c/metrics.jsonl"), torn).unwrap();
    fs::write(place.path("runs/b/results.json"), "{\"task\": ").unwrap();
    fs::write(place.path("runs/a/metrics.jsonl"), "\u{0}\u{0}\nnonsense\n").unwrap();
    std::os::unix::fs::symlink(place.path("runs"), place.path("runs/zz")).unwrap();
    let output = place.run(&["report", "runs"], 0);
    let (text, told) = (out(&output), errors(&output));
    assert!(
        text.contains("3 runs, 1 setting, 2 unfinished") && text.contains("b: unfinished after step 30"),
        "{text}"
    );
    assert!(
        told.contains("runs/b/results.json`, which is left out")
            && told.contains("runs/a/metrics.jsonl`: left out 2 damaged lines"),
        "{told}"
    );
    assert!(!told.contains("runs/c"), "{told}");
    let page = page(&place, &["runs"]);
    assert_eq!(data_of(&page)["runs"]["best"], json!([0.8125, 0.8125, 0.8125]));
}

#[test]
fn wrong_input_ends_in_one_message() {
    let place = Place::new();
    fs::create_dir_all(place.path("empty")).unwrap();
    Made::default().begin(&place.path("going/a"));
    Made::default().finish(&place.path("run"));
    for (args, code, message) in [
        (&["report", "nowhere"][..], 1, "`nowhere` does not exist"),
        (&["report", "empty"], 1, "no run in `empty`"),
        (&["report", "going"], 1, "no finished run: 1 found, of which 0 failed"),
        (&["report", "run", "--out", "table.pdf"], 2, "`--out table.pdf` does not say which format"),
        (
            &["report", "run", "--out", "run/recipe.toml/page.html"],
            1,
            "cannot write `run/recipe.toml/page.html`",
        ),
        (&["report", "run", "--watch", "--format", "mlflow"], 2, "not the files of another tool"),
        (&["report"], 2, "required"),
        (&["report", "run", "--format", "pdf"], 2, "invalid value 'pdf'"),
    ] {
        let told = errors(&place.run(args, code));
        assert!(told.contains(message), "{args:?}: {told}");
        assert_eq!(told.matches("error:").count(), 1, "{told}");
    }
}

#[test]
fn plots_are_written_as_svg_and_png() {
    let place = Place::new();
    grid(&place, 3);
    let output = place.run(&["report", "grid", "--out", "runs.csv", "--plots", "figures"], 0);
    assert!(out(&output).contains("each as SVG and PNG, to figures"), "{}", out(&output));
    let mut kinds = Vec::new();
    for entry in fs::read_dir(place.path("figures")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = fs::read(&path).unwrap();
        if path.extension().unwrap() == "svg" {
            let text = String::from_utf8(bytes).unwrap();
            assert!(text.starts_with("<svg ") && !text.contains("var("), "{}", path.display());
            kinds.push(path.file_stem().unwrap().to_str().unwrap().split('-').next().unwrap().to_owned());
        } else {
            assert_eq!(bytes[..8], *b"\x89PNG\r\n\x1a\n");
            let width = u32::from_be_bytes(bytes[16..20].try_into().unwrap());
            assert!(
                [880, 1_800].contains(&width) && bytes.len() > 5_000,
                "{}: {width}, {}",
                path.display(),
                bytes.len()
            );
        }
    }
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, ["curves", "heat", "norms", "parallel", "pareto", "seeds"]);
}

#[test]
fn a_watched_report_is_written_again_until_all_runs_have_ended() {
    let place = Place::new();
    Made::default().finish(&place.path("runs/a"));
    let late = Made { seed: 1, values: vec![0.9], ..Made::default() };
    late.begin(&place.path("runs/b"));
    let mut watching = place.command(&["report", "runs", "--watch"]).spawn().unwrap();
    let page = place.path("runs/report.html");
    let until = |is: &dyn Fn(&str) -> bool| {
        let start = Instant::now();
        while !fs::read_to_string(&page).is_ok_and(|page| is(&page)) {
            assert!(start.elapsed() < Duration::from_secs(60), "not written");
            std::thread::sleep(Duration::from_millis(50));
        }
    };
    until(&|page| page.contains("<html lang=\"en\" data-live>") && page.contains("1 unfinished"));
    late.finish(&place.path("runs/b"));
    until(&|page| page.contains("<html lang=\"en\">") && !page.contains("1 unfinished"));
    assert!(watching.wait().unwrap().success());
}

#[test]
fn runs_of_a_sweep_that_have_not_begun_are_counted() {
    let place = Place::new();
    let sweep =
        "[model]\nname = \"minilm\"\n[data]\ndataset = \"glue/stsb\"\n[sweep]\ntrain.seed = [0, 1, 2]\n";
    fs::create_dir_all(place.path("sweep")).unwrap();
    fs::write(place.path("sweep/sweep.toml"), sweep).unwrap();
    Made::default().finish(&place.path("sweep/seed=0"));
    Made { seed: 1, ..Made::default() }.begin(&place.path("sweep/seed=1"));
    let text = out(&place.run(&["report", "sweep"], 0));
    assert!(text.starts_with("2 runs, 1 setting, 1 unfinished, 1 to begin\n"), "{text}");
    assert!(page(&place, &["sweep"]).contains("1 unfinished, 1 to begin</p>"));
}

/// A browser, where there is one.
fn browser() -> Option<&'static str> {
    let is_there = |name: &&str| {
        Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    let found = ["chromium", "chromium-browser", "google-chrome"].into_iter().find(is_there);
    if found.is_none() {
        println!("skipped: no browser; install `chromium`");
    }
    found
}

/// What a reader does, and what is seen then.
const PROBE: &str = r#"<script>
addEventListener("error", event => parent.postMessage("error: " + event.message, "*"));
addEventListener("load", () => {
  const first = n => [...document.querySelectorAll("tr.set")].slice(0, n).map(row => settings[row.dataset.row].best.median);
  const settings = JSON.parse(document.getElementById("data").textContent).settings;
  const seen = {};
  const click = name => document.querySelector(`th[data-name="${name}"] button`).click();
  seen.columns = [...document.querySelectorAll("th[data-name]")].map(th => th.dataset.name);
  click("best"); seen.down = first(3); seen.sort = document.querySelector("th[data-name=best]").getAttribute("aria-sort");
  click("best"); seen.up = first(3);
  document.querySelector("tr.set").click();
  seen.seeds = document.querySelectorAll("tr.run tr").length - 1;
  seen.link = document.querySelector("tr.run a").getAttribute("href");
  document.getElementById("theme").click();
  seen.dark = document.documentElement.dataset.theme;
  seen.width = innerWidth; seen.wide = document.documentElement.scrollWidth;
  seen.drawn = [...document.querySelectorAll("svg")].every(svg => svg.getBoundingClientRect().height > 40);
  const box = document.getElementById("filter");
  box.value = "rank=8 learning rate>6e-4";
  box.dispatchEvent(new Event("input"));
  setTimeout(() => {
    seen.shown = document.getElementById("shown").textContent;
    seen.rows = document.querySelectorAll("tr.set").length;
    seen.off = document.querySelectorAll("svg .off").length > 0;
    parent.postMessage(JSON.stringify(seen), "*");
  }, 400);
});
</script></head>"#;

#[test]
fn a_browser_shows_the_page_without_an_error_and_sorts_and_filters_it() {
    let Some(browser) = browser() else { return };
    let place = Place::new();
    grid(&place, 3);
    let page = page(&place, &["grid"]);
    fs::write(place.path("page.html"), page.replacen("</head>", PROBE, 1)).unwrap();
    for width in [1_280, 400] {
        let frame = format!(
            "<!doctype html><iframe src=\"page.html\" style=\"width:{width}px;height:900px;border:0\"></iframe><pre id=\"seen\"></pre>\
             <script>addEventListener('message', event => document.getElementById('seen').append(event.data + '\\n'))</script>"
        );
        fs::write(place.path("frame.html"), frame).unwrap();
        let mut command = Command::new(browser);
        command.args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--enable-logging=stderr",
            "--virtual-time-budget=8000",
            "--dump-dom",
        ]);
        command.arg(format!("--user-data-dir={}", place.path("profile").display()));
        command.arg(format!("file://{}", place.path("frame.html").display()));
        let output = command.output().unwrap();
        let (dom, told) = (out(&output), errors(&output));
        assert!(!told.contains("CONSOLE"), "{told}");
        let start = dom.find("<pre id=\"seen\">").expect("the frame") + "<pre id=\"seen\">".len();
        let text = dom[start..start + dom[start..].find("</pre>").unwrap()]
            .replace("&gt;", ">")
            .replace("&amp;", "&");
        let seen: Value =
            serde_json::from_str(text.trim()).unwrap_or_else(|error| panic!("{error}: {text}\n{told}"));
        let numbers = |name: &str| -> Vec<f64> {
            seen[name].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect()
        };
        assert_eq!(
            seen["columns"].as_array().unwrap()[..4],
            ["rank", "learning rate", "head learning rate", "best"]
        );
        assert!(
            numbers("down").is_sorted_by(|a, b| a >= b)
                && numbers("up").is_sorted()
                && numbers("down")[0] > numbers("up")[2],
            "{seen}"
        );
        assert_eq!(
            (seen["sort"].as_str(), seen["seeds"].as_u64(), seen["dark"].as_str()),
            (Some("descending"), Some(5), Some("dark"))
        );
        assert!(place.path(seen["link"].as_str().unwrap()).join("results.json").exists(), "{seen}");
        assert_eq!(
            (seen["shown"].as_str(), seen["rows"].as_u64(), seen["off"].as_bool()),
            (Some("6 of 54 settings"), Some(6), Some(true))
        );
        assert!(seen["wide"].as_u64() <= seen["width"].as_u64() && seen["width"] == width, "{seen}");
        assert_eq!(seen["drawn"], true);
    }
}
