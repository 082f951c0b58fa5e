//! Swaps of blocks to host memory and back: who may begin one, and what is left when it, or its owner, ends.
//!
//! Slots belong to leases that the worker names, and every lease belongs to the worker's Execute stream. So nothing is left of a worker that is gone:
//! the end of the stream stops its swaps, waits until they copy no more, and frees all slots.

use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use kvasir_engine::{SwapDirection, SwapSpace};
use opentelemetry::trace::{Span as _, Status as SpanStatus, Tracer};
use opentelemetry::{Context, KeyValue};
use tokio::sync::{Notify, oneshot};

use crate::block_uses::{BlockUses, SwapGuard, busy};
use crate::errors::CallError;
use crate::exports::{LeaseId, lock};
use crate::fetch::fenced;
use crate::proto::kernel::{SwapDirection as WireDirection, SwapRequest, SwapResponse};
use crate::slots::{SlotRefusal, SlotTable};
use crate::state::Sidecar;
use crate::stats::Stats;
use crate::swapping::{Copied, Job, Signals, Swappers};
use crate::ticket;

/// All swaps of one sidecar, and its host slots.
pub struct Swaps {
    uses: Arc<BlockUses>,
    state: Mutex<State>,
    /// A swap has ended.
    ended: Notify,
    /// None without slots.
    swappers: Option<Swappers>,
}

struct State {
    /// Whether an owner is there.
    is_owned: bool,
    slots: SlotTable,
    running: HashMap<LeaseId, Running>,
}

struct Running {
    lease_id: LeaseId,
    stop: Arc<AtomicBool>,
}

/// What a request asks for, checked by itself.
struct Terms {
    lease_id: LeaseId,
    swap_id: LeaseId,
    direction: SwapDirection,
    blocks: Vec<u32>,
    given_slots: Vec<u32>,
}

/// Blocks, slots and a place among the running ones, until it is dropped.
pub(crate) struct Admitted {
    swaps: Arc<Swaps>,
    lease_id: LeaseId,
    swap_id: LeaseId,
    direction: SwapDirection,
    slots: Vec<u32>,
    given_count: usize,
    /// None once they are free.
    blocks: Option<SwapGuard>,
}

impl Admitted {
    /// Whether everything was copied; nothing was unless this is said.
    pub(crate) fn complete(&mut self, complete: bool) {
        if let Some(blocks) = &mut self.blocks {
            blocks.complete = complete;
        }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        // Who is told that the swap has ended finds its blocks free.
        let complete = self.blocks.take().is_some_and(|blocks| blocks.complete);
        let mut state = lock(&self.swaps.state);
        match self.direction {
            SwapDirection::Out => {
                state
                    .slots
                    .end_out(&self.lease_id, &self.slots, self.given_count, complete);
            }
            SwapDirection::In => state.slots.end_in(&self.lease_id),
        }
        state.running.remove(&self.swap_id);
        drop(state);
        self.swaps.ended.notify_waiters();
    }
}

impl Swaps {
    /// Swaps to and from this space; without one every swap is refused.
    ///
    /// # Errors
    /// The system's, when no thread can be made.
    pub fn start(space: Option<SwapSpace>, uses: Arc<BlockUses>, stats: &Arc<Stats>) -> io::Result<Self> {
        let slot_count = space.as_ref().map_or(0, SwapSpace::slot_count);
        let swappers = space
            .map(|space| Swappers::start(&Arc::new(space), stats))
            .transpose()?;
        let state = State {
            is_owned: false,
            slots: SlotTable::new(slot_count),
            running: HashMap::new(),
        };
        Ok(Self {
            uses,
            state: Mutex::new(state),
            ended: Notify::new(),
            swappers,
        })
    }

    /// Host slots there are.
    pub fn slot_count(&self) -> u32 {
        lock(&self.state).slots.slot_count()
    }

    /// Slots under leases, and swaps that run.
    pub fn counts(&self) -> (u32, u32) {
        let state = lock(&self.state);
        (state.slots.used(), state.running.len() as u32)
    }

    /// An Execute stream opened: from now on slots can be had.
    pub fn begin_owner(&self) {
        lock(&self.state).is_owned = true;
    }

    /// It ended: stops all swaps, waits until none copies any more, and frees all slots.
    pub async fn end_owner(&self) {
        {
            let mut state = lock(&self.state);
            state.is_owned = false;
            state.running.values().for_each(Running::stop);
        }
        self.until(|state| state.running.is_empty()).await;
        lock(&self.state).slots.clear();
    }

    /// Waits until a swap, which was told to stop, copies no more. Unknown ones do not.
    pub async fn fence(&self, swap_id: &LeaseId) {
        self.until(|state| !state.running.contains_key(swap_id)).await;
    }

    /// Frees slots of a lease; none named: stops its swap and frees all. Unknown ones are free.
    pub async fn release(&self, lease_id: &LeaseId, slots: &[u32]) {
        let runs = |state: &State| state.running.values().any(|swap| swap.lease_id == *lease_id);
        if slots.is_empty() {
            let mut state = lock(&self.state);
            state.slots.begin_end(lease_id);
            let swaps = state.running.values();
            swaps.filter(|swap| swap.lease_id == *lease_id).for_each(Running::stop);
        }
        self.until_then(|state| {
            let is_quiet = !runs(state);
            if is_quiet && slots.is_empty() {
                state.slots.release_all(lease_id);
            } else if is_quiet {
                state.slots.release(lease_id, slots);
            }
            is_quiet
        })
        .await;
    }

    async fn until(&self, is_so: impl Fn(&State) -> bool) {
        self.until_then(|state| is_so(state)).await;
    }

    /// Asks whenever a swap has ended, until the answer is yes.
    async fn until_then(&self, mut ask: impl FnMut(&mut State) -> bool) {
        loop {
            let ended = self.ended.notified();
            if ask(&mut lock(&self.state)) {
                return;
            }
            ended.await;
        }
    }

    fn admit(self: &Arc<Self>, sidecar: &Sidecar, terms: Terms) -> Result<(Admitted, Arc<AtomicBool>), CallError> {
        let Terms {
            lease_id,
            swap_id,
            direction,
            blocks,
            given_slots,
        } = terms;
        let guard = self.uses.begin_swap(direction, &blocks)?;
        if direction == SwapDirection::In
            && let Some(block) = sidecar.exports.exported(&blocks)
        {
            return Err(busy(block, "is open to pulls", "release its lease first"));
        }
        let mut state = lock(&self.state);
        if !state.is_owned {
            let message = "no Execute stream is open, and host slots live as long as it; open it first";
            return Err(CallError::Busy(message.into()));
        }
        if state.running.contains_key(&swap_id) {
            return Err(invalid("swap_id", "names a swap that runs; use a new one".into()));
        }
        let slots = match direction {
            SwapDirection::Out => state.slots.begin_out(lease_id, &given_slots, blocks.len()),
            SwapDirection::In => state
                .slots
                .begin_in(lease_id, &given_slots)
                .map(|()| given_slots.clone()),
        };
        let slots = slots.map_err(refused)?;
        let stop = Arc::<AtomicBool>::default();
        let running = Running {
            lease_id,
            stop: Arc::clone(&stop),
        };
        state.running.insert(swap_id, running);
        let admitted = Admitted {
            swaps: Arc::clone(self),
            lease_id,
            swap_id,
            direction,
            slots,
            given_count: given_slots.len(),
            blocks: Some(guard),
        };
        Ok((admitted, stop))
    }

    /// Copies, and answers when the bytes are in place. Dropping the future stops it.
    ///
    /// # Errors
    /// As the proto says.
    pub async fn swap(
        self: &Arc<Self>,
        sidecar: &Sidecar,
        request: SwapRequest,
        context: &Context,
    ) -> Result<SwapResponse, CallError> {
        let terms = check(request, sidecar.pool.block_count())?;
        let (swap_id, direction, blocks) = (terms.swap_id, terms.direction, terms.blocks.clone());
        let (admitted, stop) = self.admit(sidecar, terms)?;
        let gate = sidecar.fetches.open(swap_id).ok_or_else(fenced)?;
        // A call that is dropped has nobody who would fence it.
        let _given_up = sidecar.fetches.fenced_on_drop(swap_id);
        let slot_ids = admitted.slots.clone();
        let mut span = sidecar.telemetry.tracer.start_with_context("kv.swap", context);
        let (answer, copied) = oneshot::channel();
        let job = Job {
            pairs: blocks.iter().copied().zip(slot_ids.iter().copied()).collect(),
            admitted,
            signals: Signals {
                stop,
                fenced: gate.watch(),
            },
            asked: Instant::now(),
            answer,
        };
        if let Some(swappers) = &self.swappers {
            swappers.send(direction, job);
        }
        let outcome = copied
            .await
            .unwrap_or_else(|_| Err(CallError::Internal("the thread of swaps has ended".into())));
        span.set_attribute(KeyValue::new("kvasir.direction", name(direction)));
        span.set_attribute(KeyValue::new("kvasir.blocks", blocks.len() as i64));
        match &outcome {
            Ok(copied) => tell(&mut span, copied),
            Err(error) => span.set_status(SpanStatus::error(error.to_string())),
        }
        span.end();
        let copied = outcome?;
        Ok(SwapResponse {
            slot_ids,
            data_bytes: copied.bytes,
            group_count: copied.groups,
            transfer_nanos: copied.transfer_nanos,
            wait_nanos: copied.wait_nanos,
        })
    }
}

impl Running {
    fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }
}

fn tell(span: &mut impl opentelemetry::trace::Span, copied: &Copied) {
    span.set_attribute(KeyValue::new("kvasir.bytes", copied.bytes as i64));
    span.set_attribute(KeyValue::new("kvasir.groups", i64::from(copied.groups)));
    span.set_attribute(KeyValue::new("kvasir.wait_ms", copied.wait_nanos as f64 / 1e6));
    span.set_attribute(KeyValue::new("kvasir.transfer_ms", copied.transfer_nanos as f64 / 1e6));
    let gb_per_s = copied.bytes as f64 / copied.transfer_nanos.max(1) as f64;
    span.set_attribute(KeyValue::new("kvasir.gb_per_s", gb_per_s));
}

/// What can be told without knowing what else goes on.
fn check(request: SwapRequest, block_count: u32) -> Result<Terms, CallError> {
    let direction = match request.direction() {
        WireDirection::Out => SwapDirection::Out,
        WireDirection::In => SwapDirection::In,
        WireDirection::Unspecified => return Err(invalid("direction", "is missing; use OUT or IN".into())),
    };
    let (blocks, slots) = (request.block_ids, request.slot_ids);
    if blocks.is_empty() {
        return Err(invalid("block_ids", "is empty; name the blocks to copy".into()));
    }
    if let Some(block) = blocks.iter().find(|block| **block >= block_count) {
        return Err(invalid("block_ids", format!("names block {block} of {block_count}")));
    }
    if slots.len() > blocks.len() || (direction == SwapDirection::In && slots.len() < blocks.len()) {
        let message = format!("has {} slots for {} blocks", slots.len(), blocks.len());
        return Err(invalid("slot_ids", message));
    }
    for (field, ids) in [("block_ids", &blocks), ("slot_ids", &slots)] {
        let mut seen = HashSet::with_capacity(ids.len());
        if let Some(id) = ids.iter().find(|id| !seen.insert(**id)) {
            return Err(invalid(field, format!("names {id} twice")));
        }
    }
    Ok(Terms {
        lease_id: ticket::id("lease_id", &request.lease_id)?,
        swap_id: ticket::id("swap_id", &request.swap_id)?,
        direction,
        blocks,
        given_slots: slots,
    })
}

fn invalid(field: &'static str, message: String) -> CallError {
    let field = field.into();
    CallError::InvalidRequest { field, message }
}

fn refused(refusal: SlotRefusal) -> CallError {
    let message = refusal.to_string();
    match refusal {
        SlotRefusal::Full { .. } => CallError::Overloaded(message),
        SlotRefusal::NotOfTheLease(_) | SlotRefusal::Empty(_) => invalid("slot_ids", message),
        SlotRefusal::Running => CallError::Busy(message),
        SlotRefusal::Ending => CallError::LeaseExpired(message),
    }
}

fn name(direction: SwapDirection) -> &'static str {
    match direction {
        SwapDirection::Out => "out",
        SwapDirection::In => "in",
    }
}

#[cfg(test)]
mod tests;
