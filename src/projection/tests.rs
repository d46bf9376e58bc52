use super::exposure::{Prefill, send};
use super::*;
use crate::metrics::{Arm, Case, EventName, Node, Record, Transfer};
use crate::report::fixture::{case, record, usual_case};
use proptest::prelude::*;

fn outlook(record: &Record) -> Outlook {
    outlooks(record, None, &LINE_RATES_GBPS).unwrap().remove(0)
}

fn at(outlook: &Outlook, transport: Transport, rate_gbps: f64) -> Projection {
    let found = |p: &&Projection| p.transport == transport && p.line_rate_gbps == Some(rate_gbps);
    *outlook.projections.iter().find(found).unwrap()
}

fn usual(tokens: u32) -> Outlook {
    outlook(&record(vec![usual_case(tokens)]))
}

#[test]
fn the_library_tier_is_its_published_fits() {
    // 23.04 MB at 92.8 of 100 Gbps after 5.6 us, the middle of the three fits.
    let exposed_ms = at(&usual(1000), Transport::RdmaLibrary, 100.0)
        .bulk
        .exposed_ms;
    let want = |us: f64, gbps: f64| us / 1e3 + 23.04 * 8.0 / gbps;
    for (got, want) in [
        (exposed_ms.low, want(5.5, 96.95)),
        (exposed_ms.mid, want(5.6, 92.8)),
        (exposed_ms.high, want(8.9, 52.8)),
    ] {
        assert!((got - want).abs() < 1e-6, "{exposed_ms:?}");
    }
}

#[test]
fn tcp_is_the_fit_until_the_line_is_slower() {
    let outlook = usual(1000);
    let fitted_ms = 23.04 * 8.0 / 10.0;
    let bulk = |rate| at(&outlook, Transport::Tcp, rate).bulk;
    // A faster line does not speed up what limits the fitted one.
    assert!((bulk(400.0).exposed_ms.high - fitted_ms).abs() < 1e-6);
    assert!(bulk(400.0).saving_ms.high.abs() < 0.02 && bulk(1.0).saving_ms.high < -150.0);
    // This link's segments leave 5.9% of a line to headers; those of loopback are no link's.
    let line_ms = 23.04 * 8.0;
    let want = |payload: f64| (payload + 90.0) / payload;
    assert!((bulk(1.0).exposed_ms.low / line_ms - want(1448.0)).abs() < 1e-6);
    let mut loopback = record(vec![usual_case(1000)]);
    loopback.link.as_mut().unwrap().loopback = true;
    let exposed_ms = at(&super::tests::outlook(&loopback), Transport::Tcp, 1.0)
        .bulk
        .exposed_ms;
    assert!(
        (exposed_ms.low / line_ms - want(8948.0)).abs() < 1e-6,
        "{exposed_ms:?}"
    );
    assert!(
        (exposed_ms.high / line_ms - want(1448.0)).abs() < 1e-6,
        "{exposed_ms:?}"
    );
}

#[test]
fn better_tcp_is_never_worse_and_stops_where_its_cores_do() {
    let outlook = usual(1000);
    for rate in LINE_RATES_GBPS {
        let [tcp, better] = [Transport::Tcp, Transport::BetterTcp].map(|t| at(&outlook, t, rate));
        assert!(
            better.bulk.exposed_ms.low <= tcp.bulk.exposed_ms.low,
            "{rate}"
        );
        assert!(
            better.bulk.exposed_ms.high <= tcp.bulk.exposed_ms.high,
            "{rate}"
        );
    }
    // Four streams at 42 Gbps a core.
    let best_ms = at(&outlook, Transport::BetterTcp, 400.0)
        .bulk
        .exposed_ms
        .low;
    assert!(
        (best_ms - (0.05 + 23.04 * 8.0 / 168.0)).abs() < 1e-6,
        "{best_ms}"
    );
}

#[test]
fn nothing_beats_the_line_or_saves_more_than_was_waited_for() {
    for tokens in [1, 100, 10_000] {
        let outlook = usual(tokens);
        assert_eq!(outlook.projections.len(), 5 * LINE_RATES_GBPS.len());
        for p in &outlook.projections {
            let line_ms = outlook.measured.kv_bytes as f64 * 8.0 / p.line_rate_gbps.unwrap() / 1e6;
            let bulk = p.bulk;
            assert!(line_ms <= bulk.exposed_ms.low + 1e-9, "{p:?}");
            assert!(bulk.exposed_ms.low <= bulk.exposed_ms.mid, "{p:?}");
            assert!(bulk.exposed_ms.mid <= bulk.exposed_ms.high, "{p:?}");
            assert!(bulk.saving_ms.high < outlook.mode().exposed_ms, "{p:?}");
            assert!((bulk.e2e_ms.mid + bulk.saving_ms.mid - outlook.mode().e2e_ms).abs() < 1e-6);
        }
    }
}

#[test]
fn the_change_is_what_the_split_pays() {
    // Of the usual case: exposed, 0.3 ms of handoff and 0.1 ms left over; its steps are the same.
    let outlook = usual(1000);
    let bulk = at(&outlook, Transport::Tcp, 400.0).bulk;
    let want_ms = 23.04 * 8.0 / 10.0 + 0.4;
    for change in [bulk.ttst_change_ms, bulk.e2e_change_ms] {
        assert!((change.unwrap().mid - want_ms).abs() < 0.05, "{change:?}");
    }
    let mut split_alone = record(vec![usual_case(1000)]);
    split_alone.cases[0].samples.retain(|s| s.arm == Arm::Split);
    let bulk = at(&super::tests::outlook(&split_alone), Transport::Tcp, 400.0).bulk;
    assert_eq!((bulk.ttst_change_ms, bulk.e2e_change_ms), (None, None));
}

#[test]
fn slower_steps_are_charged_only_where_they_are_seen() {
    // The last step of a split in each round takes this much longer, and so does the answer.
    let change_ms = |more_ms: [i64; 5]| {
        let mut record = record(vec![usual_case(1000)]);
        let splits = (record.cases[0].samples.iter_mut()).filter(|s| s.arm == Arm::Split);
        for sample in splits {
            let more_ns = more_ms[sample.repeat as usize] * 1_000_000;
            for (clock, name) in [
                (Node::Decode, EventName::StepEnd),
                (Node::Prefill, EventName::Token),
            ] {
                let mut events = sample.events.iter_mut().rev();
                let last = events.find(|e| e.clock == clock && e.name == name).unwrap();
                last.t_ns = last.t_ns.checked_add_signed(more_ns).unwrap();
            }
        }
        let bulk = at(&super::tests::outlook(&record), Transport::Tcp, 400.0).bulk;
        bulk.e2e_change_ms.unwrap().mid
    };
    let same_ms = change_ms([0; 5]);
    assert!((change_ms([2; 5]) - same_ms - 2.0).abs() < 1e-6);
    assert!((change_ms([-2; 5]) - same_ms + 2.0).abs() < 1e-6);
    assert!((change_ms([-2, 2, 2, -2, 2]) - same_ms).abs() < 1e-6);
}

/// The usual case with its transfer sent layer by layer as well: nothing was exposed, and prefill
/// took 3% longer.
fn with_layered(tokens: u32) -> Record {
    layered_beside(usual_case(tokens))
}

fn layered_beside(bulk: Case) -> Record {
    let mut record = record(vec![bulk]);
    let case = &mut record.cases[0];
    let split = case.samples.iter().filter(|s| s.arm == Arm::Split);
    let mut layered: Vec<_> = split.cloned().collect();
    let exposed_ns = case.kv_bytes * 8 / 10;
    for sample in &mut layered {
        sample.transfer = Some(Transfer::Layered);
        let here = sample.events.iter().filter(|e| e.clock == Node::Prefill);
        let end_ns = here
            .filter(|e| e.name == EventName::PrefillEnd)
            .map(|e| e.t_ns)
            .sum::<u64>();
        for event in &mut sample.events {
            event.t_ns = match event.name {
                _ if event.clock == Node::Decode => event.t_ns,
                EventName::PieceOffered => end_ns / 2,
                EventName::PieceAcknowledged => end_ns,
                _ if event.t_ns <= end_ns => event.t_ns * 103 / 100,
                _ => event.t_ns + end_ns * 3 / 100 - exposed_ns,
            };
        }
    }
    case.samples.extend(layered);
    record
}

#[test]
fn what_sending_takes_from_prefill_is_paid_on_tcp_alone() {
    let outlook = outlook(&with_layered(1000));
    // 30 ms over 23.04 MB.
    let tax = outlook.measured.tax_ns_per_byte.unwrap();
    assert!((tax - 30e6 / 23.04e6).abs() < 0.03, "{tax}");
    let layered = |transport| at(&outlook, transport, 400.0).layered;
    // The last layer exists when prefill ends.
    assert!((layered(Transport::Tcp).tax_ms.mid - 29.0).abs() < 0.7);
    assert_eq!(layered(Transport::RdmaWire).tax_ms.high, 0.0);
}

#[test]
fn rdma_buys_nothing_where_nothing_is_exposed_or_the_handoff_is_more() {
    let small = usual(128).rdma;
    assert!(
        small.buys_nothing && small.reason.contains("below 1% of E2E"),
        "{}",
        small.reason
    );
    let times = |exposed_ns, handoff_ns| crate::report::fixture::Times {
        prefill_ns: 1_000_000,
        step_ns: 100_000,
        exposed_ns,
        handoff_ns,
        ..Default::default()
    };
    let exposed_ns = 1000 * 23_040 * 8 / 10;
    let handoff = case("handoff", 1000, 5, times(exposed_ns, 2 * exposed_ns));
    let rdma = outlook(&record(vec![handoff])).rdma;
    assert!(
        rdma.buys_nothing && rdma.reason.contains("the handoff stays"),
        "{}",
        rdma.reason
    );
    let worth = outlook(&record(vec![case("worth", 1000, 5, times(exposed_ns, 0))])).rdma;
    assert!(
        !worth.buys_nothing && worth.most_ms.high > 17.0,
        "{}",
        worth.reason
    );
}

#[test]
fn rdma_buys_the_time_that_hidden_sending_takes_from_prefill() {
    // All hidden, prefill 3 ms longer for it, and a handoff below that and above nothing.
    let times = crate::report::fixture::Times {
        prefill_ns: 100_000_000,
        step_ns: 1_000_000,
        exposed_ns: 1000 * 23_040 * 8 / 10,
        handoff_ns: 100_000,
        ..Default::default()
    };
    let rdma = outlook(&layered_beside(case("hidden", 1000, 5, times))).rdma;
    assert!(
        !rdma.buys_nothing && rdma.reason.contains("makes prefill 3.00 ms longer"),
        "{}",
        rdma.reason
    );
}

#[test]
fn a_bad_fit_is_not_projected_from_and_the_reason_says_what_to_do() {
    let with = |change: fn(&mut crate::link::Fit)| {
        let mut record = record(vec![usual_case(1000)]);
        change(record.link.as_mut().unwrap().fit.as_mut().unwrap());
        let refused = outlooks(&record, None, &LINE_RATES_GBPS);
        refused.err().map_or(String::new(), |e| e.to_string())
    };
    assert_eq!(with(|_| {}), "");
    for (why, part) in [
        (with(|f| f.worst_residual_pct = 31.0), "off by 31%"),
        (with(|f| f.held_out_error_pct = Some(31.0)), "31% off"),
        (with(|f| f.held_out_error_pct = None), "too few sizes"),
        (
            with(|f| {
                f.sizes.iter_mut().for_each(|s| s.wire_ms /= 5.0);
                f.beta_gbps = Some(50.0);
            }),
            "took 5.0 times what the fit",
        ),
    ] {
        assert!(
            why.contains(part) && why.contains("--link-fit FILE"),
            "{part}: {why}"
        );
    }
    // One prompt's transfers take what the fit says, the other's four times that.
    let slow = crate::report::fixture::Times {
        prefill_ns: 500_000_000,
        exposed_ns: 4 * 500 * 23_040 * 8 / 10,
        step_ns: 20_000_000,
        ..Default::default()
    };
    let uneven = record(vec![usual_case(1000), case("slow", 500, 50, slow)]);
    let why = outlooks(&uneven, None, &LINE_RATES_GBPS)
        .unwrap_err()
        .to_string();
    assert!(why.contains("where a transfer of the run took"), "{why}");
    let mut without = record(vec![usual_case(1000)]);
    without.link.as_mut().unwrap().fit = None;
    let why = outlooks(&without, None, &LINE_RATES_GBPS)
        .unwrap_err()
        .to_string();
    assert!(why.starts_with("the run has no fit of its link"), "{why}");
    without.link = None;
    assert!(
        outlooks(&without, None, &LINE_RATES_GBPS)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn what_the_runs_own_transfers_take_longer_is_projected_with() {
    let mut slower = record(vec![usual_case(1000)]);
    let fit = slower.link.as_mut().unwrap().fit.as_mut().unwrap();
    fit.sizes.iter_mut().for_each(|s| s.wire_ms /= 2.0);
    fit.beta_gbps = Some(20.0);
    let exposed_ms = |rate| at(&outlook(&slower), Transport::Tcp, rate).bulk.exposed_ms;
    assert!((exposed_ms(400.0).mid - 18.432).abs() < 0.01);
    // A slow line is no slower for it.
    assert!((exposed_ms(1.0).mid - 184.32 * 1538.0 / 1448.0).abs() < 0.01);
}

#[test]
fn small_payloads_are_flagged_and_missing_ones_not_projected() {
    assert!(usual(11).is_below_published_fits);
    assert!(!usual(12).is_below_published_fits);
    let mut single = record(vec![usual_case(128)]);
    single.cases[0].samples.retain(|s| s.arm == Arm::Single);
    assert!(
        outlooks(&single, None, &LINE_RATES_GBPS)
            .unwrap()
            .is_empty()
    );
}

#[test]
fn every_published_value_that_is_used_has_a_source() {
    let sources = sources().unwrap();
    assert_eq!(sources.len(), 10);
    assert!(sources.iter().all(|s| s.contains(": ")));
}

#[test]
fn on_a_faster_engine_the_transfer_is_a_larger_share() {
    let record = record(vec![usual_case(1000)]);
    let (outlook, links) = (outlook(&record), Links::of_run(&record).unwrap());
    let at = |speed| restate(&outlook.measured, &links, Transfer::Bulk, 1000, 50, speed);
    // 1 s of prefill, 49 steps of 20 ms, 18.4 ms exposed, 0.4 ms beside.
    let own = at(EngineSpeed::Times(1.0));
    assert!((own.e2e_ms - 1998.8).abs() < 1.0, "{own:?}");
    assert!((own.transfer_overhead_pct - 0.922).abs() < 0.01, "{own:?}");
    let fast = at(EngineSpeed::TokensPerS {
        prefill: 100_000.0,
        decode: Some(500.0),
    });
    assert!(
        (fast.e2e_ms - (10.0 + 98.0 + 18.432 + 0.4)).abs() < 0.5,
        "{fast:?}"
    );
    assert!((fast.kv_demand_gbps - 18.432).abs() < 0.01, "{fast:?}");
    assert!((at(EngineSpeed::Times(10.0)).transfer_overhead_pct - 8.5).abs() < 0.3);
}

#[test]
fn a_run_over_the_link_scores_the_projection() {
    let (base, seen) = (with_layered(1000), with_layered(1000));
    let links = Links::of_run(&base).unwrap();
    let rows = score(&base, &links, None, &seen, "seen").unwrap();
    assert_eq!(rows.len(), 2);
    let bulk = &rows[0];
    let off = bulk.exposed_predicted_ms / bulk.exposed_measured_ms - 1.0;
    assert!(bulk.exposed_holds() && off.abs() < 0.001, "{bulk:?}");
    assert!(
        rows.iter()
            .flat_map(ScoredRow::changes)
            .all(ScoredChange::holds),
        "{rows:?}"
    );
    let errors = against_no_transfer(&rows).unwrap();
    assert!(errors.holds && errors.share < 0.05, "{errors:?}");
    // Of a link half as fast nothing holds.
    let rows = score(&base, &links, Some(5.0), &seen, "seen").unwrap();
    assert!(
        !rows[0].exposed_holds() && !against_no_transfer(&rows).unwrap().holds,
        "{rows:?}"
    );

    let other = with_layered(500);
    let error = score(&base, &links, None, &other, "other")
        .unwrap_err()
        .to_string();
    assert!(error.contains("--prompt-tokens"), "{error}");
    let mut other = with_layered(1000);
    other.model.fingerprint.clear();
    let error = score(&base, &links, None, &other, "other")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("measure both with the same --model"),
        "{error}"
    );
}

#[test]
fn a_shape_alone_is_enough() {
    let shape = crate::model::published::find("llama-3.1-70b").unwrap();
    let asked = Unmeasured {
        shape,
        element_bytes: 2,
        prompt_tokens: 4096,
        prefill_tokens_per_s: 8192.0,
        decode_tokens_per_s: None,
    };
    let answer = asked.project(None, &[25.0]).unwrap();
    assert_eq!(answer.kv_bytes, 4096 * 327_680);
    // 1.34 GB in half a second.
    assert!((answer.kv_demand_gbps - 21.47).abs() < 0.01, "{answer:?}");
    assert_eq!(answer.carried.len(), 4);
    let wire = answer
        .carried
        .iter()
        .find(|c| c.transport == Transport::RdmaWire)
        .unwrap();
    let bulk_ms = answer.kv_bytes as f64 * 8.0 / 25e6 / 0.934;
    assert!((wire.bulk_exposed_ms.low - bulk_ms).abs() < 0.1, "{wire:?}");
    // On a link a little faster than the demand, one layer of 80 is left.
    assert!(wire.layered_exposed_ms.low < bulk_ms / 40.0, "{wire:?}");
}

proptest! {
    #[test]
    fn more_bytes_never_wait_less_and_no_line_is_beaten(
        layer_mb in 0.001f64..64.0,
        growth in 1.0f64..8.0,
        layers in 1usize..100,
        prefill_ms in 0.1f64..10_000.0,
        alpha_us in 0.0f64..1e4,
        gbps in 0.01f64..400.0,
        is_layered: bool,
    ) {
        let carrier = Carrier::published(alpha_us, gbps).on_line(gbps);
        let sent = |mb: f64, is_layered| {
            let layer_bytes = vec![mb * 1e6; layers];
            let prefill = Prefill::even(1000, prefill_ms * 1e6, &layer_bytes, 1e6);
            send(&carrier, &prefill, is_layered)
        };
        let small = sent(layer_mb, is_layered);
        let bytes = layer_mb * 1e6 * layers as f64;
        prop_assert!(small.exposed_ns >= 0.0 && small.hidden_bytes >= 0.0);
        prop_assert!(small.hidden_bytes <= bytes * (1.0 + 1e-9));
        prop_assert!(small.exposed_ns <= sent(layer_mb * growth, is_layered).exposed_ns + 1e-3);
        let (bulk, layered) = (sent(layer_mb, false), sent(layer_mb, true));
        prop_assert!(layered.exposed_ns <= bulk.exposed_ns * (1.0 + 1e-9) + 1e-3);
        prop_assert_eq!(bulk.hidden_bytes, 0.0);
        // What is hidden and what is exposed is at least what the line takes.
        let line_ns = bytes * 8.0 / gbps;
        prop_assert!(bulk.exposed_ns >= line_ns * (1.0 - 1e-9));
        prop_assert!(layered.exposed_ns + prefill_ms * 1e6 >= line_ns * (1.0 - 1e-9));
    }

    #[test]
    fn layered_loses_no_more_than_its_tax(tokens in 50u32..3000, gbps in 0.05f64..400.0) {
        let outlook = outlooks(&with_layered(tokens), None, &[gbps]).unwrap().remove(0);
        for p in &outlook.projections {
            let (bulk, layered) = (p.bulk, p.layered);
            prop_assert!(layered.exposed_ms.mid <= bulk.exposed_ms.mid + 1e-6, "{:?}", p);
            let waits_ms = layered.exposed_ms.mid + layered.tax_ms.mid;
            prop_assert!(waits_ms <= bulk.exposed_ms.mid + layered.tax_ms.mid + 1e-6);
            prop_assert!(layered.tax_ms.mid >= 0.0 && layered.exposed_ms.low >= 0.0);
        }
    }
}
