//! Makes a profile from a model's KV.

mod exponents;
mod groups;
mod tables;

use crate::codec::KvShapeOfModel;
use crate::error::CodecError;
use crate::profile::{Accuracy, Level, Profile, Rotation};
use groups::{Group, group_of};
use kvasir_kernels::{Cpu, Isa, KeyTurns, PackedShape, column_stride, columns_from_packed};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// KV of one text from its beginning, all layers, packed as for the wire.
#[derive(Debug, Clone)]
pub struct Sample {
    /// Tokens.
    pub tokens: usize,
    /// `[layer][K, V][kv_head][token][head_size]`.
    pub packed: Vec<u8>,
}

/// A lossy level to make.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelOptions {
    /// Its name.
    pub name: String,
    /// Dense, or fast.
    pub rotated: bool,
    /// Width of a step. Dense: in the weighted root mean square of a channel. Fast: in a channel's own deviation.
    pub step: f32,
    /// What a bit is worth, in squares of a step: larger rounds more towards zero, which takes fewer bits and errs more.
    pub bit_price: f32,
}

/// How to make a profile.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// Layers that are rotated together. More: fewer bits, and arithmetic that grows with it.
    pub layers: usize,
    /// What an error in a layer's K and V weighs, by amplitude, relative to the layer's own size; about 1. `[layers][K, V]`
    pub weights: Vec<[f32; 2]>,
    /// Levels, the most exact first.
    pub levels: Vec<LevelOptions>,
    /// Threads.
    pub threads: usize,
}

/// Makes the profile of `shape` from samples.
///
/// # Errors
/// [`CodecError::Layout`] when there is no sample with two tokens or a size does not fit, [`CodecError::NotFinite`].
pub fn train(
    shape: &KvShapeOfModel,
    model_revision: String,
    rope: String,
    samples: &[Sample],
    options: &TrainOptions,
) -> Result<Profile, CodecError> {
    let packed_shape = |tokens: usize| PackedShape {
        dtype: shape.dtype,
        layers: shape.layer_count,
        kv_heads: shape.kv_head_count,
        head_size: shape.head_size,
        tokens,
    };
    let sound = |sample: &Sample| sample.tokens > 1 && sample.packed.len() == packed_shape(sample.tokens).byte_len();
    if samples.is_empty() || !samples.iter().all(sound) {
        return Err(CodecError::Layout("a sample"));
    }
    if options.layers == 0 || options.weights.len() != shape.layer_count {
        return Err(CodecError::Layout("the training options"));
    }
    let mut profile = Profile {
        model_revision,
        rope,
        layer_count: shape.layer_count,
        kv_head_count: shape.kv_head_count,
        head_size: shape.head_size,
        first_token: columns_of(shape, &samples[0], 0..shape.layer_count)?
            .chunks_exact(column_stride(samples[0].tokens))
            .map(|column| column[0])
            .collect(),
        exponents: exponents::count(shape, samples)?,
        rotation: Some(Rotation {
            layers: options.layers,
            groups: Vec::new(),
        }),
        levels: Vec::new(),
    };
    let count = profile.group_count(true);
    let (next, made) = (
        AtomicUsize::new(0),
        Mutex::new((0..count).map(|_| None).collect::<Vec<_>>()),
    );
    std::thread::scope(|scope| {
        for _ in 0..options.threads.clamp(1, count) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= count {
                        return;
                    }
                    let group = group_of(shape, samples, profile.group_layers(true, index), options);
                    if let Ok(mut made) = made.lock() {
                        made[index] = Some(group);
                    }
                }
            });
        }
    });
    let made = made.into_inner().unwrap_or_default();
    let missing = || Err(CodecError::Layout("a group's thread"));
    let groups: Result<Vec<Group>, _> = made.into_iter().map(|group| group.unwrap_or_else(missing)).collect();
    let groups = groups?;
    for (index, level) in options.levels.iter().enumerate() {
        let groups = groups
            .iter()
            .flat_map(|group| group.levels[index].iter().cloned())
            .collect();
        let (name, rotated) = (level.name.clone(), level.rotated);
        profile.levels.push(Level {
            name,
            rotated,
            groups,
            accuracy: Accuracy::default(),
        });
    }
    if let Some(rotation) = &mut profile.rotation {
        rotation.groups = groups.into_iter().map(|group| group.rotation).collect();
    }
    profile.check()?;
    Ok(profile)
}

fn width_of(shape: &KvShapeOfModel) -> usize {
    2 * shape.kv_head_count * shape.head_size
}

/// A sample's channels of some layers, `[channels][stride]`, keys turned back.
fn columns_of(shape: &KvShapeOfModel, sample: &Sample, layers: std::ops::Range<usize>) -> Result<Vec<f32>, CodecError> {
    let part = PackedShape {
        dtype: shape.dtype,
        layers: layers.len(),
        kv_heads: shape.kv_head_count,
        head_size: shape.head_size,
        tokens: sample.tokens,
    };
    let layer_bytes = part.byte_len() / layers.len();
    let mut turns = KeyTurns::default();
    turns.fill(&shape.inverse_frequencies, 0, sample.tokens);
    let mut columns = vec![0.0; part.width() * part.stride()];
    let packed = &sample.packed[layers.start * layer_bytes..layers.end * layer_bytes];
    if columns_from_packed(Isa::detect(), &part, &turns, packed, &mut columns)? {
        Ok(columns)
    } else {
        Err(CodecError::NotFinite)
    }
}

/// One thread's device.
fn cpu() -> Result<Cpu, CodecError> {
    Cpu::new(1).map_err(|_| CodecError::Layout("the number of threads"))
}
