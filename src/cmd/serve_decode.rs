//! `serve-decode`: the decode node, until Ctrl-C.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::cli::ServeDecodeArgs;
use crate::environment::{Environment, process_rss_bytes, reset_peak_rss};
use crate::failure::Failure;
use crate::local_peer::LISTENING;
use crate::model::cache_pool::CachePool;
use crate::model::engine::Engine;
use crate::node;
use crate::node::compute::Compute;
use crate::node::decode::{DecodeNode, Served, ServedRequest, serve};
use crate::node::reception::Sessions;
use crate::preparation;
use crate::terminal::{self, Terminal};
use crate::wire::socket;

/// Characters of an answer that are shown.
const SHOWN_CHARS: usize = 160;

/// Listens and serves.
pub fn run(
    args: &ServeDecodeArgs,
    quiet: bool,
    threads: usize,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let token = preparation::token(&args.token)?;
    let runtime = super::runtime()?;
    // The port is taken before the model is loaded, so that a port in use costs nothing.
    let listener = runtime.block_on(socket::bind(&args.listen))?;
    let address = listener
        .local_addr()
        .context("cannot read the address back")?;
    if !socket::is_loopback(&address) {
        preparation::demand_token(token.as_ref(), &args.token, &address.to_string())?;
    }
    let network_cores = args.socket.network_cores.as_ref();
    let mut environment = Environment::capture(threads);
    environment.network_cores = network_cores.cloned();
    let (engine, introduction) = match args.link_only {
        true => (None, node::introduction_for_link(&environment)?),
        false => {
            let file = preparation::model_file(&args.model, terminal)?;
            let engine = preparation::load(&file, &args.model, terminal)?.engine;
            check_layer(args.corrupt_layer, &engine)?;
            let introduction = node::introduction(&engine, &environment)?;
            (Some(engine), introduction)
        }
    };
    let printer = engine.clone();
    let compute = engine.map(Compute::start).transpose()?;
    super::keep_network_on(network_cores)?;
    // What loading took for a while is not part of serving.
    reset_peak_rss();
    let node = Arc::new(DecodeNode {
        introduction,
        compute,
        loaded_bytes: process_rss_bytes(),
        pool: CachePool::new(node::cache_limit_bytes(&environment)),
        token,
        congestion_control: args.socket.congestion_control.clone(),
        corrupt_layer: args.corrupt_layer,
        sessions: Sessions::default(),
        admitted: AtomicU64::new(0),
        observer: Box::new(move |served| {
            if !quiet {
                // A closed stdout must not stop a server.
                let _ = terminal::print(&describe(&served, printer.as_deref()));
            }
        }),
    });
    runtime.block_on(async {
        // First of all: whoever reads the address may want to stop the node at once.
        let shutdown = shutdown(args.until_stdin_closes).context("cannot listen for signals")?;
        terminal::print(&format!("{LISTENING}{address}"))?;
        terminal.line("stop with Ctrl-C");
        (serve(listener, node, shutdown).await).context("cannot serve")
    })?;
    terminal.line("stopped");
    Ok(())
}

fn check_layer(layer: Option<usize>, engine: &Engine) -> Result<(), Failure> {
    let n_layers = engine.shape().n_layers;
    match layer {
        Some(layer) if layer >= n_layers => Err(Failure::Setting(format!(
            "--corrupt-layer {layer} does not exist: the model has layers 0 to {}",
            n_layers - 1
        ))),
        _ => Ok(()),
    }
}

/// Resolves at Ctrl-C or SIGTERM, or when the parent lets go of stdin. Signals count from now on.
fn shutdown(until_stdin_closes: bool) -> std::io::Result<impl Future<Output = ()>> {
    let (closed, stdin_closed) = tokio::sync::oneshot::channel();
    let signals = match until_stdin_closes {
        true => {
            // A plain thread: a blocking read on the runtime's pool would hold up its end.
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
                let _ = closed.send(());
            });
            None
        }
        false => Some((
            signal(SignalKind::interrupt())?,
            signal(SignalKind::terminate())?,
        )),
    };
    Ok(async move {
        let Some((mut interrupt, mut terminate)) = signals else {
            let _ = stdin_closed.await;
            return;
        };
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// What the notebook's decode node prints, with the figures put right.
fn describe(served: &Served, engine: Option<&Engine>) -> String {
    match served {
        Served::Connected { peer, host } => format!("{peer} connected ({host})"),
        Served::Disconnected { peer, error: None } => format!("{peer} left"),
        Served::Disconnected {
            peer,
            error: Some(error),
        } => format!("{peer} dropped: {error}"),
        Served::Request(request) => describe_request(request, engine),
    }
}

fn describe_request(request: &ServedRequest, engine: Option<&Engine>) -> String {
    let ms = |ns: u64| ns as f64 / 1e6;
    let received = match request.kv_bytes {
        0 => "prefilled here".to_string(),
        bytes => format!(
            "KV cache {:.2} MB, last piece {:.1} ms after the first",
            bytes as f64 / 1e6,
            ms(request.receive_ns)
        ),
    };
    let steps = request.tokens.len().saturating_sub(1);
    let rate = match request.decode_ns {
        0 => String::new(),
        ns => format!(", {:.1} tokens/s", steps as f64 / (ns as f64 / 1e9)),
    };
    let decoded = engine.and_then(|engine| engine.tokenizer.decode(&request.tokens).ok());
    let text = decoded.unwrap_or_default();
    let text: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    let shown: String = text.chars().take(SHOWN_CHARS).collect();
    let more = if shown.len() < text.len() { "…" } else { "" };
    format!(
        "{} request {}: {} prompt tokens, {received}; {steps} tokens decoded in {:.1} ms{rate}\n  \
         {shown}{more}",
        request.peer,
        request.number,
        request.prompt_tokens,
        ms(request.decode_ns),
    )
}
