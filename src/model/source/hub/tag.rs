//! What a hub's tag says about a content: 64 digits are the SHA-256 of a large file, 40 are the
//! SHA-1 under which git keeps a small one. Other tags say nothing that can be checked.

use sha1::Sha1;
use sha2::{Digest as _, Sha256};

use super::super::error::Mismatch;
use super::super::names::{is_sha1, is_sha256};

/// Hashes a content as its tag was made.
pub(super) enum TagHasher {
    Sha256(Sha256),
    GitSha1(Sha1),
    Unpinned,
}

impl TagHasher {
    /// For the whole content of so many bytes, which git hashes first.
    pub(super) fn new(tag: &str, whole_bytes: u64) -> Self {
        if is_sha256(tag) {
            Self::Sha256(Sha256::new())
        } else if is_sha1(tag) {
            Self::GitSha1(Sha1::new_with_prefix(format!("blob {whole_bytes}\0")))
        } else {
            Self::Unpinned
        }
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::GitSha1(hasher) => hasher.update(bytes),
            Self::Unpinned => {}
        }
    }

    /// Whether what was hashed is what the tag was made of.
    pub(super) fn check(self, tag: &str) -> Result<(), Mismatch> {
        let wanted = tag.to_owned();
        match self {
            Self::Sha256(hasher) => match format!("{:x}", hasher.finalize()) {
                got if got == wanted => Ok(()),
                got => Err(Mismatch::Sha256 { got, wanted }),
            },
            Self::GitSha1(hasher) => match format!("{:x}", hasher.finalize()) {
                got if got == wanted => Ok(()),
                got => Err(Mismatch::GitSha1 { got, wanted }),
            },
            Self::Unpinned => Ok(()),
        }
    }
}
