//! The decoder for devices against the one for the processor, and a split of it against one node.
//!
//! It runs on candle's CPU device here. `DISAGG_TEST_DEVICE=cuda:0` runs the same tests on a GPU,
//! in a build with its feature.

mod tiny_model;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use candle_core::Device;
use disagg_bench::environment::Environment;
use disagg_bench::metrics::{Event, EventName, Node, Output};
use disagg_bench::model::cache_pool::CachePool;
use disagg_bench::model::device::DeviceChoice;
use disagg_bench::model::engine::{Engine, Landing};
use disagg_bench::model::kv_cache::{KvCache, KvDtype};
use disagg_bench::model::kv_int8::WireRows;
use disagg_bench::model::logits::Logits;
use disagg_bench::model::weights::WeightsFormat;
use disagg_bench::node::compute::Compute;
use disagg_bench::node::decode::{DecodeNode, InFlight, Limits, serve};
use disagg_bench::node::generation::Request;
use disagg_bench::node::prefill::{Connection, Patience, Peer, PrefillNode, single};
use disagg_bench::node::reception::Sessions;
use disagg_bench::node::{self, Departure};
use disagg_bench::wire::{Token, Transport};
use tokio::net::TcpListener;

/// All architectures, and formats of quantised files.
const MODELS: [&str; 10] = [
    "llama2",
    "llama3",
    "llama-linear-rope",
    "mistral",
    "qwen2",
    "qwen3",
    "llama2-bf16",
    "llama2-q4_1",
    "llama2-q8_0",
    "llama-wide-q4_k",
];

/// Largest distance of a logit from the processor's with f32 weights, whose sums go in another
/// order.
const TOLERANCE: f32 = 1e-4;

/// Where inputs of quantised matrices are rounded to 8 bits, how many times as far from f32 weights
/// a device may be as the processor is.
const TIMES_AS_FAR: f32 = 2.0;

/// Longer than every attention window of the models, and no multiple of the chunks.
const PROMPT_TOKENS: u32 = 45;

const STEPS: usize = 6;

fn device() -> Device {
    let Ok(name) = std::env::var("DISAGG_TEST_DEVICE") else {
        return Device::Cpu;
    };
    let choice: DeviceChoice = name.parse().unwrap();
    choice.open().unwrap().unwrap_or(Device::Cpu)
}

fn path(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/architectures");
    folder.join(format!("{name}.gguf"))
}

fn load_as(name: &str, device: Option<&Device>, weights: WeightsFormat) -> Engine {
    let weights = Some(weights);
    Engine::load_on(device, &path(name), name, "00", weights, &|_, _| {}).unwrap()
}

/// As the file has it, on candle's kernels: what is no quantised file runs in f32.
fn load(name: &str, device: Option<&Device>) -> Engine {
    load_as(name, device, WeightsFormat::AsIs)
}

fn prompt(engine: &Engine) -> Vec<u32> {
    let vocabulary = engine.shape().vocabulary as u32;
    (0..PROMPT_TOKENS)
        .map(|i| (i * 7 + 3) % vocabulary)
        .collect()
}

fn cache(engine: &Engine, dtype: KvDtype) -> KvCache {
    KvCache::new(engine.shape().kv_layout(dtype), 64)
}

fn distance(a: &Logits, b: &Logits) -> f32 {
    assert_eq!(a.0.len(), b.0.len());
    let pairs = a.0.iter().zip(&b.0);
    let distances = pairs.map(|(a, b)| (a - b).abs());
    // NaN is larger than every tolerance.
    distances.fold(0.0, |most, d| if d <= most { most } else { d })
}

/// Logits of a prompt and of steps behind it, over a fresh cache.
fn logits(engine: &Engine, chunk: Option<usize>, tokens: &[u32]) -> Vec<Logits> {
    let cache = cache(engine, KvDtype::F32);
    let (prompt, following) = tokens.split_at(PROMPT_TOKENS as usize);
    let mut all = vec![engine.prefill(prompt, chunk, &cache, |_| {}).unwrap()];
    all.extend((following.iter()).map(|token| engine.step(*token, &cache).unwrap()));
    assert_eq!(cache.len_tokens(), tokens.len());
    all
}

#[test]
fn logits_are_those_of_the_processor_within_a_tolerance() {
    for name in MODELS {
        let exact = load_as(name, None, WeightsFormat::F32);
        let (here, there) = (load(name, None), load(name, Some(&device())));
        assert!(there.device.is_some() && here.device.is_none());
        assert!(there.kernels.contains("candle's"), "{}", there.kernels);
        let mut tokens = prompt(&exact);
        tokens.extend(1..=STEPS as u32);
        for chunk in [None, Some(16)] {
            let exact = logits(&exact, chunk, &tokens);
            let off = |engine: &Engine| {
                let all = logits(engine, chunk, &tokens);
                let distances = all.iter().zip(&exact).map(|(a, b)| distance(a, b));
                distances.fold(0f32, |most, d| if d <= most { most } else { d })
            };
            let (here, there) = (off(&here), off(&there));
            println!("{name}, chunks of {chunk:?}: {there:e}, the processor {here:e}");
            let tolerance = TOLERANCE.max(TIMES_AS_FAR * here);
            assert!(there <= tolerance, "{name}: {there:e}, not {tolerance:e}");
        }
    }
}

/// Greedy tokens' digests: the bits of the logits of each step.
fn go_on(engine: &Engine, first: &Logits, cache: &KvCache) -> Vec<String> {
    let mut token = first.argmax();
    let steps = (0..STEPS).map(|_| {
        let logits = engine.step(token, cache).unwrap();
        token = logits.argmax();
        logits.digest()
    });
    steps.collect()
}

#[test]
fn a_cache_goes_over_the_host_to_another_engine_bit_by_bit() {
    let device = device();
    for name in MODELS {
        let (prefill, decode) = (load(name, Some(&device)), load(name, Some(&device)));
        let prompt = prompt(&prefill);
        for dtype in [KvDtype::F32, KvDtype::F16, KvDtype::Bf16] {
            let stays = cache(&prefill, dtype);
            let untold = |_| panic!("nothing lands in a cache that stays on the device");
            let pause = || Ok(());
            let alone = prefill
                .prefill_to(Landing::InPlace, &prompt, Some(16), &stays, untold, pause)
                .unwrap();
            assert_eq!(
                (stays.landed_tokens(), stays.len_tokens()),
                (0, prompt.len())
            );
            let sent = cache(&prefill, dtype);
            let mut copies = 0;
            let first = prefill
                .prefill(&prompt, Some(16), &sent, |done| {
                    let staging = done.staging.unwrap();
                    assert!(staging.start <= staging.end);
                    // What is told has landed.
                    sent.read(done.layer, done.tokens).unwrap();
                    copies += 1;
                })
                .unwrap();
            assert_eq!(copies, 3 * prefill.shape().n_layers);
            assert_eq!(first.digest(), alone.digest(), "{name}, {dtype}");
            let landed = cache(&decode, dtype);
            for layer in 0..prefill.shape().n_layers {
                let mut claim = landed.claim(layer, 0, prompt.len()).unwrap();
                claim.copy_from_slice(sent.read(layer, 0..prompt.len()).unwrap());
                claim.land();
            }
            assert!(decode.stage(&landed).unwrap().is_some());
            assert!(decode.stage(&landed).unwrap().is_none(), "it is all there");
            let wanted = go_on(&prefill, &alone, &stays);
            assert_eq!(go_on(&decode, &first, &landed), wanted, "{name}, {dtype}");
            assert_eq!(go_on(&prefill, &first, &sent), wanted, "{name}, {dtype}");
        }
    }
}

#[test]
fn rows_of_a_batch_have_the_bits_that_they_have_alone() {
    let engine = load("llama2", Some(&device()));
    let prompt = prompt(&engine);
    let prefilled = |tokens: usize| {
        let cache = cache(&engine, KvDtype::F16);
        engine
            .prefill(&prompt[..tokens], None, &cache, |_| {})
            .unwrap();
        cache
    };
    let alone = [5, 17].map(|tokens| engine.step(1, &prefilled(tokens)).unwrap());
    let (short, long) = (prefilled(5), prefilled(17));
    assert_eq!(
        engine.step_batch(&[(1, &short), (1, &long)]).unwrap(),
        alone
    );
}

#[test]
fn a_cache_is_empty_again_after_a_reset() {
    let engine = load("llama2", Some(&device()));
    let prompt = prompt(&engine);
    let mut used = cache(&engine, KvDtype::F16);
    engine.prefill(&prompt, None, &used, |_| {}).unwrap();
    used.reset();
    assert_eq!(used.len_tokens(), 0);
    let again = engine.prefill(&prompt[..9], None, &used, |_| {}).unwrap();
    let fresh = cache(&engine, KvDtype::F16);
    let first = engine.prefill(&prompt[..9], None, &fresh, |_| {}).unwrap();
    assert_eq!(again.digest(), first.digest());
    assert_eq!(
        go_on(&engine, &again, &used),
        go_on(&engine, &first, &fresh)
    );
}

fn prefill_node(engine: Engine) -> PrefillNode {
    PrefillNode {
        compute: Compute::start(Arc::new(engine)).unwrap(),
        pool: CachePool::new(1 << 28),
    }
}

/// How often something happened on a node.
fn times(events: &[Event], clock: Node, name: EventName) -> usize {
    let is_it = |e: &&Event| e.clock == clock && e.name == name;
    events.iter().filter(is_it).count()
}

fn digests(output: &Output) -> Vec<String> {
    output
        .steps
        .iter()
        .map(|step| step.digest.clone())
        .collect()
}

#[tokio::test]
async fn a_split_gives_the_bits_of_one_node_and_tells_its_staging() {
    for on in [Some(device()), None] {
        let engine = || load("llama2-q8_0", on.as_ref());
        let mut environment = Environment::capture(1);
        environment.device = engine().device;
        let introduction = node::introduction(&engine(), &environment).unwrap();
        let token = || Token::from_bytes(b"0123456789abcdef").unwrap();
        let node = Arc::new(DecodeNode {
            compute: Some(Compute::start(Arc::new(engine())).unwrap()),
            pool: CachePool::new(1 << 28),
            loaded_bytes: None,
            introduction: introduction.clone(),
            token: Some(token()),
            transport: Transport::Tcp,
            congestion_control: None,
            corrupt_layer: None,
            limits: Limits::default(),
            in_flight: InFlight::default(),
            sessions: Sessions::default(),
            admitted: AtomicU64::new(0),
            observer: Box::new(|_| {}),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = Peer {
            address: listener.local_addr().unwrap().to_string(),
            token: Some(token()),
            transport: Transport::Tcp,
            congestion_control: None,
            streams: 1,
            source: None,
            retry_for: Duration::ZERO,
            patience: Patience::USUAL,
        };
        let serving = tokio::spawn(serve(
            listener,
            node,
            std::future::pending(),
            std::future::pending(),
        ));
        let (prefill, layers) = (prefill_node(engine()), engine().shape().n_layers);
        let request = Request {
            prompt: prompt(&engine()),
            output_tokens: STEPS as u32,
            ignore_eos: true,
            kv_dtype: KvDtype::F16,
            wire_rows: WireRows::Same,
            chunk_tokens: Some(16),
        };
        let alone = single(&prefill, &request).await.unwrap();
        let names = [EventName::StagingStart, EventName::StagingEnd];
        for name in names {
            assert_eq!(times(&alone.events, Node::Prefill, name), 0);
        }
        let mut connection = Connection::open(&peer, &introduction).await.unwrap();
        for departure in [Departure::AfterPrefill, Departure::BehindPrefill] {
            let split = connection
                .split(&prefill, &request, departure)
                .await
                .unwrap();
            assert_eq!(split.output.tokens, alone.output.tokens);
            assert_eq!(digests(&split.output), digests(&alone.output));
            let sent = split.output.sent_cache_digest;
            assert!(sent.is_some() && sent == split.output.landed_cache_digest);
            let (out_of, into) = match on {
                Some(_) => (3 * layers, 1),
                None => (0, 0),
            };
            for name in names {
                assert_eq!(
                    times(&split.events, Node::Prefill, name),
                    out_of,
                    "{name:?}"
                );
                assert_eq!(times(&split.events, Node::Decode, name), into, "{name:?}");
            }
        }
        // A decode node that is asked for all of it copies nothing either.
        let whole = connection.whole(&prefill, &request).await.unwrap();
        assert_eq!(digests(&whole.output), digests(&alone.output));
        assert_eq!(times(&whole.events, Node::Decode, names[0]), 0);
        serving.abort();
    }
}
