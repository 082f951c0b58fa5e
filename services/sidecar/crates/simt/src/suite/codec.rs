//! The KV codec on a device against the CPU's: the same chunks byte for byte, the same elements back, the same chunks refused.

use super::harness::{Harness, Random, same, text};
use kvasir_codec::train::{LevelOptions, Sample, TrainOptions, train};
use kvasir_codec::{Chunk, ChunkRange, Codec, KvShapeOfModel, LEVEL_LOSSLESS, Prepared, Profile, ProfileId};
use kvasir_cuda_codec::{DeviceCodec, DeviceDigests, PackedChunk};
use kvasir_kernels::{Isa, KeyTurns, KvDtype, PackedShape, packed_from_columns};
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_128;

const FAST: u8 = LEVEL_LOSSLESS + 1;
const DENSE: u8 = LEVEL_LOSSLESS + 2;

/// Made-up KV of few causes, as a profile expects it: a channel mixes the same few numbers of its token. Texts share their first token.
pub fn kv_sample(shape: &KvShapeOfModel, random: &mut Random, tokens: usize) -> Sample {
    let sizes = PackedShape {
        dtype: shape.dtype,
        layers: shape.layer_count,
        kv_heads: shape.kv_head_count,
        head_size: shape.head_size,
        tokens,
    };
    let (width, stride) = (sizes.width(), sizes.stride());
    let mut columns = vec![0.0; width * stride];
    for token in 0..tokens {
        let causes = random.normals(4, 1.0);
        for channel in 0..width {
            let mixed = (0..4).map(|i| causes[i] * ((channel * (i + 3)) as f32 * 0.7).sin());
            let own = mixed.sum::<f32>() * (1.0 + (channel % 7) as f32) + random.normal(0.1) + (channel % 5) as f32;
            let first = 10.0 * (channel as f32 * 0.9).cos();
            columns[channel * stride + token] = if token == 0 { first } else { own };
        }
    }
    let (mut turns, mut packed) = (KeyTurns::default(), vec![0; sizes.byte_len()]);
    turns.fill(&shape.inverse_frequencies, 0, tokens);
    packed_from_columns(Isa::detect(), &sizes, &turns, &columns, &mut packed).expect("the shapes fit");
    Sample { tokens, packed }
}

/// A profile of such KV, with a fast and a dense level.
///
/// # Errors
/// Those of training, in one line.
pub fn kv_profile(shape: &KvShapeOfModel, random: &mut Random) -> Result<(Profile, ProfileId), String> {
    let samples: Vec<Sample> = (0..3).map(|_| kv_sample(shape, random, 96)).collect();
    let level = |name: &str, rotated, step| LevelOptions {
        name: name.into(),
        rotated,
        step,
        bit_price: 0.1,
    };
    let options = TrainOptions {
        layers: 2,
        weights: vec![[1.0, 1.0]; shape.layer_count],
        // So fine that the axes of most variance have low bits.
        levels: vec![level("fast", false, 0.02), level("dense", true, 0.05)],
        threads: 1,
    };
    let profile = train(shape, "model".into(), "rope".into(), &samples, &options).map_err(text)?;
    Profile::from_bytes(&profile.to_bytes()).map_err(text)
}

fn prepared(shape: &KvShapeOfModel, random: &mut Random) -> Result<Arc<Prepared>, String> {
    let (profile, id) = kv_profile(shape, random)?;
    Ok(Arc::new(Prepared::new(profile, id).map_err(text)?))
}

/// The elements of a range of a text.
fn part(shape: &KvShapeOfModel, text: &Sample, range: &ChunkRange) -> Vec<u8> {
    let run = shape.head_size * shape.dtype.byte_size();
    let heads = 2 * shape.kv_head_count;
    let tokens = range.token_begin as usize..(range.token_begin + range.token_count) as usize;
    let all = text.packed.chunks_exact(text.tokens * run);
    let own = all
        .skip(usize::from(range.layers.start) * heads)
        .take(range.layers.len() * heads);
    own.flat_map(|head| &head[tokens.start * run..tokens.end * run])
        .copied()
        .collect()
}

/// What a level should be asked to code.
struct Trial {
    dtype: KvDtype,
    level: u8,
    /// Bytes of each thousand that are replaced by others: NaN and infinities among the elements they make.
    noise: usize,
    /// Elements of each thousand that are far from what tables know.
    outliers: usize,
}

fn agrees(h: &mut Harness<'_>, trial: &Trial) -> Result<(), String> {
    let head_size = h.random.pick(&[16, 24]);
    let half = h.random.pick(&[head_size / 2, 6]);
    let shape = KvShapeOfModel {
        dtype: trial.dtype,
        layer_count: 3,
        kv_head_count: h.random.range(1, 3),
        head_size,
        inverse_frequencies: (0..half).map(|i| 100f32.powf(-(i as f32) / half as f32)).collect(),
        fingerprint: [7; 16],
    };
    let prepared = prepared(&shape, &mut h.random)?;
    let mut cpu = Codec::new(shape.clone(), Some(Arc::clone(&prepared))).map_err(text)?;
    let mut gpu = DeviceCodec::new(shape.clone(), prepared).map_err(text)?;
    let source = kv_sample(&shape, &mut h.random, 150);
    let other_layers = if trial.level == DENSE { 2..3 } else { 1..2 };
    let short = h.random.range(1, 20) as u32;
    let size = shape.dtype.byte_size();
    let (mut chunks, mut memory, mut raw) = (Vec::new(), Vec::new(), Vec::new());
    for (index, (token_begin, token_count, layers)) in
        [(0, 70, 0..3), (70, short, other_layers), (0, 64, 0..2), (101, 33, 0..3)]
            .into_iter()
            .enumerate()
    {
        let range = ChunkRange {
            token_begin,
            token_count,
            layers,
        };
        let mut elements = part(&shape, &source, &range);
        for byte in &mut elements {
            if h.random.range(0, 1000) < trial.noise {
                *byte = h.random.bits() as u8;
            }
        }
        for element in elements.chunks_exact_mut(size) {
            if h.random.range(0, 1000) < trial.outliers {
                trial
                    .dtype
                    .set_exponent(element, if trial.dtype == KvDtype::F16 { 26 } else { 140 });
            }
        }
        if index == 2 {
            // A first token of its own.
            trial.dtype.set_exponent(&mut elements[..size], 0);
        }
        let offset = memory.len() as u64;
        memory.extend_from_slice(&elements);
        memory.extend([0xab; 20]);
        raw.push(elements);
        chunks.push(PackedChunk { range, offset });
    }
    let packed = h.bytes(&memory)?;
    let found = gpu.encode(h.device, trial.level, &packed, &chunks).map_err(text)?;
    let mut encoded = Vec::new();
    for ((chunk, elements), found) in chunks.iter().zip(&raw).zip(found) {
        let mut expected = Vec::new();
        match (cpu.encode(trial.level, &chunk.range, elements, &mut expected), found) {
            (Ok(()), Ok(found)) => same("chunk", &found, &expected)?,
            (expected, found) if expected.clone().err() == found.clone().err() => {
                return Err(format!("{expected:?}: encodes nothing"));
            }
            (expected, found) => return Err(format!("encoding gives {:?}, not {expected:?}", found.err())),
        }
        encoded.push(expected);
    }
    let read = |bytes| Chunk::read(bytes).map(|(chunk, _)| chunk).map_err(text);
    let whole: Vec<Chunk<'_>> = encoded.iter().map(|bytes| read(bytes)).collect::<Result<_, _>>()?;
    decodes(h, &mut gpu, &mut cpu, &chunks, &whole)?;
    // The same with a byte changed in each, and one cut short: lengths, exceptions, streams, what is kept as it is.
    for _ in 0..2 {
        let mut payloads: Vec<Vec<u8>> = whole.iter().map(|chunk| chunk.payload.to_vec()).collect();
        for payload in &mut payloads {
            let at = h.random.range(0, payload.len());
            payload[at] ^= 1 << h.random.range(0, 8);
        }
        let last = payloads.len() - 1;
        let kept = h.random.range(0, payloads[last].len());
        payloads[last].truncate(kept);
        let damaged = whole.iter().zip(&payloads).map(|(chunk, payload)| Chunk {
            payload,
            ..chunk.clone()
        });
        let damaged: Vec<Chunk<'_>> = damaged.collect();
        decodes(h, &mut gpu, &mut cpu, &chunks, &damaged)?;
    }
    Ok(())
}

/// Both decode the same, or refuse the same.
fn decodes(
    h: &Harness<'_>,
    gpu: &mut DeviceCodec,
    cpu: &mut Codec,
    places: &[PackedChunk],
    chunks: &[Chunk<'_>],
) -> Result<(), String> {
    let packed = h.output(places.iter().map(|place| place.offset as usize).max().unwrap_or(0) + (1 << 16))?;
    let asked: Vec<_> = chunks
        .iter()
        .cloned()
        .zip(places.iter().map(|place| place.offset))
        .collect();
    let found = gpu.decode(h.device, &asked, &packed).map_err(text)?;
    for ((chunk, offset), found) in asked.iter().zip(found) {
        let mut expected = Vec::new();
        let outcome = cpu.decode(chunk, &mut expected);
        // Of several things that are wrong each finds another first.
        if outcome.is_ok() != found.is_ok() {
            return Err(format!("decoding gives {found:?}, not {outcome:?}"));
        }
        if outcome.is_ok() {
            let mut elements = vec![0; expected.len()];
            h.device.read(&packed, *offset as usize, &mut elements).map_err(text)?;
            same("decoded", &elements, &expected)?;
        }
    }
    Ok(())
}

pub fn lossless(h: &mut Harness<'_>) -> Result<(), String> {
    [KvDtype::Bf16, KvDtype::F16, KvDtype::F32]
        .into_iter()
        .try_for_each(|dtype| {
            let trial = Trial {
                dtype,
                level: LEVEL_LOSSLESS,
                noise: 10,
                outliers: 5,
            };
            agrees(h, &trial)
        })
}

pub fn fast(h: &mut Harness<'_>) -> Result<(), String> {
    [KvDtype::Bf16, KvDtype::F16, KvDtype::F32]
        .into_iter()
        .try_for_each(|dtype| {
            let trial = Trial {
                dtype,
                level: FAST,
                noise: 0,
                outliers: 8,
            };
            agrees(h, &trial)
        })
}

pub fn dense(h: &mut Harness<'_>) -> Result<(), String> {
    [KvDtype::Bf16, KvDtype::F16].into_iter().try_for_each(|dtype| {
        let trial = Trial {
            dtype,
            level: DENSE,
            noise: 0,
            outliers: 2,
        };
        agrees(h, &trial)
    })
}

/// What has no room on the device, and what no lossy level takes, between chunks that are coded as always.
pub fn refused(h: &mut Harness<'_>) -> Result<(), String> {
    let shape = KvShapeOfModel {
        dtype: KvDtype::Bf16,
        layer_count: 3,
        kv_head_count: 2,
        head_size: 16,
        inverse_frequencies: vec![1.0, 0.1, 0.01],
        fingerprint: [7; 16],
    };
    let prepared = prepared(&shape, &mut h.random)?;
    let mut cpu = Codec::new(shape.clone(), Some(Arc::clone(&prepared))).map_err(text)?;
    let mut gpu = DeviceCodec::new(shape.clone(), prepared).map_err(text)?;
    let source = kv_sample(&shape, &mut h.random, 64);
    let range = ChunkRange {
        token_begin: 0,
        token_count: 64,
        layers: 0..3,
    };
    let usual = part(&shape, &source, &range);
    let mut infinite = usual.clone();
    infinite[2000..2002].copy_from_slice(&0x7f80_u16.to_le_bytes());
    // Every exponent is one that no table knows: more exceptions than there is room for.
    let strange: Vec<u8> = (0..usual.len() / 2)
        .flat_map(|_| (200_u16 << 7).to_le_bytes())
        .collect();
    let raw = [usual.clone(), infinite, strange, usual];
    let chunks: Vec<PackedChunk> = (0..raw.len())
        .map(|index| PackedChunk {
            range: range.clone(),
            offset: (index * raw[0].len()) as u64,
        })
        .collect();
    let packed = h.bytes(&raw.concat())?;
    for level in [LEVEL_LOSSLESS, FAST, DENSE] {
        let found = gpu.encode(h.device, level, &packed, &chunks).map_err(text)?;
        for (elements, found) in raw.iter().zip(found) {
            let mut expected = Vec::new();
            let outcome = cpu.encode(level, &range, elements, &mut expected).map(|()| expected);
            if outcome.is_ok() != found.is_ok() || outcome.clone().err() != found.clone().err() {
                return Err(format!(
                    "level {level} gives {:?}, not {:?}",
                    found.err(),
                    outcome.err()
                ));
            }
            same("chunk", &found.unwrap_or_default(), &outcome.unwrap_or_default())?;
        }
    }
    let unknown = gpu.encode(h.device, DENSE + 1, &packed, &chunks);
    if unknown.is_ok() {
        return Err("a level that there is not was encoded".into());
    }
    Ok(())
}

/// Digests of stretches of all kinds of length beside those of the host.
pub fn digests(h: &mut Harness<'_>) -> Result<(), String> {
    // Around the ends of stripes and blocks, and the shortest that are hashed on the device.
    let mut lengths = vec![248, 256, 264, 1016, 1024, 1032, 1088, 2048, 2056, 9 * 1024];
    lengths.extend((0..6).map(|_| 8 * h.random.range(31, 1500)));
    let (mut memory, mut stretches) = (Vec::new(), Vec::new());
    for length in lengths {
        stretches.push(memory.len() as u64..(memory.len() + length) as u64);
        memory.extend((0..length + 8 * h.random.range(0, 3)).map(|_| h.random.bits() as u8));
    }
    let buffer = h.bytes(&memory)?;
    let mut digests = DeviceDigests::default();
    let found = digests.xxh3_128(h.device, &buffer, &stretches).map_err(text)?;
    let expected = stretches
        .iter()
        .map(|own| &memory[own.start as usize..own.end as usize]);
    same("digests", &found, &expected.clone().map(xxh3_128).collect::<Vec<_>>())?;
    // Shorter ones, which follow another formula, are hashed by the host.
    let short: Vec<_> = [8, 16, 128, 240].map(|length| 0..length).into();
    let found = digests.xxh3_128(h.device, &buffer, &short).map_err(text)?;
    let expected = short.iter().map(|own| xxh3_128(&memory[..own.end as usize]));
    same("short digests", &found, &expected.collect::<Vec<_>>())?;
    match digests.xxh3_128(h.device, &buffer, &[8..400, 4..400]) {
        Err(_) => Ok(()),
        Ok(_) => Err("a stretch that begins within a word was taken".into()),
    }
}
