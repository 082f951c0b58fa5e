//! Blocks swapped to the host and back, over the wire, while steps run.

use crate::common::*;
use kvasir_sidecar::proto::common::{ErrorReason, SamplingParams};
use kvasir_sidecar::proto::kernel::{SequenceSlice, SequenceStart, SwapRequest};

const LENGTH: u32 = 40;
/// The last one holds 8 tokens of 16, and then what is generated.
const HOME: [u32; 3] = [9, 10, 4];
const ELSEWHERE: [u32; 5] = [30, 31, 12, 20, 21];
/// Of another sequence that runs all the time.
const OTHERS: [u32; 5] = [40, 41, 42, 43, 44];
/// Pool and slots of the tests that look at swaps under way: some of the pieces between which a swap looks whether it should stop.
const LARGE: [&str; 4] = ["--kv-bytes", "160MiB", "--swap-bytes", "144MiB"];

/// A token and its log-probabilities, whose bits tell any difference in KV.
type Chosen = (u32, Vec<(u32, u32)>);

fn telling(sequence_id: u64, prompt_token_count: u32, blocks: &[u32]) -> SequenceStart {
    let sampling = SamplingParams {
        max_tokens: 200,
        logprobs: true,
        top_logprobs: 8,
        ..SamplingParams::default()
    };
    SequenceStart {
        sampling: Some(sampling),
        ..start(sequence_id, prompt_token_count, blocks)
    }
}

async fn say(stream: &mut Execution, starts: Vec<SequenceStart>, slice: SequenceSlice) -> Chosen {
    let slice = SequenceSlice { sample: true, ..slice };
    let answer = stream.step(starts, vec![slice], vec![]).await.expect("a step");
    let token = answer.results[0].token.as_ref().expect("a sampled token");
    let tops = token
        .top_logprobs
        .iter()
        .map(|top| (top.token_id, top.logprob.to_bits()));
    (token.token_id, tops.collect())
}

/// A prompt, and so many tokens after it.
async fn begin(stream: &mut Execution, sequence_id: u64, blocks: &[u32], count: u32) -> Vec<Chosen> {
    let tokens = prompt(sequence_id as u32, LENGTH);
    let started = vec![telling(sequence_id, LENGTH, blocks)];
    let mut all = vec![say(stream, started, slice(sequence_id, 0, tokens)).await];
    for position in LENGTH..LENGTH + count {
        all.push(go_on(stream, sequence_id, position).await);
    }
    all
}

async fn go_on(stream: &mut Execution, sequence_id: u64, position: u32) -> Chosen {
    let slice = SequenceSlice {
        token_count: 1,
        ..slice(sequence_id, position, vec![])
    };
    say(stream, vec![], slice).await
}

#[tokio::test]
async fn a_sequence_that_was_away_goes_on_with_the_same_tokens() {
    let model = model();
    for flags in [&[][..], &["--shards", "2"]] {
        let flags = [&["--swap-bytes", "256KiB"], flags].concat();
        let sidecar = Sidecar::start_with(model.path(), &flags).await;
        assert!(sidecar.about.slot_count > 4, "{}", sidecar.about.slot_count);
        let mut stream = sidecar.execute().await;
        // One that stays, and says what the other will have to say.
        let expected = begin(&mut stream, 1, &OTHERS, 16).await;
        stream.step(vec![], vec![], vec![1]).await.expect("forgotten");
        let before = begin(&mut stream, 1, &HOME, 3).await;
        assert_eq!(before, expected[..4]);
        let gone = sidecar.swap(swap_out(1, &HOME)).await.expect("swapped out");
        // Two blocks that follow each other are one copy.
        let block_bytes = u64::from(16 * sidecar.about.kv_bytes_per_token);
        assert_eq!((gone.group_count, gone.data_bytes), (2, 3 * block_bytes));
        stream.step(vec![], vec![], vec![1]).await.expect("forgotten");
        begin(&mut stream, 2, &HOME, 7).await;
        let back = sidecar
            .swap(swap_in(2, &gone.slot_ids, &ELSEWHERE[..3]))
            .await
            .expect("swapped in");
        assert_eq!(back.slot_ids, gone.slot_ids);
        // Everything that it had said is in the pool, as if it were prompt.
        let said = LENGTH + 3;
        let mut after = vec![
            say(
                &mut stream,
                vec![telling(3, said, &ELSEWHERE)],
                slice(3, said, vec![before[3].0]),
            )
            .await,
        ];
        for position in said + 1..LENGTH + 16 {
            after.push(go_on(&mut stream, 3, position).await);
        }
        assert_eq!(after, expected[4..], "{flags:?}");
        let stats = sidecar.stats().await;
        assert_eq!((stats.slots_used, stats.swaps_running), (3, 0));
        assert_eq!(
            (stats.kv_bytes_swapped_out, stats.kv_bytes_swapped_in),
            (3 * block_bytes, 3 * block_bytes)
        );
        sidecar.release(77).await;
        assert_eq!(sidecar.stats().await.slots_used, 0);
    }
}

/// Blocks from 48 on: most of a large pool.
fn many(sidecar: &Sidecar) -> Vec<u32> {
    (48..48 + sidecar.about.slot_count - 8).collect()
}

/// Begins a swap without waiting for it.
fn begin_swap(sidecar: &Sidecar, request: SwapRequest) -> tokio::task::JoinHandle<Result<(), tonic::Status>> {
    let mut kernel = sidecar.kernel.clone();
    tokio::spawn(async move { kernel.swap(request).await.map(|_| ()) })
}

#[tokio::test]
async fn steps_go_on_during_a_swap_and_one_that_needs_its_blocks_waits() {
    let model = model();
    let sidecar = Sidecar::start_with(model.path(), &LARGE).await;
    let mut stream = sidecar.execute().await;
    let expected = begin(&mut stream, 1, &OTHERS, 16).await;
    stream.step(vec![], vec![], vec![1]).await.expect("forgotten");
    begin(&mut stream, 1, &HOME, 0).await;
    begin(&mut stream, 2, &OTHERS, 0).await;
    // Large, and the sequence's blocks last.
    let far = many(&sidecar);
    let gone = sidecar
        .swap(swap_out(1, &[&far[..], &HOME].concat()))
        .await
        .expect("swapped out");
    let (mut position, mut swap) = (LENGTH, 1);
    let (mut went_on, mut waited) = (false, false);
    let trying = async {
        while !(went_on && waited) {
            swap += 1;
            stream.step(vec![], vec![], vec![1, 3]).await.expect("forgotten");
            begin(&mut stream, 1, &ELSEWHERE, 5).await;
            stream.step(vec![], vec![], vec![1]).await.expect("forgotten");
            let filled = [&far[..], &ELSEWHERE[..3]].concat();
            let coming = begin_swap(&sidecar, swap_in(swap, &gone.slot_ids, &filled));
            let admitted = async || sidecar.stats().await.swaps_running == 1 || coming.is_finished();
            until("the swap is known", admitted).await;
            if position < LENGTH + 30 {
                go_on(&mut stream, 2, position).await;
                position += 1;
                went_on |= sidecar.stats().await.swaps_running == 1;
            }
            let is_running = sidecar.stats().await.swaps_running == 1;
            let last = slice(3, LENGTH - 1, vec![prompt(1, LENGTH)[LENGTH as usize - 1]]);
            let first = say(&mut stream, vec![telling(3, LENGTH, &ELSEWHERE)], last).await;
            // A step that was answered found its blocks filled, so the swap is over.
            assert_eq!(sidecar.stats().await.swaps_running, 0);
            assert_eq!(first, expected[0]);
            waited |= is_running;
            coming.await.expect("it ends").expect("swapped in");
        }
    };
    tokio::time::timeout(PATIENCE, trying)
        .await
        .expect("no swap lasts as long as a step");
}

#[tokio::test]
async fn a_swap_that_is_cancelled_midway_leaves_blocks_and_slots_free() {
    let model = model();
    let sidecar = Sidecar::start_with(model.path(), &LARGE).await;
    let mut stream = sidecar.execute().await;
    let expected = begin(&mut stream, 1, &HOME, 0).await;
    let far = many(&sidecar);
    let whole = far.len() as u64 * u64::from(16 * sidecar.about.kv_bytes_per_token);
    let mut swap = 0;
    let trying = async {
        loop {
            swap += 1;
            let before = sidecar.stats().await.kv_bytes_swapped_out;
            let going = begin_swap(&sidecar, swap_out(swap, &far));
            let admitted = async || sidecar.stats().await.swaps_running == 1 || going.is_finished();
            until("the swap is known", admitted).await;
            going.abort();
            sidecar.fence(swap).await;
            let stats = sidecar.stats().await;
            assert_eq!(stats.swaps_running, 0);
            let copied = stats.kv_bytes_swapped_out - before;
            if copied < whole {
                assert_eq!(stats.slots_used, 0, "{copied} of {whole} bytes");
                return;
            }
            sidecar.release(77).await;
        }
    };
    tokio::time::timeout(PATIENCE, trying)
        .await
        .expect("every swap was over before it was cancelled");
    let refused = sidecar.swap(swap_out(swap, &far[..1])).await.expect_err("it is over");
    assert_eq!(reason(&refused), ErrorReason::LeaseExpired);
    // Blocks and slots are as good as new.
    let gone = sidecar
        .swap(swap_out(200, &[&far[3..], &HOME].concat()))
        .await
        .expect("swapped out");
    let slots = &gone.slot_ids[far.len() - 3..];
    sidecar.swap(swap_in(201, slots, &far[..3])).await.expect("swapped in");
    let last = slice(3, LENGTH - 1, vec![prompt(1, LENGTH)[LENGTH as usize - 1]]);
    let first = say(&mut stream, vec![telling(3, LENGTH, &far[..3])], last).await;
    assert_eq!(first, expected[0]);
}

#[tokio::test]
async fn slots_of_an_owner_that_is_gone_are_free() {
    let model = model();
    let mut sidecar = Sidecar::start_with(model.path(), &LARGE).await;
    let without = sidecar.swap(swap_out(1, &HOME)).await.expect_err("nobody owns slots");
    assert_eq!(
        (without.code(), reason(&without)),
        (tonic::Code::FailedPrecondition, ErrorReason::Unavailable)
    );

    // The owner has a connection of its own, which is cut while a swap runs.
    let uri = format!("unix://{}", sidecar.socket.display());
    let watching = sidecar.kernel.clone();
    let owned = tonic::transport::Endpoint::from_shared(uri)
        .expect("a path")
        .connect()
        .await
        .expect("it listens");
    sidecar.kernel = kvasir_sidecar::proto::kernel::kernel_service_client::KernelServiceClient::new(owned);
    let mut stream = sidecar.execute().await;
    begin(&mut stream, 1, &HOME, 0).await;
    sidecar.swap(swap_out(2, &HOME)).await.expect("swapped out");
    let far = many(&sidecar);
    let going = begin_swap(
        &sidecar,
        SwapRequest {
            lease_id: vec![5; 16],
            ..swap_out(3, &far)
        },
    );
    until("the swap is known", async || {
        sidecar.stats().await.swaps_running == 1 || going.is_finished()
    })
    .await;
    sidecar.kernel = watching;
    going.abort();
    let mut stream = sidecar.execute_after(stream).await;
    // The next owner finds all slots free, and none that it could name.
    let stats = sidecar.stats().await;
    assert_eq!((stats.slots_used, stats.swaps_running), (0, 0));
    begin(&mut stream, 1, &HOME, 0).await;
    let refused = sidecar.swap(swap_in(4, &[0], &[20])).await.expect_err("not its slot");
    assert_eq!(reason(&refused), ErrorReason::InvalidRequest);
    let gone = sidecar.swap(swap_out(5, &far)).await.expect("swapped out");
    assert_eq!(gone.group_count, 5);
}
