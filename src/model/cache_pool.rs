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
pub enum PoolFull {
    /// In the pool.
    #[error(
        "a cache of {wanted_bytes} bytes does not fit: {in_use_bytes} of {limit_bytes} bytes are \
         in use: {}send a shorter prompt, or raise --max-cache of serve-decode",
        // One that is over the limit by itself never fits.
        if wanted_bytes <= limit_bytes { "try again later, " } else { "" }
    )]
    Limit {
        /// Size of the refused cache.
        wanted_bytes: usize,
        /// Size of the caches that are out.
        in_use_bytes: usize,
        /// Size of all caches together at most.
        limit_bytes: usize,
    },
    /// In the machine.
    #[error(
        "the system does not give the {wanted_bytes} bytes of a cache: try again later, send a \
         shorter prompt, or free memory on this machine"
    )]
    System {
        /// Size of the refused cache.
        wanted_bytes: usize,
    },
}

impl PoolFull {
    /// Whether the cache would fit if others were done.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Limit {
                wanted_bytes,
                limit_bytes,
                ..
            } => wanted_bytes <= limit_bytes,
            Self::System { .. } => true,
        }
    }
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
        let step_tokens = match is_kept {
            true => CAPACITY_STEP_TOKENS,
            false => 1,
        };
        let capacity = tokens.max(1).next_multiple_of(step_tokens);
        let bytes = layout.bytes_per_token().saturating_mul(capacity).max(1);
        // Fresh memory is touched outside the lock, which other threads wait for.
        let cache = match self.reserve(layout, capacity, bytes)? {
            Some(cache) => cache,
            None => KvCache::allocate(layout, capacity).ok_or_else(|| {
                self.state().in_use_bytes -= bytes;
                PoolFull::System {
                    wanted_bytes: bytes,
                }
            })?,
        };
        Ok(Pooled {
            cache: Some(cache),
            pool: Arc::clone(self),
            is_kept,
        })
    }

    /// Counts a cache of `bytes` as in use, and gives one that was used before, if there is one of
    /// that shape; if not, makes room for it.
    fn reserve(
        &self,
        layout: KvLayout,
        capacity: usize,
        bytes: usize,
    ) -> Result<Option<KvCache>, PoolFull> {
        // Freed behind the lock.
        let mut evicted = Vec::new();
        let mut state = self.state();
        if state.in_use_bytes.saturating_add(bytes) > self.limit_bytes {
            return Err(PoolFull::Limit {
                wanted_bytes: bytes,
                in_use_bytes: state.in_use_bytes,
                limit_bytes: self.limit_bytes,
            });
        }
        state.in_use_bytes += bytes;
        let fits = |c: &KvCache| c.layout() == layout && c.capacity_tokens() == capacity;
        if let Some(i) = state.free.iter().position(fits) {
            return Ok(Some(state.free.swap_remove(i)));
        }
        while state.in_use_bytes.saturating_add(state.free_bytes()) > self.limit_bytes {
            evicted.extend(state.free.pop());
        }
        Ok(None)
    }

    /// Bytes that all caches together take at most.
    pub fn limit_bytes(&self) -> usize {
        self.limit_bytes
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
    use std::time::Instant;

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
        let wanted = "a cache of 1024 bytes does not fit: 3072 of 3072 bytes are in use";
        assert!(refused.to_string().starts_with(wanted), "{refused}");
        assert!(refused.may_pass());
        assert!(!pool.take(LAYOUT, 769).unwrap_err().may_pass());
        drop((small, large));
        let whole = pool.take(LAYOUT, 768).unwrap();
        assert_eq!(whole.memory_bytes(), 3072);
    }

    #[test]
    fn memory_that_the_system_does_not_give_is_refused_and_not_counted() {
        let pool = CachePool::new(usize::MAX);
        // More than an allocation may have, and more than any machine addresses.
        for tokens in [1 << 61, 1 << 60] {
            let refused = pool.take(LAYOUT, tokens).unwrap_err();
            assert!(matches!(refused, PoolFull::System { .. }), "{refused}");
            assert_eq!(pool.in_use_bytes(), 0);
        }
        assert!(pool.take(LAYOUT, 1).is_ok());
    }

    #[test]
    fn nobody_waits_while_fresh_memory_is_touched() {
        // A quarter of a gigabyte: as many page faults as take tens of milliseconds.
        let pool = CachePool::new(1 << 28);
        let (started, mut answered) = (Instant::now(), None);
        let taking = std::thread::spawn({
            let pool = Arc::clone(&pool);
            move || pool.take(LAYOUT, 1 << 26).unwrap()
        });
        while !taking.is_finished() {
            if pool.in_use_bytes() > 0 {
                answered.get_or_insert_with(|| started.elapsed());
            }
        }
        let took = started.elapsed();
        assert_eq!(taking.join().unwrap().memory_bytes(), 1 << 28);
        let answered = answered.unwrap();
        assert!(answered < took * 9 / 10, "{answered:?} of {took:?}");
    }
}
