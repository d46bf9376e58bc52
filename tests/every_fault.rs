//! Every fault of a connection at every frame of a request, in both directions: both sides end in
//! time, the decode node holds nothing of it afterwards, and the next request is answered as if
//! nothing had happened.

mod tiny_model;

use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use disagg_bench::environment::Environment;
use disagg_bench::model::cache_pool::CachePool;
use disagg_bench::model::engine::Engine;
use disagg_bench::model::kv_cache::KvDtype;
use disagg_bench::model::kv_int8::WireRows;
use disagg_bench::node::compute::Compute;
use disagg_bench::node::decode::{DecodeNode, InFlight, Limits, Served, serve};
use disagg_bench::node::generation::Request;
use disagg_bench::node::prefill::{Connection, Patience, Peer, PrefillNode};
use disagg_bench::node::reception::Sessions;
use disagg_bench::node::{self, Departure};
use disagg_bench::wire::message::Introduction;
use disagg_bench::wire::{Pace, Token, Transport};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tiny_model::fault_proxy::{Fault, Passed, Place, pass_one};
use tiny_model::{DEADLINE, TinyModel};
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Longest that a peer is waited for here: above what a busy machine needs for any step, and short
/// enough that each stall of each frame can be waited out.
const PATIENCE: Duration = Duration::from_millis(1_500);

/// Bytes that caches may take: far more than one request.
const POOL_BYTES: usize = 1 << 28;

/// A decode node in this process, a prefill node, and a request with its right answer.
struct Lab {
    address: String,
    node: Arc<DecodeNode>,
    prefill: PrefillNode,
    introduction: Introduction,
    request: Request,
    answer: Vec<u32>,
    /// Errors with which connections of the decode node ended.
    dropped: Arc<Mutex<Vec<String>>>,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Lab {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tiny.gguf");
        TinyModel::default().write(&path);
        let load = || Arc::new(Engine::load(&path, "tiny", "00", None, &|_, _| {}).unwrap());
        let introduction = node::introduction(&load(), &Environment::capture(1)).unwrap();
        let dropped = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&dropped);
        let node = Arc::new(DecodeNode {
            compute: Some(Compute::start(load()).unwrap()),
            pool: CachePool::new(POOL_BYTES),
            loaded_bytes: None,
            introduction: introduction.clone(),
            token: Some(token()),
            transport: Transport::Tcp,
            congestion_control: None,
            corrupt_layer: None,
            limits: Limits {
                handshake: PATIENCE,
                idle: PATIENCE,
                pace: Pace {
                    grace: PATIENCE,
                    ..Pace::USUAL
                },
                ..Limits::default()
            },
            in_flight: InFlight::default(),
            sessions: Sessions::default(),
            admitted: AtomicU64::new(0),
            observer: Box::new(move |served| {
                if let Served::Disconnected {
                    error: Some(error), ..
                } = served
                {
                    seen.lock().unwrap().push(error);
                }
            }),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let (stop, stopped) = oneshot::channel();
        let stopped = async {
            let _ = stopped.await;
        };
        let serving = tokio::spawn(serve(
            listener,
            Arc::clone(&node),
            std::future::pending(),
            stopped,
        ));
        let mut lab = Self {
            address,
            node,
            prefill: PrefillNode {
                compute: Compute::start(load()).unwrap(),
                pool: CachePool::new(POOL_BYTES),
            },
            introduction,
            request: Request {
                prompt: (0..40).map(|i| i * 5 + 1).collect(),
                output_tokens: 5,
                ignore_eos: true,
                kv_dtype: KvDtype::F32,
                wire_rows: WireRows::Same,
                chunk_tokens: None,
            },
            answer: Vec::new(),
            dropped,
            stop,
            serving,
        };
        lab.answer = lab.ask(&lab.address.clone()).await.unwrap();
        assert_eq!(lab.answer.len(), 5);
        lab
    }

    /// One request over a new connection.
    async fn ask(&self, address: &str) -> anyhow::Result<Vec<u32>> {
        let peer = Peer {
            address: address.to_owned(),
            token: Some(token()),
            transport: Transport::Tcp,
            congestion_control: None,
            streams: 1,
            source: None,
            retry_for: Duration::ZERO,
            patience: Patience {
                handshake: 2 * PATIENCE,
                silence: 2 * PATIENCE,
                queue: 2 * PATIENCE,
                acknowledgement: 2 * PATIENCE,
            },
        };
        let mut connection = Connection::open(&peer, &self.introduction).await?;
        let departure = Departure::AfterPrefill;
        let outcome = connection
            .split(&self.prefill, &self.request, departure)
            .await?;
        Ok(outcome.output.tokens)
    }

    /// A request through a proxy that does this wrong. Gives what came of it and how many frames
    /// passed.
    async fn ask_through(&self, place: Place, fault: Fault) -> (anyhow::Result<Vec<u32>>, Passed) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let proxy = tokio::spawn(pass_one(listener, self.address.clone(), place, fault));
        let outcome = tokio::time::timeout(DEADLINE, self.ask(&address)).await;
        let outcome = outcome.unwrap_or_else(|_| panic!("{fault:?} at {place:?}: no end"));
        let passed = tokio::time::timeout(DEADLINE, proxy).await;
        let passed = passed.unwrap_or_else(|_| panic!("{fault:?} at {place:?}: the proxy hangs"));
        (outcome, passed.unwrap())
    }

    /// Waits until the decode node holds nothing of any request.
    async fn is_free(&self, what: &str) {
        let started = Instant::now();
        // All places but none can be had only if nobody is there.
        while self.node.in_flight.enter(1).is_err() || self.node.pool.in_use_bytes() > 0 {
            assert!(started.elapsed() < DEADLINE, "{what}: the node keeps it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    async fn stop(self) {
        self.stop.send(()).unwrap();
        self.serving.await.unwrap().unwrap();
    }
}

fn token() -> Token {
    Token::from_bytes(b"0123456789abcdef").unwrap()
}

/// How requests with one kind of fault ended.
#[derive(Default)]
struct Tally {
    answered: usize,
    failed: usize,
    recovery: Duration,
    errors: BTreeMap<String, usize>,
}

/// A request with each of the faults at each of its frames.
async fn strike(faults: impl Fn(&mut StdRng) -> Vec<(&'static str, Fault)>) {
    let lab = Lab::start().await;
    let nowhere = Place {
        to_decode: true,
        frame: usize::MAX,
    };
    let (outcome, [there, back]) = lab.ask_through(nowhere, Fault::None).await;
    assert_eq!(outcome.unwrap(), lab.answer);
    // HELLO, AUTH, OPEN, three pieces, START; HELLO, READY, ADMIT, three ACK, four TOKEN, DONE.
    assert_eq!((there, back), (7, 11));
    let places = (0..there).map(|frame| (true, frame));
    let places = places.chain((0..back).map(|frame| (false, frame)));
    let mut random = StdRng::seed_from_u64(1);
    let mut tallies: BTreeMap<&str, Tally> = BTreeMap::new();
    for (to_decode, frame) in places {
        for (name, fault) in faults(&mut random) {
            let place = Place { to_decode, frame };
            let (outcome, _) = lab.ask_through(place, fault).await;
            let tally = tallies.entry(name).or_default();
            match outcome {
                // What was hit made no difference any more, or none that is allowed.
                Ok(tokens) => {
                    assert_eq!(tokens, lab.answer, "{fault:?} at {place:?}");
                    tally.answered += 1;
                }
                Err(error) => {
                    tally.failed += 1;
                    *tally.errors.entry(format!("{error:#}")).or_default() += 1;
                }
            }
            let struck = Instant::now();
            // The next request is another's, and does not wait for what is left of this one.
            let next = lab.ask(&lab.address).await;
            let next = next.unwrap_or_else(|e| panic!("behind {fault:?} at {place:?}: {e:#}"));
            assert_eq!(next, lab.answer, "behind {fault:?} at {place:?}");
            tally.recovery = tally.recovery.max(struck.elapsed());
            lab.is_free(&format!("{fault:?} at {place:?}")).await;
        }
    }
    for (name, tally) in &tallies {
        println!(
            "{name}: {} times, {} answered rightly, {} failed with a reason; the next request was \
             answered after at most {:.1} ms",
            tally.answered + tally.failed,
            tally.answered,
            tally.failed,
            tally.recovery.as_secs_f64() * 1e3
        );
        for (error, times) in &tally.errors {
            println!("    {times} x {error}");
        }
    }
    for error in lab.dropped.lock().unwrap().iter() {
        assert!(!error.is_empty() && !error.contains("panicked"), "{error}");
    }
    lab.stop().await;
}

fn converse(conversation: impl Future<Output = ()>) {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build().unwrap().block_on(conversation);
}

#[test]
fn connections_that_end_anywhere() {
    converse(strike(|random| {
        vec![
            ("reset", Fault::Reset),
            ("half-close", Fault::HalfClose),
            (
                "truncated in the header",
                Fault::Truncate(random.random_range(1..56)),
            ),
            (
                "truncated anywhere",
                Fault::Truncate(random.random_range(1..4_000)),
            ),
        ]
    }));
}

#[test]
fn frames_that_are_damaged_anywhere() {
    converse(strike(|random| {
        let mut faults = vec![
            ("huge length", Fault::HugeLength),
            ("another version", Fault::OtherVersion),
        ];
        for _ in 0..4 {
            let header = random.random_range(0..56 * 8);
            faults.push(("bit flip in the header", Fault::BitFlip(header)));
            // Beyond the end of a short frame it is counted from the start again.
            let payload = random.random_range(56 * 8..16_000 * 8);
            faults.push(("bit flip anywhere", Fault::BitFlip(payload)));
        }
        faults
    }));
}

#[test]
fn frames_that_come_twice_late_or_never() {
    converse(strike(|_| {
        vec![
            ("duplicate", Fault::Duplicate),
            ("lost", Fault::Lose),
            ("reordered", Fault::Reorder),
        ]
    }));
}

#[test]
fn frames_that_come_slowly_or_not_to_their_end() {
    converse(strike(|random| {
        vec![
            ("a byte at a time", Fault::ByteByByte),
            ("stall", Fault::Stall),
            (
                "stall inside",
                Fault::StallInside(random.random_range(1..4_000)),
            ),
        ]
    }));
}
