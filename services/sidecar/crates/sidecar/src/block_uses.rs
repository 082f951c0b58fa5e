//! Who has which block of the pool under way: steps, fetches and swaps.
//!
//! The worker owns block ids and hands none out twice, so most of this finds only a worker's mistakes. What is no mistake is a step that is sent
//! before the swap which it needs has ended: it waits, and no other work does. Source: the conflict detection of FastSwitch (arXiv 2411.18424):
//! what is being copied out is not written, what is being filled is not read, and only what meets such a block is held up.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};

use kvasir_engine::{BlocksUsed, SwapDirection};

use crate::errors::CallError;
use crate::exports::lock;

/// All of it.
#[derive(Debug, Default)]
pub struct BlockUses {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    swaps: HashMap<u64, Swap>,
    /// Blocks that fetches write.
    fetches: HashMap<u64, HashSet<u32>>,
    /// Steps in flight, oldest first.
    steps: VecDeque<BlocksUsed>,
}

#[derive(Debug)]
struct Swap {
    direction: SwapDirection,
    blocks: HashSet<u32>,
    fate: Arc<Fate>,
}

/// How a swap ended, for steps that wait for it.
#[derive(Debug, Default)]
pub struct Fate(AtomicU8);

/// What [`Fate::get`] tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapState {
    /// Not yet.
    Running,
    /// All bytes are in place.
    Complete,
    /// Not all are.
    EndedEarly,
}

impl Fate {
    /// How it is now.
    pub fn get(&self) -> SwapState {
        match self.0.load(Ordering::Acquire) {
            0 => SwapState::Running,
            1 => SwapState::Complete,
            _ => SwapState::EndedEarly,
        }
    }
}

/// A swap that a step has to wait for.
#[derive(Debug)]
pub struct Awaited {
    /// How it goes.
    pub fate: Arc<Fate>,
    /// Whether the block holds nothing unless the swap completes.
    pub fills: bool,
    /// Which block both need.
    pub block: u32,
}

/// Blocks under a swap, until it is dropped.
#[derive(Debug)]
pub struct SwapGuard {
    uses: Arc<BlockUses>,
    id: u64,
    /// To be said before it is dropped.
    pub complete: bool,
}

impl Drop for SwapGuard {
    fn drop(&mut self) {
        if let Some(swap) = lock(&self.uses.state).swaps.remove(&self.id) {
            let fate = if self.complete { 1 } else { 2 };
            swap.fate.0.store(fate, Ordering::Release);
        }
    }
}

/// Blocks that a fetch writes, until it is dropped.
#[derive(Debug)]
pub struct FetchGuard {
    uses: Arc<BlockUses>,
    id: u64,
}

impl Drop for FetchGuard {
    fn drop(&mut self) {
        lock(&self.uses.state).fetches.remove(&self.id);
    }
}

impl BlockUses {
    /// Takes blocks for a swap.
    ///
    /// # Errors
    /// [`CallError::Busy`] for a block that would be read and written at once.
    pub fn begin_swap(self: &Arc<Self>, direction: SwapDirection, blocks: &[u32]) -> Result<SwapGuard, CallError> {
        let blocks: HashSet<u32> = blocks.iter().copied().collect();
        let mut state = lock(&self.state);
        state.check_swap(direction, &blocks)?;
        let (id, fate) = (state.id(), Arc::default());
        state.swaps.insert(
            id,
            Swap {
                direction,
                blocks,
                fate,
            },
        );
        Ok(SwapGuard {
            uses: Arc::clone(self),
            id,
            complete: false,
        })
    }

    /// Takes blocks for a fetch to write.
    ///
    /// # Errors
    /// [`CallError::Busy`] for a block that is being swapped.
    pub fn begin_fetch(self: &Arc<Self>, blocks: &[u32]) -> Result<FetchGuard, CallError> {
        let mut state = lock(&self.state);
        if let Some(block) = blocks.iter().find(|block| state.swap_of(block).is_some()) {
            return Err(busy(*block, "is being swapped", "wait for its end, or fence it"));
        }
        let id = state.id();
        state.fetches.insert(id, blocks.iter().copied().collect());
        Ok(FetchGuard {
            uses: Arc::clone(self),
            id,
        })
    }

    /// Takes blocks for a step that begins behind those in flight; gives them back with what it has to wait for.
    ///
    /// # Errors
    /// A swap that fills what the step uses, or copies what it writes.
    pub fn begin_step(&self, used: BlocksUsed) -> Result<(), (BlocksUsed, Awaited)> {
        let mut state = lock(&self.state);
        let read = used.read.iter().map(|block| (block, false));
        let written = used.written.iter().map(|block| (block, true));
        let awaited = read.chain(written).find_map(|(block, writes)| {
            let swap = state.swap_of(block)?;
            let fills = swap.direction == SwapDirection::In;
            (fills || writes).then(|| Awaited {
                fate: Arc::clone(&swap.fate),
                fills,
                block: *block,
            })
        });
        match awaited {
            Some(awaited) => Err((used, awaited)),
            None => {
                state.steps.push_back(used);
                Ok(())
            }
        }
    }

    /// The oldest step in flight has ended.
    pub fn end_step(&self) {
        lock(&self.state).steps.pop_front();
    }

    /// The youngest one did not begin after all.
    pub fn undo_step(&self) {
        lock(&self.state).steps.pop_back();
    }
}

impl State {
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn swap_of(&self, block: &u32) -> Option<&Swap> {
        let mut swaps = self.swaps.values();
        // Two that have the same block both copy it out: either one holds up who writes it.
        swaps.find(|swap| swap.blocks.contains(block))
    }

    fn check_swap(&self, direction: SwapDirection, blocks: &HashSet<u32>) -> Result<(), CallError> {
        let fills = direction == SwapDirection::In;
        let met = |used: &[u32]| used.iter().copied().find(|block| blocks.contains(block));
        for step in &self.steps {
            if let Some(block) = met(&step.written) {
                return Err(busy(
                    block,
                    "is written by a step that has not ended",
                    "wait for its answer",
                ));
            }
            if let Some(block) = met(&step.read).filter(|_| fills) {
                return Err(busy(
                    block,
                    "is read by a step that has not ended",
                    "wait for its answer",
                ));
            }
        }
        for fetched in self.fetches.values() {
            if let Some(block) = fetched.intersection(blocks).next() {
                return Err(busy(*block, "is written by a fetch", "wait for its end, or fence it"));
            }
        }
        for swap in self.swaps.values() {
            let meets = fills || swap.direction == SwapDirection::In;
            if let Some(block) = swap.blocks.intersection(blocks).next().filter(|_| meets) {
                return Err(busy(*block, "is being swapped", "wait for its end, or fence it"));
            }
        }
        Ok(())
    }
}

/// A block that somebody else has.
pub(crate) fn busy(block: u32, why: &str, remedy: &str) -> CallError {
    CallError::Busy(format!("block {block} {why}; {remedy}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn used(read: &[u32], written: &[u32]) -> BlocksUsed {
        BlocksUsed {
            read: read.to_vec(),
            written: written.to_vec(),
        }
    }

    #[track_caller]
    fn refused<T: std::fmt::Debug>(outcome: Result<T, CallError>, message: &str) {
        assert_eq!(outcome.expect_err("a conflict"), CallError::Busy(message.into()));
    }

    #[test]
    fn a_step_waits_for_what_it_reads_to_be_filled_and_for_what_it_writes_to_be_copied() {
        let uses = Arc::new(BlockUses::default());
        let out = uses.begin_swap(SwapDirection::Out, &[1, 2]).expect("free blocks");
        let mut back = uses.begin_swap(SwapDirection::In, &[3]).expect("free blocks");
        uses.begin_step(used(&[1, 4], &[5]))
            .expect("reading what is copied is fine");
        let (step, waits) = uses.begin_step(used(&[1], &[2])).expect_err("it writes block 2");
        assert_eq!(
            (waits.block, waits.fills, waits.fate.get()),
            (2, false, SwapState::Running)
        );
        drop(out);
        assert_eq!(waits.fate.get(), SwapState::EndedEarly);
        uses.begin_step(step).expect("nobody has its blocks");
        for step in [used(&[3], &[]), used(&[], &[3])] {
            let (_, waits) = uses.begin_step(step).expect_err("block 3 is being filled");
            assert!(waits.fills);
        }
        let (step, waits) = uses.begin_step(used(&[3], &[])).expect_err("block 3 is being filled");
        back.complete = true;
        drop(back);
        assert_eq!(waits.fate.get(), SwapState::Complete);
        uses.begin_step(step).expect("it is filled");
    }

    #[test]
    fn a_swap_is_refused_where_somebody_writes_or_where_it_would_fill_what_is_read() {
        let uses = Arc::new(BlockUses::default());
        uses.begin_step(used(&[1], &[2])).expect("free blocks");
        uses.begin_step(used(&[], &[3])).expect("free blocks");
        let fetch = uses.begin_fetch(&[4, 5]).expect("free blocks");
        let swap = |direction, block| uses.begin_swap(direction, &[9, block]);
        let step = "is written by a step that has not ended; wait for its answer";
        refused(swap(SwapDirection::Out, 2), &format!("block 2 {step}"));
        refused(swap(SwapDirection::In, 3), &format!("block 3 {step}"));
        refused(
            swap(SwapDirection::In, 1),
            "block 1 is read by a step that has not ended; wait for its answer",
        );
        refused(
            swap(SwapDirection::Out, 5),
            "block 5 is written by a fetch; wait for its end, or fence it",
        );
        let out = swap(SwapDirection::Out, 1).expect("read by both");
        drop(swap(SwapDirection::Out, 1).expect("and by a third"));
        let swapped = "is being swapped; wait for its end, or fence it";
        refused(uses.begin_fetch(&[7, 9]), &format!("block 9 {swapped}"));
        refused(uses.begin_swap(SwapDirection::In, &[9]), &format!("block 9 {swapped}"));
        drop((out, fetch));
        uses.end_step();
        drop(swap(SwapDirection::In, 2).expect("the first step has ended"));
        uses.undo_step();
        drop(swap(SwapDirection::In, 3).expect("the second one did not begin"));
        drop(swap(SwapDirection::In, 5).expect("the fetch has ended"));
    }
}
