//! Where the block of a key lies on disk: a compact open-addressing table, sized for 10 M blocks.
//!
//! An entry is 28 bytes. Entries lie in 64 shards that grow one at a time by 30 %, when they are 85 % full, so the table takes 33 to 43
//! bytes for each block and a growing shard is copied in milliseconds. Linear probing; an entry that leaves moves those after it back, so
//! nothing is left behind. Keys are digests; they are mixed once more with a random seed, so that nobody can choose where they fall.

use std::hash::{BuildHasher, RandomState};

use crate::object::Key;
use crate::record::ALIGNMENT;

const SHARD_BITS: u32 = 6;
const SHARD_COUNT: usize = 1 << SHARD_BITS;
const SMALLEST: usize = 16;
/// An entry's segment when the slot is free; segments are counted from 1.
const FREE: u32 = 0;
const APPROXIMATE: u32 = 1 << 31;

/// Where a record lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Location {
    /// Segment, from 1.
    pub segment: u32,
    /// Offset in it; a multiple of 4 KiB.
    pub offset: u64,
    /// Bytes of the value.
    pub value_bytes: u32,
    /// Whether the value is approximate.
    pub approximate: bool,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    key: [u8; 16],
    segment: u32,
    /// In units of 4 KiB: a segment may have 16 TiB.
    offset_units: u32,
    /// Bytes of the value, and the bit of approximate ones.
    value_bytes: u32,
}

const EMPTY: Entry = Entry {
    key: [0; 16],
    segment: FREE,
    offset_units: 0,
    value_bytes: 0,
};

/// The table.
#[derive(Debug)]
pub struct Index {
    shards: Vec<Shard>,
    seed: u64,
    len: usize,
}

#[derive(Debug, Default)]
struct Shard {
    slots: Vec<Entry>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            shards: (0..SHARD_COUNT).map(|_| Shard::default()).collect(),
            seed: RandomState::new().hash_one(0u8) | 1,
            len: 0,
        }
    }
}

impl Index {
    /// Keys in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no key.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes that its tables take.
    pub fn memory_bytes(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| shard.slots.capacity() * size_of::<Entry>())
            .sum()
    }

    /// Where a key's value is.
    pub fn get(&self, key: Key) -> Option<Location> {
        let (shard, hash) = self.place(key);
        let shard = &self.shards[shard];
        shard.find(key, hash).map(|slot| shard.slots[slot].location())
    }

    /// Puts a key there; returns where it was before.
    pub fn insert(&mut self, key: Key, location: Location) -> Option<Location> {
        let seed = self.seed;
        let (shard, hash) = self.place(key);
        let shard = &mut self.shards[shard];
        let entry = Entry::new(key, location);
        if let Some(slot) = shard.find(key, hash) {
            return Some(std::mem::replace(&mut shard.slots[slot], entry).location());
        }
        if (shard.len + 1) * 20 > shard.slots.len() * 17 {
            shard.grow(seed);
        }
        shard.add(entry, hash);
        self.len += 1;
        None
    }

    /// Takes a key out; returns where it was.
    pub fn remove(&mut self, key: Key) -> Option<Location> {
        let seed = self.seed;
        let (shard, hash) = self.place(key);
        let removed = self.shards[shard].remove(key, hash, seed);
        self.len -= usize::from(removed.is_some());
        removed
    }

    /// Every key, in no useful order.
    pub fn iter(&self) -> impl Iterator<Item = (Key, Location)> {
        let entries = self.shards.iter().flat_map(|shard| &shard.slots);
        entries
            .filter(|entry| entry.segment != FREE)
            .map(|entry| (Key(entry.key), entry.location()))
    }

    fn place(&self, key: Key) -> (usize, u64) {
        let hash = mix(key, self.seed);
        ((hash >> (64 - SHARD_BITS)) as usize, hash << SHARD_BITS)
    }
}

/// The high bits choose the shard, the next ones the slot.
fn mix(key: Key, seed: u64) -> u64 {
    let word = u128::from_le_bytes(key.0);
    let folded = (word as u64) ^ ((word >> 64) as u64).rotate_left(32);
    let product = u128::from(folded ^ seed.rotate_left(17)) * u128::from(seed);
    (product as u64) ^ ((product >> 64) as u64)
}

impl Entry {
    fn new(key: Key, location: Location) -> Self {
        Self {
            key: key.0,
            segment: location.segment,
            offset_units: u32::try_from(location.offset / ALIGNMENT as u64).unwrap_or(u32::MAX),
            value_bytes: location.value_bytes | if location.approximate { APPROXIMATE } else { 0 },
        }
    }

    fn location(&self) -> Location {
        Location {
            segment: self.segment,
            offset: u64::from(self.offset_units) * ALIGNMENT as u64,
            value_bytes: self.value_bytes & !APPROXIMATE,
            approximate: self.value_bytes & APPROXIMATE != 0,
        }
    }
}

impl Shard {
    /// The slot that a hash asks for: the hash scaled to the length, which need not be a power of two.
    fn home(&self, hash: u64) -> usize {
        ((u128::from(hash) * self.slots.len() as u128) >> 64) as usize
    }

    fn find(&self, key: Key, hash: u64) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let mut slot = self.home(hash);
        loop {
            let entry = &self.slots[slot];
            if entry.segment == FREE {
                return None;
            }
            if entry.key == key.0 {
                return Some(slot);
            }
            slot = self.after(slot);
        }
    }

    fn after(&self, slot: usize) -> usize {
        if slot + 1 == self.slots.len() { 0 } else { slot + 1 }
    }

    fn add(&mut self, entry: Entry, hash: u64) {
        let mut slot = self.home(hash);
        while self.slots[slot].segment != FREE {
            slot = self.after(slot);
        }
        self.slots[slot] = entry;
        self.len += 1;
    }

    fn grow(&mut self, seed: u64) {
        let slot_count = (self.slots.len() + self.slots.len() * 3 / 10).max(SMALLEST);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slot_count]);
        self.len = 0;
        for entry in old.into_iter().filter(|entry| entry.segment != FREE) {
            self.add(entry, mix(Key(entry.key), seed) << SHARD_BITS);
        }
    }

    fn remove(&mut self, key: Key, hash: u64, seed: u64) -> Option<Location> {
        let mut hole = self.find(key, hash)?;
        let location = self.slots[hole].location();
        let mut slot = hole;
        loop {
            slot = self.after(slot);
            let entry = self.slots[slot];
            if entry.segment == FREE {
                break;
            }
            // It may move back when its home does not lie between the hole and itself.
            let home = self.home(mix(Key(entry.key), seed) << SHARD_BITS);
            let from_home = (slot + self.slots.len() - home) % self.slots.len();
            let from_hole = (slot + self.slots.len() - hole) % self.slots.len();
            if from_home >= from_hole {
                self.slots[hole] = entry;
                hole = slot;
            }
        }
        self.slots[hole] = EMPTY;
        self.len -= 1;
        Some(location)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    fn key(number: u16) -> Key {
        Key(xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes()).to_le_bytes())
    }

    fn location(number: u32) -> Location {
        Location {
            segment: number % 1000 + 1,
            offset: u64::from(number) * 4096,
            value_bytes: number,
            approximate: number.is_multiple_of(3),
        }
    }

    proptest! {
        #[test]
        fn it_does_what_a_map_does(operations in proptest::collection::vec((0u8..3, 0u16..400, 0u32..1 << 30), 0..3000)) {
            let (mut index, mut model) = (Index::default(), HashMap::new());
            for (operation, number, value) in operations {
                match operation {
                    0 => prop_assert_eq!(index.remove(key(number)), model.remove(&key(number))),
                    _ => prop_assert_eq!(index.insert(key(number), location(value)), model.insert(key(number), location(value))),
                }
                prop_assert_eq!(index.len(), model.len());
            }
            for number in 0..400 {
                prop_assert_eq!(index.get(key(number)), model.get(&key(number)).copied());
            }
            prop_assert_eq!(index.iter().collect::<HashMap<_, _>>(), model);
        }
    }

    #[test]
    fn a_block_costs_a_few_dozen_bytes() {
        let mut index = Index::default();
        for number in 0..200_000u32 {
            let key = Key(xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes()).to_le_bytes());
            index.insert(key, location(number));
        }
        let bytes = index.memory_bytes() as f64 / 200_000.0;
        assert!((28.0..48.0).contains(&bytes), "{bytes} bytes for each block");
    }
}
