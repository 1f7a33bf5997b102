//! The mean of the verdicts of a rule, and its standard error.

use serde::Serialize;

/// A mean and its standard error; NaN (in JSON `null`) where undefined.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// The share of correct verdicts, between 0 and 1; undefined for none.
    pub mean: f64,
    /// The sample standard deviation (n - 1) over √n, as lm-evaluation-harness reports it; undefined for fewer than two.
    pub stderr: f64,
    /// Number of verdicts.
    pub count: usize,
}

/// Summarises verdicts.
pub fn summary(verdicts: impl IntoIterator<Item = bool>) -> Summary {
    let (mut count, mut hits) = (0_usize, 0_usize);
    for correct in verdicts {
        count += 1;
        hits += usize::from(correct);
    }
    let (n, mean) = (count as f64, hits as f64 / count as f64);
    // For zeros and ones the sum of squared deviations is n·p·(1 - p).
    let stderr = if count < 2 { f64::NAN } else { (mean * (1.0 - mean) / (n - 1.0)).sqrt() };
    Summary { mean, stderr, count }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_is_the_sample_deviation_over_the_root_of_n() {
        let values = [1.0, 0.0, 0.0, 1.0, 1.0];
        let all = summary(values.map(|value| value == 1.0));
        let squares: f64 = values.iter().map(|value| (value - 0.6) * (value - 0.6)).sum();
        assert!((all.mean - 0.6).abs() < 1e-15 && (all.stderr - (squares / 4.0 / 5.0).sqrt()).abs() < 1e-15);
    }

    #[test]
    fn none_and_one_have_no_error() {
        assert!(summary([]).mean.is_nan() && summary([]).stderr.is_nan() && summary([true]).stderr.is_nan());
        assert_eq!(summary([true, true]), Summary { mean: 1.0, stderr: 0.0, count: 2 });
    }
}
