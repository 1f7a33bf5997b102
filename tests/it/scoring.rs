//! Verdicts of the scoring rules against those of the published scripts.

use std::collections::BTreeMap;
use std::path::Path;

use loraxs::fault::{exit_code, hint_of};
use loraxs::scoring::Rule;
use serde_json::Value;

/// A case of `scripts/reference/scoring.py`.
struct Case {
    rule: Rule,
    completion: String,
    gold: String,
    correct: bool,
    /// What the reference extracts, where the script says it.
    extracted: Option<Option<String>>,
}

fn cases(path: &Path) -> Vec<Case> {
    let text = std::fs::read_to_string(path).unwrap();
    let case = |line: &str| {
        let row: Value = serde_json::from_str(line).unwrap();
        let text = |key: &str| row[key].as_str().unwrap().to_owned();
        Case {
            rule: Rule::named(&text("rule")).unwrap(),
            completion: text("completion"),
            gold: text("gold"),
            correct: row["correct"].as_bool().unwrap(),
            extracted: row.get("extracted").map(|found| found.as_str().map(str::to_owned)),
        }
    };
    text.lines().map(case).collect()
}

/// Agreeing cases and all cases of each rule; prints the others.
fn agreement(cases: &[Case]) -> BTreeMap<Rule, (usize, usize)> {
    let mut counts = BTreeMap::new();
    for case in cases {
        let verdict = case.rule.judge(&case.completion, &case.gold);
        let same = verdict.correct == case.correct
            && case.extracted.as_ref().is_none_or(|found| *found == verdict.extracted);
        let (agreeing, all) = counts.entry(case.rule).or_insert((0, 0));
        *agreeing += usize::from(same);
        *all += 1;
        if !same {
            println!(
                "{}: {:?} for {:?}: {verdict:?}, expected {} {:?}",
                case.rule, case.completion, case.gold, case.correct, case.extracted
            );
        }
    }
    counts
}

/// What the rules must agree on: everything, but for the two that replace SymPy.
fn share_expected(rule: Rule) -> f64 {
    match rule {
        Rule::MathEquivalence | Rule::MathMinerva => 0.98,
        _ => 1.0,
    }
}

fn assert_agreement(cases: &[Case]) {
    for (rule, (agreeing, all)) in agreement(cases) {
        println!("{rule}: {agreeing} of {all}");
        assert!(agreeing as f64 >= share_expected(rule) * all as f64, "{rule}: {agreeing} of {all}");
    }
}

#[test]
fn an_unknown_rule_names_the_nearest() {
    let error = Rule::named("gsm8k/metamth").unwrap_err();
    assert!(
        error.to_string().starts_with("unknown scorer `gsm8k/metamth`, expected one of `gsm8k/metamath`")
    );
    assert_eq!(hint_of(&error), Some("did you mean `gsm8k/metamath`?"));
    assert_eq!(exit_code(&error), 2);
}

#[test]
fn rules_of_one_task_have_different_keys() {
    let key = |rule: Rule| (rule.name().split('/').next().unwrap().to_owned(), rule.metric_key());
    let mut keys: Vec<_> =
        Rule::ALL.into_iter().filter(|rule| !rule.name().starts_with("commonsense/")).map(key).collect();
    keys.sort();
    let all = keys.len();
    keys.dedup();
    assert_eq!(keys.len(), all);
    assert_eq!(Rule::Gsm8kStrict.metric_key(), "exact_match,strict-match");
    assert_eq!(Rule::Gsm8kFlexible.metric_key(), "exact_match,flexible-extract");
}

#[test]
fn the_executed_cases_of_gsm8k_hold() {
    let gold = "so\n#### 1072";
    for (completion, strict, flexible) in [
        ("#### $1,072", false, true),
        ("#### 1072.", true, true),
        ("#### 1072.0", false, false),
        ("#### 1,072.00", false, false),
        ("#### 1072...", false, false),
        ("#### 1072\n#### 5", true, false),
        ("#### 1072 and ..", true, false),
    ] {
        assert_eq!(Rule::Gsm8kStrict.judge(completion, gold).correct, strict, "{completion}");
        assert_eq!(Rule::Gsm8kFlexible.judge(completion, gold).correct, flexible, "{completion}");
    }
    let quirk = Rule::Gsm8kMetamath.judge("The answer is: 1,234,567", "#### 1234");
    assert_eq!((quirk.extracted.as_deref(), quirk.correct), (Some("1234"), true));
}

#[test]
fn the_executed_cases_of_is_equiv_hold() {
    for (completion, gold, correct) in [
        ("The answer is 2", "2", false),
        (r"\boxed{2}", "2", false),
        ("$2$", "2", true),
        ("$$2$$", "2", false),
        ("$0.5$", r"\frac12", true),
        ("$x=5$", "5", true),
        ("$1,000$", "1000", false),
    ] {
        let verdict = Rule::MathIsEquiv.judge(completion, &format!("\\boxed{{{gold}}}"));
        assert_eq!(verdict.correct, correct, "{completion}");
    }
}

/// `LORAXS_SCORING_CASES=FILE` measures the whole output of `scripts/reference/scoring.py`.
#[test]
fn verdicts_agree_with_the_published_scripts() {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures/scoring.jsonl");
    let path = std::env::var_os("LORAXS_SCORING_CASES").map_or(fixture, Into::into);
    let cases = cases(&path);
    assert!(cases.len() > 300, "{} cases", cases.len());
    assert_agreement(&cases);
}
