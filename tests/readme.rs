//! What the README takes from elsewhere: what the tool prints of the committed sample on a terminal,
//! and the models that the code runs. Written anew by
//! `DISAGG_WRITE_README=1 cargo test --release --locked --test readme`.

use std::path::{Path, PathBuf};
use std::sync::Mutex;

use disagg_bench::metrics::Record;
use disagg_bench::model::architecture::ARCHITECTURES;
use disagg_bench::report::prose::folded;
use disagg_bench::report::to_terminal;

const SAMPLE: &str = "reports/loopback-smollm2-135m";

/// Tests of one process, which may write the same file.
static README: Mutex<()> = Mutex::new(());

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

/// Demands that this text stands between the README's markers of that name, or puts it there.
fn is_shown(marker: &str, wanted: &str) {
    let _alone = README.lock().unwrap_or_else(|e| e.into_inner());
    let path = root().join("README.md");
    let readme = std::fs::read_to_string(&path).unwrap();
    let (start, end) = (
        format!("<!-- {marker} -->\n"),
        format!("<!-- /{marker} -->\n"),
    );
    let (before, rest) = readme.split_once(&start).expect("the README has the place");
    let (shown, after) = rest.split_once(&end).expect("the place ends");
    if std::env::var_os("DISAGG_WRITE_README").is_some() {
        std::fs::write(&path, [before, &start, wanted, &end, after].concat()).unwrap();
        return;
    }
    assert_eq!(
        shown, wanted,
        "write it anew: DISAGG_WRITE_README=1 cargo test --release --locked --test readme"
    );
}

#[test]
fn the_readme_shows_the_sample_as_it_is_printed() {
    let record = Record::read(&root().join(SAMPLE).join("run.json")).unwrap();
    let processor = record.environment.prefill.processor.model.as_deref();
    let output = format!(
        "```text\n{}\n```\n\n(`{}` on {} cores of {}, revision {}.)\n",
        folded(&to_terminal(&record)),
        record.run.argv.join(" "),
        record.environment.prefill.processor.usable_cores,
        processor.unwrap_or("an unknown processor"),
        record.environment.prefill.build.git_revision,
    );
    is_shown("output", &output);
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    assert!(
        readme.contains(&format!("]({SAMPLE}/phases.svg)")),
        "the README shows the sample's chart"
    );
}

#[test]
fn the_readme_lists_the_architectures_that_run() {
    let mut table = String::from(
        "| models | class in `config.json` | in GGUF files | beside the common layer |\n\
         |---|---|---|---|\n",
    );
    for architecture in &ARCHITECTURES {
        let parts = [
            (architecture.has_qkv_bias, "biases of Q, K and V"),
            (architecture.has_qk_norm, "norms of Q and K heads"),
        ];
        let more: Vec<&str> = (parts.iter().filter(|(has, _)| *has))
            .map(|(_, part)| *part)
            .collect();
        table += &format!(
            "| {} | `{}` | `{}` | {} |\n",
            architecture.models.join(", "),
            architecture.classes.join("`, `"),
            architecture.gguf_name,
            more.join(", "),
        );
    }
    is_shown("architectures", &table);
}
