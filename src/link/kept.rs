//! A fit that an earlier `link` wrote, and whether it is one of the link that a run uses.

use std::path::Path;

use super::{Fit, FitOrigin, Sweep};
use crate::failure::Failure;
use crate::metrics::SCHEMA_VERSION;
use crate::text_file::{self, MAX_RECORD_BYTES};
use crate::wire::socket::SocketFacts;

/// The fit of a run's number of streams, from a file.
#[derive(Clone, Debug)]
pub struct KeptFit {
    /// The fit.
    pub fit: Fit,
    /// The file.
    pub origin: FitOrigin,
    socket: SocketFacts,
    transport: String,
}

impl Sweep {
    /// Reads what `link --format json -o FILE` wrote.
    pub fn read(path: &Path) -> Result<Self, Failure> {
        let unusable = |why: String| {
            Failure::Setting(format!(
                "--link-fit {}: {why}: write one with `disagg-bench link --format json -o FILE`",
                path.display()
            ))
        };
        let text = text_file::read(path, MAX_RECORD_BYTES).map_err(|e| unusable(e.to_string()))?;
        Self::parse(&text).map_err(unusable)
    }

    /// Of the text of such a file, or why it is none.
    pub fn parse(text: &str) -> Result<Self, String> {
        let version = serde_json::from_str(text)
            .map(|value: serde_json::Value| value["schema_version"].as_u64());
        match version {
            Ok(Some(version)) if version != u64::from(SCHEMA_VERSION) => {
                return Err(format!(
                    "its schema_version is {version}, this build reads {SCHEMA_VERSION}"
                ));
            }
            _ => {}
        }
        let sweep: Self = serde_json::from_str(text)
            .map_err(|error| format!("not what `link` writes ({error})"))?;
        sweep.check()?;
        Ok(sweep)
    }
}

impl KeptFit {
    /// Reads what `link --format json -o FILE` wrote and picks the fit for `streams` connections.
    pub fn read(path: &Path, streams: u32) -> Result<Self, Failure> {
        let (sweep, file) = (Sweep::read(path)?, path.display());
        let Some(fit) = sweep.fits.iter().find(|fit| fit.streams == streams) else {
            let known: Vec<String> = sweep.fits.iter().map(|f| f.streams.to_string()).collect();
            return Err(Failure::Setting(format!(
                "--link-fit {file} has no fit of --streams {streams}, it has {}: sweep that many \
                 with `link --streams {streams}`, or choose another number",
                match known.is_empty() {
                    true => "none at all".to_owned(),
                    false => known.join(", "),
                }
            )));
        };
        Ok(Self {
            fit: fit.clone(),
            origin: FitOrigin::File(file.to_string()),
            socket: sweep.socket,
            transport: sweep.transport,
        })
    }

    /// Refuses a fit of another peer, another transport or another congestion control than the
    /// run's connection has.
    pub fn check(&self, run: &SocketFacts, transport: &str) -> Result<(), Failure> {
        let ip = |facts: &SocketFacts| facts.peer.ip().to_canonical().to_string();
        let control = |facts: &SocketFacts| {
            let name = facts.congestion_control.as_deref();
            name.unwrap_or("no known congestion control").to_owned()
        };
        let differs = |what: &str, was: String, is: String| match was == is {
            true => Ok(()),
            false => Err(Failure::Setting(format!(
                "--link-fit was measured {what} {was}, this run's connection is {what} {is}: sweep \
                 the link that the run uses"
            ))),
        };
        if !(self.socket.loopback && run.loopback) {
            differs("to", ip(&self.socket), ip(run))?;
        }
        differs("over", self.transport.clone(), transport.to_owned())?;
        differs("with", control(&self.socket), control(run))
    }
}
