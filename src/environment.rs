//! What a run ran on: host, processor, memory, network interfaces, kernel and build, as stored in
//! the metrics file for both nodes. What the host does not tell is null, never an error. Which
//! interface carried the bytes and its socket options belong to the link, not here.

mod activity;
mod build;
mod host;
mod nic;
mod process;
mod processor;

pub use activity::{Activity, MemoryCopy};
pub use build::Build;
pub use host::{Host, available_memory_bytes};
pub use nic::{NetworkInterface, carrying_interface, congestion_control, interfaces};
pub use process::{
    current_core, process_peak_rss_bytes, process_rss_bytes, reset_peak_rss, thread_cpu_time,
};
pub use processor::Processor;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::cores::CoreList;
use crate::model::device::DeviceFacts;

/// The environment of one node at the start of a run.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Environment {
    pub host: Host,
    pub processor: Processor,
    pub build: Build,
    /// Compute threads of this process.
    pub threads: usize,
    /// What computes, where it is not the processor.
    #[serde(default)]
    pub device: Option<DeviceFacts>,
    /// Cores that the thread which sends and receives was kept on; none where it may run anywhere.
    #[serde(default)]
    pub network_cores: Option<CoreList>,
    /// Variables that steer the compute libraries, as they were set.
    pub compute_variables: BTreeMap<String, String>,
    pub network_interfaces: Vec<NetworkInterface>,
    /// The system's default, which a socket may override.
    pub congestion_control: Option<String>,
}

/// What the compute libraries read from the environment.
const COMPUTE_VARIABLE_PREFIXES: [&str; 3] = ["CANDLE_", "MISTRALRS_", "RAYON_"];

/// Those of them that choose another computation; the others only place or count threads.
const COMPUTE_VARIABLES_THAT_CHANGE_BITS: [&str; 4] = [
    "CANDLE_DEQUANTIZE_ALL",
    "CANDLE_DEQUANTIZE_ALL_F16",
    "MISTRALRS_FORCE_AVX2",
    "MISTRALRS_FORCE_AVXVNNI",
];

impl Environment {
    /// Looks at this machine and process, which computes with `threads` threads.
    pub fn capture(threads: usize) -> Self {
        Self {
            host: Host::capture(),
            processor: Processor::capture(),
            build: Build::this(),
            threads,
            device: None,
            network_cores: None,
            compute_variables: compute_variables(std::env::vars_os().filter_map(
                |(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)),
            )),
            network_interfaces: nic::all(Path::new(nic::CLASS_NET)),
            congestion_control: congestion_control(),
        }
    }

    /// Whether both nodes ran on one machine, and so shared its cores and its clock.
    pub fn is_same_machine(&self, other: &Self) -> bool {
        self.host.machine_id == other.host.machine_id
    }
}

fn compute_variables(
    variables: impl Iterator<Item = (String, String)>,
) -> BTreeMap<String, String> {
    variables
        .filter(|(name, _)| {
            COMPUTE_VARIABLE_PREFIXES
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
        .collect()
}

/// Differences between two nodes that may change the bits of a result, one phrase each.
/// Empty means that the same logits are to be expected, bit for bit.
pub fn same_bits_expected(a: &Environment, b: &Environment) -> Vec<String> {
    let (one, other) = (&a.processor, &b.processor);
    let text = |value: Option<&String>| value.map_or("unknown", String::as_str).to_owned();
    let variable = |environment: &Environment, name: &str| {
        let value = environment.compute_variables.get(name);
        value.map_or("unset", String::as_str).to_owned()
    };
    let device = |environment: &Environment| {
        let device = environment.device.as_ref();
        device.map_or_else(|| "cpu".to_owned(), ToString::to_string)
    };
    let mut compared = vec![
        ("device", device(a), device(b)),
        (
            "instruction set",
            one.instruction_set.clone(),
            other.instruction_set.clone(),
        ),
        ("features", one.features.join(" "), other.features.join(" ")),
        // The float matmuls take their block sizes, and so the order of their sums, from the caches.
        (
            "processor model",
            text(one.model.as_ref()),
            text(other.model.as_ref()),
        ),
        ("threads", a.threads.to_string(), b.threads.to_string()),
        (
            "tool version",
            a.build.tool_version.clone(),
            b.build.tool_version.clone(),
        ),
        (
            "git revision",
            a.build.git_revision.clone(),
            b.build.git_revision.clone(),
        ),
        ("target", a.build.target.clone(), b.build.target.clone()),
        (
            "target features",
            a.build.target_features.clone(),
            b.build.target_features.clone(),
        ),
        ("profile", a.build.profile.clone(), b.build.profile.clone()),
        ("compiler", a.build.rustc.clone(), b.build.rustc.clone()),
    ];
    for name in COMPUTE_VARIABLES_THAT_CHANGE_BITS {
        compared.push((name, variable(a, name), variable(b, name)));
    }
    compared
        .into_iter()
        .filter(|(_, one, other)| one != other)
        .map(|(name, one, other)| format!("{name}: {one} and {other}"))
        .collect()
}

/// The trimmed text of a small kernel file; `None` where it is missing, unreadable or empty.
fn kernel_text(path: impl AsRef<Path>) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capture_survives_json() {
        let environment = Environment::capture(3);
        assert_eq!(environment.threads, 3);
        let json = serde_json::to_string(&environment).unwrap();
        let back: Environment = serde_json::from_str(&json).unwrap();
        assert_eq!(back, environment);
    }

    #[test]
    fn a_capture_is_like_itself() {
        let environment = Environment::capture(2);
        let again = Environment::capture(2);
        assert!(environment.is_same_machine(&again));
        assert_eq!(
            same_bits_expected(&environment, &again),
            Vec::<String>::new()
        );
    }

    #[test]
    fn each_difference_that_changes_bits_is_named() {
        type Change = fn(&mut Environment);
        let changes: [(&str, Change); 11] = [
            ("device: cpu and cuda, H100", |e| {
                e.device = Some(DeviceFacts {
                    kind: "cuda".into(),
                    name: Some("H100".into()),
                    compute_capability: None,
                    memory_bytes: None,
                });
            }),
            ("instruction set", |e| {
                e.processor.instruction_set = "x".into()
            }),
            ("features", |e| e.processor.features.push("x".into())),
            ("processor model", |e| e.processor.model = Some("x".into())),
            ("threads: 2 and 3", |e| e.threads = 3),
            ("tool version", |e| e.build.tool_version = "x".into()),
            ("git revision", |e| e.build.git_revision = "x".into()),
            ("target:", |e| e.build.target = "x".into()),
            ("target features", |e| e.build.target_features = "x".into()),
            ("profile", |e| e.build.profile = "x".into()),
            ("CANDLE_DEQUANTIZE_ALL: unset and 1", |e| {
                e.compute_variables
                    .insert("CANDLE_DEQUANTIZE_ALL".into(), "1".into());
            }),
        ];
        let mut here = Environment::capture(2);
        here.compute_variables.clear();
        for (name, change) in changes {
            let mut other = here.clone();
            change(&mut other);
            let differences = same_bits_expected(&here, &other);
            assert_eq!(differences.len(), 1, "{name}: {differences:?}");
            assert!(differences[0].starts_with(name), "{differences:?}");
        }
    }

    #[test]
    fn what_only_places_threads_or_names_the_host_is_no_difference() {
        let here = Environment::capture(2);
        let mut other = here.clone();
        other.host.hostname = "elsewhere".into();
        other.host.machine_id = "0123456789abcdef".into();
        other.processor.load_average = None;
        other.network_interfaces.clear();
        other
            .compute_variables
            .insert("CANDLE_CPU_AFFINITY".into(), "0,1".into());
        assert!(same_bits_expected(&here, &other).is_empty());
        assert!(!here.is_same_machine(&other));
    }

    #[test]
    fn only_variables_of_the_compute_libraries_are_kept() {
        let set = ["RAYON_NUM_THREADS", "CANDLE_X", "HF_TOKEN", "MY_CANDLE_X"];
        let kept = compute_variables(set.into_iter().map(|name| (name.into(), "1".into())));
        let names: Vec<_> = kept.keys().map(String::as_str).collect();
        assert_eq!(names, ["CANDLE_X", "RAYON_NUM_THREADS"]);
    }
}
