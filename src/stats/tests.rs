use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

#[test]
fn percentiles_are_type_7() {
    // R: quantile(c(1, 2, 4, 8), c(0.25, 0.5, 0.95), type = 7)
    let x = [1.0, 2.0, 4.0, 8.0];
    assert_eq!(percentile(&x, 0.25), Some(1.75));
    assert_eq!(percentile(&x, 0.5), Some(3.0));
    assert!((percentile(&x, 0.95).unwrap() - 7.4).abs() < 1e-12);
    assert_eq!(percentile(&[], 0.5), None);
}

#[test]
fn high_percentiles_and_intervals_need_their_samples() {
    let figure = |n| Figure::of(&vec![1.0; n]).unwrap();
    assert_eq!((figure(19).p95, figure(20).p95), (None, Some(1.0)));
    assert_eq!((figure(99).p99, figure(100).p99), (None, Some(1.0)));
    assert_eq!(figure(4).interval(), None);
    assert_eq!(figure(5).interval(), Some((1.0, 1.0)));
    assert_eq!(Figure::of(&[]), None);
}

#[test]
fn an_older_figure_can_be_read() {
    let old = r#"{"median": 2.0, "min": 1.0, "max": 3.0, "n": 3, "p95": null}"#;
    let figure: Figure = serde_json::from_str(old).unwrap();
    assert_eq!(
        (figure.median, figure.interval(), figure.p99),
        (2.0, None, None)
    );
}

#[test]
fn outliers_are_flagged_and_kept() {
    // Median 10.2, median absolute deviation 0.1: further than 0.519 away is outside.
    let samples = [10.1, 10.3, 10.2, 30.0, 10.2, 10.0, 10.71];
    let flagged = [false, false, false, true, false, false, false];
    assert_eq!(outliers(&samples), flagged);
    let figure = Figure::of(&samples).unwrap();
    assert_eq!((figure.outliers, figure.n, figure.max), (1, 7, 30.0));
    assert_eq!(outliers(&[1.0, 1.0, 1.0, 9.0]), [false; 4]);
    // Where half of the samples are equal there is no scale to judge by.
    assert_eq!(outliers(&[1.0, 1.0, 1.0, 1.0, 9.0]), [false; 5]);
}

#[test]
fn intervals_are_those_of_scipy() {
    // scipy.stats.bootstrap((x,), numpy.median, method="BCa", n_resamples=200000, random_state=1)
    let many: Vec<f64> = (0..40)
        .map(|i| f64::from((i * i * 7 + 3 * i) % 97) / 9.0)
        .collect();
    let cases = [
        (vec![1.0, 2.0, 3.0, 4.0, 5.0], 1.0, 5.0),
        (vec![10.1, 10.4, 9.8, 10.0, 12.5, 10.2, 10.3], 10.0, 10.4),
        (
            vec![5.0, 7.0, 1.0, 3.0, 9.0, 2.0, 8.0, 4.0, 6.0, 30.0],
            3.0,
            8.0,
        ),
        (many, 5.166_666_666_666_666, 7.555_555_555_555_555),
    ];
    for (samples, low, high) in cases {
        let n = samples.len();
        let (ours_low, ours_high) = Figure::seeded(&samples, 7).unwrap().interval().unwrap();
        // Ends lie on samples or between two: a resample more or less may move one by a step.
        let step = if n > 9 { 0.51 } else { 1e-12 };
        assert!((ours_low - low).abs() < step, "{n}: {ours_low} for {low}");
        assert!(
            (ours_high - high).abs() < step,
            "{n}: {ours_high} for {high}"
        );
    }
}

#[test]
fn an_interval_is_its_seeds() {
    let samples: Vec<f64> = (0..30).map(|i| f64::from(i * i % 31)).collect();
    let of = |seed| Figure::seeded(&samples, seed);
    assert_eq!(of(3), of(3));
    assert_ne!(of(3), of(4));
}

/// 95% intervals of a skewed distribution whose median is known, over 1,000 seeded draws.
#[test]
fn intervals_cover_the_median_as_often_as_they_say() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let mut random = StdRng::seed_from_u64(11);
    let covered = (0..1000).filter(|seed| {
        let samples: Vec<f64> = (0..25).map(|_| -random.random::<f64>().ln()).collect();
        let (low, high) = Figure::seeded(&samples, *seed).unwrap().interval().unwrap();
        (low..=high).contains(&std::f64::consts::LN_2)
    });
    let covered = covered.count();
    assert!((915..=985).contains(&covered), "{covered}");
}

/// Two arms drawn from one skewed distribution, over 1,000 seeded runs.
#[test]
fn equal_arms_are_called_different_no_more_often_than_stated() {
    use rand::{Rng, SeedableRng, rngs::StdRng};
    let mut random = StdRng::seed_from_u64(5);
    for n in [5, 7, 20] {
        let mut arm = || -> Vec<(u32, f64)> {
            let times = (0..n).map(|repeat| (repeat, 100.0 - random.random::<f64>().ln()));
            times.collect()
        };
        let called = (0..1000).filter(|seed| {
            let (before, after) = (arm(), arm());
            Change::paired(&before, &after, *seed).unwrap().significant
        });
        let called = called.count();
        assert!(called <= 50, "{called} of 1000 at {n} repeats");
    }
}

/// p of `scipy.stats.mannwhitneyu(x, y, method=...)`.
#[test]
fn p_is_that_of_scipy() {
    let numbers = |from: u32, to: u32| (from..=to).map(f64::from).collect::<Vec<f64>>();
    let scattered = |n: u32, a: u32, b: u32, m: u32, plus: f64| -> Vec<f64> {
        (0..n)
            .map(|i| f64::from((i * a + b) % m) / 10.0 + plus)
            .collect()
    };
    let exact = [
        (numbers(1, 5), numbers(6, 10), 0.007_936_507_936_507_936),
        (numbers(1, 4), numbers(5, 8), 0.028_571_428_571_428_57),
        (numbers(1, 3), numbers(4, 6), 0.1),
        (
            vec![1.0, 4.0, 5.0, 8.0, 9.0],
            vec![2.0, 3.0, 6.0, 7.0, 10.0, 11.0],
            0.662_337_662_337_662_3,
        ),
        // R's example of wilcox.test, one-sided p 0.1272 there.
        (
            DOCUMENTED.0.to_vec(),
            DOCUMENTED.1.to_vec(),
            0.254_412_254_412_254_4,
        ),
        (
            scattered(12, 37, 0, 101, 0.0),
            scattered(15, 53, 11, 103, 1.55),
            0.152_293_104_064_193_07,
        ),
    ];
    let with_ties = [
        (
            vec![1.0, 2.0, 2.0, 3.0, 5.0],
            vec![2.0, 4.0, 4.0, 5.0, 6.0],
            0.166_607_394_028_328_26,
        ),
        (
            vec![1.0, 1.0, 1.0, 2.0],
            vec![1.0, 1.0, 2.0, 2.0, 2.0, 3.0],
            0.238_592_829_316_434_25,
        ),
        (
            scattered(40, 37, 0, 101, 0.0),
            scattered(40, 53, 11, 103, 1.5),
            0.067_484_054_578_353_13,
        ),
    ];
    for (x, y, p) in exact.into_iter().chain(with_ties) {
        let shift = Shift::between(&x, &y).unwrap();
        assert!((shift.p - p).abs() < 1e-12, "{} for {p}", shift.p);
    }
    assert_eq!(Shift::between(&[1.0; 9], &[1.0; 9]).unwrap().p, 1.0);
    assert_eq!(Shift::between(&[], &[1.0]), None);
}

const DOCUMENTED: ([f64; 10], [f64; 5]) = (
    [0.80, 0.83, 1.89, 1.04, 1.45, 1.38, 1.91, 1.64, 0.73, 1.46],
    [1.15, 0.88, 0.90, 0.74, 1.21],
);

#[test]
fn the_interval_of_a_shift_is_that_of_all_differences_counted() {
    // Ranks 9 and 42 of the 50 differences, by the distribution of U over all C(15, 5) orders.
    let shift = Shift::between(&DOCUMENTED.0, &DOCUMENTED.1).unwrap();
    let ends = (shift.ci_low.unwrap(), shift.ci_high.unwrap());
    assert!((shift.shift + 0.305).abs() < 1e-12, "{shift:?}");
    assert!(
        (ends.0 + 0.76).abs() < 1e-12 && (ends.1 - 0.15).abs() < 1e-12,
        "{shift:?}"
    );
    let apart = Shift::between(&[1.0, 2.0, 3.0, 4.0, 5.0], &[6.0, 7.0, 8.0, 9.0, 10.5]).unwrap();
    assert_eq!(
        (apart.shift, apart.ci_low, apart.ci_high),
        (5.0, Some(2.0), Some(8.0))
    );
    // Three against three can never be significant at 5%, so they have no interval.
    let few = Shift::between(&[1.0, 2.0, 3.0], &[7.0, 8.0, 9.0]).unwrap();
    assert_eq!((few.ci_low, few.ci_high), (None, None));
}

#[test]
fn pairs_see_through_drift() {
    // The machine warms up by 10% over the run; the second arm takes 2 more each time.
    let before: Vec<(u32, f64)> = (0..10).map(|i| (i, 100.0 + f64::from(i))).collect();
    let after: Vec<(u32, f64)> = before.iter().map(|(i, x)| (*i, x + 2.0)).collect();
    let change = Change::paired(&before, &after, 1).unwrap();
    let difference = change.difference.unwrap();
    assert_eq!(
        (difference.median, difference.interval()),
        (2.0, Some((2.0, 2.0)))
    );
    assert_eq!(change.absolute().value, 2.0);
    let pct = change.pct.unwrap();
    assert!((pct.value - 2.0 / 1.045).abs() < 0.02, "{pct:?}");
    // The unpaired test does not, and both are asked for.
    assert!(change.shift.p > ALPHA && !change.significant);
}

#[test]
fn what_failed_in_one_arm_has_no_pair() {
    let before = [(0, 1.0), (1, 2.0), (2, 3.0)];
    let after = [(0, 2.0), (2, 4.0)];
    let change = Change::paired(&before, &after, 1).unwrap();
    assert_eq!(change.difference.unwrap().n, 2);
    assert_eq!(Change::paired(&before, &[(7, 1.0)], 1), None);
    assert_eq!(
        Change::paired(&[(0, 0.0)], &[(0, 1.0)], 1).unwrap().pct,
        None
    );
}

#[test]
fn five_against_five_apart_are_significant_and_mixed_ones_are_not() {
    let before = [10.0, 10.4, 10.1, 10.9, 10.2];
    let apart = Change::unpaired(&before, &[12.0, 12.8, 12.6, 12.1, 12.3]).unwrap();
    assert!(apart.significant);
    assert!((apart.pct.unwrap().value - 100.0 * apart.shift.shift / 10.2).abs() < 1e-12);
    let mixed = Change::unpaired(&before, &[11.0, 10.8, 11.6, 11.1, 10.3]).unwrap();
    assert!(!mixed.significant && mixed.shift.ci_low.unwrap() < 0.0);
}

/// Times as they come: some equal, some far out.
fn samples(sizes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f64>> {
    vec(prop_oneof![(1u32..40).prop_map(f64::from), 0.1..1e4], sizes)
}

/// Times on a grid, so that moving them does not round.
fn whole(sizes: std::ops::Range<usize>) -> impl Strategy<Value = Vec<f64>> {
    vec((1u32..2000).prop_map(f64::from), sizes)
}

/// The median of all differences, written out.
fn shift_by_hand(before: &[f64], after: &[f64]) -> f64 {
    let pairs = before.iter().flat_map(|b| after.iter().map(move |a| a - b));
    percentile(&sorted(&pairs.collect::<Vec<_>>()), 0.5).unwrap()
}

proptest! {
    #[test]
    fn an_interval_contains_its_median_and_no_more_than_the_samples(x in samples(5..60), seed: u64) {
        let figure = Figure::seeded(&x, seed).unwrap();
        let (low, high) = figure.interval().unwrap();
        prop_assert!(low <= figure.median && figure.median <= high);
        prop_assert!(figure.min <= low && high <= figure.max);
    }

    #[test]
    fn a_figure_moves_with_its_samples(x in whole(5..40), by in 1u32..500) {
        let by = f64::from(by);
        let moved: Vec<f64> = x.iter().map(|x| x + by).collect();
        let (one, other) = (Figure::of(&x).unwrap(), Figure::of(&moved).unwrap());
        prop_assert!((one.median + by - other.median).abs() < 1e-9);
        let ((low, high), (low_m, high_m)) = (one.interval().unwrap(), other.interval().unwrap());
        prop_assert!((low + by - low_m).abs() < 1e-6 && (high + by - high_m).abs() < 1e-6);
        prop_assert_eq!(one.outliers, other.outliers);
    }

    #[test]
    fn p_is_a_probability_and_the_same_both_ways(x in samples(1..40), y in samples(1..40)) {
        let (there, back) = (Shift::between(&x, &y).unwrap(), Shift::between(&y, &x).unwrap());
        prop_assert!((0.0..=1.0).contains(&there.p), "{}", there.p);
        prop_assert!((there.p - back.p).abs() < 1e-12);
        prop_assert!((there.shift + back.shift).abs() <= 1e-9 * there.shift.abs());
        prop_assert_eq!(there.ci_low.map(|x| -x), back.ci_high);
    }

    #[test]
    fn p_knows_only_the_order(x in whole(2..20), y in whole(2..20)) {
        let stretched = |x: &[f64]| x.iter().map(|x| x.powi(3)).collect::<Vec<_>>();
        let (plain, other) = (
            Shift::between(&x, &y).unwrap(),
            Shift::between(&stretched(&x), &stretched(&y)).unwrap(),
        );
        prop_assert_eq!(plain.p, other.p);
    }

    #[test]
    fn the_shift_is_the_median_difference_and_moves_along(x in whole(1..25), y in whole(1..25), by in 0u32..500) {
        let by = f64::from(by);
        let moved: Vec<f64> = y.iter().map(|y| y + by).collect();
        let (shift, further) = (Shift::between(&x, &y).unwrap(), Shift::between(&x, &moved).unwrap());
        prop_assert_eq!(shift.shift, shift_by_hand(&x, &y));
        prop_assert_eq!(shift.shift + by, further.shift);
        if let (Some(low), Some(high)) = (shift.ci_low, shift.ci_high) {
            prop_assert!(low <= shift.shift && shift.shift <= high);
        }
    }

    #[test]
    fn an_interval_leaves_out_zero_just_where_the_test_is_significant(x in samples(3..40), y in samples(3..40)) {
        let shift = Shift::between(&x, &y).unwrap();
        let leaves_out_zero = shift.ci_low.is_some_and(|low| low > 0.0)
            || shift.ci_high.is_some_and(|high| high < 0.0);
        let has_ties_across = x.iter().any(|x| y.contains(x));
        prop_assert!(has_ties_across || leaves_out_zero == (shift.p <= ALPHA), "{:?}", shift);
    }

    #[test]
    fn a_change_of_an_arm_to_itself_is_none(x in samples(5..30)) {
        let arm: Vec<(u32, f64)> = (0..).zip(x.iter().copied()).collect();
        let change = Change::paired(&arm, &arm, 1).unwrap();
        prop_assert_eq!(change.absolute().value, 0.0);
        prop_assert!(!change.significant);
        prop_assert!(!Change::unpaired(&x, &x).unwrap().significant);
    }
}
