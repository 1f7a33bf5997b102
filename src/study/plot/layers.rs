//! Layer by layer: the norms of ΔW after training, and the spectra that a basis was cut from.

use std::collections::BTreeMap;

use super::curves::{Series, lines_svg};
use super::{Figure, Scene};
use crate::study::spectra::spectra_of;

/// Most settings whose layers are drawn.
const SETTINGS: usize = 6;

/// Returns the number of a layer in its name and what is left of it: `encoder.layer.3.attention.self.query` is layer 3's
/// `attention.self.query`.
fn parts(name: &str) -> Option<(f64, String)> {
    let words: Vec<&str> = name.split('.').collect();
    let at = words.iter().position(|word| word.parse::<u32>().is_ok())?;
    Some((words.get(at)?.parse().ok()?, words.get(at + 1..)?.join(".")))
}

/// Returns one line for each module of a layer, over the layers.
fn by_module(numbers: impl Iterator<Item = (String, f64)>) -> Vec<Series> {
    let mut modules: BTreeMap<String, Vec<(f64, f64)>> = BTreeMap::new();
    for (name, number) in numbers.filter(|(_, number)| number.is_finite()) {
        if let Some((layer, module)) = parts(&name) {
            modules.entry(module).or_default().push((layer, number));
        }
    }
    let short = |module: &str| module.trim_end_matches(".dense").replace("attention.self.", "");
    let series = |(place, (module, mut points)): (usize, (String, Vec<(f64, f64)>))| {
        points.sort_by(|a, b| a.0.total_cmp(&b.0));
        Series { points, setting: None, colour: format!("q{}", place % 8), words: Some(short(&module)) }
    };
    modules.into_iter().enumerate().map(series).collect()
}

/// Draws ‖ΔW‖ of each layer, for the best run of each kind.
pub fn norms(scene: &Scene<'_>) -> Vec<Figure> {
    let mut chosen = scene.chosen();
    chosen.sort_unstable();
    let figure = |place: usize| {
        let setting = scene.study.settings.get(place)?;
        let runs = setting.runs.iter().map(|&run| &scene.study.records[run]);
        let run = runs.filter(|run| !run.delta_norm.is_empty()).min_by(|a, b| {
            let off = |value: Option<f64>| {
                (value.unwrap_or(f64::INFINITY) - setting.best.median.unwrap_or(0.0)).abs()
            };
            off(a.best_value()).total_cmp(&off(b.best_value()))
        })?;
        let lines = by_module(run.delta_norm.iter().map(|(name, norm)| (name.clone(), *norm)));
        lines.iter().any(|line| line.points.len() > 1).then(|| Figure {
            kind: "norms",
            title: setting.label.clone(),
            about: "Frobenius norm of ΔW in each layer of the best adapter, of the run nearest its setting's median.".to_owned(),
            svg: lines_svg(&lines, ("layer", "‖ΔW‖"), false),
            is_wide: false,
        })
    };
    chosen.into_iter().filter_map(figure).take(SETTINGS).collect()
}

/// Draws the singular values that the bases of a task's runs hold, a plot for each kind of module.
pub fn spectra(scene: &Scene<'_>) -> Vec<Figure> {
    let runs = scene.settings.iter().flat_map(|(_, setting)| &setting.runs);
    let found = spectra_of(runs.map(|&run| &scene.study.records[run]));
    let mut modules: BTreeMap<String, Vec<(f64, &Vec<f64>)>> = BTreeMap::new();
    for (name, values) in &found {
        if let Some((layer, module)) = parts(name) {
            modules.entry(module).or_default().push((layer, values));
        }
    }
    let figure = |(module, mut layers): (String, Vec<(f64, &Vec<f64>)>)| {
        layers.sort_by(|a, b| a.0.total_cmp(&b.0));
        let last = layers.len().saturating_sub(1);
        let line = |(place, (layer, values)): (usize, (f64, &Vec<f64>))| Series {
            points: (1..).zip(values).map(|(index, value)| (f64::from(index), *value)).collect(),
            setting: None,
            colour: format!("o{}", (place * 7).checked_div(last).unwrap_or(0)),
            words: [0, last / 2, last].contains(&place).then(|| format!("layer {layer}")),
        };
        let mut lines: Vec<Series> = layers.into_iter().enumerate().map(line).collect();
        lines.sort_by_key(|line| line.words.is_some());
        Figure {
            kind: "spectra",
            title: module,
            about: "Singular values of the base's weights that span the basis, from the cached decomposition; a line for each layer."
                .to_owned(),
            svg: lines_svg(&lines, ("index", "singular value"), true),
            is_wide: false,
        }
    };
    modules
        .into_iter()
        .filter(|(_, layers)| layers.iter().any(|(_, values)| values.len() > 1))
        .map(figure)
        .collect()
}
