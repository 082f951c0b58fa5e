//! Which lease has which host slot, and which slots hold something. Pure.
//!
//! A slot is free or under exactly one lease. Free slots are kept as runs, and a swap gets the smallest run that holds all of it, so that blocks
//! which follow each other find slots that do, and are one copy. Source: the extents of FastSwitch (arXiv 2411.18424), for the host's side.

use std::collections::{BTreeMap, HashMap};

use crate::exports::LeaseId;

/// Why slots cannot be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SlotRefusal {
    /// Too few are free.
    #[error(
        "{wanted} host slots are wanted and {free} of {slot_count} are free; release slots, or start the sidecar with a larger --swap-bytes"
    )]
    Full {
        /// Slots asked for.
        wanted: usize,
        /// Slots that are free.
        free: u32,
        /// Slots there are.
        slot_count: u32,
    },
    /// Not of this lease.
    #[error("slot {0} is not one of this lease")]
    NotOfTheLease(u32),
    /// Nothing was swapped out to it, or not all of it.
    #[error("slot {0} holds nothing: no swap out to it came to its end")]
    Empty(u32),
    /// One swap at a time.
    #[error("another swap of this lease runs; wait for its end")]
    Running,
    /// It is being released.
    #[error("the lease of these slots is being released")]
    Ending,
}

/// All slots.
#[derive(Debug)]
pub struct SlotTable {
    slot_count: u32,
    /// Length of each run of free slots, by its first.
    free: BTreeMap<u32, u32>,
    leases: HashMap<LeaseId, Lease>,
}

#[derive(Debug, Default)]
struct Lease {
    /// Whether each slot holds what was swapped out.
    slots: BTreeMap<u32, bool>,
    is_running: bool,
    is_ending: bool,
}

impl SlotTable {
    /// All free.
    pub fn new(slot_count: u32) -> Self {
        Self {
            slot_count,
            free: (slot_count > 0).then_some((0, slot_count)).into_iter().collect(),
            leases: HashMap::new(),
        }
    }

    /// Slots there are.
    pub fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Slots under leases.
    pub fn used(&self) -> u32 {
        self.slot_count - self.free.values().sum::<u32>()
    }

    /// Begins a swap of so many blocks to slots: first the given ones, then free ones. They hold nothing until it ends well.
    ///
    /// # Errors
    /// Any [`SlotRefusal`] but [`SlotRefusal::Empty`]; nothing changes then.
    pub fn begin_out(&mut self, lease_id: LeaseId, given: &[u32], block_count: usize) -> Result<Vec<u32>, SlotRefusal> {
        self.check_idle(&lease_id)?;
        self.check_given(&lease_id, given)?;
        let (wanted, free) = (block_count.saturating_sub(given.len()), self.slot_count - self.used());
        if wanted > free as usize {
            let slot_count = self.slot_count;
            return Err(SlotRefusal::Full {
                wanted,
                free,
                slot_count,
            });
        }
        let slots: Vec<u32> = given.iter().copied().chain(self.take(wanted as u32)).collect();
        let lease = self.leases.entry(lease_id).or_default();
        lease.is_running = true;
        lease.slots.extend(slots.iter().map(|slot| (*slot, false)));
        Ok(slots)
    }

    /// Begins a swap from slots.
    ///
    /// # Errors
    /// Any [`SlotRefusal`] but [`SlotRefusal::Full`]; nothing changes then.
    pub fn begin_in(&mut self, lease_id: LeaseId, given: &[u32]) -> Result<(), SlotRefusal> {
        self.check_idle(&lease_id)?;
        self.check_given(&lease_id, given)?;
        let Some(lease) = self.leases.get_mut(&lease_id) else {
            return Err(SlotRefusal::NotOfTheLease(given.first().copied().unwrap_or(0)));
        };
        if let Some(slot) = given.iter().find(|slot| lease.slots.get(slot) != Some(&true)) {
            return Err(SlotRefusal::Empty(*slot));
        }
        lease.is_running = true;
        Ok(())
    }

    /// Ends a swap to slots, of which the first `given_count` were the lease's before. The others are free again unless all was copied.
    pub fn end_out(&mut self, lease_id: &LeaseId, slots: &[u32], given_count: usize, complete: bool) {
        let Some(lease) = self.leases.get_mut(lease_id) else {
            return;
        };
        lease.is_running = false;
        if complete {
            lease.slots.extend(slots.iter().map(|slot| (*slot, true)));
        } else {
            self.release(lease_id, &slots[given_count.min(slots.len())..]);
        }
    }

    /// Ends a swap from slots, which keep what they hold.
    pub fn end_in(&mut self, lease_id: &LeaseId) {
        if let Some(lease) = self.leases.get_mut(lease_id) {
            lease.is_running = false;
        }
    }

    /// From now on no swap of the lease begins.
    pub fn begin_end(&mut self, lease_id: &LeaseId) {
        if let Some(lease) = self.leases.get_mut(lease_id) {
            lease.is_ending = true;
        }
    }

    /// Frees some slots of a lease of which no swap runs; others are fine. A lease without slots is over.
    pub fn release(&mut self, lease_id: &LeaseId, slots: &[u32]) {
        let Some(lease) = self.leases.get_mut(lease_id) else {
            return;
        };
        let freed: Vec<u32> = slots
            .iter()
            .copied()
            .filter(|slot| lease.slots.remove(slot).is_some())
            .collect();
        if lease.slots.is_empty() {
            self.leases.remove(lease_id);
        }
        freed.into_iter().for_each(|slot| self.give(slot));
    }

    /// Frees all slots of a lease of which no swap runs.
    pub fn release_all(&mut self, lease_id: &LeaseId) {
        for slot in self.leases.remove(lease_id).unwrap_or_default().slots.into_keys() {
            self.give(slot);
        }
    }

    /// Frees all slots.
    pub fn clear(&mut self) {
        *self = Self::new(self.slot_count);
    }

    fn check_idle(&self, lease_id: &LeaseId) -> Result<(), SlotRefusal> {
        match self.leases.get(lease_id) {
            Some(lease) if lease.is_ending => Err(SlotRefusal::Ending),
            Some(lease) if lease.is_running => Err(SlotRefusal::Running),
            _ => Ok(()),
        }
    }

    fn check_given(&self, lease_id: &LeaseId, given: &[u32]) -> Result<(), SlotRefusal> {
        let lease = self.leases.get(lease_id);
        let has = |slot: &u32| lease.is_some_and(|lease| lease.slots.contains_key(slot));
        match given.iter().find(|slot| !has(slot)) {
            Some(slot) => Err(SlotRefusal::NotOfTheLease(*slot)),
            None => Ok(()),
        }
    }

    /// Takes free slots, of which there are enough: from the smallest run that has them all, else from the largest ones.
    fn take(&mut self, mut count: u32) -> Vec<u32> {
        let mut taken = Vec::with_capacity(count as usize);
        while count > 0 {
            let runs = || self.free.iter().map(|(first, length)| (*length, *first));
            let fitting = runs().filter(|(length, _)| *length >= count).min();
            let Some((length, first)) =
                fitting.or_else(|| runs().max_by_key(|(length, first)| (*length, u32::MAX - *first)))
            else {
                break;
            };
            let part = length.min(count);
            self.free.remove(&first);
            if part < length {
                self.free.insert(first + part, length - part);
            }
            taken.extend(first..first + part);
            count -= part;
        }
        taken
    }

    /// Puts a slot back, and joins it to its neighbours.
    fn give(&mut self, slot: u32) {
        let (mut first, mut length) = (slot, 1);
        if let Some(after) = self.free.remove(&(slot + 1)) {
            length += after;
        }
        if let Some((&before, &count)) = self.free.range(..slot).next_back()
            && before + count == slot
        {
            (first, length) = (before, length + count);
        }
        self.free.insert(first, length);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvasir_engine::random::philox4x32;
    use std::collections::HashSet;

    fn check_invariants(table: &SlotTable) {
        let free: Vec<u32> = table
            .free
            .iter()
            .flat_map(|(first, length)| *first..*first + *length)
            .collect();
        let leased = table.leases.values().flat_map(|lease| lease.slots.keys().copied());
        let all: Vec<u32> = free.iter().copied().chain(leased).collect();
        assert_eq!(all.len(), table.slot_count as usize, "a slot is lost or counted twice");
        assert_eq!(
            all.iter().collect::<HashSet<_>>().len(),
            all.len(),
            "a slot is under two leases"
        );
        let runs: Vec<(u32, u32)> = table
            .free
            .iter()
            .map(|(first, length)| (*first, first + length))
            .collect();
        assert!(
            runs.windows(2).all(|pair| pair[0].1 < pair[1].0),
            "runs that touch are one"
        );
        assert!(
            table.leases.values().all(|lease| !lease.slots.is_empty()),
            "a lease of nothing"
        );
    }

    const A: LeaseId = [1; 16];
    const B: LeaseId = [2; 16];
    const C: LeaseId = [3; 16];

    /// Swaps out and ends well.
    fn out(table: &mut SlotTable, lease_id: LeaseId, given: &[u32], count: usize) -> Vec<u32> {
        let slots = table.begin_out(lease_id, given, count).expect("slots");
        table.end_out(&lease_id, &slots, given.len(), true);
        check_invariants(table);
        slots
    }

    #[test]
    fn the_smallest_run_that_holds_all_is_taken_else_the_largest_first() {
        let mut table = SlotTable::new(10);
        assert_eq!(out(&mut table, A, &[], 2), [0, 1]);
        assert_eq!(out(&mut table, B, &[], 3), [2, 3, 4]);
        assert_eq!(out(&mut table, C, &[], 1), [5]);
        table.release_all(&B);
        assert_eq!(out(&mut table, A, &[], 3), [2, 3, 4]);
        table.release(&A, &[3, 4]);
        assert_eq!(out(&mut table, B, &[], 5), [6, 7, 8, 9, 3]);
        assert_eq!(table.used(), 9);
        let full = SlotRefusal::Full {
            wanted: 2,
            free: 1,
            slot_count: 10,
        };
        assert_eq!(table.begin_out(C, &[5], 3), Err(full));
        [A, B, C].iter().for_each(|lease| table.release_all(lease));
        check_invariants(&table);
        assert_eq!((table.used(), table.free.len()), (0, 1));
    }

    #[test]
    fn a_copy_is_kept_and_written_again_only_where_it_changed() {
        let mut table = SlotTable::new(8);
        assert_eq!(out(&mut table, A, &[], 3), [0, 1, 2]);
        table.begin_in(A, &[0, 1, 2]).expect("they hold something");
        assert_eq!(table.begin_in(A, &[0]), Err(SlotRefusal::Running));
        assert_eq!(table.begin_out(A, &[0], 1), Err(SlotRefusal::Running));
        table.end_in(&A);
        // The last block got more tokens, and another one came.
        let slots = table.begin_out(A, &[2], 2).expect("slots");
        assert_eq!(slots, [2, 3]);
        table.end_out(&A, &slots, 1, false);
        check_invariants(&table);
        assert_eq!(table.begin_in(A, &[0, 2]), Err(SlotRefusal::Empty(2)));
        assert_eq!(table.begin_in(A, &[0, 3]), Err(SlotRefusal::NotOfTheLease(3)));
        assert_eq!(table.begin_in(B, &[0]), Err(SlotRefusal::NotOfTheLease(0)));
        assert_eq!(table.begin_in(A, &[0, 1]), Ok(()));
        table.begin_end(&A);
        table.end_in(&A);
        assert_eq!(table.begin_in(A, &[0]), Err(SlotRefusal::Ending));
    }

    #[test]
    fn no_order_of_swaps_and_releases_loses_a_slot() {
        let mut table = SlotTable::new(40);
        for round in 0..3000 {
            let draw = |purpose: u32, below: u32| philox4x32([round, purpose, 0, 0], [7, 0])[0] % below.max(1);
            let lease_id = [draw(0, 5) as u8; 16];
            let owned: Vec<u32> = table
                .leases
                .get(&lease_id)
                .map_or(vec![], |lease| lease.slots.keys().copied().collect());
            match draw(1, 4) {
                0 | 1 => {
                    let given = &owned[..draw(2, owned.len() as u32 + 1) as usize];
                    if let Ok(slots) = table.begin_out(lease_id, given, given.len() + draw(3, 9) as usize + 1) {
                        check_invariants(&table);
                        table.end_out(&lease_id, &slots, given.len(), draw(4, 3) > 0);
                    }
                }
                2 => table.release(&lease_id, &owned[..draw(5, owned.len() as u32 + 1) as usize]),
                _ => table.release_all(&lease_id),
            }
            check_invariants(&table);
        }
    }
}
