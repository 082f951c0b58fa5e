//! KV placed from one table of blocks into another, over the wire.

use crate::common::*;
use kvasir_sidecar::proto::common::ErrorReason;
use kvasir_sidecar::proto::kernel::{ExecuteRequest, KvPlacement, SequenceSlice};

const COMPUTED: [u32; 4] = [9, 2, 7, 1];
const PLACED: [u32; 4] = [30, 4, 11, 5];
const LENGTH: u32 = 40;

fn whole() -> KvPlacement {
    KvPlacement {
        source_block_ids: COMPUTED.to_vec(),
        source_start: 0,
        target_block_ids: PLACED.to_vec(),
        target_start: 0,
        token_count: LENGTH - 1,
        position_shift: 0,
    }
}

/// Sequence 2: all but its last token placed, that one computed.
fn continued(placement: KvPlacement) -> ExecuteRequest {
    let last = prompt(1, LENGTH)[LENGTH as usize - 1];
    ExecuteRequest {
        placements: vec![placement],
        starts: vec![start(2, LENGTH, &PLACED)],
        slices: vec![SequenceSlice {
            sample: true,
            ..slice(2, LENGTH - 1, vec![last])
        }],
        ..ExecuteRequest::default()
    }
}

async fn computed(sidecar: &Sidecar) -> (Execution, u32) {
    let mut stream = sidecar.execute().await;
    let first = SequenceSlice {
        sample: true,
        ..slice(1, 0, prompt(1, LENGTH))
    };
    let answer = stream
        .step(vec![start(1, LENGTH, &COMPUTED)], vec![first], vec![])
        .await;
    let token = sampled(&answer.expect("a prompt"));
    (stream, token)
}

#[tokio::test]
async fn a_sequence_goes_on_over_placed_kv_as_over_its_own() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let (mut stream, token) = computed(&sidecar).await;
    let answer = stream.send(continued(whole())).await.expect("a placement and a step");
    assert_eq!(sampled(&answer), token);
    let own = stream.decode(1, LENGTH, None, 12).await;
    assert_eq!(stream.decode(2, LENGTH, None, 12).await, own);
    let stats = sidecar.stats().await;
    // The second prompt cost one token.
    assert_eq!(stats.prompt_tokens_computed, u64::from(LENGTH) + 1);
}

#[tokio::test]
async fn keys_turned_the_wrong_way_show_and_turned_back_do_not() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let (mut stream, _) = computed(&sidecar).await;
    let moved = |source: &[u32], target: &[u32], position_shift| KvPlacement {
        source_block_ids: source.to_vec(),
        target_block_ids: target.to_vec(),
        position_shift,
        ..whole()
    };
    let away = ExecuteRequest {
        placements: vec![moved(&COMPUTED, &[20, 21, 22, 23], 17)],
        ..ExecuteRequest::default()
    };
    stream.send(away).await.expect("a step of a placement alone");
    let own = stream.decode(1, LENGTH, None, 12).await;
    stream
        .send(continued(moved(&[20, 21, 22, 23], &PLACED, 0)))
        .await
        .expect("turned keys");
    let turned = stream.decode(2, LENGTH, None, 12).await;
    stream.step(vec![], vec![], vec![2]).await.expect("forgotten");
    assert_ne!(turned, own);
    stream
        .send(continued(moved(&[20, 21, 22, 23], &PLACED, -17)))
        .await
        .expect("turned back");
    assert_eq!(stream.decode(2, LENGTH, None, 12).await, own);
}

#[tokio::test]
async fn placements_that_read_or_write_nowhere_are_refused() {
    let model = model();
    let sidecar = Sidecar::start(model.path()).await;
    let cases = [
        (
            "no tokens",
            KvPlacement {
                token_count: 0,
                ..whole()
            },
        ),
        (
            "a source too short",
            KvPlacement {
                source_start: 63,
                ..whole()
            },
        ),
        (
            "a target too short",
            KvPlacement {
                target_start: 1000,
                ..whole()
            },
        ),
        (
            "a block that is not there",
            KvPlacement {
                source_block_ids: vec![u32::MAX; 4],
                ..whole()
            },
        ),
        (
            "a count that overflows",
            KvPlacement {
                source_start: u32::MAX,
                token_count: u32::MAX,
                ..whole()
            },
        ),
    ];
    let (mut stream, _) = computed(&sidecar).await;
    for (name, placement) in cases {
        let refused = stream.send(continued(placement)).await.expect_err(name);
        assert_eq!(
            (refused.code(), reason(&refused)),
            (tonic::Code::InvalidArgument, ErrorReason::InvalidRequest),
            "{name}"
        );
        stream = sidecar.execute_after(stream).await;
    }
}
