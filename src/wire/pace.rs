//! How long a frame that has begun may take: a peer that stalls, or sends or reads a byte at a
//! time, must not hold a connection and the memory behind it for good. Waiting for a frame to begin
//! is the caller's business.

use std::time::Duration;

use tokio::time::timeout;

use super::error::WireError;

/// The slowest that a frame may move.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Granted to every frame: longer than a network is out of order when a cable is replugged.
    pub grace: Duration,
    /// And to each of its bytes, at this rate.
    pub bytes_per_s: u64,
}

impl Pace {
    /// What every node grants unless told otherwise: 15 s, and 64 KiB a second, which is half a
    /// megabit.
    pub const USUAL: Pace = Pace {
        grace: Duration::from_secs(15),
        bytes_per_s: 64 << 10,
    };

    /// Time for so many bytes.
    pub fn allowance(&self, bytes: u64) -> Duration {
        self.grace + Duration::from_secs_f64(bytes as f64 / self.bytes_per_s.max(1) as f64)
    }

    /// Waits for a read of `bytes` that is under way.
    pub(super) async fn reading<T>(
        &self,
        bytes: u64,
        read: impl Future<Output = T>,
    ) -> Result<T, WireError> {
        let after = self.allowance(bytes);
        let late = |_| WireError::TooSlow { bytes, after };
        timeout(after, read).await.map_err(late)
    }

    /// Waits for a write of `bytes`.
    pub(super) async fn writing<T>(
        &self,
        bytes: u64,
        write: impl Future<Output = T>,
    ) -> Result<T, WireError> {
        let after = self.allowance(bytes);
        let late = |_| WireError::NotReading { bytes, after };
        timeout(after, write).await.map_err(late)
    }
}
