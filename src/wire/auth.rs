//! The shared token: where it comes from and how each node proves that it holds it without
//! sending it. When proofs are exchanged is `handshake`'s; keeping the bytes from being read
//! or changed on the way is no aim here (that needs TLS).
//!
//! A proof is a keyed hash over the prover's role, the session and both nodes' challenges: it
//! is worth nothing on another connection, and sent back to its maker it has the wrong role.
//! A proof can be tried against guesses, so the token should be random; hence its least length.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use super::error::WireError;
use super::message::Hex32;

/// Environment variable that holds the token.
pub const TOKEN_VARIABLE: &str = "DISAGG_TOKEN";

/// Least length of a token, in bytes: 128 bits if it is random.
pub const MIN_TOKEN_BYTES: usize = 16;

/// Longest token, in bytes, so that a wrong path is not read to its end.
pub const MAX_TOKEN_BYTES: usize = 4096;

const KEY_CONTEXT: &str = "disagg-bench 2026-11-23 wire v1 shared token";
const PROOF_LABEL: &[u8] = b"disagg-bench wire v1 proof\0";

/// The node that makes a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prover {
    /// The node that connects.
    PrefillNode,
    /// The node that listens.
    DecodeNode,
}

/// What both nodes know of one handshake, and a proof is bound to.
#[derive(Debug, Clone, Copy)]
pub struct Challenge {
    /// The session, as the decode node numbered it.
    pub session: u64,
    /// The prefill node's nonce.
    pub prefill_nonce: Hex32,
    /// The decode node's nonce.
    pub decode_nonce: Hex32,
}

/// The key that a shared token stands for; it is never shown.
#[derive(Clone)]
pub struct Token {
    key: [u8; blake3::KEY_LEN],
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

impl Token {
    /// A token from its bytes, which must be at least [`MIN_TOKEN_BYTES`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Token, WireError> {
        if bytes.len() < MIN_TOKEN_BYTES || bytes.len() > MAX_TOKEN_BYTES {
            return Err(WireError::Auth(format!(
                "the token has {} bytes, {MIN_TOKEN_BYTES} to {MAX_TOKEN_BYTES} are wanted: make one with `openssl rand -hex 32`",
                bytes.len()
            )));
        }
        Ok(Token {
            key: blake3::derive_key(KEY_CONTEXT, bytes),
        })
    }

    /// A token from a file, its trailing line ends not counted.
    pub fn from_file(path: &Path) -> Result<Token, WireError> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| {
            // Two more than allowed: a token of full length may end in a line end of two.
            file.take(MAX_TOKEN_BYTES as u64 + 2)
                .read_to_end(&mut bytes)
        });
        read.map_err(|error| {
            WireError::Auth(format!(
                "cannot read the token file {} ({error}): give a readable file with --token-file",
                path.display()
            ))
        })?;
        Token::from_bytes(without_line_end(&bytes))
    }

    /// The token in [`TOKEN_VARIABLE`], if it is set.
    pub fn from_env() -> Result<Option<Token>, WireError> {
        Token::from_variable(std::env::var_os(TOKEN_VARIABLE))
    }

    fn from_variable(value: Option<OsString>) -> Result<Option<Token>, WireError> {
        match value {
            None => Ok(None),
            Some(value) => Token::from_bytes(without_line_end(value.as_encoded_bytes())).map(Some),
        }
    }

    /// The proof that `prover` holds this token.
    pub fn prove(&self, prover: Prover, challenge: &Challenge) -> Hex32 {
        Hex32(*self.proof(prover, challenge).as_bytes())
    }

    /// Whether `proof` was made by `prover` with this token, in constant time.
    pub fn verify(&self, prover: Prover, challenge: &Challenge, proof: &Hex32) -> bool {
        // Comparing two blake3 hashes takes the same time wherever they differ.
        self.proof(prover, challenge) == blake3::Hash::from_bytes(proof.0)
    }

    fn proof(&self, prover: Prover, challenge: &Challenge) -> blake3::Hash {
        // Every part has a fixed length or its own end, so no two inputs read alike.
        let role: &[u8] = match prover {
            Prover::PrefillNode => b"prefill node\0",
            Prover::DecodeNode => b"decode node\0",
        };
        blake3::Hasher::new_keyed(&self.key)
            .update(PROOF_LABEL)
            .update(role)
            .update(&challenge.session.to_le_bytes())
            .update(&challenge.prefill_nonce.0)
            .update(&challenge.decode_nonce.0)
            .finalize()
    }
}

fn without_line_end(bytes: &[u8]) -> &[u8] {
    let end = bytes.iter().rposition(|byte| !b"\r\n".contains(byte));
    &bytes[..end.map_or(0, |last| last + 1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const SECRET: &[u8] = b"0123456789abcdef";

    fn challenge() -> Challenge {
        Challenge {
            session: 9,
            prefill_nonce: Hex32([1; 32]),
            decode_nonce: Hex32([2; 32]),
        }
    }

    #[test]
    fn a_proof_holds_for_its_role_session_and_nonces_alone() {
        let token = Token::from_bytes(SECRET).unwrap();
        let proof = token.prove(Prover::PrefillNode, &challenge());
        assert!(token.verify(Prover::PrefillNode, &challenge(), &proof));
        assert!(!token.verify(Prover::DecodeNode, &challenge(), &proof));
        for other in [
            Challenge {
                session: 10,
                ..challenge()
            },
            Challenge {
                prefill_nonce: Hex32([3; 32]),
                ..challenge()
            },
            Challenge {
                decode_nonce: Hex32([3; 32]),
                ..challenge()
            },
            Challenge {
                prefill_nonce: Hex32([2; 32]),
                decode_nonce: Hex32([1; 32]),
                ..challenge()
            },
        ] {
            assert!(!token.verify(Prover::PrefillNode, &other, &proof));
        }
        let stranger = Token::from_bytes(b"0123456789abcdeg").unwrap();
        assert!(!stranger.verify(Prover::PrefillNode, &challenge(), &proof));
    }

    #[test]
    fn nothing_shows_the_token() {
        let token = Token::from_bytes(SECRET).unwrap();
        assert_eq!(format!("{token:?}"), "Token(..)");
        let error = Token::from_bytes(b"hunter2").unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"));
        assert!(
            error
                .to_string()
                .starts_with("the token has 7 bytes, 16 to 4096")
        );
    }

    #[test]
    fn file_and_variable_give_the_same_token() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(SECRET).unwrap();
        file.write_all(b"\r\n").unwrap();
        let from_file = Token::from_file(file.path()).unwrap();
        let from_variable = Token::from_variable(Some("0123456789abcdef".into())).unwrap();
        assert_eq!(from_file.key, from_variable.unwrap().key);
        assert_eq!(from_file.key, Token::from_bytes(SECRET).unwrap().key);
        assert!(Token::from_variable(None).unwrap().is_none());
        assert!(Token::from_variable(Some("\n\n".into())).is_err());

        file.write_all(&[b'x'; 2 * MAX_TOKEN_BYTES]).unwrap();
        assert!(Token::from_file(file.path()).is_err());
        let missing = Token::from_file(Path::new("no/such/file")).unwrap_err();
        assert!(missing.to_string().contains("--token-file"));
    }
}
