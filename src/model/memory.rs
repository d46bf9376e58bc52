//! Whether a model fits into memory, before anything is loaded.

use super::ModelError;
use super::checkpoint::Checkpoint;
use super::tensor_name::{LayerTensor, TensorName};
use super::weights::WeightsFormat;

/// Cosine and sine of an angle, in f32.
const ROPE_ENTRY_BYTES: u64 = 8;

/// What a model takes once it is loaded, in bytes. Caches and working memory come on top: they grow
/// with prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Need {
    /// Weights in matrices.
    pub weights: u64,
    /// Of all matrices.
    pub matrix_bytes: u64,
    /// What stands beside the largest matrices that are made at once, until they are.
    pub transient_bytes: u64,
    /// Table of rotary positions, which grows to this with prompts as long as the context.
    pub rope_bytes: u64,
}

impl Need {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.matrix_bytes + self.transient_bytes + self.rope_bytes
    }
}

/// What a checkpoint takes in this format; `None` means what suits it.
pub fn need(checkpoint: &Checkpoint, weights: Option<WeightsFormat>) -> Result<Need, ModelError> {
    let shape = checkpoint.shape()?;
    let formats = checkpoint.matrix_formats();
    let format = weights.unwrap_or_else(|| WeightsFormat::default_for(&formats));
    let angles = shape.context_tokens as u64 * shape.head_dim as u64 / 2;
    let mut need = Need {
        weights: 0,
        matrix_bytes: 0,
        transient_bytes: 0,
        rope_bytes: angles * ROPE_ENTRY_BYTES,
    };
    // Matrices that share their input are made together, and stand one behind the other here.
    let mut together = None;
    let mut transient_bytes = 0;
    for name in TensorName::all(&shape) {
        let dims = name.dims(&shape);
        let (Some(from), [rows, width]) = (checkpoint.format_of(name), &dims[..]) else {
            continue;
        };
        if together != Some(input_of(name)) {
            together = Some(input_of(name));
            transient_bytes = 0;
        }
        let elements = rows * width;
        transient_bytes += format.transient_bytes(from, elements);
        need.transient_bytes = need.transient_bytes.max(transient_bytes);
        need.weights += elements as u64;
        need.matrix_bytes += format.loaded_bytes(from, elements);
    }
    Ok(need)
}

/// The first of those that a matrix is made with.
fn input_of(name: TensorName) -> TensorName {
    use LayerTensor::{Gate, Key, Query, Up, Value};
    match name {
        TensorName::Layer(layer, Key | Value) => TensorName::Layer(layer, Query),
        TensorName::Layer(layer, Up) => TensorName::Layer(layer, Gate),
        other => other,
    }
}

/// Refuses what does not fit as often as it is to be loaded on this machine, with the arithmetic and
/// what would.
pub fn check(
    checkpoint: &Checkpoint,
    weights: Option<WeightsFormat>,
    nodes_here: u64,
    available_bytes: Option<u64>,
) -> Result<(), ModelError> {
    let need = need(checkpoint, weights)?;
    let share = available_bytes.map(|available| available / nodes_here);
    let Some(available) = share.filter(|share| need.bytes() > *share) else {
        return Ok(());
    };
    let gigabytes = |bytes: u64| format!("{:.2} GB", bytes as f64 / 1e9);
    let smaller = self::need(checkpoint, Some(WeightsFormat::Q8))?;
    let advice = match smaller.bytes() <= available {
        true => format!(
            "use --weights q8, which needs {}",
            gigabytes(smaller.bytes())
        ),
        false => "use a smaller model".to_owned(),
    };
    let advice = match checkpoint {
        Checkpoint::Random(_) => format!("{advice}, or fewer --layers"),
        Checkpoint::Gguf(_) | Checkpoint::Folder(_) => advice,
    };
    Err(checkpoint.error(format!(
        "it needs {}: {} for {:.2} billion weights, {} while the largest of them are made and {} \
         for rotary positions; {} are available here{}: {advice}",
        gigabytes(need.bytes()),
        gigabytes(need.matrix_bytes),
        need.weights as f64 / 1e9,
        gigabytes(need.transient_bytes),
        gigabytes(need.rope_bytes),
        gigabytes(available),
        match nodes_here {
            1 => "",
            _ => " for each of both nodes",
        },
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::published;
    use crate::model::random::RandomModel;

    fn random(name: &str, layers: usize) -> Checkpoint {
        let mut shape = published::find(name).unwrap().stand_in().unwrap();
        shape.windows.truncate(layers);
        shape.n_layers = layers;
        Checkpoint::Random(Box::new(RandomModel {
            shape,
            of_layers: layers,
            seed: 0,
        }))
    }

    #[test]
    fn what_does_not_fit_is_refused_with_what_would() {
        let whole = random("Llama-3.1-8B", 32);
        let wide = Some(WeightsFormat::F32);
        let need = need(&whole, wide).unwrap();
        assert_eq!(need.matrix_bytes, 4 * need.weights);
        assert_eq!(need.weights, 8_029_995_008, "norms are no matrices");
        // The embedding: 34 bytes of 32 weights as they were made, and 4 of each in f32.
        assert_eq!(need.transient_bytes, 128_256 * 4096 / 32 * (34 + 4 * 32));
        assert!(check(&whole, wide, 1, None).is_ok());
        assert!(check(&whole, wide, 1, Some(need.bytes())).is_ok());
        assert!(check(&whole, wide, 2, Some(need.bytes())).is_err());
        let refused = |available| {
            let error = check(&whole, wide, 1, Some(available)).unwrap_err();
            error.to_string()
        };
        let error = refused(need.bytes() - 1);
        assert!(
            error.contains("32.12 GB for 8.03 billion weights"),
            "{error}"
        );
        assert!(error.contains("use --weights q8"), "{error}");
        assert!(refused(1 << 30).contains("use a smaller model, or fewer --layers"));
    }
}
