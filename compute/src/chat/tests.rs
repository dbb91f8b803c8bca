//! Templates against what Python's jinja2 makes of them, and templates that mean harm.

use super::*;
use crate::ErrorKind;
use proptest::prelude::*;
use serde_json::json;

/// 2024-07-26 12:00, the date of the goldens.
const NOW: i64 = 1_721_995_200;

fn render(source: &str, messages: &[Message]) -> Result<String, Error> {
    let conversation = Conversation {
        messages,
        add_generation_prompt: true,
        tools: None,
        variables: &Map::new(),
        now: CalendarTime::from_unix_seconds(NOW),
    };
    ChatTemplate::new(source, "<s>", "</s>")?.render(&conversation)
}

fn text(source: &str) -> String {
    render(source, &[Message::new("user", "Hi")]).unwrap_or_else(|error| panic!("{source}: {error}"))
}

fn refusal(source: &str) -> String {
    match render(source, &[Message::new("user", "Hi")]) {
        Ok(text) => panic!("{source} gives {} bytes", text.len()),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::InvalidInput);
            error.to_string()
        }
    }
}

fn message(fields: &Json) -> Message {
    let mut extra = fields.as_object().cloned().unwrap_or_default();
    let mut take = |name: &str| extra.shift_remove(name);
    let string = |value: Option<Json>| value.and_then(|value| value.as_str().map(str::to_owned));
    Message {
        role: string(take("role")).unwrap_or_default(),
        content: string(take("content")).unwrap_or_default(),
        name: string(take("name")),
        tool_calls: take("tool_calls").and_then(|calls| calls.as_array().cloned()).unwrap_or_default(),
        extra,
    }
}

/// `golden/expected.json` was made by jinja2 with Hugging Face's settings: see `golden/make.py`.
#[test]
fn prompts_are_those_of_jinja2() {
    let golden: Json = serde_json::from_str(include_str!("golden/expected.json")).unwrap();
    let templates = [
        ("smollm2", include_str!("golden/smollm2.jinja")),
        ("llama3", include_str!("golden/llama3.jinja")),
        ("qwen3", include_str!("golden/qwen3.jinja")),
        ("gemma3", include_str!("golden/gemma3.jinja")),
        ("mistral", include_str!("golden/mistral.jinja")),
        ("constructs", include_str!("golden/constructs.jinja")),
        ("harmony", include_str!("golden/harmony.jinja")),
        ("deepseek", include_str!("golden/deepseek.jinja")),
        ("glm", include_str!("golden/glm.jinja")),
        ("gemma4", include_str!("golden/gemma4.jinja")),
        ("qwen35", include_str!("golden/qwen35.jinja")),
        ("tekken", include_str!("golden/tekken.jinja")),
    ];
    let mut compared = 0;
    for (name, source) in templates {
        let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
        for case in golden["cases"].as_array().unwrap() {
            let messages: Vec<Message> = case["messages"].as_array().unwrap().iter().map(message).collect();
            let got = template.render(&Conversation {
                messages: &messages,
                add_generation_prompt: case["add_generation_prompt"].as_bool().unwrap(),
                tools: case.get("tools"),
                variables: case["variables"].as_object().unwrap(),
                now: CalendarTime::from_unix_seconds(NOW),
            });
            let case_name = case["name"].as_str().unwrap();
            let expected = &golden["prompts"][name][case_name];
            match expected["error"].as_str() {
                Some(part) => {
                    let error = got.unwrap_err().to_string();
                    assert!(error.contains(part), "{name}, {case_name}: {error}");
                }
                None => assert_eq!(got.unwrap(), expected["text"].as_str().unwrap(), "{name}, {case_name}"),
            }
            compared += 1;
        }
    }
    assert_eq!(compared, 12 * golden["cases"].as_array().unwrap().len());
}

#[test]
fn templates_that_never_end_are_stopped() {
    let loops = "{% for a in range(9999) %}{% for b in range(9999) %}{{ a }}{% endfor %}{% endfor %}";
    assert!(refusal(loops).contains("more steps"), "{}", refusal(loops));
    for recursion in [
        "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
    ] {
        let error = refusal(recursion);
        assert!(error.contains("levels deep"), "{error}");
    }
}

/// In half the stack that a server's threads have.
#[test]
fn depth_fits_a_small_stack() {
    let long = |open: &str, step: &str, close: &str, count: usize| format!("{open}{}{close}", step.repeat(count));
    for count in [60, 140, 190, 300, 900, 100_000] {
        let count_bytes = |step: &str| count.min(MAX_SOURCE_BYTES / step.len());
        let made = |open: &str, step: &str, close: &str| long(open, step, close, count_bytes(step));
        for source in [
            made("{{ 1", " + 1", " }}"),
            made("{{ 'a'", " ~ 'a'", " }}"),
            made("{{ 1", " * 1", " }}"),
            made("{{ 1", " and 1", " }}"),
            made("{{ 1", " is defined", " }}"),
            made("{{ 'a'", "|trim", " }}"),
            made("{{ messages", ".x", " }}"),
            made("{{ messages", "[0]", " }}"),
            made("{{ messages", "[0:]", " }}"),
            made("{{ messages", "()", " }}"),
            made("{{ ", "not ", "1 }}"),
            made("{{ ", "- ", "1 }}"),
            made("{{ ", "(", " }}"),
            made("{{ ", "[", " }}"),
            made("{{ ", "{1:", " }}"),
            made("{{ 1", " if 1 else 1", " }}"),
            made("{{ ", "1 if 1 else ", "1 }}"),
            made("{% if 0 %}", "{% elif 0 %}", "{% endif %}"),
            made("", "{% if 1 %}", ""),
            made("", "{% for x in messages %}", ""),
            long(&"{% if 1 %}".repeat(count.min(100)), "x", &"{% endif %}".repeat(count.min(100)), 1),
        ] {
            let run = move || drop(render(&source, &[Message::new("user", "Hi")]));
            std::thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap().join().unwrap();
        }
    }
    let recursion =
        "{% macro f(x) %}{% for y in [x] %}{% if y %}{{ f(y) }}{% endif %}{% endfor %}{% endmacro %}{{ f(1) }}";
    let run = || refusal(recursion);
    let error = std::thread::Builder::new().stack_size(1 << 20).spawn(run).unwrap().join().unwrap();
    assert!(error.contains("levels deep"), "{error}");
}

#[test]
fn templates_that_grow_without_bound_are_stopped() {
    let unrolled = |step: &str| step.repeat(60);
    let long = "x".repeat(100_000);
    let in_loop = |body: &str| {
        format!("{{% set ns = namespace(x='ab', l=[1]) %}}{{% for i in range(60) %}}{body}{{% endfor %}}{{{{ ns.x }}}}")
    };
    for source in [
        in_loop("{% set ns.x = ns.x ~ ns.x %}"),
        in_loop("{% set ns.x = ns.x + ns.x %}"),
        in_loop("{% set ns.x = ns.x * 2 %}"),
        in_loop("{% set ns.x = [ns.x, ns.x] %}"),
        in_loop("{% set ns.x = (ns.x, ns.x) %}"),
        in_loop("{% set ns.x = {'a': ns.x, 'b': ns.x} %}"),
        in_loop("{% set ns.x %}{{ ns.x }}{{ ns.x }}{% endset %}"),
        in_loop("{% set ns.x = ns.x|replace('a', 'aa')|replace('b', 'bb') %}"),
        in_loop("{% set ns.x = ns.x.replace('a', 'aaa') %}"),
        in_loop("{% set ns.x = ns.x.join([ns.x, ns.x]) %}"),
        in_loop("{% set ns.x = [ns.x, ns.x]|join(ns.x) %}"),
        in_loop("{% set ns.x = '{}{}'.format(ns.x, ns.x) %}"),
        in_loop("{% set ns.x = ns.x|tojson|tojson %}"),
        in_loop("{% set ns.l = ns.l + ns.l %}") + "{{ ns.l }}",
        in_loop("{% set ns.l = ns.l * 10 %}"),
        "{% set x = 'ab' %}".to_owned() + &unrolled("{% set x = x ~ x %}"),
        "{% macro f(x, n) %}{% if n %}{{ f(x ~ x, n - 1) }}{% else %}{{ x }}{% endif %}{% endmacro %}{{ f('ab', 15) }}{{ f('abcdefghijklmnopqrstuvwxyz', 18) }}{{ f('abcdefghijklmnopqrstuvwxyz', 18) }}{{ f('abcdefghijklmnopqrstuvwxyz', 18) }}".to_owned(),
        "{{ 'a' * 100000000 }}".to_owned(),
        "{{ ('a') * 100000000 }}".to_owned(),
        format!("{{{{ [{}] }}}}", "'a' * 99999999, ".repeat(500)),
        "{{ [1] * 100000000 }}".to_owned(),
        "{{ 'a\nb'|indent(100000000) }}".to_owned(),
        "{{ '{:100000000}'.format(1) }}".to_owned(),
        "{{ '{:{}}'.format(1, 100000000) }}".to_owned(),
        format!("{{% for i in range(99999) %}}{long}{{% endfor %}}"),
        format!("{{% set x %}}{{% for i in range(99999) %}}{long}{{% endfor %}}{{% endset %}}"),
        in_loop("{% set ns.l = [ns.l] %}").replace("range(60)", "range(5000)"),
    ] {
        let error = refusal(&source);
        let shown: String = source.chars().take(200).collect();
        assert!(
            ["than the limit", "without bound", "deep", "more steps", "too large"].iter().any(|part| error.contains(part)),
            "{shown}: {error}"
        );
    }
}

#[test]
fn a_namespace_never_holds_itself() {
    let two = "{% set a = namespace() %}{% set b = namespace() %}";
    for source in [
        "{% set a.b = b %}{% set b.a = a %}{{ a == b }}",
        "{% set a.a = a %}{{ a }}",
        "{% set a.a = [a] %}{{ a|tojson }}",
        "{% set a.a = (a if true else b) %}{{ a|tojson }}",
        "{% set a.a = a or b %}{{ a|tojson }}",
        "{% set a.a = a|default(1) %}{{ a|tojson }}",
        "{% set a.a = [a]|first %}{{ a|tojson }}",
        "{% set a.a = dict(x=a) %}{{ a|tojson }}",
    ] {
        let error = refusal(&format!("{two}{source}"));
        assert!(error.contains("namespace"), "{source}: {error}");
    }
    assert_eq!(text("{% set a = namespace(n=1) %}{% set a.n = a.n + 1 %}{{ a.n }}"), "2");
}

#[test]
fn metering_changes_no_meaning() {
    for (source, expected) in [
        ("{{ 1 + 2 * 3 - 4 }}", "3"),
        ("{{ 'a' ~ 1 + 2 }}", ""),
        ("{{ (('a' + 'b') * 2)[1:].upper() }}", "BAB"),
        ("{{ [1, 2][0] + [3, 4][-1] }}", "5"),
        ("{{ {'a': [1, (2, 3)]}.a[1][0] }}", "2"),
        ("{{ 'x' in ('x', 'y') and not 'z' in ['x'] }}", "True"),
        ("{{ ('a' ~ 'b')|upper ~ 'c' }}", "ABc"),
        ("{{ -(1 + 2) }}", "-3"),
        ("{% if messages[0:1]|length == 1 %}one{% endif %}", "one"),
        ("{% for k, v in {'a': 1, 'b': 2}.items() %}{{ k ~ v }}{% endfor %}", "a1b2"),
        ("{% for m in [1, 2] + [3] if m != 2 %}{{ m }}{% endfor %}", "13"),
        ("{% set ns = namespace(a='') %}{% set ns.a = ns.a + 'x' if true else 'y' %}{{ ns.a }}", "x"),
        ("{{ 'a' + 'b' + 'c' + 'd' + 'e' + 'f' + 'g' + 'h' + 'i' + 'j' + 'k' }}", "abcdefghijk"),
        ("{%- generation -%} {{ 'x' }} {%- endgeneration %} y", "x y"),
    ] {
        match expected {
            "" => assert!(refusal(source).contains("line 1")),
            _ => assert_eq!(text(source), expected, "{source}"),
        }
    }
    assert_eq!(text(&format!("{{{{ {} 'z' }}}}", "'a' + ".repeat(400))).len(), 401, "long chains are read");
}

#[test]
fn errors_say_what_is_wrong_and_where() {
    assert!(refusal("a\n{{ 'x' + }}").contains("line 2"), "{}", refusal("a\n{{ 'x' + }}"));
    assert!(
        refusal("{{ raise_exception('roles must alternate') }}")
            .contains("refuses this conversation: roles must alternate")
    );
    assert!(refusal("\n\n{{ nothing.at.all }}").contains("line 3"));
    assert!(refusal("{% include 'x' %}").contains("includes"));
    assert!(refusal("{{ strftime_now('%Q') }}").contains("%Q"));
    assert!(refusal("{{ 'x'|tojson(sort_keys=true) }}").contains("sort_keys"));
    assert!(refusal(&"x".repeat(300_000)).contains("300000 bytes"));
}

#[test]
fn a_model_without_a_template_gets_one() {
    let messages = [
        Message::new("system", "Be brief."),
        Message::new("user", "Hi"),
        Message::new("assistant", "Yes?"),
        Message::new("user", " Bye "),
    ];
    let variables = Map::new();
    let conversation = Conversation {
        messages: &messages,
        add_generation_prompt: true,
        tools: None,
        variables: &variables,
        now: CalendarTime::from_unix_seconds(NOW),
    };
    let default = |token: &str| {
        ChatTemplate::default_for(|asked| asked == token, "<s>", "</s>").unwrap().render(&conversation).unwrap()
    };
    assert_eq!(
        default("<|im_start|>"),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n<|im_start|>user\n Bye <|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(
        default("<start_of_turn>"),
        "<s><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n<start_of_turn>model\nYes?<end_of_turn>\n<start_of_turn>user\nBye<end_of_turn>\n<start_of_turn>model\n"
    );
    assert_eq!(
        default("<|start_header_id|>"),
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nYes?<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nBye<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    );
    assert_eq!(default(""), "<s>System: Be brief.\n\nUser: Hi\n\nAssistant: Yes?\n\nUser: Bye\n\nAssistant:");
}

#[test]
fn arguments_in_a_string_reach_the_template_as_an_object() {
    let call = |arguments: Json| Message {
        tool_calls: vec![json!({"function": {"name": "f", "arguments": arguments}})],
        ..Message::new("assistant", "")
    };
    let source = "{{ messages[0].tool_calls[0].function.arguments|tojson }}";
    assert_eq!(render(source, &[call(json!("{\"b\": 1, \"a\": 1e-7}"))]).unwrap(), r#"{"b": 1, "a": 1e-07}"#);
    assert_eq!(render(source, &[call(json!({"b": 1}))]).unwrap(), r#"{"b": 1}"#);
    assert_eq!(render(source, &[call(json!("no json"))]).unwrap(), r#""no json""#);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    /// Pieces of templates in any order: an answer or an error, never a panic.
    #[test]
    fn whatever_the_template_there_is_an_answer(pieces in prop::collection::vec(prop::sample::select(vec![
        "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{% if ", "loop.first", " %}", "{% endif %}", "{{ ", " }}", "x", " ~ ",
        " + ", "'é'", "[", "]", "(", ")", "{", "}", ":", "1", "-", "|trim", "|tojson", "|join('x')", "{% set x = ", "{%- generation %}",
        "{% endgeneration -%}", "{% macro f(x) %}", "{% endmacro %}", "{{ f(", "ns.x", "{% set ns = namespace() %}", "{% set ns.x = ", ".items()",
        "{#", "#}", "\n", ", ", " if ", " else ", " and ", " is defined", "messages", "{% raw %}", "{% endraw %}", "*", "loop(", "{% else %}", "%", "~",
    ]), 0..24)) {
        let source = pieces.concat();
        let _ = render(&source, &[Message::new("user", "Hi"), Message::new("assistant", "é")]);
    }

    #[test]
    fn whatever_the_text_it_is_passed_on(content in any::<String>()) {
        let got = render("{% for m in messages %}[{{ m.content }}]{% endfor %}", &[Message::new("user", content.as_str())]);
        prop_assert_eq!(got.unwrap(), format!("[{content}]"));
    }
}
