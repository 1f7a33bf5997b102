//! Texts of small languages, drawn from their words: TOML lines, chat templates, answers in LaTeX.

use super::dice::Dice;
use super::text;

/// Changes lines of TOML; `keys` are those that may be put in.
pub fn toml(dice: &mut Dice, whole: &str, keys: &str) -> Vec<u8> {
    let mut lines: Vec<String> = whole.lines().map(str::to_owned).collect();
    for _ in 0..dice.few() {
        let place = dice.below(lines.len());
        let Some((key, value)) =
            lines[place].split_once('=').map(|(k, v)| (k.trim().to_owned(), v.trim().to_owned()))
        else {
            lines.insert(place + 1, format!("{} = {}", dice.word(keys), toml_value(dice)));
            continue;
        };
        lines[place] = match dice.below(14) {
            0..4 if value.parse::<i64>().is_ok() => format!("{key} = {}", text::whole(dice)),
            0..4 if value.starts_with('"') => format!("{key} = {}", toml::Value::String(text::text(dice))),
            0..4 if value.parse::<f64>().is_ok() => {
                format!("{key} = {}", dice.word("0.0¦1.0¦0.5¦1e-5¦1e308¦1e-308¦-0.0¦-1.0¦1e5¦nan¦inf¦-inf¦3"))
            }
            0..8 => format!("{key} = {}", toml_value(dice)),
            8 => format!("{key} = {value}\n{key} = {value}"),
            9 => format!("{} = {value}", dice.word(keys)),
            10 => format!("{key}x = {value}"),
            11 => String::new(),
            12 => format!("{key} = [{value}, {value}]"),
            _ => format!("{key} = \"{}\"", value.trim_matches('"').replace('"', "")),
        };
    }
    let whole = format!("{}\n", lines.join("\n")).into_bytes();
    if dice.chance(15) { text::changed(dice, whole, TOML) } else { whole }
}

const TOML: &str = "[¦]¦[[x]]¦=¦\"¦\"\"\"¦'¦#¦\n[train]\n¦a.b.c = 1\n¦{ x = 1 }¦1979-05-27T07:32:00Z";

/// A value as TOML writes it.
pub fn toml_value(dice: &mut Dice) -> String {
    match dice.below(12) {
        0..6 => text::number(dice).to_owned(),
        6 => toml::Value::String(text::text(dice)).to_string(),
        7 => dice.word("true¦false¦[]¦{}¦\"\"¦[[]]¦1979-05-27¦07:32:00").to_owned(),
        8 => format!("[{}]", vec![text::number(dice); 1 + dice.below(3)].join(", ")),
        9 => format!("{{ a = {} }}", text::number(dice)),
        10 => {
            let depth = [1, 100, 10_000][dice.below(3)];
            format!("{}{}", "[".repeat(depth), "]".repeat(depth))
        }
        _ => format!("[{}]", vec!["\"a\""; dice.count()].join(", ")),
    }
}

const NAMES: &str = "messages¦m¦m.role¦m.content¦m['content']¦messages[0]¦messages[-1]['role']¦loop.index0¦eos_token¦\
    bos_token¦add_generation_prompt¦tools¦undefined";
const FILTERS: &str = "trim¦upper¦lower¦length¦tojson¦tojson(indent=4)¦tojson(ensure_ascii=False)¦list¦first¦last¦join¦\
    join(', ')¦reverse¦sort¦unique¦default('x')¦d('x', true)¦string¦int¦int(7)¦\
    int(default=7, base=16)¦float¦float(1.5)¦abs¦round¦round(2)¦round(2, 'ceil')¦replace('a', 'b')¦\
    title¦capitalize¦items¦dictsort¦batch(2)¦batch(2, 'x')¦slice(2)¦indent(2)¦\
    indent(width=8, first=true)¦truncate(5)¦truncate(9, true, '..', 0)¦wordcount¦center(40)¦\
    format('x', 3)¦map(attribute='role')¦map('upper')¦select('string')¦\
    selectattr('role', 'equalto', 'user')¦rejectattr('content')¦min¦max¦sum(attribute='x', start=1)¦\
    groupby('role')¦escape¦safe¦e¦urlencode¦pprint¦striptags¦filesizeformat";
const OPERATORS: &str = "+¦-¦*¦/¦//¦%¦**¦~¦==¦!=¦<¦>=¦and¦or¦in¦not in¦is¦is not¦if¦|¦.¦else";
const TESTS: &str = "defined¦none¦string¦mapping¦iterable¦number¦odd¦divisibleby(2)¦sameas(none)¦in([1])";
const METHODS: &str = "split('a')¦split()¦strip()¦lstrip('\\n')¦rstrip()¦startswith('a')¦endswith(('a', 'b'))¦upper()¦\
    title()¦replace('a', 'b', 1)¦get('x', 3)¦items()¦keys()¦values()¦partition(':')¦rpartition(':')¦\
    find('a')¦count('a')¦join(['a', 'b'])¦format(1, x=2)¦splitlines()¦isdigit()¦rsplit(':', 1)¦\
    zfill(5)";

/// A number, mostly one that a template would hold.
fn small(dice: &mut Dice) -> &'static str {
    if dice.chance(15) { text::number(dice) } else { dice.word("0¦1¦2¦3¦-1¦10¦0.5¦1.0¦2e1") }
}

/// An expression of Jinja.
fn expression(dice: &mut Dice, depth: usize) -> String {
    if depth == 0 {
        return match dice.below(8) {
            0..4 => dice.word(NAMES).to_owned(),
            4 => small(dice).to_owned(),
            5 => format!("{:?}", dice.word("¦a¦é:b¦\n¦%s %d¦{} {x}")),
            6 => dice
                .word("none¦true¦[]¦{}¦()¦(1,)¦(1, 2)¦[1, 'a', none]¦{'a': 1.0}¦range(3)")
                .to_owned(),
            _ => dice
                .word("namespace(a=1)¦cycler('a', 'b').next()¦joiner(', ')()¦dict(a=1)¦lipsum()¦strftime_now('%Y')")
                .to_owned(),
        };
    }
    let inner = expression(dice, depth - 1);
    match dice.below(9) {
        0..2 => format!("{inner} | {}", dice.word(FILTERS)),
        2 => format!("({inner}) {} ({})", dice.word(OPERATORS), expression(dice, depth - 1)),
        3 => format!("({inner}).{}", dice.word(METHODS)),
        4 => format!("({inner}) is {}", dice.word(TESTS)),
        5 => format!("({inner})[{}:{}]", small(dice), dice.word("¦1¦-1¦2:-1¦:0")),
        6 => format!("{inner} if {} else 'x'", expression(dice, depth - 1)),
        7 => format!("not ({inner})"),
        _ => format!("[{inner}, {}]", expression(dice, depth - 1)),
    }
}

/// A block of a chat template.
fn block(dice: &mut Dice, depth: usize) -> String {
    let minus = if dice.chance(30) { "-" } else { "" };
    let levels = dice.below(4);
    let x = expression(dice, levels);
    if depth == 0 {
        return match dice.below(4) {
            0..2 => format!("{{{{{minus} {x} }}}}"),
            2 => format!("{{%{minus} set v = {x} %}}"),
            _ => text::text(dice).chars().take(200).collect(),
        };
    }
    let inside: String = (0..1 + dice.below(3)).map(|_| block(dice, depth - 1)).collect();
    match dice.below(10) {
        0..4 => format!(
            "{{%{minus} for m in {} %}}{inside}{{% endfor %}}",
            dice.pick(&["messages", "messages", x.as_str()])
        ),
        4..6 => format!("{{%{minus} if {x} %}}{inside}{{% else %}}b{{% endif %}}"),
        6 => format!("{{% macro f(a, b=1) %}}{inside}{{% endmacro %}}{{{{ f({x}) }}}}"),
        7 => format!("{{% set v %}}{inside}{{% endset %}}{{{{ v }}}}"),
        8 => format!("{{% generation %}}{inside}{{% endgeneration %}}"),
        _ => format!("{{% filter {} %}}{inside}{{% endfilter %}}", dice.word(FILTERS)),
    }
}

/// Templates that ask for more than a template may have; `N` is a size.
const HOSTILE: &str = "{% for a in range(N) %}{% for b in range(N) %}{% endfor %}{% endfor %}¦\
    {% for a in range(N) %}x{% endfor %}¦{{ 'a' * N }}¦{{ [0] * N }}¦{{ ([messages] * N) | tojson }}¦\
    {{ 'a' | center(N) }}¦{{ 'a' | indent(N) }}¦{{ 'a\\nb' | indent(width=N, first=true) }}¦\
    {{ messages | tojson(indent=N) }}¦{{ '%Nd' % 3 }}¦{{ '%Nd' | format(3) }}¦{{ '{:N}'.format(3) }}¦\
    {{ 'a'.zfill(N) }}¦{{ 'a'.ljust(N) }}¦{{ 10 ** N }}¦{{ 2 ** 2 ** N }}¦\
    {{ range(N) | list | length }}¦{{ range(N) | join(',') }}¦{{ messages | batch(N, 'x') | list }}¦\
    {{ messages | slice(N) | list }}¦{{ lipsum(n=N) }}¦\
    {% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x | length }}¦\
    {% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x | length }}¦\
    {% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}¦\
    {% set ns = namespace(x=2) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}{{ ns.x }}¦\
    {% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x | replace('a', 'aa') %}{% endfor %}{{ ns.x | length }}¦\
    {% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}¦\
    {% macro f(n) %}{% if n < N %}{{ f(n + 1) }}{{ f(n + 1) }}{% endif %}{% endmacro %}{{ f(0) }}¦\
    {% set x = 'a' * 100000 %}{% for i in range(N) %}{{ x }}{% endfor %}¦\
    {% set x = 'ab' * 50000 %}{{ x.split('a') | join('ab' * N) }}¦\
    {% set x = 'a' * 10000 %}{{ x | replace('a', x) | replace('a', x) }}¦\
    {% for i in range(N) %}{% if messages | tojson | length < i %}y{% endif %}{% endfor %}¦\
    {{ range(N) | map('string') | list | sort | unique | list | length }}¦\
    {% for m in messages recursive %}{{ loop(messages) }}{% endfor %}¦{% include 'x' %}¦\
    {% extends 'chat_template' %}";
/// What is repeated to nest deeply: opening, middle, closing.
const NESTS: [[&str; 3]; 14] = [
    ["{{ ", "-", "1 }}"],
    ["{{ ", "not ", "1 }}"],
    ["{{ ", "(", "1 }}"],
    ["{{ ", "[", "1 }}"],
    ["{{ 1", "|abs", " }}"],
    ["{{ 1", "+1", " }}"],
    ["{{ x", ".a", " }}"],
    ["{{ x", "[0]", " }}"],
    ["{{ x", "()", " }}"],
    ["", "{% if 1 %}", ""],
    ["", "{% for a in [1] %}", ""],
    ["{{ 1 ", "if 1 else 2 ", " }}"],
    ["", "{# ", "#}"],
    ["{{ ", "{'a': ", "1 }}"],
];

/// A chat template: mostly one that a grammar gives, or one that asks for too much, or a real one changed.
pub fn template(dice: &mut Dice, real: &str) -> String {
    match dice.below(10) {
        0..5 => {
            let blocks: Vec<String> = (0..1 + dice.below(2))
                .map(|_| {
                    let depth = dice.below(3);
                    block(dice, depth)
                })
                .collect();
            // A template that writes no turn as it is has nothing to train on
            match dice.below(3) {
                0 => blocks.concat(),
                1 => format!("{}{real}", blocks.concat()),
                _ => format!(
                    "{{% for m in messages %}}{}{{{{ m.content }}}}</s>{{% endfor %}}",
                    blocks.concat()
                ),
            }
        }
        5..7 => {
            let size = dice.word("0¦3¦100¦100000¦10000000¦1000000000¦1000000000000¦9223372036854775807¦-5");
            dice.word(HOSTILE).replace('N', size)
        }
        7 => {
            let [open, middle, close] = NESTS[dice.below(NESTS.len())];
            let depth = [20, 100, 500, 5_000, 100_000][dice.below(5)];
            let balance = match middle.trim() {
                "(" => ")",
                "[" => "]",
                "{'a':" => "}",
                "{% if 1 %}" => "{% endif %}",
                "{% for a in [1] %}" => "{% endfor %}",
                _ => "",
            };
            let (value, end) = if close.is_empty() { ("", "") } else { close.split_at(close.len().min(1)) };
            format!(
                "{open}{}{value}{}{end}",
                middle.repeat(depth),
                balance.repeat(if dice.chance(80) { depth } else { 0 })
            )
        }
        _ => {
            let levels = 1 + dice.below(3);
            let piece = block(dice, levels);
            let bytes = text::changed(
                dice,
                real.as_bytes().to_vec(),
                &format!("{{%¦%}}¦{{{{¦}}}}¦{{#¦'¦|¦endfor¦{piece}"),
            );
            String::from_utf8_lossy(&bytes).into_owned()
        }
    }
}

const LATEX: &str = "1¦2¦12¦0¦3.5¦0.333¦1,000¦1{,}000¦-1¦x¦y¦a¦\\pi¦e¦i¦\\infty¦\\emptyset¦\\frac¦\\dfrac¦\\sqrt¦\
    \\sqrt[3]¦\\left¦\\right¦\\cup¦\\cap¦\\in¦\\begin{pmatrix}¦\\end{pmatrix}¦&¦\\\\¦\\text{ and }¦\
    \\text{cm}¦\\%¦\\$¦^\\circ¦\\cdot¦\\times¦\\div¦\\pm¦\\le¦\\ge¦<¦>¦=¦\\ne¦\\approx¦+¦-¦*¦/¦^¦!¦_¦\
    (¦)¦[¦]¦{¦}¦|¦,¦;¦\\sin¦\\log_2¦\\binom¦\\boxed";

/// An answer in LaTeX.
pub fn latex(dice: &mut Dice, depth: usize) -> String {
    let inner = |dice: &mut Dice| latex(dice, depth.saturating_sub(1));
    if depth == 0 {
        return dice.word("1¦2¦12¦0¦3.5¦0.333¦1,000¦-1¦x¦y¦a¦\\pi¦e¦i").to_owned();
    }
    let text = match dice.below(14) {
        0 => format!("\\frac{{{}}}{{{}}}", inner(dice), inner(dice)),
        1 => format!("{}+{}", inner(dice), inner(dice)),
        2 => format!("({}) {} ({})", inner(dice), dice.word("-¦*¦/¦\\cdot¦=¦<¦\\cup"), inner(dice)),
        3 => format!("\\sqrt{{{}}}", inner(dice)),
        4 => format!("({})^{{{}}}", inner(dice), inner(dice)),
        5 => format!("({}, {}]", inner(dice), inner(dice)),
        6 => format!(
            "\\begin{{pmatrix}} {} & {} \\\\ {} \\end{{pmatrix}}",
            inner(dice),
            inner(dice),
            inner(dice)
        ),
        7 => format!("\\left| {} \\right|", inner(dice)),
        8 => format!("{}, {} \\text{{ and }} {}", inner(dice), inner(dice), inner(dice)),
        9 => format!("{}^{{{}}}", text::number(dice), text::number(dice)),
        10 => format!("{}!", inner(dice)),
        11 => (0..dice.count().min(3_000)).map(|_| dice.word(LATEX)).collect::<Vec<_>>().join(" "),
        12 => {
            let unit = dice.word("(¦{¦\\frac{1}{¦\\sqrt{¦-¦1+¦2^¦2^{¦x*¦!¦\\left(¦[¦|¦1,");
            let count = dice.count();
            format!("{}1{}", unit.repeat(count), ["", ")", "}", "]", "|"][dice.below(5)].repeat(count))
        }
        _ => {
            let inside = inner(dice).chars().take(1 << 12).collect::<String>().into_bytes();
            String::from_utf8_lossy(&text::changed(dice, inside, LATEX)).into_owned()
        }
    };
    // Long parts of long parts would fill the memory of the tests
    if text.len() < 1 << 20 { text } else { text.chars().take(1 << 20).collect() }
}
