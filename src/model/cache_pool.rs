//! Caches that are kept after use, so that a request gets memory that was touched before.
//!
//! First-touching 64 MiB costs more than moving it over loopback; with a pool that happens once.

use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard};

use super::kv_cache::{KvCache, KvLayout};

/// Capacities are rounded up to a multiple of this, so that requests of similar length share.
const CAPACITY_STEP_TOKENS: usize = 256;

/// No room for another cache.
#[derive(Debug, thiserror::Error)]
#[error(
    "a cache of {wanted_bytes} bytes does not fit: {in_use_bytes} of {limit_bytes} bytes are in \
     use: {}send a shorter prompt, or raise --max-cache of serve-decode",
    // One that is over the limit by itself never fits.
    if wanted_bytes <= limit_bytes { "try again later, " } else { "" }
)]
pub struct PoolFull {
    /// Size of the refused cache.
    pub wanted_bytes: usize,
    /// Size of the caches that are out.
    pub in_use_bytes: usize,
    /// Size of all caches together at most.
    pub limit_bytes: usize,
}

/// A bounded pool of caches.
#[derive(Debug)]
pub struct CachePool {
    limit_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    free: Vec<KvCache>,
    in_use_bytes: usize,
}

impl State {
    fn free_bytes(&self) -> usize {
        self.free.iter().map(KvCache::memory_bytes).sum()
    }
}

impl CachePool {
    /// A pool whose caches, in use and free, take at most `limit_bytes`.
    pub fn new(limit_bytes: usize) -> Arc<Self> {
        Arc::new(Self {
            limit_bytes,
            state: Mutex::default(),
        })
    }

    /// An empty cache for at least `tokens` tokens.
    pub fn take(self: &Arc<Self>, layout: KvLayout, tokens: usize) -> Result<Pooled, PoolFull> {
        self.take_for(layout, tokens, true)
    }

    /// As [`CachePool::take`], for a cache that no later request can use: its memory goes back to
    /// the system instead of the pool.
    pub fn take_once(
        self: &Arc<Self>,
        layout: KvLayout,
        tokens: usize,
    ) -> Result<Pooled, PoolFull> {
        self.take_for(layout, tokens, false)
    }

    fn take_for(
        self: &Arc<Self>,
        layout: KvLayout,
        tokens: usize,
        is_kept: bool,
    ) -> Result<Pooled, PoolFull> {
        let capacity = tokens.max(1).next_multiple_of(CAPACITY_STEP_TOKENS);
        let bytes = layout.bytes_per_token().saturating_mul(capacity);
        let mut state = self.state();
        let full = |state: &State| PoolFull {
            wanted_bytes: bytes,
            in_use_bytes: state.in_use_bytes,
            limit_bytes: self.limit_bytes,
        };
        if state.in_use_bytes.saturating_add(bytes) > self.limit_bytes {
            return Err(full(&state));
        }
        let fits = |c: &KvCache| c.layout() == layout && c.capacity_tokens() == capacity;
        let cache = match state.free.iter().position(fits) {
            Some(i) => state.free.swap_remove(i),
            None => {
                while state.in_use_bytes + state.free_bytes() + bytes > self.limit_bytes {
                    state.free.pop();
                }
                KvCache::new(layout, capacity)
            }
        };
        state.in_use_bytes += cache.memory_bytes();
        Ok(Pooled {
            cache: Some(cache),
            pool: Arc::clone(self),
            is_kept,
        })
    }

    /// Bytes of the caches that are out.
    pub fn in_use_bytes(&self) -> usize {
        self.state().in_use_bytes
    }

    /// Bytes of all caches, in use and free.
    pub fn held_bytes(&self) -> usize {
        let state = self.state();
        state.in_use_bytes + state.free_bytes()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing that runs under the lock can leave the lists half-changed.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// A cache that goes back to its pool when dropped.
#[derive(Debug)]
pub struct Pooled {
    /// Taken only in `drop`.
    cache: Option<KvCache>,
    pool: Arc<CachePool>,
    is_kept: bool,
}

impl Deref for Pooled {
    type Target = KvCache;
    fn deref(&self) -> &KvCache {
        self.cache.as_ref().expect("present until dropped")
    }
}

impl DerefMut for Pooled {
    fn deref_mut(&mut self) -> &mut KvCache {
        self.cache.as_mut().expect("present until dropped")
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        if let Some(mut cache) = self.cache.take() {
            cache.reset();
            let mut state = self.pool.state();
            state.in_use_bytes -= cache.memory_bytes();
            if self.is_kept {
                state.free.push(cache);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::kv_cache::KvDtype;

    const LAYOUT: KvLayout = KvLayout {
        n_layers: 1,
        n_kv_heads: 1,
        head_dim: 1,
        dtype: KvDtype::F16,
    };

    #[test]
    fn memory_is_reused_and_comes_back_empty() {
        let pool = CachePool::new(1 << 20);
        let first = pool.take(LAYOUT, 10).unwrap();
        first.claim(0, 0, 10).unwrap().land();
        let address = first.read(0, 0..1).unwrap().as_ptr();
        drop(first);
        let second = pool.take(LAYOUT, 200).unwrap();
        assert_eq!(second.len_tokens(), 0);
        second.claim(0, 0, 1).unwrap().land();
        assert_eq!(second.read(0, 0..1).unwrap().as_ptr(), address);
    }

    #[test]
    fn a_cache_for_once_is_not_kept() {
        let pool = CachePool::new(1 << 20);
        drop(pool.take_once(LAYOUT, 10).unwrap());
        assert!(pool.state().free.is_empty());
        assert_eq!(pool.state().in_use_bytes, 0);
    }

    #[test]
    fn the_limit_holds_and_free_caches_make_room() {
        let pool = CachePool::new(256 * 4 + 512 * 4);
        let small = pool.take(LAYOUT, 256).unwrap();
        let large = pool.take(LAYOUT, 512).unwrap();
        let refused = pool.take(LAYOUT, 1).unwrap_err();
        assert_eq!((refused.wanted_bytes, refused.in_use_bytes), (1024, 3072));
        drop((small, large));
        let whole = pool.take(LAYOUT, 768).unwrap();
        assert_eq!(whole.memory_bytes(), 3072);
    }
}
