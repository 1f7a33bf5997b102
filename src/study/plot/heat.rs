//! Heat maps of two searched keys: the learning rates of adapter and head, or one of them and another number.

use std::collections::BTreeMap;

use indexmap::IndexMap;
use serde_json::Value;

use super::canvas::{Anchor, Canvas};
use super::palette::HEATS;
use super::{Figure, Scene, data};
use crate::study::settings::{RANK, Setting, Spread, plain, short_names, shown};

/// Most maps of a task, and most values of a key in one.
const MAPS: usize = 24;
const VALUES: usize = 16;

/// Keys for the axes, in the order in which they are taken.
const WISHED: [&str; 3] = ["train.learning_rate", "train.head_learning_rate", RANK];

/// The settings of each cell, by row and column, with their places among all.
type Cells<'a> = BTreeMap<(usize, usize), Vec<(usize, &'a Setting)>>;

/// A key along an axis.
struct HeatAxis {
    key: usize,
    name: String,
    values: Vec<Value>,
}

/// Draws a map for each combination of the other keys.
pub fn draw(scene: &Scene<'_>) -> Vec<Figure> {
    let wished = WISHED.iter().filter_map(|name| scene.study.keys.iter().position(|key| key == name));
    let names = short_names(&scene.study.keys);
    let axis = |key: usize| {
        let name = names.get(key).map(|name| plain(name)).unwrap_or_default();
        HeatAxis { key, name, values: scene.values(key) }
    };
    let is_fit = |axis: &HeatAxis| {
        (2..=VALUES).contains(&axis.values.len()) && axis.values.iter().all(Value::is_number)
    };
    let mut axes = wished.map(axis).filter(is_fit);
    let (Some(down), Some(across)) = (axes.next(), axes.next()) else { return Vec::new() };
    let maps = maps(scene, &names, [&down, &across]);
    let all = maps.iter().flat_map(|(_, cells)| cells.values().flatten());
    let medians = all.filter_map(|(_, setting)| setting.best.median);
    let (low, high) =
        medians.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), m| (low.min(m), high.max(m)));
    let shade = |median: f64| {
        let share = if high > low { (median - low) / (high - low) } else { 0.5 };
        let share = if scene.is_up() { share } else { 1.0 - share };
        (share * (HEATS - 1) as f64).round() as usize
    };
    let about = format!(
        "Median {} over seeds at the best epoch. One scale for all maps of a task; the best of each map is ringed.",
        scene.metric()
    );
    (maps.into_iter().take(MAPS))
        .map(|(title, cells)| Figure {
            kind: "heat",
            title,
            about: about.clone(),
            svg: map_svg([&down, &across], &cells, &shade, scene.is_up()),
            is_wide: false,
        })
        .collect()
}

/// Returns the settings by the values of all keys but those of the axes, each with a title, those with fewer than three left out.
fn maps<'a>(scene: &Scene<'a>, names: &[String], [down, across]: [&HeatAxis; 2]) -> Vec<(String, Cells<'a>)> {
    let is_told = |key: usize| ![down.key, across.key].contains(&key) && scene.values(key).len() > 1;
    let told: Vec<(usize, &String)> = names.iter().enumerate().filter(|(key, _)| is_told(*key)).collect();
    let mut found: IndexMap<String, Cells<'a>> = IndexMap::new();
    for &(place, setting) in &scene.settings {
        let value = |key: usize| setting.values.get(key).unwrap_or(&Value::Null);
        let parts = told.iter().filter(|(key, _)| !value(*key).is_null());
        let title: Vec<String> =
            parts.map(|(key, name)| format!("{} {}", plain(name), shown(value(*key)))).collect();
        let index = |axis: &HeatAxis| axis.values.iter().position(|known| known == value(axis.key));
        if let (Some(row), Some(column)) = (index(down), index(across)) {
            let cells = found.entry(title.join(" · ")).or_default();
            cells.entry((row, column)).or_default().push((place, setting));
        }
    }
    found.into_iter().filter(|(_, cells)| cells.len() > 2).collect()
}

fn map_svg(
    [down_axis, across_axis]: [&HeatAxis; 2],
    cells: &Cells<'_>,
    shade: &dyn Fn(f64) -> usize,
    is_up: bool,
) -> String {
    let (down, across) = (&down_axis.values, &across_axis.values);
    let (down_name, across_name) = (&down_axis.name, &across_axis.name);
    let (left, top) = (64.0, 26.0);
    let width = (366.0 / across.len() as f64).min(118.0);
    let height = if down.len() > 6 { 30.0 } else { 40.0 };
    let (right, bottom) = (left + width * across.len() as f64, top + height * down.len() as f64);
    let mut canvas = Canvas::new(440.0, bottom + 40.0);
    canvas.text("l", (4.0, 14.0), Anchor::Start, down_name);
    let median = |settings: &[(usize, &Setting)]| {
        Spread::of(settings.iter().map(|(_, setting)| setting.best.median)).median
    };
    let merit = |value: f64| if is_up { value } else { -value };
    let best = cells.iter().filter_map(|(place, settings)| Some((place, merit(median(settings)?))));
    let best = best.max_by(|a, b| a.1.total_cmp(&b.1)).map(|(place, _)| *place);
    for (row, value) in down.iter().enumerate() {
        let y = bottom - height * (row as f64 + 0.5);
        canvas.text("t", (left - 8.0, y + 4.0), Anchor::End, &shown(value));
    }
    for (column, value) in across.iter().enumerate() {
        let x = left + width * (column as f64 + 0.5);
        canvas.text("t", (x, bottom + 17.0), Anchor::Middle, &shown(value));
    }
    canvas.text("l", (f64::midpoint(left, right), bottom + 34.0), Anchor::Middle, across_name);
    let corner =
        |(row, column): (usize, usize)| (left + width * column as f64, bottom - height * (row as f64 + 1.0));
    for (&place, settings) in cells {
        let Some((setting, _)) = settings.first() else { continue };
        let (x, y) = corner(place);
        let median = median(settings);
        let heat = median.map(shade);
        let class = heat.map_or("f-none".to_owned(), |heat| format!("f-h{heat}"));
        canvas.rect(
            &class,
            (x + 1.0, y + 1.0),
            (width - 2.0, height - 2.0),
            &format!("rx=\"3\" {}", data(*setting)),
        );
        if let (Some(median), true) = (median, width > 34.0) {
            let ink = if heat.is_some_and(|heat| heat > 6) { "f-k1" } else { "f-k0" };
            let at = (x + width / 2.0, y + height / 2.0 + 4.0);
            let digits = if width > 44.0 { 4 } else { 3 };
            canvas.text(&format!("v {ink}"), at, Anchor::Middle, &format!("{median:.digits$}"));
        }
    }
    if let Some((x, y)) = best.map(corner) {
        canvas.rect("ring", (x + 1.0, y + 1.0), (width - 2.0, height - 2.0), "rx=\"3\"");
    }
    canvas.finish(&format!("Heat map of {down_name} and {across_name}"))
}
