//! A model's chat template, rendered by minijinja to what jinja2 makes of it in transformers.
//!
//! Supported is what published templates use: `raise_exception`, `strftime_now`, `tojson` with
//! `indent`, `break` and `continue`, the methods of Python's strings and dicts, and `generation`
//! blocks. `tools` and `documents` are none.

use std::collections::BTreeMap;

use jiff::civil::DateTime;
use minijinja::value::{Value, ValueKind};
use minijinja::{Environment, Error, ErrorKind, escape_formatter};

use super::json::to_json;
use crate::model::ModelError;

/// What rendering a chat template may cost, in instructions or 64 bytes each: a template is a
/// program out of a file, and may loop. A conversation of a megabyte takes less than a tenth.
const TEMPLATE_FUEL: u64 = 1 << 21;

/// Stack that a template is rendered on: letting go of a list recurses into all that it nests, and
/// the fuel is enough for some hundred thousand levels.
const STACK_BYTES: usize = 256 << 20;

/// A template and the special tokens that it may name.
pub struct ChatTemplate {
    source: String,
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
            source: without_generation_tags(source),
            special,
        }
    }

    /// Renders `(role, content)` messages up to where the assistant's answer starts.
    pub fn render(&self, messages: &[(&str, &str)], now: DateTime) -> Result<String, ModelError> {
        std::thread::scope(|scope| {
            (std::thread::Builder::new().stack_size(STACK_BYTES))
                .spawn_scoped(scope, || self.render_here(messages, now))
                .map_err(|e| ModelError::ChatTemplate(format!("no thread for it: {e}")))?
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
                .map_err(|e| ModelError::ChatTemplate(e.to_string()))
        })
    }

    fn render_here(&self, messages: &[(&str, &str)], now: DateTime) -> Result<String, Error> {
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
        environment(now)?.render_str(&self.source, chat)
    }
}

/// As transformers sets jinja2 up.
fn environment(now: DateTime) -> Result<Environment<'static>, Error> {
    let mut environment = Environment::new();
    let syntax = (minijinja::syntax::SyntaxConfig::builder())
        .trim_blocks(true)
        .lstrip_blocks(true)
        .build()?;
    environment.set_syntax(syntax);
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
    }
}
