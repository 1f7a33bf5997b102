//! What a head answers, named as Transformers names it.

use serde::{Deserialize, Serialize};

/// What a head on a trunk answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Problem {
    /// One class of each sequence.
    #[serde(rename = "single_label_classification")]
    SingleLabel,
    /// A number for each sequence.
    #[serde(rename = "regression")]
    Regression,
    /// Any number of classes of each sequence.
    #[serde(rename = "multi_label_classification")]
    MultiLabel,
    /// One class of each word. Transformers has no such `problem_type`, but classes of its own.
    #[serde(rename = "token_classification")]
    Tokens,
}

impl Problem {
    /// Returns PEFT's name of the task of a model with such a head; without one, the model is a language model.
    pub fn task_type(problem: Option<Self>) -> &'static str {
        match problem {
            None => "CAUSAL_LM",
            Some(Self::Tokens) => "TOKEN_CLS",
            Some(_) => "SEQ_CLS",
        }
    }

    /// Returns it in words, for messages.
    pub fn words(self) -> &'static str {
        match self {
            Self::SingleLabel => "one class",
            Self::Regression => "a number",
            Self::MultiLabel => "any number of labels",
            Self::Tokens => "the classes of words",
        }
    }

    /// Returns the end of the name of Transformers' class for such a model, after the family.
    pub fn class(problem: Option<Self>) -> &'static str {
        match problem {
            None => "ForCausalLM",
            Some(Self::Tokens) => "ForTokenClassification",
            Some(_) => "ForSequenceClassification",
        }
    }
}
