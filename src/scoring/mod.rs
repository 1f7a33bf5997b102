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
pub mod summary;

use std::fmt;

use crate::fault::{Result, nearest, usage};

pub use equivalence::equivalent;

/// Verdict of a rule on one completion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Answer that was found in the completion; `None` if the rule finds none.
    pub extracted: Option<String>,
    /// True if it is the gold answer.
    pub correct: bool,
}

/// One way to score a completion; see `docs/scoring.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// MetaMath's GSM8K script.
    Gsm8kMetamath,
    /// The same with `math_equal` beside it, as in the scripts of LoRA-XS.
    Gsm8kLoraxs,
    /// lm-evaluation-harness, `gsm8k` version 3, filter `strict-match`.
    Gsm8kStrict,
    /// lm-evaluation-harness, `gsm8k` version 3, filter `flexible-extract`.
    Gsm8kFlexible,
    /// The last number, as in LLM-Adapters, on GSM8K's answers.
    Gsm8kLlmAdapters,
    /// The last number, on AddSub, MultiArith, SingleEq, SVAMP and MAWPS.
    ArithmeticLlmAdapters,
    /// The first capital letter from A to E.
    AquaLlmAdapters,
    /// MetaMath's MATH script.
    MathMetamath,
    /// The same with `math_equal` beside it, as in the scripts of LoRA-XS.
    MathLoraxs,
    /// lm-evaluation-harness, `hendrycks_math`.
    MathIsEquiv,
    /// lm-evaluation-harness, `minerva_math`, with [`equivalent`] in the place of SymPy.
    MathMinerva,
    /// Mathematical equivalence.
    MathEquivalence,
    /// `true` or `false`.
    Boolq,
    /// `solution1` or `solution2`.
    Piqa,
    /// `answer1` to `answer5`.
    SocialIqa,
    /// `ending1` to `ending4`.
    Hellaswag,
    /// `option1` or `option2`.
    Winogrande,
    /// `answer1` to `answer5`.
    Arc,
    /// `answer1` to `answer5`.
    Openbookqa,
}

impl Rule {
    /// Every rule, in the order in which messages name them.
    pub const ALL: [Self; 19] = [
        Self::Gsm8kMetamath,
        Self::Gsm8kLoraxs,
        Self::Gsm8kStrict,
        Self::Gsm8kFlexible,
        Self::Gsm8kLlmAdapters,
        Self::ArithmeticLlmAdapters,
        Self::AquaLlmAdapters,
        Self::MathMetamath,
        Self::MathLoraxs,
        Self::MathIsEquiv,
        Self::MathMinerva,
        Self::MathEquivalence,
        Self::Boolq,
        Self::Piqa,
        Self::SocialIqa,
        Self::Hellaswag,
        Self::Winogrande,
        Self::Arc,
        Self::Openbookqa,
    ];

    /// Returns the rule of this name.
    ///
    /// # Errors
    /// When no rule has it.
    pub fn named(name: &str) -> Result<Self> {
        if let Some(rule) = Self::ALL.into_iter().find(|rule| rule.name() == name) {
            return Ok(rule);
        }
        let names = Self::ALL.map(Self::name);
        let fault = usage(format!("unknown scorer `{name}`, expected one of `{}`", names.join("`, `")));
        Err(match nearest(name, names) {
            Some(near) => fault.hint(format!("did you mean `{near}`?")),
            None => fault,
        }
        .into())
    }

    /// Returns the name in catalogs, recipes and reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Gsm8kMetamath => "gsm8k/metamath",
            Self::Gsm8kLoraxs => "gsm8k/loraxs",
            Self::Gsm8kStrict => "gsm8k/strict",
            Self::Gsm8kFlexible => "gsm8k/flexible",
            Self::Gsm8kLlmAdapters => "gsm8k/llm-adapters",
            Self::ArithmeticLlmAdapters => "arithmetic/llm-adapters",
            Self::AquaLlmAdapters => "aqua/llm-adapters",
            Self::MathMetamath => "math/metamath",
            Self::MathLoraxs => "math/loraxs",
            Self::MathIsEquiv => "math/is_equiv",
            Self::MathMinerva => "math/minerva",
            Self::MathEquivalence => "math/equivalence",
            Self::Boolq => "commonsense/boolq",
            Self::Piqa => "commonsense/piqa",
            Self::SocialIqa => "commonsense/social_i_qa",
            Self::Hellaswag => "commonsense/hellaswag",
            Self::Winogrande => "commonsense/winogrande",
            Self::Arc => "commonsense/arc",
            Self::Openbookqa => "commonsense/openbookqa",
        }
    }

    /// Returns the key in results: metric and filter, as lm-evaluation-harness writes them. Rules of one task
    /// have different filters, so that they do not collide.
    pub fn metric_key(self) -> String {
        let filter = match self {
            Self::Gsm8kStrict => "strict-match",
            Self::Gsm8kFlexible => "flexible-extract",
            Self::MathIsEquiv => "is-equiv",
            rule if rule.name().starts_with("commonsense/") => "llm-adapters",
            rule => rule.name().split('/').next_back().unwrap_or_default(),
        };
        format!("exact_match,{filter}")
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
        match self {
            Self::Gsm8kMetamath => metamath::gsm8k(completion, gold),
            Self::Gsm8kLoraxs => metamath::gsm8k_loraxs(completion, gold),
            Self::Gsm8kStrict => gsm8k::strict(completion, gold),
            Self::Gsm8kFlexible => gsm8k::flexible(completion, gold),
            Self::Gsm8kLlmAdapters | Self::ArithmeticLlmAdapters => gsm8k::last_number(completion, gold),
            Self::MathMetamath => metamath::math(completion, gold),
            Self::MathLoraxs => metamath::math_loraxs(completion, gold),
            Self::MathIsEquiv => hendrycks::judge(completion, gold),
            Self::MathMinerva => minerva::judge(completion, gold),
            Self::MathEquivalence => equivalence::judge(completion, gold),
            Self::AquaLlmAdapters => choices::judge(completion, gold, &["A", "B", "C", "D", "E"]),
            Self::Boolq => choices::judge(completion, gold, &["true", "false"]),
            Self::Piqa => choices::judge(completion, gold, &["solution1", "solution2"]),
            Self::SocialIqa | Self::Arc | Self::Openbookqa => {
                choices::judge(completion, gold, &["answer1", "answer2", "answer3", "answer4", "answer5"])
            }
            Self::Hellaswag => {
                choices::judge(completion, gold, &["ending1", "ending2", "ending3", "ending4"])
            }
            Self::Winogrande => choices::judge(completion, gold, &["option1", "option2"]),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
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
