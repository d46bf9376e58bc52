//! Shows on stderr how a fetch goes on: a bar on a terminal, sparse lines elsewhere.

use std::io::{self, Write as _};
use std::path::Path;
use std::time::Duration;

use indicatif::{DecimalBytes, ProgressBar, ProgressStyle};

/// How a fetch shows itself on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// Nothing but warnings.
    Quiet,
    /// One line at the start and one at the end.
    Lines,
    /// A bar of the bytes that arrived; off a terminal the same as `Lines`.
    Bar,
}

/// What is fetched, as it is said.
pub(super) struct Fetching<'a> {
    pub(super) name: &'a str,
    /// What it is and where it comes from, for a line of its own.
    pub(super) source: &'a str,
    pub(super) bytes: u64,
}

/// What a fetch shows on stderr.
pub(super) struct FetchReport {
    bar: ProgressBar,
    name: String,
    is_quiet: bool,
}

impl FetchReport {
    pub(super) fn start(what: &Fetching, progress: Progress) -> Self {
        let bar = match progress {
            Progress::Bar => ProgressBar::new(what.bytes),
            Progress::Lines | Progress::Quiet => ProgressBar::hidden(),
        };
        let template =
            "{msg} [{bar:24}] {decimal_bytes}/{decimal_total_bytes} {decimal_bytes_per_sec} {eta}";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("=> "));
        }
        bar.set_message(format!("fetching {}", what.name));
        let report = Self {
            bar,
            name: what.name.to_owned(),
            is_quiet: progress == Progress::Quiet,
        };
        if !report.is_bar_visible() {
            let size = DecimalBytes(what.bytes);
            report.line(&format!("fetching {}, {size}", what.source));
        }
        report
    }

    /// False off a terminal, where indicatif draws nothing.
    pub(super) fn is_bar_visible(&self) -> bool {
        !self.bar.is_hidden()
    }

    pub(super) fn show_arrived(&self, bytes: u64) {
        // While pip moves the wheel it is there twice.
        let length = self.bar.length().unwrap_or(bytes);
        self.bar.set_position(bytes.min(length));
    }

    pub(super) fn show_more(&self, bytes: u64) {
        self.show_arrived(self.bar.position().saturating_add(bytes));
    }

    pub(super) fn end(&self, path: &Path, elapsed: Duration) {
        self.bar.finish_and_clear();
        self.line(&format!(
            "fetched {} in {:.1} s: {}",
            self.name,
            elapsed.as_secs_f64(),
            path.display()
        ));
    }

    fn line(&self, text: &str) {
        if !self.is_quiet {
            // A closed stderr must not end the fetch, as `eprintln!` would.
            let _ = writeln!(io::stderr(), "{text}");
        }
    }
}
