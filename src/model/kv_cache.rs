//! The KV cache of one sequence: aligned memory, and who may touch which part of it when.
//!
//! A layer is `(capacity_tokens, n_kv_heads, 2 x head_dim)`, K and V of a head side by side, so
//! any token range of a layer is one contiguous run of bytes: one piece, one write, one read into
//! its final place. Ranges are claimed, filled, landed and then only read, which lets the network
//! fill or send some ranges while compute works on others.
//!
//! It knows neither the network nor candle. `unsafe` is needed because the borrow checker cannot
//! see that ranges are disjoint; the bookkeeping below is what makes them so.
#![expect(
    unsafe_code,
    reason = "disjoint token ranges of one buffer are written and read at once"
)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::any::Any;
use std::ops::{Deref, DerefMut, Range};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};

/// Page size that cache memory is aligned to and touched by.
const PAGE_BYTES: usize = 4096;

/// Element type of a KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum KvDtype {
    /// 4 bytes an element.
    F32,
    /// 2 bytes an element, 10 bits of mantissa.
    F16,
    /// 2 bytes an element, 7 bits of mantissa and the range of f32.
    Bf16,
}

impl KvDtype {
    /// Size of one element in bytes.
    pub const fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

impl std::fmt::Display for KvDtype {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        })
    }
}

/// Shape and element type of a cache, without its length.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KvLayout {
    /// Number of decoder layers.
    pub n_layers: usize,
    /// K/V heads of a layer.
    pub n_kv_heads: usize,
    /// Width of one head in elements.
    pub head_dim: usize,
    /// Element type.
    pub dtype: KvDtype,
}

impl KvLayout {
    /// Elements of one token in one layer, K and V together.
    pub const fn row_elements(&self) -> usize {
        self.n_kv_heads * 2 * self.head_dim
    }

    /// Bytes of one token in one layer, K and V together.
    pub const fn row_bytes(&self) -> usize {
        self.row_elements() * self.dtype.bytes()
    }

    /// Bytes of one token over all layers.
    pub const fn bytes_per_token(&self) -> usize {
        self.n_layers * self.row_bytes()
    }
}

/// Why a range of a cache cannot be claimed or read.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum KvError {
    /// The layer does not exist.
    #[error("layer {layer} is out of range: the cache has {n_layers} layers")]
    Layer { layer: usize, n_layers: usize },
    /// The token range is empty or ends behind the capacity.
    #[error("tokens {start}..{end} do not fit a cache of {capacity_tokens} tokens")]
    Range {
        start: usize,
        end: usize,
        capacity_tokens: usize,
    },
    /// Part of the range was claimed before: a piece was sent twice or pieces overlap.
    #[error("tokens {start}..{end} of layer {layer} overlap a range that was already written")]
    Overlap {
        layer: usize,
        start: usize,
        end: usize,
    },
    /// Part of the range has not landed yet.
    #[error("tokens {start}..{end} of layer {layer} have not all landed")]
    Missing {
        layer: usize,
        start: usize,
        end: usize,
    },
}

/// Disjoint sorted token ranges, neighbours merged.
#[derive(Debug, Default)]
struct Ranges(Vec<Range<usize>>);

impl Ranges {
    fn overlaps(&self, r: &Range<usize>) -> bool {
        let i = self.0.partition_point(|x| x.end <= r.start);
        self.0.get(i).is_some_and(|x| x.start < r.end)
    }

    fn covers(&self, r: &Range<usize>) -> bool {
        let i = self.0.partition_point(|x| x.end <= r.start);
        (self.0.get(i)).is_some_and(|x| x.start <= r.start && r.end <= x.end)
    }

    fn insert(&mut self, r: Range<usize>) {
        let i = self.0.partition_point(|x| x.end < r.start);
        let mut merged = r;
        let mut j = i;
        while j < self.0.len() && self.0[j].start <= merged.end {
            merged.start = merged.start.min(self.0[j].start);
            merged.end = merged.end.max(self.0[j].end);
            j += 1;
        }
        self.0.splice(i..j, [merged]);
    }

    fn remove(&mut self, r: &Range<usize>) {
        let mut kept = Vec::with_capacity(self.0.len() + 1);
        for x in self.0.drain(..) {
            if x.start < r.start {
                kept.push(x.start..x.end.min(r.start));
            }
            if x.end > r.end {
                kept.push(x.start.max(r.end)..x.end);
            }
        }
        kept.retain(|x| x.start < x.end);
        self.0 = kept;
    }

    fn prefix(&self) -> usize {
        self.0.first().filter(|x| x.start == 0).map_or(0, |x| x.end)
    }
}

/// Which ranges of one layer are being written or have been, and which may be read.
#[derive(Debug, Default)]
struct Coverage {
    /// Written or being written: a superset of `landed`.
    claimed: Ranges,
    /// Complete, never written again until the cache is reset.
    landed: Ranges,
}

/// What a device holds of the same sequence. The cache knows how much, not what it is.
#[derive(Debug, Default)]
pub struct OnDevice {
    /// Its memory there, kept when the cache is used again.
    pub memory: Option<Arc<dyn Any + Send + Sync>>,
    /// Tokens, counted from the first, that are in it.
    pub len_tokens: usize,
}

/// K and V of one sequence in every layer.
#[derive(Debug)]
pub struct KvCache {
    layout: KvLayout,
    capacity_tokens: usize,
    memory: NonNull<u8>,
    memory_layout: Layout,
    layers: Vec<Mutex<Coverage>>,
    on_device: Mutex<OnDevice>,
}

// SAFETY: the memory is owned by the cache and freed once, in `drop`. Shared access hands out
// `&mut [u8]` only for ranges that `Coverage` shows were never handed out before, and `&[u8]`
// only for ranges that landed, which nobody writes until `reset`, and that takes `&mut self`.
unsafe impl Send for KvCache {}
// SAFETY: as above.
unsafe impl Sync for KvCache {}

impl KvCache {
    /// As [`KvCache::allocate`], for a size of the caller's own that the machine must have.
    ///
    /// # Panics
    ///
    /// Where it does not have it.
    pub fn new(layout: KvLayout, capacity_tokens: usize) -> Self {
        Self::allocate(layout, capacity_tokens).expect("a small cache fits the machine's memory")
    }

    /// Allocates a cache of `capacity_tokens` and touches every page of it, so that no page is
    /// faulted in during a timed transfer; none where the system does not give the memory.
    pub fn allocate(layout: KvLayout, capacity_tokens: usize) -> Option<Self> {
        let bytes = layout
            .bytes_per_token()
            .checked_mul(capacity_tokens)?
            .max(1);
        let memory_layout = Layout::from_size_align(bytes, PAGE_BYTES).ok()?;
        // SAFETY: the size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(memory_layout) })?;
        for offset in (0..bytes).step_by(PAGE_BYTES) {
            // SAFETY: `offset` is inside the allocation; volatile so that the write of a zero to
            // zeroed memory is not optimised away.
            unsafe { memory.add(offset).write_volatile(0) };
        }
        Some(Self {
            layout,
            capacity_tokens,
            memory,
            memory_layout,
            layers: (0..layout.n_layers).map(|_| Mutex::default()).collect(),
            on_device: Mutex::default(),
        })
    }

    /// Shape and element type.
    pub fn layout(&self) -> KvLayout {
        self.layout
    }

    /// The most tokens that fit.
    pub fn capacity_tokens(&self) -> usize {
        self.capacity_tokens
    }

    /// Bytes of memory held, used or not.
    pub fn memory_bytes(&self) -> usize {
        self.memory_layout.size()
    }

    /// Forgets all content; the memory stays allocated and touched.
    pub fn reset(&mut self) {
        for layer in &mut self.layers {
            *layer.get_mut().unwrap_or_else(|e| e.into_inner()) = Coverage::default();
        }
        self.on_device().len_tokens = 0;
    }

    /// What a device holds of this sequence.
    pub fn on_device(&self) -> MutexGuard<'_, OnDevice> {
        // A length is written in one go.
        self.on_device.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Tokens of the sequence, counted from the first, here or on a device.
    pub fn len_tokens(&self) -> usize {
        self.landed_tokens().max(self.on_device().len_tokens)
    }

    /// Tokens, counted from the first, that have landed in every layer.
    pub fn landed_tokens(&self) -> usize {
        let prefixes = (0..self.layers.len()).map(|l| self.coverage(l).landed.prefix());
        prefixes.min().unwrap_or(0)
    }

    /// Gives write access to tokens `start..start + count` of a layer.
    ///
    /// The range must never have been claimed before. Dropping the claim without
    /// [`Claim::land`] frees it again.
    pub fn claim(&self, layer: usize, start: usize, count: usize) -> Result<Claim<'_>, KvError> {
        let range = self.checked(layer, start, count)?;
        let mut coverage = self.coverage(layer);
        if coverage.claimed.overlaps(&range) {
            return Err(KvError::Overlap {
                layer,
                start,
                end: range.end,
            });
        }
        coverage.claimed.insert(range.clone());
        drop(coverage);
        let (offset, len) = self.byte_range(layer, &range);
        // SAFETY: inside the allocation, and `claimed` now keeps everybody else away from it.
        let bytes =
            unsafe { std::slice::from_raw_parts_mut(self.memory.add(offset).as_ptr(), len) };
        Ok(Claim {
            cache: self,
            layer,
            range,
            bytes,
            landed: false,
        })
    }

    /// The bytes of landed tokens of a layer.
    pub fn read(&self, layer: usize, tokens: Range<usize>) -> Result<&[u8], KvError> {
        let range = self.checked(layer, tokens.start, tokens.len())?;
        if !self.coverage(layer).landed.covers(&range) {
            return Err(KvError::Missing {
                layer,
                start: range.start,
                end: range.end,
            });
        }
        let (offset, len) = self.byte_range(layer, &range);
        // SAFETY: inside the allocation; landed ranges are not written while `self` is borrowed.
        Ok(unsafe { std::slice::from_raw_parts(self.memory.add(offset).as_ptr(), len) })
    }

    /// A digest of the first `tokens` tokens of all layers (blake3 over layers in order).
    ///
    /// Two caches hold the same bytes if and only if their digests are equal.
    pub fn digest(&self, tokens: usize) -> Result<blake3::Hash, KvError> {
        let mut hasher = blake3::Hasher::new();
        for layer in 0..self.layers.len() {
            hasher.update(self.read(layer, 0..tokens)?);
        }
        Ok(hasher.finalize())
    }

    fn coverage(&self, layer: usize) -> MutexGuard<'_, Coverage> {
        // The lock is only ever held for a few list operations that cannot panic half-way.
        self.layers[layer].lock().unwrap_or_else(|e| e.into_inner())
    }

    fn checked(&self, layer: usize, start: usize, count: usize) -> Result<Range<usize>, KvError> {
        if layer >= self.layers.len() {
            return Err(KvError::Layer {
                layer,
                n_layers: self.layers.len(),
            });
        }
        let end = start.saturating_add(count);
        if count == 0 || end > self.capacity_tokens {
            return Err(KvError::Range {
                start,
                end,
                capacity_tokens: self.capacity_tokens,
            });
        }
        Ok(start..end)
    }

    /// Offset and length in bytes of a range that `checked` has passed.
    fn byte_range(&self, layer: usize, range: &Range<usize>) -> (usize, usize) {
        let row = self.layout.row_bytes();
        let offset = (layer * self.capacity_tokens + range.start) * row;
        (offset, range.len() * row)
    }
}

impl Drop for KvCache {
    fn drop(&mut self) {
        // SAFETY: allocated in `allocate` with this very layout.
        unsafe { dealloc(self.memory.as_ptr(), self.memory_layout) }
    }
}

/// Write access to one token range of one layer: `(count, n_kv_heads, 2 x head_dim)` as bytes.
#[derive(Debug)]
pub struct Claim<'a> {
    cache: &'a KvCache,
    layer: usize,
    range: Range<usize>,
    bytes: &'a mut [u8],
    landed: bool,
}

impl Claim<'_> {
    /// Declares the range complete; from now on it can be read.
    pub fn land(mut self) {
        self.landed = true;
        let mut coverage = self.cache.coverage(self.layer);
        coverage.landed.insert(self.range.clone());
    }
}

impl Deref for Claim<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes
    }
}

impl DerefMut for Claim<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.landed {
            let mut coverage = self.cache.coverage(self.layer);
            coverage.claimed.remove(&self.range);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAYOUT: KvLayout = KvLayout {
        n_layers: 2,
        n_kv_heads: 3,
        head_dim: 4,
        dtype: KvDtype::F16,
    };

    #[test]
    fn a_range_is_readable_once_landed_and_never_writable_again() {
        let cache = KvCache::new(LAYOUT, 8);
        let mut claim = cache.claim(1, 2, 3).unwrap();
        assert_eq!(claim.len(), 3 * LAYOUT.row_bytes());
        claim.fill(7);
        assert!(matches!(cache.read(1, 2..5), Err(KvError::Missing { .. })));
        claim.land();
        assert!(cache.read(1, 2..5).unwrap().iter().all(|&b| b == 7));
        assert!(matches!(cache.claim(1, 4, 1), Err(KvError::Overlap { .. })));
        assert!(cache.claim(0, 4, 1).is_ok());
    }

    #[test]
    fn a_dropped_claim_can_be_claimed_again() {
        let cache = KvCache::new(LAYOUT, 8);
        drop(cache.claim(0, 0, 4).unwrap());
        cache.claim(0, 0, 4).unwrap().land();
        assert_eq!(cache.read(0, 0..4).unwrap().len(), 4 * LAYOUT.row_bytes());
    }

    #[test]
    fn out_of_range_is_refused() {
        let cache = KvCache::new(LAYOUT, 8);
        assert!(matches!(cache.claim(2, 0, 1), Err(KvError::Layer { .. })));
        assert!(matches!(cache.claim(0, 8, 1), Err(KvError::Range { .. })));
        assert!(matches!(cache.claim(0, 0, 0), Err(KvError::Range { .. })));
        assert!(matches!(
            cache.claim(0, usize::MAX, 2),
            Err(KvError::Range { .. })
        ));
    }

    #[test]
    fn length_is_the_prefix_that_landed_in_all_layers() {
        let mut cache = KvCache::new(LAYOUT, 8);
        cache.claim(0, 0, 5).unwrap().land();
        cache.claim(1, 2, 3).unwrap().land();
        assert_eq!(cache.len_tokens(), 0);
        cache.claim(1, 0, 2).unwrap().land();
        assert_eq!(cache.len_tokens(), 5);
        cache.reset();
        assert_eq!(cache.len_tokens(), 0);
    }

    proptest! {
        #[test]
        fn coverage_agrees_with_a_bitmap(
            ops in prop::collection::vec((0usize..32, 1usize..12, any::<bool>()), 1..60)
        ) {
            let cache = KvCache::new(LAYOUT, 32);
            let mut landed = [false; 32];
            for (start, count, land) in ops {
                let free = start + count <= 32 && !landed[start..start + count].iter().any(|&b| b);
                match cache.claim(0, start, count) {
                    Ok(claim) => {
                        prop_assert!(free);
                        if land {
                            claim.land();
                            landed[start..start + count].fill(true);
                        }
                    }
                    Err(_) => prop_assert!(!free),
                }
                let prefix = landed.iter().take_while(|&&b| b).count();
                prop_assert_eq!(cache.coverage(0).landed.prefix(), prefix);
            }
        }
    }
}
