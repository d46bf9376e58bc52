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
    let Configuration {
        mut cli,
        mut settings,
    } = configuration;
    if let Command::Split(args) = &mut cli.command {
        cmd::split::share_out_cores(args)?;
    }
    let network_cores = preparation::network_cores(&mut cli.command)?;
    let terminal = Terminal::new(cli.global.quiet);
    let model = match &cli.command {
        Command::Baseline(args) => Some(&args.model),
        Command::ServeDecode(args) => Some(&args.model),
        Command::RunPrefill(args) => Some(&args.model),
        Command::Split(args) => Some(&args.model),
        Command::Certificate(_)
        | Command::Compare(_)
        | Command::Completions(_)
        | Command::Link(_)
        | Command::Models(_)
        | Command::Project(_)
        | Command::Report(_)
        | Command::Schema => None,
    };
    let cores = model.and_then(|model| model.cores.as_ref());
    let threads = preparation::threads(model.and_then(|model| model.threads), cores);
    let decode_cores = match &cli.command {
        Command::Split(args) => args.decode_cores.as_ref(),
        _ => None,
    };
    let in_effect = [
        ("threads", Some(threads.into())),
        ("cores", cores.map(|list| list.to_string().into())),
        (
            "decode_cores",
            decode_cores.map(|list| list.to_string().into()),
        ),
        (
            "network_cores",
            network_cores.map(|list| list.to_string().into()),
        ),
    ];
    for (name, value) in in_effect {
        if let (Some(setting), Some(value)) = (settings.get_mut(name), value) {
            setting.value = value;
        }
    }
    if cli.global.show_config {
        return terminal::print(&disagg_bench::report::settings(&settings));
    }
    fix_pools(threads);
    if let Some(cores) = cores {
        preparation::pin(cores)?;
    }
    match &cli.command {
        Command::Baseline(args) => cmd::baseline::run(args, settings, threads, &terminal),
        Command::ServeDecode(args) => {
            cmd::serve_decode::run(args, cli.global.quiet, threads, &terminal)
        }
        Command::RunPrefill(args) => cmd::run_prefill::run(args, settings, threads, &terminal),
        Command::Certificate(args) => cmd::certificate::run(args, &terminal),
        Command::Compare(args) => cmd::compare::run(args),
        Command::Completions(args) => cmd::completions::run(args),
        Command::Link(args) => cmd::link::run(args, threads, &terminal),
        Command::Models(args) => cmd::models::run(args, &terminal),
        Command::Project(args) => cmd::project::run(args),
        Command::Report(args) => cmd::report::run(args, &terminal),
        Command::Schema => cmd::schema::run(),
        Command::Split(args) => cmd::split::run(args, settings, threads, &terminal),
    }
}

/// Turns that an idle worker of candle's pool spins before it sleeps. Candle's own are 25,000, spun
/// on a core that the network threads of both nodes need just after prefill; with fewer, prefill and
/// decode showed no difference above their noise.
const POOL_SPIN_LIMIT: &str = "1000";

/// Candle's pools take their size and patience from the environment when they are first used, and
/// offer no other way. A patience that the user has set stays.
#[expect(
    unsafe_code,
    reason = "no other thread exists yet that could read the environment"
)]
fn fix_pools(threads: usize) {
    let threads = threads.to_string();
    let mut values = vec![
        ("RAYON_NUM_THREADS", threads.as_str()),
        ("CANDLE_NUM_THREADS", threads.as_str()),
    ];
    let spin_limit = "CANDLE_BARRIER_POOL_SPIN_LIMIT";
    if std::env::var_os(spin_limit).is_none() {
        values.push((spin_limit, POOL_SPIN_LIMIT));
    }
    for (name, value) in values {
        // SAFETY: called from `main` before any thread is started.
        unsafe { std::env::set_var(name, value) };
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
