//! `link`: a sweep of KV-shaped payloads over a link, without a model.

use std::time::{Duration, Instant};

use super::split::remote_peer_with;
use crate::cli::{Format, LinkCommandArgs};
use crate::environment::Environment;
use crate::experiment::now;
use crate::failure::Failure;
use crate::link::{Fit, Observed, Row, Sweep, ceiling_gbps, limit};
use crate::local_peer::LocalPeer;
use crate::metrics::SCHEMA_VERSION;
use crate::model::cache_pool::{CachePool, Pooled};
use crate::model::published::{self, PublishedShape};
use crate::node;
use crate::node::prefill::{Connection, Peer};
use crate::node::probing::{CacheShape, filled, timed};
use crate::stats::Figure;
use crate::terminal::{Task, Terminal};
use crate::wire::MAX_PIECE_BYTES;
use crate::wire::message::{Introduction, Probe};

/// Round trips whose smallest is the link's.
const ROUND_TRIPS: u64 = 32;

/// Sweeps sizes, streams and piece sizes and says what they mean.
pub fn run(args: &LinkCommandArgs, threads: usize, terminal: &Terminal) -> anyhow::Result<()> {
    let shape = shape(&args.shape)?;
    check_pieces(args, shape)?;
    let environment = Environment::capture(threads);
    let introduction = node::introduction_for_link(&environment)?;
    let congestion = args.socket.congestion_control.as_deref();
    let (mut peer, local) = match &args.peer {
        Some(address) => (
            remote_peer_with(address, &args.token, &args.socket, 1)?,
            None,
        ),
        None => {
            let mut local = LocalPeer::start_for_link(congestion)?;
            let peer = Peer {
                address: local.address()?,
                token: None,
                congestion_control: congestion.map(str::to_owned),
                streams: 1,
            };
            (peer, Some(local))
        }
    };
    let combinations = args.sizes.len() * args.streams.len() * args.piece_sizes.len();
    let task = terminal.task("measuring", combinations as u64);
    let pool = CachePool::new(node::cache_limit_bytes(&environment));
    let measured = super::runtime()?.block_on(async {
        tokio::select! {
            measured = sweep(args, shape, &mut peer, &introduction, &pool, &task) => measured,
            signal = tokio::signal::ctrl_c() => {
                signal?;
                Err(Failure::Interrupted.into())
            }
        }
    });
    drop((task, local));
    let mut sweep = measured?;
    sweep.git_revision = environment.build.git_revision;
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

async fn sweep(
    args: &LinkCommandArgs,
    shape: &PublishedShape,
    peer: &mut Peer,
    introduction: &Introduction,
    pool: &std::sync::Arc<CachePool>,
    task: &Task,
) -> anyhow::Result<Sweep> {
    let mut rows: Vec<Row> = Vec::new();
    let mut best: Option<(f64, Observed)> = None;
    let mut facts = None;
    let mut min_round_trip_ns = u64::MAX;
    let cache_shape = CacheShape {
        n_layers: shape.n_layers(),
        row_bytes: shape.row_bytes() as u32,
    };
    for &streams in &args.streams {
        peer.streams = streams;
        let mut connection = Connection::open(peer, introduction).await?;
        let round_trips = connection.round_trips(ROUND_TRIPS).await?;
        min_round_trip_ns = round_trips.into_iter().fold(min_round_trip_ns, u64::min);
        facts.get_or_insert_with(|| connection.facts().clone());
        for &size in &args.sizes {
            let probe = cache_shape.probe(size);
            let cache = filled(pool, probe)?;
            for &piece_bytes in &args.piece_sizes {
                task.now(&format!("measuring {size} bytes x{streams}"));
                let before = connection.tcp_info();
                let (cpu, wall) = (cpu_time(), Instant::now());
                let row =
                    measure(args, streams, &mut connection, &cache, probe, piece_bytes).await?;
                let observed = Observed {
                    cpu_share: (cpu_time() - cpu).as_secs_f64() / wall.elapsed().as_secs_f64(),
                    before,
                    after: connection.tcp_info(),
                };
                if best
                    .as_ref()
                    .is_none_or(|(gbps, _)| row.gbps.median > *gbps)
                {
                    best = Some((row.gbps.median, observed));
                }
                // Two limits can cut a small cache into the same pieces: that is one row.
                let known =
                    |r: &Row| (r.bytes, r.streams, r.pieces) == (row.bytes, streams, row.pieces);
                if !rows.iter().any(known) {
                    rows.push(row);
                }
                task.step();
            }
        }
    }
    let (socket, (_, observed)) = facts.zip(best).ok_or_else(|| {
        Failure::Setting("nothing to measure: give --sizes, --streams and --piece-sizes".into())
    })?;
    Ok(Sweep {
        schema_version: SCHEMA_VERSION,
        argv: std::env::args_os()
            .map(|a| a.to_string_lossy().into_owned())
            .collect(),
        git_revision: String::new(),
        measured_at: now(),
        shape: shape.model.clone(),
        kv_bytes_per_token: cache_shape.bytes_per_token(),
        min_round_trip_us: min_round_trip_ns as f64 / 1e3,
        ceiling_gbps: ceiling_gbps(&rows),
        fits: args
            .streams
            .iter()
            .filter_map(|n| Fit::of_rows(&rows, *n))
            .collect(),
        limit: limit(&socket, &observed),
        observed,
        socket,
        rows,
    })
}

async fn measure(
    args: &LinkCommandArgs,
    streams: u32,
    connection: &mut Connection,
    cache: &Pooled,
    probe: Probe,
    piece_bytes: u64,
) -> anyhow::Result<Row> {
    let mut busy_ns = Vec::new();
    let (mut bytes, mut pieces) = (0, 0);
    for _ in 0..=args.repeats {
        let sent = timed(connection, cache, probe, piece_bytes).await?;
        (bytes, pieces) = (sent.bytes, sent.pieces);
        busy_ns.push(sent.busy_ns as f64);
    }
    let gbps = |ns: &f64| bytes as f64 * 8.0 / ns;
    let (first, warm) = (busy_ns[0], &busy_ns[1..]);
    let figure = |values: Vec<f64>| {
        Figure::of(&values).ok_or_else(|| anyhow::anyhow!("--repeats must be at least 1"))
    };
    Ok(Row {
        bytes,
        streams,
        pieces,
        transfer_ms: figure(warm.iter().map(|ns| ns / 1e6).collect())?,
        gbps: figure(warm.iter().map(gbps).collect())?,
        first_gbps: gbps(&first),
    })
}

/// CPU time that this process has used.
fn cpu_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
