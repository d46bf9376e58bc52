//! What limits a link's rate: causes from what was seen of both ends.

use serde::{Deserialize, Serialize};

use super::Cause;
use crate::environment::NetworkInterface;
use crate::wire::socket::{SocketFacts, TcpInfo};

/// Share of TCP's busy time from which what it waited for is called the limit.
const LIMITING_SHARE: f64 = 0.3;

/// Share of a core from which a thread is called saturated.
const BUSY_CORE_SHARE: f64 = 0.9;

/// Share of the transfers from which both ends are said to run on one core.
const SAME_CORE_SHARE: f64 = 0.8;

/// Resent share of bytes from which the network is called lossy.
const LOSSY_SHARE: f64 = 0.001;

/// A window that allows at most this many times the measured rate explains it.
const EXPLAINS: f64 = 2.0;

/// An interface is full from this share of its speed, and its speed is fiction above the other.
const FULL_SHARE: f64 = 0.85;
const POSSIBLE_SHARE: f64 = 1.05;

/// Another interface is worth a hint from this many times the speed.
const FASTER: f64 = 1.5;

/// A round trip that grows by this factor and time stands in a queue.
const QUEUE_FACTOR: f64 = 2.0;
const QUEUE_US: u32 = 200;

/// Pacing explains a rate from this share of it.
const PACED_SHARE: f64 = 0.6;

/// What virtual interfaces claim as their speed, whatever they can do.
const VIRTUAL_SPEED_MBPS: u64 = 10_000;

/// What was seen of both ends while the fastest combination of some length ran.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Observed {
    /// TCP connections.
    pub streams: u32,
    /// CPU time of this node's network thread over wall time.
    pub cpu_share: f64,
    /// The same of the decode node; null where it does not tell.
    pub peer_cpu_share: Option<f64>,
    /// Share of the transfers that ended with both nodes on one core; null on two machines.
    pub same_core_share: Option<f64>,
    /// The core that this node was on last.
    pub core: Option<u32>,
    /// Send buffer of the first connection at the end.
    pub send_buffer_bytes: Option<u64>,
    /// What the kernel counted meanwhile, over all connections.
    pub totals: Option<Totals>,
    /// The kernel's counters before, of the first connection.
    pub before: Option<TcpInfo>,
    /// And after.
    pub after: Option<TcpInfo>,
}

/// What the kernel counted over all connections while transfers ran.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Time with something to send, summed over the connections, as the next two.
    pub busy_time_us: u64,
    /// Part of it that waited for the peer's receive window.
    pub rwnd_limited_us: u64,
    /// Part of it that waited for our own send buffer.
    pub sndbuf_limited_us: u64,
    /// Bytes sent, retransmissions counted.
    pub bytes_sent: u64,
    /// Bytes sent again.
    pub bytes_retrans: u64,
}

impl Totals {
    /// The growth of the counters of the same connections; `None` where the kernel gave none.
    pub fn between(before: &[TcpInfo], after: &[TcpInfo]) -> Option<Self> {
        let same = !before.is_empty() && before.len() == after.len();
        let growth = |count: fn(&TcpInfo) -> u64| {
            let pairs = before.iter().zip(after);
            pairs.map(|(b, a)| count(a).saturating_sub(count(b))).sum()
        };
        same.then(|| Self {
            busy_time_us: growth(|info| info.busy_time_us),
            rwnd_limited_us: growth(|info| info.rwnd_limited_us),
            sndbuf_limited_us: growth(|info| info.sndbuf_limited_us),
            bytes_sent: growth(|info| info.bytes_sent),
            bytes_retrans: growth(|info| info.bytes_retrans),
        })
    }

    fn share_of_busy(&self, part_us: u64) -> f64 {
        part_us as f64 / self.busy_time_us.max(1) as f64
    }
}

/// All that a judgement needs.
#[derive(Clone, Copy, Debug)]
pub struct Evidence<'a> {
    /// Median rate of the fastest combination.
    pub gbps: f64,
    /// What was seen meanwhile.
    pub seen: &'a Observed,
    /// Its first connection.
    pub socket: &'a SocketFacts,
    /// The interface that carried it.
    pub interface: Option<&'a NetworkInterface>,
    /// All interfaces of this machine.
    pub interfaces: &'a [NetworkInterface],
}

/// What limits the rate, first, and what else is wrong; never empty.
pub fn causes(evidence: &Evidence<'_>) -> Vec<Cause> {
    let seen = evidence.seen;
    let percent = |share: f64| 100.0 * share;
    let mut causes = Vec::new();
    let together = seen
        .same_core_share
        .is_some_and(|share| share >= SAME_CORE_SHARE);
    let both_share = seen.cpu_share + seen.peer_cpu_share.unwrap_or(0.0);
    if together && both_share >= BUSY_CORE_SHARE {
        causes.push(Cause::OneCore { core: seen.core });
    }
    if evidence.socket.loopback {
        causes.push(Cause::Loopback {
            sender_cpu_pct: percent(seen.cpu_share),
            receiver_cpu_pct: seen.peer_cpu_share.map(percent),
        });
        return causes;
    }
    let wrong_interface = evidence.wrong_interface();
    if causes.is_empty() {
        let full = evidence.interface_full();
        let found = match (&full, &wrong_interface) {
            // The hint says it all.
            (Some(_), Some(_)) => None,
            (Some(_), None) => full,
            (None, _) => Some(evidence.limit()),
        };
        causes.extend(found);
    }
    causes.extend(wrong_interface);
    causes
}

impl Evidence<'_> {
    /// What TCP and the processors say.
    fn limit(&self) -> Cause {
        let percent = |share: f64| 100.0 * share;
        self.loss()
            .or_else(|| self.waiting())
            .or_else(|| {
                let (ours, theirs) = (self.seen.cpu_share, self.seen.peer_cpu_share.unwrap_or(0.0));
                match ours.max(theirs) >= BUSY_CORE_SHARE {
                    true if theirs >= ours => Some(Cause::Receiver {
                        cpu_pct: percent(theirs),
                    }),
                    true => Some(Cause::Sender {
                        cpu_pct: percent(ours),
                    }),
                    false => None,
                }
            })
            .or_else(|| self.congestion())
            .unwrap_or(Cause::Network)
    }

    fn loss(&self) -> Option<Cause> {
        let totals = self.seen.totals?;
        let share = totals.bytes_retrans as f64 / totals.bytes_sent.max(1) as f64;
        (share > LOSSY_SHARE).then_some(Cause::Loss {
            resent_pct: 100.0 * share,
        })
    }

    /// What TCP says that it waited for.
    fn waiting(&self) -> Option<Cause> {
        let (totals, after) = (self.seen.totals?, self.seen.after?);
        let receiver = totals.share_of_busy(totals.rwnd_limited_us);
        let buffer = totals.share_of_busy(totals.sndbuf_limited_us);
        // Without the queue that a full link builds up, which no window is to blame for.
        let rtt_us = after.min_rtt_us;
        if receiver > LIMITING_SHARE && receiver >= buffer {
            if let Some(share) = (self.seen.peer_cpu_share).filter(|s| *s >= BUSY_CORE_SHARE) {
                return Some(Cause::Receiver {
                    cpu_pct: 100.0 * share,
                });
            }
            let waited_pct = 100.0 * receiver;
            let window = after.peer_window_bytes.map(u64::from);
            let window = window.and_then(|bytes| Some((bytes, self.explains(bytes, rtt_us)?)));
            return Some(match window {
                Some((window_bytes, allows_gbps)) => Cause::ReceiveWindow {
                    waited_pct,
                    window_bytes,
                    rtt_us,
                    allows_gbps,
                },
                None => Cause::SlowReader { waited_pct },
            });
        }
        let window_bytes = self.seen.send_buffer_bytes?;
        let allows_gbps = self.explains(window_bytes, rtt_us)?;
        (buffer > LIMITING_SHARE).then_some(Cause::SendBuffer {
            waited_pct: 100.0 * buffer,
            window_bytes,
            rtt_us,
            allows_gbps,
        })
    }

    /// What congestion control and the queue on the way say.
    fn congestion(&self) -> Option<Cause> {
        let after = self.seen.after?;
        let control = self.socket.congestion_control.as_deref();
        let name = control.unwrap_or("congestion control").to_owned();
        let pacing_gbps =
            after.pacing_rate_bytes_per_s as f64 * 8.0 / 1e9 * f64::from(self.seen.streams);
        if name.starts_with("bbr") && self.gbps >= PACED_SHARE * pacing_gbps {
            return Some(Cause::Paced { name, pacing_gbps });
        }
        let (min_rtt_us, rtt_us) = (after.min_rtt_us, after.rtt_us);
        let grown = f64::from(rtt_us) >= QUEUE_FACTOR * f64::from(min_rtt_us);
        if grown && rtt_us.saturating_sub(min_rtt_us) >= QUEUE_US {
            return Some(Cause::Queue { min_rtt_us, rtt_us });
        }
        let window_bytes = u64::from(after.snd_cwnd_segments) * u64::from(after.snd_mss_bytes);
        let allows_gbps = self.explains(window_bytes, min_rtt_us)?;
        Some(Cause::CongestionWindow {
            name,
            window_bytes,
            rtt_us: min_rtt_us,
            allows_gbps,
        })
    }

    /// The rate that a window allows one connection over a round trip, where that is little enough
    /// to explain what was measured.
    fn explains(&self, window_bytes: u64, rtt_us: u32) -> Option<f64> {
        let allows_gbps = window_bytes as f64 * 8.0 / f64::from(rtt_us.max(1)) / 1e3;
        let each_gbps = self.gbps / f64::from(self.seen.streams.max(1));
        (allows_gbps <= EXPLAINS * each_gbps).then_some(allows_gbps)
    }

    /// Speed of the carrying interface, where it can be believed.
    fn speed_gbps(&self) -> Option<f64> {
        let interface = self.interface?;
        let believed = |mbps: &u64| interface.driver.is_some() || *mbps != VIRTUAL_SPEED_MBPS;
        let gbps = interface.speed_mbps.filter(believed)? as f64 / 1e3;
        (self.gbps <= POSSIBLE_SHARE * gbps).then_some(gbps)
    }

    fn interface_full(&self) -> Option<Cause> {
        let speed_gbps = self.speed_gbps()?;
        (self.gbps >= FULL_SHARE * speed_gbps).then(|| Cause::InterfaceFull {
            name: self.interface.map_or_else(String::new, |i| i.name.clone()),
            speed_gbps,
        })
    }

    fn wrong_interface(&self) -> Option<Cause> {
        let (used, used_gbps) = (self.interface?, self.speed_gbps()?);
        let gbps =
            |other: &&NetworkInterface| other.speed_mbps.map_or(0.0, |mbps| mbps as f64 / 1e3);
        let real = |other: &&NetworkInterface| {
            other.is_up && !other.is_loopback && other.driver.is_some() && other.name != used.name
        };
        let others = self.interfaces.iter().filter(real);
        let faster = others.max_by(|a, b| gbps(a).total_cmp(&gbps(b)))?;
        (gbps(&faster) >= FASTER * used_gbps).then(|| Cause::WrongInterface {
            used: used.name.clone(),
            used_gbps,
            faster: faster.name.clone(),
            faster_gbps: gbps(&faster),
        })
    }
}

#[cfg(test)]
mod tests;
