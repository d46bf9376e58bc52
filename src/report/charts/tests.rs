use super::*;
use crate::metrics::{Arm, Case, Node, Record};
use crate::projection::{LINE_RATES_GBPS, outlooks};
use crate::report::fixture::{Times, case, failed, record, usual_case};

fn summary(cases: Vec<Case>) -> Summary {
    Summary::of(&record(cases))
}

fn charts(cases: Vec<Case>) -> Vec<Chart> {
    charts_of(&record(cases))
}

fn charts_of(record: &Record) -> Vec<Chart> {
    let outlooks = outlooks(record, None, &LINE_RATES_GBPS).unwrap_or_default();
    all(&Summary::of(record), &outlooks)
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
            .all(|(x, w)| *x >= 0.0 && *w > 0.0 && x + w <= f64::from(WIDTH))
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
    for chart in charts(vec![case]) {
        let svg = &chart.svg;
        assert!(svg.contains("role=\"img\""), "{svg}");
        assert!(svg.contains(&format!(
            "<title id=\"{}-title\">",
            chart.file.trim_end_matches(".svg")
        )));
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
        for chart in charts_of(&record) {
            for (text, from, to) in texts(&chart.svg) {
                let is_inside = from >= 0.0 && to <= f64::from(WIDTH);
                assert!(
                    is_inside,
                    "{} of {i}: {text} from {from} to {to}",
                    chart.file
                );
            }
            assert!(
                !chart.svg.contains("NaN") && !chart.svg.contains("inf"),
                "{} of {i}",
                chart.file
            );
        }
    }
}

#[test]
fn charts_come_with_what_they_show() {
    let files = |cases| -> Vec<&str> { charts(cases).iter().map(|c| c.file).collect() };
    let every = ["phases.svg", "overhead.svg", "bandwidth.svg", "savings.svg"];
    assert_eq!(files(vec![usual_case(128)]), every);
    let mut single = usual_case(128);
    single.samples.retain(|s| s.arm == Arm::Single);
    assert_eq!(files(vec![single]), ["phases.svg"]);
    assert!(files(vec![]).is_empty());
    let none = Times {
        prefill_ns: 1_000_000,
        step_ns: 1_000_000,
        ..Times::default()
    };
    assert_eq!(
        files(vec![case("none", 128, 20, none)]),
        ["phases.svg", "overhead.svg"]
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
