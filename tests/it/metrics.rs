//! Metrics and schedules against scikit-learn, SciPy, seqeval and Transformers (`scripts/reference/metrics.py`).

use std::collections::BTreeMap;

use loraxs::data::Label;
use loraxs::eval::metrics::{Score, score};
use loraxs::eval::outcomes::{ClassReport, Outcomes};
use loraxs::eval::predictions::Prediction;
use loraxs::models::HeadShape;
use loraxs::spec::{Metric, Problem, Schedule};
use loraxs::train::schedule::factor;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
    averages: Vec<Case>,
    numbers: Vec<Case>,
    sets: Vec<SetsCase>,
    tags: Vec<TagsCase>,
    schedules: Vec<Factors>,
}

#[derive(Deserialize)]
struct SetsCase {
    name: String,
    classes: usize,
    predictions: Vec<Vec<u32>>,
    golds: Vec<Vec<u32>>,
    scores: BTreeMap<Metric, Expected>,
}

#[derive(Deserialize)]
struct TagsCase {
    name: String,
    tags: Vec<String>,
    predictions: Vec<Vec<u32>>,
    golds: Vec<Vec<u32>>,
    scores: BTreeMap<Metric, Expected>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    predictions: Vec<f64>,
    golds: Vec<f64>,
    scores: BTreeMap<Metric, Expected>,
    /// Rows: labels, columns: predictions.
    #[serde(default)]
    confusion_matrix: Vec<Vec<u64>>,
    /// Precision, recall, F1 and support of each class.
    #[serde(default)]
    classes: Vec<[f64; 4]>,
}

/// `value` is absent where the reference gives NaN.
#[derive(Deserialize)]
struct Expected {
    value: Option<f64>,
    stderr: Option<f64>,
    bootstrap: Option<f64>,
}

#[derive(Deserialize)]
struct Factors {
    schedule: String,
    warmup: u64,
    total: u64,
    factors: Vec<f64>,
}

fn fixture() -> Fixture {
    crate::support::json(&crate::support::fixture("metrics.json"))
}

/// The outcomes of predictions that a head of this kind makes of the right logits.
fn outcomes<'a>(
    problem: Problem,
    labels: &'a [String],
    pairs: impl Iterator<Item = (Vec<u32>, Label)>,
) -> Outcomes<'a> {
    let head = HeadShape { problem, outputs: labels.len() as i64 };
    let one_hot =
        |class: u32| (0..labels.len() as u32).map(move |other| if other == class { 1.0 } else { -1.0 });
    let prediction = |(given, gold): (Vec<u32>, Label)| {
        let logits: Vec<f32> = match problem {
            Problem::MultiLabel => {
                (0..labels.len() as u32).map(|c| if given.contains(&c) { 1.0 } else { -1.0 }).collect()
            }
            _ => given.into_iter().flat_map(one_hot).collect(),
        };
        Prediction::new(head, 0, logits, Some(gold))
    };
    Outcomes::new(problem, labels, &pairs.map(prediction).collect::<Vec<_>>())
}

fn names(count: usize) -> Vec<String> {
    (0..count).map(|class| format!("class {class}")).collect()
}

fn of_classes(case: &Case, labels: &[String]) -> (Option<ClassReport>, Vec<(Metric, Score)>) {
    let pairs = case.predictions.iter().zip(&case.golds);
    let found = outcomes(
        Problem::SingleLabel,
        labels,
        pairs.map(|(given, gold)| (vec![*given as u32], Label::Class(*gold as u32))),
    );
    (found.report(), case.scores.keys().map(|metric| (*metric, found.score(*metric))).collect())
}

/// Every score of the fixture with what was computed for it.
fn scores() -> Vec<(String, Expected, Score)> {
    let mut found = Vec::new();
    let fixture = fixture();
    let mut add = |name: &str, scores: BTreeMap<Metric, Expected>, of: &dyn Fn(Metric) -> Score| {
        for (metric, expected) in scores {
            found.push((format!("{metric} of `{name}`"), expected, of(metric)));
        }
    };
    let is_of_numbers = |case: &Case| case.scores.keys().any(|metric| Metric::OF_NUMBERS.contains(metric));
    let (numbers, classes): (Vec<Case>, Vec<Case>) =
        fixture.cases.into_iter().chain(fixture.averages).chain(fixture.numbers).partition(is_of_numbers);
    for case in numbers {
        add(&case.name, case.scores, &|metric| score(metric, &case.predictions, &case.golds));
    }
    for case in classes {
        let labels = names(8);
        let (_, of) = of_classes(&case, &labels);
        add(&case.name, case.scores, &|metric| of.iter().find(|(known, _)| *known == metric).unwrap().1);
    }
    for case in fixture.sets {
        let labels = names(case.classes);
        let pairs = case.predictions.into_iter().zip(case.golds.into_iter().map(Label::Set));
        let of = outcomes(Problem::MultiLabel, &labels, pairs);
        add(&case.name, case.scores, &|metric| of.score(metric));
    }
    for case in fixture.tags {
        let pairs = case.predictions.into_iter().zip(case.golds.into_iter().map(Label::Tags));
        let of = outcomes(Problem::Tokens, &case.tags, pairs);
        add(&case.name, case.scores, &|metric| of.score(metric));
    }
    assert!(found.len() > 120, "the fixture has {} scores", found.len());
    found
}

#[test]
fn classes_one_by_one_and_their_confusions_are_those_of_scikit_learn() {
    for case in fixture().averages.into_iter().filter(|case| !case.classes.is_empty()) {
        let labels = names(case.classes.len());
        let report = of_classes(&case, &labels).0.unwrap();
        assert_eq!(report.confusion_matrix.unwrap(), case.confusion_matrix, "{}", case.name);
        for (found, expected) in report.classes.iter().zip(&case.classes) {
            let found = [found.precision, found.recall, found.f1, found.support as f64];
            let off = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, crate::support::worse);
            assert!(off < 1e-12, "{}: {found:?} for {expected:?}", case.name);
        }
    }
}

#[test]
fn metrics_equal_those_of_scikit_learn_and_scipy() {
    for (what, expected, score) in scores() {
        match expected.value {
            Some(value) => {
                assert!((score.value - value).abs() < 1e-12, "{what}: {} for {value}", score.value)
            }
            None => assert!(score.value.is_nan(), "{what}: {} for NaN", score.value),
        }
    }
}

#[test]
fn the_error_of_accuracy_is_that_of_a_sample_mean() {
    let mut checked = 0;
    for (what, expected, score) in scores() {
        if let Some(stderr) = expected.stderr {
            assert!((score.stderr - stderr).abs() < 1e-12, "{what}: {} for {stderr}", score.stderr);
            checked += 1;
        }
    }
    assert!(checked > 10, "{checked} errors");
}

#[test]
fn the_other_errors_agree_with_a_bootstrap() {
    // 4,000 to 20,000 draws know the error to 1 %; the rest is the difference of the two approximations.
    let mut checked = 0;
    for (what, expected, score) in scores() {
        if let Some(bootstrap) = expected.bootstrap {
            let ratio = score.stderr / bootstrap;
            assert!((0.92..1.08).contains(&ratio), "{what}: {} for {bootstrap}", score.stderr);
            checked += 1;
        }
    }
    assert!(checked > 5, "{checked} errors");
}

#[test]
fn schedules_equal_those_of_transformers() {
    for case in fixture().schedules {
        let schedule = <Schedule as clap::ValueEnum>::from_str(&case.schedule, false).unwrap();
        for (step, &expected) in (0..).zip(&case.factors) {
            let found = factor(schedule, step, case.warmup, case.total);
            let what =
                format!("{:?} at step {step} of {}, warm-up {}", case.schedule, case.total, case.warmup);
            assert!((found - expected).abs() < 1e-15, "{what}: {found} for {expected}");
        }
    }
}
