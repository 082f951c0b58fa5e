//! A source that sends frames it should not. The receiver refuses with a type, counts nothing, and leaves its pool as it was.

use std::sync::atomic::Ordering;

use crate::hostile::*;
use bytes::Bytes;
use kvasir_codec::{ChunkRange, LEVEL_LOSSLESS, ProfileId};
use kvasir_sidecar::chunk_coder::ChunkPlace;
use kvasir_sidecar::proto::common::ErrorReason;
use kvasir_sidecar::proto::kernel::FetchRequest;
use kvasir_sidecar::proto::transfer::{Frame, PullEnd, TokenLevel, pull_response::Kind};
use kvasir_sidecar::state::Sidecar;
use kvasir_sidecar::text_kv::scatter_text;

#[tokio::test]
async fn honest_messages_are_placed() {
    let sidecar = sidecar();
    let (first, second) = (frame(0, 16), frame(16, 4));
    let end = PullEnd {
        data_bytes: (first.data.len() + second.data.len()) as u64,
        frame_count: 2,
    };
    let messages = [
        Kind::Header(header()),
        Kind::Frame(first.clone()),
        Kind::Frame(second.clone()),
        Kind::End(end),
    ];
    let report = fetched(&sidecar, messages.map(message).to_vec(), Then::Ends)
        .await
        .expect("a whole prompt");
    assert!(report.complete && report.verified_token_end == TOKENS && report.data_bytes == end.data_bytes);
    // Its frames say that the source waited for nothing.
    assert!(report.transfer_nanos > 0);
    assert_eq!(block(&sidecar, BLOCKS[0]), first.data);
    let mut partial = Vec::new();
    sidecar.pool.shards()[0]
        .gather(BLOCKS[1], 0..4, 0..3, 0..2, &mut partial)
        .expect("a block");
    assert_eq!(partial, second.data);
    assert_eq!(block(&sidecar, 0), vec![0; block(&sidecar, 0).len()]);
    assert_eq!(sidecar.stats.kv_bytes_received.load(Ordering::Relaxed), end.data_bytes);
}

#[tokio::test]
async fn layers_and_blocks_may_come_in_any_order_that_keeps_each_blocks_layers() {
    let sidecar = sidecar();
    let whole = frame(0, 20);
    // Packed block after block, each [layer][K, V][head][token][element].
    let (first, second) = whole.data.split_at(16 * SHAPE.bytes_per_token());
    let layer = |block: &[u8], layers: std::ops::Range<usize>| {
        let bytes = block.len() / 3;
        block[layers.start * bytes..layers.end * bytes].to_vec()
    };
    let part = |token_begin, token_count, layer_begin, layer_count, data: Vec<u8>| {
        sealed(Frame {
            token_begin,
            token_count,
            layer_begin,
            layer_count,
            data: Bytes::from(data),
            ..frame(0, 16)
        })
    };
    let frames = [
        part(0, 20, 0, 1, [layer(first, 0..1), layer(second, 0..1)].concat()),
        part(16, 4, 1, 2, layer(second, 1..3)),
        part(0, 16, 1, 1, layer(first, 1..2)),
        part(0, 16, 2, 1, layer(first, 2..3)),
    ];
    let end = PullEnd {
        data_bytes: whole.data.len() as u64,
        frame_count: 4,
    };
    let kinds = [Kind::Header(header())]
        .into_iter()
        .chain(frames.map(Kind::Frame))
        .chain([Kind::End(end)]);
    let report = fetched(&sidecar, kinds.map(message).collect(), Then::Ends)
        .await
        .expect("a whole prompt");
    assert!(report.complete && report.verified_token_end == TOKENS);
    assert_eq!(block(&sidecar, BLOCKS[0]), first);
    let mut partial = Vec::new();
    sidecar.pool.shards()[0]
        .gather(BLOCKS[1], 0..4, 0..3, 0..2, &mut partial)
        .expect("a block");
    assert_eq!(partial, second);
}

#[tokio::test]
async fn a_first_frame_that_is_wrong_changes_nothing() {
    use ErrorReason::{DigestMismatch, LayoutMismatch};
    let good = || frame(0, 16);
    let mut altered = good().data.to_vec();
    altered[77] ^= 4;
    let altered = Bytes::from(altered);
    let cases: Vec<(&str, Frame, ErrorReason)> = vec![
        (
            "one bit of the data",
            Frame {
                data: altered,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "no digest",
            Frame {
                digest: vec![],
                ..good()
            },
            DigestMismatch,
        ),
        (
            "little endian",
            Frame {
                digest: good().digest.into_iter().rev().collect(),
                ..good()
            },
            DigestMismatch,
        ),
        (
            "another layout",
            Frame {
                layout_fingerprint: vec![4; 16],
                ..good()
            },
            LayoutMismatch,
        ),
        (
            "no layout",
            Frame {
                layout_fingerprint: vec![],
                ..good()
            },
            LayoutMismatch,
        ),
        (
            "another tenant",
            Frame {
                tenant_scope: vec![8; 16],
                ..good()
            },
            DigestMismatch,
        ),
        (
            "no tenant",
            Frame {
                tenant_scope: vec![],
                ..good()
            },
            DigestMismatch,
        ),
        ("a part of a block", frame(0, 15), DigestMismatch),
        ("a block and a part of the next", frame(0, 19), DigestMismatch),
        ("more than the range", frame(0, 21), DigestMismatch),
        (
            "no tokens",
            sealed(Frame {
                token_count: 0,
                data: Bytes::new(),
                ..good()
            }),
            DigestMismatch,
        ),
        (
            "endless tokens",
            Frame {
                token_count: u32::MAX,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "the last position there is",
            Frame {
                token_begin: u32::MAX - 15,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "the second layer first",
            Frame {
                layer_begin: 1,
                layer_count: 2,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "no layers",
            Frame {
                layer_count: 0,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "a layer too many",
            Frame {
                layer_count: 4,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "endless layers",
            Frame {
                layer_count: u32::MAX,
                ..good()
            },
            DigestMismatch,
        ),
        (
            "data too short",
            sealed(Frame {
                data: good().data.slice(1..),
                ..good()
            }),
            DigestMismatch,
        ),
        (
            "no data",
            sealed(Frame {
                data: Bytes::new(),
                ..good()
            }),
            DigestMismatch,
        ),
        ("an unknown level", Frame { level: 9, ..good() }, DigestMismatch),
    ];
    for (name, bad, expected) in cases {
        let sidecar = sidecar();
        let messages = vec![message(Kind::Header(header())), message(Kind::Frame(bad))];
        let error = fetched(&sidecar, messages, Then::HangsOpen).await.expect_err(name);
        assert_eq!(reason(&error), expected, "{name}: {error}");
        assert_eq!(sidecar.stats.frames_refused.load(Ordering::Relaxed), 1, "{name}");
        assert_eq!(sidecar.stats.kv_bytes_received.load(Ordering::Relaxed), 0, "{name}");
        for id in 0..sidecar.pool.block_count() {
            assert!(
                block(&sidecar, id).iter().all(|byte| *byte == 0),
                "{name}: block {id} was written"
            );
        }
    }
}

#[tokio::test]
async fn a_later_frame_that_is_wrong_leaves_only_what_was_verified() {
    let sidecar = sidecar();
    let bad = Frame {
        digest: vec![0; 16],
        ..frame(16, 4)
    };
    let messages = [Kind::Header(header()), Kind::Frame(frame(0, 16)), Kind::Frame(bad)];
    let error = fetched(&sidecar, messages.map(message).to_vec(), Then::HangsOpen)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), ErrorReason::DigestMismatch);
    assert_eq!(block(&sidecar, BLOCKS[0]), frame(0, 16).data);
    assert!(block(&sidecar, BLOCKS[1]).iter().all(|byte| *byte == 0));
    assert_eq!(
        sidecar.stats.kv_bytes_received.load(Ordering::Relaxed),
        frame(0, 16).data.len() as u64
    );
}

/// A lossless frame of all tokens, whose elements are those of [`frame`], and the request for it.
async fn lossless(sidecar: &Sidecar) -> (Frame, impl Fn(String) -> FetchRequest + use<>) {
    let profile_id = sidecar.coders.describe()[0].id.clone();
    let mut profile = ProfileId::default();
    profile.0.copy_from_slice(&profile_id);
    let range = ChunkRange {
        token_begin: 0,
        token_count: TOKENS,
        layers: 0..3,
    };
    // By way of blocks that no fetch writes to.
    let packed = frame(0, TOKENS).data;
    scatter_text(&sidecar.pool, &[3, 4], TOKENS as usize, 0..3, &packed).expect("it fits");
    let mut coding = sidecar.coders.take(profile).await.expect("a coder");
    let pieces = vec![(3, 0..16), (4, 0..TOKENS - 16)];
    coding.read(&[ChunkPlace { range, pieces }]).expect("blocks");
    let encoded = coding.encode(LEVEL_LOSSLESS).await.expect("encoded").remove(0);
    let coded = sealed(Frame {
        level: LEVEL_LOSSLESS.into(),
        data: encoded.data,
        elements_digest: encoded.elements_digest,
        ..frame(0, TOKENS)
    });
    let asking = move |address| FetchRequest {
        levels: vec![TokenLevel {
            token_end: TOKENS,
            level: LEVEL_LOSSLESS.into(),
        }],
        codec_profile_id: profile_id.clone(),
        ..request(address)
    };
    (coded, asking)
}

#[tokio::test]
async fn a_coded_frame_that_is_wrong_changes_nothing_and_a_good_one_is_placed() {
    let sidecar = sidecar();
    let (good, asking) = lossless(&sidecar).await;
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut data = good.data.to_vec();
        change(&mut data);
        Bytes::from(data)
    };
    let of = |data: Bytes| Frame { data, ..good.clone() };
    let cases: Vec<(&str, Frame)> = vec![
        ("one bit on its way", of(changed(&|data| data[90] ^= 4))),
        (
            "one bit before it was sealed",
            sealed(of(changed(&|data| data[90] ^= 4))),
        ),
        ("a header that claims more", sealed(of(changed(&|data| data[44] ^= 4)))),
        ("no chunk", sealed(of(Bytes::from_static(b"KVCD")))),
        ("two chunks", sealed(of(changed(&|data| data.extend_from_within(..))))),
        (
            "fewer tokens than its chunk",
            Frame {
                token_count: 16,
                ..good.clone()
            },
        ),
        (
            "elements of another frame",
            Frame {
                elements_digest: vec![7; 16],
                ..good.clone()
            },
        ),
        (
            "a level that nobody asked for",
            Frame {
                level: 2,
                ..good.clone()
            },
        ),
        (
            "a level that cannot be",
            Frame {
                level: 700,
                ..good.clone()
            },
        ),
        ("raw, which was not asked for", frame(0, TOKENS)),
    ];
    let untouched = vec![0; SHAPE.bytes_per_token() * 16];
    for (what, wrong) in cases {
        let messages = [Kind::Header(header()), Kind::Frame(wrong)].map(message).to_vec();
        let refused = fetched_as(&sidecar, messages, Then::Ends, &asking).await.unwrap_err();
        assert_eq!(reason(&refused), ErrorReason::DigestMismatch, "{what}: {refused}");
        assert_eq!(block(&sidecar, BLOCKS[0]), untouched, "{what}");
    }
    let end = PullEnd {
        data_bytes: good.data.len() as u64,
        frame_count: 1,
    };
    let messages = [Kind::Header(header()), Kind::Frame(good), Kind::End(end)].map(message);
    let last = fetched_as(&sidecar, messages.to_vec(), Then::Ends, &asking)
        .await
        .expect("a whole prompt");
    assert!(last.complete && last.levels[0].level == 1);
    // The elements were packed as one text, so block 0 holds the first 16 tokens of each head.
    let run = SHAPE.head_size * SHAPE.dtype.byte_size();
    let text = frame(0, TOKENS).data;
    let heads = text.chunks_exact(TOKENS as usize * run);
    let expected: Vec<u8> = heads.flat_map(|head| &head[..16 * run]).copied().collect();
    assert_eq!(block(&sidecar, BLOCKS[0]), expected);
}
