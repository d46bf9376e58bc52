//! `report.html`: a report as one page that needs no network and no script.

use anyhow::Context;
use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, HtmlEscape, Value, context};

use super::document::{DOUBTS, Document};

/// How the page is put together and looks.
const TEMPLATE: &str = include_str!("page.html");

/// Writes a report down. All of it is escaped but the charts, whose texts are escaped where they
/// are drawn.
pub(super) fn written(document: &Document) -> anyhow::Result<String> {
    let mut environment = Environment::new();
    environment.set_auto_escape_callback(|_| AutoEscape::Html);
    environment.add_filter("prose", prose);
    let context = context! {
        document => Serde(document),
        doubts => DOUBTS,
    };
    (SyntaxConfig::builder().trim_blocks(true).build())
        .and_then(|syntax| {
            environment.set_syntax(syntax);
            environment.render_str(TEMPLATE, context)
        })
        .context("the page of this build is broken")
}

/// Escaped text, with what stands between backticks as code.
fn prose(text: &str) -> Value {
    let parts: Vec<&str> = text.split('`').collect();
    if parts.len().is_multiple_of(2) {
        return Value::from_safe_string(HtmlEscape(text).to_string());
    }
    let written = parts.iter().enumerate().map(|(i, part)| match i % 2 {
        0 => HtmlEscape(part).to_string(),
        _ => format!("<code>{}</code>", HtmlEscape(part)),
    });
    Value::from_safe_string(written.collect())
}

#[cfg(test)]
mod tests {
    use super::prose;
    use crate::metrics::Record;
    use crate::metrics::summary::Summary;
    use crate::report::document;
    use crate::report::fixture::{interference, record, usual_case};

    fn page(record: &Record) -> String {
        super::written(&document(record, &Summary::of(record))).unwrap()
    }

    #[test]
    fn the_page_has_all_that_the_report_has() {
        let mut record = record(vec![usual_case(128), usual_case(512)]);
        record.interference = Some(interference());
        record.run.profile = "debug".into();
        let page = page(&record);
        let at = |part: &str| {
            page.find(part)
                .unwrap_or_else(|| panic!("no {part} in {page}"))
        };
        let order = [
            "<h1>split is ",
            "<strong>capacity</strong>",
            "is a debug build",
            "<dl class=\"strip\">",
            "<svg ",
            "<figcaption>",
            "<h2>Interference</h2>",
            "every byte",
            "NDR 400 InfiniBand",
            "<h2>Environment</h2>",
            "Request start to second token",
            "disagg-bench split --peer 10.0.0.2:7600",
        ];
        let places: Vec<usize> = order.map(at).to_vec();
        assert!(places.is_sorted(), "{places:?}");
    }

    #[test]
    fn nothing_of_a_run_becomes_markup() {
        let hostile = "<script>alert(1)</script>\"'&";
        let mut case = usual_case(512);
        case.prompt = hostile.into();
        let mut record = record(vec![case]);
        record.model.name = hostile.into();
        record.run.argv = vec![hostile.into()];
        record.environment.prefill.host.hostname = hostile.into();
        record.run.error = Some(hostile.into());
        record.link.as_mut().unwrap().transport = hostile.into();
        let page = page(&record);
        assert!(!page.contains("<script"), "{page}");
        assert!(page.contains("&lt;script&gt;"), "{page}");
    }

    #[test]
    fn text_between_backticks_is_code_and_escaped_too() {
        let written = |text| prose(text).to_string();
        assert_eq!(
            written("run `a <b>` & c"),
            "run <code>a &lt;b&gt;</code> &amp; c"
        );
        assert_eq!(written("a lone ` <"), "a lone ` &lt;");
    }

    #[test]
    fn the_page_needs_nothing_else() {
        let page = page(&record(vec![usual_case(512)]));
        let rest = page.replace("xmlns=\"http://www.w3.org/2000/svg\"", "");
        for part in ["http:", "https:", "src=", "@import", "url(", "<script"] {
            let uses = rest
                .match_indices(part)
                .map(|(at, _)| &rest[at..(at + 40).min(rest.len())]);
            assert_eq!(uses.collect::<Vec<_>>(), Vec::<&str>::new(), "{part}");
        }
    }
}
