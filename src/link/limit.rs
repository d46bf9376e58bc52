//! What limits a link's rate, in a sentence.

use super::Observed;
use crate::wire::socket::SocketFacts;

/// Shares of time above which something is called the limit.
const LIMITING_SHARE: f64 = 0.3;
const BUSY_CORE_SHARE: f64 = 0.9;

/// Retransmitted share of bytes above which the network is called lossy.
const LOSSY_SHARE: f64 = 0.001;

/// What limits the rate, in a sentence, from what was seen while the fastest combination ran.
pub fn limit(socket: &SocketFacts, observed: &Observed) -> String {
    if socket.loopback {
        return "loopback: no network is in the way, the rate is that of copying and checking \
                memory in two processes on one machine"
            .into();
    }
    let (before, after) = (observed.before, observed.after);
    if let Some((before, after)) = before.zip(after) {
        let busy = after
            .busy_time_us
            .saturating_sub(before.busy_time_us)
            .max(1) as f64;
        let share = |after: u64, before: u64| after.saturating_sub(before) as f64 / busy;
        let sent = after.bytes_sent.saturating_sub(before.bytes_sent).max(1) as f64;
        let resent = after.bytes_retrans.saturating_sub(before.bytes_retrans) as f64;
        if resent / sent > LOSSY_SHARE {
            return format!(
                "network: {:.2}% of the bytes were sent again, so it drops packets at this rate",
                100.0 * resent / sent
            );
        }
        let receiver = share(after.rwnd_limited_us, before.rwnd_limited_us);
        if receiver > LIMITING_SHARE {
            return format!(
                "receiver: {:.0}% of the busy time waited for the peer's receive window, so its \
                 processor or its net.ipv4.tcp_rmem is the limit",
                100.0 * receiver
            );
        }
        let buffer = share(after.sndbuf_limited_us, before.sndbuf_limited_us);
        if buffer > LIMITING_SHARE {
            return format!(
                "window: {:.0}% of the busy time waited for this node's send buffer: raise \
                 net.ipv4.tcp_wmem or use more streams",
                100.0 * buffer
            );
        }
    }
    if observed.cpu_share > BUSY_CORE_SHARE {
        return format!(
            "sender: this process used {:.0}% of a core, and one connection's work is one core's",
            100.0 * observed.cpu_share
        );
    }
    "network: neither end was busy or out of buffer, so the link or a card on it sets the rate; \
     compare with the speed of the interface"
        .into()
}
