//! Which block lies where, and how much of each segment still counts: the state that readers and the writer share.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::index::{Index, Location};
use crate::object::Key;
use crate::record::record_bytes;
use crate::segment::Segment;

/// One segment's part.
#[derive(Debug)]
pub(crate) struct SegmentState {
    pub segment: Arc<Segment>,
    pub file_bytes: u64,
    /// Bytes of records that the index points at.
    pub live_bytes: u64,
    /// Nothing is appended any more.
    pub sealed: bool,
}

/// The index and the segments that it points into.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub index: Index,
    pub segments: BTreeMap<u32, SegmentState>,
}

/// Tables that threads share.
#[derive(Debug, Default)]
pub(crate) struct Shared(Mutex<Tables>);

impl Shared {
    /// Held for a look-up or an update, never over I/O.
    pub fn lock(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Tables {
    /// Points a key at a record.
    pub fn put(&mut self, key: Key, location: Location) {
        if let Some(before) = self.index.insert(key, location) {
            self.count_dead(before);
        }
        if let Some(state) = self.segments.get_mut(&location.segment) {
            state.live_bytes += record_bytes(location.value_bytes as usize);
        }
    }

    /// Points a key at a copy of its record, unless it left or moved meanwhile.
    pub fn relocate(&mut self, key: Key, from: Location, to: Location) {
        if self.index.get(key) == Some(from) {
            self.put(key, to);
        }
    }

    /// Forgets a key.
    pub fn remove(&mut self, key: Key) -> bool {
        let before = self.index.remove(key);
        before.inspect(|before| self.count_dead(*before)).is_some()
    }

    /// Forgets a key whose record turned out damaged, unless it moved meanwhile.
    pub fn remove_at(&mut self, key: Key, location: Location) {
        if self.index.get(key) == Some(location) {
            self.remove(key);
        }
    }

    /// Where a key's record is.
    pub fn find(&self, key: Key) -> Option<(Location, Arc<Segment>)> {
        let location = self.index.get(key)?;
        let state = self.segments.get(&location.segment)?;
        Some((location, Arc::clone(&state.segment)))
    }

    pub fn file_bytes(&self) -> u64 {
        self.segments.values().map(|state| state.file_bytes).sum()
    }

    pub fn live_bytes(&self) -> u64 {
        self.segments.values().map(|state| state.live_bytes).sum()
    }

    /// The sealed segment with the smallest live share, if that is below `live_share_max`.
    pub fn emptiest(&self, live_share_max: f64) -> Option<u32> {
        let share = |state: &SegmentState| state.live_bytes as f64 / state.file_bytes.max(1) as f64;
        let sealed = self.segments.iter().filter(|(_, state)| state.sealed);
        let (id, state) = sealed.min_by(|a, b| share(a.1).total_cmp(&share(b.1)))?;
        (share(state) < live_share_max).then_some(*id)
    }

    fn count_dead(&mut self, location: Location) {
        if let Some(state) = self.segments.get_mut(&location.segment) {
            state.live_bytes -= record_bytes(location.value_bytes as usize);
        }
    }
}
