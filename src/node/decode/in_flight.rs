//! The requests that a decode node serves at once, and how many others each of them met.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak};

/// All requests that have a place now.
#[derive(Default)]
pub struct InFlight(Mutex<Vec<Weak<AtomicU32>>>);

/// A request's place, given back when dropped.
pub struct Place(Arc<AtomicU32>);

impl InFlight {
    /// A place for one more request, or how many there are where that is the limit.
    pub fn enter(&self, limit: usize) -> Result<Place, usize> {
        let mut all = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let mut live: Vec<_> = all.iter().filter_map(Weak::upgrade).collect();
        let others = live.len();
        if others >= limit {
            return Err(others);
        }
        let others = u32::try_from(others).unwrap_or(u32::MAX);
        for met in &live {
            met.fetch_max(others, Ordering::Relaxed);
        }
        let place = Arc::new(AtomicU32::new(others));
        live.push(Arc::clone(&place));
        *all = live.iter().map(Arc::downgrade).collect();
        Ok(Place(place))
    }
}

impl Place {
    /// The most other requests that were there at any moment since this one came.
    pub fn most_others(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_knows_the_most_that_it_met() {
        let all = InFlight::default();
        let first = all.enter(9).unwrap_or_else(|_| panic!());
        assert_eq!(first.most_others(), 0);
        let second = all.enter(9).unwrap_or_else(|_| panic!());
        let third = all.enter(9).unwrap_or_else(|_| panic!());
        assert_eq!((first.most_others(), second.most_others()), (2, 2));
        drop((second, third));
        let fourth = all.enter(9).unwrap_or_else(|_| panic!());
        // It met the first alone; the first keeps its most.
        assert_eq!((first.most_others(), fourth.most_others()), (2, 1));
    }

    #[test]
    fn there_are_no_more_places_than_the_limit() {
        let all = InFlight::default();
        let first = all.enter(1).unwrap_or_else(|_| panic!());
        assert_eq!(all.enter(1).err(), Some(1));
        drop(first);
        assert!(all.enter(1).is_ok());
        assert_eq!(all.enter(0).err(), Some(0));
    }
}
