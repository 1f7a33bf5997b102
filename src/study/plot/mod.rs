//! The plots of a study, as SVG.

mod canvas;
mod curves;
mod files;
mod heat;
mod layers;
mod palette;
mod parallel;
mod pareto;
mod seeds;

use serde_json::Value;

use super::Study;
use super::settings::{Setting, compare};
pub use canvas::escaped;
use palette::Colouring;
pub use palette::{properties, rules};

/// A plot with what is said of it.
#[derive(Debug)]
pub struct Figure {
    /// Its section of the page, which is also the start of its file's name.
    pub kind: &'static str,
    /// Its heading; empty where it has that of the section.
    pub title: String,
    /// What it shows and how to read it.
    pub about: String,
    /// The picture.
    pub svg: String,
    /// True if it takes the whole width of a page.
    pub is_wide: bool,
}

/// Tasks that are drawn.
const TASKS: usize = 12;

/// What a plot of one task is drawn from.
struct Scene<'a> {
    study: &'a Study,
    colouring: &'a Colouring,
    task: &'a str,
    /// The settings of the task, with their places among all.
    settings: Vec<(usize, &'a Setting)>,
}

impl Scene<'_> {
    /// Returns the metric's name.
    fn metric(&self) -> &str {
        self.settings.first().map_or("", |(_, setting)| &setting.metric)
    }

    /// Returns true if more of the metric is better.
    fn is_up(&self) -> bool {
        self.settings.first().is_none_or(|(_, setting)| setting.higher_is_better)
    }

    /// Returns a median as a number of which more is better; the least for none.
    fn merit(&self, setting: &Setting) -> f64 {
        match setting.best.median {
            Some(median) if self.is_up() => median,
            Some(median) => -median,
            None => f64::NEG_INFINITY,
        }
    }

    /// Returns the values of a key, in order.
    fn values(&self, key: usize) -> Vec<Value> {
        let mut found: Vec<Value> =
            self.settings.iter().filter_map(|(_, setting)| setting.values.get(key).cloned()).collect();
        found.sort_by(compare);
        found.dedup();
        found
    }

    /// Returns the settings from worst to best.
    fn by_merit(&self) -> Vec<(usize, &Setting)> {
        let mut sorted = self.settings.clone();
        sorted.sort_by(|(_, a), (_, b)| self.merit(a).total_cmp(&self.merit(b)));
        sorted
    }

    /// Returns the settings to draw in full: the best of each kind, or the best of each colour, or all where they are few.
    fn chosen(&self) -> Vec<usize> {
        if self.settings.len() <= 6 {
            return self.settings.iter().map(|(place, _)| *place).collect();
        }
        let mut taken = Vec::new();
        let sorted = self.by_merit();
        let mut chosen = Vec::new();
        for (place, setting) in sorted.into_iter().rev() {
            let colour = self.colouring.place(setting);
            if !taken.contains(&colour) {
                taken.push(colour);
                chosen.push(place);
            }
        }
        chosen
    }

    /// Returns a few words for a setting that is drawn in full.
    fn words(&self, setting: &Setting) -> String {
        let colour = self.colouring.label(setting);
        if colour.is_empty() || self.settings.len() <= 6 { setting.label.clone() } else { colour }
    }
}

/// Draws plots of one task.
type Draw = fn(&Scene<'_>) -> Vec<Figure>;

/// Draws the plots of a study, section after section; one without anything to show is left out.
pub fn figures(study: &Study) -> Vec<Figure> {
    let colouring = Colouring::of(study);
    let mut tasks: Vec<&str> = study.settings.iter().map(|setting| setting.task.as_str()).collect();
    tasks.dedup();
    tasks.truncate(TASKS);
    let scenes: Vec<Scene<'_>> = (tasks.into_iter())
        .map(|task| {
            let settings = study.settings.iter().enumerate().filter(|(_, setting)| setting.task == task);
            Scene { study, colouring: &colouring, task, settings: settings.collect() }
        })
        .collect();
    let sections: [&[Draw]; 6] = [
        &[pareto::draw, curves::draw],
        &[heat::draw],
        &[seeds::draw],
        &[parallel::draw],
        &[layers::norms],
        &[layers::spectra],
    ];
    let mut found = Vec::new();
    for (draws, scene) in sections.iter().flat_map(|draws| scenes.iter().map(move |scene| (draws, scene))) {
        let mut figures: Vec<Figure> = draws.iter().flat_map(|draw| draw(scene)).collect();
        for figure in figures.iter_mut().filter(|_| scenes.len() > 1) {
            let parts = [scene.task, &figure.title];
            figure.title = parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" · ");
        }
        found.extend(figures);
    }
    found
}

/// Returns the attribute by which the page knows a mark's setting.
fn data(setting: usize) -> String {
    format!("data-s=\"{setting}\"")
}
