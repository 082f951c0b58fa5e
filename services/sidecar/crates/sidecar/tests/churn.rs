//! Many transfers, ended at random in every way there is. Nothing stays open, and what completed is right.

use crate::common::*;
use kvasir_engine::random::philox4x32;
use kvasir_sidecar::proto::kernel::{FetchRequest, SequenceSlice};

const LENGTH: u32 = 64;
const BLOCKS_EACH: u32 = 4;
const ROUNDS: u32 = 10;
const PARALLEL: u32 = 8;
const SEED: u32 = 20;

/// How one transfer ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Completes,
    ReceiverCancels,
    ReceiverFences,
    SourceReleases,
    LeaseLapses,
}

fn draw(round: u32, lane: u32, purpose: u32) -> u32 {
    philox4x32([round, lane, purpose, 0], [SEED, 0])[0]
}

fn end_of(round: u32, lane: u32) -> End {
    match draw(round, lane, 0) % 5 {
        0 => End::ReceiverCancels,
        1 => End::ReceiverFences,
        2 => End::SourceReleases,
        3 => End::LeaseLapses,
        _ => End::Completes,
    }
}

fn blocks(lane: u32) -> Vec<u32> {
    (lane * BLOCKS_EACH..(lane + 1) * BLOCKS_EACH).collect()
}

#[tokio::test]
async fn whatever_ends_a_transfer_nothing_is_left_of_it() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let mut prefill = source.execute().await;
    let mut completed = 0;
    let mut decode = sink.execute().await;
    for round in 0..ROUNDS {
        let lease = |lane: u32| (round * PARALLEL + lane) as u8;
        let sequence = |lane: u32| u64::from(round * PARALLEL + lane);
        let mut fetches = Vec::new();
        for lane in 0..PARALLEL {
            let life_ms = if matches!(end_of(round, lane), End::LeaseLapses) {
                30
            } else {
                3_600_000
            };
            let ticket = source
                .publish_for(lease(lane), sequence(lane), LENGTH, &blocks(lane), life_ms)
                .await;
            let request = fetch_request(source.source(), ticket, lease(lane), LENGTH, &blocks(lane));
            fetches.push(Some(
                sink.fetch(FetchRequest {
                    stall_timeout_ms: 60_000,
                    ..request
                })
                .await
                .expect("it begins"),
            ));
        }
        // Each prompt in two chunks of random sizes; in between, and at random before, what shall end ends.
        let cut = |lane: u32| 1 + draw(round, lane, 1) % (LENGTH - 1);
        let chunk = |lane: u32, begin: u32, end: u32| {
            slice(
                sequence(lane),
                begin,
                prompt(round * PARALLEL + lane, LENGTH)[begin as usize..end as usize].to_vec(),
            )
        };
        let starts = (0..PARALLEL)
            .map(|lane| start(sequence(lane), LENGTH, &blocks(lane)))
            .collect();
        let first = (0..PARALLEL).map(|lane| chunk(lane, 0, cut(lane))).collect();
        let old = (0..PARALLEL)
            .filter(|_| round > 0)
            .map(|lane| sequence(lane) - u64::from(PARALLEL))
            .collect();
        prefill.step(starts, first, old).await.expect("a chunk");
        for lane in 0..PARALLEL {
            match end_of(round, lane) {
                End::ReceiverCancels => fetches[lane as usize] = None,
                End::ReceiverFences => sink.fence(lease(lane)).await,
                End::SourceReleases => source.release(lease(lane)).await,
                End::Completes | End::LeaseLapses => {}
            }
        }
        let last = (0..PARALLEL)
            .map(|lane| SequenceSlice {
                sample: true,
                ..chunk(lane, cut(lane), LENGTH)
            })
            .collect();
        let answer = prefill.step(vec![], last, vec![]).await.expect("a chunk");

        for lane in 0..PARALLEL {
            let Some(fetch) = fetches[lane as usize].take() else {
                continue;
            };
            let outcome = outcome(fetch).await;
            if matches!(end_of(round, lane), End::Completes) {
                assert!(outcome.expect("a whole prompt").complete, "round {round}, lane {lane}");
                completed += 1;
                let first = answer.results[lane as usize].token.as_ref().expect("a token").token_id;
                let short = start(sequence(lane), LENGTH, &[blocks(lane), vec![32 + lane]].concat());
                decode.step(vec![short], vec![], vec![]).await.expect("it starts");
                let theirs = decode.decode(sequence(lane), LENGTH, Some(first), 4).await;
                let slices = |position, token_ids: Vec<u32>| SequenceSlice {
                    token_count: 1,
                    sample: true,
                    appended_block_ids: if position == LENGTH { vec![32 + lane] } else { vec![] },
                    ..slice(sequence(lane), position, token_ids)
                };
                for (index, token) in theirs.into_iter().enumerate() {
                    let own = prefill
                        .step(vec![], vec![slices(LENGTH + index as u32, vec![])], vec![])
                        .await;
                    assert_eq!(
                        sampled(&own.expect("a step")),
                        token,
                        "round {round}, lane {lane}, token {index}"
                    );
                }
                decode
                    .step(vec![], vec![], vec![sequence(lane)])
                    .await
                    .expect("forgotten");
            }
        }
        for lane in 0..PARALLEL {
            sink.fence(lease(lane)).await;
            source.release(lease(lane)).await;
        }
        // Every lease is answered for: the blocks are free for the next round.
        assert_eq!(source.stats().await.exports_open, 0, "round {round}");
    }
    until("all is quiet", || async {
        let (source, sink) = (source.stats().await, sink.stats().await);
        source.pulls_running == 0 && sink.fetches_running == 0
    })
    .await;
    assert!(completed > 5, "only {completed} were meant to complete");
    let (sent, received) = (source.stats().await, sink.stats().await);
    assert_eq!((received.prompt_tokens_computed, received.sequences), (0, 0));
    assert!(received.kv_bytes_received <= sent.kv_bytes_sent);
    assert!(received.kv_bytes_received >= completed * u64::from(LENGTH * source.about.kv_bytes_per_token));
}
