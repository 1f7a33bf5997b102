//! Metrics and schedules against scikit-learn, SciPy and Transformers (`scripts/reference/metrics.py`).

use std::collections::BTreeMap;

use loraxs::eval::metrics::{Score, score};
use loraxs::spec::{Metric, Schedule};
use loraxs::train::schedule::factor;
use serde::Deserialize;

#[derive(Deserialize)]
struct Fixture {
    cases: Vec<Case>,
    schedules: Vec<Factors>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    predictions: Vec<f64>,
    golds: Vec<f64>,
    scores: BTreeMap<Metric, Expected>,
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

#[allow(clippy::unwrap_used, reason = "a broken fixture is a failed test")]
fn fixture() -> Fixture {
    serde_json::from_str(include_str!("fixtures/metrics.json")).unwrap()
}

/// Every score of the fixture with what was computed for it.
fn scores() -> Vec<(String, Expected, Score)> {
    let mut found = Vec::new();
    for case in fixture().cases {
        for (metric, expected) in case.scores {
            let score = score(metric, &case.predictions, &case.golds);
            found.push((format!("{metric} of `{}`", case.name), expected, score));
        }
    }
    assert!(found.len() > 50, "the fixture has {} scores", found.len());
    found
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
