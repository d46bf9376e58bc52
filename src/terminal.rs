//! What the user sees while something takes time: bars on a terminal, sparse lines elsewhere.
//! All of it goes to stderr; stdout belongs to results.

use std::cell::RefCell;
use std::io::{IsTerminal, Write};
use std::time::Duration;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::report::prose::folded;

/// How much is said on stderr.
#[derive(Clone, Copy, Debug)]
pub struct Terminal {
    quiet: bool,
    bars: bool,
}

impl Terminal {
    /// Bars where stderr is a terminal, lines where it is not, nothing if `quiet`.
    pub fn new(quiet: bool) -> Self {
        Self {
            quiet,
            bars: !quiet && std::io::stderr().is_terminal(),
        }
    }

    /// One line to the user.
    pub fn line(&self, text: &str) {
        if !self.quiet {
            say(text);
        }
    }

    /// Progress of a fetch.
    pub fn fetch(&self) -> crate::model::source::Progress {
        match (self.quiet, self.bars) {
            (true, _) => crate::model::source::Progress::Quiet,
            (false, true) => crate::model::source::Progress::Bar,
            (false, false) => crate::model::source::Progress::Lines,
        }
    }

    /// A task of `total` steps.
    pub fn task(&self, what: &'static str, total: u64) -> Task {
        let bar = match self.bars {
            true => ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr()),
            false => ProgressBar::hidden(),
        };
        let style =
            ProgressStyle::with_template("{msg:<28} {bar:24} {pos}/{len} {elapsed} ETA {eta}");
        // The template is a constant that indicatif accepts.
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        if self.bars {
            bar.enable_steady_tick(Duration::from_millis(250));
        } else {
            self.line(&format!("{what} …"));
        }
        Task {
            bar,
            terminal: *self,
            last: RefCell::new(what.to_string()),
        }
    }
}

/// Writes a line to stderr, folded on a terminal. A closed stderr must not end the program, as
/// `eprintln!` would.
pub fn say(text: &str) {
    let mut stderr = std::io::stderr();
    let _ = match stderr.is_terminal() {
        true => writeln!(stderr, "{}", folded(text)),
        false => writeln!(stderr, "{text}"),
    };
}

/// Writes a result for people to stdout: folded on a terminal, whole lines for what searches them.
pub fn show(text: &str) -> anyhow::Result<()> {
    match std::io::stdout().is_terminal() {
        true => print(&folded(text)),
        false => print(text),
    }
}

/// Writes a result to stdout. A reader that went away is no failure: it had enough.
pub fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = std::io::stdout().lock();
    let written = writeln!(stdout, "{text}").and_then(|()| stdout.flush());
    match written {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("cannot write to stdout"),
    }
}

/// A task under way; its bar disappears with it.
pub struct Task {
    bar: ProgressBar,
    terminal: Terminal,
    last: RefCell<String>,
}

impl Task {
    /// What is being done now.
    pub fn now(&self, what: &str) {
        if *self.last.borrow() == what {
            return;
        }
        *self.last.borrow_mut() = what.to_string();
        if !self.terminal.bars {
            self.terminal.line(&format!("{what} …"));
        }
        self.bar.set_message(what.to_string());
    }

    /// One more step is done.
    pub fn step(&self) {
        self.bar.inc(1);
        // How many steps there are is not always known before.
        let done = self.bar.position();
        self.bar
            .update(|state| state.set_len(state.len().unwrap_or(0).max(done)));
    }

    /// `done` of `total` layers are done.
    pub fn layers(&self, done: usize, total: usize) {
        self.bar.set_length(total as u64);
        self.bar.set_position(done as u64);
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}
