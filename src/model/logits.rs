//! The scores of one step over the vocabulary, and what is kept of them to compare answers.

/// Candidates kept of every step, for comparison between unlike machines.
pub const TOP: usize = 8;

/// Scores `(vocabulary)` of the next token.
#[derive(Clone, Debug, PartialEq)]
pub struct Logits(pub Vec<f32>);

impl Logits {
    /// The greedy choice: the highest score, the lowest id among equals.
    pub fn argmax(&self) -> u32 {
        let mut best = 0;
        for (id, &score) in self.0.iter().enumerate() {
            if score > self.0[best] {
                best = id;
            }
        }
        best as u32
    }

    /// The [`TOP`] best ids with their scores, best first.
    pub fn top(&self) -> Vec<(u32, f32)> {
        let mut best: Vec<(u32, f32)> = Vec::with_capacity(TOP + 1);
        for (id, &score) in self.0.iter().enumerate() {
            if best.len() == TOP && score <= best[TOP - 1].1 {
                continue;
            }
            let place = best.partition_point(|(_, other)| *other >= score);
            best.insert(place, (id as u32, score));
            best.truncate(TOP);
        }
        best
    }

    /// KL(self || other) of the next token's probabilities, in nats; never below 0, and not a
    /// number where a score is not.
    pub fn divergence_nats(&self, other: &Self) -> f64 {
        let (p_sum, q_sum) = (self.log_sum(), other.log_sum());
        let terms = self.0.iter().zip(&other.0).map(|(p, q)| {
            let (p, q) = (f64::from(*p) - p_sum, f64::from(*q) - q_sum);
            match p == f64::NEG_INFINITY {
                true => 0.0,
                false => p.exp() * (p - q),
            }
        });
        let nats: f64 = terms.sum();
        // Rounding may leave it a little below; NaN has to stay.
        if nats < 0.0 { 0.0 } else { nats }
    }

    /// Logarithm of the sum of `e^score`.
    fn log_sum(&self) -> f64 {
        let scores = || self.0.iter().map(|score| f64::from(*score));
        let largest = scores().fold(f64::NEG_INFINITY, f64::max);
        largest
            + scores()
                .map(|score| (score - largest).exp())
                .sum::<f64>()
                .ln()
    }

    /// Digest of the raw bits: 16 hex digits of blake3. Equal digests mean equal bits.
    pub fn digest(&self) -> String {
        use zerocopy::IntoBytes;
        let hash = blake3::hash(self.0.as_bytes());
        hash.to_hex()[..16].to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_come_first_and_ties_go_to_the_lowest_id() {
        let mut scores = vec![0.0; 100];
        (scores[7], scores[50], scores[90]) = (2.0, 3.0, 3.0);
        let logits = Logits(scores);
        assert_eq!(logits.argmax(), 50);
        let top = logits.top();
        assert_eq!(top[..4], [(50, 3.0), (90, 3.0), (7, 2.0), (0, 0.0)]);
        assert_eq!(top.len(), TOP);
    }

    #[test]
    fn the_digest_shows_one_bit() {
        let a = Logits(vec![1.0, 2.0]);
        let b = Logits(vec![1.0, f32::from_bits(2.0f32.to_bits() ^ 1)]);
        assert_ne!(a.digest(), b.digest());
        assert_eq!(a.digest(), a.clone().digest());
    }

    #[test]
    fn the_divergence_is_that_of_the_definition() {
        let logits = |p: [f32; 3]| Logits(p.map(|p| p.ln() + 7.0).to_vec());
        let (p, q) = (logits([0.5, 0.25, 0.25]), logits([0.25, 0.25, 0.5]));
        let want = 0.5 * 2f64.ln() - 0.25 * 2f64.ln();
        assert!((p.divergence_nats(&q) - want).abs() < 1e-6);
        // A shift of all scores changes no probability.
        let shifted = Logits(p.0.iter().map(|x| x - 90.0).collect());
        assert!(p.divergence_nats(&shifted) < 1e-9);
        assert_eq!(p.divergence_nats(&p), 0.0);
        let impossible = logits([0.5, 0.5, 0.0]);
        assert!((impossible.divergence_nats(&p)).is_finite());
        assert_eq!(p.divergence_nats(&impossible), f64::INFINITY);
        let sick = Logits(vec![1.0, f32::NAN, 0.0]);
        assert!(p.divergence_nats(&sick).is_nan() && sick.divergence_nats(&p).is_nan());
    }
}
