//! Memory and processor time of this process, as the kernel counts them.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

use super::kernel_text;

/// CPU time that the calling thread has used.
pub fn thread_cpu_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// The core that the calling thread is on right now; `None` off Linux.
pub fn current_core() -> Option<u32> {
    #[cfg(target_os = "linux")]
    return u32::try_from(rustix::thread::sched_getcpu()).ok();
    #[cfg(not(target_os = "linux"))]
    None
}

/// Highest resident memory (`VmHWM`) since the process started or [`reset_peak_rss`]; `None` off
/// Linux.
pub fn process_peak_rss_bytes() -> Option<u64> {
    status_bytes(&kernel_text("/proc/self/status")?, "VmHWM")
}

/// Resident memory now (`VmRSS`); `None` off Linux.
pub fn process_rss_bytes() -> Option<u64> {
    status_bytes(&kernel_text("/proc/self/status")?, "VmRSS")
}

/// Lets [`process_peak_rss_bytes`] start again from now; `false` where the kernel does not.
pub fn reset_peak_rss() -> bool {
    // 5 is the kernel's code for "reset the peak resident set size" (proc_pid_clear_refs(5)).
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

fn status_bytes(status: &str, key: &str) -> Option<u64> {
    let value = status
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    let kib: u64 = value.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_kilobytes_become_bytes() {
        let status = "Name:\tx\nVmHWM:\t   10240 kB\nVmRSS:\t  512 kB\nVmBad:\t7\n";
        assert_eq!(status_bytes(status, "VmHWM"), Some(10_485_760));
        assert_eq!(status_bytes(status, "VmRSS"), Some(524_288));
        assert_eq!(status_bytes(status, "VmBad"), None);
        assert_eq!(status_bytes(status, "Vm"), None);
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn the_peak_rises_by_what_was_touched() {
        let touched_bytes = 64 << 20;
        let before = process_rss_bytes().unwrap();
        let block = std::hint::black_box(vec![1_u8; touched_bytes]);
        let peak = process_peak_rss_bytes().unwrap();
        assert!(peak >= before.max(touched_bytes as u64), "{before} {peak}");
        drop(block);
    }
}
