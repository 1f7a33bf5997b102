//! Chat templates that never end, fill the memory or overflow the stack: each runs into a limit that is told.

use serde_json::json;

use crate::rendering::{chat_tokenizer, conversation};

const STEPS: &str = "steps and may never end";
const MEMORY: &str = "MB of memory";
const DEEP: &str = "nests more than 100 tags and brackets";

/// Templates, and the limit that each runs into.
const HOSTILE: [(&str, &str); 56] = [
    ("{% for i in range(100000) %}{% for j in range(100000) %}{% endfor %}{% endfor %}", STEPS),
    ("{% for i in range(100000) %}{% for j in range(100000) %}{{ j }}{% endfor %}{% endfor %}", STEPS),
    ("{% for i in range(99999) if range(99999)|sum < 0 %}{% endfor %}", STEPS),
    ("{% set x = [1] * 10**10 %}", MEMORY),
    ("{% set x = (1, 2) * 10**10 %}", MEMORY),
    ("{% set x = 'a' * 10**12 %}", MEMORY),
    ("{% for i in range(10**12) %}{% endfor %}", "Range too big"),
    ("{{ 'a' | indent(10**12) }}{{ 'a\nb' | indent(10**12) }}", MEMORY),
    ("{{ messages | tojson(indent=10**14) }}", MEMORY),
    (
        "{{ messages | tojson(indent='x' * 10**7) }}{{ [messages] * 1000 | tojson(indent='x' * 10**7) }}",
        MEMORY,
    ),
    ("{{ 'a' | center(10**12) }}", MEMORY),
    ("{{ 'a'.ljust(10**12) }}", MEMORY),
    ("{{ 'a'.zfill(10**12) }}", MEMORY),
    ("{{ 'a\t'.expandtabs(10**12) }}", MEMORY),
    ("{{ '%1000000000d' % 1 }}", MEMORY),
    ("{{ '%.1000000000f' % 1 }}", MEMORY),
    ("{{ '%*d' % (10**12, 1) }}", MEMORY),
    ("{{ '{:1000000000}'.format(1) }}", MEMORY),
    ("{{ '{:.1000000000f}'.format(1.5) }}", MEMORY),
    ("{{ '{0:{1}}'.format(1, 10**12) }}", MEMORY),
    ("{{ [1] | batch(10**12, 'x') | list }}", MEMORY),
    ("{{ [1] | slice(10**12, 'x') | list }}", STEPS),
    ("{{ 10 ** (10 ** 10) }}", "over 65536 bits"),
    (
        "{% set ns = namespace(x=10) %}{% for i in range(64) %}{% set ns.x = ns.x * ns.x %}{% endfor %}",
        "bits",
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x.replace('a', ns.x) %}{% endfor %}",
        STEPS,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x | replace('', ns.x) %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] | join %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = ns.x.join(ns.x) %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = '%s%s' % (ns.x, ns.x) %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x = '{0}{0}'.format(ns.x) %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='ab') %}{% for i in range(64) %}{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x='\"') %}{% for i in range(64) %}{% set ns.x = ns.x | tojson %}{% endfor %}",
        STEPS,
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
        MEMORY,
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        STEPS,
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        STEPS,
    ),
    (
        "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(64) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
        STEPS,
    ),
    (
        "{% set ns = namespace(x=(1,)) %}{% for i in range(64) %}{% set ns.x = (ns.x, ns.x) %}{% endfor %}{{ {ns.x: 1} }}",
        "a key has more than 1000 values",
    ),
    (
        "{% set ns = namespace(x=[1]) %}{% for i in range(1000) %}{% set ns.x = [ns.x] %}{% endfor %}",
        "more than 200 lists",
    ),
    (
        "{% set ns = namespace(x={}) %}{% for i in range(1000) %}{% set ns.x = {'a': ns.x} %}{% endfor %}",
        "more than 200 lists",
    ),
    ("{% set ns = namespace() %}{% set ns.x = ns %}{{ ns }}", "nests more than"),
    ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "nests more than"),
    ("{% macro f() %}{{ f() }}{{ f() }}{% endmacro %}{{ f() }}", "nests more than"),
    ("{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", STEPS),
    (
        "{% macro f() %}{{ caller() }}{% endmacro %}{% macro g() %}{% call f() %}{{ g() }}{% endcall %}{% endmacro %}{{ g() }}",
        "nests more than",
    ),
    ("{% for i in [1] recursive %}{{ loop([1]) }}{% endfor %}", "nests more than"),
    (
        "{% set ns = namespace(x='a' * 10**7) %}{% for i in range(100000) %}{% if ns.x == 'b' %}{% endif %}{{ 'b' in ns.x }}{% endfor %}",
        STEPS,
    ),
    ("{% set x = 'é' * 10**7 %}{% for i in range(100000) %}{{ x[5000000] }}{% endfor %}", STEPS),
    ("{% set x = ('a' * 10**7)|list %}", MEMORY),
    ("{% for c in 'a' * 10**7 %}{% endfor %}", STEPS),
    ("{% set j = joiner('x' * 10**7) %}{% for i in range(100000) %}{{ j() }}{% endfor %}", MEMORY),
    (
        "{{ dict.fromkeys(range(100000)) }}{% for i in range(100000) %}{% set x = dict.fromkeys(range(100000)) %}{% endfor %}",
        STEPS,
    ),
    (
        "{% for i in range(100000) %}{% set ns = namespace(a=i) %}{{ range(100000)|list|length }}{% endfor %}",
        STEPS,
    ),
    ("{% for i in range(100000) %}{{ ('a' * 10**6).upper().split('B')|length }}{% endfor %}", STEPS),
    ("{% for i in range(100000) %}{{ ('a ' * 10**5)|wordwrap(3)|length }}{% endfor %}", STEPS),
];

/// Those that are long.
fn long_ones() -> Vec<(String, &'static str)> {
    let many = |text: &str, count: usize| text.repeat(count);
    vec![
        (format!("{{{{ {}1 }}}}", many("-", 50_000)), DEEP),
        (format!("{{{{ {}1 }}}}", many("not ", 100_000)), DEEP),
        (format!("{{{{ {}1{} }}}}", many("(", 100_000), many(")", 100_000)), DEEP),
        (format!("{{{{ {}{} }}}}", many("[", 100_000), many("]", 100_000)), DEEP),
        (format!("{{{{ {}1{} }}}}", many("{1: ", 50_000), many("}", 50_000)), DEEP),
        (format!("{{{{ {}1{} }}}}", many("f(", 100_000), many(")", 100_000)), DEEP),
        (format!("{{{{ {}1{} }}}}", many("x[", 100_000), many("]", 100_000)), DEEP),
        (format!("{{{{ {}1 }}}}", many("1 if 1 else ", 50_000)), DEEP),
        (format!("{{{{ 1{} }}}}", many(" if 1", 50_000)), "nests more than 100 conditions"),
        (many("{% if 1 %}", 50_000), DEEP),
        (many("{% for x in [1] %}", 30_000), DEEP),
        (format!("{{% set {}x{} = 1 %}}", many("(", 100_000), many(")", 100_000)), DEEP),
        (
            format!(
                "{}{{% for i in range(100000) %}}{{{{ a }}}}{{% endfor %}}",
                (0..50_000).map(|i| format!("{{% set a{i}=1 %}}")).collect::<String>()
            ),
            STEPS,
        ),
        (many("x", 10_000_000), "the template has 10000000 bytes"),
        (format!("{{{{ {} }}}}", many("1", 100_000)), "a number is too long"),
    ]
}

#[test]
fn hostile_templates_are_refused_before_they_use_up_time_memory_or_stack() {
    let row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
    let hostile = HOSTILE.map(|(template, limit)| (template.to_owned(), limit));
    for (template, limit) in hostile.into_iter().chain(long_ones()) {
        let source = json!({"template": template, "bos_token": null, "eos_token": "<|im_end|>"});
        let error = conversation(&chat_tokenizer(&source), &row).unwrap_err();
        let (shown, message): (String, _) = (template.chars().take(120).collect(), format!("{error:#}"));
        assert!(message.contains("chat template"), "{shown}: {message}");
        assert!(message.contains(limit), "{shown}: expected `{limit}`, found {message}");
        // It is no fault of the row, which is not passed over
        assert!(!message.contains("can be used"), "{shown}: {message}");
    }
    // What is long but not deep is no matter
    let long = format!(
        "{{% set x = 1{} %}}{{% set y = 1{} %}}{{% if 0 %}}{}{{% endif %}}{{{{ 'a'{} }}}}\
         {{% for m in messages %}}{{% generation %}}{{{{ m.content }}}}{{% endgeneration %}}{{% endfor %}}",
        " + 1".repeat(20_000),
        " ~ 1".repeat(5000),
        "{% elif 0 %}".repeat(20_000),
        " | upper".repeat(20_000)
    );
    let source = json!({"template": long, "bos_token": null, "eos_token": "<|im_end|>"});
    conversation(&chat_tokenizer(&source), &row).unwrap();
}

#[test]
fn long_conversations_are_far_from_every_limit() {
    let text = "Some words, \"quoted\" <and> é 日本.\n".repeat(250);
    let turns = |i: usize| json!({"role": (["user", "assistant"][i % 2]), "content": text});
    let tool = json!({"name": "f", "description": text, "parameters": {"type": "object", "properties": {"a": text}}});
    let row = json!({"messages": (0..1000).map(turns).collect::<Vec<_>>(), "tools": vec![tool; 100]});
    for template in [
        "{{ tools | tojson(indent=4) }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content | trim + '<|im_end|>' }}{% endfor %}",
        // Looks at all that follows for each message
        "{% for m in messages %}{% for n in messages[loop.index:] %}{% if n.role == 'user' and 'tool_calls' in n %}{{ n.x }}{% endif %}{% endfor %}\
         {% generation %}{{ m.content | tojson }}{% endgeneration %}{% endfor %}",
        // Gathers the whole text before it prints it
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.role ~ ': ' + m.content %}{% endfor %}\
         {% generation %}{{ ns.t }}{% endgeneration %}",
    ] {
        let source = json!({"template": template, "bos_token": null, "eos_token": "<|im_end|>"});
        let found = conversation(&chat_tokenizer(&source), &row);
        // Where tools fill the length, that is said, and nothing of limits
        let is_known = found.as_ref().is_err_and(|e| e.to_string().contains("beyond `max_length` 4096"));
        assert!(is_known || found.is_ok(), "{template}: {:#}", found.unwrap_err());
    }
}
