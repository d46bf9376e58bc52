//! The processor: what it is, what this process may use of it, and its state at the start.

use std::path::Path;
use std::thread;

use serde::{Deserialize, Serialize};
use sysinfo::{CpuRefreshKind, RefreshKind, System};

use super::kernel_text;
use crate::cores::{self, CoreList};

/// The processor of a node.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Processor {
    pub model: Option<String>,
    pub arch: String,
    /// The widest instructions that decide how a matmul is computed, such as `x86-64 avx512-vnni`.
    pub instruction_set: String,
    /// Instruction sets of interest that were found at run time, by their kernel-style names.
    pub features: Vec<String>,
    pub physical_cores: Option<usize>,
    pub logical_cores: usize,
    /// Cores that affinity and control group leave to this process.
    pub usable_cores: usize,
    /// Their numbers; null where the system does not tell and in records from before it was asked.
    #[serde(default)]
    pub cores: Option<CoreList>,
    /// Frequency governor of the first core.
    pub governor: Option<String>,
    /// Frequency of the first core when the run started.
    pub start_mhz: Option<u64>,
    /// Load over 1, 5 and 15 minutes when the run started.
    pub load_average: Option<[f64; 3]>,
}

impl Processor {
    /// Looks at this machine and process.
    pub fn capture() -> Self {
        let cores_only = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing());
        let system = System::new_with_specifics(cores_only).ok();
        let all = system.as_ref().map_or(&[][..], System::cpus);
        let usable_cores = thread::available_parallelism().map_or(1, usize::from);
        let features = detected_features();
        let first_core = Path::new("/sys/devices/system/cpu/cpu0/cpufreq");
        Self {
            model: all
                .first()
                .map(|cpu| cpu.brand().trim().to_owned())
                .filter(|model| !model.is_empty()),
            arch: std::env::consts::ARCH.to_owned(),
            instruction_set: instruction_set(std::env::consts::ARCH, &features),
            features: features.into_iter().map(str::to_owned).collect(),
            physical_cores: System::physical_core_count().ok(),
            logical_cores: all.len().max(usable_cores),
            usable_cores,
            cores: cores::current(),
            governor: kernel_text(first_core.join("scaling_governor")),
            start_mhz: start_mhz(first_core),
            load_average: System::load_average()
                .ok()
                .map(|load| [load.one, load.five, load.fifteen]),
        }
    }
}

fn start_mhz(cpufreq: &Path) -> Option<u64> {
    let khz: u64 = kernel_text(cpufreq.join("scaling_cur_freq"))?
        .parse()
        .ok()?;
    Some(khz / 1000)
}

#[cfg(target_arch = "x86_64")]
fn detected_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    let mut note = |name, is_there| {
        if is_there {
            found.push(name);
        }
    };
    note("avx2", is_x86_feature_detected!("avx2"));
    note("fma", is_x86_feature_detected!("fma"));
    note("f16c", is_x86_feature_detected!("f16c"));
    note("avx_vnni", is_x86_feature_detected!("avxvnni"));
    note("avx512f", is_x86_feature_detected!("avx512f"));
    note("avx512_vnni", is_x86_feature_detected!("avx512vnni"));
    note("amx_int8", has_amx_int8());
    found
}

/// The standard library does not detect AMX on the stable compiler yet.
#[cfg(target_arch = "x86_64")]
fn has_amx_int8() -> bool {
    kernel_text("/proc/cpuinfo").is_some_and(|cpuinfo| {
        cpuinfo
            .lines()
            .find(|line| line.starts_with("flags"))
            .is_some_and(|flags| flags.split_whitespace().any(|flag| flag == "amx_int8"))
    })
}

#[cfg(target_arch = "aarch64")]
fn detected_features() -> Vec<&'static str> {
    use std::arch::is_aarch64_feature_detected;

    let mut found = Vec::new();
    let mut note = |name, is_there| {
        if is_there {
            found.push(name);
        }
    };
    note("neon", is_aarch64_feature_detected!("neon"));
    note("dotprod", is_aarch64_feature_detected!("dotprod"));
    note("i8mm", is_aarch64_feature_detected!("i8mm"));
    note("fp16", is_aarch64_feature_detected!("fp16"));
    note("bf16", is_aarch64_feature_detected!("bf16"));
    note("sve", is_aarch64_feature_detected!("sve"));
    found
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn detected_features() -> Vec<&'static str> {
    Vec::new()
}

fn instruction_set(arch: &str, features: &[&str]) -> String {
    let has = |name| features.contains(&name);
    let widest = if has("avx512_vnni") {
        " avx512-vnni"
    } else if has("avx512f") {
        " avx512"
    } else if has("avx_vnni") {
        " avx-vnni"
    } else if has("avx2") && has("fma") {
        " avx2"
    } else if has("i8mm") {
        " neon-i8mm"
    } else if has("dotprod") {
        " neon-dotprod"
    } else if has("neon") {
        " neon"
    } else {
        ""
    };
    format!("{}{widest}", arch.replace("x86_64", "x86-64"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn this_processor_has_cores_and_a_known_instruction_set() {
        let processor = Processor::capture();
        assert!(processor.usable_cores >= 1);
        assert!(processor.logical_cores >= processor.usable_cores);
        let arch = std::env::consts::ARCH.replace('_', "-");
        assert!(
            processor.instruction_set.starts_with(&arch),
            "{processor:?}"
        );
    }

    #[test]
    fn the_widest_instructions_name_the_set() {
        let cases: [(&str, &[&str], &str); 7] = [
            ("x86_64", &[], "x86-64"),
            ("x86_64", &["avx2", "f16c"], "x86-64"),
            ("x86_64", &["avx2", "fma"], "x86-64 avx2"),
            ("x86_64", &["avx2", "fma", "avx512f"], "x86-64 avx512"),
            (
                "x86_64",
                &[
                    "avx2",
                    "fma",
                    "avx_vnni",
                    "avx512f",
                    "avx512_vnni",
                    "amx_int8",
                ],
                "x86-64 avx512-vnni",
            ),
            ("aarch64", &["neon", "dotprod"], "aarch64 neon-dotprod"),
            ("riscv64", &[], "riscv64"),
        ];
        for (arch, features, wanted) in cases {
            assert_eq!(instruction_set(arch, features), wanted);
        }
    }

    #[test]
    fn the_frequency_is_read_in_mhz_or_not_at_all() {
        let cpufreq = tempfile::tempdir().unwrap();
        let path = cpufreq.path().join("scaling_cur_freq");
        assert_eq!(start_mhz(cpufreq.path()), None);
        fs::write(&path, "2899998\n").unwrap();
        assert_eq!(start_mhz(cpufreq.path()), Some(2899));
        fs::write(&path, "<unknown>\n").unwrap();
        assert_eq!(start_mhz(cpufreq.path()), None);
    }
}
