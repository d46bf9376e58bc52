//! Parse, dispatch, error chain, exit code.

use std::io::IsTerminal;
use std::process::ExitCode;

use disagg_bench::cli::Command;
use disagg_bench::config::{self, Configuration, Unusable};
use disagg_bench::failure::{self, exit_code};
use disagg_bench::terminal::{self, Terminal};
use disagg_bench::{cmd, preparation};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let argv: Vec<_> = std::env::args_os().collect();
    let variable = |name: &str| std::env::var(name).ok();
    let configuration = match config::resolve(&argv, variable, std::path::Path::new(".")) {
        Ok(configuration) => configuration,
        Err(Unusable::Usage(error)) => {
            let code = if error.use_stderr() {
                failure::USAGE
            } else {
                0
            };
            // Help into a closed pipe is no failure.
            let _ = error.print();
            return ExitCode::from(code);
        }
        Err(Unusable::File(error)) => return fail(&error.into()),
    };
    start_log(configuration.cli.global.verbose);
    match run(configuration) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    terminal::say(&format!("error: {error:#}"));
    ExitCode::from(exit_code(error))
}

fn run(configuration: Configuration) -> anyhow::Result<()> {
    let Configuration { cli, mut settings } = configuration;
    let terminal = Terminal::new(cli.global.quiet);
    let threads = preparation::threads(match &cli.command {
        Command::Baseline(args) => args.model.threads,
        Command::ServeDecode(args) => args.model.threads,
        Command::RunPrefill(args) => args.model.threads,
        Command::Split(args) => args.model.threads,
        Command::Link(_) | Command::Models(_) | Command::Project(_) => None,
    });
    if let Some(setting) = settings.get_mut("threads") {
        setting.value = threads.into();
    }
    if cli.global.show_config {
        return terminal::print(&disagg_bench::report::settings(&settings));
    }
    fix_threads(threads);
    match &cli.command {
        Command::Baseline(args) => cmd::baseline::run(args, settings, threads, &terminal),
        Command::ServeDecode(args) => {
            cmd::serve_decode::run(args, cli.global.quiet, threads, &terminal)
        }
        Command::RunPrefill(args) => cmd::run_prefill::run(args, settings, threads, &terminal),
        Command::Link(args) => cmd::link::run(args, threads, &terminal),
        Command::Models(args) => cmd::models::run(args, &terminal),
        Command::Project(args) => cmd::project::run(args),
        Command::Split(args) => cmd::split::run(args, settings, threads, &terminal),
    }
}

/// Candle's pools take their size from the environment when they are first used, and offer no
/// other way.
#[expect(
    unsafe_code,
    reason = "no other thread exists yet that could read the environment"
)]
fn fix_threads(threads: usize) {
    for name in ["RAYON_NUM_THREADS", "CANDLE_NUM_THREADS"] {
        // SAFETY: called from `main` before any thread is started.
        unsafe { std::env::set_var(name, threads.to_string()) };
    }
}

/// Logs go to stderr; `RUST_LOG` beats `-v`.
fn start_log(verbose: u8) {
    let level = ["warn", "disagg_bench=info", "disagg_bench=debug"][usize::from(verbose.min(2))];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none())
        .with_target(false)
        .init();
}
