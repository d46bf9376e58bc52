//! The normal distribution: its cumulative probability and the inverse of it.

/// Beyond this many standard deviations a double knows no probability but 0 or 1.
const FAR: f64 = 40.0;

/// Steps that halve the range from -[`FAR`] to [`FAR`] to the last bit of a double around 1.
const HALVINGS: u32 = 60;

/// Probability below `z`.
pub fn cdf(z: f64) -> f64 {
    0.5 * libm::erfc(-z / std::f64::consts::SQRT_2)
}

/// The `z` below which the probability is `p`, by bisection: it is called a few times a figure.
pub fn quantile(p: f64) -> f64 {
    let (mut low, mut high) = (-FAR, FAR);
    for _ in 0..HALVINGS {
        let middle = 0.5 * (low + high);
        if cdf(middle) < p {
            low = middle;
        } else {
            high = middle;
        }
    }
    0.5 * (low + high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probabilities_are_those_of_scipy() {
        // scipy.stats.norm.cdf and .ppf
        for (z, p) in [
            (-3.0, 0.001_349_898_031_630_094_6),
            (-1.0, 0.158_655_253_931_457_05),
            (0.0, 0.5),
            (1.959_963_984_540_054, 0.975),
        ] {
            assert!((cdf(z) - p).abs() < 1e-15, "{z}");
            assert!((quantile(p) - z).abs() < 1e-13, "{p}");
        }
    }
}
