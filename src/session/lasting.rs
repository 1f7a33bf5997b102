//! What of a recipe lasts when its run goes on, and what may change.

use crate::recipe::{Recipe, TrainRecipe};
use crate::spec::{Every, Schedule};
use crate::train::schedule;

/// Keys that a resumed run may change: none of them changes a number.
pub const FREE: [&str; 5] = [
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.gradient_checkpointing",
    "eval.tasks",
];
/// Those that may change numbers by rounding, and draw other dropout masks.
pub const ROUNDING: [&str; 3] = ["train.micro_batch_size", "train.micro_batch_tokens", "eval.batch_size"];
/// Those that say how long a run takes.
pub const LENGTH: [&str; 2] = ["train.epochs", "train.max_steps"];

/// Returns the steps of warm-up of a training of so many steps.
pub fn warmup(train: &TrainRecipe, steps: u64) -> u64 {
    match train.warmup_steps {
        0 => schedule::warmup_steps(train.warmup_ratio, steps),
        given => given,
    }
}

/// Returns what a recipe says of the numbers of a training of so many steps, the same for recipes of one run: keys that may
/// change when it is resumed have fixed values.
pub fn lasting(recipe: &Recipe, steps: u64) -> Recipe {
    let mut lasting = recipe.clone();
    let train = &mut lasting.train;
    (train.warmup_steps, train.warmup_ratio) = (warmup(&recipe.train, steps), 0.0);
    (train.epochs, train.max_steps) = (0, if train.schedule == Schedule::Constant { 1 } else { steps });
    (train.log_every, train.checkpoint_every, train.keep_checkpoints) = (1, Every::Never, 1);
    (train.micro_batch_size, train.micro_batch_tokens) = (1, 0);
    train.gradient_checkpointing = false;
    lasting.eval.batch_size = 0;
    lasting.eval.tasks.clear();
    lasting
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_that_may_change_is_no_part_of_what_lasts() {
        let recipe = |set: &str| {
            let sets = ["train.batch_size=8", "train.schedule=constant", "train.warmup_steps=3", set]
                .map(str::to_owned);
            Recipe::parse("model.name = 'm'\ndata.dataset = 'd'", "r", &sets).unwrap()
        };
        let plain = recipe("train.seed=0");
        for key in FREE.iter().chain(&ROUNDING).chain(&LENGTH) {
            let value = match *key {
                "train.gradient_checkpointing" => "true",
                "eval.tasks" => "gsm8k",
                _ => "7",
            };
            let changed = recipe(&format!("{key}={value}"));
            assert_ne!(changed, plain, "{key}");
            assert_eq!(lasting(&changed, 50), lasting(&plain, 40), "{key}");
        }
        for set in [
            "train.seed=1",
            "train.learning_rate=1",
            "eval.every=never",
            "train.warmup_steps=4",
            "data.limit=9",
        ] {
            assert_ne!(lasting(&recipe(set), 40), lasting(&plain, 40), "{set}");
        }
        let linear = recipe("train.schedule=linear");
        assert_ne!(lasting(&linear, 50), lasting(&linear, 40), "its rates depend on the steps");
    }
}
