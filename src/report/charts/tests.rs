use super::*;
use crate::metrics::{Arm, Case};
use crate::report::fixture::{Times, case, failed, record, usual_case};

fn summary(cases: Vec<Case>) -> Summary {
    Summary::of(&record(cases))
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
    for chart in all(&summary(vec![case])) {
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
    assert!(svg.contains("scale of its own"), "{svg}");
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
