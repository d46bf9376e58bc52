//! What a transfer takes on a link, as a model of three terms fitted to measured transfers.

use serde::{Deserialize, Serialize};

use super::Row;

/// t = alpha + pieces x overhead + bytes / beta, for one number of streams.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Fit {
    /// TCP connections.
    pub streams: u32,
    /// Fixed cost of a transfer.
    pub alpha_us: f64,
    /// Cost of a piece.
    pub overhead_us_per_piece: f64,
    /// Rate of an endless transfer; null where bytes cost nothing measurable.
    pub beta_gbps: Option<f64>,
    /// Largest relative error over the rows that were fitted.
    pub worst_residual_pct: f64,
    /// Largest relative error over every second size when only the others are fitted; null where
    /// there are too few sizes.
    pub held_out_error_pct: Option<f64>,
}

/// A transfer that a fit is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    /// KV bytes.
    pub bytes: u64,
    /// Pieces.
    pub pieces: u64,
    /// First piece offered to last piece acknowledged: a median of warm transfers.
    pub transfer_ms: f64,
}

impl From<&Row> for Point {
    fn from(row: &Row) -> Self {
        Self {
            bytes: row.bytes,
            pieces: row.pieces,
            transfer_ms: row.transfer_ms.median,
        }
    }
}

/// Where a run's fit came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FitOrigin {
    /// Measured by the run itself, over its own connections.
    Measured,
    /// Taken from what `link` wrote, by file name.
    File(String),
}

impl Fit {
    /// Fits the rows of one number of streams, as [`Fit::of`].
    pub fn of_rows(rows: &[Row], streams: u32) -> Option<Self> {
        let rows = rows.iter().filter(|row| row.streams == streams);
        Self::of(&rows.map(Point::from).collect::<Vec<_>>(), streams)
    }

    /// Time from the first piece offered to the last one acknowledged, in ns, over warm
    /// connections: the model at `bytes` in `pieces`.
    pub fn transfer_ns(&self, bytes: u64, pieces: u64) -> f64 {
        let bytes_ns = self.beta_gbps.map_or(0.0, |beta| bytes as f64 * 8.0 / beta);
        (self.alpha_us + pieces as f64 * self.overhead_us_per_piece) * 1e3 + bytes_ns
    }

    /// Fits points measured over `streams` connections; `None` with fewer than two.
    pub fn of(points: &[Point], streams: u32) -> Option<Self> {
        let rows: Vec<&Point> = points.iter().collect();
        let terms = solve(&rows)?;
        let mut sizes: Vec<u64> = rows.iter().map(|row| row.bytes).collect();
        sizes.sort_unstable();
        sizes.dedup();
        let fitted =
            |row: &&Point| sizes.iter().position(|b| *b == row.bytes).unwrap_or(0) % 2 == 0;
        let (known, held_out): (Vec<&Point>, Vec<&Point>) =
            rows.iter().partition(|row| fitted(row));
        // Of three sizes two are fitted and one lies between them.
        let score = (sizes.len() >= 3).then(|| solve(&known)).flatten();
        Some(Self {
            streams,
            alpha_us: terms[0] * 1e3,
            overhead_us_per_piece: terms[1] * 1e3,
            beta_gbps: (terms[2] > 0.0).then(|| 8.0 / terms[2] / 1e6),
            worst_residual_pct: worst_error_pct(&rows, terms),
            held_out_error_pct: score.map(|terms| worst_error_pct(&held_out, terms)),
        })
    }
}

fn factors(row: &Point) -> [f64; 3] {
    [1.0, row.pieces as f64, row.bytes as f64]
}

fn predict_ms(row: &Point, terms: [f64; 3]) -> f64 {
    factors(row).iter().zip(terms).map(|(x, t)| x * t).sum()
}

fn worst_error_pct(rows: &[&Point], terms: [f64; 3]) -> f64 {
    let error = |row: &&Point| (predict_ms(row, terms) / row.transfer_ms - 1.0).abs();
    100.0 * rows.iter().map(error).fold(0.0, f64::max)
}

/// Relative least squares without negative terms: milliseconds a transfer, a piece and a byte.
fn solve(rows: &[&Point]) -> Option<[f64; 3]> {
    if rows.len() < 2 {
        return None;
    }
    let mut used = vec![0, 1, 2];
    loop {
        let solution = normal_equations(rows, &used);
        // A term that comes out negative, or cannot be told from the others, is left out.
        let drop = match &solution {
            None => Some(used.iter().position(|term| *term == 1).unwrap_or(0)),
            Some(values) => values.iter().position(|value| *value < 0.0),
        };
        match (drop, solution) {
            (Some(at), _) if used.len() > 1 => {
                used.remove(at);
            }
            (_, Some(values)) => {
                let mut terms = [0.0; 3];
                for (term, value) in used.into_iter().zip(values) {
                    terms[term] = value.max(0.0);
                }
                return Some(terms);
            }
            (_, None) => return None,
        }
    }
}

/// Minimises the sum of squared relative errors over the given terms, by Gaussian elimination.
fn normal_equations(rows: &[&Point], used: &[usize]) -> Option<Vec<f64>> {
    let n = used.len();
    let mut matrix = vec![vec![0.0; n + 1]; n];
    // Columns are scaled to about one, so that the pivots can be compared.
    let scale = |term: usize| {
        rows.iter()
            .map(|row| factors(row)[term])
            .fold(0.0, f64::max)
    };
    let scales: Vec<f64> = used.iter().map(|term| scale(*term)).collect();
    for row in rows {
        let time = row.transfer_ms;
        let x: Vec<f64> = (used.iter().zip(&scales))
            .map(|(term, scale)| factors(row)[*term] / scale / time)
            .collect();
        for i in 0..n {
            for j in 0..n {
                matrix[i][j] += x[i] * x[j];
            }
            matrix[i][n] += x[i];
        }
    }
    let largest = (0..n).map(|i| matrix[i][i]).fold(0.0, f64::max);
    for column in 0..n {
        let pivot = (column..n)
            .max_by(|a, b| (matrix[*a][column].abs()).total_cmp(&matrix[*b][column].abs()))?;
        if matrix[pivot][column].abs() <= largest * 1e-12 {
            return None;
        }
        matrix.swap(column, pivot);
        let pivot_row = matrix[column].clone();
        for (at, row) in matrix.iter_mut().enumerate() {
            if at != column {
                let factor = row[column] / pivot_row[column];
                for (value, pivot) in row.iter_mut().zip(&pivot_row) {
                    *value -= factor * pivot;
                }
            }
        }
    }
    Some(
        (0..n)
            .map(|i| matrix[i][n] / matrix[i][i] / scales[i])
            .collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(bytes: u64, pieces: u64, transfer_ms: f64) -> Point {
        Point {
            bytes,
            pieces,
            transfer_ms,
        }
    }

    /// 50 us + 2 us a piece + bytes at 20 Gbps.
    fn exact(bytes: u64, pieces: u64) -> Point {
        row(
            bytes,
            pieces,
            0.05 + pieces as f64 * 0.002 + bytes as f64 * 8.0 / 20e6,
        )
    }

    #[test]
    fn an_exact_line_is_found_again() {
        let sizes = [1u64 << 16, 1 << 18, 1 << 20, 1 << 22, 1 << 24];
        let rows: Vec<Point> = (sizes.iter())
            .flat_map(|b| [exact(*b, 30), exact(*b, 30 + b / 65_536)])
            .collect();
        let fit = Fit::of(&rows, 1).unwrap();
        assert!((fit.alpha_us - 50.0).abs() < 0.01, "{fit:?}");
        assert!((fit.overhead_us_per_piece - 2.0).abs() < 0.001);
        assert!((fit.beta_gbps.unwrap() - 20.0).abs() < 0.001);
        assert!(fit.worst_residual_pct < 0.01);
        assert!(fit.held_out_error_pct.unwrap() < 0.01);
        let predicted_ns = fit.transfer_ns(1 << 20, 30);
        assert!((predicted_ns / 1e6 / exact(1 << 20, 30).transfer_ms - 1.0).abs() < 1e-6);
    }

    #[test]
    fn two_sizes_give_a_rate_and_no_score() {
        let fit = Fit::of(&[exact(1 << 16, 30), exact(1 << 18, 30)], 2).unwrap();
        assert_eq!((fit.streams, fit.held_out_error_pct), (2, None));
        assert!((fit.beta_gbps.unwrap() - 20.0).abs() < 0.001, "{fit:?}");
    }

    #[test]
    fn terms_that_cannot_be_told_apart_or_are_negative_are_left_out() {
        // Pieces in proportion to bytes: their cost is part of the bytes'.
        let rows: Vec<Point> = [1u64, 2, 4].map(|k| exact(k << 20, 30 * k)).to_vec();
        let fit = Fit::of(&rows, 1).unwrap();
        assert_eq!(fit.overhead_us_per_piece, 0.0);
        assert!(fit.worst_residual_pct < 1.0, "{fit:?}");
        let falling = [row(1, 1, 3.0), row(2, 1, 2.0), row(3, 1, 1.0)];
        let fit = Fit::of(&falling, 1).unwrap();
        assert!(fit.alpha_us >= 0.0 && fit.beta_gbps.is_none());
        assert!(fit.worst_residual_pct > 10.0);
        assert_eq!(Fit::of(&falling[..1], 1), None);
    }
}
