//! Parallel coordinates: a line for each setting through its values and its result.

use serde_json::Value;

use super::canvas::{Anchor, AxisScale, Canvas, brief};
use super::curves::{fewer, short};
use super::palette::HEATS;
use super::{Figure, Scene, data};
use crate::study::settings::{compare, plain, short_names, shown};

/// Most lines, and most axes besides the metric's.
const LINES: usize = 300;
const AXES: usize = 7;
/// Most values that are marked on an axis.
const MARKS: usize = 12;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 300.0;

/// Draws the plot where at least two keys vary.
pub fn draw(scene: &Scene<'_>) -> Vec<Figure> {
    let values = |key: usize| -> Vec<Value> {
        let mut found: Vec<Value> =
            scene.settings.iter().filter_map(|(_, setting)| setting.values.get(key).cloned()).collect();
        found.sort_by(compare);
        found.dedup();
        found
    };
    let axes: Vec<(usize, Vec<Value>)> = (0..scene.study.keys.len())
        .map(|key| (key, values(key)))
        .filter(|(_, values)| values.len() > 1)
        .take(AXES)
        .collect();
    let mut rows = scene.by_merit();
    rows.retain(|(_, setting)| setting.best.median.is_some());
    if axes.len() < 2 || rows.len() < 4 {
        return Vec::new();
    }
    let all = rows.len();
    let step = all.div_ceil(LINES);
    // The best are kept, which are the last.
    rows = rows.into_iter().rev().step_by(step).collect();
    rows.reverse();
    let mut canvas = Canvas::new(900.0, BOTTOM + 24.0);
    let (left, right) = (70.0, 830.0);
    let gap = (right - left) / axes.len() as f64;
    let metric =
        AxisScale::of(rows.iter().filter_map(|(_, setting)| setting.best.median), false, (BOTTOM, TOP));
    // Many numbers lie where they are, few values one above the other.
    let scale = |values: &[Value]| {
        let numbers: Option<Vec<f64>> = values.iter().map(Value::as_f64).collect();
        numbers
            .filter(|found| found.len() > MARKS)
            .map(|found| AxisScale::of(found.into_iter(), true, (BOTTOM, TOP)))
    };
    let height = |values: &[Value], value: &Value| {
        if let (Some(scale), Some(number)) = (scale(values), value.as_f64()) {
            return scale.at(number);
        }
        let place = values.iter().position(|known| known == value).unwrap_or(0) as f64;
        BOTTOM - 10.0 - (BOTTOM - TOP - 20.0) * place / (values.len() - 1) as f64
    };
    let count = rows.len().max(2);
    for (rank, (place, setting)) in rows.iter().enumerate() {
        let mut points: Vec<(f64, f64)> = Vec::new();
        for (axis, (key, values)) in axes.iter().enumerate() {
            let value = setting.values.get(*key).unwrap_or(&Value::Null);
            points.push((left + gap * axis as f64, height(values, value)));
        }
        points.extend(setting.best.median.map(|median| (right, metric.at(median))));
        // From the third step on, which can be seen on the ground.
        let heat = 2 + rank * (HEATS - 3) / (count - 1);
        let class = if rank + count.div_ceil(10) >= count { "best" } else { "curve" };
        canvas.path(&format!("{class} s-h{heat}"), &points, &data(*place));
    }
    let names = short_names(&scene.study.keys);
    for (axis, (key, values)) in axes.iter().enumerate() {
        let x = left + gap * axis as f64;
        canvas.line("axis", (x, TOP), (x, BOTTOM));
        let name = names.get(*key).map(|name| plain(name)).unwrap_or_default();
        canvas.text("d f-ink", (x, TOP - 14.0), Anchor::Middle, &short(&name, 20));
        let marks: Vec<(f64, String)> = match scale(values) {
            Some(scale) => scale.ticks(6.0).into_iter().map(|tick| (scale.at(tick), brief(tick))).collect(),
            None => {
                let some = values.iter().step_by(values.len().div_ceil(MARKS));
                some.map(|value| (height(values, value), shown(value))).collect()
            }
        };
        for (y, words) in marks {
            canvas.text("d f-soft", (x + 6.0, y + 4.0), Anchor::Start, &short(&words, 16));
        }
    }
    canvas.line("axis", (right, TOP), (right, BOTTOM));
    canvas.text("d f-ink", (right, TOP - 14.0), Anchor::Middle, scene.metric());
    for tick in metric.ticks(6.0) {
        canvas.text("d f-soft", (right + 6.0, metric.at(tick) + 4.0), Anchor::Start, &brief(tick));
    }
    let some = fewer(all, rows.len());
    let some =
        if some.is_empty() { String::new() } else { format!(" Drawn are {} of {all} settings.", rows.len()) };
    vec![Figure {
        kind: "parallel",
        title: String::new(),
        about: format!(
            "Each line is a setting, from its values on the left to its median on the right; the best tenth in full.{some}"
        ),
        svg: canvas.finish(&format!("Settings and their {}", scene.metric())),
        is_wide: true,
    }]
}
