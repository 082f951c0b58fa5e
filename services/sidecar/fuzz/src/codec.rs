//! Chunks of KV from strangers, decoded by a codec with a small profile.

use std::cell::RefCell;
use std::sync::Arc;

use kvasir_codec::train::{LevelOptions, Sample, TrainOptions, train};
use kvasir_codec::{Chunk, ChunkRange, Codec, FirstToken, KvShapeOfModel, Prepared, ProfileId};
use kvasir_kernels::KvDtype;

const LAYERS: usize = 4;
const HEAD_SIZE: usize = 16;
const TOKENS: usize = 24;
const LEVELS: u8 = 4;
const PREFIX_BYTES: usize = 8;

thread_local! {
    static CODEC: RefCell<Option<Codec>> = const { RefCell::new(None) };
}

fn shape() -> KvShapeOfModel {
    KvShapeOfModel {
        dtype: KvDtype::Bf16,
        layer_count: LAYERS,
        kv_head_count: 1,
        head_size: HEAD_SIZE,
        inverse_frequencies: vec![1.0, 0.1, 0.01, 0.001],
        fingerprint: [0; 16],
    }
}

/// KV of one text.
fn text() -> Vec<u8> {
    let elements = LAYERS * 2 * HEAD_SIZE * TOKENS;
    (0..elements)
        .flat_map(|i| [(i * 37) as u8, 0x3f + (i % 3) as u8])
        .collect()
}

fn codec() -> Codec {
    let level = |name: &str, rotated| LevelOptions {
        name: name.into(),
        rotated,
        step: 0.3,
        bit_price: 0.1,
    };
    let options = TrainOptions {
        layers: 2,
        weights: vec![[1.0; 2]; LAYERS],
        levels: vec![level("fast", false), level("dense", true)],
        threads: 1,
    };
    let samples = [Sample {
        tokens: TOKENS,
        packed: text(),
    }];
    let profile = train(&shape(), "model".into(), "rope".into(), &samples, &options).expect("a profile");
    let prepared = Prepared::new(profile, ProfileId::default()).expect("a sound profile");
    Codec::new(shape(), Some(Arc::new(prepared))).expect("a codec")
}

/// Sound inputs of [`decode_chunk`], by name: chunks of every level, of whole texts and of what follows a text's first tokens, whole and as
/// claims with a payload.
pub fn chunk_seeds() -> Vec<(String, Vec<u8>)> {
    let mut codec = codec();
    let packed = text();
    let mut seeds = Vec::new();
    for (level, token_begin) in (0..LEVELS).flat_map(|level| [(level, 0), (level, 32)]) {
        let range = ChunkRange {
            token_begin,
            token_count: TOKENS as u32,
            layers: 0..LAYERS as u16,
        };
        let mut sealed = Vec::new();
        codec.encode(level, &range, &packed, &mut sealed).expect("a chunk");
        let (chunk, _) = Chunk::read(&sealed).expect("what was written");
        let first_token = match chunk.first_token {
            FirstToken::Absent => 0,
            FirstToken::Profile => 1,
            FirstToken::Stored => 2,
        };
        let mut claimed = vec![
            level,
            first_token,
            TOKENS as u8,
            0,
            LAYERS as u8,
            token_begin as u8,
            0,
            0,
        ];
        claimed.extend_from_slice(chunk.payload);
        seeds.push((format!("level-{level}-from-{token_begin}-payload"), claimed));
        seeds.push((format!("level-{level}-from-{token_begin}"), sealed));
    }
    seeds
}

/// Reads the bytes as a chunk, and decodes them as the payload of one: the first eight say what it claims to be, since a checksum would refuse
/// nearly all that a fuzzer makes.
pub fn decode_chunk(bytes: &[u8]) {
    let _ = Chunk::read(bytes);
    let Some((claims, payload)) = bytes.split_at_checked(PREFIX_BYTES) else {
        return;
    };
    let layer = u16::from(claims[3]);
    let chunk = Chunk {
        level: claims[0] % 6,
        first_token: [FirstToken::Absent, FirstToken::Profile, FirstToken::Stored][usize::from(claims[1] % 3)],
        profile: ProfileId::default(),
        fingerprint: [0; 16],
        range: ChunkRange {
            token_begin: u32::from(claims[5]),
            token_count: u32::from(claims[2]),
            layers: layer..layer.saturating_add(u16::from(claims[4])),
        },
        payload,
    };
    CODEC.with_borrow_mut(|own| {
        let mut packed = Vec::new();
        let _ = own.get_or_insert_with(codec).decode(&chunk, &mut packed);
        assert!(packed.capacity() < 1 << 20, "memory beyond what the range takes");
    });
}
