//! The learning-rate factor as a pure function of the optimiser step: warm-up, then linear, cosine or constant.
//!
//! The values are those that Transformers' `get_linear_schedule_with_warmup`, `get_cosine_schedule_with_warmup`
//! (half a cycle) and `get_constant_schedule_with_warmup` give to `LambdaLR`.

use std::f64::consts::PI;

use crate::spec::Schedule;

/// Returns the factor of the learning rate for optimiser step `step`, counted from 0, of `total` steps, of
/// which the first `warmup` rise linearly from 0.
pub fn factor(schedule: Schedule, step: u64, warmup: u64, total: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup as f64;
    }
    let decay_steps = total.saturating_sub(warmup).max(1) as f64;
    match schedule {
        Schedule::Linear => total.saturating_sub(step) as f64 / decay_steps,
        Schedule::Cosine => {
            let progress = (step - warmup) as f64 / decay_steps;
            (0.5 * (1.0 + (PI * progress).cos())).max(0.0)
        }
        Schedule::Constant => 1.0,
    }
}

/// Returns the warm-up steps for a ratio of all steps, rounded down as in the published LoRA-XS code
/// (`int(ratio * total)`); Transformers' `Trainer` would round up.
pub fn warmup_steps(ratio: f64, total: u64) -> u64 {
    (ratio * total as f64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn warm_up_starts_at_zero_and_ends_at_one() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            assert_eq!(factor(schedule, 0, 4, 20), 0.0);
            assert_eq!(factor(schedule, 3, 4, 20), 0.75);
            assert_eq!(factor(schedule, 4, 4, 20), 1.0);
        }
    }

    #[test]
    fn linear_and_cosine_end_at_zero() {
        assert_eq!(factor(Schedule::Linear, 20, 4, 20), 0.0);
        assert_eq!(factor(Schedule::Linear, 25, 4, 20), 0.0);
        assert_eq!(factor(Schedule::Cosine, 20, 4, 20), 0.0);
    }

    #[test]
    fn degenerate_lengths_give_finite_factors() {
        for schedule in [Schedule::Linear, Schedule::Cosine, Schedule::Constant] {
            for (step, warmup, total) in [(0, 0, 0), (5, 5, 5), (6, 5, 5), (9, 9, 3), (0, 0, 1)] {
                let factor = factor(schedule, step, warmup, total);
                assert!((0.0..=1.0).contains(&factor), "{schedule:?} {step} {warmup} {total}: {factor}");
            }
        }
    }

    #[test]
    fn a_ratio_is_rounded_down() {
        assert_eq!(warmup_steps(0.06, 115), 6);
        assert_eq!(warmup_steps(0.0, 115), 0);
        assert_eq!(warmup_steps(1.0, 115), 115);
    }
}
