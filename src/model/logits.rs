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
}
