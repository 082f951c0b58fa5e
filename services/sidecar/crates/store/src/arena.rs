//! Memory for values: equal extents, any of which serves any value.
//!
//! A value takes `ceil(bytes / extent)` extents that need not be neighbours, so memory never fragments: whenever so many extents are free,
//! the value fits. What is lost is the rest of the last extent, half of one on average. An extent is allocated once, when it is first
//! needed, and then changes hands until the process ends.

use std::sync::{Arc, Mutex, PoisonError};

use xxhash_rust::xxh3::Xxh3;

use crate::error::StoreError;

type Extent = Box<[u8]>;

/// A bounded number of extents.
#[derive(Debug, Clone)]
pub struct Arena(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    extent_bytes: usize,
    extent_count: usize,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Extents that were used before.
    recycled: Vec<Extent>,
    /// Extents allocated so far.
    allocated: usize,
}

/// Memory of one value, not shared yet.
#[derive(Debug)]
pub struct ValueBuffer(Value);

/// Bytes that do not change any more. Its extents return to the arena when it is dropped.
#[derive(Debug)]
pub struct Value {
    extents: Vec<Extent>,
    byte_count: usize,
    arena: Arena,
}

impl Arena {
    /// An arena of at most `capacity_bytes`, in extents of `extent_bytes`.
    pub fn new(capacity_bytes: u64, extent_bytes: usize) -> Self {
        let extent_bytes = extent_bytes.max(4096);
        Self(Arc::new(Shared {
            extent_bytes,
            extent_count: usize::try_from(capacity_bytes / extent_bytes as u64).unwrap_or(usize::MAX),
            free: Mutex::default(),
        }))
    }

    /// Bytes in all.
    pub fn capacity_bytes(&self) -> u64 {
        (self.0.extent_count * self.0.extent_bytes) as u64
    }

    /// Bytes in extents that nobody holds.
    pub fn free_bytes(&self) -> u64 {
        let free = self.lock();
        ((self.0.extent_count - free.allocated + free.recycled.len()) * self.0.extent_bytes) as u64
    }

    /// Bytes that a value of `byte_count` takes.
    pub fn occupied_bytes(&self, byte_count: usize) -> u64 {
        (byte_count.div_ceil(self.0.extent_bytes) * self.0.extent_bytes) as u64
    }

    /// Memory for a value; its content is undefined until it is written.
    ///
    /// # Errors
    /// [`StoreError::MemoryFull`].
    pub fn allocate(&self, byte_count: usize) -> Result<ValueBuffer, StoreError> {
        let wanted = byte_count.div_ceil(self.0.extent_bytes);
        let mut free = self.lock();
        let available = self.0.extent_count - free.allocated + free.recycled.len();
        if wanted > available {
            return Err(StoreError::MemoryFull {
                wanted: byte_count as u64,
                free: (available * self.0.extent_bytes) as u64,
                capacity: self.capacity_bytes(),
            });
        }
        let kept = free.recycled.len().saturating_sub(wanted);
        let mut extents = free.recycled.split_off(kept);
        free.allocated += wanted - extents.len();
        drop(free);
        // Outside the lock: fresh memory is zeroed by whoever needs it.
        extents.resize_with(wanted, || vec![0; self.0.extent_bytes].into_boxed_slice());
        Ok(ValueBuffer(Value {
            extents,
            byte_count,
            arena: self.clone(),
        }))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Free> {
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ValueBuffer {
    /// The memory to write to, in order: together as long as was asked for.
    pub fn chunks_mut(&mut self) -> impl Iterator<Item = &mut [u8]> {
        let mut left = self.0.byte_count;
        self.0.extents.iter_mut().map(move |extent| {
            let part = left.min(extent.len());
            left -= part;
            &mut extent[..part]
        })
    }

    /// Copies `bytes` to `offset`. Bytes past the end are a defect of the caller.
    pub fn write(&mut self, offset: usize, bytes: &[u8]) {
        assert!(
            offset
                .checked_add(bytes.len())
                .is_some_and(|end| end <= self.0.byte_count),
            "{} bytes at {offset} of a value of {}",
            bytes.len(),
            self.0.byte_count
        );
        let extent_bytes = self.0.arena.0.extent_bytes;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let extent = &mut self.0.extents[at / extent_bytes][at % extent_bytes..];
            let part = rest.len().min(extent.len());
            extent[..part].copy_from_slice(&rest[..part]);
            rest = &rest[part..];
            at += part;
        }
    }

    /// From now on it can only be read.
    pub fn freeze(self) -> Value {
        self.0
    }
}

impl Value {
    /// Its length.
    pub fn len(&self) -> usize {
        self.byte_count
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.byte_count == 0
    }

    /// The bytes, in order.
    pub fn chunks(&self) -> impl Iterator<Item = &[u8]> {
        let mut left = self.byte_count;
        self.extents.iter().map(move |extent| {
            let part = left.min(extent.len());
            left -= part;
            &extent[..part]
        })
    }

    /// Appends the bytes of a range to `out`; the part of it past the end is left out.
    pub fn append_range(&self, range: std::ops::Range<usize>, out: &mut Vec<u8>) {
        let extent_bytes = self.arena.0.extent_bytes;
        let end = range.end.min(self.byte_count);
        let mut at = range.start;
        while at < end {
            let within = at % extent_bytes;
            let part = (end - at).min(extent_bytes - within);
            out.extend_from_slice(&self.extents[at / extent_bytes][within..within + part]);
            at += part;
        }
    }

    /// XXH3-128 of the bytes.
    pub fn digest(&self) -> u128 {
        let mut hasher = Xxh3::new();
        self.chunks().for_each(|chunk| hasher.update(chunk));
        hasher.digest128()
    }
}

impl Drop for Value {
    fn drop(&mut self) {
        self.arena.lock().recycled.append(&mut self.extents);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn whatever_was_freed_fits_again_however_sizes_were_mixed() {
        let arena = Arena::new(8 * 4096, 4096);
        let mut held: Vec<ValueBuffer> = (0..8).map(|_| arena.allocate(1).unwrap()).collect();
        assert!(arena.allocate(1).is_err());
        // Every second one goes: no two free extents are neighbours, and a value of four extents fits.
        held = held.into_iter().step_by(2).collect();
        assert_eq!(arena.free_bytes(), 4 * 4096);
        held.push(arena.allocate(4 * 4096).unwrap());
        assert!(arena.allocate(1).is_err());
        drop(held);
        assert_eq!(arena.free_bytes(), arena.capacity_bytes());
    }

    proptest! {
        #[test]
        fn what_is_written_in_parts_is_read_as_a_whole(
            bytes in proptest::collection::vec(any::<u8>(), 0..20_000), cut in any::<prop::sample::Index>(), begin in 0usize..30_000, length in 0usize..30_000,
        ) {
            let arena = Arena::new(1 << 20, 4096);
            let mut buffer = arena.allocate(bytes.len()).unwrap();
            let cut = cut.index(bytes.len() + 1);
            buffer.write(cut, &bytes[cut..]);
            buffer.write(0, &bytes[..cut]);
            let value = buffer.freeze();
            prop_assert_eq!(value.chunks().flatten().copied().collect::<Vec<_>>(), bytes.clone());
            let mut part = Vec::new();
            value.append_range(begin..begin + length, &mut part);
            prop_assert_eq!(&part[..], &bytes[begin.min(bytes.len())..(begin + length).min(bytes.len())]);
            prop_assert_eq!(value.digest(), xxhash_rust::xxh3::xxh3_128(&bytes));
        }
    }
}
