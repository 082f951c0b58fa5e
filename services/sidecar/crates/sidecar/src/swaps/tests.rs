use super::*;
use crate::coders::Coders;
use crate::exports::{ExportTerms, Exports};
use crate::fetches::Fetches;
use crate::telemetry::Telemetry;
use crate::ticket::TicketKey;
use kvasir_engine::{BlockGroup, BlocksUsed, Isa, KvDtype, KvLayout, KvPool, KvShards, PoolError};
use kvasir_kernels::{KvShape, RemoteKv, RemoteSlots};
use std::ops::Range;
use std::sync::Condvar;
use std::time::Duration;
use tokio::task::JoinHandle;

/// A block is more than is copied between two looks, so each is copied alone.
const SHAPE: KvShape = KvShape {
    layer_count: 64,
    kv_head_count: 32,
    head_size: 128,
    block_size: 64,
    dtype: KvDtype::Bf16,
};
const BLOCKS: u32 = 12;
const LEASE: [u8; 16] = [1; 16];
const OWNED: &str = "the swap's lease was released, or the Execute stream of its owner ended";

/// KV memory whose copies are made one by one, when the test lets them.
#[derive(Clone, Default)]
struct Held(Arc<(Mutex<Copies>, Condvar)>);

#[derive(Default)]
struct Copies {
    begun: Vec<(SwapDirection, BlockGroup)>,
    allowed: usize,
    failing: bool,
}

impl Held {
    fn allow(&self, count: usize) {
        lock(&self.0.0).allowed += count;
        self.0.1.notify_all();
    }

    fn begun(&self) -> usize {
        lock(&self.0.0).begun.len()
    }

    /// Waits until so many copies have begun.
    async fn until_begun(&self, count: usize) {
        let held = self.clone();
        let wait = move || {
            let (copies, changed) = &*held.0;
            let waiting = |copies: &mut Copies| copies.begun.len() < count;
            let waited = changed.wait_timeout_while(lock(copies), Duration::from_secs(60), waiting);
            waited.is_ok_and(|(_, waited)| !waited.timed_out())
        };
        assert!(
            tokio::task::spawn_blocking(wait).await.expect("it waits"),
            "a copy never began"
        );
    }
}

impl RemoteKv for Held {
    fn gather(&self, _: u32, _: [Range<u32>; 3], _: usize, _: &mut Vec<u8>) -> Result<(), PoolError> {
        Err(PoolError::Device("nothing is transferred here".into()))
    }

    fn scatter(&self, _: u32, _: [Range<u32>; 3], _: &[u8]) -> Result<(), PoolError> {
        Err(PoolError::Device("nothing is transferred here".into()))
    }

    fn slots(&self, _: u32) -> Result<Box<dyn RemoteSlots>, PoolError> {
        Ok(Box::new(self.clone()))
    }
}

impl RemoteSlots for Held {
    fn copy(&self, direction: SwapDirection, groups: &[BlockGroup]) -> Result<(), PoolError> {
        let (copies, changed) = &*self.0;
        let mut copies = lock(copies);
        copies.begun.extend(groups.iter().map(|group| (direction, *group)));
        let number = copies.begun.len();
        changed.notify_all();
        let copies = changed.wait_while(copies, |copies| copies.allowed < number);
        match copies {
            Ok(copies) if !copies.failing => Ok(()),
            _ => Err(PoolError::Device("the bus fell off".into())),
        }
    }
}

struct World {
    held: Held,
    sidecar: Arc<Sidecar>,
    swaps: Arc<Swaps>,
}

type Swapping = JoinHandle<Result<SwapResponse, CallError>>;

impl World {
    fn new(slot_count: u32) -> Self {
        let held = Held::default();
        let pool = KvPool::remote(SHAPE, BLOCKS, Box::new(held.clone())).expect("a pool");
        let pool = Arc::new(KvShards::whole(pool));
        let block_bytes = (SHAPE.bytes_per_token() * SHAPE.block_size) as u64;
        let space = SwapSpace::new(Arc::clone(&pool), u64::from(slot_count) * block_bytes).expect("slots");
        let (block_uses, stats) = (Arc::<BlockUses>::default(), Arc::<Stats>::default());
        let swaps = Arc::new(Swaps::start(Some(space), Arc::clone(&block_uses), &stats).expect("threads"));
        let layout = KvLayout {
            model_revision: "test".into(),
            dtype: SHAPE.dtype,
            block_size: SHAPE.block_size,
            shard_count: 1,
            layer_count: SHAPE.layer_count,
            kv_head_count: SHAPE.kv_head_count,
            head_size: SHAPE.head_size,
            rope: "none".into(),
            fingerprint: [0; 16],
            exact_fingerprint: [0; 16],
        };
        let sidecar = Arc::new(Sidecar {
            worker_id: "w".into(),
            epoch: 1,
            ticket_key: TicketKey::new([4; 32]),
            pool,
            isa: Isa::detect(),
            layout,
            coders: Coders::none(),
            exports: Arc::new(Exports::default()),
            fetches: Fetches::default(),
            block_uses,
            stats,
            telemetry: Telemetry::start("w"),
        });
        swaps.begin_owner();
        Self { held, sidecar, swaps }
    }

    fn swap(&self, request: SwapRequest) -> Swapping {
        let (sidecar, swaps) = (Arc::clone(&self.sidecar), Arc::clone(&self.swaps));
        tokio::spawn(async move { swaps.swap(&sidecar, request, &Context::new()).await })
    }

    /// As the service does.
    async fn fence(&self, swap: u8) {
        self.sidecar.fetches.fence([swap; 16]);
        self.swaps.fence(&[swap; 16]).await;
    }

    async fn refused(&self, request: SwapRequest) -> CallError {
        self.swap(request).await.expect("it ends").expect_err("it is refused")
    }

    /// Swaps out under the lease; the slots.
    async fn stored(&self, swap: u8, blocks: &[u32]) -> Vec<u32> {
        self.held.allow(blocks.len());
        let swapped = self
            .swap(out(swap, blocks))
            .await
            .expect("it ends")
            .expect("it is swapped");
        swapped.slot_ids
    }
}

fn out(swap: u8, blocks: &[u32]) -> SwapRequest {
    SwapRequest {
        lease_id: LEASE.to_vec(),
        swap_id: vec![swap; 16],
        direction: WireDirection::Out.into(),
        block_ids: blocks.to_vec(),
        slot_ids: vec![],
    }
}

fn back(swap: u8, blocks: &[u32], slots: &[u32]) -> SwapRequest {
    SwapRequest {
        direction: WireDirection::In.into(),
        slot_ids: slots.to_vec(),
        ..out(swap, blocks)
    }
}

fn expired(message: &str) -> CallError {
    CallError::LeaseExpired(message.into())
}

#[tokio::test]
async fn what_is_copied_is_told_and_the_slots_stay_until_they_are_released() {
    let world = World::new(8);
    let slots = world.stored(2, &[3, 4, 9]).await;
    assert_eq!((slots, world.swaps.counts()), (vec![0, 1, 2], (3, 0)));
    world.held.allow(3);
    let swapped = world
        .swap(back(3, &[5, 1, 2], &[0, 1, 2]))
        .await
        .expect("it ends")
        .expect("it is back");
    assert_eq!((swapped.data_bytes, swapped.group_count), (3 * 64 * 1024 * 1024, 3));
    // What changed goes out again: the last block to its slot, and one more.
    world.held.allow(2);
    let again = SwapRequest {
        slot_ids: vec![2],
        ..out(4, &[2, 7])
    };
    let swapped = world.swap(again).await.expect("it ends").expect("it is swapped");
    assert_eq!((swapped.slot_ids, world.swaps.counts()), (vec![2, 3], (4, 0)));
    world.swaps.release(&LEASE, &[0, 77]).await;
    assert_eq!(world.swaps.counts(), (3, 0));
    world.swaps.release(&LEASE, &[]).await;
    assert_eq!(world.swaps.counts(), (0, 0));
    world.swaps.release(&LEASE, &[]).await;
}

#[tokio::test]
async fn a_cancelled_call_stops_after_the_copy_under_way_and_leaves_nothing() {
    let world = World::new(8);
    let swap = world.swap(out(2, &[1, 2, 3]));
    world.held.until_begun(1).await;
    swap.abort();
    assert!(swap.await.expect_err("it was cancelled").is_cancelled());
    let fenced = tokio::spawn({
        let swaps = Arc::clone(&world.swaps);
        async move { swaps.fence(&[2; 16]).await }
    });
    // Its blocks are not free before the copy has ended.
    let uses = &world.sidecar.block_uses;
    assert!(uses.begin_swap(SwapDirection::In, &[2]).is_err());
    assert_eq!(world.swaps.counts(), (3, 1));
    world.held.allow(1);
    fenced.await.expect("it is fenced");
    assert_eq!((world.held.begun(), world.swaps.counts()), (1, (0, 0)));
    drop(uses.begin_swap(SwapDirection::In, &[1, 2, 3]).expect("nobody has them"));
    // The same id is over for good.
    assert_eq!(
        world.refused(out(2, &[1])).await,
        expired("the receiving lease was fenced")
    );
    assert_eq!(world.swaps.counts(), (0, 0));
}

#[tokio::test]
async fn the_end_of_the_owner_ends_its_swaps_and_frees_every_slot() {
    let world = World::new(8);
    let slots = world.stored(2, &[1, 2]).await;
    let [leaving, coming] = [
        world.swap(SwapRequest {
            lease_id: vec![9; 16],
            ..out(3, &[5, 6, 7])
        }),
        world.swap(back(4, &[8, 9], &slots)),
    ];
    world.held.until_begun(4).await;
    let swaps = Arc::clone(&world.swaps);
    let ended = tokio::spawn(async move { swaps.end_owner().await });
    let uses = &world.sidecar.block_uses;
    let reading = BlocksUsed {
        read: vec![8],
        written: vec![],
    };
    let (_, awaited) = uses.begin_step(reading).expect_err("block 8 is being filled");
    assert_eq!(world.swaps.counts(), (5, 2));
    while lock(&world.swaps.state).is_owned {
        tokio::task::yield_now().await;
    }
    world.held.allow(2);
    ended.await.expect("it has ended");
    for swap in [leaving, coming] {
        assert_eq!(swap.await.expect("it ends"), Err(expired(OWNED)));
    }
    assert_eq!(awaited.fate.get(), crate::block_uses::SwapState::EndedEarly);
    assert_eq!((world.held.begun(), world.swaps.counts()), (4, (0, 0)));
    let refused = world.refused(out(5, &[1])).await;
    assert!(
        matches!(&refused, CallError::Busy(message) if message.starts_with("no Execute stream is open")),
        "{refused}"
    );
    world.swaps.begin_owner();
    assert_eq!(world.stored(6, &[1]).await, [0]);
}

#[tokio::test]
async fn a_released_lease_and_a_fenced_swap_end_with_a_reason() {
    let world = World::new(8);
    let swap = world.swap(out(2, &[1, 2, 3]));
    world.held.until_begun(1).await;
    let swaps = Arc::clone(&world.swaps);
    let released = tokio::spawn(async move { swaps.release(&LEASE, &[]).await });
    while !lock(&world.swaps.state)
        .running
        .values()
        .all(|swap| swap.stop.load(Ordering::Acquire))
    {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        world.refused(out(3, &[7])).await,
        expired("the lease of these slots is being released")
    );
    world.held.allow(1);
    released.await.expect("it is released");
    assert_eq!(swap.await.expect("it ends"), Err(expired(OWNED)));
    assert_eq!(world.swaps.counts(), (0, 0));

    let slots = world.stored(4, &[1, 2]).await;
    let begun = world.held.begun();
    let swap = world.swap(back(5, &[8, 9], &slots));
    world.held.until_begun(begun + 1).await;
    world.sidecar.fetches.fence([5; 16]);
    world.held.allow(1);
    world.fence(5).await;
    assert_eq!(swap.await.expect("it ends"), Err(expired("the swap was fenced")));
    // The slots are what they were: it can come back after all.
    world.held.allow(2);
    world
        .swap(back(6, &[8, 9], &slots))
        .await
        .expect("it ends")
        .expect("it is back");
}

#[tokio::test]
async fn a_copy_that_fails_fails_its_swap_alone() {
    let world = World::new(8);
    let slots = world.stored(2, &[1, 2]).await;
    lock(&world.held.0.0).failing = true;
    world.held.allow(1);
    let again = SwapRequest {
        slot_ids: slots.clone(),
        ..out(3, &[1, 2])
    };
    let failed = world.refused(again).await;
    assert_eq!(failed, CallError::Internal("KV on the device: the bus fell off".into()));
    lock(&world.held.0.0).failing = false;
    // The slots are the lease's still, and hold nothing.
    assert_eq!(world.swaps.counts(), (2, 0));
    let refused = world.refused(back(4, &[5, 6], &slots)).await;
    assert_eq!(
        refused.to_string(),
        "slot_ids: slot 0 holds nothing: no swap out to it came to its end"
    );
}

#[tokio::test]
async fn requests_that_cannot_be_are_refused_by_name() {
    let world = World::new(3);
    let slots = world.stored(2, &[1, 2]).await;
    world
        .sidecar
        .block_uses
        .begin_step(BlocksUsed {
            read: vec![],
            written: vec![6],
        })
        .expect("nobody has it");
    let terms = ExportTerms {
        lease_id: [8; 16],
        sequence_id: 1,
        token_count: 64,
        block_ids: vec![10],
        tenant_scope: [0; 16],
        expires_at_unix_ms: u64::MAX,
    };
    world.sidecar.exports.publish(terms).expect("published");
    let other = |request| SwapRequest {
        lease_id: vec![7; 16],
        ..request
    };
    let cases = [
        (SwapRequest::default(), "direction: is missing; use OUT or IN"),
        (out(3, &[]), "block_ids: is empty; name the blocks to copy"),
        (out(3, &[4, BLOCKS]), "block_ids: names block 12 of 12"),
        (out(3, &[4, 5, 4]), "block_ids: names 4 twice"),
        (back(3, &[4, 5], &slots[..1]), "slot_ids: has 1 slots for 2 blocks"),
        (back(3, &[4, 5], &[1, 1]), "slot_ids: names 1 twice"),
        (back(3, &[4, 5], &[1, 2]), "slot_ids: slot 2 is not one of this lease"),
        (other(back(3, &[4], &[0])), "slot_ids: slot 0 is not one of this lease"),
        (
            back(3, &[10], &[0]),
            "block 10 is open to pulls; release its lease first",
        ),
        (
            out(3, &[6]),
            "block 6 is written by a step that has not ended; wait for its answer",
        ),
        (
            other(out(3, &[4, 5])),
            "2 host slots are wanted and 1 of 3 are free; release slots, or start the sidecar with a larger --swap-bytes",
        ),
    ];
    for (request, message) in cases {
        assert_eq!(world.refused(request).await.to_string(), message);
    }
    assert_eq!((world.swaps.counts(), world.held.begun()), ((2, 0), 2));
    // None of them used its id up, or kept anything.
    world.held.allow(1);
    world
        .swap(other(out(3, &[5])))
        .await
        .expect("it ends")
        .expect("one slot is free");
}

#[tokio::test]
async fn without_swap_space_no_slot_is_free() {
    let uses = Arc::<BlockUses>::default();
    let swaps = Arc::new(Swaps::start(None, uses, &Arc::default()).expect("no threads"));
    swaps.begin_owner();
    let sidecar = World::new(1).sidecar;
    let refused = swaps.swap(&sidecar, out(2, &[1]), &Context::new()).await;
    assert!(matches!(refused, Err(CallError::Overloaded(_))), "{refused:?}");
}
