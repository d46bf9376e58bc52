//! K and V of a sequence in a device's memory, and the copies between there and a [`KvCache`].
//!
//! Each layer is one tensor in the cache's own order and element type, so what is copied has the
//! cache's bytes. Copies wait for the device and tell when they took place: they are measured.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use candle_core::{DType, Device, Tensor, WithDType};
use half::{bf16, f16};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use crate::model::kv_cache::{KvCache, KvDtype, KvLayout};

/// K and V of a sequence, `(capacity_tokens, n_kv_heads, 2 x head_dim)` a layer.
#[derive(Debug)]
pub(super) struct DeviceMemory {
    layers: Vec<Tensor>,
}

impl DeviceMemory {
    /// That of a cache; made where it has none yet.
    pub(super) fn of(cache: &KvCache, device: &Device) -> anyhow::Result<Arc<Self>> {
        let mut on_device = cache.on_device();
        if let Some(memory) = &on_device.memory {
            let memory = Arc::clone(memory).downcast::<Self>();
            return (memory.ok()).context("the cache has memory of another kind of device");
        }
        let layout = cache.layout();
        let shape = row_shape(layout, cache.capacity_tokens());
        let layers = (0..layout.n_layers)
            .map(|_| Tensor::zeros(shape, dtype(layout.dtype), device))
            .collect::<candle_core::Result<_>>()?;
        let memory = Arc::new(Self { layers });
        on_device.memory = Some(Arc::clone(&memory) as Arc<dyn Any + Send + Sync>);
        Ok(memory)
    }

    /// A layer of it.
    pub(super) fn layer(&self, layer: usize) -> &Tensor {
        &self.layers[layer]
    }

    /// Puts rows `(n, n_kv_heads, 2 x head_dim)` of a layer in place.
    pub(super) fn write(
        &self,
        layer: usize,
        position: usize,
        rows: &Tensor,
    ) -> candle_core::Result<()> {
        self.layers[layer].slice_set(rows, 0, position)
    }
}

/// Copies to the device what has landed in the cache and is not there yet; `None` where nothing
/// is missing.
pub(super) fn upload(cache: &KvCache, device: &Device) -> anyhow::Result<Option<Range<Instant>>> {
    let there = cache.on_device().len_tokens;
    let landed = cache.landed_tokens();
    if landed <= there {
        return Ok(None);
    }
    device.synchronize()?;
    let started = Instant::now();
    let (memory, layout) = (DeviceMemory::of(cache, device)?, cache.layout());
    let shape = row_shape(layout, landed - there);
    for layer in 0..layout.n_layers {
        let bytes = cache.read(layer, there..landed)?;
        let rows = match layout.dtype {
            KvDtype::F32 => Tensor::from_slice(elements::<f32>(bytes)?, shape, device),
            KvDtype::F16 => Tensor::from_slice(elements::<f16>(bytes)?, shape, device),
            KvDtype::Bf16 => Tensor::from_slice(elements::<bf16>(bytes)?, shape, device),
        };
        memory.write(layer, there, &rows?)?;
    }
    device.synchronize()?;
    let ended = Instant::now();
    cache.on_device().len_tokens = landed;
    Ok(Some(started..ended))
}

/// Copies rows of a layer, as [`DeviceMemory::write`] takes them, into the cache, where they land.
pub(super) fn download(
    rows: &Tensor,
    cache: &KvCache,
    layer: usize,
    position: usize,
) -> anyhow::Result<Range<Instant>> {
    // What computes K and V is no part of their copy.
    rows.device().synchronize()?;
    let started = Instant::now();
    let mut claim = cache.claim(layer, position, rows.dim(0)?)?;
    match cache.layout().dtype {
        KvDtype::F32 => copy_out::<f32>(rows, &mut claim),
        KvDtype::F16 => copy_out::<f16>(rows, &mut claim),
        KvDtype::Bf16 => copy_out::<bf16>(rows, &mut claim),
    }?;
    claim.land();
    Ok(started..Instant::now())
}

fn copy_out<T: WithDType + IntoBytes + Immutable>(
    rows: &Tensor,
    out: &mut [u8],
) -> candle_core::Result<()> {
    let values = rows.flatten_all()?.to_vec1::<T>()?;
    out.copy_from_slice(values.as_bytes());
    Ok(())
}

fn elements<T: FromBytes + Immutable>(bytes: &[u8]) -> anyhow::Result<&[T]> {
    let elements = <[T]>::ref_from_bytes(bytes).ok();
    elements.context("rows of a cache are not whole elements")
}

fn row_shape(layout: KvLayout, tokens: usize) -> (usize, usize, usize) {
    (tokens, layout.n_kv_heads, 2 * layout.head_dim)
}

/// candle's name for the element type of a cache.
pub(super) fn dtype(dtype: KvDtype) -> DType {
    match dtype {
        KvDtype::F32 => DType::F32,
        KvDtype::F16 => DType::F16,
        KvDtype::Bf16 => DType::BF16,
    }
}
