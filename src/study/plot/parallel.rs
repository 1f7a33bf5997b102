//! Parallel coordinates: a line for each setting through its values and its result.

use serde_json::Value;

use super::canvas::{Anchor, AxisScale, Canvas, brief};
use super::curves::short;
use super::palette::HEATS;
use super::{Figure, Scene, data};
use crate::study::settings::{plain, short_names, shown};

/// Most lines, and most axes besides the metric's.
const LINES: usize = 300;
const AXES: usize = 7;
/// Most values that are marked on an axis.
const MARKS: usize = 12;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 300.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 830.0;

/// A key along an axis.
struct KeyAxis {
    key: usize,
    x: f64,
    values: Vec<Value>,
    /// Many numbers lie where they are; few values, without it, one above the other.
    scale: Option<AxisScale>,
}

impl KeyAxis {
    fn new(key: usize, x: f64, values: Vec<Value>) -> Self {
        let numbers: Option<Vec<f64>> = values.iter().map(Value::as_f64).collect();
        let many = numbers.filter(|found| found.len() > MARKS);
        let scale = many.map(|found| AxisScale::of(found.into_iter(), true, (BOTTOM, TOP)));
        Self { key, x, values, scale }
    }

    fn height(&self, value: &Value) -> f64 {
        if let (Some(scale), Some(number)) = (self.scale, value.as_f64()) {
            return scale.at(number);
        }
        let place = self.values.iter().position(|known| known == value).unwrap_or(0) as f64;
        BOTTOM - 10.0 - (BOTTOM - TOP - 20.0) * place / (self.values.len() - 1) as f64
    }

    /// Returns the places that are marked, with what they are.
    fn marks(&self) -> Vec<(f64, String)> {
        match self.scale {
            Some(scale) => scale.ticks(6.0).into_iter().map(|tick| (scale.at(tick), brief(tick))).collect(),
            None => {
                let some = self.values.iter().step_by(self.values.len().div_ceil(MARKS));
                some.map(|value| (self.height(value), shown(value))).collect()
            }
        }
    }

    fn draw(&self, canvas: &mut Canvas, name: &str) {
        canvas.line("axis", (self.x, TOP), (self.x, BOTTOM));
        canvas.text("d f-ink", (self.x, TOP - 14.0), Anchor::Middle, &short(name, 20));
        for (y, words) in self.marks() {
            canvas.text("d f-soft", (self.x + 6.0, y + 4.0), Anchor::Start, &short(&words, 16));
        }
    }
}

/// Draws the plot where at least two keys vary.
pub fn draw(scene: &Scene<'_>) -> Vec<Figure> {
    let keys: Vec<(usize, Vec<Value>)> = (0..scene.study.keys.len())
        .map(|key| (key, scene.values(key)))
        .filter(|(_, values)| values.len() > 1)
        .take(AXES)
        .collect();
    let mut rows = scene.by_merit();
    rows.retain(|(_, setting)| setting.best.median.is_some());
    if keys.len() < 2 || rows.len() < 4 {
        return Vec::new();
    }
    let all = rows.len();
    // The best are kept, which are the last.
    rows = rows.into_iter().rev().step_by(all.div_ceil(LINES)).collect();
    rows.reverse();
    let mut canvas = Canvas::new(900.0, BOTTOM + 24.0);
    let gap = (RIGHT - LEFT) / keys.len() as f64;
    let axis = |(place, (key, values)): (usize, (usize, Vec<Value>))| {
        KeyAxis::new(key, LEFT + gap * place as f64, values)
    };
    let axes: Vec<KeyAxis> = keys.into_iter().enumerate().map(axis).collect();
    let metric =
        AxisScale::of(rows.iter().filter_map(|(_, setting)| setting.best.median), false, (BOTTOM, TOP));
    let count = rows.len().max(2);
    for (rank, (place, setting)) in rows.iter().enumerate() {
        let point =
            |axis: &KeyAxis| (axis.x, axis.height(setting.values.get(axis.key).unwrap_or(&Value::Null)));
        let mut points: Vec<(f64, f64)> = axes.iter().map(point).collect();
        points.extend(setting.best.median.map(|median| (RIGHT, metric.at(median))));
        // From the third step on, which can be seen on the ground.
        let heat = 2 + rank * (HEATS - 3) / (count - 1);
        let class = if rank + count.div_ceil(10) >= count { "best" } else { "curve" };
        canvas.path(&format!("{class} s-h{heat}"), &points, &data(*place));
    }
    let names = short_names(&scene.study.keys);
    for axis in &axes {
        axis.draw(&mut canvas, &names.get(axis.key).map(|name| plain(name)).unwrap_or_default());
    }
    canvas.line("axis", (RIGHT, TOP), (RIGHT, BOTTOM));
    canvas.text("d f-ink", (RIGHT, TOP - 14.0), Anchor::Middle, scene.metric());
    for tick in metric.ticks(6.0) {
        canvas.text("d f-soft", (RIGHT + 6.0, metric.at(tick) + 4.0), Anchor::Start, &brief(tick));
    }
    let some = if rows.len() < all {
        format!(" Drawn are {} of {all} settings.", rows.len())
    } else {
        String::new()
    };
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
