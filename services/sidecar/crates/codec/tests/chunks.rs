//! Chunks of a small made-up model: what comes back, what strangers' bytes do, and that instruction sets agree.

use std::sync::{Arc, LazyLock};

use kvasir_codec::train::{LevelOptions, Sample, TrainOptions, train};
use kvasir_codec::{
    Chunk, ChunkRange, Codec, CodecError, FirstToken, KvShapeOfModel, LEVEL_LOSSLESS, LEVEL_RAW, Prepared, Profile,
};
use kvasir_kernels::{Isa, KeyTurns, KvDtype, PackedShape, columns_from_packed, packed_from_columns};
use proptest::prelude::*;

const LAYERS: usize = 5;

fn shape(dtype: KvDtype) -> KvShapeOfModel {
    KvShapeOfModel {
        dtype,
        layer_count: LAYERS,
        kv_head_count: 2,
        head_size: 16,
        inverse_frequencies: vec![1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 0.001, 0.0003],
        fingerprint: [7; 16],
    }
}

fn packed_shape(shape: &KvShapeOfModel, layers: usize, tokens: usize) -> PackedShape {
    let KvShapeOfModel {
        dtype,
        kv_head_count: kv_heads,
        head_size,
        ..
    } = *shape;
    PackedShape {
        dtype,
        layers,
        kv_heads,
        head_size,
        tokens,
    }
}

/// KV of few causes: every channel is a mix of the same six numbers of its token, and a little noise. Every text has the same first token.
fn text(shape: &KvShapeOfModel, seed: u64, tokens: usize) -> Sample {
    let packed_shape = packed_shape(shape, LAYERS, tokens);
    let mut state = seed * 2 + 1;
    let mut draw = move || {
        state = state
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    let width = packed_shape.width();
    let mut rows: Vec<f32> = (0..width).map(|channel| 10.0 * (channel as f32 * 0.9).cos()).collect();
    for _ in 1..tokens {
        let causes: Vec<f32> = (0..6).map(|_| draw() + draw()).collect();
        rows.extend((0..width).map(|channel| {
            let mixed = causes
                .iter()
                .enumerate()
                .map(|(i, cause)| cause * ((channel * (i + 3)) as f32 * 0.7).sin())
                .sum::<f32>();
            mixed * (1.0 + (channel % 7) as f32) + 0.1 * draw() + (channel % 5) as f32
        }));
    }
    let mut columns = vec![0.0; width * packed_shape.stride()];
    for (token, row) in rows.chunks_exact(width).enumerate() {
        for (column, value) in columns.chunks_exact_mut(packed_shape.stride()).zip(row) {
            column[token] = *value;
        }
    }
    let (mut turns, mut packed) = (KeyTurns::default(), vec![0; packed_shape.byte_len()]);
    turns.fill(&shape.inverse_frequencies, 0, tokens);
    packed_from_columns(Isa::detect(), &packed_shape, &turns, &columns, &mut packed).unwrap();
    Sample { tokens, packed }
}

fn level(name: &str, rotated: bool, step: f32) -> LevelOptions {
    LevelOptions {
        name: name.into(),
        rotated,
        step,
        bit_price: 0.1,
    }
}

fn prepared(dtype: KvDtype) -> Arc<Prepared> {
    let shape = shape(dtype);
    let samples: Vec<Sample> = (0..6).map(|seed| text(&shape, seed, 200)).collect();
    let options = TrainOptions {
        layers: 2,
        weights: vec![[1.0, 1.0]; LAYERS],
        levels: vec![level("fast", false, 0.1), level("dense", true, 0.15)],
        threads: 2,
    };
    let profile = train(&shape, "model".into(), "rope".into(), &samples, &options).unwrap();
    let bytes = profile.to_bytes();
    let (read, id) = Profile::from_bytes(&bytes).unwrap();
    assert_eq!(read, profile);
    Arc::new(Prepared::new(read, id).unwrap())
}

static BF16: LazyLock<Arc<Prepared>> = LazyLock::new(|| prepared(KvDtype::Bf16));

fn codec(dtype: KvDtype) -> Codec {
    let prepared = if dtype == KvDtype::Bf16 {
        BF16.clone()
    } else {
        prepared(dtype)
    };
    Codec::new(shape(dtype), Some(prepared)).unwrap()
}

/// Part of a text, as [`ChunkRange`] says.
fn part(shape: &KvShapeOfModel, text: &Sample, range: &ChunkRange) -> Vec<u8> {
    let run = shape.head_size * shape.dtype.byte_size();
    let heads = 2 * shape.kv_head_count;
    let all: Vec<&[u8]> = text.packed.chunks_exact(text.tokens * run).collect();
    let (begin, end) = (
        range.token_begin as usize,
        (range.token_begin + range.token_count) as usize,
    );
    let own = &all[usize::from(range.layers.start) * heads..usize::from(range.layers.end) * heads];
    own.iter()
        .flat_map(|head| &head[begin * run..end * run])
        .copied()
        .collect()
}

fn range(token_begin: u32, token_count: u32, layers: std::ops::Range<u16>) -> ChunkRange {
    ChunkRange {
        token_begin,
        token_count,
        layers,
    }
}

/// Mean square of the difference over that of the numbers themselves.
fn relative_error(shape: &KvShapeOfModel, range: &ChunkRange, a: &[u8], b: &[u8]) -> f32 {
    let packed_shape = packed_shape(shape, range.layers.len(), range.token_count as usize);
    let mut turns = KeyTurns::default();
    turns.fill(&[], 0, packed_shape.tokens);
    let columns = |packed: &[u8]| {
        let mut columns = vec![0.0; packed_shape.width() * packed_shape.stride()];
        columns_from_packed(Isa::detect(), &packed_shape, &turns, packed, &mut columns).unwrap();
        columns
    };
    let (a, b) = (columns(a), columns(b));
    let squares = |values: &mut dyn Iterator<Item = f32>| values.map(|x| x * x).sum::<f32>();
    squares(&mut a.iter().zip(&b).map(|(x, y)| x - y)) / squares(&mut a.iter().copied())
}

#[test]
fn exact_levels_give_every_bit_back_and_lossy_ones_nearly() {
    for dtype in [KvDtype::Bf16, KvDtype::F16, KvDtype::F32] {
        let (shape, mut codec) = (shape(dtype), codec(dtype));
        let text = text(&shape, 99, 150);
        for range in [
            range(0, 64, 0..5),
            range(64, 86, 0..5),
            range(3, 1, 2..4),
            range(100, 33, 4..5),
        ] {
            let packed = part(&shape, &text, &range);
            for level in 0..codec.level_count() {
                let (mut coded, mut back) = (Vec::new(), Vec::new());
                codec.encode(level, &range, &packed, &mut coded).unwrap();
                let (chunk, rest) = Chunk::read(&coded).unwrap();
                assert!(rest.is_empty() && chunk.range == range && chunk.level == level);
                codec.decode(&chunk, &mut back).unwrap();
                if level == LEVEL_RAW || level == LEVEL_LOSSLESS {
                    assert_eq!(back, packed);
                } else {
                    let error = relative_error(&shape, &range, &packed, &back);
                    assert!(error < 0.004, "{dtype:?} level {level} {range:?}: {error}");
                    let profile = if range.token_begin == 0 {
                        FirstToken::Profile
                    } else {
                        FirstToken::Absent
                    };
                    assert_eq!(chunk.first_token, profile);
                }
                if range.token_count > 60 && level > LEVEL_RAW {
                    let most = [0.0, 0.95, 0.7, 0.5][usize::from(level)];
                    assert!(
                        (coded.len() as f32) < most * packed.len() as f32,
                        "{dtype:?} level {level}: {}",
                        coded.len()
                    );
                }
            }
        }
    }
}

#[test]
fn instruction_sets_write_the_same_bytes_and_read_the_same_numbers() {
    let shape = shape(KvDtype::Bf16);
    let (text, range) = (text(&shape, 5, 77), range(0, 77, 0..5));
    for level in 0..4 {
        let coded: Vec<(Vec<u8>, Vec<u8>)> = Isa::available()
            .into_iter()
            .map(|isa| {
                let mut codec = Codec::with_isa(isa, shape.clone(), Some(BF16.clone())).unwrap();
                let (mut coded, mut back) = (Vec::new(), Vec::new());
                codec.encode(level, &range, &text.packed, &mut coded).unwrap();
                codec.decode(&Chunk::read(&coded).unwrap().0, &mut back).unwrap();
                (coded, back)
            })
            .collect();
        assert!(coded.iter().all(|one| *one == coded[0]), "level {level}");
    }
}

#[test]
fn another_first_token_and_numbers_out_of_range_come_back() {
    let (shape, mut codec) = (shape(KvDtype::Bf16), codec(KvDtype::Bf16));
    let range = range(0, 40, 0..5);
    let mut text = text(&shape, 5, 40);
    let run = shape.head_size * 2;
    text.packed[..run].fill(0x41);
    // One number far beyond what training saw, 30 tokens in.
    text.packed[30 * run..30 * run + 2].copy_from_slice(&[0x80, 0x42]);
    for level in 2..4 {
        let (mut coded, mut back) = (Vec::new(), Vec::new());
        codec.encode(level, &range, &text.packed, &mut coded).unwrap();
        let (chunk, _) = Chunk::read(&coded).unwrap();
        assert_eq!(chunk.first_token, FirstToken::Stored);
        codec.decode(&chunk, &mut back).unwrap();
        assert_eq!(&back[..run], &text.packed[..run]);
        if level == 2 {
            assert!(relative_error(&shape, &range, &text.packed, &back) < 0.004);
        }
        // A dense level has no axis for what training never saw; the other tokens do not suffer from it.
        let (before, back) = (
            self::range(0, 30, 0..5),
            Sample {
                tokens: 40,
                packed: back,
            },
        );
        let error = relative_error(
            &shape,
            &before,
            &part(&shape, &text, &before),
            &part(&shape, &back, &before),
        );
        assert!(error < 0.004, "level {level}: {error}");
    }
    text.packed[100..102].copy_from_slice(&[0x80, 0x7f]);
    let mut out = vec![1, 2, 3];
    assert_eq!(
        codec.encode(2, &range, &text.packed, &mut out),
        Err(CodecError::NotFinite)
    );
    assert_eq!(out, [1, 2, 3]);
    codec.encode(LEVEL_LOSSLESS, &range, &text.packed, &mut out).unwrap();
    let mut back = Vec::new();
    codec.decode(&Chunk::read(&out[3..]).unwrap().0, &mut back).unwrap();
    assert_eq!(back, text.packed);
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let (shape, mut codec) = (shape(KvDtype::Bf16), codec(KvDtype::Bf16));
    let text = text(&shape, 5, 32);
    let mut out = Vec::new();
    assert_eq!(
        codec.encode(9, &range(0, 32, 0..5), &text.packed, &mut out),
        Err(CodecError::Level(9))
    );
    assert!(matches!(
        codec.encode(3, &range(0, 32, 1..4), &text.packed, &mut out),
        Err(CodecError::Layers { group: 2, .. })
    ));
    assert!(matches!(
        codec.encode(3, &range(0, 31, 0..5), &text.packed, &mut out),
        Err(CodecError::Kernel(_))
    ));
    assert!(matches!(
        codec.encode(3, &range(0, 2000, 0..5), &text.packed, &mut out),
        Err(CodecError::Field { .. })
    ));
    codec.encode(3, &range(0, 32, 0..5), &text.packed, &mut out).unwrap();
    let chunk = Chunk::read(&out).unwrap().0;
    let mut back = Vec::new();
    let bare = Codec::new(shape.clone(), None)
        .unwrap()
        .decode(&chunk, &mut back)
        .unwrap_err();
    assert!(matches!(bare, CodecError::Level(3)), "{bare}");
    let other = Chunk {
        fingerprint: [8; 16],
        ..chunk.clone()
    };
    assert_eq!(
        codec.decode(&other, &mut back),
        Err(CodecError::Layout("the fingerprint"))
    );
    let other = Chunk {
        profile: Default::default(),
        ..chunk
    };
    assert!(
        codec
            .decode(&other, &mut back)
            .unwrap_err()
            .to_string()
            .contains("--codec-profile")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// The checksum would refuse nearly all of these before they are looked at: chunks are decoded as if it held.
    #[test]
    fn a_strangers_chunk_is_refused_or_decoded_and_nothing_worse(
        level in 0u8..5,
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        stated in (0u32..80, 1u32..90, 0u16..5, 1u16..6),
        first in prop_oneof![Just(FirstToken::Absent), Just(FirstToken::Profile), Just(FirstToken::Stored)],
    ) {
        let shape = shape(KvDtype::Bf16);
        let mut codec = codec(KvDtype::Bf16);
        let (text, range) = (text(&shape, 5, 40), range(0, 40, 0..5));
        let mut coded = Vec::new();
        codec.encode(level.min(3), &range, &text.packed, &mut coded).unwrap();
        let chunk = Chunk::read(&coded).unwrap().0;
        let mut payload = chunk.payload.to_vec();
        for (at, byte) in &changes {
            let at = at.index(payload.len());
            payload[at] = *byte;
        }
        payload.truncate(cut.index(payload.len()) + 1);
        let own = stated.0 % 2 == 0;
        let layers = stated.2..stated.2 + stated.3;
        let range = if own { range } else { ChunkRange { token_begin: stated.0, token_count: stated.1, layers } };
        let changed = Chunk { level, first_token: first, range, payload: &payload, ..chunk.clone() };
        let mut back = Vec::new();
        if codec.decode(&changed, &mut back).is_ok() {
            prop_assert_eq!(back.len(), changed.range.token_count as usize * changed.range.layers.len() * 128);
        }
        prop_assert!(back.capacity() <= 2 * 90 * 5 * 128);
    }

    #[test]
    fn a_changed_file_is_refused(at in any::<prop::sample::Index>(), flip in 1u8..) {
        let mut bytes = BF16.profile().to_bytes();
        let at = at.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(Profile::from_bytes(&bytes).is_err());
        let mut coded = Vec::new();
        let shape = shape(KvDtype::Bf16);
        let (text, range) = (text(&shape, 5, 40), range(0, 40, 0..5));
        codec(KvDtype::Bf16).encode(3, &range, &text.packed, &mut coded).unwrap();
        let at = at % coded.len();
        coded[at] ^= flip;
        prop_assert!(Chunk::read(&coded).is_err());
    }

    /// With its checksum made right again.
    #[test]
    fn a_strangers_profile_is_refused_or_sound(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = BF16.profile().to_bytes();
        for (at, byte) in &changes {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()).max(14));
        }
        let checksum = xxhash_rust::xxh3::xxh3_64(&bytes[14..]);
        bytes[6..14].copy_from_slice(&checksum.to_le_bytes());
        if let Ok((profile, id)) = Profile::from_bytes(&bytes) {
            let shape = shape(KvDtype::Bf16);
            if let Ok(prepared) = Prepared::new(profile, id)
                && let Ok(mut codec) = Codec::new(shape.clone(), Some(Arc::new(prepared)))
            {
                let (text, range) = (text(&shape, 5, 20), range(0, 20, 0..5));
                for level in 0..codec.level_count() {
                    let (mut coded, mut back) = (Vec::new(), Vec::new());
                    if codec.encode(level, &range, &text.packed, &mut coded).is_ok() {
                        codec.decode(&Chunk::read(&coded).unwrap().0, &mut back).unwrap();
                    }
                }
            }
        }
    }
}
