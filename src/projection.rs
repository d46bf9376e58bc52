//! The same requests on other links: from a measured run, a fitted link and published measurements
//! of other transports.
//!
//! A transfer takes `alpha + pieces x overhead + bytes / beta(size)` (`carrier`), and overlaps with
//! prefill layer by layer (`exposure`). `measured` is what a run gives to it, `outlook` the answer,
//! `trust` says when there is none, `score` holds it against other runs. `engine` restates a run
//! for faster compute, `unmeasured` needs no run at all. Every number from here is a projection and
//! is labelled as such.

mod carrier;
mod engine;
pub mod exposure;
mod measured;
mod outlook;
mod range;
mod score;
mod surface;
mod transport;
mod trust;
mod unmeasured;

pub use carrier::{Carrier, payload_share};
pub use engine::{EngineSpeed, FASTER_ENGINES, Restated, restate};
pub use measured::{Measured, ModeFigures};
pub use outlook::{Estimate, LINE_RATES_GBPS, Links, Outlook, Projection, Rdma, outlooks, predict};
pub use range::Range;
pub use score::{
    AgainstNoTransfer, EXPOSED_ERROR_SHARE, ScoredChange, ScoredRow, against_no_transfer, score,
};
pub use surface::{Column, SURFACE_RATES_GBPS, Surface, surface};
pub use transport::{Transport, sources};
pub use trust::{distrust, distrust_of_fit};
pub use unmeasured::{Carried, Unmeasured, WithoutModel};

#[cfg(test)]
mod tests;
