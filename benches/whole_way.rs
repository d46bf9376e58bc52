//! The whole way of a cache (frame, checksum, send, place, verify, acknowledge) between two
//! processes over loopback, on the wire that the nodes speak. One JSON line a measurement, with
//! the keys of `notebook_pickle.py`, which takes the notebook's way.
//!
//! Run with `cargo bench --bench whole_way`. Prefill, handshake and decode are left out.

mod payload;

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use disagg_bench::model::cache_pool::{CachePool, Pooled};
use disagg_bench::stats::Figure;
use disagg_bench::wire::socket::{self, SocketFacts};
use disagg_bench::wire::{FrameReader, FrameWriter, Kind, WireError};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};

use payload::{PAYLOADS, POOL_BYTES, Payload, slice_of};

/// Argument that makes this program the receiving process.
const RECEIVE: &str = "receive";

/// Transfers before the ones that count, and those.
const WARM_UPS: usize = 2;
const REPEATS: usize = 9;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

fn main() -> anyhow::Result<()> {
    let argument = |wanted| std::env::args().skip(1).any(|given| given == wanted);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    if argument(RECEIVE) {
        return runtime.block_on(receive_forever());
    }
    // Cargo says `--bench` when times are wanted; a test run only checks that the way works.
    let (warm_ups, repeats) = match argument("--bench") {
        true => (WARM_UPS, REPEATS),
        false => (0, 1),
    };
    let receiver = Receiver::start()?;
    for payload in 0..PAYLOADS.len() {
        for connection in [Connection::Kept, Connection::Fresh] {
            let way = measure(&receiver.address, payload, connection, warm_ups, repeats);
            println!("{}", runtime.block_on(way)?);
        }
    }
    Ok(())
}

/// Whether a transfer goes over a connection that is there, as in a session of the nodes, or over
/// one of its own whose making counts, as in the notebook.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Connection {
    Kept,
    Fresh,
}

/// The second process; it ends when its standard input does, so at the latest with this one.
struct Receiver {
    child: Child,
    address: String,
}

impl Receiver {
    fn start() -> anyhow::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(RECEIVE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().context("the receiver has no output")?;
        let mut address = String::new();
        BufReader::new(output).read_line(&mut address)?;
        let address = address.trim().to_string();
        Ok(Self { child, address })
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// The sending end of a connection.
struct Sender {
    reader: FrameReader<OwnedReadHalf>,
    writer: FrameWriter<OwnedWriteHalf>,
    facts: SocketFacts,
}

impl Sender {
    async fn connect(address: &str) -> Result<Self, WireError> {
        let (stream, facts) = socket::connect(address, CONNECT_TIMEOUT, None, None).await?;
        let (reader, writer) = frames(stream);
        Ok(Self {
            reader,
            writer,
            facts,
        })
    }

    /// Has the receiver take memory for a payload, as OPEN and ADMIT do before prefill.
    async fn open(&mut self, payload: usize) -> Result<(), WireError> {
        (self.writer)
            .write_control(Kind::Open, 1, 1, &payload)
            .await?;
        self.reader.expect_empty(Kind::Admit).await?;
        Ok(())
    }

    /// Sends all pieces and waits until the last one is acknowledged.
    async fn send(&mut self, payload: Payload, cache: &Pooled) -> Result<(), WireError> {
        let (reader, writer) = (&mut self.reader, &mut self.writer);
        let send = async {
            for piece in payload.pieces() {
                writer.write_piece(piece, slice_of(cache, piece)).await?;
            }
            Ok(())
        };
        let acknowledged = async {
            for _ in payload.pieces() {
                reader.expect_empty(Kind::Ack).await?;
            }
            Ok(())
        };
        tokio::try_join!(send, acknowledged).map(|_| ())
    }
}

fn frames(stream: TcpStream) -> (FrameReader<OwnedReadHalf>, FrameWriter<OwnedWriteHalf>) {
    let (read, write) = stream.into_split();
    (FrameReader::new(read), FrameWriter::new(write))
}

/// Times transfers and checks after each that the bytes landed; gives the JSON line.
async fn measure(
    address: &str,
    index: usize,
    connection: Connection,
    warm_ups: usize,
    repeats: usize,
) -> anyhow::Result<serde_json::Value> {
    let payload = PAYLOADS[index];
    let cache = CachePool::new(POOL_BYTES).take(payload.layout, payload.tokens)?;
    payload.fill(&cache);
    let sent_digest = cache.digest(payload.tokens)?.to_hex().to_string();
    let mut sender = Sender::connect(address).await?;
    let mut whole_ms = Vec::new();
    for _ in 0..warm_ups + repeats {
        let started = match connection {
            Connection::Kept => {
                sender.open(index).await?;
                Instant::now()
            }
            Connection::Fresh => {
                let started = Instant::now();
                sender = Sender::connect(address).await?;
                sender.open(index).await?;
                started
            }
        };
        sender.send(payload, &cache).await?;
        whole_ms.push(started.elapsed().as_secs_f64() * 1e3);
        let (_, landed_digest) = sender.reader.expect::<String>(Kind::Done).await?;
        ensure!(
            landed_digest == sent_digest,
            "cache {landed_digest} landed, {sent_digest} was sent: the times are worth nothing"
        );
    }
    Ok(serde_json::json!({
        "way": "disagg-bench",
        "implementation": format!("disagg-bench {}", env!("CARGO_PKG_VERSION")),
        "payload": payload.name,
        "kv_bytes": payload.kv_bytes(),
        "connection": format!("{connection:?}").to_lowercase(),
        "congestion_control": sender.facts.congestion_control,
        "whole_ms": Figure::of(&whole_ms[warm_ups..]),
    }))
}

/// The receiving process: tells its address and serves one connection after another.
async fn receive_forever() -> anyhow::Result<()> {
    let listener = socket::bind("127.0.0.1:0").await?;
    println!("{}", listener.local_addr()?);
    std::io::stdout().flush()?;
    std::thread::spawn(|| {
        let _ = std::io::stdin().read_to_end(&mut Vec::new());
        std::process::exit(0);
    });
    let pool = CachePool::new(POOL_BYTES);
    loop {
        let (stream, _) = listener.accept().await?;
        socket::set_up(&stream, None)?;
        serve(stream, &pool).await?;
    }
}

async fn serve(stream: TcpStream, pool: &Arc<CachePool>) -> anyhow::Result<()> {
    let (mut reader, mut writer) = frames(stream);
    loop {
        let payload = match reader.expect::<usize>(Kind::Open).await {
            Ok((_, index)) => PAYLOADS.get(index).context("no such payload")?,
            Err(WireError::Closed) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        let cache = pool.take(payload.layout, payload.tokens)?;
        writer.write_empty(Kind::Admit, 1, 1).await?;
        receive(*payload, &cache, &mut reader, &mut writer).await?;
        let digest = cache.digest(payload.tokens)?.to_hex().to_string();
        writer.write_control(Kind::Done, 1, 1, &digest).await?;
    }
}

/// Reads each piece into place, verifies and acknowledges it, until the cache is complete.
async fn receive(
    payload: Payload,
    cache: &Pooled,
    reader: &mut FrameReader<OwnedReadHalf>,
    writer: &mut FrameWriter<OwnedWriteHalf>,
) -> anyhow::Result<()> {
    let mut missing = payload.tokens * payload.layout.n_layers;
    while missing > 0 {
        let header = reader.read_header().await?;
        if header.kind != Kind::Piece {
            bail!("{} came amid the pieces", header.kind);
        }
        let run = header.run();
        let (start, count) = (run.token_start as usize, run.token_count as usize);
        let mut claim = cache.claim(run.layer as usize, start, count)?;
        reader.read_payload_into(&header, &mut claim).await?;
        claim.land();
        writer.write_ack(run).await?;
        missing -= count;
    }
    Ok(())
}
