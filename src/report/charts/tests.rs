use super::*;
use crate::metrics::{Arm, Case, Event, EventName, Node, Record, Sample};
use crate::projection::{LINE_RATES_GBPS, outlooks};
use crate::report::fixture::{Times, case, failed, interference, record, usual_case};

fn summary(cases: Vec<Case>) -> Summary {
    Summary::of(&record(cases))
}

fn charts(cases: Vec<Case>) -> Vec<Chart> {
    charts_of(&record(cases))
}

fn charts_of(record: &Record) -> Vec<Chart> {
    let outlooks = outlooks(record, None, &LINE_RATES_GBPS).unwrap_or_default();
    all(record, &Summary::of(record), &outlooks)
}

/// Every value of an attribute of a kind of element.
fn values(svg: &str, tag: &str, attribute: &str) -> Vec<f64> {
    (svg.lines().filter(|l| l.starts_with(&format!("<{tag} "))))
        .filter_map(|l| {
            l.split_once(&format!(" {attribute}=\""))?
                .1
                .split('"')
                .next()
        })
        .filter_map(|v| v.parse().ok())
        .collect()
}

#[test]
fn phases_fill_their_bars_and_stay_inside() {
    let svg = phases(&summary(vec![usual_case(128), usual_case(2048)])).unwrap();
    for colour in ["#0072B2", "#D55E00", "#009E73"] {
        assert!(svg.contains(colour), "{colour}");
    }
    assert!(svg.contains(", transfer 1.2%"), "{svg}");
    let x = values(&svg, "rect", "x");
    let width = values(&svg, "rect", "width");
    assert!(
        x.iter()
            .zip(&width)
            .all(|(x, w)| *x >= 0.0 && *w > 0.0 && x + w <= f64::from(Page::Wide.width()))
    );
}

#[test]
fn nothing_measured_is_no_chart() {
    assert!(phases(&summary(vec![])).is_none());
    let mut case = usual_case(128);
    case.samples = vec![failed(Arm::Split, "peer closed")];
    assert!(phases(&summary(vec![case])).is_none());
}

#[test]
fn charts_name_themselves_and_follow_the_colour_scheme() {
    let mut case = usual_case(128);
    case.prompt = "<b>&\u{1b}".into();
    let charts = charts(vec![case]);
    let name = |chart: &Chart| chart.file.trim_end_matches(".svg").to_owned();
    let both = charts.iter().flat_map(|chart| {
        let narrow = format!("{}-narrow", name(chart));
        [(name(chart), &chart.svg), (narrow, &chart.narrow)]
    });
    for (id, svg) in both {
        assert!(svg.contains("role=\"img\""), "{svg}");
        assert!(svg.contains(&format!("<title id=\"{id}-title\">")), "{id}");
        assert!(svg.contains("</desc>") && svg.contains("prefers-color-scheme: dark"));
        assert!(!svg.contains("<b>") && !svg.contains('\u{1b}'), "{svg}");
        assert_eq!(svg.matches("<svg ").count(), 1);
        assert!(svg.trim_end().ends_with("</svg>"));
    }
}

#[test]
fn extremes_get_scales_of_their_own() {
    let tiny = Times {
        prefill_ns: 400_000,
        step_ns: 100_000,
        ..Times::default()
    };
    let huge = Times {
        prefill_ns: 290_000_000_000,
        step_ns: 10_000_000_000,
        ..Times::default()
    };
    let svg = phases(&summary(vec![
        case("tiny", 4, 2, tiny),
        case("huge", 100_000, 2, huge),
    ]))
    .unwrap();
    assert!(svg.contains("each prompt on its own scale"), "{svg}");
    assert!(svg.contains("0.50 ms") && svg.contains("300 s"), "{svg}");
    let alike = phases(&summary(vec![usual_case(128), usual_case(512)])).unwrap();
    assert!(alike.contains("one scale for all prompts"));
}

#[test]
fn ticks_are_round_and_few() {
    assert_eq!(ticks(1000.0), [0.0, 200.0, 400.0, 600.0, 800.0, 1000.0]);
    for max in [0.003, 0.7, 1.0, 5.9, 61.0, 123_456.0] {
        let ticks = ticks(max);
        assert!((3..=7).contains(&ticks.len()), "{max}: {ticks:?}");
        assert!(ticks.iter().all(|t| *t <= max));
    }
    assert_eq!(ticks(0.0), [0.0]);
    assert_eq!(ticks(f64::NAN), [0.0]);
}

#[test]
fn ticks_are_told_apart() {
    for (ticks, wanted) in [
        (vec![0.0, 500.0, 1000.0], ["0", "500", "1000"]),
        (vec![0.06, 0.065, 0.07], ["0.060", "0.065", "0.070"]),
        (vec![1.2, 1.4, 1.6], ["1.2", "1.4", "1.6"]),
    ] {
        assert_eq!(scale::texts(&ticks), wanted);
    }
    assert_eq!(scale::texts(&[3.0]), ["3"]);
}

/// Texts of a picture with the pixels they reach from and to, in a wide font.
fn texts(svg: &str) -> Vec<(String, f64, f64)> {
    let mut lines = svg.lines();
    let mut found = Vec::new();
    while let Some(line) = lines.next() {
        if !line.starts_with("<text ") {
            continue;
        }
        let of = |name: &str| {
            line.split_once(&format!(" {name}=\""))
                .unwrap()
                .1
                .split('"')
                .next()
                .unwrap()
        };
        let content = lines.next().unwrap().to_owned();
        let x: f64 = of("x").parse().unwrap();
        let size: f64 = of("font-size").parse().unwrap();
        let width = 0.6 * size * content.chars().count() as f64;
        let from = match of("text-anchor") {
            "start" => x,
            "middle" => x - width / 2.0,
            _ => x - width,
        };
        found.push((content, from, from + width));
    }
    found
}

/// Cases that press on every edge.
fn hard_cases() -> Vec<Vec<Case>> {
    let long = "What does the treaty say about the right of the inhabitants to keep their customs, and of what else?";
    let named = |tokens| Case {
        prompt: long.into(),
        ..usual_case(tokens)
    };
    let mut lost = named(131_072);
    lost.samples = vec![failed(Arm::Split, &long.repeat(3))];
    lost.check = None;
    let mut ways = named(131_072);
    for streams in [2, 4, 8, 16] {
        let mut more = usual_case(131_072).samples;
        for sample in &mut more {
            match sample.arm {
                Arm::Single => sample.node = Node::Decode,
                Arm::Split => sample.streams = streams,
            }
        }
        ways.samples.extend(more);
    }
    let tiny = Times {
        prefill_ns: 400_000,
        exposed_ns: 20_000,
        step_ns: 80_000,
        ..Times::default()
    };
    let slow = Times {
        prefill_ns: 1_000_000,
        exposed_ns: 290_000_000_000,
        step_ns: 1_000_000_000,
        ..Times::default()
    };
    let none = Times {
        prefill_ns: 1_000_000,
        step_ns: 1_000_000,
        ..Times::default()
    };
    vec![
        vec![usual_case(512)],
        (0..12).map(|i| named(128 + 170 * i)).collect(),
        (0..12).map(|i| usual_case(4 << i)).collect(),
        vec![case("tiny", 4, 2, tiny), case("slow", 100_000, 11, slow)],
        vec![case("none", 128, 20, none), case("none", 512, 20, none)],
        vec![usual_case(128), lost],
        vec![ways],
    ]
}

#[test]
fn nothing_is_cut_at_the_edges() {
    for (i, cases) in hard_cases().into_iter().enumerate() {
        let mut record = record(cases);
        record.model.name = "a model with a name that is longer than any line may be".repeat(2);
        record.interference = Some(interference());
        for chart in charts_of(&record) {
            for (page, svg) in [(Page::Wide, &chart.svg), (Page::Narrow, &chart.narrow)] {
                for (text, from, to) in texts(svg) {
                    let is_inside = from >= 0.0 && to <= f64::from(page.width());
                    assert!(
                        is_inside,
                        "{} of {i}: {text} from {from} to {to}",
                        chart.file
                    );
                }
                assert!(
                    !svg.contains("NaN") && !svg.contains("inf"),
                    "{} of {i}",
                    chart.file
                );
            }
        }
    }
}

#[test]
fn charts_come_with_what_they_show() {
    let files = |cases| -> Vec<&str> { charts(cases).iter().map(|c| c.file).collect() };
    let every = [
        "phases.svg",
        "gantt.svg",
        "overhead.svg",
        "bandwidth.svg",
        "predicted.svg",
        "break-even.svg",
        "savings.svg",
    ];
    assert_eq!(files(vec![usual_case(128)]), every);
    let mut watched = record(vec![]);
    watched.interference = Some(interference());
    let watched: Vec<&str> = charts_of(&watched).iter().map(|c| c.file).collect();
    assert_eq!(watched, ["itl.svg"]);
    let mut single = usual_case(128);
    single.samples.retain(|s| s.arm == Arm::Single);
    assert_eq!(files(vec![single]), ["phases.svg"]);
    assert!(files(vec![]).is_empty());
    let mut unfitted = record(vec![usual_case(128)]);
    unfitted.link.as_mut().unwrap().fit = None;
    let unfitted: Vec<&str> = charts_of(&unfitted).iter().map(|c| c.file).collect();
    assert_eq!(
        unfitted,
        ["phases.svg", "gantt.svg", "overhead.svg", "bandwidth.svg"]
    );
}

/// A case whose caches went in a piece a layer, each landed when half of its way was over.
fn in_pieces(mut case: Case) -> Case {
    let sent = |s: &&mut Sample| s.arm == Arm::Split;
    for sample in case.samples.iter_mut().filter(sent) {
        let at = |name| sample.events.iter().find(|e| e.name == name).unwrap().t_ns;
        let (from, to) = (
            at(EventName::PieceOffered),
            at(EventName::PieceAcknowledged),
        );
        let is_piece = |e: &Event| {
            matches!(
                e.name,
                EventName::PieceOffered | EventName::PieceAcknowledged
            )
        };
        sample.events.retain(|e| !is_piece(e));
        for layer in 0..30 {
            let start = from + (to - from) * u64::from(layer) / 30;
            let end = from + (to - from) * u64::from(layer + 1) / 30;
            for (clock, name, t_ns) in [
                (Node::Prefill, EventName::PieceOffered, start),
                (Node::Prefill, EventName::PieceAcknowledged, end),
                // The zero of the decode node lies at `from`, less what its cache took.
                (
                    Node::Decode,
                    EventName::PieceLanded,
                    (start + end) / 2 - from,
                ),
            ] {
                sample.events.push(Event {
                    clock,
                    name,
                    layer: Some(layer),
                    chunk: None,
                    token_start: Some(0),
                    stream: Some(0),
                    t_ns,
                });
            }
        }
        let took = to - from;
        let of_decode =
            |e: &&mut Event| e.clock == Node::Decode && e.name != EventName::PieceLanded;
        sample
            .events
            .iter_mut()
            .filter(of_decode)
            .for_each(|e| e.t_ns += took);
    }
    case
}

/// Rectangles of a colour.
fn bars(svg: &str, colour: &str) -> usize {
    let fill = format!("fill=\"{colour}\"");
    svg.lines()
        .filter(|l| l.starts_with("<rect ") && l.contains(&fill))
        .count()
}

#[test]
fn every_layer_is_computed_sent_and_landed() {
    let chart = transfer_chart("gantt.svg", vec![in_pieces(usual_case(512))]);
    let svg = &chart.svg;
    // The whole request and its end, which the last layer reaches into, to its K and V and on to the
    // logits; one is the legend's.
    assert_eq!(bars(svg, "#0072B2"), 30 + 1 + 2 + 1);
    assert_eq!(bars(svg, "#D55E00"), 2 * 30 + 1);
    assert_eq!(bars(svg, "#56B4E9"), 2 * 30 + 1);
    let texts: Vec<String> = texts(svg).into_iter().map(|(t, ..)| t).collect();
    for part in ["layer 1", "30", "prefill node", "decode node", "2nd token"] {
        assert!(texts.iter().any(|t| t == part), "{part}: {texts:?}");
    }
    let last = "the last layer is acknowledged 9.44 ms after prefill's end";
    assert!(chart.caption.contains(last), "{}", chart.caption);
    // Half of a piece, 0.16 ms, is what its clock may be off, and 100 ppm of the request for drift.
    assert!(texts.iter().any(|t| t == "±0.28 ms"), "{texts:?}");
}

#[test]
fn a_clock_that_contradicts_itself_places_nothing() {
    let mut case = in_pieces(usual_case(512));
    for sample in &mut case.samples {
        let mut landed = (sample.events.iter_mut()).filter(|e| e.name == EventName::PieceLanded);
        landed
            .by_ref()
            .take(1)
            .for_each(|e| e.t_ns += 1_000_000_000);
    }
    let svg = transfer_chart("gantt.svg", vec![case]).svg;
    assert!(svg.contains("its clock cannot be placed"), "{svg}");
    assert_eq!(bars(&svg, "#56B4E9"), 1);
}

#[test]
fn gaps_of_every_arm_are_drawn_to_their_peak() {
    let mut record = record(vec![]);
    record.interference = Some(interference());
    let chart = charts_of(&record).remove(0);
    let svg = &chart.svg;
    assert!(svg.contains("a prompt of 512 tokens comes"), "{svg}");
    // A line, a band and a legend each.
    for colour in ["#D55E00", "#E69F00", "#0072B2"] {
        assert_eq!(svg.matches(colour).count(), 3, "{colour}");
    }
    assert!(
        chart
            .caption
            .contains("single, whole prompt 512 ms (undisturbed 10.0)"),
        "{}",
        chart.caption
    );
    // 10 to 512 ms are decades.
    let texts: Vec<String> = texts(svg).into_iter().map(|(t, ..)| t).collect();
    for tick in ["10", "20", "100", "500"] {
        assert!(texts.iter().any(|t| t == tick), "{tick}: {texts:?}");
    }
}

#[test]
fn predictions_are_points_and_the_caption_names_the_worst() {
    let chart = transfer_chart("predicted.svg", vec![usual_case(128), usual_case(2048)]);
    assert!(
        chart.caption.contains("the worst is off by"),
        "{}",
        chart.caption
    );
    assert!(chart.svg.contains("bulk, from the link"), "{}", chart.svg);
    assert_eq!(values(&chart.svg, "circle", "cx").len(), 2);
}

#[test]
fn the_surface_has_a_cell_a_rate_and_length_and_the_own_link() {
    let chart = transfer_chart("break-even.svg", vec![usual_case(128), usual_case(2048)]);
    let cells = ["#E8E8E8", "#FBE0B0", "#E69F00", "#D55E00", "#56B4E9"];
    let shown = cells.iter().filter(|c| bars(&chart.svg, c) > 0).count();
    let all: usize = cells.iter().map(|c| bars(&chart.svg, c)).sum();
    // One more of every colour is the legend's.
    assert_eq!(all, 2 * 12 + shown, "{}", chart.svg);
    // Two circles a mark, and the legend's.
    assert_eq!(values(&chart.svg, "circle", "cx").len(), 2 * 2 + 1);
    let doubt = "where that may be chance, so is the line";
    assert!(chart.caption.contains(doubt), "{}", chart.caption);
    assert!(
        chart.caption.contains("this run's link, 10.0 Gbps at 2048"),
        "{}",
        chart.caption
    );
}

#[test]
fn what_the_link_can_do_stands_behind_what_requests_got() {
    let chart = transfer_chart("bandwidth.svg", vec![usual_case(128), usual_case(2048)]);
    assert!(
        chart.svg.contains("its ceiling, 10.0 Gbps"),
        "{}",
        chart.svg
    );
    assert!(
        chart.svg.matches("<polyline ").count() > 20,
        "a curve and a dashed line"
    );
}

#[test]
fn points_stand_where_their_values_are() {
    let chart = transfer_chart("overhead.svg", vec![usual_case(128), usual_case(2048)]);
    let y = values(&chart.svg, "circle", "cy");
    let labels: Vec<String> = texts(&chart.svg).into_iter().map(|(t, ..)| t).collect();
    // 0.212 % lies below 1.23 %, and both are written down.
    assert!(
        labels.contains(&"0.21".into()) && labels.contains(&"1.23".into()),
        "{labels:?}"
    );
    assert!(y[1] > y[2], "{y:?}");
    let even = transfer_chart("bandwidth.svg", vec![usual_case(128), usual_case(2048)]);
    let y = values(&even.svg, "circle", "cy");
    assert_eq!((y.len(), y[0]), (2, y[1]));
}

fn transfer_chart(file: &str, cases: Vec<Case>) -> Chart {
    let mut charts = charts(cases);
    charts.retain(|c| c.file == file);
    charts.remove(0)
}

#[test]
fn projections_are_labelled_so_and_say_no() {
    let chart = transfer_chart("savings.svg", vec![usual_case(128)]);
    assert!(chart.svg.contains("PROJECTED, low to high"));
    assert!(
        chart
            .caption
            .starts_with("Projected: RDMA would buy nothing here"),
        "{}",
        chart.caption
    );
    let slow = Times {
        prefill_ns: 1_000_000,
        exposed_ns: 512 * 23_040 * 8 / 10,
        step_ns: 100_000,
        ..Times::default()
    };
    let chart = transfer_chart("savings.svg", vec![case("slow", 512, 10, slow)]);
    assert!(
        chart.caption.starts_with("Projected: bulk exposes 9.44 ms"),
        "{}",
        chart.caption
    );
}
