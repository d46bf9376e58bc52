//! What the elements of a cache are while they are on the wire.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::KvDtype;

/// Element type of pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "lowercase")]
pub enum WireDtype {
    /// IEEE single.
    F32,
    /// IEEE half.
    F16,
    /// Brain float.
    Bf16,
    /// Signed bytes with a scale for K and one for V of every head and token.
    Int8,
}

impl WireDtype {
    /// Whether what lands may differ from what prefill computed.
    pub fn is_lossy(self) -> bool {
        self == WireDtype::Int8
    }
}

impl From<KvDtype> for WireDtype {
    fn from(dtype: KvDtype) -> WireDtype {
        match dtype {
            KvDtype::F32 => WireDtype::F32,
            KvDtype::F16 => WireDtype::F16,
            KvDtype::Bf16 => WireDtype::Bf16,
        }
    }
}

impl fmt::Display for WireDtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WireDtype::F32 => "f32",
            WireDtype::F16 => "f16",
            WireDtype::Bf16 => "bf16",
            WireDtype::Int8 => "int8",
        })
    }
}
