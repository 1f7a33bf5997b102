//! Verdicts of the scoring rules against those of the published scripts.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use loraxs::fault::{exit_code, hint_of};
use loraxs::scoring::{Rule, equivalent};
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
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
fn agreement(cases: &[Case]) -> BTreeMap<&'static str, (usize, usize)> {
    let mut counts = BTreeMap::new();
    for case in cases {
        let verdict = case.rule.judge(&case.completion, &case.gold);
        let same = verdict.correct == case.correct
            && case.extracted.as_ref().is_none_or(|found| *found == verdict.extracted);
        let (agreeing, all) = counts.entry(case.rule.name()).or_insert((0, 0));
        *agreeing += usize::from(same);
        *all += 1;
        if !same {
            println!(
                "{}: {:?} for {:?}: {verdict:?}, expected {} {:?}",
                case.rule.name(),
                case.completion,
                case.gold,
                case.correct,
                case.extracted
            );
        }
    }
    counts
}

fn named(name: &str) -> Rule {
    Rule::named(name).unwrap()
}

/// What the rules must agree on: everything, but for the two that replace SymPy. Of Math-Verify's own tests, which are
/// chosen for being hard, it is 96 %.
fn share_expected(rule: &str) -> f64 {
    match rule {
        "math/equivalence" => 0.96,
        "math/minerva" => 0.98,
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
    assert_eq!(named("gsm8k/strict").metric_key(), "exact_match,strict-match");
    assert_eq!(named("gsm8k/flexible").metric_key(), "exact_match,flexible-extract");
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
        assert_eq!(named("gsm8k/strict").judge(completion, gold).correct, strict, "{completion}");
        assert_eq!(named("gsm8k/flexible").judge(completion, gold).correct, flexible, "{completion}");
    }
    let quirk = named("gsm8k/metamath").judge("The answer is: 1,234,567", "#### 1234");
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
        let verdict = named("math/is_equiv").judge(completion, &format!("\\boxed{{{gold}}}"));
        assert_eq!(verdict.correct, correct, "{completion}");
    }
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/fixtures").join(name)
}

/// `LORAXS_SCORING_CASES=FILE` measures the whole output of `scripts/reference/scoring.py` or `equivalence.py`.
#[test]
fn verdicts_agree_with_the_published_scripts() {
    let path = std::env::var_os("LORAXS_SCORING_CASES").map_or(fixture("scoring.jsonl"), Into::into);
    let cases = cases(&path);
    assert!(cases.len() > 250, "{} cases", cases.len());
    assert_agreement(&cases);
}

/// Equal answers and others of each kind, by their mathematics; `math_verify` in the file is what Math-Verify says.
#[test]
fn written_answers_of_each_kind_are_judged_rightly() {
    let cases = cases(&fixture("equivalence.jsonl"));
    assert!(cases.len() > 600, "{} cases", cases.len());
    for (rule, (agreeing, all)) in agreement(&cases) {
        assert_eq!(agreeing, all, "{rule}");
    }
}

#[test]
fn equivalent_answers_are_equal_and_others_are_not() {
    for (gold, predicted, same) in [
        (r"\frac{1}{2}", "0.5", true),
        (r"\frac{1}{3}", "0.333333", true),
        (r"\frac{1}{3}", "0.33", false),
        (r"1\frac{1}{2}", r"\frac{3}{2}", true),
        (r"50\%", "0.5", true),
        (r"12\text{ cm}", "12", true),
        ("1,234", "1234", true),
        (r"3\times10^4", "30000", true),
        (r"\sqrt{8}", r"2\sqrt{2}", true),
        (r"\sqrt{8}", "2.8284", false),
        (r"(-\infty,2)\cup(3,5]", r"(3,5]\cup(-\infty,2)", true),
        ("(1,2]", "[1,2]", false),
        ("(1,2)", "(2,1)", false),
        ("1,2", "2,1", true),
        (r"\{1,2,2\}", r"\{2,1\}", true),
        (r"x \le 3", r"(-\infty,3]", true),
        ("x=5", "5", true),
        ("2x=4", "x=2", true),
        (r"4:59\text{ PM}", "4:59 p.m.", true),
        (r"4:59\text{ PM}", "4:59 a.m.", false),
        ("2x<4", "x>2", false),
        (r"1\pm\sqrt2", r"1-\sqrt2, 1+\sqrt2", true),
        ("(x+1)^2", "x^2+2x+1", true),
        ("(x+1)^2", "x^2+2x+2", false),
        (r"\sin^2 x+\cos^2 x", "1", true),
        (r"\log_2 8", "3", true),
        (r"5!", "120", true),
        (r"90^\circ", "90", true),
        (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{bmatrix}1\\-2\end{bmatrix}", true),
        (r"\begin{pmatrix} 1 \\ -2 \end{pmatrix}", r"\begin{pmatrix}1&-2\end{pmatrix}", false),
        (r"\text{Evelyn}", "Evelyn", true),
        (r"\text{Evelyn}", r"\text{Eve}", false),
        ("10^{20}+1", "10^{20}", false),
    ] {
        assert_eq!(equivalent(gold, predicted), same, "{gold} and {predicted}");
    }
}

fn assert_both_ways(cases: &[(&str, &str, bool)]) {
    for (a, b, same) in cases {
        assert_eq!(equivalent(a, b), *same, "{a} and {b}");
        assert_eq!(equivalent(b, a), *same, "{b} and {a}");
        for answer in [a, b] {
            assert!(equivalent(answer, answer), "{answer}");
        }
    }
}

#[test]
fn spaces_between_digits_part_numbers() {
    assert_both_ways(&[
        ("1 3/4", "13/4", false),
        ("1 3/4", r"\frac{7}{4}", true),
        ("1 3/4", r"1\frac34", true),
        ("1  3/4", "1 3/4", true),
        ("5 1/2", "51/2", false),
        ("10 2/3", r"\frac{32}{3}", true),
        ("(1 3/4, 2)", "(13/4, 2)", false),
        ("(1 3/4, 2)", r"(\frac74,2)", true),
        (r"1 3/4\text{ cm}", r"13/4\text{ cm}", false),
        ("x=1 3/4", "x=13/4", false),
        ("3 1/2 hours", "3.5 hours", true),
        ("3 1/2 hours", "31/2 hours", false),
        ("1 2", "12", false),
        ("1 2", "2", false),
        (r"1\;2", "12", false),
        (r"1\ 2", "12", false),
        (r"1\quad 2", "12", false),
        (r"1\ 2", r"1\;2", true),
        (r"1\,2", "12", false),
        ("(1 2)", "(12)", false),
        ("3 4 5", "345", false),
        ("3 4 5", "60", false),
        ("1/2 3", r"\frac16", false),
        (r"1\,234", "1234", true),
        (r"12\,345", "12345", true),
        ("1 000 000", "1,000,000", true),
        (r"3.141\,592", "3.141592", true),
        (r"\frac 1 2", "0.5", true),
        (r"2\;(3)", "6", true),
    ]);
}

#[test]
fn a_function_before_a_bracket_is_no_factor() {
    assert_both_ways(&[
        ("f(2)", "2f", false),
        ("f(3)", "3f", false),
        ("g(x)", "xg", false),
        ("P(2)", "2P", false),
        (r"\text{f}(2)", "2f", false),
        (r"\text{f}(2)", "f(2)", true),
        ("f(2)", "f( 2 )", true),
        ("f(2)", "f (2)", true),
        ("f(x)", r"f\left(x\right)", true),
        ("f(1+1)", "f(2)", true),
        ("f(x+y)", "f(y+x)", true),
        ("f(2)", "f(3)", false),
        ("f(x)", "g(x)", false),
        ("f(x,y)", "f(y,x)", false),
        ("f(x,0)", "f(x)", false),
        ("2f(x)", "f(2x)", false),
        ("2f(x)", "f(x)+f(x)", true),
        ("(f(x))^2", "f(x)^2", true),
        ("f^{-1}(x)", r"\frac{x}{f}", false),
        ("f^{-1}(x)", "f^{-1}( x )", true),
        ("f(1)=2, f(2)=3", "f(2)=3, f(1)=2", true),
        ("f(2)>0", "f(3)>0", false),
        ("3>f(x)", "f(x)<3", true),
        ("P(X>2)", "P(X>3)", false),
        ("P(X>2)", "P(2<X)", true),
        ("f(10^{20}+1)", "f(10^{20})", false),
        ("x(2)", "2x", true),
        ("2(x+1)", "2x+2", true),
        ("a(b+c)", "ab+ac", true),
        ("f'(x)", "f(x)", false),
        ("f''(x)", "f'(x)", false),
        ("f'(x)", "f' (x)", true),
        (r"f^{\prime}(x)", "f'(x)", true),
        (r"f^\prime(x)", "f(x)", false),
        ("x'", "x", false),
        ("A'", "A", false),
        ("x'", "x '", true),
        ("y'=2x+1", "y' = 1+2x", true),
        ("f(x)'", "f(x)", false),
        ("(x^2)'", "x^2", false),
        (r"(A\cup B)'", r"A\cup B", false),
        (r"(A\cup B)'", r"(B\cup A)'", true),
        ("6'", "6", true),
        (r"5\frac12'", "5.5", true),
    ]);
    for (gold, predicted) in
        [("f(2)=5", "5"), ("5", "f(2)=5"), ("P(X>2)=0.3", "0.3"), ("f(x)=x^2", "x^2"), ("f'(2)=3", "3")]
    {
        assert!(equivalent(gold, predicted), "{gold} and {predicted}");
    }
}

#[test]
fn a_derivative_is_no_quotient() {
    assert_both_ways(&[
        (r"\frac{dy}{dx}", r"\frac{y}{x}", false),
        (r"\frac{dy}{dx}=2x", r"\frac{y}{x}=2x", false),
        (r"\frac{d^2y}{dx^2}", r"\frac{y}{x^2}d", false),
        (r"\frac{d^2y}{dx^2}", r"\frac{dy}{dx}", false),
        (r"\frac{\partial f}{\partial x}", r"\frac{f}{x}", false),
        (r"\frac{\partial f}{\partial x}", r"\frac{\partial f}{\partial y}", false),
        (r"\frac{d}{dx}f(x)", r"\frac{1}{x}f(x)", false),
        ("dy/dx", "y/x", false),
        ("dy/dx", r"\frac{dy}{dx}", true),
        (r"\frac{dy}{dx}", r"\dfrac{ d y }{ d x }", true),
        (r"\frac{dy}{dx}=2x", r"\frac{dy}{dx} = 2 x", true),
        (r"\frac{d^2y}{dx^2}", r"\frac{d^{2} y}{dx^{2}}", true),
        (r"\frac{\mathrm{d}y}{\mathrm{d}x}", r"\frac{dy}{dx}", true),
        (r"\frac{\partial f}{\partial x}", r"\frac{ \partial f }{ \partial x }", true),
        (r"\frac{da+b}{dc}", r"\frac{b+ad}{cd}", true),
        (r"\frac{da}{b}", r"\frac{ad}{b}", true),
    ]);
}

#[test]
fn an_ellipsis_is_a_part_of_a_list() {
    assert_both_ways(&[
        (r"1, 2, \ldots, 10", "1,2,10", false),
        (r"1, 2, \dots, 10", "1,2,10", false),
        (r"1, 2, \cdots, 10", "1,2,10", false),
        ("1, 2, ..., 10", "1,2,10", false),
        ("1,2,…,10", "1,2,10", false),
        (r"\{1,2,\ldots\}", r"\{1,2\}", false),
        ("2,4,6,...", "2,4,6", false),
        (r"1,2,\ldots,10", r"1, 2, \dots , 10", true),
        ("1, 2, ..., 10", r"1,2,\cdots,10", true),
        ("0.333333...", r"\frac13", true),
    ]);
    assert!(named("math/equivalence").judge("2, 4, 6, ...", "2,4,6,...").correct);
    assert!(!named("math/equivalence").judge("2, 4, 6, ...", "6").correct);
}

#[test]
fn ordinals_and_the_base_ten_are_numbers() {
    assert_both_ways(&[
        ("1st", "1", true),
        ("2nd", "2", true),
        ("3rd", "3", true),
        ("4th", "4", true),
        ("21st", "21", true),
        ("112th", "112", true),
        (r"11^{\text{th}}", "11", true),
        (r"\text{3rd}", "3", true),
        ("2nd", "3", false),
        ("12_{10}", "12", true),
        ("12_{8}", "12", false),
        ("12_{8}", "12_{10}", false),
        ("12_{10}", "10", false),
        ("x_{10}", "x", false),
    ]);
}

#[test]
fn the_innermost_box_counts() {
    for (completion, gold, correct) in [
        (r"\boxed{\boxed{3}}", "3", true),
        (r"\boxed{\boxed{3}}", "4", false),
        (r"\boxed{\text{\boxed{3}}}", "3", true),
        (r"$\boxed{\fbox{3}}$", "3", true),
        (r"\boxed{x = \boxed{3}}", "3", true),
        (r"\boxed{1} and \boxed{\boxed{2}}", "1,2", true),
        (r"\boxed{ \boxed{50}}\%", r"\frac12", true),
        ("3", r"$\boxed{\boxed{3}}$", true),
        (r"\boxed{1 3/4}", r"\boxed{13/4}", false),
        ("The answer is 1 3/4.", r"\boxed{13/4}", false),
        ("The answer is $f(2)$.", r"\boxed{2f}", false),
        (r"\boxed{f( 2 )}", r"\boxed{f(2)}", true),
    ] {
        let verdict = named("math/equivalence").judge(completion, gold);
        assert_eq!(verdict.correct, correct, "{completion} for {gold}: {verdict:?}");
    }
}

#[rustfmt::skip]
const PIECES: [&str; 88] = [
    "1", "2", "37", "0", ".", ",", "x", "y", "e", "i", "+", "-", "*", "/", "^", "_", "!", "%", "'", "(", ")", "[", "]", "{", "}", "|", "=", "<", ">", "\\", "\\frac", "\\sqrt", "\\pi", "\\infty", "\\pm", "\\cup", "\\in", "\\le", "\\sin", "\\log", "\\{", "\\}", "\\text{", "\\left", "\\right", "\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "&", "$", "\\boxed{", " ", "\n", "é", "\\binom", "9999999999", "The answer is: ", "#### ",
    "\\approx", " and ", " or ", ";", ":", "12:30", "\\det", "\\begin{vmatrix}", "\\end{vmatrix}", "\\setminus", "\\mathbb{R}", "\\lvert ", "\\rvert ", "\\langle ", "\\rangle ", "^{-1}", "^T", "\\overline{3}", "**", "`", "°", " million", " cm", "\\mid ", "1.5e5", "\\over", "≠", "{,}", "AB", "\\begin{cases}",
    ];

#[test]
fn nothing_that_is_typed_stops_the_rules() {
    let mut draw = ChaCha8Rng::seed_from_u64(7);
    for _ in 0..3000 {
        let mut text =
            |most| (0..draw.random_range(0..most)).map(|_| *PIECES.choose(&mut draw).unwrap()).collect();
        let (completion, gold): (String, String) = (text(40), text(12));
        for rule in Rule::ALL {
            rule.judge(&completion, &gold);
            rule.judge(&format!("The answer is: {completion}"), &format!("\\boxed{{{gold}}}"));
        }
    }
    for (open, close) in [
        ("(", ")"),
        ("{", "}"),
        ("\\frac", "1"),
        ("-", "1"),
        ("\\sqrt", "2"),
        ("|", "|"),
        ("9^", "9"),
        ("\\{1,", "\\}"),
        ("\\sin ", "x"),
        ("\\left(", "\\right)"),
        ("1!", "!"),
        ("x^-", "2"),
    ] {
        for times in [10, 100, 1000] {
            let (a, b) =
                (open.repeat(times) + &close.repeat(times), open.repeat(times) + "2" + &close.repeat(times));
            equivalent(&a, &b);
        }
    }
    equivalent("9^{9^{9^{9}}}", "(10^{10000})^{10000}!");
}

/// What this thread has had of a processor, whatever else runs.
fn thread_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock writes the time and nothing else.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) }, 0);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap())
}

/// Long numbers, high towers and deep nests: each takes milliseconds, and what would double with every level seconds long
/// before the last one here.
#[test]
fn answers_of_any_size_are_judged_in_time() {
    let matrix = |size: usize, entry: &str| {
        let row = vec![entry; size].join("&");
        format!("\\begin{{pmatrix}}{}\\end{{pmatrix}}", vec![row; size].join("\\\\"))
    };
    let joined = |count: usize, joint: &str, part: &dyn Fn(usize) -> String| {
        (0..count).map(part).collect::<Vec<_>>().join(joint)
    };
    let nested = |open: &str, close: &str| format!("{}1{}", open.repeat(46), close.repeat(46));
    let answers = [
        "10^{10^9}".to_owned(),
        "10^{10^{10^{10}}}".to_owned(),
        "(10^{20000})!".to_owned(),
        "7".repeat(1990),
        format!("0.\\overline{{{}}}", "17".repeat(900)),
        "1.5e5000\\cdot 1.5e-5000".to_owned(),
        format!("|x|<{}", "9".repeat(1900)),
        format!("{}^{{10}}", matrix(18, "7")),
        format!("{}^{{-1}}", matrix(6, "x+1")),
        joined(199, "+", &|_| "2000!".to_owned()),
        joined(80, "+", &|i| format!("\\frac{{2^{{19000}}}}{{3^{{{}}}}}", 11_000 + i)),
        joined(120, " or ", &|i| format!("|x-{i}|<{i}")),
        joined(150, "\\cup", &|i| format!("({i},{})", i + 1)),
        joined(12, ",", &|_| format!("\\{{{}\\}}", joined(9, ",", &|i| format!("\\sqrt{{x+{i}}}")))),
        nested("\\{", "\\}"),
        nested("1\\frac{", "}{2}"),
        nested("\\{x\\in", "\\}"),
        nested("\\{x|", "\\}"),
        nested("2^{", "}"),
        nested("\\text{", "}"),
        "\\lvert ".repeat(200),
        "1:".repeat(900),
        "\\boxed{".repeat(20_000),
        "$x$ and ".repeat(20_000),
        "The answer is **x** ".repeat(20_000),
    ];
    for answer in &answers {
        for gold in [answer.clone(), format!("{answer}+1")] {
            let start = thread_time();
            named("math/equivalence").judge(answer, &format!("\\boxed{{{gold}}}"));
            named("math/equivalence").judge(&format!("The answer is {answer}"), &gold);
            let taken = thread_time() - start;
            assert!(taken.as_secs() < 15, "{taken:?}: {}", answer.chars().take(80).collect::<String>());
        }
    }
}

#[test]
fn every_gold_answer_of_gsm8k_and_math_is_its_own() {
    let Some(data) = std::env::var_os("LORAXS_TEST_DATA").map(PathBuf::from) else {
        println!("skipped: LORAXS_TEST_DATA names no folder");
        return;
    };
    let rows = |name: String| -> Vec<Value> {
        let text = std::fs::read_to_string(data.join("data").join(name)).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let mut seen = 0;
    for split in ["train", "test"] {
        for row in rows(format!("gsm8k/{split}.jsonl")) {
            let gold = row["answer"].as_str().unwrap();
            // With two commas MetaMath's rule reads the first two groups.
            let number = gold.rsplit("#### ").next().unwrap().replace(',', "");
            for rule in [named("gsm8k/strict"), named("gsm8k/flexible"), named("gsm8k/llm-adapters")] {
                assert!(rule.judge(gold, gold).correct, "{}: {gold}", rule.name());
            }
            for rule in [named("gsm8k/metamath"), named("gsm8k/loraxs")] {
                assert!(
                    rule.judge(&format!("The answer is: {number}"), gold).correct,
                    "{}: {gold}",
                    rule.name()
                );
            }
        }
        for row in rows(format!("math/{split}.jsonl")) {
            let solution = row["solution"].as_str().unwrap();
            // Two training solutions end in an empty box, which holds no answer.
            if solution.contains("\\boxed{}") {
                continue;
            }
            let verdict = named("math/equivalence").judge(solution, solution);
            assert!(verdict.correct, "{solution}: {verdict:?}");
            seen += 1;
        }
    }
    assert_eq!(seen, 12_498);
}
