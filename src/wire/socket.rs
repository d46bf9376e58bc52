//! TCP sockets: opening them with errors that say what to do, setting the two options that the
//! wire needs, and reading back what the kernel really uses. Bytes are `connection`'s.
//!
//! The only unsafe code of the wire is here: `getsockopt(TCP_INFO)`, which no crate wraps.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use socket2::{SockAddr, SockRef, TcpKeepalive};
use tokio::net::{TcpListener, TcpSocket, TcpStream, lookup_host};
use tokio::time::timeout;

use super::Source;
use super::error::WireError;

/// Connections that may wait to be accepted: more than any run opens at once.
const LISTEN_BACKLOG: u32 = 128;

/// Congestion control on loopback, where nothing is to be shared: the plainest one, which every
/// Linux user may choose. Some systems' default (BBR) paces, and makes loopback three times slower.
const LOOPBACK_CONGESTION_CONTROL: &str = "reno";

/// Idle time after which a peer is probed, and the time between probes.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
const KEEPALIVE_EVERY: Duration = Duration::from_secs(5);

/// Longest that sent data may stay unread or unacknowledged before the connection is given up.
#[cfg(target_os = "linux")]
const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(60);

/// One TCP connection as the kernel reports it after it was set up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SocketFacts {
    /// Our address.
    pub local: SocketAddr,
    /// The peer's address.
    pub peer: SocketAddr,
    /// Whether both ends are on this machine, as far as addresses tell.
    pub loopback: bool,
    /// Congestion control in use, where the system names one.
    pub congestion_control: Option<String>,
    /// Whether small frames leave at once.
    pub nodelay: bool,
    /// Send buffer now, in bytes; the kernel tunes it as it goes.
    pub send_buffer_bytes: usize,
    /// Receive buffer now, in bytes; the kernel tunes it as it goes.
    pub recv_buffer_bytes: usize,
    /// Largest segment, in bytes, where the system tells.
    pub mss_bytes: Option<u32>,
}

/// What the kernel has counted on one TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TcpInfo {
    /// Smoothed round trip.
    pub rtt_us: u32,
    /// Mean deviation of the round trip.
    pub rtt_var_us: u32,
    /// Smallest round trip seen of late.
    pub min_rtt_us: u32,
    /// Retransmissions of the segment now waiting.
    pub retransmits: u8,
    /// Segments retransmitted since the start.
    pub total_retrans: u32,
    /// Bytes retransmitted since the start.
    pub bytes_retrans: u64,
    /// Bytes sent since the start, retransmissions counted.
    pub bytes_sent: u64,
    /// Bytes that the peer has acknowledged.
    pub bytes_acked: u64,
    /// Bytes received in order.
    pub bytes_received: u64,
    /// Bytes in the send buffer that were never sent.
    pub notsent_bytes: u32,
    /// Time with something to send.
    pub busy_time_us: u64,
    /// Part of the busy time that waited for the peer's receive window.
    pub rwnd_limited_us: u64,
    /// Part of the busy time that waited for our own send buffer.
    pub sndbuf_limited_us: u64,
    /// The kernel's latest estimate of delivery; not goodput.
    pub delivery_rate_bytes_per_s: u64,
    /// Rate that the kernel paces at; the largest number means unpaced.
    pub pacing_rate_bytes_per_s: u64,
    /// Congestion window, in segments.
    pub snd_cwnd_segments: u32,
    /// Sending segment size, in bytes.
    pub snd_mss_bytes: u32,
    /// Path MTU, in bytes.
    pub pmtu_bytes: u32,
    /// The peer's receive window, in bytes; null where the kernel does not tell (before 5.4).
    #[serde(default)]
    pub peer_window_bytes: Option<u32>,
}

/// Whether an address never leaves this machine.
pub fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Connects to a decode node at `HOST:PORT`, trying each of its addresses, all within `limit`,
/// from `source` or wherever the routes lead; then sets the socket up as [`set_up`] does.
pub async fn connect(
    address: &str,
    limit: Duration,
    congestion: Option<&str>,
    source: Option<&Source>,
) -> Result<(TcpStream, SocketFacts), WireError> {
    let stream = match timeout(limit, connect_any(address, source)).await {
        Ok(connected) => connected?,
        Err(_) => {
            return Err(WireError::Connect(format!(
                "no answer from {address} within {} s: check the address, and that no firewall drops the port",
                limit.as_secs_f64()
            )));
        }
    };
    let facts = set_up(&stream, congestion)?;
    Ok((stream, facts))
}

async fn connect_any(address: &str, source: Option<&Source>) -> Result<TcpStream, WireError> {
    let mut failure = None;
    for candidate in resolve(address).await.map_err(WireError::Address)? {
        let connected = match source {
            Some(source) => source.connect(candidate).await,
            None => TcpStream::connect(candidate).await,
        };
        match connected {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = Some(error),
        }
    }
    Err(match failure {
        Some(error) => WireError::Connect(describe_connect_failure(address, &error)),
        None => WireError::Address(format!(
            "{address} has no address: give the peer as HOST:PORT"
        )),
    })
}

fn describe_connect_failure(address: &str, error: &io::Error) -> String {
    let port = address.rsplit_once(':').map_or("PORT", |(_, port)| port);
    match error.kind() {
        io::ErrorKind::ConnectionRefused => format!(
            "no decode node answers at {address} (connection refused): start one there with `disagg-bench serve-decode --listen 0.0.0.0:{port}`"
        ),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            format!("no way to {address} ({error}): check the address and this machine's routes")
        }
        io::ErrorKind::TimedOut => format!(
            "no answer from {address} ({error}): check the address, and that no firewall drops the port"
        ),
        _ => format!("cannot connect to {address} ({error}): check the address and the port"),
    }
}

/// Listens at `HOST:PORT`; port 0 picks a free one, which `local_addr` then tells.
pub async fn bind(address: &str) -> Result<TcpListener, WireError> {
    let mut failure = None;
    for candidate in resolve(address).await.map_err(WireError::Listen)? {
        match listen_on(candidate) {
            Ok(listener) => return Ok(listener),
            Err(error) => failure = Some(error),
        }
    }
    Err(WireError::Listen(match failure {
        Some(error) => describe_listen_failure(address, &error),
        None => format!("{address} has no address: give --listen as HOST:PORT"),
    }))
}

fn listen_on(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // A port may be taken again while old connections on it are still fading out; a live
    // listener still keeps it.
    #[cfg(unix)]
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(LISTEN_BACKLOG)
}

fn describe_listen_failure(address: &str, error: &io::Error) -> String {
    let port = address.rsplit_once(':').map_or("PORT", |(_, port)| port);
    match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "port {port} is in use (listening on {address}): end the process that has it, or choose another with --listen HOST:PORT (port 0 picks a free one)"
        ),
        io::ErrorKind::AddrNotAvailable => format!(
            "no interface of this machine has the address of {address}: listen on one it has, or on 0.0.0.0:{port} for all"
        ),
        io::ErrorKind::PermissionDenied => {
            format!("not allowed to listen on {address}: choose a port from 1024 up")
        }
        _ => {
            format!("cannot listen on {address} ({error}): choose another with --listen HOST:PORT")
        }
    }
}

async fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    let sound = address
        .rsplit_once(':')
        .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok());
    if !sound {
        return Err(format!(
            "`{address}` is not an address: give HOST:PORT, as 192.168.1.20:7000 or [fd00::20]:7000"
        ));
    }
    match lookup_host(address).await {
        Ok(addresses) => Ok(addresses.collect()),
        Err(error) => Err(format!(
            "cannot resolve {address} ({error}): check the host name, or give an IP address"
        )),
    }
}

/// Sets up a connected or accepted stream: no delay, and the congestion control asked for
/// (none: the system's own, on loopback reno); returns what the kernel then says.
pub fn set_up(stream: &TcpStream, congestion: Option<&str>) -> Result<SocketFacts, WireError> {
    stream
        .set_nodelay(true)
        .map_err(|error| socket_failed("setting TCP_NODELAY", error))?;
    notice_a_dead_peer(stream).map_err(|error| socket_failed("setting time-outs", error))?;
    let (local, peer) = addresses(&SockRef::from(stream))?;
    let loopback = stays_here(local, peer);
    if let Some(name) = congestion {
        choose_congestion_control(stream, name).map_err(|error| {
            WireError::SocketOption(format!(
                "cannot use congestion control `{name}` ({error}): choose one that net.ipv4.tcp_allowed_congestion_control lists, or leave --congestion-control out"
            ))
        })?;
    } else if loopback {
        // Where it cannot be had the system's own does; the facts say which it is.
        let _ = choose_congestion_control(stream, LOOPBACK_CONGESTION_CONTROL);
    }
    facts(stream)
}

/// Lets the kernel end a connection whose peer machine is gone, or whose peer does not read.
fn notice_a_dead_peer(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new()
        .with_time(KEEPALIVE_AFTER)
        .with_interval(KEEPALIVE_EVERY);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(UNACKNOWLEDGED_LIMIT))?;
    Ok(())
}

/// What the kernel says of a connection now.
pub fn facts(socket: &impl AsFd) -> Result<SocketFacts, WireError> {
    let socket = SockRef::from(socket);
    let (local, peer) = addresses(&socket)?;
    let sized =
        |size: io::Result<usize>| size.map_err(|e| socket_failed("reading a buffer size", e));
    Ok(SocketFacts {
        local,
        peer,
        loopback: stays_here(local, peer),
        congestion_control: congestion_control(&socket),
        nodelay: socket
            .tcp_nodelay()
            .map_err(|error| socket_failed("reading TCP_NODELAY", error))?,
        send_buffer_bytes: sized(socket.send_buffer_size())?,
        recv_buffer_bytes: sized(socket.recv_buffer_size())?,
        mss_bytes: mss_bytes(&socket),
    })
}

fn addresses(socket: &SockRef<'_>) -> Result<(SocketAddr, SocketAddr), WireError> {
    let of_network = |address: io::Result<SockAddr>| {
        (address?.as_socket()).ok_or_else(|| io::Error::from(io::ErrorKind::Unsupported))
    };
    let local = of_network(socket.local_addr());
    let peer = of_network(socket.peer_addr());
    match (local, peer) {
        (Ok(local), Ok(peer)) => Ok((local, peer)),
        (Err(error), _) | (_, Err(error)) => Err(socket_failed("reading an address", error)),
    }
}

/// A machine that connects to its own outward address goes over loopback as well.
fn stays_here(local: SocketAddr, peer: SocketAddr) -> bool {
    let ip = |address: SocketAddr| -> IpAddr { address.ip().to_canonical() };
    is_loopback(&peer) || ip(local) == ip(peer)
}

fn socket_failed(doing: &'static str, error: io::Error) -> WireError {
    WireError::Io { doing, error }
}

#[cfg(target_os = "linux")]
fn choose_congestion_control(stream: &TcpStream, name: &str) -> io::Result<()> {
    SockRef::from(stream).set_tcp_congestion(name.as_bytes())
}

#[cfg(not(target_os = "linux"))]
fn choose_congestion_control(_stream: &TcpStream, _name: &str) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}

#[cfg(target_os = "linux")]
fn congestion_control(socket: &SockRef<'_>) -> Option<String> {
    let name = socket.tcp_congestion().ok()?;
    // The kernel pads the name with NULs.
    let name = name.split(|byte| *byte == 0).next()?;
    String::from_utf8(name.to_vec()).ok()
}

#[cfg(not(target_os = "linux"))]
fn congestion_control(_socket: &SockRef<'_>) -> Option<String> {
    None
}

#[cfg(unix)]
fn mss_bytes(socket: &SockRef<'_>) -> Option<u32> {
    socket.tcp_mss().ok()
}

#[cfg(not(unix))]
fn mss_bytes(_socket: &SockRef<'_>) -> Option<u32> {
    None
}

/// The kernel's counters of a connection; none off Linux, and none where the kernel fills in
/// less than is read here (before 4.19), since zeros would look measured.
#[cfg(target_os = "linux")]
pub fn tcp_info(socket: &impl AsFd) -> Option<TcpInfo> {
    let (info, length_bytes) = linux::tcp_info(socket.as_fd())?;
    Some(TcpInfo {
        rtt_us: info.tcpi_rtt,
        rtt_var_us: info.tcpi_rttvar,
        min_rtt_us: info.tcpi_min_rtt,
        retransmits: info.tcpi_retransmits,
        total_retrans: info.tcpi_total_retrans,
        bytes_retrans: info.tcpi_bytes_retrans,
        bytes_sent: info.tcpi_bytes_sent,
        bytes_acked: info.tcpi_bytes_acked,
        bytes_received: info.tcpi_bytes_received,
        notsent_bytes: info.tcpi_notsent_bytes,
        busy_time_us: info.tcpi_busy_time,
        rwnd_limited_us: info.tcpi_rwnd_limited,
        sndbuf_limited_us: info.tcpi_sndbuf_limited,
        delivery_rate_bytes_per_s: info.tcpi_delivery_rate,
        pacing_rate_bytes_per_s: info.tcpi_pacing_rate,
        snd_cwnd_segments: info.tcpi_snd_cwnd,
        snd_mss_bytes: info.tcpi_snd_mss,
        pmtu_bytes: info.tcpi_pmtu,
        peer_window_bytes: (length_bytes >= linux::WINDOW_BYTES).then_some(info.tcpi_snd_wnd),
    })
}

/// The kernel's counters of a connection: none off Linux.
#[cfg(not(target_os = "linux"))]
pub fn tcp_info(_socket: &impl AsFd) -> Option<TcpInfo> {
    None
}

#[cfg(target_os = "linux")]
mod linux {
    #![expect(
        unsafe_code,
        reason = "getsockopt(TCP_INFO) has no safe wrapper; the struct is plain integers"
    )]

    use std::mem::{MaybeUninit, offset_of, size_of};
    use std::os::fd::{AsRawFd, BorrowedFd};

    /// The last field that is read lies below this offset.
    const NEEDED_BYTES: usize = offset_of!(libc::tcp_info, tcpi_bytes_retrans) + size_of::<u64>();

    /// And the peer's window, which not every kernel fills in, below this one.
    pub(super) const WINDOW_BYTES: usize =
        offset_of!(libc::tcp_info, tcpi_snd_wnd) + size_of::<u32>();

    /// The counters and how many bytes of them the kernel filled in.
    pub(super) fn tcp_info(socket: BorrowedFd<'_>) -> Option<(libc::tcp_info, usize)> {
        let mut info = MaybeUninit::<libc::tcp_info>::zeroed();
        let mut length = size_of::<libc::tcp_info>() as libc::socklen_t;
        // SAFETY: the descriptor is open while `socket` is borrowed; the kernel writes at most
        // `length` bytes, the size of the buffer, and sets `length` to what it wrote.
        let result = unsafe {
            libc::getsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                libc::TCP_INFO,
                info.as_mut_ptr().cast(),
                &mut length,
            )
        };
        if result != 0 || (length as usize) < NEEDED_BYTES {
            return None;
        }
        // SAFETY: the struct is all integers, zeroed before the kernel wrote into it.
        Some((unsafe { info.assume_init() }, length as usize))
    }
}

#[cfg(test)]
mod tests;
