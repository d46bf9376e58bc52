//! What both ends did while transfers ran: processor time, cores and the kernel's counters, for
//! [`crate::link::causes`] to judge.

use std::time::{Duration, Instant};

use super::prefill::Connection;
use super::probing::Timed;
use crate::environment::thread_cpu_time;
use crate::link::{Observed, Totals};
use crate::wire::socket::TcpInfo;

/// A watch over the transfers of one combination; they must all run on the calling thread.
pub struct Watch {
    wall: Instant,
    cpu: Duration,
    before: Vec<TcpInfo>,
    transfers: Vec<Timed>,
}

impl Watch {
    /// Starts to look.
    pub fn start(connection: &Connection) -> Self {
        Self {
            before: connection.tcp_infos(),
            transfers: Vec::new(),
            cpu: thread_cpu_time(),
            wall: Instant::now(),
        }
    }

    /// Takes note of a transfer.
    pub fn saw(&mut self, transfer: Timed) {
        self.transfers.push(transfer);
    }

    /// What was seen. Cores are compared only where both nodes are on one machine.
    pub fn end(self, connection: &Connection, same_machine: bool) -> Observed {
        let wall = self.wall.elapsed().as_secs_f64();
        let cpu_share = (thread_cpu_time() - self.cpu).as_secs_f64() / wall;
        let after = connection.tcp_infos();
        let reports = || self.transfers.iter().filter_map(|t| t.receiving);
        let peer_wall_ns: u64 = reports().map(|r| r.wall_ns).sum();
        let peer_cpu_ns: u64 = reports().map(|r| r.cpu_ns).sum();
        let same_core = |t: &&Timed| {
            let peer_core = t.receiving.and_then(|r| r.core);
            peer_core.is_some() && peer_core == t.core
        };
        let together = self.transfers.iter().filter(same_core).count();
        Observed {
            streams: connection.streams(),
            cpu_share,
            peer_cpu_share: (peer_wall_ns > 0).then(|| peer_cpu_ns as f64 / peer_wall_ns as f64),
            same_core_share: (same_machine && !self.transfers.is_empty())
                .then(|| together as f64 / self.transfers.len() as f64),
            core: self.transfers.last().and_then(|t| t.core),
            send_buffer_bytes: connection.send_buffer_bytes(),
            totals: Totals::between(&self.before, &after),
            before: self.before.first().copied(),
            after: after.first().copied(),
        }
    }
}
