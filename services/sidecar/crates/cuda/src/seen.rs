//! What a device knows of the tokens that sequences have, so that a step sends what is new and no more. Pure.

use crate::ops::SeenToken;
use kvasir_engine::History;
use std::collections::{BTreeSet, HashMap};

/// Slots that there are at least.
const SLOTS_MIN: usize = 4;

/// Which slot of the device's memory holds which sequence's tokens, and how far.
#[derive(Debug, Default)]
pub struct SeenSlots {
    capacity: usize,
    known: HashMap<u64, Known>,
    free: Vec<u32>,
    pass: u64,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    slot: u32,
    /// Tokens of the output that the device has.
    output_count: usize,
    /// The pass that used it last.
    used: u64,
}

/// What a pass changes on the device.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SeenChanges {
    /// Slots to empty first.
    pub forgotten: Vec<u32>,
    /// Tokens to note, none of a slot twice.
    pub noted: Vec<SeenToken>,
}

impl SeenSlots {
    /// Begins a pass of so many sequences with penalties. Tells how many slots the device needs memory for. When that grows nothing is known any more,
    /// since growing loses what memory held.
    pub fn begin(&mut self, sequences: usize) -> usize {
        self.pass += 1;
        // Twice as many: a batch may rest while others run.
        let wanted = match sequences {
            0 => 0,
            count => (2 * count).next_power_of_two().max(SLOTS_MIN),
        };
        if wanted > self.capacity {
            self.capacity = wanted;
            self.known.clear();
            self.free = (0..wanted as u32).rev().collect();
        }
        self.capacity
    }

    /// The slot of a sequence, and what has to be told to it. Tokens beyond the vocabulary are left out.
    pub fn slot(&mut self, sequence: u64, history: &History, vocab: usize, changes: &mut SeenChanges) -> u32 {
        let (output_count, used) = (history.output_len(), self.pass);
        let mut note = |slot: u32, token: u32, count: u32| {
            if (token as usize) < vocab {
                changes.noted.push(SeenToken { slot, token, count });
            }
        };
        if let Some(known) = self.known.get_mut(&sequence) {
            let new: BTreeSet<u32> = history.output_from(known.output_count).iter().copied().collect();
            for token in new {
                note(known.slot, token, history.count(token));
            }
            (known.output_count, known.used) = (output_count, used);
            return known.slot;
        }
        let slot = self.free.pop().unwrap_or_else(|| self.take_oldest());
        history.seen().for_each(|(token, count)| note(slot, token, count));
        changes.forgotten.push(slot);
        let known = Known {
            slot,
            output_count,
            used,
        };
        self.known.insert(sequence, known);
        slot
    }

    /// The slot of the sequence that no pass used for longest, which is forgotten.
    fn take_oldest(&mut self) -> u32 {
        // Slots decide among equals: the order of a map is none.
        let oldest = self.known.iter().min_by_key(|(_, known)| (known.used, known.slot));
        let oldest = oldest.map(|(sequence, known)| (*sequence, known.slot));
        oldest.map_or(0, |(sequence, slot)| {
            self.known.remove(&sequence);
            slot
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(slots: &mut SeenSlots, sequence: u64, history: &History) -> (u32, SeenChanges) {
        let mut changes = SeenChanges::default();
        let slot = slots.slot(sequence, history, 100, &mut changes);
        changes.noted.sort_by_key(|seen| seen.token);
        (slot, changes)
    }

    fn noted(changes: &SeenChanges) -> Vec<(u32, u32)> {
        changes.noted.iter().map(|seen| (seen.token, seen.count)).collect()
    }

    #[test]
    fn a_sequence_is_told_whole_once_and_then_what_is_new() {
        let (mut slots, mut history) = (SeenSlots::default(), History::new(&[7, 5, 200], 3));
        history.push(3, 5);
        assert_eq!(slots.begin(1), 4);
        let (slot, changes) = told(&mut slots, 11, &history);
        assert_eq!(
            (changes.forgotten.as_slice(), noted(&changes)),
            (&[slot][..], vec![(5, 1), (7, 0)])
        );
        slots.begin(1);
        assert_eq!(told(&mut slots, 11, &history), (slot, SeenChanges::default()));
        history.push(4, 5);
        history.push(5, 9);
        history.push(6, 5);
        slots.begin(1);
        let (same, changes) = told(&mut slots, 11, &history);
        assert_eq!(
            (same, changes.forgotten.len(), noted(&changes)),
            (slot, 0, vec![(5, 3), (9, 1)])
        );
    }

    #[test]
    fn the_slot_that_rests_longest_is_given_away_and_more_sequences_make_more_slots() {
        let (mut slots, history) = (SeenSlots::default(), History::new(&[1], 1));
        let mut of = Vec::new();
        for sequence in 0..4 {
            slots.begin(2);
            of.push(told(&mut slots, sequence, &history).0);
        }
        slots.begin(2);
        assert_eq!(told(&mut slots, 0, &history), (of[0], SeenChanges::default()));
        slots.begin(2);
        let (slot, changes) = told(&mut slots, 9, &history);
        assert_eq!((slot, changes.forgotten), (of[1], vec![of[1]]));
        assert_eq!(slots.begin(3), 8);
        assert_eq!(told(&mut slots, 0, &history).1.forgotten.len(), 1, "growing forgets");
    }
}
