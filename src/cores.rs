//! Processor cores: lists of them as flags give them, those that this process runs on, and halves
//! for two nodes on one machine.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Cores that the kernel's affinity masks have room for.
const MAX_CORES: u32 = 1024;

/// Where the kernel says which cores are threads of one physical core.
const TOPOLOGY: &str = "/sys/devices/system/cpu";

/// Some cores, by their numbers; rising, each once.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(transparent)]
pub struct CoreList(Vec<u32>);

impl FromIterator<u32> for CoreList {
    fn from_iter<I: IntoIterator<Item = u32>>(cores: I) -> Self {
        let mut cores: Vec<u32> = cores.into_iter().collect();
        cores.sort_unstable();
        cores.dedup();
        Self(cores)
    }
}

impl FromStr for CoreList {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unusable = || {
            format!(
                "{text:?} is no list of cores: write numbers below {MAX_CORES} and ranges of them, \
                 such as 0,2-3"
            )
        };
        let number = |text: &str| {
            let is_number = text.bytes().all(|b| b.is_ascii_digit());
            let number = text.parse::<u32>().ok();
            (number.filter(|n| *n < MAX_CORES && is_number)).ok_or_else(unusable)
        };
        let mut cores = Vec::new();
        for part in text.split(',').map(str::trim) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (first, last) = (number(first)?, number(last)?);
            if first > last {
                return Err(unusable());
            }
            cores.extend(first..=last);
        }
        Ok(cores.into_iter().collect())
    }
}

impl fmt::Display for CoreList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let runs = self.0.chunk_by(|a, b| a + 1 == *b);
        for (i, run) in runs.enumerate() {
            let comma = if i > 0 { "," } else { "" };
            match (run[0], run[run.len() - 1]) {
                (first, last) if first == last => write!(f, "{comma}{first}")?,
                (first, last) => write!(f, "{comma}{first}-{last}")?,
            }
        }
        Ok(())
    }
}

impl CoreList {
    /// How many.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Those that both have.
    pub fn shared_with(&self, other: &Self) -> Self {
        self.0
            .iter()
            .filter(|c| other.0.contains(c))
            .copied()
            .collect()
    }

    /// Those that the other has not.
    fn without(&self, other: &Self) -> Self {
        self.0
            .iter()
            .filter(|c| !other.0.contains(c))
            .copied()
            .collect()
    }

    /// Two halves of equal size for two nodes; `None` with fewer than two cores. Threads of one
    /// physical core stay on one side where that leaves equal halves.
    pub fn halves(&self) -> Option<(Self, Self)> {
        self.halves_by(|core| physical_core(Path::new(TOPOLOGY), core))
    }

    /// One of these for a thread that must not take turns with one on `other`: of another physical
    /// core where there is one; `None` where all are in `other`.
    pub fn one_apart_from(&self, other: &Self) -> Option<Self> {
        self.one_apart_by(other, |core| physical_core(Path::new(TOPOLOGY), core))
    }

    fn one_apart_by<K: PartialEq>(
        &self,
        other: &Self,
        physical: impl Fn(u32) -> K,
    ) -> Option<Self> {
        let left = self.without(other);
        let unlike = |core: &u32| other.0.iter().all(|o| physical(*o) != physical(*core));
        let one = left.0.iter().copied().find(unlike);
        one.or(left.0.first().copied()).map(|core| Self(vec![core]))
    }

    /// The first alone.
    pub fn first(&self) -> Option<Self> {
        self.0.first().map(|core| Self(vec![*core]))
    }

    fn halves_by<K: Ord>(&self, physical: impl Fn(u32) -> K) -> Option<(Self, Self)> {
        let mut by_physical: BTreeMap<K, Vec<u32>> = BTreeMap::new();
        for &core in &self.0 {
            by_physical.entry(physical(core)).or_default().push(core);
        }
        let ordered: Vec<u32> = by_physical.into_values().flatten().collect();
        let half = ordered.len() / 2;
        let take = |cores: &[u32]| cores.iter().copied().collect();
        (half > 0).then(|| (take(&ordered[..half]), take(&ordered[half..2 * half])))
    }
}

/// Socket and physical core that a core belongs to; without knowledge, one of its own.
fn physical_core(topology: &Path, core: u32) -> (u32, u32, u32) {
    let number = |name: &str| -> Option<u32> {
        let file = topology.join(format!("cpu{core}/topology/{name}"));
        std::fs::read_to_string(file).ok()?.trim().parse().ok()
    };
    match (number("physical_package_id"), number("core_id")) {
        (Some(package), Some(physical)) => (package, physical, 0),
        _ => (0, 0, core),
    }
}

/// Cores that the calling thread may run on; `None` off Linux.
pub fn current() -> Option<CoreList> {
    #[cfg(target_os = "linux")]
    return (rustix::thread::sched_getaffinity(None).ok()).map(|mask| from_mask(&mask));
    #[cfg(not(target_os = "linux"))]
    None
}

/// Keeps the calling thread, and all that it will start, on these cores; other threads stay where
/// they are. The error says what is wrong with the list.
#[cfg(target_os = "linux")]
pub fn pin(cores: &CoreList) -> Result<(), String> {
    check(cores)?;
    rustix::thread::sched_setaffinity(None, &to_mask(cores))
        .map_err(|error| format!("the system does not pin this process to cores {cores}: {error}"))
}

/// Refuses cores that the system does not offer to this process.
#[cfg(target_os = "linux")]
pub fn check(cores: &CoreList) -> Result<(), String> {
    let offered = offered().ok_or("the system does not say which cores there are")?;
    let missing = cores.without(&offered);
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!(
            "no core {missing} for this process: choose from {offered}"
        )),
    }
}

/// All cores that this process could be pinned to, beyond those that it was started on.
#[cfg(target_os = "linux")]
fn offered() -> Option<CoreList> {
    use rustix::thread::{sched_getaffinity, sched_setaffinity};
    let before = sched_getaffinity(None).ok()?;
    // The kernel cuts a mask down to what it grants; it has no other way of telling.
    let widest = sched_setaffinity(None, &to_mask(&(0..MAX_CORES).collect()))
        .and_then(|()| sched_getaffinity(None));
    sched_setaffinity(None, &before).ok()?;
    Some(from_mask(&widest.unwrap_or(before)))
}

#[cfg(target_os = "linux")]
fn to_mask(cores: &CoreList) -> rustix::thread::CpuSet {
    let mut mask = rustix::thread::CpuSet::new();
    cores.0.iter().for_each(|&core| mask.set(core as usize));
    mask
}

#[cfg(target_os = "linux")]
fn from_mask(mask: &rustix::thread::CpuSet) -> CoreList {
    (0..MAX_CORES)
        .filter(|&c| mask.is_set(c as usize))
        .collect()
}

/// Off Linux a process is not pinned.
#[cfg(not(target_os = "linux"))]
pub fn pin(cores: &CoreList) -> Result<(), String> {
    check(cores)
}

/// Off Linux a process is not pinned.
#[cfg(not(target_os = "linux"))]
pub fn check(_: &CoreList) -> Result<(), String> {
    Err("processes are pinned on Linux alone: leave it out".into())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn list(cores: &[u32]) -> CoreList {
        cores.iter().copied().collect()
    }

    #[test]
    fn lists_are_read_and_written_short() {
        for (text, cores, shown) in [
            ("0", &[0][..], "0"),
            ("0,2-3", &[0, 2, 3], "0,2-3"),
            ("3,1, 2,2", &[1, 2, 3], "1-3"),
            ("5-5,7", &[5, 7], "5,7"),
            ("1023", &[1023], "1023"),
        ] {
            let read: CoreList = text.parse().unwrap();
            assert_eq!(read, list(cores), "{text}");
            assert_eq!(read.to_string(), shown);
        }
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in [
            "", ",", "0,", "-1", "1-", "3-1", "1024", "0-1024", "a", "1.5", "+1", "0--1", "1-2-3",
        ] {
            let error = text.parse::<CoreList>().unwrap_err();
            assert!(error.contains("such as 0,2-3"), "{text:?}: {error}");
        }
    }

    #[test]
    fn halves_are_equal_and_apart() {
        let by_number = |cores: &[u32]| list(cores).halves_by(|core| core);
        assert_eq!(by_number(&[0, 1]), Some((list(&[0]), list(&[1]))));
        assert_eq!(by_number(&[0, 1, 2]), Some((list(&[0]), list(&[1]))));
        assert_eq!(by_number(&[7]), None);
        assert_eq!(by_number(&[]), None);
    }

    #[test]
    fn one_apart_is_of_another_physical_core_where_there_is_one() {
        let apart = |ours: &[u32], other: &[u32], threads: u32| {
            list(ours).one_apart_by(&list(other), |core| core / threads)
        };
        assert_eq!(apart(&[0, 1], &[0], 1), Some(list(&[1])));
        assert_eq!(apart(&[0, 1, 2, 3], &[0], 2), Some(list(&[2])));
        assert_eq!(apart(&[0, 1], &[0], 2), Some(list(&[1])));
        assert_eq!(apart(&[2, 3], &[0], 2), Some(list(&[2])));
        assert_eq!(apart(&[0], &[0], 1), None);
        assert_eq!(apart(&[], &[0], 1), None);
    }

    #[test]
    fn threads_of_a_core_and_cores_of_a_socket_stay_together() {
        // Two sockets of two cores of two threads, numbered as Linux does on x86.
        let folder = tempfile::tempdir().unwrap();
        for core in 0..8 {
            let path = folder.path().join(format!("cpu{core}/topology"));
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(
                path.join("physical_package_id"),
                format!("{}\n", core / 2 % 2),
            )
            .unwrap();
            std::fs::write(path.join("core_id"), format!("{}\n", core % 2)).unwrap();
        }
        let all = list(&[0, 1, 2, 3, 4, 5, 6, 7]);
        let halves = all.halves_by(|core| physical_core(folder.path(), core));
        assert_eq!(halves, Some((list(&[0, 1, 4, 5]), list(&[2, 3, 6, 7]))));
        assert_eq!(physical_core(folder.path(), 9), (0, 0, 9));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn a_thread_is_pinned_and_what_is_not_there_is_refused() {
        let pinned = std::thread::spawn(|| {
            let before = current().unwrap();
            let one: CoreList = before.0[..1].iter().copied().collect();
            pin(&one).unwrap();
            assert_eq!(current().unwrap(), one);
            // What it was started on is offered still.
            check(&before).unwrap();
            assert_eq!(current().unwrap(), one);
            let error = pin(&list(&[1023])).unwrap_err();
            assert!(error.contains("no core 1023"), "{error}");
            assert_eq!(current().unwrap(), one);
        });
        pinned.join().unwrap();
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(cores in prop::collection::btree_set(0u32..MAX_CORES, 1..40)) {
            let list: CoreList = cores.into_iter().collect();
            prop_assert_eq!(list.to_string().parse::<CoreList>(), Ok(list));
        }

        #[test]
        fn any_text_is_read_or_refused(text in "[0-9,\\- a]{0,24}|\\PC{0,12}") {
            if let Ok(list) = text.parse::<CoreList>() {
                prop_assert!(!list.is_empty());
            }
        }
    }
}
