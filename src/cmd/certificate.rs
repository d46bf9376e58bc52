//! `certificate`: a certificate and key of this node's own, for TLS.

use crate::cli::CertificateArgs;
use crate::preparation;
use crate::terminal::{self, Terminal};

/// Makes them and prints the fingerprint, which is what the peer needs.
pub fn run(args: &CertificateArgs, terminal: &Terminal) -> anyhow::Result<()> {
    let fingerprint = preparation::new_identity(&args.out)?;
    terminal::print(&fingerprint)?;
    terminal.line(&format!(
        "made {}; give the peer this fingerprint with --tls-peer, by a way that you trust",
        args.out.display()
    ));
    Ok(())
}
