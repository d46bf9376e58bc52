//! What ended a run, and the exit code that tells it to scripts.

use crate::config::ConfigError;
use crate::model::ModelError;
use crate::model::source::SourceError;
use crate::wire::WireError;
use crate::workload::WorkloadError;

/// The run failed for a reason that none of the others name.
pub const RUN_FAILED: u8 = 1;
/// The command line makes no sense; clap uses the same.
pub const USAGE: u8 = 2;
/// Configuration, prompts or model.
pub const CONFIGURATION: u8 = 3;
/// Network, peer or wire version.
pub const NETWORK: u8 = 4;
/// The answers of the arms differ.
pub const OUTPUTS_DIFFER: u8 = 5;
/// A change beyond `--fail-on`.
pub const REGRESSION: u8 = 6;
/// Ctrl-C; what was measured is kept.
pub const INTERRUPTED: u8 = 130;

/// Ends of a run that are not another module's error.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The answers are not as equal as these nodes demand.
    #[error(
        "the outputs of the arms differ: do not use these figures; see `check` in the run file, \
         then test both nodes' memory and network cards and build them from one commit"
    )]
    OutputsDiffer,
    /// Ctrl-C.
    #[error("interrupted: what was measured is kept")]
    Interrupted,
    /// A setting that parses but cannot be used.
    #[error("{0}")]
    Setting(String),
    /// A change that `--fail-on` does not allow.
    #[error("{0}")]
    Regression(String),
    /// The local decode node did not start.
    #[error("{0}")]
    LocalPeer(String),
}

/// The exit code for an error.
pub fn exit_code(error: &anyhow::Error) -> u8 {
    let of = |cause: &(dyn std::error::Error + 'static)| {
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return Some(match failure {
                Failure::OutputsDiffer => OUTPUTS_DIFFER,
                Failure::Interrupted => INTERRUPTED,
                Failure::Regression(_) => REGRESSION,
                Failure::Setting(_) => CONFIGURATION,
                Failure::LocalPeer(_) => NETWORK,
            });
        }
        if let Some(error) = cause.downcast_ref::<WireError>() {
            return Some(match error {
                WireError::Checksum { .. } | WireError::PeerFailed { checksum: true, .. } => {
                    OUTPUTS_DIFFER
                }
                _ => NETWORK,
            });
        }
        let configuration = cause.is::<ModelError>()
            || cause.is::<SourceError>()
            || cause.is::<WorkloadError>()
            || cause.is::<ConfigError>();
        configuration.then_some(CONFIGURATION)
    };
    error.chain().find_map(of).unwrap_or(RUN_FAILED)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn the_code_is_found_under_any_context() {
        let wire: anyhow::Result<()> = Err(WireError::Closed).context("request 3");
        assert_eq!(exit_code(&wire.unwrap_err()), NETWORK);
        let model = anyhow::Error::from(ModelError::Tokenize("x".into()));
        assert_eq!(exit_code(&model), CONFIGURATION);
        assert_eq!(exit_code(&anyhow::anyhow!("disk full")), RUN_FAILED);
        assert_eq!(exit_code(&Failure::OutputsDiffer.into()), OUTPUTS_DIFFER);
        assert_eq!(exit_code(&Failure::Interrupted.into()), INTERRUPTED);
    }
}
