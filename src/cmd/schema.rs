//! `schema`: what `run.json` is made of, as a JSON schema.

use crate::terminal;

/// The schema of the version that this build writes; a test keeps it so.
const SCHEMA: &str = include_str!("../../schema/metrics-v1.json");

/// Prints it.
pub fn run() -> anyhow::Result<()> {
    terminal::print(SCHEMA.trim_end())
}
