//! What this process and the rest of its machine did, as counters whose differences tell what
//! happened between two looks.

use std::path::Path;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

use super::{current_core, kernel_text};

/// Length of a tick in which the kernel counts CPU time for programs: USER_HZ is 100 on every
/// architecture that this tool runs on.
const TICK: Duration = Duration::from_millis(10);

/// Cores whose frequency is looked at: reading one can interrupt it.
const LOOKED_AT_CORES: usize = 16;

/// One look, taken on the thread that serves the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Activity {
    /// Time since the first look of this process.
    pub wall_ns: u64,
    /// CPU time of this process, all its threads.
    pub process_cpu_ns: u64,
    /// CPU time of all programs on all cores; null where the system does not tell.
    pub machine_cpu_ns: Option<u64>,
    /// Time that the hypervisor gave to other virtual machines.
    pub stolen_ns: Option<u64>,
    /// Frequency of the fastest core; null where the system does not tell.
    pub fastest_core_mhz: Option<u32>,
    /// Core that the network thread was on.
    pub core: Option<u32>,
    /// Requests of all peers that this process admitted; null on a node that serves none.
    pub requests: Option<u64>,
}

impl Activity {
    /// Looks now.
    pub fn now() -> Self {
        static FIRST: OnceLock<Instant> = OnceLock::new();
        let cpu = clock_gettime(ClockId::ProcessCPUTime);
        let cpu = Duration::new(cpu.tv_sec as u64, cpu.tv_nsec as u32);
        let machine = kernel_text("/proc/stat").as_deref().and_then(machine_cpu);
        Self {
            wall_ns: FIRST.get_or_init(Instant::now).elapsed().as_nanos() as u64,
            process_cpu_ns: cpu.as_nanos() as u64,
            machine_cpu_ns: machine.map(|(programs, _)| programs),
            stolen_ns: machine.map(|(_, stolen)| stolen),
            fastest_core_mhz: fastest_core_mhz(Path::new("/")),
            core: current_core(),
            requests: None,
        }
    }
}

/// Time of programs (user, nice, system) and time stolen, of `/proc/stat`. Interrupts are left
/// out, because they count for no process either.
fn machine_cpu(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let ticks: Vec<u64> = line
        .split_whitespace()
        .map_while(|t| t.parse().ok())
        .collect();
    let ns = |ticks: u64| ticks.saturating_mul(TICK.as_nanos() as u64);
    match ticks[..] {
        [
            user,
            nice,
            system,
            _idle,
            _iowait,
            _irq,
            _softirq,
            stolen,
            ..,
        ] => Some((ns(user + nice + system), ns(stolen))),
        _ => None,
    }
}

/// From cpufreq where there is one, else from `/proc/cpuinfo` (x86).
fn fastest_core_mhz(root: &Path) -> Option<u32> {
    let cpufreq = (0..LOOKED_AT_CORES).filter_map(|core| {
        let file = format!("sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq");
        let khz: u32 = kernel_text(root.join(file))?.parse().ok()?;
        Some(khz / 1000)
    });
    cpufreq.max().or_else(|| {
        let cpuinfo = kernel_text(root.join("proc/cpuinfo"))?;
        let values = cpuinfo.lines().filter(|line| line.starts_with("cpu MHz"));
        let mhz = values.filter_map(|line| line.split(':').nth(1)?.trim().parse::<f64>().ok());
        mhz.map(|mhz| mhz as u32).max()
    })
}

/// How fast one core copies in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryCopy {
    /// Bytes of a copy.
    pub bytes: u64,
    /// The fastest of several.
    pub ns: u64,
}

/// Copies that are timed: the fastest is what the memory can do.
const COPIES: usize = 5;

impl MemoryCopy {
    /// Times copies of `bytes` bytes between two places that were touched before.
    pub fn measure(bytes: usize) -> Option<Self> {
        let from = vec![1u8; bytes];
        let mut to = vec![2u8; bytes];
        let times = (0..COPIES).map(|_| {
            let started = Instant::now();
            to.copy_from_slice(std::hint::black_box(&from));
            std::hint::black_box(&mut to);
            started.elapsed().as_nanos() as u64
        });
        let ns = times.min().filter(|ns| *ns > 0)?;
        let bytes = bytes as u64;
        Some(Self { bytes, ns })
    }

    /// Decimal gigabits per second; bits per nanosecond are the same number.
    pub fn gbps(self) -> f64 {
        self.bytes as f64 * 8.0 / self.ns.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn ticks_become_time_and_interrupts_are_left_out() {
        let stat = "cpu  100 20 30 4000 50 60 70 8 9 1\ncpu0 1 2 3\n";
        assert_eq!(machine_cpu(stat), Some((1_500_000_000, 80_000_000)));
        assert_eq!(machine_cpu("cpu0 1 2 3\n"), None);
        assert_eq!(machine_cpu("cpu  1 2 3\n"), None);
    }

    #[test]
    fn the_fastest_core_is_found_in_either_place() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(fastest_core_mhz(root.path()), None);
        fs::create_dir(root.path().join("proc")).unwrap();
        let cpuinfo = "cpu MHz\t\t: 2899.998\nmodel: x\ncpu MHz\t\t: 3100.2\n";
        fs::write(root.path().join("proc/cpuinfo"), cpuinfo).unwrap();
        assert_eq!(fastest_core_mhz(root.path()), Some(3100));
        let cpufreq = root.path().join("sys/devices/system/cpu/cpu3/cpufreq");
        fs::create_dir_all(&cpufreq).unwrap();
        fs::write(cpufreq.join("scaling_cur_freq"), "1800000\n").unwrap();
        assert_eq!(fastest_core_mhz(root.path()), Some(1800));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn work_counts_for_the_process_and_the_machine() {
        let before = Activity::now();
        let mut spun = 0u64;
        // Two ticks at least, so that the machine's count must have moved.
        while Activity::now().process_cpu_ns < before.process_cpu_ns + 3 * TICK.as_nanos() as u64 {
            spun = std::hint::black_box(spun + 1);
        }
        let after = Activity::now();
        assert!(after.wall_ns > before.wall_ns);
        assert!(
            after.machine_cpu_ns > before.machine_cpu_ns,
            "{before:?} {after:?}"
        );
    }

    #[test]
    fn a_copy_takes_time() {
        let copy = MemoryCopy::measure(1 << 20).unwrap();
        assert!(copy.bytes == 1 << 20 && copy.gbps() > 0.1, "{copy:?}");
    }
}
