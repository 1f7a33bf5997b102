//! Loss and metric as training goes on, a line for each setting: the median over its seeds.

use std::collections::BTreeMap;

use super::canvas::{Anchor, AxisScale, Canvas, apart, brief};
use super::{Figure, Scene, data};
use crate::study::record::Record;
use crate::study::settings::{Setting, Spread};

/// Most lines in a plot, and points of a line.
const LINES: usize = 160;
const POINTS: usize = 48;

const SIZE: (f64, f64) = (440.0, 300.0);
const LEFT: f64 = 46.0;
const TOP: f64 = 28.0;
const BOTTOM: f64 = 262.0;

/// A line, and how it is drawn.
pub struct Series {
    /// Its points.
    pub points: Vec<(f64, f64)>,
    /// The setting's place among all; none for a line of something else.
    pub setting: Option<usize>,
    /// The colour's name.
    pub colour: String,
    /// The words beside its end; without them, it is one of many.
    pub words: Option<String>,
}

/// Draws both plots of a task.
pub fn draw(scene: &Scene<'_>) -> Vec<Figure> {
    let epochs = scene.settings.iter().flat_map(|(_, setting)| &setting.runs);
    let has_epochs =
        epochs.clone().all(|&run| scene.study.records[run].points.iter().all(|p| p.epoch.is_finite()));
    let x_name = if has_epochs { "epoch" } else { "step" };
    let loss = |record: &Record| -> Vec<(f64, f64)> {
        record.points.iter().map(|p| (if has_epochs { p.epoch } else { p.step as f64 }, p.loss)).collect()
    };
    let metric = |record: &Record| -> Vec<(f64, f64)> {
        let value = |evaluation: &crate::study::record::Evaluated| {
            let x = if has_epochs { evaluation.epoch? } else { evaluation.step as f64 };
            Some((x, evaluation.metrics.get(&record.metric).copied()?))
        };
        record.evaluations.iter().filter_map(value).collect()
    };
    let name = scene.metric();
    let about = |what: &str| {
        format!("{what}. A line is the median over seeds of a setting; the best of each kind in full.")
    };
    let plots = [
        (
            series(scene, &loss),
            "training loss".to_owned(),
            about("Mean loss since the log point before"),
            true,
        ),
        (series(scene, &metric), format!("validation {name}"), about("Each evaluation"), false),
    ];
    (plots.into_iter())
        .filter(|(lines, ..)| lines.iter().any(|line| line.points.len() > 1))
        .map(|(lines, y_name, about, may_be_log)| Figure {
            kind: "curves",
            title: y_name.clone(),
            about: about + &fewer(scene.settings.len(), lines.len()),
            svg: lines_svg(&lines, (x_name, &y_name), may_be_log),
            is_wide: false,
        })
        .collect()
}

/// Says how many of the settings are drawn, if not all.
fn fewer(all: usize, drawn: usize) -> String {
    if drawn < all {
        format!(" Drawn are {drawn} of {all} settings: the best of each kind, and every so many of the rest.")
    } else {
        String::new()
    }
}

fn series(scene: &Scene<'_>, points: &dyn Fn(&Record) -> Vec<(f64, f64)>) -> Vec<Series> {
    let chosen = scene.chosen();
    let sorted = scene.by_merit();
    let step = sorted.len().div_ceil(LINES);
    let is_drawn =
        |(place, (setting, _)): &(usize, (usize, &Setting))| place % step == 0 || chosen.contains(setting);
    let mut lines: Vec<Series> = (sorted.into_iter().enumerate().filter(is_drawn))
        .map(|(_, (place, setting))| Series {
            points: median_line(setting.runs.iter().map(|&run| points(&scene.study.records[run]))),
            setting: Some(place),
            colour: scene.colouring.colour(setting),
            words: chosen.contains(&place).then(|| scene.words(setting)),
        })
        .filter(|line| !line.points.is_empty())
        .collect();
    lines.sort_by_key(|line| line.words.is_some());
    lines
}

/// Returns the median of lines at each place that one of them has, thinned out by the mean of neighbours.
fn median_line(lines: impl Iterator<Item = Vec<(f64, f64)>>) -> Vec<(f64, f64)> {
    let mut at: BTreeMap<u64, (f64, Vec<Option<f64>>)> = BTreeMap::new();
    for (x, y) in lines.flatten().filter(|(x, y)| *x >= 0.0 && y.is_finite()) {
        // Numbers from 0 on are in the order of their bits.
        at.entry(x.to_bits()).or_insert((x, Vec::new())).1.push(Some(y));
    }
    let all: Vec<(f64, f64)> = at
        .into_values()
        .filter_map(|(x, values)| Some((x, Spread::of(values.into_iter()).median?)))
        .collect();
    let size = all.len().div_ceil(POINTS);
    if size < 2 {
        return all;
    }
    let mean = |part: &[(f64, f64)]| {
        let count = part.len() as f64;
        (part.iter().map(|p| p.0).sum::<f64>() / count, part.iter().map(|p| p.1).sum::<f64>() / count)
    };
    let (Some(first), Some(last)) = (all.first(), all.last()) else { return all };
    let middle = all.chunks(size).map(mean);
    std::iter::once(*first).chain(middle).chain([*last]).collect()
}

/// Draws lines with their axes and labels.
pub fn lines_svg(lines: &[Series], (x_name, y_name): (&str, &str), may_be_log: bool) -> String {
    let words = lines.iter().filter_map(|line| line.words.as_ref());
    let longest = words.map(|text| text.chars().count().min(26)).max().unwrap_or(0) as f64;
    let right = (SIZE.0 - 12.0 - longest * 7.0).max(230.0);
    let mut canvas = Canvas::new(SIZE.0, SIZE.1);
    let all = || lines.iter().flat_map(|line| &line.points);
    // What shoots off is cut, so that the rest can be seen.
    let mut heights: Vec<f64> = all().map(|point| point.1).collect();
    heights.sort_by(f64::total_cmp);
    let cut = |share: f64| heights.get((heights.len() as f64 * share) as usize).copied();
    let (low, high) = (cut(0.002).unwrap_or(0.0), cut(0.995).or(heights.last().copied()).unwrap_or(1.0));
    let y = AxisScale::of([low, high].into_iter(), may_be_log, (BOTTOM, TOP));
    let x = AxisScale::of(all().map(|point| point.0), false, (LEFT, right)).and_zero();
    axes(&mut canvas, (x, y), (LEFT, right, BOTTOM), (x_name, y_name));
    let at = |(px, py): &(f64, f64)| (x.at(*px), y.at(*py).clamp(TOP - 4.0, BOTTOM + 4.0));
    for line in lines {
        let class = if line.words.is_some() { "best" } else { "curve" };
        let points: Vec<(f64, f64)> = line.points.iter().map(at).collect();
        canvas.path(
            &format!("{class} s-{}", line.colour),
            &points,
            &line.setting.map(data).unwrap_or_default(),
        );
    }
    let ends: Vec<(&Series, &String, (f64, f64))> = (lines.iter())
        .filter_map(|line| Some((line, line.words.as_ref()?, at(line.points.last()?))))
        .collect();
    let mut places: Vec<f64> = ends.iter().map(|(_, _, (_, y))| *y).collect();
    apart(&mut places, 13.0, (TOP, BOTTOM));
    for ((line, words, (x, _)), y) in ends.into_iter().zip(places) {
        canvas.text(&format!("d f-{}", line.colour), (x + 6.0, y + 4.0), Anchor::Start, &short(words, 26));
    }
    canvas.finish(&format!("{y_name} by {x_name}"))
}

/// Returns a text of at most `most` characters.
pub fn short(text: &str, most: usize) -> String {
    match text.chars().count() {
        count if count <= most => text.to_owned(),
        _ => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// Draws both axes: light lines at round numbers, and names.
pub fn axes(
    canvas: &mut Canvas,
    (x, y): (AxisScale, AxisScale),
    (left, right, bottom): (f64, f64, f64),
    (x_name, y_name): (&str, &str),
) {
    for tick in y.ticks(5.0) {
        let at = y.at(tick);
        canvas.line("grid", (left, at), (right, at));
        canvas.text("t", (left - 7.0, at + 4.0), Anchor::End, &brief(tick));
    }
    for tick in x.ticks(((right - left) / 70.0).clamp(2.0, 7.0)) {
        let at = x.at(tick);
        canvas.line("axis", (at, bottom), (at, bottom + 4.0));
        canvas.text("t", (at, bottom + 17.0), Anchor::Middle, &brief(tick));
    }
    canvas.line("axis", (left, bottom), (right, bottom));
    canvas.text("l", (f64::midpoint(left, right), bottom + 33.0), Anchor::Middle, x_name);
    canvas.text("l", (4.0, 11.0), Anchor::Start, y_name);
}
