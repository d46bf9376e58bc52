//! `dummy:SHAPE`: a model of random weights, of a published shape or of a `config.json`.

use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::check::Digest;
use super::error::SourceError;
use super::{Location, ModelFiles, Origin};
use crate::model::folder;
use crate::model::published;
use crate::model::random::RandomModel;
use crate::model::shape::ModelShape;
use crate::text_file::{self, MAX_CONFIGURATION_BYTES};

/// In front of the shape.
pub(super) const PREFIX: &str = "dummy:";

/// Both nodes make the same weights.
const SEED: u64 = 0;

/// A shape that weights are made for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DummySpec {
    /// Name of a published shape, or path of a `config.json`.
    pub shape: String,
    /// Take so many of its layers; all where it is `None`.
    pub layers: Option<usize>,
}

/// Digest of the words that the weights follow from.
pub(super) fn digest(random: &RandomModel) -> Digest {
    Digest {
        bytes: 0,
        sha256: format!("{:x}", Sha256::digest(format!("{random:?}"))),
    }
}

impl DummySpec {
    /// The model; nothing is made yet.
    pub(super) fn resolve(&self) -> Result<ModelFiles, SourceError> {
        let refuse = |why: String| SourceError::Dummy {
            shape: self.shape.clone(),
            why,
        };
        let (name, mut shape) = self.find().map_err(refuse)?;
        let of_layers = shape.n_layers;
        if let Some(layers) = self.layers {
            if !(1..=of_layers).contains(&layers) {
                return Err(refuse(format!(
                    "--layers {layers}, wanted 1 to {of_layers}"
                )));
            }
            shape.n_layers = layers;
            shape.windows.truncate(layers);
        }
        let random = RandomModel {
            shape,
            of_layers,
            seed: SEED,
        };
        let Digest { bytes, sha256 } = digest(&random);
        Ok(ModelFiles {
            name: format!("{PREFIX}{name}"),
            location: Location::Random(Box::new(random)),
            bytes,
            sha256,
            origin: Origin::Seed,
        })
    }

    fn find(&self) -> Result<(String, ModelShape), String> {
        if let Some(published) = published::find(&self.shape) {
            return Ok((published.model.clone(), published.stand_in()?));
        }
        let path = Path::new(&self.shape);
        if !path.is_file() {
            let names = published::all().iter().map(|shape| &shape.model[..]);
            return Err(format!(
                "neither a config.json nor a published shape, these are: {}",
                names.collect::<Vec<_>>().join(", ")
            ));
        }
        let text = text_file::read(path, MAX_CONFIGURATION_BYTES).map_err(|e| e.to_string())?;
        Ok((self.shape.clone(), folder::shape_of_config(&text)?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn random(shape: &str, layers: Option<usize>) -> Result<(ModelFiles, RandomModel), String> {
        let shape = shape.to_owned();
        let files = (DummySpec { shape, layers }.resolve()).map_err(|e| e.to_string())?;
        match files.location.clone() {
            Location::Random(random) => Ok((files, *random)),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_part_of_a_shape_is_another_model_with_the_same_layers() {
        let (whole, all) = random("llama-3.1-70b", None).unwrap();
        let (part, two) = random("Llama-3.1-70B", Some(2)).unwrap();
        assert_eq!((all.shape.n_layers, two.shape.n_layers), (80, 2));
        assert_eq!((two.of_layers, two.shape.hidden), (80, 8192));
        assert_eq!(part.name, "dummy:Llama-3.1-70B");
        assert_ne!(whole.sha256, part.sha256);
        assert_eq!(
            part.sha256,
            random("llama-3.1-70b", Some(2)).unwrap().0.sha256
        );
    }

    #[test]
    fn what_is_no_shape_is_refused_with_those_that_are() {
        let error = random("llama-9", None).unwrap_err();
        assert!(error.contains("these are: SmolLM2-135M"), "{error}");
        let error = random("llama-3.1-70b", Some(81)).unwrap_err();
        assert!(error.contains("--layers 81, wanted 1 to 80"), "{error}");
    }

    #[test]
    fn a_config_gives_its_own_shape() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(
            file.path(),
            r#"{"architectures": ["Qwen2ForCausalLM"], "num_hidden_layers": 3, "hidden_size": 64,
                "intermediate_size": 128, "num_attention_heads": 4, "vocab_size": 300,
                "max_position_embeddings": 256}"#,
        )
        .unwrap();
        let (_, model) = random(file.path().to_str().unwrap(), None).unwrap();
        assert!(model.shape.architecture.has_qkv_bias);
        std::fs::write(file.path(), "{}").unwrap();
        let error = random(file.path().to_str().unwrap(), None).unwrap_err();
        assert!(error.contains("missing field"), "{error}");
    }
}
