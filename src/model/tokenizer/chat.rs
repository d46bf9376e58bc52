//! A model's chat template, rendered by minijinja to what jinja2 makes of it in transformers.
//!
//! Supported is what published templates use: `raise_exception`, `strftime_now`, `tojson` with
//! `indent`, `break` and `continue`, the methods of Python's strings and dicts, and `generation`
//! blocks. `tools` and `documents` are none.

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use minijinja::machinery::{Token, tokenize};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, escape_formatter};

use super::json::to_json;
use crate::model::ModelError;

/// What rendering a chat template may cost, in instructions or 64 bytes each: a template is a
/// program out of a file, and may loop. A conversation of a megabyte takes less than a tenth.
const TEMPLATE_FUEL: u64 = 1 << 21;

/// Longest template, in bytes: published ones have up to some twenty thousand.
const MAX_SOURCE_BYTES: usize = 64 << 10;

/// Most operators in one tag. Compiling spends no fuel and looks through a whole expression once for
/// each operator in it, however it is nested. Published templates have some twenty.
const MAX_TAG_OPERATORS: usize = 128;

/// Stack that a template is rendered on: compiling recurses into chains such as `a.b.b`, and
/// letting go of a list into all that it nests, for which the fuel is enough for some hundred
/// thousand levels.
const STACK_BYTES: usize = 256 << 20;

/// A template and the special tokens that it may name.
pub struct ChatTemplate {
    /// Or why it is not rendered: who sends prompts without it need not mind.
    source: Result<String, String>,
    /// `bos_token`, `eos_token` and so on, as far as the model has them.
    special: BTreeMap<&'static str, Value>,
}

impl ChatTemplate {
    /// Takes the source; what it calls special tokens are variables in it.
    pub fn new(
        source: &str,
        named: BTreeMap<&'static str, String>,
        additional: Vec<String>,
    ) -> Self {
        let mut special: BTreeMap<_, _> = (named.into_iter())
            .map(|(name, text)| (name, Value::from(text)))
            .collect();
        if !additional.is_empty() {
            special.insert("additional_special_tokens", additional.into());
        }
        Self {
            source: checked(source),
            special,
        }
    }

    /// Renders `(role, content)` messages up to where the assistant's answer starts.
    pub fn render(&self, messages: &[(&str, &str)], now: DateTime) -> Result<String, ModelError> {
        let source = (self.source.as_ref()).map_err(|why| ModelError::ChatTemplate(why.clone()))?;
        std::thread::scope(|scope| {
            (std::thread::Builder::new().stack_size(STACK_BYTES))
                .spawn_scoped(scope, || self.render_here(source, messages, now))
                .map_err(|e| ModelError::ChatTemplate(format!("no thread for it: {e}")))?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(|e| ModelError::ChatTemplate(e.to_string()))
        })
    }

    fn render_here(
        &self,
        source: &str,
        messages: &[(&str, &str)],
        now: DateTime,
    ) -> Result<String, Error> {
        let messages: Vec<Value> = (messages.iter())
            .map(|(role, content)| minijinja::context! { role => *role, content => *content })
            .collect();
        let chat = minijinja::context! {
            messages,
            tools => (),
            documents => (),
            add_generation_prompt => true,
            ..Value::from(self.special.clone())
        };
        environment(now)?.render_str(source, chat)
    }
}

/// As transformers sets jinja2 up.
fn environment(now: DateTime) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    environment.set_syntax(syntax()?);
    environment.set_fuel(Some(TEMPLATE_FUEL));
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_filter("tojson", to_json);
    environment.add_function("raise_exception", |message: String| -> Result<(), _> {
        Err(Error::new(ErrorKind::InvalidOperation, message))
    });
    environment.add_function("strftime_now", move |format: &str| {
        (jiff::fmt::strtime::format(format, now))
            .map_err(|e| Error::new(ErrorKind::InvalidOperation, e.to_string()))
    });
    environment.set_formatter(|out, state, value| match value.kind() {
        // As Python writes them.
        ValueKind::None => Ok(out.write_str("None")?),
        ValueKind::Bool if value.is_true() => Ok(out.write_str("True")?),
        ValueKind::Bool => Ok(out.write_str("False")?),
        _ => escape_formatter(out, state, value),
    });
    Ok(environment)
}

fn syntax() -> Result<SyntaxConfig, Error> {
    (SyntaxConfig::builder())
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()
}

/// The template as it is compiled, or why it would take too much.
fn checked(source: &str) -> Result<String, String> {
    if source.len() > MAX_SOURCE_BYTES {
        return Err(format!(
            "it has {} bytes, wanted at most {MAX_SOURCE_BYTES}",
            source.len()
        ));
    }
    let source = without_generation_tags(source);
    let syntax = syntax().map_err(|e| e.to_string())?;
    let operators = most_operators(&source, syntax);
    match operators > MAX_TAG_OPERATORS {
        true => Err(format!(
            "one of its tags has {operators} operators, wanted at most {MAX_TAG_OPERATORS}"
        )),
        false => Ok(source),
    }
}

/// Operators in the tag that has most, up to where the template is none.
fn most_operators(source: &str, syntax: SyntaxConfig) -> usize {
    let (mut most, mut operators) = (0, 0);
    for (token, _) in tokenize(source, false, syntax).map_while(Result::ok) {
        match token {
            Token::VariableStart | Token::BlockStart => operators = 0,
            Token::Plus
            | Token::Minus
            | Token::Mul
            | Token::Div
            | Token::FloorDiv
            | Token::Pow
            | Token::Mod
            | Token::Tilde
            | Token::Eq
            | Token::Ne
            | Token::Gt
            | Token::Gte
            | Token::Lt
            | Token::Lte
            | Token::Ident("and" | "or" | "not" | "in" | "is") => operators += 1,
            _ => {}
        }
        most = most.max(operators);
    }
    most
}

/// The template with `generation` blocks, which mark what an assistant said for training, as blocks
/// that do nothing. What whitespace they eat, they go on to eat.
fn without_generation_tags(source: &str) -> String {
    let mut rest = source;
    let mut plain = String::with_capacity(source.len());
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at);
        plain.push_str(before);
        let end = tag.find("%}").unwrap_or(tag.len());
        let inside = &tag["{%".len()..end.max("{%".len())];
        let name = inside.trim_matches(|c: char| c.is_whitespace() || "-+".contains(c));
        plain.push_str("{%");
        match name {
            "generation" => plain.push_str(&inside.replace(name, "with")),
            "endgeneration" => plain.push_str(&inside.replace(name, "endwith")),
            _ => plain.push_str(inside),
        }
        rest = &tag[end.max("{%".len())..];
    }
    plain + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    const CHAT: [(&str, &str); 2] = [("user", "a <b> & 'c'"), ("assistant", "d\né")];

    fn render(source: &str) -> Result<String, String> {
        let special = BTreeMap::from([("bos_token", "<s>".to_string())]);
        let now = jiff::civil::date(2024, 7, 26).at(9, 5, 0, 0);
        (ChatTemplate::new(source, special, vec!["<x>".into()]).render(&CHAT, now))
            .map_err(|e| e.to_string())
    }

    #[test]
    fn json_is_what_python_writes() {
        assert_eq!(
            render("{{ messages | tojson }}").unwrap(),
            r#"[{"role": "user", "content": "a <b> & 'c'"}, {"role": "assistant", "content": "d\né"}]"#
        );
        assert_eq!(
            render("{{ {'a': [1, 2.5, none, true], 'b': {}} | tojson(indent=2) }}").unwrap(),
            "{\n  \"a\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"b\": {}\n}"
        );
        assert_eq!(
            render("{{ [] | tojson(ensure_ascii=false) }}").unwrap(),
            "[]"
        );
        for refused in [
            "indent=17",
            "indent=-1",
            "ensure_ascii=true",
            "sort_keys=true",
        ] {
            assert!(
                render(&format!("{{{{ [] | tojson({refused}) }}}}")).is_err(),
                "{refused}"
            );
        }
    }

    #[test]
    fn what_transformers_gives_a_template_is_there() {
        let cases = [
            ("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024"),
            (
                "{{ bos_token }}{{ eos_token }}{{ additional_special_tokens[0] }}",
                "<s><x>",
            ),
            (
                "{{ tools }}{{ tools is none }}{{ documents is defined }}",
                "NoneTrueTrue",
            ),
            (
                "{% for m in messages %}{% if loop.last %}{% break %}{% endif %}\n{{ m.role }}{% endfor %}",
                "user",
            ),
            (
                "{% for m in messages %}{% if loop.first %}{% continue %}{% endif %}{{ m['role'] }}{% endfor %}",
                "assistant",
            ),
            (
                "{{ messages[0].content.split('<')[-1].lstrip('b>') }}",
                " & 'c'",
            ),
            ("  {% if true %}\n x\n  {% endif %}\ny", " x\ny"),
            (
                "a {%- generation -%} b {%- endgeneration %} c {% generation %}\nd{% endgeneration %}",
                "ab c d",
            ),
            ("{{ '{% generation' }}", "{% generation"),
            (
                "{{ messages[1:] | length }}{{ add_generation_prompt }}",
                "1True",
            ),
        ];
        for (source, wanted) in cases {
            assert_eq!(render(source).as_deref(), Ok(wanted), "{source}");
        }
    }

    #[test]
    fn a_template_that_fails_says_why_and_what_to_do() {
        let error = render("{{ raise_exception('no such role') }}").unwrap_err();
        assert!(
            error.contains("no such role") && error.contains("--raw"),
            "{error}"
        );
        for broken in [
            "{% if %}",
            "{{ 1 + }}",
            "{{ nothing.at.all }}",
            "{{ strftime_now('%Q') }}",
        ] {
            assert!(render(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_template_that_grows_without_end_is_given_up() {
        let escapes = "{% set ns = namespace(s='\"') %}{% for i in range(80) %}\
                       {% set ns.s = ns.s | tojson %}{% endfor %}";
        let nests = "{% set ns = namespace(s=[]) %}{% for i in range(300) %}\
                     {% set ns.s = [ns.s] %}{% endfor %}{{ ns.s | tojson }}";
        let deepens = "{% set ns = namespace(s=[]) %}{% for i in range(99) %}\
                       {% for j in range(99999) %}{% set ns.s = [ns.s] %}{% endfor %}{% endfor %}";
        let shares = "{% set ns = namespace(s=[]) %}{% for i in range(60) %}\
                      {% set ns.s = [ns.s, ns.s] %}{% endfor %}{{ ns.s | tojson }}";
        let widens = "{% for i in range(99999) %}{{ strftime_now('%99999d') }}{% endfor %}";
        for endless in [escapes, nests, deepens, shares, widens] {
            assert!(render(endless).is_err(), "{endless}");
        }
        let chain = |operator: &str, length| format!("{{{{ a{} }}}}", operator.repeat(length));
        let long = render(&chain("~a", 10_000_000)).unwrap_err();
        assert!(long.contains("bytes, wanted at most 65536"), "{long}");
        for operator in ["~a", "-a", " and a", " is a", " not in a", "<a"] {
            let deep = render(&chain(operator, 6_500)).unwrap_err();
            assert!(deep.contains("operators, wanted at most 128"), "{deep}");
        }
        let hidden = format!("{{{{ {{'}}}}': {{}}}}{} }}}}", "~'}}'~a".repeat(100));
        let hidden = render(&hidden).unwrap_err();
        assert!(hidden.contains("has 200 operators"), "{hidden}");
    }

    #[test]
    fn what_is_within_the_limits_neither_overflows_nor_takes_long() {
        let begun = std::time::Instant::now();
        // No operators, and as deep as a template is long.
        for deep in [".b", "|b", "[b]", "()"] {
            let levels = (MAX_SOURCE_BYTES - 10) / deep.len();
            assert!(render(&format!("{{{{ a{} }}}}", deep.repeat(levels))).is_err());
        }
        let branches = "{%elif a%}".repeat(6_000);
        assert_eq!(
            render(&format!("{{%if a%}}{branches}{{%endif%}}")).as_deref(),
            Ok("")
        );
        // Lists that are folded for each operator around them, in as many tags as there may be.
        let lists = "+[1]*999".repeat(MAX_TAG_OPERATORS / 4);
        let tag = format!(
            "{{% set b = [1]{lists}{} %}}",
            "+b".repeat(MAX_TAG_OPERATORS / 2)
        );
        let tags = tag.repeat(MAX_SOURCE_BYTES / tag.len());
        assert!(render(&tags).is_err());
        let negated = format!("{{{{ {}a }}}}", "-".repeat(MAX_TAG_OPERATORS));
        let many = negated.repeat(MAX_SOURCE_BYTES / negated.len());
        assert!(render(&many).is_err());
        assert!(begun.elapsed().as_secs() < 60, "{:?}", begun.elapsed());
    }
}
