//! `split`: the experiment, single and split arms on the same prompts.

use std::collections::BTreeMap;
use std::net::ToSocketAddrs;
use std::path::Path;
use std::time::Duration;

use crate::baseline::{self, Config};
use crate::cli::{LinkArgs, RetryArgs, SocketArgs, SplitArgs, TlsArgs, TokenArgs};
use crate::cores;
use crate::environment::{Environment, carrying_interface, same_bits_expected};
use crate::experiment::{Remote, Way, check_cores, check_scene, continued};
use crate::failure::Failure;
use crate::link::KeptFit;
use crate::local_peer::{LocalPeer, Placing, network_cores};
use crate::metrics::{LinkRecord, Record, Setting, Status};
use crate::node;
use crate::node::prefill::{Connection, Patience, Peer};
use crate::preparation::{self, OutputFolder, RUN_FILE};
use crate::report::number::count;
use crate::terminal::Terminal;
use crate::wire::message::Introduction;
use crate::wire::{Transport, socket};
use crate::workload::PlainText;

/// Runs both arms, against a decode node of its own unless a peer is given.
pub fn run(
    args: &SplitArgs,
    settings: BTreeMap<String, Setting>,
    threads: usize,
    terminal: &Terminal,
) -> anyhow::Result<()> {
    let interrupted = args.resume.as_deref().map(interrupted).transpose()?;
    let folder = match &args.resume {
        Some(run) => OutputFolder::existing(super::folder_of(run)),
        None => OutputFolder::of_new_run(args.run.out.as_deref(), "split")?,
    };
    let _claim = folder.claim()?;
    preparation::demand_peer(&args.link.tls, args.peer.as_deref())?;
    let kept_fit = kept_fit(&args.link)?;
    let decode_cores = args.decode_cores.as_ref();
    if let Some(cores) = decode_cores {
        let refused = |why| Failure::Setting(format!("--decode-cores {cores}: {why}"));
        cores::check(cores).map_err(refused)?;
    }
    let peer = (args.peer.as_deref())
        .map(|address| remote_peer(address, &args.link))
        .transpose()?;
    let file = preparation::model_file(&args.model, terminal)?;
    let congestion = args.link.socket.congestion_control.as_deref();
    let network_cores_here = args.link.socket.network_cores.as_ref();
    let decode_threads = match decode_cores {
        Some(cores) => preparation::threads(args.model.threads, Some(cores)),
        None => threads,
    };
    let nodes_here = if peer.is_some() { 1 } else { 2 };
    let checkpoint = preparation::open(&file, &args.model, nodes_here)?;
    let mut local = match &peer {
        Some(_) => None,
        None => {
            let ours = args.model.cores.as_ref();
            let (_, network_cores) = network_cores(network_cores_here, ours, decode_cores);
            let placing = Placing {
                cores: decode_cores,
                device: args.model.device,
                network_cores: network_cores.as_ref(),
                congestion_control: congestion,
                tls: None,
            };
            let weights = args.model.weights;
            Some(LocalPeer::start(
                &file.arguments(),
                weights,
                decode_threads,
                placing,
            )?)
        }
    };
    let loaded = preparation::load(&checkpoint, &file, &args.model, terminal)?;
    let prompts = preparation::prompts(&args.prompts, PlainText::Refused, &loaded.engine)?;
    if args.interference {
        check_scene(&loaded.engine, &prompts)?;
    }
    let mut environment = Environment::capture(threads);
    environment.network_cores = network_cores_here.cloned();
    environment.device = loaded.engine.device.clone();
    let introduction = node::introduction(&loaded.engine, &environment)?;
    let node = preparation::prefill_node(&loaded, &environment)?;
    let mut record = preparation::record(
        "split",
        settings,
        environment,
        &loaded,
        &args.request,
        args.run.seed,
    );
    let dtype = args.request.kv_dtype.to_string();
    let config = Config::of(&record, &dtype, args.request.chunk_tokens);
    let earlier = baseline::find(args.baseline.as_deref(), &config, &prompts, |why| {
        terminal.line(why);
    })?;
    let mut stand_in = None;
    if let Some((file, path, stands_in)) = &earlier {
        record.baseline = Some(file.used_by(&record, path, *stands_in));
        stand_in = stands_in.then_some(file);
    }
    let path = folder.join(RUN_FILE);
    let runtime = super::runtime()?;
    super::keep_network_on(network_cores_here)?;
    let outcome = runtime.block_on(async {
        let peer = match (peer, &mut local) {
            (Some(peer), _) => peer,
            (None, Some(child)) => Peer {
                address: child.address()?,
                token: None,
                transport: Transport::Tcp,
                congestion_control: congestion.map(str::to_owned),
                streams: args.link.streams,
                source: None,
                retry_for: Duration::ZERO,
                patience: Patience::USUAL,
            },
            (None, None) => unreachable!("without a peer a local one was started"),
        };
        let remote = connect(&peer, &introduction, kept_fit, &mut record).await?;
        if args.interference {
            check_cores(&record)?;
        }
        if let Some(interrupted) = interrupted {
            record = continued(interrupted, &record, &prompts)?;
        }
        let mut ways = split_ways(&args.link);
        if stand_in.is_none() {
            ways.push(Way::SingleHere);
            ways.extend(unlike(&record).then_some(Way::SingleThere));
        }
        let mut plan = preparation::plan(prompts, ways, &args.request, &args.run);
        plan.interference = args.interference;
        let remote = Some(remote);
        super::measure(&plan, &node, remote, stand_in, &mut record, &path, terminal).await
    });
    // The decode node ends before the results are shown.
    drop(local);
    super::conclude(&record, &folder, &args.run.output, outcome, terminal)
}

/// A run that has something left to be measured.
fn interrupted(run: &Path) -> Result<Record, Failure> {
    let record = super::read_run(run)?;
    match (record.run.command.as_str(), record.run.status) {
        ("split", Status::Complete) => Err(Failure::Setting(format!(
            "--resume {}: this run is complete, nothing is left to be measured: leave --resume out \
             for a new one",
            run.display()
        ))),
        ("split", _) => Ok(record),
        (other, _) => Err(Failure::Setting(format!(
            "--resume {}: this is a run of `{other}`, wanted one of `split`",
            run.display()
        ))),
    }
}

/// Gives both nodes cores of their own where the interference between them is to be measured on
/// this machine alone; to be called before this process is pinned.
pub fn share_out_cores(args: &mut SplitArgs) -> Result<(), Failure> {
    if !args.interference || args.peer.is_some() {
        return Ok(());
    }
    let refuse = |why: String| Err(Failure::Setting(format!("--interference: {why}")));
    match (&args.model.cores, &args.decode_cores) {
        (Some(ours), Some(theirs)) => {
            let shared = ours.shared_with(theirs);
            if !shared.is_empty() {
                return refuse(format!(
                    "--cores and --decode-cores share {shared}: each node needs cores of its own"
                ));
            }
            if ours.len() != theirs.len() {
                return refuse(format!(
                    "--cores has {} and --decode-cores {}: both nodes need as many",
                    count(ours.len(), "core"),
                    theirs.len()
                ));
            }
        }
        (None, None) => {
            let Some((ours, theirs)) = cores::current().and_then(|all| all.halves()) else {
                return refuse(
                    "one machine needs two cores for it, one for each node: give --peer HOST:PORT \
                     of a second machine"
                        .into(),
                );
            };
            (args.model.cores, args.decode_cores) = (Some(ours), Some(theirs));
        }
        _ => {
            return refuse(
                "give both --cores and --decode-cores, or neither for half of the cores each"
                    .into(),
            );
        }
    }
    Ok(())
}

/// The fit of an earlier sweep, where the user names its file.
pub(super) fn kept_fit(link: &LinkArgs) -> Result<Option<KeptFit>, Failure> {
    (link.link_fit.as_deref())
        .map(|path| KeptFit::read(path, link.streams))
        .transpose()
}

/// The decode node that the user names, with the token that it will demand.
pub(super) fn remote_peer(address: &str, link: &LinkArgs) -> anyhow::Result<Peer> {
    let (bind, streams) = (link.bind.as_deref(), link.streams);
    remote_peer_with(
        address,
        &link.token,
        &link.tls,
        &link.socket,
        &link.retry,
        bind,
        streams,
    )
}

/// As [`remote_peer`], from the flags that `link` has too.
pub(super) fn remote_peer_with(
    address: &str,
    token_args: &TokenArgs,
    tls_args: &TlsArgs,
    socket_args: &SocketArgs,
    retry: &RetryArgs,
    bind: Option<&str>,
    streams: u32,
) -> anyhow::Result<Peer> {
    let token = preparation::token(token_args)?;
    let transport = preparation::transport(tls_args)?;
    // An address that does not resolve gets its error from connecting.
    let on_loopback = (address.to_socket_addrs())
        .map(|mut all| all.all(|a| socket::is_loopback(&a)))
        .unwrap_or(true);
    if !on_loopback {
        preparation::demand_token(token.as_ref(), &transport, token_args, address)?;
    }
    Ok(Peer {
        address: address.to_string(),
        token,
        transport,
        congestion_control: socket_args.congestion_control.clone(),
        streams,
        source: bind.map(preparation::source).transpose()?,
        retry_for: retry.retry_for,
        patience: Patience::USUAL,
    })
}

/// One way a transfer mode and wire dtype, each once.
pub(super) fn split_ways(link: &LinkArgs) -> Vec<Way> {
    let mut forms: Vec<_> = (link.transfer.iter())
        .flat_map(|transfer| link.wire_dtype.iter().map(move |rows| (*transfer, *rows)))
        .collect();
    forms.sort_unstable();
    forms.dedup();
    (forms.into_iter())
        .map(|(transfer, rows)| Way::Split(transfer, rows))
        .collect()
}

/// Connects and records who answered and over what.
pub(super) async fn connect<'a>(
    peer: &'a Peer,
    introduction: &'a Introduction,
    kept_fit: Option<KeptFit>,
    record: &mut Record,
) -> anyhow::Result<Remote<'a>> {
    let connection = Connection::open(peer, introduction).await?;
    if let Some(kept) = &kept_fit {
        kept.check(connection.facts(), peer.transport.name())?;
    }
    // A decode node of another version may describe itself in other words; that is no reason to
    // refuse it, the wire version was checked.
    record.environment.decode = serde_json::from_value(connection.peer().environment.clone()).ok();
    record.link = Some(LinkRecord {
        transport: peer.transport.name().into(),
        loopback: connection.facts().loopback,
        socket: connection.facts().clone(),
        tcp_info_before: connection.tcp_info(),
        tcp_info_after: None,
        round_trips_ns: Vec::new(),
        fit: kept_fit.as_ref().map(|kept| kept.fit.clone()),
        fit_origin: kept_fit.map(|kept| kept.origin),
        interface: carrying_interface(connection.facts()),
    });
    Ok(Remote::new(peer, introduction, connection))
}

/// Whether the nodes differ, so that each must be measured alone.
fn unlike(record: &Record) -> bool {
    let differ =
        |decode: &Environment| !same_bits_expected(&record.environment.prefill, decode).is_empty();
    record.environment.decode.as_ref().is_none_or(differ)
}
