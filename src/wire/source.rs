//! Where outgoing connections start: the interface that a user wants the cache to leave by.

use std::io;
use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream};

/// A network interface with its addresses.
pub type Interface = (String, Vec<IpAddr>);

/// An address of this machine, or an interface with all of its addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// As the user wrote it.
    pub name: String,
    /// The device, where an interface was named.
    device: Option<String>,
    addresses: Vec<IpAddr>,
}

impl Source {
    /// The interface of this name or this very address; else an error that lists what there is.
    pub fn choose(text: &str, interfaces: &[Interface]) -> Result<Self, String> {
        let name = text.to_owned();
        if let Ok(address) = text.parse::<IpAddr>() {
            // Loopback has more addresses than are listed, so the system is asked.
            return match std::net::TcpListener::bind((address, 0)) {
                Ok(_) => Ok(Self {
                    name,
                    device: None,
                    addresses: vec![address],
                }),
                Err(_) => Err(format!(
                    "no interface of this machine has the address {address}, there are: {}",
                    list(interfaces)
                )),
            };
        }
        match interfaces.iter().find(|(name, _)| name == text) {
            Some((_, addresses)) if addresses.is_empty() => Err(format!(
                "interface {text} has no address: give it one, or choose of: {}",
                list(interfaces)
            )),
            Some((_, addresses)) => Ok(Self {
                name,
                device: Some(text.to_owned()),
                addresses: addresses.clone(),
            }),
            None => Err(format!(
                "{text} is no interface and no address of this machine, there are: {}",
                list(interfaces)
            )),
        }
    }

    /// The address to reach a peer from: one of its family, and one that leaves a link-local
    /// scope where the peer does not need it.
    fn address_for(&self, peer: SocketAddr) -> Option<IpAddr> {
        let link_local = |ip: &IpAddr| matches!(ip, IpAddr::V6(ip) if ip.is_unicast_link_local());
        let mut fitting = (self.addresses.iter().copied())
            .filter(|ip| ip.is_ipv4() == peer.is_ipv4() && !link_local(ip));
        fitting.next()
    }

    /// Connects to a peer from here.
    pub(super) async fn connect(&self, peer: SocketAddr) -> io::Result<TcpStream> {
        let Some(address) = self.address_for(peer) else {
            let family = if peer.is_ipv4() { "IPv4" } else { "IPv6" };
            return Err(io::Error::new(
                io::ErrorKind::AddrNotAvailable,
                format!("{} has no {family} address to reach it from", self.name),
            ));
        };
        let socket = match peer {
            SocketAddr::V4(_) => TcpSocket::new_v4()?,
            SocketAddr::V6(_) => TcpSocket::new_v6()?,
        };
        if !self.keeps_to_device(&socket) {
            socket.bind(SocketAddr::new(address, 0))?;
        }
        socket.connect(peer).await
    }

    /// Keeps the packets on the named interface whatever the routes prefer, and leaves the choice
    /// among its addresses to the kernel. Old kernels reserve that for root: then an address has
    /// to do.
    #[cfg(target_os = "linux")]
    fn keeps_to_device(&self, socket: &TcpSocket) -> bool {
        let socket = socket2::SockRef::from(socket);
        let bind = |device: &String| socket.bind_device(Some(device.as_bytes())).is_ok();
        self.device.as_ref().is_some_and(bind)
    }

    #[cfg(not(target_os = "linux"))]
    fn keeps_to_device(&self, _socket: &TcpSocket) -> bool {
        false
    }
}

fn list(interfaces: &[Interface]) -> String {
    let one = |(name, addresses): &Interface| {
        let addresses: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
        match addresses.is_empty() {
            true => format!("{name} (no address)"),
            false => format!("{name} ({})", addresses.join(", ")),
        }
    };
    interfaces.iter().map(one).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn interfaces() -> Vec<Interface> {
        let ips = |texts: &[&str]| texts.iter().map(|t| t.parse().unwrap()).collect();
        vec![
            ("lo".into(), ips(&["127.0.0.1", "::1"])),
            ("ib0".into(), ips(&["fe80::1", "10.9.0.1", "fd00::1"])),
            ("wlan0".into(), Vec::new()),
        ]
    }

    #[test]
    fn an_interface_gives_its_address_of_the_peers_family() {
        let source = Source::choose("ib0", &interfaces()).unwrap();
        let from = |peer: &str| source.address_for(peer.parse().unwrap());
        assert_eq!(from("10.9.0.2:5556"), Some("10.9.0.1".parse().unwrap()));
        // Not the link-local one, whose scope would have to be told.
        assert_eq!(from("[fd00::2]:5556"), Some("fd00::1".parse().unwrap()));
        let address = Source::choose("127.0.0.1", &interfaces()).unwrap();
        assert_eq!(address.address_for("[fd00::2]:1".parse().unwrap()), None);
        assert_eq!((address.device, source.device), (None, Some("ib0".into())));
    }

    #[test]
    fn what_does_not_exist_is_answered_with_what_does() {
        let error = |text| Source::choose(text, &interfaces()).unwrap_err();
        let all = "lo (127.0.0.1, ::1); ib0 (fe80::1, 10.9.0.1, fd00::1); wlan0 (no address)";
        assert!(error("ib1").ends_with(all), "{}", error("ib1"));
        // An address of the documentation's own network, which nobody has.
        assert!(error("198.51.100.7").ends_with(all));
        assert!(error("wlan0").contains("has no address"));
    }

    #[tokio::test]
    async fn a_connection_starts_where_it_was_told_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let peer = listener.local_addr().unwrap();
        let source = Source {
            name: "127.0.0.2".into(),
            device: None,
            addresses: vec!["127.0.0.2".parse().unwrap()],
        };
        let (near, far) = tokio::join!(source.connect(peer), listener.accept());
        assert_eq!(near.unwrap().local_addr().unwrap(), far.unwrap().1);
        let elsewhere = Source {
            addresses: vec!["::1".parse().unwrap()],
            ..source
        };
        let error = elsewhere.connect(peer).await.unwrap_err();
        assert!(error.to_string().contains("has no IPv4 address"), "{error}");
    }
}
