//! Mutual TLS 1.3 between two nodes that know each other's certificates: each shows its own and
//! takes only the one whose fingerprint it was given, so no authority, name or date is asked. What
//! TLS is made of is rustls' with ring; files are `identity`'s.

mod identity;

pub use identity::{Fingerprint, Identity};

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWriteExt, BufReader, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::rustls::client::Resumption;
use tokio_rustls::rustls::client::danger::{
    HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier,
};
use tokio_rustls::rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use tokio_rustls::rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use tokio_rustls::rustls::{
    self, AlertDescription, CertificateError, ClientConfig, DigitallySignedStruct,
    DistinguishedName, OtherError, ServerConfig, SignatureScheme, version,
};
use tokio_rustls::{TlsAcceptor, TlsConnector, TlsStream};

use super::connection::{FrameReader, FrameWriter};
use super::error::WireError;
use super::frame::MAX_HELLO_BYTES;
use super::handshake::{REFUSAL_LINGER, refuse};
use super::message::Refuse;
use super::stream;

/// First byte of everything that a TLS handshake sends.
const HANDSHAKE_RECORD: u8 = 0x16;

/// A name that rustls wants and nobody looks at: certificates are known by their fingerprints.
const ANY_NAME: &str = "disagg-bench";

/// Bytes taken from the socket at a time: rustls asks for 4 KiB, each of which would be a system
/// call, and a record has up to 16 KiB.
const READ_BUFFER_BYTES: usize = 128 << 10;

type Stream = TlsStream<BufReader<TcpStream>>;

/// One node's identity and the only peer that it talks to.
#[derive(Clone)]
pub struct Pinned {
    ours: Fingerprint,
    connector: TlsConnector,
    acceptor: TlsAcceptor,
}

impl Pinned {
    /// A node that shows `identity` and talks to `peer` alone.
    pub fn new(identity: Identity, peer: Fingerprint) -> Result<Self, WireError> {
        let ours = identity.fingerprint();
        let Identity { certificate, key } = identity;
        let unusable = |error: rustls::Error| {
            WireError::Auth(format!(
                "certificate and key cannot be used together ({error}): make both anew with \
                 `disagg-bench certificate`"
            ))
        };
        let provider = Arc::new(ring::default_provider());
        let verifier = Arc::new(PinnedPeer {
            want: peer,
            algorithms: provider.signature_verification_algorithms,
        });
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&verifier) as Arc<dyn ServerCertVerifier>)
            .with_client_auth_cert(vec![certificate.clone()], key.clone_key())
            .map_err(unusable)?;
        client.enable_sni = false;
        // A resumed session would show no certificate.
        client.resumption = Resumption::disabled();
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(unusable)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(vec![certificate], key)
            .map_err(unusable)?;
        server.send_tls13_tickets = 0;
        Ok(Self {
            ours,
            connector: TlsConnector::from(Arc::new(client)),
            acceptor: TlsAcceptor::from(Arc::new(server)),
        })
    }

    /// The prefill node's side of the TLS handshake. Not cancel safe.
    pub(super) async fn connect(
        &self,
        stream: TcpStream,
    ) -> Result<(stream::ReadHalf, stream::WriteHalf), WireError> {
        let socket = duplicate(&stream)?;
        let name = ServerName::try_from(ANY_NAME).expect("the constant is a DNS name");
        let connecting = self.connector.connect(name, buffered(stream));
        match connecting.into_fallible().await {
            Ok(stream) => Ok(self.halves(stream.into(), socket)),
            Err((error, stream)) => Err(self.failed(error, stream).await),
        }
    }

    /// The decode node's side of the TLS handshake; a peer that speaks none is told so. Not cancel
    /// safe.
    pub(super) async fn accept(
        &self,
        stream: TcpStream,
    ) -> Result<(stream::ReadHalf, stream::WriteHalf), WireError> {
        let mut first = [0];
        let peeked = stream.peek(&mut first).await;
        match peeked.map_err(in_handshake)? {
            0 => return Err(WireError::Closed),
            _ if first[0] != HANDSHAKE_RECORD => return Err(refuse_plain(stream).await),
            _ => {}
        }
        let socket = duplicate(&stream)?;
        let accepting = self.acceptor.accept(buffered(stream));
        match accepting.into_fallible().await {
            Ok(stream) => Ok(self.halves(stream.into(), socket)),
            Err((error, stream)) => Err(self.failed(error, stream).await),
        }
    }

    fn halves(&self, stream: Stream, socket: OwnedFd) -> (stream::ReadHalf, stream::WriteHalf) {
        let (half, write) = tokio::io::split(stream);
        let read = ReadHalf {
            half,
            socket,
            ours: self.ours,
        };
        (stream::ReadHalf::Tls(read), stream::WriteHalf::Tls(write))
    }

    /// Lets the peer read the alert that tells it why, and says here what it was.
    async fn failed(&self, error: io::Error, mut stream: BufReader<TcpStream>) -> WireError {
        let linger = async {
            if stream.shutdown().await.is_ok() {
                FrameReader::new(&mut stream).drain(MAX_HELLO_BYTES).await;
            }
        };
        // A peer that does not close changes nothing: it is refused already.
        let _ = timeout(REFUSAL_LINGER, linger).await;
        match of_tls(&error) {
            Some(reason) => WireError::Auth(explained(reason, &self.ours)),
            None => in_handshake(error),
        }
    }
}

fn buffered(stream: TcpStream) -> BufReader<TcpStream> {
    BufReader::with_capacity(READ_BUFFER_BYTES, stream)
}

/// The socket once more, to ask the kernel about it while TLS has it.
fn duplicate(stream: &TcpStream) -> Result<OwnedFd, WireError> {
    let duplicate = stream.as_fd().try_clone_to_owned();
    duplicate.map_err(|error| WireError::Io {
        doing: "duplicating a socket",
        error,
    })
}

fn in_handshake(error: io::Error) -> WireError {
    WireError::Io {
        doing: "the TLS handshake",
        error,
    }
}

/// Tells a peer of ours that it needs TLS here; gives what it was.
async fn refuse_plain(stream: TcpStream) -> WireError {
    let (read, write) = stream.into_split();
    let (mut reader, mut writer) = (FrameReader::new(read), FrameWriter::new(write));
    let error = match reader.read_header().await {
        Ok(_) => WireError::Auth(
            "the decode node demands TLS and the prefill node speaks plain TCP: give the prefill \
             node --tls-identity and --tls-peer"
                .to_owned(),
        ),
        Err(error) => error,
    };
    if let Some(code) = error.refuse_code() {
        let reason = error.to_string();
        refuse(&mut reader, &mut writer, Refuse { code, reason }).await;
    }
    error
}

/// What rustls found wrong, where it was rustls.
fn of_tls(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A fault of TLS in words that name the next step.
fn explained(error: &rustls::Error, ours: &Fingerprint) -> String {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(why)) => why.to_string(),
        rustls::Error::AlertReceived(
            alert @ (AlertDescription::CertificateUnknown
            | AlertDescription::BadCertificate
            | AlertDescription::CertificateRequired),
        ) => format!(
            "the peer refused this node's certificate (TLS alert {alert:?}), whose fingerprint is \
             {ours}: give the peer that one with --tls-peer"
        ),
        rustls::Error::InvalidMessage(_) => format!(
            "the peer answers without TLS ({error}): give it --tls-identity and --tls-peer, or \
             leave them out here"
        ),
        _ => format!("TLS failed ({error}): build both nodes from one commit"),
    }
}

/// Takes the one certificate that has the fingerprint.
#[derive(Debug)]
struct PinnedPeer {
    want: Fingerprint,
    algorithms: WebPkiSupportedAlgorithms,
}

/// A peer with another certificate.
#[derive(Debug, thiserror::Error)]
#[error(
    "the peer's certificate has the fingerprint {got}, --tls-peer is {want}: if that peer is the \
     right one, give the fingerprint that `disagg-bench certificate` printed there"
)]
struct OtherPeer {
    got: Fingerprint,
    want: Fingerprint,
}

impl PinnedPeer {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), rustls::Error> {
        let (got, want) = (Fingerprint::of(certificate), self.want);
        if got.equals(&want) {
            return Ok(());
        }
        let why = Arc::new(OtherPeer { got, want });
        Err(CertificateError::Other(OtherError(why)).into())
    }
}

impl ServerCertVerifier for PinnedPeer {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.check(certificate)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for PinnedPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.check(certificate)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The half of a TLS connection that is read.
#[derive(Debug)]
pub struct ReadHalf {
    half: tokio::io::ReadHalf<Stream>,
    socket: OwnedFd,
    ours: Fingerprint,
}

/// The half of a TLS connection that is written.
pub type WriteHalf = tokio::io::WriteHalf<Stream>;

impl ReadHalf {
    /// The TCP socket underneath.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let error = match ready!(Pin::new(&mut this.half).poll_read(context, buffer)) {
            Ok(()) => return Poll::Ready(Ok(())),
            Err(error) => error,
        };
        // The peer left without a farewell. Frames say themselves whether they are whole, and
        // requests whether they are done, so nobody can cut off anything unnoticed.
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Poll::Ready(Ok(()));
        }
        // A prefill node hears only here that its certificate was refused: its side of the
        // handshake is over before the decode node looks at it.
        let error = match of_tls(&error) {
            Some(reason) => io::Error::new(error.kind(), explained(reason, &this.ours)),
            None => error,
        };
        Poll::Ready(Err(error))
    }
}
