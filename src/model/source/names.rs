//! Names out of a server's answer, an index or a command line, before any of them becomes part of a
//! path or an address.

/// Longest name that is taken, in bytes: what file systems allow for one component.
const MAX_NAME_BYTES: usize = 255;

/// The characters of a component need no escape, neither in an address nor in a path.
fn is_plain(component: &str) -> bool {
    !component.is_empty()
        && component.len() <= MAX_NAME_BYTES
        && component != "."
        && component != ".."
        && (component.chars()).all(|c| c.is_ascii_alphanumeric() || "-_.+=@".contains(c))
}

/// Whether this names a file of a repository: a relative path that goes down only.
pub(super) fn is_plain_path(path: &str) -> bool {
    path.len() <= 4 * MAX_NAME_BYTES && path.split('/').all(is_plain)
}

/// Whether this is `org/name`, as the hub forms them.
pub(super) fn is_repository(text: &str) -> bool {
    let is_part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphanumeric())
            // The hub's own cache writes `--` for the slash.
            && !part.contains("--")
            && !part.contains(['+', '=', '@'])
            && is_plain(part)
    };
    text.split_once('/')
        .is_some_and(|(organisation, name)| is_part(organisation) && is_part(name))
}

/// Whether this is the name of a commit: 40 hexadecimal digits.
pub(super) fn is_commit(text: &str) -> bool {
    is_sha1(text)
}

/// Whether this is a SHA-1 as git and the hub write it.
pub(super) fn is_sha1(text: &str) -> bool {
    is_lower_hex(text, 40)
}

/// Whether this is a SHA-256 as this tool and the hub write it.
pub(super) fn is_sha256(text: &str) -> bool {
    is_lower_hex(text, 64)
}

fn is_lower_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether a hub's tag of a file's content can name a file of the cache.
pub(super) fn is_blob_name(text: &str) -> bool {
    is_plain(text) && !text.starts_with('.')
}

/// Whether this is a weight file that lies beside its index.
pub(super) fn is_shard(name: &str) -> bool {
    is_plain(name) && name.ends_with(".safetensors")
}

/// Whether the name ends as a GGUF file's does.
pub(super) fn is_gguf(name: &str) -> bool {
    let extension = name.rsplit_once('.').map(|(_, extension)| extension);
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_leaves_its_folder_is_no_name() {
        for plain in ["config.json", "Q4_K_M/model-00001.gguf", "a.b+c=d@e", "..."] {
            assert!(is_plain_path(plain), "{plain}");
        }
        let long = "a".repeat(256);
        let bad = [
            "",
            "/",
            "/etc/passwd",
            "..",
            "../a",
            "a/../b",
            "a//b",
            "a/",
            ".",
            "./a",
            "a\\b",
            "a b",
            "a\0b",
            "a%2e",
            "é",
            &long,
        ];
        for bad in bad {
            assert!(!is_plain_path(bad), "{bad}");
            assert!(!is_shard(&format!("{bad}/x.safetensors")), "{bad}");
        }
        assert!(is_shard("model-00001-of-00002.safetensors"));
        assert!(!is_shard("model.bin"));
    }

    #[test]
    fn tags_and_commits_are_told_by_their_digits() {
        assert!(is_commit(&"0a".repeat(20)) && !is_commit(&"0A".repeat(20)));
        assert!(is_sha256(&"9f".repeat(32)) && !is_sha256(&"9f".repeat(20)));
        assert!(is_blob_name("abc-2") && !is_blob_name("../abc") && !is_blob_name(".abc"));
        assert!(!is_blob_name("/etc/passwd") && !is_blob_name(""));
    }

    #[test]
    fn a_repository_has_an_organisation_and_a_name() {
        for good in ["org/name", "TinyLlama/TinyLlama-1.1B-Chat-v1.0", "0/a_b"] {
            assert!(is_repository(good), "{good}");
        }
        for bad in [
            "name",
            "org/",
            "/name",
            "org/na/me",
            "../name",
            "a--b/c",
            "org/.x",
            "o@r/g",
        ] {
            assert!(!is_repository(bad), "{bad}");
        }
    }
}
