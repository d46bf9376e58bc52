//! What comes from outside and may be anything: the fuzzer's targets, on its corpus, on arbitrary
//! bytes and on mutated sound ones. Nothing panics, and a length that only a file names takes no more
//! than a bounded amount of memory. `fuzz/` has the same targets for longer runs.

#![expect(unsafe_code, reason = "an allocator that notes the largest request")]

#[path = "../fuzz/src/lib.rs"]
mod targets;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use disagg_bench::baseline::BaselineFile;
use disagg_bench::link::Sweep;
use disagg_bench::metrics::Record;
use disagg_bench::model::gguf::Gguf;
use disagg_bench::model::published::PublishedShape;
use disagg_bench::workload::{PlainText, read_path};
use proptest::prelude::*;
use proptest::sample::Index;

struct Noting;

thread_local! {
    static LARGEST_BYTES: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: everything is passed on to the system's allocator.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LARGEST_BYTES.set(LARGEST_BYTES.get().max(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Noting = Noting;

type Target = fn(&[u8]);

/// Every target by the name of its corpus.
const TARGETS: [(&str, Target); 13] = [
    ("frames", targets::frames),
    ("messages", targets::messages),
    ("model", targets::model),
    ("model_folder", targets::model_folder),
    ("model_values", targets::model_values),
    ("tokenizer", targets::tokenizer),
    ("config", targets::config),
    ("settings", targets::settings),
    ("prompts", targets::prompts),
    ("runs", targets::runs),
    ("run_values", targets::run_values),
    ("sweeps", targets::sweeps),
    ("baselines", targets::baselines),
];

/// Most that a target takes at once for inputs of the corpus's size: a run's rendered page is the
/// largest that any of them makes.
const MOST_BYTES: usize = 16 << 20;

/// Runs a target and checks that it took no more memory at once than its input explains.
fn survive(target: Target, bytes: &[u8]) {
    LARGEST_BYTES.set(0);
    target(bytes);
    let largest = LARGEST_BYTES.get();
    assert!(
        largest <= MOST_BYTES,
        "{largest} bytes at once for {}",
        bytes.len()
    );
}

/// Sound inputs of a target, in order of their names.
fn corpus(name: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(name);
    let mut paths: Vec<PathBuf> = (fs::read_dir(&folder).unwrap())
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

#[test]
fn the_corpus_is_survived() {
    for (name, target) in TARGETS {
        let inputs = corpus(name);
        assert!(!inputs.is_empty(), "{name}");
        inputs.iter().for_each(|input| survive(target, input));
    }
}

#[test]
fn the_corpus_gets_behind_every_check() {
    let answers = corpus("model_folder").into_iter();
    let answers: Vec<usize> = answers
        .map(|bytes| targets::answers_of_folder(&bytes))
        .collect();
    // Llama, Qwen2 and Qwen3 in three formats each; another file's weights are none of theirs.
    assert_eq!(answers, [3, 3, 3, 0]);
    let texts = corpus("tokenizer").into_iter();
    let texts: Vec<usize> = texts
        .map(|bytes| targets::conversations_by_tokenizer(&bytes))
        .collect();
    // The one between them has a chat template that is refused.
    assert_eq!(texts, [4, 0, 4]);
}

#[test]
fn a_tensor_of_nothing_is_refused_unread() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/model/empty-divisors.gguf");
    let error = Gguf::open(&path).err().unwrap().to_string();
    assert!(
        error.contains("is empty, wanted 1 or more in each dimension"),
        "{error}"
    );
}

/// A change of some bytes.
#[derive(Clone, Debug)]
enum Mutation {
    Flip(Index, u8),
    /// Eight bytes become a number that lengths are wrong with.
    Number(Index, u64),
    Cut(Index),
    Remove(Index, usize),
    Repeat(Index, usize),
    Insert(Index, Vec<u8>),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let at = any::<Index>();
    let number = prop_oneof![
        Just(0),
        Just(u64::MAX),
        Just(1 << 63),
        Just(1 << 40),
        Just(1 << 32),
        Just(u64::from(u32::MAX)),
        any::<u64>()
    ];
    let bytes = proptest::collection::vec(any::<u8>(), 1..20);
    prop_oneof![
        (at, any::<u8>()).prop_map(|(at, bits)| Mutation::Flip(at, bits)),
        (any::<Index>(), number).prop_map(|(at, number)| Mutation::Number(at, number)),
        any::<Index>().prop_map(Mutation::Cut),
        (any::<Index>(), 1usize..40).prop_map(|(at, n)| Mutation::Remove(at, n)),
        (any::<Index>(), 1usize..40).prop_map(|(at, n)| Mutation::Repeat(at, n)),
        (any::<Index>(), bytes).prop_map(|(at, bytes)| Mutation::Insert(at, bytes)),
    ]
}

fn mutated(mut bytes: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let end = |at: usize, n: usize| (at + n).min(bytes.len());
        match mutation {
            _ if bytes.is_empty() => {}
            Mutation::Flip(at, bits) => {
                let at = at.index(bytes.len());
                bytes[at] ^= bits;
            }
            Mutation::Number(at, number) => {
                let at = at.index(bytes.len());
                let end = end(at, 8);
                bytes[at..end].copy_from_slice(&number.to_le_bytes()[..end - at]);
            }
            Mutation::Cut(at) => bytes.truncate(at.index(bytes.len())),
            Mutation::Remove(at, n) => {
                let at = at.index(bytes.len());
                bytes.drain(at..end(at, *n));
            }
            Mutation::Repeat(at, n) => {
                let at = at.index(bytes.len());
                let again = bytes[at..end(at, *n)].to_vec();
                bytes.splice(at..at, again);
            }
            Mutation::Insert(at, more) => {
                let at = at.index(bytes.len());
                bytes.splice(at..at, more.iter().copied());
            }
        }
    }
    bytes
}

/// Each target on bytes of any kind, and on its corpus with some mutations.
macro_rules! targets_survive {
    ($($target:ident, $cases:literal;)*) => { $(
        mod $target {
            use super::*;

            proptest! {
                #![proptest_config(ProptestConfig::with_cases($cases))]

                #[test]
                fn bytes_of_any_kind(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
                    survive(targets::$target, &bytes);
                }

                #[test]
                fn mutated_ones(which: Index, mutations in proptest::collection::vec(mutation(), 1..6)) {
                    let mut inputs = corpus(stringify!($target));
                    let input = inputs.swap_remove(which.index(inputs.len()));
                    survive(targets::$target, &mutated(input, &mutations));
                }
            }
        }
    )* }
}

// As many as take a second or two: a run is drawn in a dozen charts, a model loaded three times.
targets_survive! {
    frames, 256;
    messages, 256;
    model, 128;
    model_folder, 128;
    model_values, 256;
    tokenizer, 128;
    config, 256;
    settings, 64;
    prompts, 256;
    runs, 64;
    run_values, 128;
    sweeps, 64;
    baselines, 32;
}

/// Reads a file that is no good, and says why.
type Refusal = fn(&Path) -> String;

/// Readers of JSON files.
fn json_readers() -> [(&'static str, Refusal); 4] {
    [
        ("run", |path| {
            format!("{:#}", Record::read(path).unwrap_err())
        }),
        ("link", |path| Sweep::read(path).unwrap_err().to_string()),
        ("baseline", |path| {
            format!("{:#}", BaselineFile::read(path).unwrap_err())
        }),
        ("config", |path| {
            PublishedShape::of_config(path).unwrap_err()
        }),
    ]
}

#[test]
fn json_that_is_deep_or_not_json_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("input.json");
    let deep = |open: &str| open.repeat(200_000).into_bytes();
    for (reader, error_of) in json_readers() {
        for (input, part) in [
            // Where it is a value that is read, there is a limit of depth; where it is none that is
            // wanted, depth costs nothing.
            (deep("["), ""),
            (deep("{\"schema_version\":"), ""),
            (deep("{\"a\":"), ""),
            (b"{\"schema_version\": 1e999}".to_vec(), "out of range"),
            (b"{\"schema_version\": NaN}".to_vec(), "expected value"),
            (b"{\"a\": \"\xff\"}".to_vec(), "UTF-8"),
            (Vec::new(), "EOF"),
        ] {
            fs::write(&path, input).unwrap();
            let error = error_of(&path);
            assert!(error.contains(part), "{reader}: {part}: {error}");
        }
    }
    let twice = String::from_utf8(corpus("runs").swap_remove(1)).unwrap();
    let twice = twice.replacen("{", "{\"schema_version\":1,", 1);
    fs::write(&path, twice).unwrap();
    let error = format!("{:#}", Record::read(&path).unwrap_err());
    assert!(error.contains("duplicate field"), "{error}");
}

/// A file of that size which takes no room.
fn hollow(path: &Path, bytes: u64) {
    fs::File::create(path).unwrap().set_len(bytes).unwrap();
}

#[test]
fn files_beyond_all_measure_are_refused_unread() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("hollow");
    hollow(&path, 1 << 30);
    for (reader, error_of) in json_readers() {
        LARGEST_BYTES.set(0);
        let error = error_of(&path);
        assert!(error.contains("the most that is read"), "{reader}: {error}");
        assert!(LARGEST_BYTES.get() < 1 << 20, "{reader}");
    }
    let prompts = read_path(&path, PlainText::Refused).unwrap_err();
    assert!(prompts.to_string().contains("longer than"), "{prompts}");

    // A header that names a terabyte of text, which the file even has.
    let text = 1u64 << 40;
    let start = [
        b"GGUF\x03\0\0\0",
        &0u64.to_le_bytes()[..],
        &1u64.to_le_bytes(),
    ]
    .concat();
    let value = [
        &1u64.to_le_bytes()[..],
        b"a",
        &8u32.to_le_bytes(),
        &text.to_le_bytes(),
    ]
    .concat();
    hollow(&path, 1 << 41);
    let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    std::io::Write::write_all(&mut file, &[start, value].concat()).unwrap();
    LARGEST_BYTES.set(0);
    let error = Gguf::open(&path).err().unwrap().to_string();
    assert!(error.contains("a header of more than"), "{error}");
    assert!(LARGEST_BYTES.get() < 1 << 20);
}
