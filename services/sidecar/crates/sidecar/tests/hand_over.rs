//! A prompt's KV from one sidecar process to another: while it is computed, released, expired, cancelled, killed.

use crate::common::*;
use kvasir_sidecar::proto::common::ErrorReason;
use kvasir_sidecar::proto::kernel::{FetchRequest, ListSpansRequest, SequenceSlice, SequenceStart};
use kvasir_sidecar::proto::transfer::TicketClaims;

const SOURCE_BLOCKS: [u32; 8] = [3, 1, 7, 5, 0, 2, 6, 4];
const SINK_BLOCKS: [u32; 8] = [10, 17, 11, 16, 12, 15, 13, 14];
const LENGTH: u32 = 100;
/// Three whole blocks of 16.
const CHUNK: u32 = 48;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

/// The first chunk of prompt 1 as sequence 1.
async fn first_chunk(execution: &mut Execution) {
    let chunk = prompt(1, LENGTH)[..CHUNK as usize].to_vec();
    execution
        .step(vec![start(1, LENGTH, &SOURCE_BLOCKS)], vec![slice(1, 0, chunk)], vec![])
        .await
        .expect("a chunk");
}

/// The rest of it, and its first token.
async fn rest(execution: &mut Execution) -> u32 {
    let rest = prompt(1, LENGTH)[CHUNK as usize..].to_vec();
    let last = SequenceSlice {
        sample: true,
        ..slice(1, CHUNK, rest)
    };
    sampled(
        &execution
            .step(vec![], vec![last], vec![])
            .await
            .expect("the last chunk"),
    )
}

async fn idle(sidecar: &Sidecar) {
    until("no fetch and no pull runs", || async {
        let stats = sidecar.stats().await;
        stats.fetches_running == 0 && stats.pulls_running == 0
    })
    .await;
}

#[tokio::test]
async fn a_prompt_moves_while_it_is_computed_and_generates_the_same_tokens() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    // Published and fetched before the prompt's first step.
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let request = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
    let mut reports = sink
        .fetch(traced(request, &format!("00-{TRACE}-b7ad6b7169203331-01")))
        .await
        .expect("it begins");

    let mut prefill = source.execute().await;
    first_chunk(&mut prefill).await;
    assert!(!verified(&mut reports, CHUNK).await.complete);
    let first = rest(&mut prefill).await;
    // The last tokens may be in place before the source has said that they are the last.
    let last = outcome(reports).await.expect("a clean end");
    assert!(last.complete && last.verified_token_end == LENGTH);
    let bytes = u64::from(LENGTH) * u64::from(source.about.kv_bytes_per_token);
    assert_eq!(last.data_bytes, bytes);

    let mut decode = sink.execute().await;
    decode
        .step(vec![start(1, LENGTH, &SINK_BLOCKS)], vec![], vec![])
        .await
        .expect("it starts");
    let theirs = decode.decode(1, LENGTH, Some(first), 20).await;
    assert_eq!(prefill.decode(1, LENGTH, None, 20).await, theirs);

    idle(&source).await;
    idle(&sink).await;
    let (sent, received) = (source.stats().await, sink.stats().await);
    assert_eq!(
        (sent.prompt_tokens_computed, sent.decode_tokens_computed),
        (u64::from(LENGTH), 20)
    );
    assert_eq!(
        (received.prompt_tokens_computed, received.decode_tokens_computed),
        (0, 20)
    );
    assert_eq!((sent.kv_bytes_sent, received.kv_bytes_received), (bytes, bytes));
    assert_eq!((received.frames_refused, sent.steps, received.steps), (0, 22, 21));

    let spans = |sidecar: &Sidecar| {
        let mut kernel = sidecar.kernel.clone();
        async move {
            kernel
                .list_spans(ListSpansRequest { trace_id: TRACE.into() })
                .await
                .expect("spans")
                .into_inner()
                .spans
        }
    };
    let (pull, serve) = (spans(&sink).await, spans(&source).await);
    assert_eq!(
        (pull.len(), pull[0].name.as_str(), pull[0].parent_span_id.as_str()),
        (1, "kv.pull", "b7ad6b7169203331")
    );
    assert_eq!(
        (serve.len(), serve[0].name.as_str(), &serve[0].parent_span_id),
        (1, "kv.serve", &pull[0].span_id)
    );
    assert_eq!(pull[0].attributes["kvasir.bytes"], bytes.to_string());
}

#[tokio::test]
async fn a_release_in_mid_pull_ends_it() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let mut prefill = source.execute().await;
    first_chunk(&mut prefill).await;
    let request = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
    let mut reports = sink.fetch(request.clone()).await.expect("it begins");
    verified(&mut reports, CHUNK).await;
    source.release(1).await;
    assert_eq!(source.stats().await.exports_open, 0);
    assert_eq!(reason(&outcome(reports).await.unwrap_err()), ErrorReason::LeaseExpired);
    idle(&source).await;
    idle(&sink).await;
    // The ticket is still signed and in time; its lease is gone.
    let again = sink
        .fetch(FetchRequest {
            lease_id: vec![3; 16],
            ..request
        })
        .await
        .expect("it begins");
    assert_eq!(reason(&outcome(again).await.unwrap_err()), ErrorReason::LeaseExpired);
    // A release that is repeated, or of a lease that never was, answers.
    source.release(1).await;
    source.release(77).await;
}

#[tokio::test]
async fn a_lease_that_runs_out_ends_its_pull() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let ticket = source.publish_for(1, 1, LENGTH, &SOURCE_BLOCKS[..7], 700).await;
    let request = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
    let reports = sink.fetch(request.clone()).await.expect("it begins");
    assert_eq!(reason(&outcome(reports).await.unwrap_err()), ErrorReason::LeaseExpired);
    until("the export is gone", || async {
        source.stats().await.exports_open == 0
    })
    .await;
    let late = sink
        .fetch(FetchRequest {
            lease_id: vec![3; 16],
            ..request
        })
        .await
        .expect("it begins");
    assert_eq!(reason(&outcome(late).await.unwrap_err()), ErrorReason::LeaseExpired);
}

#[tokio::test]
async fn a_ticket_opens_only_what_it_says() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let granted = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let mut prefill = source.execute().await;
    first_chunk(&mut prefill).await;
    rest(&mut prefill).await;

    let claims = TicketClaims {
        lease_id: vec![1; 16],
        source_epoch: source.about.epoch,
        token_end: 64,
        expires_at_unix_ms: unix_ms() + 60_000,
        layout_fingerprint: source.fingerprint(),
        tenant_scope: SCOPE.to_vec(),
        ..TicketClaims::default()
    };
    let mut forged = granted.clone();
    forged.mac[31] ^= 1;
    let cases = [
        (forged, LENGTH, ErrorReason::LeaseExpired),
        (
            source.sign(&TicketClaims {
                source_epoch: 6,
                ..claims.clone()
            }),
            64,
            ErrorReason::StaleEpoch,
        ),
        (
            source.sign(&TicketClaims {
                expires_at_unix_ms: unix_ms() - 1,
                ..claims.clone()
            }),
            64,
            ErrorReason::LeaseExpired,
        ),
        (
            source.sign(&TicketClaims {
                lease_id: vec![5; 16],
                ..claims.clone()
            }),
            64,
            ErrorReason::LeaseExpired,
        ),
        (source.sign(&claims), 65, ErrorReason::InvalidRequest),
    ];
    for (index, (ticket, token_end, expected)) in cases.into_iter().enumerate() {
        let lease = 10 + index as u8;
        let request = fetch_request(source.source(), ticket, lease, token_end, &SINK_BLOCKS);
        let refused = outcome(sink.fetch(request).await.expect("it begins"))
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), expected, "case {index}: {refused}");
    }

    // Another tenant's receiver gets frames that it refuses.
    let request = fetch_request(source.source(), granted, 20, LENGTH, &SINK_BLOCKS);
    let other = FetchRequest {
        tenant_scope: vec![8; 16],
        ..request
    };
    assert_eq!(
        reason(&outcome(sink.fetch(other).await.expect("it begins")).await.unwrap_err()),
        ErrorReason::DigestMismatch
    );
    let stats = sink.stats().await;
    assert_eq!((stats.frames_refused, stats.kv_bytes_received), (1, 0));
}

#[tokio::test]
async fn a_source_that_is_killed_is_unavailable() {
    let model = model();
    let (mut source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let mut prefill = source.execute().await;
    first_chunk(&mut prefill).await;
    let request = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
    let mut reports = sink.fetch(request.clone()).await.expect("it begins");
    verified(&mut reports, CHUNK).await;
    source.process.kill().await.expect("killed");
    assert_eq!(reason(&outcome(reports).await.unwrap_err()), ErrorReason::Unavailable);
    idle(&sink).await;
    let again = sink
        .fetch(FetchRequest {
            lease_id: vec![3; 16],
            ..request
        })
        .await
        .expect("it begins");
    assert_eq!(reason(&outcome(again).await.unwrap_err()), ErrorReason::Unavailable);
    idle(&sink).await;
}

#[tokio::test]
async fn after_cancel_and_fence_the_blocks_are_the_worker_s_again() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let mut prefill = source.execute().await;
    first_chunk(&mut prefill).await;
    let request = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
    let mut reports = sink.fetch(request.clone()).await.expect("it begins");
    verified(&mut reports, CHUNK).await;
    drop(reports);
    sink.fence(2).await;

    // The same blocks hold another prompt at once, while the source goes on.
    let mut own = sink.execute().await;
    let last = SequenceSlice {
        sample: true,
        ..slice(5, 0, prompt(2, LENGTH))
    };
    let answer = own
        .step(vec![start(5, LENGTH, &SINK_BLOCKS)], vec![last], vec![])
        .await
        .expect("a prompt");
    rest(&mut prefill).await;
    let tokens = [vec![sampled(&answer)], own.decode(5, LENGTH, None, 12).await].concat();
    idle(&sink).await;
    idle(&source).await;

    let mut reference = source.execute_after(prefill).await;
    let last = SequenceSlice {
        sample: true,
        ..slice(5, 0, prompt(2, LENGTH))
    };
    let answer = reference
        .step(vec![start(5, LENGTH, &SOURCE_BLOCKS)], vec![last], vec![])
        .await
        .expect("a prompt");
    assert_eq!(
        tokens,
        [vec![sampled(&answer)], reference.decode(5, LENGTH, None, 12).await].concat()
    );

    let refused = sink
        .fetch(request)
        .await
        .map(drop)
        .expect_err("a fenced lease fetches nothing");
    assert_eq!(reason(&refused), ErrorReason::LeaseExpired);
}

#[tokio::test]
async fn a_fence_ends_a_fetch_that_waits() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let request = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
    let reports = sink.fetch(request).await.expect("it begins");
    until("the source serves", || async {
        source.stats().await.pulls_running == 1
    })
    .await;
    sink.fence(2).await;
    assert_eq!(reason(&outcome(reports).await.unwrap_err()), ErrorReason::LeaseExpired);
    idle(&sink).await;
    idle(&source).await;
}

#[tokio::test]
async fn pulls_of_several_prompts_run_side_by_side() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let mut prefill = source.execute().await;
    let blocks = |sequence: u64| -> Vec<u32> { (sequence as u32 * 8..sequence as u32 * 8 + 8).collect() };
    let mut fetches = Vec::new();
    for sequence in 0..4 {
        let ticket = source
            .publish(sequence as u8, sequence, LENGTH, &blocks(sequence)[..7])
            .await;
        // Block tables differ on the two sides.
        let request = fetch_request(source.source(), ticket, sequence as u8, LENGTH, &blocks(3 - sequence));
        fetches.push(tokio::spawn(outcome(sink.fetch(request).await.expect("it begins"))));
    }
    // All four prompts in each step, a part of each.
    let starts: Vec<SequenceStart> = (0..4)
        .map(|sequence| start(sequence, LENGTH, &blocks(sequence)))
        .collect();
    for (begin, end) in [(0, 20), (20, 70), (70, 100)] {
        let slices = (0..4).map(|sequence| SequenceSlice {
            sample: end == 100,
            ..slice(
                sequence,
                begin,
                prompt(sequence as u32, LENGTH)[begin as usize..end as usize].to_vec(),
            )
        });
        prefill
            .step(
                if begin == 0 { starts.clone() } else { vec![] },
                slices.collect(),
                vec![],
            )
            .await
            .expect("a chunk");
    }
    for fetch in fetches {
        assert!(soon(fetch).await.expect("no panic").expect("a whole prompt").complete);
    }
    let mut decode = sink.execute().await;
    let starts = (0..4)
        .map(|sequence| start(sequence, LENGTH, &blocks(3 - sequence)))
        .collect();
    decode.step(starts, vec![], vec![]).await.expect("they start");
    for sequence in 0..4 {
        assert_eq!(
            decode.decode(sequence, LENGTH, Some(5), 8).await,
            prefill.decode(sequence, LENGTH, Some(5), 8).await,
            "sequence {sequence}"
        );
    }
    assert_eq!(sink.stats().await.prompt_tokens_computed, 0);
}

#[tokio::test]
async fn exports_outlive_the_stream_that_computed_them() {
    let model = model();
    let (source, sink) = (Sidecar::start(model.path()).await, Sidecar::start(model.path()).await);
    let ticket = source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let mut prefill = source.execute().await;
    first_chunk(&mut prefill).await;
    rest(&mut prefill).await;
    drop(prefill);
    until("the engine forgot", || async { source.stats().await.sequences == 0 }).await;
    let request = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
    assert!(
        outcome(sink.fetch(request).await.expect("it begins"))
            .await
            .expect("a whole prompt")
            .complete
    );
    source.release(1).await;
    assert_eq!(source.stats().await.exports_open, 0);
}
