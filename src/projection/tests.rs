use super::*;
use crate::metrics::summary::Summary;
use crate::report::fixture::{record, usual_case};

fn savings(tokens: u32) -> Savings {
    let summary = Summary::of(&record(vec![usual_case(tokens)]));
    Savings::of(&summary.cases[0]).unwrap().unwrap()
}

fn at(savings: &Savings, tier: Tier, line_rate_gbps: f64) -> Projection {
    let found = |p: &&Projection| p.tier == tier && p.line_rate_gbps == line_rate_gbps;
    *savings.projections.iter().find(found).unwrap()
}

#[test]
fn the_library_tier_is_its_fits() {
    // 23.04 MB at 92.8 of 100 Gbps after 5.6 µs, the middle of the three fits.
    let wait_ms = at(&savings(1000), Tier::Library, 100.0).wait_ms;
    assert!(
        (wait_ms.mid - (0.0056 + 23.04 * 8.0 / 92.8)).abs() < 1e-9,
        "{wait_ms:?}"
    );
    assert!(
        (wait_ms.low - (0.0055 + 23.04 * 8.0 / 96.95)).abs() < 1e-9,
        "{wait_ms:?}"
    );
    assert!(
        (wait_ms.high - (0.0089 + 23.04 * 8.0 / 52.8)).abs() < 1e-9,
        "{wait_ms:?}"
    );
}

#[test]
fn nothing_beats_the_line_or_saves_more_than_was_exposed() {
    for tokens in [1, 100, 10_000] {
        let savings = savings(tokens);
        assert_eq!(savings.projections.len(), 4 * LINE_RATES_GBPS.len());
        for p in &savings.projections {
            let line_ms = savings.kv_bytes as f64 * 8.0 / p.line_rate_gbps / 1e6;
            assert!(line_ms <= p.wait_ms.low, "{p:?}");
            assert!(
                p.wait_ms.low <= p.wait_ms.mid && p.wait_ms.mid <= p.wait_ms.high,
                "{p:?}"
            );
            assert!(p.saving_ms.low <= p.saving_ms.mid, "{p:?}");
            assert!(p.saving_ms.high < savings.exposed_ms, "{p:?}");
        }
        assert!(savings.most_by_rdma_ms() < savings.exposed_ms);
    }
}

#[test]
fn waits_grow_with_bytes_and_shrink_with_rate() {
    for tier in [Tier::Tcp, Tier::Wire, Tier::Library, Tier::Engine] {
        let (small, large) = (savings(100), savings(1000));
        assert!(at(&small, tier, 25.0).wait_ms.low < at(&large, tier, 25.0).wait_ms.low);
        for rates in LINE_RATES_GBPS.windows(2) {
            let [slow, fast] = [0, 1].map(|i| at(&large, tier, rates[i]).wait_ms);
            assert!(
                fast.low <= slow.low && fast.high <= slow.high,
                "{tier} {rates:?}"
            );
        }
    }
}

#[test]
fn a_slower_link_saves_less_than_nothing() {
    // Measured at 10 Gbps of payload: a 10 Gbit/s line cannot match it.
    assert!(at(&savings(1000), Tier::Wire, 10.0).saving_ms.high < 0.0);
}

#[test]
fn tcp_stops_where_its_cores_do() {
    let savings = savings(1000);
    let [a, b] = [200.0, 400.0].map(|rate| at(&savings, Tier::Tcp, rate).wait_ms.low);
    assert!(
        (b - (0.05 + 23.04 * 8.0 / 168.0)).abs() < 1e-9 && a >= b,
        "{a} {b}"
    );
}

#[test]
fn small_payloads_are_flagged_and_missing_ones_not_projected() {
    assert!(savings(11).is_below_fits);
    assert!(!savings(12).is_below_fits);
    let mut case = usual_case(128);
    case.samples.retain(|s| s.arm == Arm::Single);
    let summary = Summary::of(&record(vec![case]));
    assert!(Savings::of(&summary.cases[0]).unwrap().is_none());
}

#[test]
fn every_value_used_has_a_source() {
    assert_eq!(sources().unwrap().len(), 5 + POINTS_USED.len());
}
