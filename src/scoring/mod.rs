//! Scoring rules: what a completion answers, and whether that is the gold answer.
//!
//! A rule is a pure function of two texts and has the name that the catalog and the results give it. Rules named after
//! a publication repeat it with its quirks; `docs/scoring.md` has the sources and the measured agreement.

mod boxed;
mod choices;
mod equivalence;
mod gsm8k;
mod hendrycks;
mod metamath;
mod minerva;
mod python;

use serde::{Deserialize, Serialize};

use crate::fault::{Result, unknown};

pub use equivalence::equivalent;

/// Verdict of a rule on one completion.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Answer that was found in the completion; `None` if the rule finds none.
    pub extracted: Option<String>,
    /// True if it is the gold answer.
    pub correct: bool,
}

/// One way to score a completion; see `docs/scoring.md`.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    name: &'static str,
    filter: &'static str,
    judge: fn(&str, &str) -> Verdict,
}

const fn rule(name: &'static str, filter: &'static str, judge: fn(&str, &str) -> Verdict) -> Rule {
    Rule { name, filter, judge }
}

const ANSWERS: [&str; 5] = ["answer1", "answer2", "answer3", "answer4", "answer5"];
const ENDINGS: [&str; 4] = ["ending1", "ending2", "ending3", "ending4"];

impl Rule {
    /// Every rule, in the order in which messages name them.
    pub const ALL: [Self; 19] = [
        // MetaMath's GSM8K script, and the same with `math_equal` beside it, as in the scripts of LoRA-XS.
        rule("gsm8k/metamath", "metamath", metamath::gsm8k),
        rule("gsm8k/loraxs", "loraxs", metamath::gsm8k_loraxs),
        // lm-evaluation-harness, `gsm8k` version 3.
        rule("gsm8k/strict", "strict-match", gsm8k::strict),
        rule("gsm8k/flexible", "flexible-extract", gsm8k::flexible),
        // LLM-Adapters: the last number, on GSM8K's answers, and on AddSub, MultiArith, SingleEq, SVAMP and MAWPS; the
        // first capital letter from A to E.
        rule("gsm8k/llm-adapters", "llm-adapters", gsm8k::last_number),
        rule("arithmetic/llm-adapters", "llm-adapters", gsm8k::last_number),
        rule("aqua/llm-adapters", "llm-adapters", |c, gold| {
            choices::judge(c, gold, &["A", "B", "C", "D", "E"])
        }),
        // MetaMath's MATH script, and the same with `math_equal` beside it, as in the scripts of LoRA-XS.
        rule("math/metamath", "metamath", metamath::math),
        rule("math/loraxs", "loraxs", metamath::math_loraxs),
        // lm-evaluation-harness: `hendrycks_math`, and `minerva_math` with [`equivalent`] in the place of SymPy.
        rule("math/is_equiv", "is-equiv", hendrycks::judge),
        rule("math/minerva", "minerva", minerva::judge),
        // Mathematical equivalence.
        rule("math/equivalence", "equivalence", equivalence::judge),
        // LLM-Adapters: the label of a choice.
        rule("commonsense/boolq", "llm-adapters", |c, gold| choices::judge(c, gold, &["true", "false"])),
        rule("commonsense/piqa", "llm-adapters", |c, gold| {
            choices::judge(c, gold, &["solution1", "solution2"])
        }),
        rule("commonsense/social_i_qa", "llm-adapters", |c, gold| choices::judge(c, gold, &ANSWERS)),
        rule("commonsense/hellaswag", "llm-adapters", |c, gold| choices::judge(c, gold, &ENDINGS)),
        rule("commonsense/winogrande", "llm-adapters", |c, gold| {
            choices::judge(c, gold, &["option1", "option2"])
        }),
        rule("commonsense/arc", "llm-adapters", |c, gold| choices::judge(c, gold, &ANSWERS)),
        rule("commonsense/openbookqa", "llm-adapters", |c, gold| choices::judge(c, gold, &ANSWERS)),
    ];

    /// Returns the rule of this name.
    ///
    /// # Errors
    /// When no rule has it.
    pub fn named(name: &str) -> Result<Self> {
        if let Some(rule) = Self::ALL.into_iter().find(|rule| rule.name == name) {
            return Ok(rule);
        }
        Err(unknown("scorer", name, &Self::ALL.map(Self::name)).into())
    }

    /// Returns the name in catalogs, recipes and reports.
    pub fn name(self) -> &'static str {
        self.name
    }

    /// Returns the key in results: metric and filter, as lm-evaluation-harness writes them. Rules of one task
    /// have different filters, so that they do not collide.
    pub fn metric_key(self) -> String {
        format!("exact_match,{}", self.filter)
    }

    /// Scores a completion. `gold` is the answer in the data set: GSM8K's whole answer text, MATH's whole solution, the
    /// label of a choice, or a number.
    ///
    /// ```
    /// let rule = loraxs::scoring::Rule::named("math/equivalence")?;
    /// assert!(rule.judge(r"Final answer is $\frac{1}{2}$.", r"\boxed{0.5}").correct);
    /// # anyhow::Ok(())
    /// ```
    pub fn judge(self, completion: &str, gold: &str) -> Verdict {
        (self.judge)(completion, gold)
    }
}

impl Verdict {
    fn none() -> Self {
        Self { extracted: None, correct: false }
    }

    fn of(extracted: impl Into<String>, correct: bool) -> Self {
        Self { extracted: Some(extracted.into()), correct }
    }
}
