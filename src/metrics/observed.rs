//! What was going on around the requests: looks at both nodes' processes and machines, and what
//! their differences say.

use serde::{Deserialize, Serialize};

use crate::environment::{Activity, MemoryCopy};

/// All looks of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Observed {
    /// How fast one core of the prefill node copies in memory; null off loopback.
    pub memory_copy: Option<MemoryCopy>,
    /// One entry before the first request and one behind each.
    pub looks: Vec<Look>,
}

/// Both nodes behind a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Look {
    /// The request's position in the run; null before the first one.
    pub order: Option<u32>,
    /// The prefill node, when the answer was there.
    pub prefill: Activity,
    /// The decode node, when it sent the end of the answer; null where it took no part.
    pub decode: Option<Activity>,
}

/// What happened on one machine between two looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OtherLoad {
    /// Cores that other programs kept busy, in the mean.
    pub programs_cores: f64,
    /// Cores' worth of time that the hypervisor gave to others.
    pub stolen_cores: f64,
}

/// Shorter runs say nothing of other load, since the kernel counts in ticks of 10 ms.
const OTHER_LOAD_MIN_NS: u64 = 500_000_000;

impl OtherLoad {
    /// Of counters' differences; `None` where the time is too short or the system does not tell.
    fn between(before: &Activity, after: &Activity, others_ns: u64) -> Option<Self> {
        let wall_ns = after.wall_ns.checked_sub(before.wall_ns)?;
        if wall_ns < OTHER_LOAD_MIN_NS {
            return None;
        }
        let ours_ns = after.process_cpu_ns.saturating_sub(before.process_cpu_ns) + others_ns;
        let all_ns = after.machine_cpu_ns?.saturating_sub(before.machine_cpu_ns?);
        let stolen_ns = after.stolen_ns?.saturating_sub(before.stolen_ns?);
        let cores = |ns: u64| ns as f64 / wall_ns as f64;
        Some(Self {
            programs_cores: cores(all_ns.saturating_sub(ours_ns)),
            stolen_cores: cores(stolen_ns),
        })
    }
}

impl Observed {
    /// The looks of each sitting: counters start anew in each process of a resumed run.
    fn sittings(&self) -> impl Iterator<Item = &[Look]> {
        self.looks.chunk_by(|_, next| next.order.is_some())
    }

    /// On the prefill node's machine, the busiest sitting. Where both nodes share it, the decode
    /// node's work is ours.
    pub fn other_load_of_prefill(&self, shared_machine: bool) -> Option<OtherLoad> {
        let of_sitting = |looks: &[Look]| match (shared_machine, decode_span(looks)) {
            (true, Some((first, last))) => {
                let cpu_ns = |look: &Look| Some(look.decode?.process_cpu_ns);
                let theirs = cpu_ns(last)?.saturating_sub(cpu_ns(first)?);
                OtherLoad::between(&first.prefill, &last.prefill, theirs)
            }
            (true, None) => None,
            (false, _) => {
                let (first, last) = (looks.first()?, looks.last()?);
                OtherLoad::between(&first.prefill, &last.prefill, 0)
            }
        };
        busiest(self.sittings().filter_map(of_sitting))
    }

    /// On the decode node's machine, where that is another one; the busiest sitting.
    pub fn other_load_of_decode(&self) -> Option<OtherLoad> {
        let of_sitting = |looks: &[Look]| {
            let (first, last) = decode_span(looks)?;
            OtherLoad::between(&first.decode?, &last.decode?, 0)
        };
        busiest(self.sittings().filter_map(of_sitting))
    }

    /// Lowest and highest frequency of a node's fastest core behind requests.
    pub fn mhz_range(&self, node: fn(&Look) -> Option<Activity>) -> Option<(u32, u32)> {
        let behind = self.looks.iter().filter(|look| look.order.is_some());
        let mhz = || {
            behind
                .clone()
                .filter_map(|look| node(look)?.fastest_core_mhz)
        };
        Some((mhz().min()?, mhz().max()?))
    }

    /// Share of requests behind which both nodes' network threads were on one core.
    pub fn one_core_share(&self) -> Option<f64> {
        let cores = self.looks.iter().filter_map(|look| {
            let theirs = look.decode?.core?;
            Some(theirs == look.prefill.core?)
        });
        let cores: Vec<bool> = cores.collect();
        let same = cores.iter().filter(|same| **same).count();
        (!cores.is_empty()).then(|| same as f64 / cores.len() as f64)
    }

    /// Requests that the decode node admitted between the first and the last look at it in each
    /// sitting, and the positions in the run between which those were.
    pub fn admitted(&self) -> Vec<(u64, u32, u32)> {
        let of_sitting = |looks: &[Look]| {
            let (first, last) = decode_span(looks)?;
            let count = |look: &Look| look.decode?.requests;
            // Fewer than before: it was started anew meanwhile.
            let admitted = count(last)?.checked_sub(count(first)?)?;
            Some((admitted, first.order?, last.order?))
        };
        self.sittings().filter_map(of_sitting).collect()
    }
}

/// First and last look that saw the decode node.
fn decode_span(looks: &[Look]) -> Option<(&Look, &Look)> {
    let mut seen = looks.iter().filter(|look| look.decode.is_some());
    let first = seen.next()?;
    Some((first, seen.next_back()?))
}

fn busiest(loads: impl Iterator<Item = OtherLoad>) -> Option<OtherLoad> {
    loads.max_by(|a, b| a.programs_cores.total_cmp(&b.programs_cores))
}
