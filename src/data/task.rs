//! Tasks: what a data set asks of a model, each kind with the keys of its catalog entry.

use std::collections::BTreeMap;

use super::template::Template;
use crate::limits::{BEAMS, NEW_TOKENS, TOP_K};
use crate::spec::reader::Reader;
use crate::spec::values::{NOT_NEGATIVE, SHARE};
use crate::spec::{Metric, Problem, keys};

/// What a data set asks of a model.
#[derive(Debug, Clone, PartialEq)]
#[expect(clippy::large_enum_variant, reason = "a catalog holds few")]
pub enum Task {
    /// A sentence, or a pair, to one of n labels.
    Classification(Classification),
    /// A sentence, or a pair, to a number.
    Regression(Regression),
    /// A sentence, or a pair, to any number of labels.
    MultiLabel(MultiLabel),
    /// The words of a sentence, each to one of n labels.
    TokenClassification(TokenClassification),
    /// A prompt that is not trained on, and a response that is.
    Instruction(Instruction),
    /// A text, all of which is trained on.
    Text(PlainText),
    /// A conversation of several turns.
    Chat(Chat),
    /// A prompt to be continued and scored against an answer.
    Generation(Generation),
}

keys! {
    /// The keys of `task = "classification"`.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Classification in "" {
        /// One text, or two for pairs: each a column, or a template such as `"{title} {body}"`. Of several, those that are empty
        /// count as empty texts.
        text: Vec<Template> = given_templates();
        /// Column of the label: 0..n-1, or one of `labels` (these alone if one of them is a number).
        label: String = required();
        /// Names of the classes 0..n-1.
        labels: Vec<String> = given_texts();
        /// Metrics; the first picks the best checkpoint unless the recipe says otherwise.
        metrics: Vec<Metric> = metrics(&Metric::OF_CLASSES, 1);
        /// File name of the GLUE submission for each test split.
        submission: BTreeMap<String, String> = submission();
        /// True if a submission holds label names instead of numbers.
        submission_names: bool = flag(false);
    }
}

keys! {
    /// The keys of `task = "regression"`.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Regression in "" {
        /// One text, or two for pairs: each a column, or a template such as `"{title} {body}"`. Of several, those that are empty
        /// count as empty texts.
        text: Vec<Template> = given_templates();
        /// Column of the number to predict.
        label: String = required();
        /// Metrics; the first picks the best checkpoint unless the recipe says otherwise.
        metrics: Vec<Metric> = metrics(&Metric::OF_NUMBERS, 2);
        /// File name of the GLUE submission for each test split.
        submission: BTreeMap<String, String> = submission();
    }
}

keys! {
    /// The keys of `task = "multi-label"`.
    #[derive(Debug, Clone, PartialEq)]
    pub struct MultiLabel in "" {
        /// One text, or two for pairs, each a column or a template.
        text: Vec<Template> = given_templates();
        /// Column of a list of labels, each 0..n-1 or one of `labels`; or a column of 0 and 1 for each label.
        label: Vec<String> = given_texts();
        /// Names of the labels 0..n-1; with a column for each, the names of the columns by default.
        labels: Vec<String> = texts(&label.iter().map(String::as_str).collect::<Vec<_>>());
        /// Metrics; the first picks the best checkpoint unless the recipe says otherwise.
        metrics: Vec<Metric> = metrics(&Metric::OF_SETS, 3);
    }
}

keys! {
    /// The keys of `task = "token-classification"`.
    #[derive(Debug, Clone, PartialEq)]
    pub struct TokenClassification in "" {
        /// Column of the words, a list.
        text: Template = words();
        /// Column of their tags, a list as long: 0..n-1, or one of `labels`.
        label: String = required();
        /// Names of the tags 0..n-1, such as `O`, `B-PER`, `I-PER`.
        labels: Vec<String> = given_texts();
        /// Metrics, of entities but for the accuracy; the first picks the best checkpoint unless the recipe says otherwise.
        metrics: Vec<Metric> = metrics(&Metric::OF_TAGS, 4);
    }
}

keys! {
    /// The keys of `task = "instruction"`.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Instruction in "" {
        /// Template of the prompt, not trained on: `{column}` stands for a column, `{{` and `}}` for braces, `{[column: … ]}`
        /// for a part that is left out where the column is empty.
        prompt: Template = prompt();
        /// Template of the response, trained on with the token that ends a text after it.
        response: Template = template();
    }
}

keys! {
    /// The keys of `task = "text"`.
    #[derive(Debug, Clone, PartialEq)]
    pub struct PlainText in "" {
        /// Column of the text, or a template; the token that ends a text is added.
        text: Template = column("text");
    }
}

keys! {
    /// The keys of `task = "chat"`.
    #[derive(Debug, Clone, PartialEq)]
    pub struct Chat in "" {
        /// Column of the messages, each row a list of objects with `role` and `content`, or `from` and `value`.
        messages: String = text("messages");
        /// Column of messages that come before them and are not trained on; then all of the others are.
        prompt: Option<String> = optional();
    }
}

keys! {
    /// The keys of `task = "generation"`.
    #[derive(Debug, Clone, Default, PartialEq)]
    pub struct Generation in "" {
        /// Column of the messages that stand for the prompt, by the tokenizer's chat template; if the assistant's turn ends them,
        /// that is the answer, unless there is an `answer`.
        messages: Option<String> = optional();
        /// Template of the prompt: `{column}` stands for a column, `{{` and `}}` for braces; not with `messages`.
        prompt: Template = prompt_or(&messages);
        /// True if the prompt is a user's turn in the tokenizer's chat template, and shots are turns before it.
        chat: bool = flag(false);
        /// Template of the answer that a completion is scored against.
        answer: Option<Template> = optional_template();
        /// Names of the scoring rules.
        scorers: Vec<String> = texts(&[]);
        /// Longest completion, in tokens.
        max_new_tokens: Option<usize> = optional_whole(1, NEW_TOKENS);
        /// Texts that end a completion.
        stop: Vec<String> = texts(&[]);
        /// Hypotheses of a beam search; 1 = no search.
        beams: usize = whole(1, 1, BEAMS);
        /// Temperature of sampling; 0 = the likeliest token.
        temperature: f64 = number(0.0, NOT_NEGATIVE);
        /// Share of the probability that is sampled from.
        top_p: f64 = number(1.0, SHARE);
        /// Number of tokens that are sampled from; 0 = all.
        top_k: usize = whole(0, 0, TOP_K);
        /// Columns by whose values scores are told apart, too.
        group_by: Vec<String> = texts(&[]);
        /// Template of a solved row in a few-shot prompt; without it, prompt, space and answer.
        shot: Option<Template> = optional_template();
        /// Text between the rows of a few-shot prompt.
        shot_separator: String = text("\n\n");
        /// Split whose first usable rows are the shots.
        shot_split: String = text("train");
    }
}

impl Generation {
    /// Returns the settings of an entry that sets none.
    pub fn unset() -> Self {
        Self { beams: 1, top_p: 1.0, ..Self::default() }
    }

    /// Returns true if prompts are conversations in the tokenizer's chat template.
    pub fn is_chat(&self) -> bool {
        self.chat || self.messages.is_some()
    }
}

/// Every kind of task, with its keys and their meanings.
pub const KINDS: [(&str, &[(&str, &str)]); 8] = [
    ("classification", Classification::KEYS),
    ("regression", Regression::KEYS),
    ("multi-label", MultiLabel::KEYS),
    ("token-classification", TokenClassification::KEYS),
    ("instruction", Instruction::KEYS),
    ("text", PlainText::KEYS),
    ("chat", Chat::KEYS),
    ("generation", Generation::KEYS),
];

impl Task {
    /// Reads the keys of one of [`KINDS`]; faults are recorded.
    pub fn read(kind: &str, reader: &mut Reader) -> Self {
        match kind {
            "classification" => Self::Classification(Classification::read(reader)),
            "regression" => Self::Regression(Regression::read(reader)),
            "multi-label" => Self::MultiLabel(MultiLabel::read(reader)),
            "token-classification" => Self::TokenClassification(TokenClassification::read(reader)),
            "instruction" => Self::Instruction(Instruction::read(reader)),
            "text" => Self::Text(PlainText::read(reader)),
            "chat" => Self::Chat(Chat::read(reader)),
            _ => Self::Generation(Generation::read(reader)),
        }
    }

    /// Returns the name of its kind.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Classification(_) => "classification",
            Self::Regression(_) => "regression",
            Self::MultiLabel(_) => "multi-label",
            Self::TokenClassification(_) => "token-classification",
            Self::Instruction(_) => "instruction",
            Self::Text(_) => "text",
            Self::Chat(_) => "chat",
            Self::Generation(_) => "generation",
        }
    }

    /// Returns what a head for it answers; `None` for a language model's task.
    pub fn problem(&self) -> Option<Problem> {
        match self {
            Self::Classification(_) => Some(Problem::SingleLabel),
            Self::Regression(_) => Some(Problem::Regression),
            Self::MultiLabel(_) => Some(Problem::MultiLabel),
            Self::TokenClassification(_) => Some(Problem::Tokens),
            Self::Instruction(_) | Self::Text(_) | Self::Chat(_) | Self::Generation(_) => None,
        }
    }

    /// Returns the names of the classes, labels or tags; none for a number and for a language model's task.
    pub fn labels(&self) -> &[String] {
        match self {
            Self::Classification(task) => &task.labels,
            Self::MultiLabel(task) => &task.labels,
            Self::TokenClassification(task) => &task.labels,
            Self::Regression(_)
            | Self::Instruction(_)
            | Self::Text(_)
            | Self::Chat(_)
            | Self::Generation(_) => &[],
        }
    }

    /// Returns the metrics that a model is scored by, the one that picks the best checkpoint first. The loss is always
    /// one of them, but for generation.
    pub fn metrics(&self) -> Vec<Metric> {
        let mut metrics = match self {
            Self::Classification(task) => task.metrics.clone(),
            Self::Regression(task) => task.metrics.clone(),
            Self::MultiLabel(task) => task.metrics.clone(),
            Self::TokenClassification(task) => task.metrics.clone(),
            Self::Instruction(_) | Self::Text(_) | Self::Chat(_) => Vec::new(),
            Self::Generation(_) => return Vec::new(),
        };
        if !metrics.contains(&Metric::Loss) {
            metrics.push(Metric::Loss);
        }
        metrics
    }

    /// Returns the columns of the texts, or of the words, and those of the label; `None` for a language model's task.
    pub fn labelled(&self) -> Option<(&[Template], &[String])> {
        use std::slice::from_ref;
        match self {
            Self::Classification(task) => Some((&task.text, from_ref(&task.label))),
            Self::Regression(task) => Some((&task.text, from_ref(&task.label))),
            Self::MultiLabel(task) => Some((&task.text, &task.label)),
            Self::TokenClassification(task) => Some((from_ref(&task.text), from_ref(&task.label))),
            Self::Instruction(_) | Self::Text(_) | Self::Chat(_) | Self::Generation(_) => None,
        }
    }

    /// Returns the file name of the GLUE submission for each test split.
    pub fn submission(&self) -> impl Iterator<Item = (&str, &str)> {
        let names = match self {
            Self::Classification(task) => Some(&task.submission),
            Self::Regression(task) => Some(&task.submission),
            _ => None,
        };
        names.into_iter().flatten().map(|(split, name)| (split.as_str(), name.as_str()))
    }
}
