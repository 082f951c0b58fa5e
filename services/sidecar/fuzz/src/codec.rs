//! Chunks of KV from strangers, decoded by a codec with a small profile.

use std::cell::RefCell;
use std::sync::Arc;

use kvasir_codec::train::{LevelOptions, Sample, TrainOptions, train};
use kvasir_codec::{Chunk, ChunkRange, Codec, FirstToken, KvShapeOfModel, Prepared, ProfileId};
use kvasir_kernels::KvDtype;

const LAYERS: usize = 4;
const TOKENS: usize = 24;
const PREFIX_BYTES: usize = 8;

thread_local! {
    static CODEC: RefCell<Option<Codec>> = const { RefCell::new(None) };
}

fn shape() -> KvShapeOfModel {
    KvShapeOfModel {
        dtype: KvDtype::Bf16,
        layer_count: LAYERS,
        kv_head_count: 1,
        head_size: 16,
        inverse_frequencies: vec![1.0, 0.1, 0.01, 0.001],
        fingerprint: [0; 16],
    }
}

fn codec() -> Codec {
    let bytes = LAYERS * 2 * 16 * TOKENS;
    let packed = (0..bytes)
        .flat_map(|i| [(i * 37) as u8, 0x3f + (i % 3) as u8])
        .collect();
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
    let samples = [Sample { tokens: TOKENS, packed }];
    let profile = train(&shape(), "model".into(), "rope".into(), &samples, &options).expect("a profile");
    let prepared = Prepared::new(profile, ProfileId::default()).expect("a sound profile");
    Codec::new(shape(), Some(Arc::new(prepared))).expect("a codec")
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
