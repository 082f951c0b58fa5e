//! The threads that copy swapped blocks, one for each direction: copies never run on the threads of steps or of transfers, and a sequence that comes
//! back does not wait behind one that goes. On a GPU each has a stream of its own.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::time::Instant;

use kvasir_engine::{BlockGroup, PoolError, SwapDirection, SwapSpace, block_groups};
use tokio::sync::{oneshot, watch};

use crate::errors::CallError;
use crate::stats::{Stats, add};
use crate::swaps::Admitted;

/// Bytes that are copied before somebody looks whether the swap should stop. Larger: a GPU waits for the host less often; smaller: a cancelled swap ends
/// sooner, and steps get their own copies in between. On a link of 50 GB/s this is 0.6 ms.
const LOOK_BYTES: usize = 32 << 20;

/// What was copied.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Copied {
    /// Bytes.
    pub bytes: u64,
    /// Copies.
    pub groups: u32,
    /// Time that they took.
    pub transfer_nanos: u64,
    /// Time behind other swaps.
    pub wait_nanos: u64,
}

/// A swap on its way.
pub(crate) struct Job {
    pub(crate) admitted: Admitted,
    /// Each block and its slot, in order.
    pub(crate) pairs: Vec<(u32, u32)>,
    pub(crate) signals: Signals,
    pub(crate) asked: Instant,
    /// A closed one is fine.
    pub(crate) answer: oneshot::Sender<Result<Copied, CallError>>,
}

/// What stops a swap.
pub(crate) struct Signals {
    /// The stream of its owner, or its lease, ended.
    pub(crate) stop: Arc<AtomicBool>,
    /// It was fenced, or its call cancelled.
    pub(crate) fenced: watch::Receiver<bool>,
}

impl Signals {
    fn check(&self) -> Result<(), CallError> {
        if self.stop.load(Ordering::Acquire) {
            let message = "the swap's lease was released, or the Execute stream of its owner ended";
            return Err(CallError::LeaseExpired(message.into()));
        }
        if *self.fenced.borrow() {
            return Err(CallError::LeaseExpired("the swap was fenced".into()));
        }
        Ok(())
    }
}

/// Both threads; they end when it is dropped.
pub(crate) struct Swappers {
    out: mpsc::Sender<Job>,
    back: mpsc::Sender<Job>,
}

impl Swappers {
    pub(crate) fn start(space: &Arc<SwapSpace>, stats: &Arc<Stats>) -> io::Result<Self> {
        let start = |name: &str, direction| {
            let (sender, jobs) = mpsc::channel::<Job>();
            let (space, stats) = (Arc::clone(space), Arc::clone(stats));
            let work = move || jobs.into_iter().for_each(|job| job.run(&space, direction, &stats));
            std::thread::Builder::new().name(name.into()).spawn(work)?;
            io::Result::Ok(sender)
        };
        Ok(Self {
            out: start("swap-out", SwapDirection::Out)?,
            back: start("swap-in", SwapDirection::In)?,
        })
    }

    /// Hands a swap over; a thread that is gone drops it, and its answer with it.
    pub(crate) fn send(&self, direction: SwapDirection, job: Job) {
        let sender = match direction {
            SwapDirection::Out => &self.out,
            SwapDirection::In => &self.back,
        };
        let _ = sender.send(job);
    }
}

impl Job {
    fn run(self, space: &SwapSpace, direction: SwapDirection, stats: &Stats) {
        let Self {
            mut admitted,
            pairs,
            signals,
            asked,
            answer,
        } = self;
        let wait_nanos = nanos(asked);
        let mut copied = Copied::default();
        let outcome = copy_blocks(space, direction, pairs, &mut copied, || signals.check());
        copied.wait_nanos = wait_nanos;
        let counter = match direction {
            SwapDirection::Out => &stats.kv_bytes_swapped_out,
            SwapDirection::In => &stats.kv_bytes_swapped_in,
        };
        add(counter, copied.bytes);
        // Slots that nobody was told of are of no use.
        admitted.complete(outcome.is_ok() && !answer.is_closed());
        // Before the answer: who has it finds blocks and slots free for others.
        drop(admitted);
        let _ = answer.send(outcome.map(|()| copied));
    }
}

/// Copies pairs of a block and its slot: a copy for each run, and a look after so many bytes whether to go on. `copied` tells what was, however it ends.
///
/// # Errors
/// What `look` says; [`CallError::Overloaded`] when the host has no memory for the slots; [`CallError::Internal`].
pub fn copy_blocks(
    space: &SwapSpace,
    direction: SwapDirection,
    pairs: impl IntoIterator<Item = (u32, u32)>,
    copied: &mut Copied,
    look: impl Fn() -> Result<(), CallError>,
) -> Result<(), CallError> {
    let began = Instant::now();
    let count_max = u32::try_from(LOOK_BYTES / space.block_bytes().max(1))
        .unwrap_or(u32::MAX)
        .max(1);
    let groups = block_groups(pairs, count_max);
    let outcome = batches(&groups, count_max).try_for_each(|batch| {
        look()?;
        space.copy(direction, batch).map_err(failed)?;
        let blocks: u64 = batch.iter().map(|group| u64::from(group.count)).sum();
        copied.bytes += blocks * space.block_bytes() as u64;
        copied.groups += batch.len() as u32;
        Ok(())
    });
    copied.transfer_nanos = nanos(began);
    outcome
}

/// Groups together that come to at most so many blocks, each of which does.
fn batches(groups: &[BlockGroup], count_max: u32) -> impl Iterator<Item = &[BlockGroup]> {
    let mut rest = groups;
    std::iter::from_fn(move || {
        let mut count = 0;
        let fits = |group: &&BlockGroup| {
            count += u64::from(group.count);
            count <= u64::from(count_max)
        };
        let taken = rest.iter().take_while(fits).count();
        let (batch, after) = rest.split_at(taken);
        rest = after;
        (!batch.is_empty()).then_some(batch)
    })
}

fn failed(error: PoolError) -> CallError {
    match error {
        PoolError::OutOfMemory { .. } => {
            CallError::Overloaded(format!("{error}; start the sidecar with a smaller --swap-bytes"))
        }
        error => CallError::Internal(error.to_string()),
    }
}

fn nanos(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_take_as_many_groups_as_fit() {
        let group = |block, count| BlockGroup {
            block,
            slot: block,
            count,
        };
        let groups = [group(0, 4), group(9, 1), group(20, 3), group(30, 3), group(40, 1)];
        let found: Vec<Vec<u32>> = batches(&groups, 4)
            .map(|batch| batch.iter().map(|group| group.block).collect())
            .collect();
        assert_eq!(found, [vec![0], vec![9, 20], vec![30, 40]]);
        assert_eq!(batches(&[], 4).count(), 0);
    }
}
