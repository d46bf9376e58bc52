//! The machine and its system: names, identity, memory and whether it is virtual.

use std::path::Path;

use serde::{Deserialize, Serialize};
use sysinfo::{MemoryRefreshKind, RefreshKind, System};

use super::kernel_text;

/// The host a node ran on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Host {
    pub hostname: String,
    /// 16 hex digits that tell machines apart and say nothing else; the same after a reboot.
    pub machine_id: String,
    /// Name and version of the system, such as `Linux (Debian GNU/Linux 12)`.
    pub os: Option<String>,
    pub kernel: Option<String>,
    /// Memory of the whole machine.
    pub memory_bytes: Option<u64>,
    /// What the control group of this process may use, where it sets a limit.
    pub memory_limit_bytes: Option<u64>,
    /// Whether the processor says that a hypervisor is below.
    pub is_virtual: Option<bool>,
}

impl Host {
    /// Looks at this machine.
    pub fn capture() -> Self {
        let memory_only = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
        let system = System::new_with_specifics(memory_only).ok();
        let memory_bytes = system.as_ref().map(System::total_memory);
        let memory_limit_bytes = system
            .and_then(|system| system.cgroup_limits())
            .map(|limits| limits.total_memory);
        let hostname = System::host_name().unwrap_or_else(|_| "unknown".to_owned());
        let machine_file = kernel_text("/etc/machine-id");
        Self {
            machine_id: machine_id(machine_file.as_deref(), &hostname),
            os: System::long_os_version().ok(),
            kernel: System::kernel_version().ok(),
            memory_bytes,
            // Without a limit the control group tells the machine's memory.
            memory_limit_bytes: memory_limit_bytes.filter(|_| memory_limit_bytes < memory_bytes),
            is_virtual: is_virtual(Path::new("/")),
            hostname,
        }
    }
}

/// Memory that this process may still take, in bytes; `None` where the system does not tell.
pub fn available_memory_bytes() -> Option<u64> {
    let memory_only = RefreshKind::nothing().with_memory(MemoryRefreshKind::everything());
    let system = System::new_with_specifics(memory_only).ok()?;
    let of_group = system.cgroup_limits().map(|limits| limits.free_memory);
    let available = system.available_memory();
    Some(of_group.map_or(available, |free| free.min(available)))
}

/// The host's name goes in too, as copies of a virtual machine often share their machine-id; and
/// the id itself may not leave the machine, as its manual demands.
fn machine_id(machine_file: Option<&str>, hostname: &str) -> String {
    let mut hasher = blake3::Hasher::new_derive_key("disagg-bench 2026 machine id");
    hasher.update(machine_file.unwrap_or_default().as_bytes());
    hasher.update(b"\n");
    hasher.update(hostname.as_bytes());
    hasher.finalize().to_hex()[..16].to_owned()
}

/// x86 has a flag for it; elsewhere the device tree names the hypervisor, if it is there.
fn is_virtual(root: &Path) -> Option<bool> {
    if root.join("proc/device-tree/hypervisor").exists() {
        return Some(true);
    }
    let cpuinfo = kernel_text(root.join("proc/cpuinfo"))?;
    let flags = cpuinfo.lines().find(|line| line.starts_with("flags"))?;
    Some(flags.split_whitespace().any(|flag| flag == "hypervisor"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn this_host_has_a_name_and_memory() {
        let host = Host::capture();
        assert!(!host.hostname.is_empty());
        assert!(host.memory_bytes > Some(1 << 20), "{:?}", host.memory_bytes);
        assert_eq!(host.machine_id.len(), 16);
    }

    #[test]
    fn the_machine_id_follows_both_its_sources_and_shows_neither() {
        let id = machine_id(Some("abc"), "host");
        assert_eq!(id, machine_id(Some("abc"), "host"));
        assert_ne!(id, machine_id(Some("abd"), "host"));
        assert_ne!(id, machine_id(Some("abc"), "other"));
        assert_ne!(machine_id(None, "host"), machine_id(None, "other"));
        assert!(id.chars().all(|c| c.is_ascii_hexdigit()));
    }

    #[test]
    fn a_hypervisor_is_seen_and_its_absence_is_not_guessed() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(is_virtual(root.path()), None);
        fs::create_dir(root.path().join("proc")).unwrap();
        let told = |cpuinfo: &str| {
            fs::write(root.path().join("proc/cpuinfo"), cpuinfo).unwrap();
            is_virtual(root.path())
        };
        assert_eq!(told("model: x\nflags\t: fpu hypervisor avx\n"), Some(true));
        assert_eq!(told("model: x\nflags\t: fpu avx\n"), Some(false));
        assert_eq!(told("Features : fp asimd\n"), None);
    }
}
