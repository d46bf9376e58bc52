//! Network interfaces as the kernel lists them. Empty where there is no `/sys/class/net`.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::kernel_text;
use crate::wire::Interface;
use crate::wire::socket::SocketFacts;

/// Where the kernel lists interfaces.
pub(super) const CLASS_NET: &str = "/sys/class/net";

/// One network interface of this network namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct NetworkInterface {
    pub name: String,
    /// Null where the driver does not know, as with most virtual interfaces.
    pub speed_mbps: Option<u64>,
    pub mtu_bytes: Option<u64>,
    pub is_up: bool,
    pub driver: Option<String>,
    pub is_loopback: bool,
}

/// From `net/if.h`.
const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;

/// The congestion control that a socket gets unless it asks for another.
pub fn congestion_control() -> Option<String> {
    kernel_text("/proc/sys/net/ipv4/tcp_congestion_control")
}

/// The interfaces of this network namespace with their addresses, sorted by name; empty where the
/// system does not tell.
pub fn interfaces() -> Vec<Interface> {
    let Ok(networks) = sysinfo::Networks::new_with_refreshed_list() else {
        return Vec::new();
    };
    let mut interfaces: Vec<Interface> = (networks.iter())
        .map(|(name, data)| {
            let addresses = data.ip_networks().iter().map(|network| network.addr);
            let mut addresses: Vec<_> = addresses.collect();
            addresses.sort_unstable();
            (name.to_string_lossy().into_owned(), addresses)
        })
        .collect();
    interfaces.sort();
    interfaces
}

/// The interface that a connection uses, found by its local address.
pub fn carrying_interface(facts: &SocketFacts) -> Option<NetworkInterface> {
    let local = facts.local.ip().to_canonical();
    let has_address = |name: &str| {
        (interfaces().iter()).any(|(other, addresses)| other == name && addresses.contains(&local))
    };
    // A machine that talks to its own outward address does so over loopback.
    let carries = |interface: &NetworkInterface| match facts.loopback {
        true => interface.is_loopback,
        false => has_address(&interface.name),
    };
    all(Path::new(CLASS_NET)).into_iter().find(carries)
}

/// All interfaces under `class_net`, sorted by name.
pub(super) fn all(class_net: &Path) -> Vec<NetworkInterface> {
    let Ok(entries) = fs::read_dir(class_net) else {
        return Vec::new();
    };
    let mut interfaces: Vec<_> = entries
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            interface(name, &entry.path())
        })
        .collect();
    interfaces.sort_by(|a, b| a.name.cmp(&b.name));
    interfaces
}

/// `None` for what is no interface: the bonding driver keeps a plain file there.
fn interface(name: String, path: &Path) -> Option<NetworkInterface> {
    let number = |file: &str| kernel_text(path.join(file))?.parse().ok();
    let flags = kernel_text(path.join("flags"))?;
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    let has_no_carrier = kernel_text(path.join("operstate")).as_deref() == Some("down");
    Some(NetworkInterface {
        name,
        // An unknown speed reads as -1, or in old kernels as that in 32 bits.
        speed_mbps: number("speed").filter(|&mbps| mbps > 0 && mbps < u64::from(u32::MAX)),
        mtu_bytes: number("mtu"),
        is_up: flags & IFF_UP != 0 && !has_no_carrier,
        driver: fs::read_link(path.join("device/driver"))
            .ok()
            .and_then(|driver| Some(driver.file_name()?.to_string_lossy().into_owned())),
        is_loopback: flags & IFF_LOOPBACK != 0,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(path: &Path, files: &[(&str, &str)]) {
        fs::create_dir_all(path).unwrap();
        for (name, content) in files {
            fs::write(path.join(name), content).unwrap();
        }
    }

    #[test]
    #[cfg(unix)]
    fn interfaces_are_read_as_the_kernel_lists_them() {
        let root = tempfile::tempdir().unwrap();
        let card = [
            ("flags", "0x1003\n"),
            ("speed", "100000\n"),
            ("mtu", "9000\n"),
            ("operstate", "up\n"),
        ];
        write(&root.path().join("mlx0"), &card);
        write(&root.path().join("mlx0/device"), &[]);
        let driver = "../../../bus/pci/drivers/mlx5_core";
        std::os::unix::fs::symlink(driver, root.path().join("mlx0/device/driver")).unwrap();
        let loopback = [
            ("flags", "0x9\n"),
            ("mtu", "65536\n"),
            ("operstate", "unknown\n"),
        ];
        write(&root.path().join("lo"), &loopback);
        let unplugged = [
            ("flags", "0x1003\n"),
            ("speed", "-1\n"),
            ("operstate", "down\n"),
        ];
        write(&root.path().join("eth9"), &unplugged);
        write(root.path(), &[("bonding_masters", "\n")]);

        let wanted = [
            NetworkInterface {
                name: "eth9".into(),
                speed_mbps: None,
                mtu_bytes: None,
                is_up: false,
                driver: None,
                is_loopback: false,
            },
            NetworkInterface {
                name: "lo".into(),
                speed_mbps: None,
                mtu_bytes: Some(65536),
                is_up: true,
                driver: None,
                is_loopback: true,
            },
            NetworkInterface {
                name: "mlx0".into(),
                speed_mbps: Some(100_000),
                mtu_bytes: Some(9000),
                is_up: true,
                driver: Some("mlx5_core".into()),
                is_loopback: false,
            },
        ];
        assert_eq!(all(root.path()), wanted);
    }

    #[test]
    fn no_sysfs_means_no_interfaces() {
        assert!(all(Path::new("/no/such/folder")).is_empty());
    }
}
