//! What the flags of TLS amount to; without the feature `tls`, an error that says which build has it.

use std::path::Path;

use tempfile::TempDir;

use crate::cli::TlsArgs;
use crate::failure::Failure;
use crate::wire::Transport;

/// What connections are made of: TLS where an identity is given.
pub fn transport(args: &TlsArgs) -> Result<Transport, Failure> {
    match (&args.tls_identity, &args.tls_peer) {
        (Some(folder), Some(peer)) => pinned(folder, peer),
        // The parser demands both or none.
        _ => Ok(Transport::Tcp),
    }
}

/// Refuses an identity where the decode node is this command's own, which has none.
pub fn demand_peer(args: &TlsArgs, peer: Option<&str>) -> Result<(), Failure> {
    if peer.is_some() || args.tls_identity.is_none() {
        return Ok(());
    }
    Err(Failure::Setting(
        "--tls-identity is for a decode node elsewhere: give --peer HOST:PORT, or leave it out; \
         what TLS costs on this machine says `link --tls`"
            .into(),
    ))
}

/// Identities of two nodes that know each other, gone when dropped.
pub struct Pair {
    /// The prefill node's.
    pub prefill: TlsArgs,
    /// The decode node's.
    pub decode: TlsArgs,
    _folder: TempDir,
}

impl Pair {
    /// Makes both in a folder that only this user can enter.
    pub fn new() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let names = ["prefill", "decode"];
        let [prefill, decode] = names.map(|name| folder.path().join(name));
        let knows = |folder: &Path, peer: String| TlsArgs {
            tls_identity: Some(folder.to_owned()),
            tls_peer: Some(peer),
        };
        let (prefills, decodes) = (new_identity(&prefill)?, new_identity(&decode)?);
        Ok(Self {
            prefill: knows(&prefill, decodes),
            decode: knows(&decode, prefills),
            _folder: folder,
        })
    }
}

#[cfg(feature = "tls")]
fn pinned(folder: &Path, peer: &str) -> Result<Transport, Failure> {
    use crate::wire::tls::{Fingerprint, Identity, Pinned};

    let unusable =
        |error: crate::wire::WireError| Failure::Setting(format!("--tls-identity: {error}"));
    let peer: Fingerprint =
        (peer.parse()).map_err(|why| Failure::Setting(format!("--tls-peer: {why}")))?;
    let identity = Identity::read(folder).map_err(unusable)?;
    let pinned = Pinned::new(identity, peer).map_err(unusable)?;
    Ok(Transport::Tls(pinned))
}

/// Makes an identity in a folder and gives its fingerprint.
#[cfg(feature = "tls")]
pub fn new_identity(folder: &Path) -> Result<String, Failure> {
    let made = crate::wire::tls::Identity::make(folder);
    made.map(|fingerprint| fingerprint.to_string())
        .map_err(|error| Failure::Setting(error.to_string()))
}

#[cfg(not(feature = "tls"))]
fn pinned(_folder: &Path, _peer: &str) -> Result<Transport, Failure> {
    Err(without_tls())
}

/// Makes an identity in a folder and gives its fingerprint.
#[cfg(not(feature = "tls"))]
pub fn new_identity(_folder: &Path) -> Result<String, Failure> {
    Err(without_tls())
}

#[cfg(not(feature = "tls"))]
fn without_tls() -> Failure {
    Failure::Setting(
        "this build has no TLS: build one with `cargo build --release --locked --features tls`"
            .into(),
    )
}
