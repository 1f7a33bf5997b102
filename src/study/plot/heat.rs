//! Heat maps of two searched keys: the learning rates of adapter and head, or one of them and another number.

use std::collections::BTreeMap;

use serde_json::Value;

use super::canvas::{Anchor, Canvas};
use super::palette::HEATS;
use super::{Figure, Scene, data};
use crate::study::settings::{RANK, Setting, Spread, compare, plain, short_names, shown};

/// Most maps of a task, and most values of a key in one.
const MAPS: usize = 24;
const VALUES: usize = 16;

/// Keys for the axes, in the order in which they are taken.
const WISHED: [&str; 3] = ["train.learning_rate", "train.head_learning_rate", RANK];

/// A cell's medians, and the setting that stands for it.
type Cells<'a> = BTreeMap<(usize, usize), Vec<(usize, &'a Setting)>>;

/// Draws a map for each combination of the other keys.
pub fn draw(scene: &Scene<'_>) -> Vec<Figure> {
    let keys = &scene.study.keys;
    let values = |key: usize, settings: &[(usize, &Setting)]| {
        let mut found: Vec<Value> =
            settings.iter().filter_map(|(_, setting)| setting.values.get(key).cloned()).collect();
        found.sort_by(compare);
        found.dedup();
        found
    };
    let is_axis = |key: &usize| {
        let found = values(*key, &scene.settings);
        (2..=VALUES).contains(&found.len()) && found.iter().all(Value::is_number)
    };
    let mut axes = WISHED.iter().filter_map(|name| keys.iter().position(|key| key == name)).filter(is_axis);
    let (Some(down), Some(across)) = (axes.next(), axes.next()) else { return Vec::new() };
    let mut maps: Vec<(Vec<&Value>, Vec<(usize, &Setting)>)> = Vec::new();
    for &(place, setting) in &scene.settings {
        let rest: Vec<&Value> = setting
            .values
            .iter()
            .enumerate()
            .filter(|(key, _)| ![down, across].contains(key))
            .map(|(_, value)| value)
            .collect();
        match maps.iter_mut().find(|(known, _)| *known == rest) {
            Some((_, settings)) => settings.push((place, setting)),
            None => maps.push((rest, vec![(place, setting)])),
        }
    }
    maps.retain(|(_, settings)| settings.len() > 2);
    let (down_values, across_values) = (values(down, &scene.settings), values(across, &scene.settings));
    let medians =
        || maps.iter().flat_map(|(_, settings)| settings).filter_map(|(_, setting)| setting.best.median);
    let (low, high) =
        medians().fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), m| (low.min(m), high.max(m)));
    let names = short_names(keys);
    let name = |key: usize| names.get(key).map(|name| plain(name)).unwrap_or_default();
    let shade = |median: f64| {
        let share = if high > low { (median - low) / (high - low) } else { 0.5 };
        let share = if scene.is_up() { share } else { 1.0 - share };
        (share * (HEATS - 1) as f64).round() as usize
    };
    let rest_names: Vec<&String> = names
        .iter()
        .enumerate()
        .filter(|(key, _)| ![down, across].contains(key))
        .map(|(_, name)| name)
        .collect();
    (maps.iter().take(MAPS))
        .map(|(rest, settings)| {
            let title = rest_names.iter().zip(rest).filter(|(_, value)| shown(value) != "–");
            let title: Vec<String> = title.map(|(name, value)| format!("{} {}", plain(name), shown(value))).collect();
            let index = |values: &[Value], setting: &Setting, key: usize| {
                values.iter().position(|value| Some(value) == setting.values.get(key))
            };
            let mut cells: Cells<'_> = BTreeMap::new();
            for (place, setting) in settings {
                if let (Some(row), Some(column)) = (index(&down_values, setting, down), index(&across_values, setting, across)) {
                    cells.entry((row, column)).or_default().push((*place, setting));
                }
            }
            Figure {
                kind: "heat",
                title: title.join(" · "),
                about: format!(
                    "Median {} over seeds at the best epoch. One scale for all maps of a task; the best of each map is ringed.",
                    scene.metric()
                ),
                svg: map_svg((&down_values, &across_values), (&name(down), &name(across)), &cells, &shade, scene.is_up()),
                is_wide: false,
            }
        })
        .collect()
}

fn map_svg(
    (down, across): (&[Value], &[Value]),
    (down_name, across_name): (&str, &str),
    cells: &Cells<'_>,
    shade: &dyn Fn(f64) -> usize,
    is_up: bool,
) -> String {
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
