//! Accuracy, Matthews, Pearson, Spearman and the errors of a regression as scikit-learn and SciPy compute them, each with its
//! standard error; F1 and its kin are in [`super::averages`].
//!
//! Standard errors are those of a mean: the sample standard deviation (n - 1) of one number per example, over
//! √n. For accuracy that number is 1 or 0, so the error is the one that lm-evaluation-harness reports. For the
//! others it is the influence of the example on the metric (the infinitesimal jackknife, Efron 1982, chapter 6),
//! which needs no assumption about the distribution and no random draws.
//!
//! Undefined values are NaN, which JSON writes as `null`: any metric of no examples, a correlation of a
//! constant or non-finite column, the error of fewer than two examples. F1 and Matthews are 0 where they are
//! undefined, as in scikit-learn.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::spec::Metric;

/// A metric and its standard error; NaN (in JSON `null`) where undefined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Score {
    /// The metric, between -1 or 0 and 1; not a percentage.
    pub value: f64,
    /// Its standard error over the examples.
    pub stderr: f64,
}

impl Score {
    const UNDEFINED: Self = Self { value: f64::NAN, stderr: f64::NAN };

    /// Returns the share of verdicts that are true.
    pub fn of_verdicts(verdicts: impl IntoIterator<Item = bool>) -> Self {
        let (count, hits) =
            verdicts.into_iter().fold((0_usize, 0_usize), |(n, hits), hit| (n + 1, hits + usize::from(hit)));
        let (n, value) = (count as f64, hits as f64 / count as f64);
        // For zeros and ones the sum of squared deviations is n·p·(1 - p).
        let stderr = if count < 2 { f64::NAN } else { (value * (1.0 - value) / (n - 1.0)).sqrt() };
        Self { value, stderr }
    }
}

/// Scores predictions against labels, pair by pair; classes are given as whole numbers. Metrics of counts of classes are undefined
/// here: [`super::outcomes`] computes them.
///
/// # Panics
/// If there is not exactly one prediction per label.
///
/// ```
/// use loraxs::{eval::metrics::score, spec::Metric};
///
/// let accuracy = score(Metric::Accuracy, &[0.0, 1.0, 1.0, 1.0], &[0.0, 1.0, 0.0, 1.0]);
/// assert_eq!((accuracy.value, accuracy.stderr), (0.75, 0.25));
/// ```
pub fn score(metric: Metric, predictions: &[f64], golds: &[f64]) -> Score {
    assert_eq!(predictions.len(), golds.len(), "one prediction per label");
    if predictions.is_empty() {
        return Score::UNDEFINED;
    }
    match metric {
        Metric::Accuracy => mean_of(predictions, golds, |p, g| f64::from(u8::from(p == g))),
        Metric::MatthewsCorrelation => matthews(predictions, golds),
        Metric::Pearson => pearson(predictions, golds),
        Metric::Spearmanr => spearman(predictions, golds),
        Metric::Mse => mean_of(predictions, golds, |p, g| (p - g) * (p - g)),
        Metric::Mae => mean_of(predictions, golds, |p, g| (p - g).abs()),
        Metric::R2 => r2(predictions, golds),
        // Computed from counts or likelihoods: see `outcomes`.
        _ => Score::UNDEFINED,
    }
}

/// Returns the mean of a task's metrics if it has several (MRPC, QQP, STS-B): GLUE's `combined_score`.
pub fn combined(scores: &[Score]) -> Option<f64> {
    (scores.len() > 1).then(|| mean(&scores.iter().map(|score| score.value).collect::<Vec<_>>()))
}

/// Scores the mean of `f(prediction, label)`.
fn mean_of(predictions: &[f64], golds: &[f64], f: impl Fn(f64, f64) -> f64) -> Score {
    let each: Vec<f64> = predictions.iter().zip(golds).map(|(&p, &g)| f(p, g)).collect();
    Score { value: mean(&each), stderr: error_of_mean(&each) }
}

/// 1 - Σ(p - g)² / Σ(g - ḡ)²; 1 or 0 for labels that are all alike, as in scikit-learn.
fn r2(predictions: &[f64], golds: &[f64]) -> Score {
    if golds.len() < 2 {
        return Score::UNDEFINED;
    }
    let middle = mean(golds);
    let squares = |x: f64| x * x;
    let errors: Vec<f64> = predictions.iter().zip(golds).map(|(p, g)| squares(p - g)).collect();
    let spreads: Vec<f64> = golds.iter().map(|g| squares(g - middle)).collect();
    let (error, spread) = (mean(&errors), mean(&spreads));
    if spread == 0.0 {
        return Score { value: if error == 0.0 { 1.0 } else { 0.0 }, stderr: f64::NAN };
    }
    let influences: Vec<f64> =
        errors.iter().zip(&spreads).map(|(e, s)| -(e / spread - error / spread * (s / spread))).collect();
    Score { value: 1.0 - error / spread, stderr: error_of_mean(&influences) }
}

/// Correlates the one-hot vectors of predictions and labels (Gorodkin 2004), as scikit-learn does.
fn matthews(predictions: &[f64], golds: &[f64]) -> Score {
    let shares_predicted = class_shares(predictions);
    let shares_gold = class_shares(golds);
    let share = |shares: &BTreeMap<u64, f64>, class: u64| shares.get(&class).copied().unwrap_or(0.0);
    let overlap = |a: &BTreeMap<u64, f64>, b: &BTreeMap<u64, f64>| -> f64 {
        a.iter().map(|(&class, portion)| portion * share(b, class)).sum()
    };
    let overlaps = [
        overlap(&shares_predicted, &shares_gold),
        overlap(&shares_predicted, &shares_predicted),
        overlap(&shares_gold, &shares_gold),
    ];
    // Scalar products of centred one-hot vectors: <e_p - P, e_g - G> = [p = g] - G_p - P_g + <P, G>.
    let products: Vec<[f64; 3]> = predictions
        .iter()
        .zip(golds)
        .map(|(&p, &g)| {
            let (p, g) = (class_key(p), class_key(g));
            let same = f64::from(u8::from(p == g));
            [
                same - share(&shares_gold, p) - share(&shares_predicted, g) + overlaps[0],
                1.0 - 2.0 * share(&shares_predicted, p) + overlaps[1],
                1.0 - 2.0 * share(&shares_gold, g) + overlaps[2],
            ]
        })
        .collect();
    if shares_predicted.len() < 2 || shares_gold.len() < 2 {
        return Score { value: 0.0, stderr: f64::NAN };
    }
    correlation(&products)
}

fn pearson(predictions: &[f64], golds: &[f64]) -> Score {
    match (centred(predictions), centred(golds)) {
        (Some(x), Some(y)) => {
            correlation(&x.iter().zip(&y).map(|(x, y)| [x * y, x * x, y * y]).collect::<Vec<_>>())
        }
        _ => Score::UNDEFINED,
    }
}

fn spearman(predictions: &[f64], golds: &[f64]) -> Score {
    if predictions.iter().chain(golds).any(|x| x.is_nan()) {
        return Score::UNDEFINED;
    }
    let (x, y) = (ranks(predictions), ranks(golds));
    let value = pearson(&x, &y).value;
    let n = x.len() as f64;
    let shares = |ranks: &[f64]| ranks.iter().map(|rank| (rank - (n + 1.0) / 2.0) / n).collect::<Vec<_>>();
    let (u, v) = (shares(&x), shares(&y));
    let (v_above_x, u_above_y) = (means_above(&x, &v), means_above(&y, &u));
    let (u_above_x, v_above_y) = (means_above(&x, &u), means_above(&y, &v));
    let products: Vec<[f64; 3]> = (0..x.len())
        .map(|i| {
            [
                u[i] * v[i] + v_above_x[i] + u_above_y[i],
                u[i] * u[i] + 2.0 * u_above_x[i],
                v[i] * v[i] + 2.0 * v_above_y[i],
            ]
        })
        .collect();
    // An example counts three times, by its own ranks and by raising the ranks above it in both columns (Croux and
    // Dehon, Statistical Methods & Applications 19, 2010); products of three times the mean give a third.
    Score { value, stderr: 3.0 * correlation(&products).stderr }
}

/// Σxy / √(Σxx·Σyy) from each example's `[xy, xx, yy]`. The influence of an example on a correlation r is
/// xy - r·(xx + yy)/2 with xx and yy of mean 1 (Devlin, Gnanadesikan and Kettenring, Biometrika 62, 1975).
fn correlation(products: &[[f64; 3]]) -> Score {
    let average = |axis: fn(&[f64; 3]) -> f64| mean(&products.iter().map(axis).collect::<Vec<_>>());
    let (xy, xx, yy) = (average(|p| p[0]), average(|p| p[1]), average(|p| p[2]));
    let scale = xx.sqrt() * yy.sqrt();
    let value = (xy / scale).clamp(-1.0, 1.0);
    let influences: Vec<f64> = products
        .iter()
        .map(|[p_xy, p_xx, p_yy]| p_xy / scale - value * (p_xx / xx + p_yy / yy) / 2.0)
        .collect();
    Score { value, stderr: error_of_mean(&influences) }
}

/// Returns the column minus its mean, scaled so that squares neither overflow nor vanish; `None` if constant.
fn centred(column: &[f64]) -> Option<Vec<f64>> {
    let first = *column.first()?;
    if column.iter().all(|&x| x == first) {
        return None;
    }
    let middle = mean(column);
    let largest = column.iter().fold(0.0, |largest: f64, x| largest.max((x - middle).abs()));
    Some(column.iter().map(|x| (x - middle) / largest).collect())
}

/// Averages over all examples, for each element of `column`, the `values` where it is larger; half if equal.
fn means_above(column: &[f64], values: &[f64]) -> Vec<f64> {
    let mut order: Vec<(f64, usize)> = column.iter().copied().zip(0..).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut means = vec![0.0; column.len()];
    let mut above = 0.0;
    for equal in order.chunk_by(|a, b| a.0 == b.0) {
        let here: f64 = equal.iter().map(|&(_, place)| values[place]).sum();
        for &(_, place) in equal {
            means[place] = (above + here / 2.0) / column.len() as f64;
        }
        above += here;
    }
    means
}

/// Ranks from 1; equal values share the mean of their ranks.
fn ranks(column: &[f64]) -> Vec<f64> {
    let mut order: Vec<(f64, usize)> = column.iter().copied().zip(0..).collect();
    order.sort_by(|a, b| a.0.total_cmp(&b.0));
    let mut ranks = vec![0.0; column.len()];
    let mut before = 0;
    for equal in order.chunk_by(|a, b| a.0 == b.0) {
        let rank = before as f64 + (equal.len() as f64 + 1.0) / 2.0;
        before += equal.len();
        for &(_, place) in equal {
            ranks[place] = rank;
        }
    }
    ranks
}

fn class_shares(classes: &[f64]) -> BTreeMap<u64, f64> {
    let mut counts = BTreeMap::new();
    for &class in classes {
        *counts.entry(class_key(class)).or_insert(0.0) += 1.0;
    }
    counts.into_iter().map(|(class, count)| (class, count / classes.len() as f64)).collect()
}

/// Returns a key for comparing classes; adding zero makes 0 and -0 the same class.
fn class_key(class: f64) -> u64 {
    (class + 0.0).to_bits()
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Computes the mean of all terms, such as the losses of target tokens, from each example's sum and number of terms; its error
/// is that of the ratio of the two sums, from the influence of each example on it.
pub fn pooled_mean(sums: &[f64], targets: &[f64]) -> Score {
    let per_example = mean(targets);
    let value = mean(sums) / per_example;
    let influences: Vec<f64> =
        sums.iter().zip(targets).map(|(sum, count)| (sum - value * count) / per_example).collect();
    Score { value, stderr: error_of_mean(&influences) }
}

/// Returns the sample standard deviation (n - 1) over √n; NaN for fewer than two values.
pub fn error_of_mean(values: &[f64]) -> f64 {
    let middle = mean(values);
    let squares: f64 = values.iter().map(|x| (x - middle) * (x - middle)).sum();
    (squares / (values.len() as f64 - 1.0) / values.len() as f64).sqrt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_print_and_serialise_alike() {
        for metric in Metric::ALL {
            assert_eq!(metric.name().parse::<Metric>().unwrap(), metric);
            assert_eq!(serde_json::to_string(&metric).unwrap(), format!("\"{metric}\""));
        }
    }

    #[test]
    fn an_unknown_metric_names_the_nearest() {
        let error = anyhow::Error::from("matthews".parse::<Metric>().unwrap_err());
        assert!(error.to_string().starts_with("unknown metric `matthews`, expected one of `accuracy`"));
        assert_eq!(crate::fault::hint_of(&error), Some("did you mean `matthews_correlation`?"));
        assert_eq!(crate::fault::exit_code(&error), 2);
    }

    #[test]
    fn the_error_of_verdicts_is_the_sample_deviation_over_the_root_of_n() {
        let values = [1.0, 0.0, 0.0, 1.0, 1.0];
        let all = Score::of_verdicts(values.map(|value| value == 1.0));
        let squares: f64 = values.iter().map(|value| (value - 0.6) * (value - 0.6)).sum();
        assert!((all.value - 0.6).abs() < 1e-15 && (all.stderr - (squares / 4.0 / 5.0).sqrt()).abs() < 1e-15);
        assert!(Score::of_verdicts([]).value.is_nan() && Score::of_verdicts([]).stderr.is_nan());
        assert!(Score::of_verdicts([true]).stderr.is_nan());
        assert_eq!(Score::of_verdicts([true, true]), Score { value: 1.0, stderr: 0.0 });
    }

    #[test]
    fn non_finite_predictions_are_wrong_or_undefined_but_never_a_panic() {
        let golds = [0.0, 1.0, 1.0, 0.0];
        let predictions = [f64::NAN, 1.0, f64::INFINITY, f64::NEG_INFINITY];
        assert_eq!(score(Metric::Accuracy, &predictions, &golds).value, 0.25);
        assert!(score(Metric::MatthewsCorrelation, &predictions, &golds).value.is_finite());
        assert!(score(Metric::Pearson, &predictions, &golds).value.is_nan());
        assert!(score(Metric::Spearmanr, &predictions, &golds).value.is_nan());
        assert_eq!(score(Metric::Spearmanr, &[0.5, f64::INFINITY], &[1.0, 2.0]).value, 1.0);
    }

    #[test]
    fn the_undefined_is_null_in_json() {
        for metric in Metric::ALL {
            let none = serde_json::to_string(&score(metric, &[], &[])).unwrap();
            assert_eq!(none, r#"{"value":null,"stderr":null}"#);
            assert!(score(metric, &[1.0], &[1.0]).stderr.is_nan());
        }
        assert!(score(Metric::Pearson, &[0.1; 3], &[1.0, 2.0, 4.0]).value.is_nan());
        assert_eq!(score(Metric::MatthewsCorrelation, &[1.0, 1.0], &[0.0, 1.0]).value, 0.0);
    }

    #[test]
    fn correlations_survive_the_largest_and_smallest_numbers() {
        for factor in [1e-200, 1.0, 1e200] {
            let x: Vec<f64> = [1.0, 2.0, 4.0, 3.0].iter().map(|x| x * factor).collect();
            assert!((score(Metric::Pearson, &x, &[1.0, 2.0, 3.0, 4.0]).value - 0.8).abs() < 1e-12);
        }
    }

    #[test]
    fn negative_zero_is_class_zero() {
        let golds = [0.0, 1.0, 0.0];
        assert_eq!(score(Metric::MatthewsCorrelation, &[-0.0, 1.0, 0.0], &golds).value, 1.0);
        assert_eq!(ranks(&[-0.0, 1.0, 0.0]), [1.5, 3.0, 1.5]);
    }

    #[test]
    fn only_tasks_with_several_metrics_have_a_combined_score() {
        let of = |value| Score { value, stderr: 0.0 };
        assert_eq!(combined(&[of(0.5)]), None);
        assert_eq!(combined(&[of(0.5), of(1.0)]), Some(0.75));
    }
}
