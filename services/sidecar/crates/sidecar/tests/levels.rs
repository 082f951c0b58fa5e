//! KV that travels encoded between sidecar processes: every level, corrupted, cancelled, and refused where it cannot be had.

use std::process::Stdio;

use crate::common::*;
use crate::profiles::*;
use kvasir_sidecar::proto::common::ErrorReason;
use kvasir_sidecar::proto::kernel::{CodecProfile, FetchRequest, ListSpansRequest, SequenceSlice};
use kvasir_sidecar::proto::transfer::TokenLevel;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt;

const SOURCE_BLOCKS: [u32; 8] = [3, 1, 7, 5, 0, 2, 6, 4];
const SINK_BLOCKS: [u32; 8] = [10, 17, 11, 16, 12, 15, 13, 14];
const LENGTH: u32 = 100;
const TRACE: &str = "0af7651916cd43dd8448eb211c80319d";

/// Two sidecars of one model, both with a profile of it.
struct Pair {
    source: Sidecar,
    sink: Sidecar,
    own: CodecProfile,
    _model: TempDir,
}

impl Pair {
    async fn start() -> Self {
        let model = model();
        let path = codec_profile(model.path()).await;
        let flags = ["--codec-profile", path.to_str().expect("UTF-8")];
        let source = Sidecar::start_with(model.path(), &flags).await;
        let sink = Sidecar::start_with(model.path(), &flags).await;
        let own = source.about.codec_profiles[1].clone();
        Self {
            source,
            sink,
            own,
            _model: model,
        }
    }

    fn request(
        &self,
        ticket: kvasir_sidecar::proto::transfer::Ticket,
        lease: u8,
        levels: &[(u32, u32)],
    ) -> FetchRequest {
        FetchRequest {
            levels: token_levels(levels),
            codec_profile_id: self.own.id.clone(),
            ..fetch_request(self.source.source(), ticket, lease, LENGTH, &SINK_BLOCKS)
        }
    }
}

/// Computes prompt 1 in two chunks as sequence 1, and its first token.
async fn computed(prefill: &mut Execution) -> u32 {
    let tokens = prompt(1, LENGTH);
    let first = slice(1, 0, tokens[..48].to_vec());
    let starts = vec![start(1, LENGTH, &SOURCE_BLOCKS)];
    prefill.step(starts, vec![first], vec![]).await.expect("a chunk");
    let last = SequenceSlice {
        sample: true,
        ..slice(1, 48, tokens[48..].to_vec())
    };
    sampled(&prefill.step(vec![], vec![last], vec![]).await.expect("the last chunk"))
}

#[tokio::test]
async fn each_level_arrives_and_exact_ones_generate_the_same_tokens() {
    let pair = Pair::start().await;
    let (source, sink) = (&pair.source, &pair.sink);
    let names: Vec<&str> = pair.own.levels.iter().map(|level| level.name.as_str()).collect();
    assert_eq!(names, ["raw", "lossless", "quick", "small"]);
    assert!(
        pair.own
            .levels
            .iter()
            .all(|level| level.name == "raw" || level.decode_bytes_per_second > 1e6)
    );
    assert!(pair.own.levels[1].kl == 0.0 && pair.own.levels[3].kl > 0.0);
    // Published and fetched before the prompt is computed: frames are encoded as layers get ready.
    let cases: [&[(u32, u32)]; 6] = [
        &[],
        &[(100, 1)],
        &[(100, 2)],
        &[(100, 3)],
        &[(32, 1), (64, 3), (100, 2)],
        &[(48, 0), (100, 1)],
    ];
    let mut fetches = Vec::new();
    for (index, levels) in cases.iter().enumerate() {
        let lease = index as u8 + 1;
        let ticket = source.publish(lease, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
        let request = FetchRequest {
            block_ids: (0..7).map(|block| lease_block(lease, block)).collect(),
            ..pair.request(ticket, lease, levels)
        };
        let request = traced(request, &format!("00-{TRACE}-b7ad6b716920333{index}-01"));
        fetches.push(sink.fetch(request).await.expect("it begins"));
    }
    let mut prefill = source.execute().await;
    let first = computed(&mut prefill).await;
    let expected = prefill.decode(1, LENGTH, None, 12).await;
    let raw = u64::from(LENGTH) * u64::from(source.about.kv_bytes_per_token);
    let mut decode = sink.execute().await;
    for ((levels, reports), lease) in cases.iter().zip(fetches).zip(1u8..) {
        let last = outcome(reports).await.expect("a whole prompt");
        assert!(last.complete && raw_bytes(&last) == raw, "{levels:?}: {last:?}");
        let mut used: Vec<u32> = levels.iter().map(|(_, level)| *level).collect();
        used.sort_unstable();
        used.dedup();
        let came: Vec<u32> = last.levels.iter().map(|level| level.level).collect();
        assert_eq!(came, if used.is_empty() { vec![0] } else { used.clone() });
        for level in &last.levels {
            let is_coded = level.level > 0;
            assert_eq!(is_coded, level.encode_nanos > 0 && level.decode_nanos > 0, "{level:?}");
            assert_eq!(is_coded, level.wire_bytes != level.raw_bytes, "{level:?}");
        }
        let blocks: Vec<u32> = (0..8).map(|block| lease_block(lease, block)).collect();
        let begin = start(u64::from(lease), LENGTH, &blocks);
        decode.step(vec![begin], vec![], vec![]).await.expect("it starts");
        let tokens = decode.decode(u64::from(lease), LENGTH, Some(first), 12).await;
        if used.iter().all(|level| *level < 2) {
            assert_eq!(tokens, expected, "{levels:?}");
        }
    }
    let mut kernel = sink.kernel.clone();
    let spans = kernel
        .list_spans(ListSpansRequest { trace_id: TRACE.into() })
        .await
        .expect("spans")
        .into_inner()
        .spans;
    let mut named: Vec<&str> = spans
        .iter()
        .map(|span| span.attributes["kvasir.level"].as_str())
        .collect();
    named.sort_unstable();
    assert_eq!(
        named,
        [
            "lossless",
            "lossless,quick,small",
            "quick",
            "raw",
            "raw,lossless",
            "small"
        ]
    );
    assert!(
        spans
            .iter()
            .all(|span| span.attributes["kvasir.raw_bytes"] == raw.to_string())
    );
}

/// Where a lease's blocks lie in the sink.
fn lease_block(lease: u8, block: u32) -> u32 {
    u32::from(lease - 1) * 8 + block
}

#[tokio::test]
async fn a_level_that_one_side_cannot_have_is_refused_and_raw_and_lossless_go_on() {
    let model = model();
    let path = codec_profile(model.path()).await;
    let with = ["--codec-profile", path.to_str().expect("UTF-8")];
    let (source, sink) = (
        Sidecar::start(model.path()).await,
        Sidecar::start_with(model.path(), &with).await,
    );
    let pair = Pair {
        own: sink.about.codec_profiles[1].clone(),
        source,
        sink,
        _model: model,
    };
    let ticket = pair.source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    // The source has no such profile.
    let refused = outcome(
        pair.sink
            .fetch(pair.request(ticket.clone(), 2, &[(LENGTH, 2)]))
            .await
            .expect("it begins"),
    )
    .await;
    let refused = refused.unwrap_err();
    assert_eq!(reason(&refused), ErrorReason::CodecMismatch, "{refused}");
    // The sink has no such level, or the spans cannot be: nothing is asked of the source.
    for (levels, expected) in [
        (vec![(LENGTH, 9)], ErrorReason::CodecMismatch),
        (vec![(LENGTH, 300)], ErrorReason::InvalidRequest),
        (vec![(40, 1), (LENGTH, 1)], ErrorReason::InvalidRequest),
    ] {
        let refused = pair
            .sink
            .fetch(pair.request(ticket.clone(), 3, &levels))
            .await
            .map(drop)
            .unwrap_err();
        assert_eq!(reason(&refused), expected, "{refused}");
    }
    let mut prefill = pair.source.execute().await;
    let first = computed(&mut prefill).await;
    // What every sidecar has needs no file.
    let builtin = pair.source.about.codec_profiles[0].clone();
    assert_eq!(pair.sink.about.codec_profiles[0].id, builtin.id);
    let request = FetchRequest {
        codec_profile_id: builtin.id,
        ..pair.request(ticket, 4, &[(LENGTH, 1)])
    };
    let last = outcome(pair.sink.fetch(request).await.expect("it begins"))
        .await
        .expect("a whole prompt");
    assert!(last.complete && last.data_bytes < raw_bytes(&last), "{last:?}");
    let mut decode = pair.sink.execute().await;
    decode
        .step(vec![start(1, LENGTH, &SINK_BLOCKS)], vec![], vec![])
        .await
        .expect("it starts");
    let tokens = decode.decode(1, LENGTH, Some(first), 12).await;
    assert_eq!(tokens, prefill.decode(1, LENGTH, None, 12).await);
}

#[tokio::test]
async fn a_coded_fetch_that_is_cancelled_leaves_nothing_behind() {
    let pair = Pair::start().await;
    let ticket = pair.source.publish(1, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
    let mut prefill = pair.source.execute().await;
    let mut reports = pair
        .sink
        .fetch(pair.request(ticket, 2, &[(LENGTH, 3)]))
        .await
        .expect("it begins");
    let tokens = prompt(1, LENGTH);
    let begin = vec![start(1, LENGTH, &SOURCE_BLOCKS)];
    prefill
        .step(begin, vec![slice(1, 0, tokens[..48].to_vec())], vec![])
        .await
        .expect("a chunk");
    verified(&mut reports, 48).await;
    drop(reports);
    pair.sink.fence(2).await;
    pair.source.release(1).await;
    for sidecar in [&pair.source, &pair.sink] {
        until("no fetch and no pull runs", || async {
            let stats = sidecar.stats().await;
            stats.fetches_running == 0 && stats.pulls_running == 0 && stats.exports_open == 0
        })
        .await;
    }
}

#[tokio::test]
async fn sides_that_divide_heads_or_differ_in_type_get_raw_and_nothing_else() {
    let model = model();
    let source = Sidecar::start(model.path()).await;
    for (flags, is_exact) in [(["--shards", "2"], true), (["--kv-dtype", "bf16"], false)] {
        let sink = Sidecar::start_with(model.path(), &flags).await;
        let lease = 1 + u8::from(is_exact);
        let ticket = source.publish(lease, 1, LENGTH, &SOURCE_BLOCKS[..7]).await;
        let raw = fetch_request(source.source(), ticket, 2, LENGTH, &SINK_BLOCKS);
        let coded = FetchRequest {
            levels: vec![TokenLevel {
                token_end: LENGTH,
                level: 1,
            }],
            codec_profile_id: source.about.codec_profiles[0].id.clone(),
            ..raw.clone()
        };
        let refused = sink
            .fetch(coded)
            .await
            .map(drop)
            .expect_err("chunks are of whole layers");
        assert_eq!(reason(&refused), ErrorReason::CodecMismatch, "{refused}");
        let mut prefill = source.execute().await;
        computed(&mut prefill).await;
        let last = outcome(sink.fetch(raw).await.expect("it begins")).await;
        assert!(last.expect("a whole prompt").complete);
        drop(prefill);
        until("the engine forgot", || async { source.stats().await.sequences == 0 }).await;
    }
}

#[tokio::test]
async fn a_profile_of_other_kv_is_refused_and_one_beside_the_model_is_left_alone() {
    let model = model();
    let path = codec_profile(model.path()).await;
    std::fs::copy(&path, model.path().join("codec.kvcp")).expect("a copy");
    let found = Sidecar::start(model.path()).await;
    assert_eq!(found.about.codec_profiles.len(), 2);
    let other = Sidecar::start_with(model.path(), &["--kv-dtype", "bf16"]).await;
    assert_eq!(other.about.codec_profiles.len(), 1);
    let socket = model.path().join("s");
    let named = ["--kv-dtype", "bf16", "--codec-profile", path.to_str().expect("UTF-8")];
    let mut command = serve_command(model.path(), &socket, &named);
    let mut child = command
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("stdin");
    stdin.write_all(format!("{KEY_HEX}\n").as_bytes()).await.expect("a key");
    let ended = soon(child.wait_with_output()).await.expect("it ends");
    let said = String::from_utf8_lossy(&ended.stderr).into_owned();
    assert!(
        !ended.status.success() && said.contains("made from KV in F32, this is Bf16"),
        "{said}"
    );
}
