//! Of the link: rates that cannot be, clocks that contradict each other, connections that were
//! cold, and requests of others.

use crate::environment::NetworkInterface;
use crate::metrics::clock::ClockOffset;
use crate::metrics::summary::SummaryCase;
use crate::metrics::{Arm, Node, Record, Sample};
use crate::report::number::{count, significant};

pub(super) fn faster_than_cards(record: &Record, cases: &[SummaryCase]) -> Option<String> {
    if record.link.as_ref().is_none_or(|link| link.loopback) {
        return None;
    }
    let nodes = [
        Some(&record.environment.prefill),
        record.environment.decode.as_ref(),
    ];
    let ceiling = (nodes.into_iter().flatten())
        .filter_map(|e| physical_gbps(&e.network_interfaces))
        .min_by(f64::total_cmp)?;
    let fastest = super::arms(cases)
        .filter_map(|(_, a)| Some(a.effective_gbps?.median))
        .max_by(f64::total_cmp)?;
    (fastest > ceiling).then(|| {
        format!(
            "{} Gbps effective is more than the node's network cards carry ({} Gbit/s): the bytes went another way, check the peer's address",
            significant(fastest, 3),
            significant(ceiling, 3),
        )
    })
}

/// On loopback every byte is copied twice, in and out. Of a connection two cores at most copy at
/// once, and the second copy may read what the first one left in the cache, which at most doubles
/// their rate: so a rate cannot exceed one core's rate of copying times the cores that copy.
pub(super) fn faster_than_memory(record: &Record, cases: &[SummaryCase]) -> Option<String> {
    let copy_gbps = record.observed.memory_copy?.gbps();
    let cores = record.environment.prefill.processor.usable_cores as f64;
    let too_fast = super::arms(cases).filter_map(|(_, arm)| {
        let gbps = arm.effective_gbps?.median;
        let ceiling = copy_gbps * cores.min(2.0 * f64::from(arm.streams));
        (gbps > ceiling).then_some((gbps, ceiling))
    });
    let (gbps, ceiling) = too_fast.max_by(|(a, _), (b, _)| a.total_cmp(b))?;
    Some(format!(
        "{} Gbps effective is more than this machine's cores copy in memory ({} Gbps): the times of the pieces cannot be right, run again and report it",
        significant(gbps, 3),
        significant(ceiling, 3),
    ))
}

/// What all network cards of a node carry together; `None` if that is not known of every one.
/// Virtual interfaces are left out, because they name a speed that does not bind them.
fn physical_gbps(interfaces: &[NetworkInterface]) -> Option<f64> {
    let cards = (interfaces.iter()).filter(|i| i.is_up && !i.is_loopback && i.driver.is_some());
    let speeds: Option<Vec<u64>> = cards.map(|card| card.speed_mbps).collect();
    let mbps: u64 = speeds?.iter().sum();
    (mbps > 0).then_some(mbps as f64 / 1e3)
}

pub(super) fn contradicting_clocks(record: &Record) -> Option<String> {
    let samples = || record.cases.iter().flat_map(|c| &c.samples);
    let worst = (samples().filter_map(ClockOffset::of).map(|c| c.error_ns)).min()?;
    (worst < 0).then(|| {
        format!(
            "messages of one request contradict each other by {} us on the two nodes' clocks: a clock was stepped or drifts, do not compare times across nodes",
            significant(-worst as f64 / 1e3, 3),
        )
    })
}

pub(super) fn cold_connections(cases: &[SummaryCase]) -> Option<String> {
    let connections = || super::arms(cases).filter_map(|(_, a)| a.connections);
    let cold: usize = connections().map(|c| c.cold).sum();
    let all: usize = connections().map(|c| c.cold + c.warm + c.after_idle).sum();
    (cold > 0).then(|| {
        format!(
            "{cold} of {} were the first on their connection, which starts slowly: use --warmup 1 or more, and see whether requests failed before them",
            count(all, "transfer"),
        )
    })
}

/// What the decode node had to do for others meanwhile: requests that it admitted beyond ours, and
/// those of ours that met any.
pub(super) fn others_in_flight(record: &Record) -> Option<String> {
    let samples = || record.cases.iter().flat_map(|c| &c.samples);
    let foreign = record
        .observed
        .admitted()
        .into_iter()
        .map(|(admitted, after, upto)| {
            let at_decode = |s: &&Sample| s.arm == Arm::Split || s.node == Node::Decode;
            let is_between = |s: &&Sample| s.order > after && s.order <= upto;
            let ours = samples().filter(at_decode).filter(is_between).count();
            (admitted as usize).saturating_sub(ours)
        });
    let measured = samples().filter(|s| s.is_measured());
    let met = measured.filter(|s| {
        s.others_in_flight
            .or(s.waiting_ahead)
            .is_some_and(|others| others > 0)
    });
    let seen = |n: usize| Some(n).filter(|n| *n > 0);
    let admitted =
        seen(foreign.sum()).map(|n| format!("admitted {} of others", count(n, "request")));
    let met =
        (seen(met.count())).map(|n| format!("had requests of others in flight beside {n} of ours"));
    let what: Vec<String> = admitted.into_iter().chain(met).collect();
    (!what.is_empty()).then(|| {
        format!(
            "the decode node {} during this run: measure while nobody else uses it",
            what.join(" and ")
        )
    })
}

/// Requests whose connection had to be tried more than once.
pub(super) fn retried_connections(record: &Record) -> Option<String> {
    let samples = record.cases.iter().flat_map(|c| &c.samples);
    let scenes = record.interference.iter().flat_map(|all| &all.samples);
    let attempts = (samples.map(|s| s.connect_attempts)).chain(scenes.map(|s| s.connect_attempts));
    let retried = attempts.flatten().filter(|n| *n > 1);
    let retried = Some(retried.count()).filter(|n| *n > 0)?;
    Some(format!(
        "before {} the decode node was reached only after several attempts: see its own output for \
         what stopped or filled it",
        count(retried, "request")
    ))
}
