//! Reasons why a link is not faster, each with its sentence.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A reason why a link is not faster, with what shows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "cause")]
pub enum Cause {
    /// Both ends are on one machine.
    Loopback {
        sender_cpu_pct: f64,
        receiver_cpu_pct: Option<f64>,
    },
    /// Both ends ran on one core.
    OneCore { core: Option<u32> },
    /// The decode node's thread is saturated.
    Receiver { cpu_pct: f64 },
    /// The decode node does not read fast enough, for another reason.
    SlowReader { waited_pct: f64 },
    /// This node's thread is saturated.
    Sender { cpu_pct: f64 },
    /// The decode node's receive window is too small for the round trip.
    ReceiveWindow {
        waited_pct: f64,
        window_bytes: u64,
        rtt_us: u32,
        allows_gbps: f64,
    },
    /// This node's send buffer is too small for the round trip.
    SendBuffer {
        waited_pct: f64,
        window_bytes: u64,
        rtt_us: u32,
        allows_gbps: f64,
    },
    /// Packets are lost.
    Loss { resent_pct: f64 },
    /// The interface is as fast as it can be.
    InterfaceFull { name: String, speed_gbps: f64 },
    /// Another interface is faster.
    WrongInterface {
        used: String,
        used_gbps: f64,
        faster: String,
        faster_gbps: f64,
    },
    /// Congestion control sends at the rate that it takes the path for.
    Paced { name: String, pacing_gbps: f64 },
    /// The congestion window has not grown further.
    CongestionWindow {
        name: String,
        window_bytes: u64,
        rtt_us: u32,
        allows_gbps: f64,
    },
    /// A queue grows on the way.
    Queue { min_rtt_us: u32, rtt_us: u32 },
    /// Nothing else was found.
    Network,
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mb = |bytes: &u64| *bytes as f64 / 1e6;
        let ms = |us: &u32| f64::from(*us) / 1e3;
        match self {
            Self::Loopback {
                sender_cpu_pct,
                receiver_cpu_pct,
            } => {
                write!(
                    f,
                    "loopback: no network is in the way, the rate is that of copying and checking \
                     memory in two processes on one machine (sender {sender_cpu_pct:.0}% of a core"
                )?;
                if let Some(receiver) = receiver_cpu_pct {
                    write!(f, ", receiver {receiver:.0}%")?;
                }
                f.write_str(")")
            }
            Self::OneCore { core } => {
                f.write_str("one core: both ends ran on ")?;
                match core {
                    Some(core) => write!(f, "core {core}")?,
                    None => f.write_str("the same core")?,
                }
                f.write_str(" and took turns: give each a core of its own, as with taskset")
            }
            Self::Receiver { cpu_pct } => write!(
                f,
                "receiver: the decode node's network thread used {cpu_pct:.0}% of a core, and all \
                 connections share it"
            ),
            Self::SlowReader { waited_pct } => write!(
                f,
                "receiver: {waited_pct:.0}% of the busy time waited for the decode node to read \
                 what had arrived: look for other work on its cores"
            ),
            Self::Sender { cpu_pct } => write!(
                f,
                "sender: this node's network thread used {cpu_pct:.0}% of a core, and all \
                 connections share it"
            ),
            Self::ReceiveWindow {
                waited_pct,
                window_bytes,
                rtt_us,
                allows_gbps,
            } => write!(
                f,
                "window: {waited_pct:.0}% of the busy time waited for the decode node's receive \
                 window; its {:.1} MB over a round trip of {:.1} ms allow {allows_gbps:.2} Gbps a \
                 connection: raise net.ipv4.tcp_rmem there or use more streams",
                mb(window_bytes),
                ms(rtt_us)
            ),
            Self::SendBuffer {
                waited_pct,
                window_bytes,
                rtt_us,
                allows_gbps,
            } => write!(
                f,
                "window: {waited_pct:.0}% of the busy time waited for this node's send buffer; its \
                 {:.1} MB over a round trip of {:.1} ms allow {allows_gbps:.2} Gbps a connection: \
                 raise net.ipv4.tcp_wmem here or use more streams",
                mb(window_bytes),
                ms(rtt_us)
            ),
            Self::Loss { resent_pct } => write!(
                f,
                "network: {resent_pct:.2}% of the bytes were sent again, so something on the way \
                 drops packets at this rate"
            ),
            Self::InterfaceFull { name, speed_gbps } => {
                write!(
                    f,
                    "interface: the {speed_gbps} Gbit/s of {name} are reached"
                )
            }
            Self::WrongInterface {
                used,
                used_gbps,
                faster,
                faster_gbps,
            } => write!(
                f,
                "wrong interface: {used} ({used_gbps} Gbit/s) carries the connection while {faster} \
                 ({faster_gbps} Gbit/s) is up: if that leads to the peer, connect to the peer's \
                 address there or use --bind {faster}"
            ),
            Self::Paced { name, pacing_gbps } => write!(
                f,
                "congestion control: {name} sends at {pacing_gbps:.2} Gbps, which it takes the \
                 path for: compare with another --congestion-control"
            ),
            Self::CongestionWindow {
                name,
                window_bytes,
                rtt_us,
                allows_gbps,
            } => write!(
                f,
                "congestion control: {name}'s window of {:.2} MB over a round trip of {:.1} ms \
                 allows {allows_gbps:.2} Gbps a connection: use more streams or another \
                 --congestion-control",
                mb(window_bytes),
                ms(rtt_us)
            ),
            Self::Queue { min_rtt_us, rtt_us } => write!(
                f,
                "network: the link or a device on the way is full, its queue lengthens the round \
                 trip from {:.2} to {:.2} ms",
                ms(min_rtt_us),
                ms(rtt_us)
            ),
            Self::Network => f.write_str(
                "network: neither end was busy or out of buffer, so the link or a card on it sets \
                 the rate; compare with the speed of the interface",
            ),
        }
    }
}

/// The sentence for causes: the first is the limit, others are worth knowing.
pub fn sentence(causes: &[Cause]) -> String {
    let texts: Vec<String> = causes.iter().map(Cause::to_string).collect();
    texts.join("; also ")
}
