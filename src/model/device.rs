//! Devices that compute beside the processor: which one is asked for, and what is known of it.
//!
//! The decoder for them is `decoder`; `memory` holds K and V there. Both run on any device of
//! candle's, its CPU included, which is how they are tested.

mod attention;
mod decoder;
mod memory;

pub use decoder::DeviceDecoder;

use std::fmt;
use std::str::FromStr;

use candle_core::Device;
use serde::{Deserialize, Serialize};

use super::ModelError;

/// What computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The processor, on kernels of our own.
    #[default]
    Cpu,
    /// A GPU of NVIDIA's, counted from 0.
    Cuda(usize),
    /// The GPU of a machine of Apple's.
    Metal,
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
            Self::Metal => f.write_str("metal"),
        }
    }
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let unknown = || format!("{text} is no device, these are: cpu, cuda:N (N from 0), metal");
        match text {
            "cpu" => Ok(Self::Cpu),
            "metal" => Ok(Self::Metal),
            "cuda" => Ok(Self::Cuda(0)),
            _ => {
                let ordinal = text.strip_prefix("cuda:").ok_or_else(unknown)?;
                ordinal.parse().map(Self::Cuda).map_err(|_| unknown())
            }
        }
    }
}

impl DeviceChoice {
    /// Refuses a device that this build cannot use.
    pub fn check(self) -> Result<(), ModelError> {
        let (is_built_in, feature) = match self {
            Self::Cpu => return Ok(()),
            Self::Cuda(_) => (cfg!(feature = "cuda"), "cuda"),
            Self::Metal => (cfg!(feature = "metal"), "metal"),
        };
        match is_built_in {
            true => Ok(()),
            false => Err(self.refused(format!(
                "this build cannot use it: build with `cargo build --release --features {feature}`"
            ))),
        }
    }

    /// Opens it; `None` is the processor.
    pub fn open(self) -> Result<Option<Device>, ModelError> {
        self.check()?;
        let opened = match self {
            Self::Cpu => return Ok(None),
            // A stream of its own is the same from every thread; the default one is not.
            Self::Cuda(ordinal) => Device::new_cuda_with_stream(ordinal),
            Self::Metal => Device::new_metal(0),
        };
        opened.map(Some).map_err(|e| self.refused(e.to_string()))
    }

    fn refused(self, why: String) -> ModelError {
        ModelError::Device {
            device: self.to_string(),
            why,
        }
    }
}

/// A device of a run, for its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct DeviceFacts {
    /// `cuda` or `metal`.
    pub kind: String,
    /// As its driver names it; null where it does not tell.
    pub name: Option<String>,
    /// What it computes with, such as `9.0`; null where there is no such number.
    pub compute_capability: Option<String>,
    /// Its own memory; null where it does not tell.
    pub memory_bytes: Option<u64>,
}

impl DeviceFacts {
    /// Asks an open device.
    pub fn of(device: &Device) -> Self {
        let kind = match device {
            Device::Cpu => "candle's cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        };
        let facts = Self {
            kind: kind.into(),
            name: None,
            compute_capability: None,
            memory_bytes: None,
        };
        #[cfg(feature = "cuda")]
        if let Device::Cuda(cuda) = device {
            let stream = cuda.cuda_stream();
            let context = stream.context();
            let capability = context.compute_capability().ok();
            return Self {
                name: context.name().ok(),
                compute_capability: capability.map(|(major, minor)| format!("{major}.{minor}")),
                memory_bytes: context.total_mem().ok().map(|bytes| bytes as u64),
                ..facts
            };
        }
        facts
    }
}

impl fmt::Display for DeviceFacts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.kind)?;
        if let Some(name) = &self.name {
            write!(f, ", {name}")?;
        }
        if let Some(capability) = &self.compute_capability {
            write!(f, ", compute capability {capability}")?;
        }
        match self.memory_bytes {
            Some(bytes) => write!(f, ", {:.1} GiB", bytes as f64 / f64::from(1 << 30)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_reads_as_it_is_written() {
        for text in ["cpu", "cuda:0", "cuda:7", "metal"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:-1", "cuda:x"] {
            let why = text.parse::<DeviceChoice>().unwrap_err();
            assert!(why.contains("cuda:N"), "{why}");
        }
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn a_build_without_the_feature_says_how_to_get_it() {
        let why = DeviceChoice::Cuda(1).open().unwrap_err().to_string();
        assert!(why.starts_with("device cuda:1"), "{why}");
        assert!(why.contains("--features cuda"), "{why}");
        assert!(DeviceChoice::Cpu.open().unwrap().is_none());
    }
}
