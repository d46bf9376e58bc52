//! `link`: a sweep of KV-shaped payloads over a link, without a model.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;

use super::split::remote_peer_with;
use crate::cli::{Format, LinkCommandArgs};
use crate::environment::{Environment, NetworkInterface, carrying_interface};
use crate::experiment::now;
use crate::failure::Failure;
use crate::link::{
    Evidence, Fit, LeftOut, Observed, Row, Sweep, Times, causes, ceiling_gbps, sentence,
};
use crate::local_peer::{self, LocalPeer, Placing};
use crate::metrics::SCHEMA_VERSION;
use crate::model::cache_pool::{CachePool, Pooled};
use crate::model::published::{self, PublishedShape};
use crate::node;
use crate::node::observing::Watch;
use crate::node::prefill::{Connection, Patience, Peer};
use crate::node::probing::{CacheShape, filled, is_refusal, timed};
use crate::preparation;
use crate::terminal::{Task, Terminal};
use crate::wire::MAX_PIECE_BYTES;
use crate::wire::message::{Introduction, Probe};

/// Step of the kernel's counters of what a connection waited for.
const KERNEL_STEP_MS: f64 = 4.0;

/// Round trips whose smallest is the link's.
const ROUND_TRIPS: u64 = 32;

/// Sweeps sizes, streams and piece sizes and says what they mean.
pub fn run(args: &LinkCommandArgs, threads: usize, terminal: &Terminal) -> anyhow::Result<()> {
    let shape = shape(&args.shape)?;
    check_pieces(args, shape)?;
    let network_cores = args.socket.network_cores.as_ref();
    let mut environment = Environment::capture(threads);
    environment.network_cores = network_cores.cloned();
    let introduction = node::introduction_for_link(&environment)?;
    preparation::demand_peer(&args.identity, args.peer.as_deref())?;
    let pair = args.tls.then(preparation::Pair::new).transpose()?;
    let congestion = args.socket.congestion_control.as_deref();
    let (mut peer, local) = match &args.peer {
        Some(address) => (
            remote_peer_with(
                address,
                &args.token,
                &args.identity,
                &args.socket,
                &args.retry,
                args.bind.as_deref(),
                1,
            )?,
            None,
        ),
        None => {
            let mut local = LocalPeer::start_for_link(Placing {
                network_cores: local_peer::network_cores(network_cores, None, None)
                    .1
                    .as_ref(),
                congestion_control: congestion,
                tls: pair.as_ref().map(|pair| &pair.decode),
                ..Placing::default()
            })?;
            let ours = pair
                .as_ref()
                .map(|pair| preparation::transport(&pair.prefill));
            let peer = Peer {
                address: local.address()?,
                token: None,
                transport: ours.transpose()?.unwrap_or_default(),
                congestion_control: congestion.map(str::to_owned),
                streams: 1,
                source: None,
                retry_for: Duration::ZERO,
                patience: Patience::USUAL,
            };
            (peer, Some(local))
        }
    };
    let combinations = args.sizes.len() * args.streams.len() * args.piece_sizes.len();
    let task = terminal.task("measuring", combinations as u64);
    let mut sweeping = Sweeping {
        args,
        shape: CacheShape {
            n_layers: shape.n_layers(),
            row_bytes: shape.row_bytes() as u32,
        },
        peer: &mut peer,
        introduction: &introduction,
        pool: CachePool::new(node::cache_limit_bytes(&environment)),
        task: &task,
        interfaces: &environment.network_interfaces,
        rows: Vec::new(),
        left_out: Vec::new(),
        best: None,
    };
    let runtime = super::runtime()?;
    super::keep_network_on(network_cores)?;
    let measured = runtime.block_on(async {
        tokio::select! {
            measured = sweeping.run() => measured,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                Err(Failure::Interrupted.into())
            }
        }
    });
    drop((task, local));
    let mut sweep = measured?;
    sweep.git_revision = environment.build.git_revision;
    sweep.shape = shape.model.clone();
    let text = match args.output.format {
        Format::Table => sweep.to_terminal(),
        Format::Json => serde_json::to_string_pretty(&sweep)?,
        other => {
            return Err(Failure::Setting(format!(
                "--format {other:?} is not for link: choose table or json"
            ))
            .into());
        }
    };
    args.output.put(&text)
}

fn shape(name: &str) -> Result<&'static PublishedShape, Failure> {
    published::find(name).ok_or_else(|| {
        let known: Vec<&str> = published::all().iter().map(|s| s.model.as_str()).collect();
        Failure::Setting(format!(
            "--shape {name} is not known, these are: {}",
            known.join(", ")
        ))
    })
}

fn check_pieces(args: &LinkCommandArgs, shape: &PublishedShape) -> Result<(), Failure> {
    let fits = shape.row_bytes()..=MAX_PIECE_BYTES;
    match args.piece_sizes.iter().find(|size| !fits.contains(size)) {
        Some(size) => Err(Failure::Setting(format!(
            "--piece-sizes {size}: a piece of {} takes {} to {MAX_PIECE_BYTES} bytes",
            shape.model,
            shape.row_bytes()
        ))),
        None => Ok(()),
    }
}

/// A sweep under way.
struct Sweeping<'a> {
    args: &'a LinkCommandArgs,
    shape: CacheShape,
    peer: &'a mut Peer,
    introduction: &'a Introduction,
    pool: Arc<CachePool>,
    task: &'a Task,
    interfaces: &'a [NetworkInterface],
    rows: Vec<Row>,
    left_out: Vec<LeftOut>,
    /// The fastest row so far that takes long enough, and what was seen meanwhile.
    best: Option<(Row, Observed)>,
}

impl Sweeping<'_> {
    async fn run(&mut self) -> anyhow::Result<Sweep> {
        self.peer.streams = 1;
        let mut connection = Connection::open(self.peer, self.introduction).await?;
        let round_trips = connection.round_trips(ROUND_TRIPS).await?;
        let socket = connection.facts().clone();
        let peer_limit_bytes = connection.peer().limits.max_cache_bytes;
        drop(connection);
        for size in &self.args.sizes {
            self.size(self.shape.probe(*size), peer_limit_bytes).await?;
        }
        let Some((best, observed)) = self.best.take() else {
            let last = self
                .left_out
                .last()
                .map(|left_out| left_out.reason.as_str());
            let reason = last.unwrap_or("give --sizes, --streams and --piece-sizes");
            return Err(Failure::Setting(format!("nothing was measured: {reason}")).into());
        };
        let interface = carrying_interface(&socket);
        let causes = causes(&Evidence {
            gbps: best.gbps.median,
            seen: &observed,
            socket: &socket,
            interface: interface.as_ref(),
            interfaces: self.interfaces,
        });
        let rows = std::mem::take(&mut self.rows);
        let idle = self.args.idle_seconds;
        Ok(Sweep {
            schema_version: SCHEMA_VERSION,
            argv: std::env::args_os()
                .map(|a| a.to_string_lossy().into_owned())
                .collect(),
            git_revision: String::new(),
            measured_at: now(),
            shape: String::new(),
            kv_bytes_per_token: self.shape.bytes_per_token(),
            min_round_trip_us: round_trips.into_iter().min().unwrap_or(0) as f64 / 1e3,
            idle_gap_ms: (!idle.is_zero()).then_some(idle.as_millis() as u64),
            ceiling_gbps: ceiling_gbps(&rows),
            fits: (self.args.streams.iter())
                .filter_map(|n| Fit::of_rows(&rows, *n))
                .collect(),
            limit: sentence(&causes),
            causes,
            interface,
            transport: self.peer.transport.name().into(),
            left_out: std::mem::take(&mut self.left_out),
            observed,
            socket,
            rows,
        })
    }

    /// All combinations of one size.
    async fn size(&mut self, probe: Probe, peer_limit_bytes: u64) -> anyhow::Result<()> {
        let bytes = self.shape.bytes_per_token() * u64::from(probe.tokens);
        let mut piece_sizes = self.args.piece_sizes.clone();
        piece_sizes.sort_unstable();
        // Two limits can cut a small cache into the same pieces: that is one row.
        piece_sizes.dedup_by_key(|size| self.shape.pieces(probe.tokens, *size));
        let cache = match bytes > peer_limit_bytes {
            true => Err(format!(
                "the decode node takes caches of up to {peer_limit_bytes} bytes"
            )),
            false => filled(&self.pool, probe).map_err(|full| full.to_string()),
        };
        for &streams in &self.args.streams {
            for (at, &piece_bytes) in piece_sizes.iter().enumerate() {
                let pieces = self.shape.pieces(probe.tokens, piece_bytes);
                self.task
                    .now(&format!("measuring {bytes} bytes x {streams}"));
                let row = match (&cache, self.takes_too_long(bytes, streams)) {
                    (Err(reason), _) => Err(reason.clone()),
                    (_, Some(reason)) => Err(reason),
                    (Ok(cache), None) => {
                        let idles = at + 1 == piece_sizes.len();
                        self.row(streams, cache, probe, piece_bytes, idles).await?
                    }
                };
                match row {
                    Ok(row) => self.rows.push(row),
                    Err(reason) => self.left_out.push(LeftOut {
                        bytes,
                        streams,
                        pieces,
                        reason,
                    }),
                }
                self.task.step();
            }
        }
        Ok(())
    }

    /// Why a combination is not worth the time, going by the largest smaller one.
    fn takes_too_long(&self, bytes: u64, streams: u32) -> Option<String> {
        let smaller = (self.rows.iter()).filter(|r| r.streams == streams && r.bytes < bytes);
        let known = smaller.max_by_key(|row| row.bytes)?;
        let seconds = known.transfer_ms.median / 1e3 * bytes as f64 / known.bytes as f64;
        let budget = self.args.seconds_per_row.as_secs_f64();
        (2.0 * seconds > budget).then(|| {
            format!(
                "a transfer would take about {seconds:.1} s, and two have to fit into \
                 --seconds-per-row {budget}"
            )
        })
    }

    /// One combination over new connections, or why the decode node does not take it.
    async fn row(
        &mut self,
        streams: u32,
        cache: &Pooled,
        probe: Probe,
        piece_bytes: u64,
        idles: bool,
    ) -> anyhow::Result<Result<Row, String>> {
        self.peer.streams = streams;
        let mut connection = Connection::open(self.peer, self.introduction).await?;
        let started = Instant::now();
        let first = match timed(&mut connection, cache, probe, piece_bytes).await {
            Ok(first) => first,
            Err(error) if is_refusal(&error) => return Ok(Err(error.to_string())),
            Err(error) => return Err(error),
        };
        let mut times = Times {
            cold_ns: first.busy_ns,
            ..Times::default()
        };
        let mut watch = Watch::start(&connection);
        let mut longest = Duration::ZERO;
        for repeat in 0..self.args.repeats {
            if repeat > 0 && started.elapsed() + longest > self.args.seconds_per_row {
                break;
            }
            let sent_at = Instant::now();
            let sent = timed(&mut connection, cache, probe, piece_bytes).await?;
            longest = longest.max(sent_at.elapsed());
            times.warm_ns.push(sent.busy_ns);
            watch.saw(sent);
        }
        let same_machine = connection.peer().node.machine == self.introduction.node.machine;
        let observed = watch.end(&connection, same_machine);
        if idles && !self.args.idle_seconds.is_zero() {
            for repeat in 0..self.args.idle_repeats {
                tokio::time::sleep(self.args.idle_seconds).await;
                let sent = timed(&mut connection, cache, probe, piece_bytes).await?;
                match repeat {
                    0 => times.after_idle_ns = Some(sent.busy_ns),
                    _ => times.more_after_idle_ns.push(sent.busy_ns),
                }
            }
        }
        let row = Row::of(first.bytes, streams, first.pieces, times)
            .context("--repeats must be at least 1")?;
        // The kernel counts what it waited for in steps: of shorter transfers it knows little.
        let rank = |row: &Row| (row.transfer_ms.median >= KERNEL_STEP_MS, row.gbps.median);
        if (self.best.as_ref()).is_none_or(|(best, _)| rank(best) < rank(&row)) {
            self.best = Some((row.clone(), observed));
        }
        Ok(Ok(row))
    }
}
