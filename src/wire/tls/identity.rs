//! A node's certificate and key: made once, kept in a folder, known to peers by a fingerprint. The
//! key leaves its file for this process's memory alone.

use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::str::FromStr;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
use sha2::{Digest, Sha256};
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::wire::error::WireError;
use crate::wire::message::Hex32;

/// Files of an identity in its folder.
const CERTIFICATE_FILE: &str = "certificate.pem";
const KEY_FILE: &str = "key.pem";

/// Modes of what is made: the owner's alone, but for the certificate, which is no secret.
const FOLDER_MODE: u32 = 0o700;
const KEY_MODE: u32 = 0o600;
const CERTIFICATE_MODE: u32 = 0o644;

/// Largest file that is read, in bytes: far beyond any certificate or key.
const MAX_FILE_BYTES: u64 = 64 << 10;

/// Bits of a mode that let others than the owner in.
const OTHERS: u32 = 0o077;

/// SHA-256 of a certificate in DER, as `openssl x509 -fingerprint -sha256` gives it.
#[derive(Clone, Copy, Debug)]
pub struct Fingerprint(Hex32);

impl Fingerprint {
    /// That of a certificate.
    pub fn of(certificate: &CertificateDer<'_>) -> Self {
        Self(Hex32(Sha256::digest(certificate).into()))
    }

    /// Whether both are the same, in constant time.
    pub fn equals(&self, other: &Self) -> bool {
        // Comparing two blake3 hashes takes the same time wherever they differ; so they are called
        // here for what they are, 32 bytes.
        blake3::Hash::from_bytes(self.0.0) == blake3::Hash::from_bytes(other.0.0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&String::from(self.0))
    }
}

impl FromStr for Fingerprint {
    type Err = String;

    /// Reads hexadecimal digits, with colons between them or without.
    fn from_str(text: &str) -> Result<Self, String> {
        let digits = text.replace(':', "");
        Hex32::try_from(digits).map(Self).map_err(|why| {
            format!(
                "{text:?} is no fingerprint, {why}: give what `disagg-bench certificate` printed \
                 on the peer"
            )
        })
    }
}

/// What a node shows and proves itself with.
pub struct Identity {
    pub(super) certificate: CertificateDer<'static>,
    pub(super) key: PrivateKeyDer<'static>,
}

impl Identity {
    /// Makes a self-signed certificate and its key in a folder; never over what is there.
    pub fn make(folder: &Path) -> Result<Fingerprint, WireError> {
        let failed = |what: &Path, error: io::Error| {
            WireError::Auth(format!(
                "cannot write {} ({error}): choose another folder, nothing is overwritten",
                what.display()
            ))
        };
        let made = self_signed().map_err(|error| {
            WireError::Auth(format!("no certificate could be made ({error}): try again"))
        });
        let (certificate, key) = made?;
        (DirBuilder::new().recursive(true).mode(FOLDER_MODE))
            .create(folder)
            .map_err(|error| failed(folder, error))?;
        let files = [
            (CERTIFICATE_FILE, CERTIFICATE_MODE, certificate.pem()),
            (KEY_FILE, KEY_MODE, key.serialize_pem()),
        ];
        for (name, mode, text) in files {
            let path = folder.join(name);
            let written = new_file(&path, mode).and_then(|mut file| {
                file.write_all(text.as_bytes())?;
                file.sync_all()
            });
            written.map_err(|error| failed(&path, error))?;
        }
        Ok(Fingerprint::of(certificate.der()))
    }

    /// Reads what [`Identity::make`] made; a key that others can read is refused.
    pub fn read(folder: &Path) -> Result<Self, WireError> {
        let (certificate, _) = item(&folder.join(CERTIFICATE_FILE), "certificate")?;
        let path = folder.join(KEY_FILE);
        let (key, mode) = item(&path, "key")?;
        if mode & OTHERS != 0 {
            return Err(WireError::Auth(format!(
                "others than its owner may use {} (mode {mode:o}): `chmod 600` it, and make a new \
                 identity if it may have been read",
                path.display(),
            )));
        }
        Ok(Self { certificate, key })
    }

    /// What peers know it by.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint::of(&self.certificate)
    }
}

fn self_signed() -> Result<(rcgen::Certificate, KeyPair), rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut parameters = CertificateParams::default();
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, "disagg-bench node");
    parameters.distinguished_name = name;
    Ok((parameters.self_signed(&key)?, key))
}

fn new_file(path: &Path, mode: u32) -> io::Result<File> {
    (OpenOptions::new().write(true).create_new(true))
        .mode(mode)
        .open(path)
}

/// What a PEM file holds, and who may use it.
fn item<T: PemObject>(path: &Path, what: &str) -> Result<(T, u32), WireError> {
    let read = File::open(path)
        .and_then(|file| {
            let mode = file.metadata()?.permissions().mode() & 0o777;
            Ok((file.take(MAX_FILE_BYTES), mode))
        })
        .map_err(pem::Error::Io)
        .and_then(|(file, mode)| Ok((T::from_pem_reader(file)?, mode)));
    read.map_err(|error| {
        // What the file holds instead stays unsaid: it may be part of a key.
        let why = match error {
            pem::Error::Io(error) => error.to_string(),
            _ => format!("it holds no {what} in PEM"),
        };
        WireError::Auth(format!(
            "cannot read {} ({why}): make an identity with `disagg-bench certificate --out FOLDER`",
            path.display()
        ))
    })
}
