//! Where values stand on an axis, and which of them are written at it.

/// An axis is logarithmic where its values span more than this.
const LOG_FROM: f64 = 8.0;
/// As above, for axes that could start at zero, which says more.
const LOG_FROM_ZERO: f64 = 30.0;

/// Ticks of a file that makes no sense may be equal, and nothing tells those apart.
const MOST_DECIMALS: f64 = 9.0;

/// Pixels of values.
#[derive(Clone, Copy)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    is_log: bool,
    pixels: (i32, i32),
}

impl Scale {
    /// From one value to another.
    pub(super) fn linear(from: f64, to: f64, pixels: (i32, i32)) -> Self {
        Self {
            from,
            to,
            is_log: false,
            pixels,
        }
    }

    /// Values with some room on both sides.
    pub(super) fn around(min: f64, max: f64, pixels: (i32, i32)) -> Self {
        let is_log = min > 0.0 && max / min > LOG_FROM;
        let (from, to) = match (is_log, max > min) {
            (true, _) => (min / 1.15, max * 1.15),
            (false, true) => (min - 0.06 * (max - min), max + 0.06 * (max - min)),
            (false, false) => (min - 1.0, max + 1.0),
        };
        Self {
            from,
            to,
            is_log,
            pixels,
        }
    }

    /// From zero, or logarithmic where the values may be and span decades.
    pub(super) fn up_to(min: f64, max: f64, may_be_log: bool, pixels: (i32, i32)) -> Self {
        let is_log = may_be_log && min > 0.0 && max / min > LOG_FROM_ZERO;
        Self {
            from: if is_log { min / 1.5 } else { 0.0 },
            to: if is_log { max * 1.8 } else { max * 1.15 },
            is_log,
            pixels,
        }
    }

    /// The pixel of a value; what lies outside stands at the edge.
    pub(super) fn at(&self, value: f64) -> i32 {
        let measure = |v: f64| if self.is_log { v.ln() } else { v };
        let (from, to) = (measure(self.from), measure(self.to));
        let share = ((measure(value) - from) / (to - from)).clamp(0.0, 1.0);
        let (start, end) = self.pixels;
        start + (share * f64::from(end - start)).round() as i32
    }

    /// Whether a value lies on the axis.
    pub(super) fn holds(&self, value: f64) -> bool {
        (self.from..=self.to).contains(&value)
    }

    /// So many values over the whole axis, evenly in pixels.
    pub(super) fn samples(&self, n: u32) -> impl Iterator<Item = f64> {
        let (from, to, is_log) = (self.from, self.to, self.is_log);
        (0..=n).map(move |i| {
            let share = f64::from(i) / f64::from(n.max(1));
            match is_log {
                true => from * (to / from).powf(share),
                false => from + (to - from) * share,
            }
        })
    }

    /// Round values on the axis, few of them.
    pub(super) fn ticks(&self) -> Vec<f64> {
        if !self.is_log {
            return linear_ticks(self.from, self.to);
        }
        let decades = self.from.log10().floor() as i32..=self.to.log10().ceil() as i32;
        let all = decades.flat_map(|d| [1.0, 2.0, 5.0].map(|m| m * 10f64.powi(d)));
        let inside: Vec<f64> = all.filter(|t| self.holds(*t)).collect();
        match inside.len() {
            0..=9 => inside,
            _ => inside.into_iter().step_by(3).collect(),
        }
    }
}

/// Ticks as text, with as many decimals as tell them apart.
pub(super) fn texts(ticks: &[f64]) -> Vec<String> {
    let step = ticks.windows(2).map(|pair| pair[1] - pair[0]);
    let least = step.min_by(f64::total_cmp).unwrap_or(1.0);
    // A step of 0.2 that was added up may be a little less.
    let decimals = (-(least * 1.001).log10().floor()).clamp(0.0, MOST_DECIMALS) as usize;
    ticks
        .iter()
        .map(|tick| format!("{tick:.decimals$}"))
        .collect()
}

/// Round values from 0 to at most `max`, about six of them.
pub(super) fn ticks(max: f64) -> Vec<f64> {
    linear_ticks(0.0, max)
}

fn linear_ticks(from: f64, to: f64) -> Vec<f64> {
    let span = to - from;
    if !(span > 0.0 && span.is_finite()) {
        return vec![from];
    }
    let magnitude = 10f64.powf((span / 5.0).log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0]
        .map(|m| m * magnitude)
        .into_iter()
        .find(|step| span / step <= 6.0)
        .unwrap_or(10.0 * magnitude);
    let first = (from / step).ceil() as i64;
    (first..)
        .map(|i| i as f64 * step)
        .take_while(|t| *t <= to)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_that_nothing_tells_apart_are_written_all_the_same() {
        let texts_of_equal = texts(&[1e19, 1e19]);
        assert_eq!(texts_of_equal[0], texts_of_equal[1]);
        assert_eq!(texts(&[0.2, 0.4]), ["0.2", "0.4"]);
        assert_eq!(texts(&[]), Vec::<String>::new());
    }

    #[test]
    fn ticks_go_below_zero() {
        let ticks = Scale::linear(-12.0, 11.0, (0, 100)).ticks();
        assert_eq!(ticks, [-10.0, -5.0, 0.0, 5.0, 10.0]);
        assert_eq!(texts(&ticks)[..3], ["-10", "-5", "0"]);
    }
}
