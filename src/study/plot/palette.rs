//! Colours of plots, light and dark, told apart by the colour-blind; and which setting has which.

use std::fmt::Write as _;

use serde_json::Value;

use crate::study::Study;
use crate::study::settings::{METHOD, RANK, Setting, compare, plain, short_names, shown};

/// Names of colours, each in light and in dark.
const COLOURS: [(&str, &str, &str); 39] = [
    ("ground", "#ffffff", "#14171c"),
    ("panel", "#ffffff", "#1a1e25"),
    ("ink", "#1b1f24", "#e8eaed"),
    ("soft", "#5b6470", "#a4adb8"),
    ("rule", "#e3e6ea", "#2d333c"),
    ("accent", "#0b62a8", "#6cb6f5"),
    ("warn", "#a33b00", "#ffab78"),
    // Kinds: after Okabe and Ito, darker where they would be faint on white.
    ("q0", "#0072b2", "#56b4e9"),
    ("q1", "#d55e00", "#f3925a"),
    ("q2", "#008a63", "#3ecf9f"),
    ("q3", "#a33e7f", "#e592c4"),
    ("q4", "#9a6b00", "#e6b93a"),
    ("q5", "#5d4fb3", "#b3a5f2"),
    ("q6", "#4d5a66", "#b4bdc7"),
    ("q7", "#8c2d2d", "#ef8f8f"),
    // An order: viridis, without its ends that vanish.
    ("o0", "#3fa95f", "#8b7bd0"),
    ("o1", "#259a77", "#6f8fd6"),
    ("o2", "#1f8a86", "#4fa6cf"),
    ("o3", "#28788e", "#38b5b5"),
    ("o4", "#33638d", "#3fc492"),
    ("o5", "#3f4c8a", "#6fd26a"),
    ("o6", "#462f7d", "#a9dc45"),
    ("o7", "#440154", "#e4e33c"),
    // Heat.
    ("h0", "#f1f5f9", "#1d2733"),
    ("h1", "#e0eaf3", "#20303f"),
    ("h2", "#cbdeee", "#23394d"),
    ("h3", "#b0cfe7", "#26445d"),
    ("h4", "#90bddd", "#29506f"),
    ("h5", "#6fa8d1", "#2e5e83"),
    ("h6", "#4f91c3", "#366e99"),
    ("h7", "#3579b1", "#437fae"),
    ("h8", "#22619a", "#5893c2"),
    ("h9", "#164b80", "#77a9d3"),
    ("h10", "#0d3765", "#9dc2e2"),
    ("h11", "#08264a", "#c9e0f2"),
    ("k0", "#1b1f24", "#e8eaed"),
    ("k1", "#ffffff", "#0e1319"),
    ("halo", "#ffffff", "#1a1e25"),
    ("none", "#c3c9d0", "#4a525d"),
];

/// Steps of heat.
pub const HEATS: usize = 12;

/// Rules of plots, in terms of the colours.
const RULES: &str = include_str!("../page/plot.css");

/// Returns the colours as custom properties of a page.
pub fn properties(dark: bool) -> String {
    let mut text = String::new();
    for (name, light, of_dark) in COLOURS {
        let _ = write!(text, "--{name}:{};", if dark { of_dark } else { light });
    }
    text
}

/// Returns the rules of plots, with a rule for each colour of a line and of an area.
pub fn rules() -> String {
    let mut text = RULES.to_owned();
    for (name, _, _) in COLOURS {
        let _ =
            writeln!(text, ".plot .s-{name}{{stroke:var(--{name})}} .plot .f-{name}{{fill:var(--{name})}}");
    }
    text
}

/// Returns the rules with the colours themselves, for a file of its own.
pub fn rules_in(dark: bool) -> String {
    let mut text = rules();
    for (name, light, of_dark) in COLOURS {
        text = text.replace(&format!("var(--{name})"), if dark { of_dark } else { light });
    }
    text
}

/// What the colours of a study stand for.
#[derive(Debug)]
pub struct Colouring {
    /// The key among those that vary; `None` if one colour does.
    key: Option<usize>,
    /// Its name for people.
    name: String,
    values: Vec<Value>,
    is_ordered: bool,
}

impl Colouring {
    /// Chooses the key that tells most: the method, else the rank, else the first with few values.
    pub fn of(study: &Study) -> Self {
        let values = |key: usize| {
            let mut found: Vec<Value> = Vec::new();
            for value in study.settings.iter().filter_map(|setting| setting.values.get(key)) {
                if !found.contains(value) {
                    found.push(value.clone());
                }
            }
            found.sort_by(compare);
            found
        };
        let place = |name: &str| study.keys.iter().position(|key| key == name);
        let wished = [place(METHOD), place(RANK)].into_iter().flatten().chain(0..study.keys.len());
        let fits = |key: &usize| (2..=8).contains(&values(*key).len());
        let key = wished.into_iter().find(fits);
        let values = key.map(values).unwrap_or_default();
        let is_ordered = values.iter().all(Value::is_number);
        let name = key.and_then(|key| short_names(&study.keys).get(key).cloned()).unwrap_or_default();
        Self { key, name: plain(&name), values, is_ordered }
    }

    /// Returns the name of a setting's colour.
    pub fn colour(&self, setting: &Setting) -> String {
        let place = self.place(setting).unwrap_or(0);
        match self.values.len() {
            count if self.is_ordered && count > 1 => format!("o{}", place * 7 / (count - 1)),
            _ => format!("q{place}"),
        }
    }

    /// Returns what a setting's colour stands for, such as `rank 4`; empty if nothing.
    pub fn label(&self, setting: &Setting) -> String {
        let value = self.key.and_then(|key| setting.values.get(key)).map(shown);
        match value {
            Some(value) if self.is_ordered => format!("{} {value}", self.name),
            value => value.unwrap_or_default(),
        }
    }

    /// Returns the place of a setting's colour among all.
    pub fn place(&self, setting: &Setting) -> Option<usize> {
        let value = setting.values.get(self.key?)?;
        self.values.iter().position(|known| known == value)
    }
}
