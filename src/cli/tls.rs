//! TLS between the nodes.

use std::path::PathBuf;

use clap::Args;

/// Over the flags that a build without the feature takes only to say that it lacks it.
pub(super) const HEADING: &str = "TLS, in a build with `--features tls`";

/// Who this node is and whom it talks to. Paths and fingerprints are no secrets; the key stays in
/// its file.
#[derive(Clone, Debug, Default, Args)]
pub struct TlsArgs {
    /// Speak TLS alone, with the certificate and key that `certificate` made in this folder
    #[arg(long, value_name = "FOLDER", requires = "tls_peer", help_heading = HEADING)]
    pub tls_identity: Option<PathBuf>,
    /// The only peer to talk to: its certificate's SHA-256, as `certificate` printed it there
    #[arg(long, value_name = "FINGERPRINT", requires = "tls_identity", help_heading = HEADING)]
    pub tls_peer: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:
  disagg-bench certificate --out identity     on both nodes, each its own
  disagg-bench serve-decode --listen 0.0.0.0:5556 \\
    --tls-identity identity --tls-peer FINGERPRINT
  disagg-bench split --peer 10.0.0.2:5556 \\
    --tls-identity identity --tls-peer FINGERPRINT")]
pub struct CertificateArgs {
    /// Folder for certificate.pem and key.pem; what is there is never overwritten
    #[arg(long, value_name = "FOLDER")]
    pub out: PathBuf,
}
