//! The loss of an example from its logits and its label: that of training, without class weights.

use crate::data::Label;

/// Returns the summed loss of an example, and the number of terms in it; nothing if logits and label do not fit.
///
/// Cross-entropy of a class and of each word's tag, squared error of a number, and the mean over all labels of the binary
/// cross-entropy of a set.
pub fn label_loss(logits: &[f32], label: &Label) -> Option<(f64, f64)> {
    Some(match label {
        Label::Class(class) => (cross_entropy(logits, *class)?, 1.0),
        Label::Value(value) => ((f64::from(*logits.first()?) - f64::from(*value)).powi(2), 1.0),
        Label::Set(set) => {
            let each = (0..).zip(logits).map(|(class, x)| binary_cross_entropy(*x, set.contains(&class)));
            (each.sum::<f64>() / logits.len().max(1) as f64, 1.0)
        }
        Label::Tags(tags) => {
            let words = logits.chunks((logits.len() / tags.len().max(1)).max(1));
            let each: Option<Vec<f64>> =
                words.zip(tags).map(|(logits, tag)| cross_entropy(logits, *tag)).collect();
            (each?.iter().sum(), tags.len() as f64)
        }
    })
}

/// ln Σ exp(x) - x of the class.
fn cross_entropy(logits: &[f32], class: u32) -> Option<f64> {
    let largest = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - largest).exp()).sum();
    Some(largest + sum.ln() - f64::from(*logits.get(class as usize)?))
}

/// ln(1 + exp(-x)) where the label holds, else ln(1 + exp(x)).
fn binary_cross_entropy(x: f32, holds: bool) -> f64 {
    let x = f64::from(if holds { -x } else { x });
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
