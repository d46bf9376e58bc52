//! The README shows what the tool prints of the committed sample on a terminal, and its chart.
//! Written anew by `DISAGG_WRITE_README=1 cargo test --release --locked --test readme`.

use std::path::Path;

use disagg_bench::metrics::Record;
use disagg_bench::report::prose::folded;
use disagg_bench::report::to_terminal;

const SAMPLE: &str = "reports/loopback-smollm2-135m";
const START: &str = "<!-- output -->\n";
const END: &str = "<!-- /output -->\n";

/// What stands between the markers.
fn output(record: &Record) -> String {
    let processor = record.environment.prefill.processor.model.as_deref();
    format!(
        "```text\n{}\n```\n\n(`{}` on {} cores of {}, revision {}.)\n",
        folded(&to_terminal(record)),
        record.run.argv.join(" "),
        record.environment.prefill.processor.usable_cores,
        processor.unwrap_or("an unknown processor"),
        record.environment.prefill.build.git_revision,
    )
}

#[test]
fn the_readme_shows_the_sample_as_it_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let record = Record::read(&root.join(SAMPLE).join("run.json")).unwrap();
    let path = root.join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (before, rest) = readme
        .split_once(START)
        .expect("the README has a place for output");
    let (shown, after) = rest.split_once(END).expect("the place for output ends");
    assert!(
        after.contains(&format!("]({SAMPLE}/phases.svg)")),
        "the README shows the sample's chart"
    );
    let wanted = output(&record);
    if std::env::var_os("DISAGG_WRITE_README").is_some() {
        std::fs::write(&path, [before, START, &wanted, END, after].concat()).unwrap();
        return;
    }
    assert_eq!(
        shown, wanted,
        "write it anew: DISAGG_WRITE_README=1 cargo test --release --locked --test readme"
    );
}
