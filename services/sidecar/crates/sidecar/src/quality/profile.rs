//! `kvasir-sidecar codec-profile`: a model's codec profile, made from the KV of texts.
//!
//! How much an error in a layer's K or V harms is measured, not guessed: noise of a fixed share of the layer's own size is put into it alone,
//! and the divergence of what the model then says is its weight. Every eighth text is kept apart; levels are measured on those.

use std::sync::Arc;

use kvasir_codec::train::{LevelOptions, Sample, TrainOptions, train};
use kvasir_codec::{Accuracy, Chunk, Codec, KvShapeOfModel, LEVEL_LOSSY_FROM, Prepared, Profile, ProfileId};
use kvasir_kernels::{Isa, KeyTurns, PackedShape, columns_from_packed, packed_from_columns};
use serde::Serialize;

use super::coding::texts;
use super::lab::Lab;
use super::{Item, check, read_items};
use crate::cli::CodecProfileFlags;
use crate::serve::{Fatal, load_engine};
use crate::text_kv::{chunks_of, gather_text, scatter_text, shape_of, text_of};

/// Of so many texts one is kept apart.
const HELD_OUT_EVERY: usize = 8;
/// Noise that is put into a layer, of the root mean square of its channels around their means.
const NOISE: f32 = 0.2;
/// Weights beyond these are taken for chance.
const WEIGHT_RANGE: (f32, f32) = (0.4, 3.0);
/// Tokens of a chunk when levels are measured.
const CHUNK_TOKENS: usize = 256;

/// What is printed.
#[derive(Serialize)]
struct Report {
    id: String,
    bytes: usize,
    training_tokens: usize,
    held_out_tokens: usize,
    weights: Vec<[f32; 2]>,
    levels: Vec<LevelReport>,
}

#[derive(Serialize)]
struct LevelReport {
    name: String,
    /// Axes that are sent, of each group of layers.
    axes: Vec<usize>,
    bits_per_value: f32,
    kl: f32,
    agreement: f32,
}

/// Makes the profile, writes it and prints a report as JSON.
///
/// # Errors
/// A model that does not load, items that are malformed, too few or too long, a file that cannot be written.
pub fn codec_profile(flags: &CodecProfileFlags) -> Result<(), Fatal> {
    let mut lab = Lab::new(load_engine(&flags.engine, &mut |_, _| {})?);
    let shape = shape_of(lab.engine());
    let items = read_items(&flags.items)?;
    let is_held_out = |index: usize| index % HELD_OUT_EVERY == HELD_OUT_EVERY - 1;
    let part = |held_out: bool| {
        let chosen = items
            .iter()
            .enumerate()
            .filter(|(index, _)| is_held_out(*index) == held_out);
        chosen.map(|(_, item)| item.clone()).collect::<Vec<Item>>()
    };
    let (training, held_out) = (part(false), part(true));
    if held_out.is_empty() {
        return Err(format!("{} texts are too few; give at least {HELD_OUT_EVERY}", items.len()).into());
    }
    let weights = weights(
        &mut lab,
        &shape,
        &training[..flags.sensitivity_items.min(training.len())],
    )?;
    let samples = texts(&mut lab, &training)?;
    let options = TrainOptions {
        layers: flags.layers,
        weights: weights.clone(),
        levels: flags.levels.iter().map(|level| level.0.clone()).collect(),
        threads: flags.engine.thread_count(),
    };
    let layout = lab.engine().layout().clone();
    let mut profile = train(&shape, layout.model_revision, layout.rope, &samples, &options)?;
    measure(&mut lab, &shape, &mut profile, &held_out)?;
    let bytes = profile.to_bytes();
    let (_, id) = Profile::from_bytes(&bytes)?;
    std::fs::write(&flags.out, &bytes).map_err(|error| format!("{}: {error}", flags.out.display()))?;
    let tokens = |items: &[Item]| items.iter().map(Item::context_len).sum();
    let levels = profile.levels.iter().map(|level| LevelReport {
        name: level.name.clone(),
        axes: level.groups.iter().map(|group| group.axes.len()).collect(),
        bits_per_value: level.accuracy.bits_per_value,
        kl: level.accuracy.kl,
        agreement: level.accuracy.agreement,
    });
    let report = Report {
        id: id.to_string(),
        bytes: bytes.len(),
        training_tokens: tokens(&training),
        held_out_tokens: tokens(&held_out),
        weights,
        levels: levels.collect(),
    };
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}

/// The root of the harm that noise in each layer's K and V does, over their geometric mean; `[layers][K, V]`.
fn weights(lab: &mut Lab, shape: &KvShapeOfModel, items: &[Item]) -> Result<Vec<[f32; 2]>, Fatal> {
    let mut harm = vec![[0.0_f64; 2]; shape.layer_count];
    let mut random = Gauss(0x9e37_79b9_7f4a_7c15);
    for (index, item) in items.iter().enumerate() {
        check(item, lab.engine(), index + 1)?;
        let reference = lab.reference(item)?;
        let tokens = item.context_len();
        let text = gather_text(&lab.engine().pool(), lab.context(), tokens)?;
        let layer_bytes = text.packed.len() / shape.layer_count;
        for (layer, packed) in text.packed.chunks_exact(layer_bytes).enumerate() {
            let layers = layer as u32..layer as u32 + 1;
            for (which, harm) in harm[layer].iter_mut().enumerate() {
                let noisy = with_noise(shape, tokens, packed, which, &mut random)?;
                scatter_text(&lab.engine().pool(), lab.context(), tokens, layers.clone(), &noisy)?;
                let outcome = lab.outcome(item, 0, &reference)?;
                *harm += outcome.kl.iter().sum::<f64>() / outcome.kl.len() as f64;
            }
            scatter_text(&lab.engine().pool(), lab.context(), tokens, layers, packed)?;
        }
    }
    let roots = |harm: &[f64; 2]| harm.map(|harm| (harm.max(1e-9)).sqrt());
    let logs: f64 = harm.iter().flat_map(roots).map(f64::ln).sum();
    let typical = (logs / (2 * shape.layer_count) as f64).exp();
    let weight = |root: f64| ((root / typical) as f32).clamp(WEIGHT_RANGE.0, WEIGHT_RANGE.1);
    Ok(harm
        .iter()
        .map(|harm| {
            if items.is_empty() {
                [1.0; 2]
            } else {
                roots(harm).map(weight)
            }
        })
        .collect())
}

/// One layer with noise in its K (0) or V (1).
fn with_noise(
    shape: &KvShapeOfModel,
    tokens: usize,
    packed: &[u8],
    which: usize,
    random: &mut Gauss,
) -> Result<Vec<u8>, Fatal> {
    let KvShapeOfModel {
        dtype,
        kv_head_count: kv_heads,
        head_size,
        ..
    } = *shape;
    let layer = PackedShape {
        dtype,
        layers: 1,
        kv_heads,
        head_size,
        tokens,
    };
    let (part, stride) = (layer.width() / 2, layer.stride());
    let (mut turns, mut back, mut columns) = (KeyTurns::default(), packed.to_vec(), vec![0.0; layer.width() * stride]);
    turns.fill(&shape.inverse_frequencies, 0, tokens);
    columns_from_packed(Isa::detect(), &layer, &turns, packed, &mut columns)?;
    let own = &mut columns[which * part * stride..(which + 1) * part * stride];
    let mut square = 0.0;
    for column in own.chunks_exact(stride) {
        // The first token is far from all others.
        let column = &column[1..tokens];
        let mean = column.iter().sum::<f32>() / tokens as f32;
        square += column.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / (tokens * part) as f32;
    }
    let size = NOISE * square.sqrt();
    for column in own.chunks_exact_mut(stride) {
        column[1..tokens].iter_mut().for_each(|x| *x += size * random.next());
    }
    packed_from_columns(Isa::detect(), &layer, &turns, &columns, &mut back)?;
    Ok(back)
}

/// Fills in what the levels cost on texts that training has not seen.
fn measure(lab: &mut Lab, shape: &KvShapeOfModel, profile: &mut Profile, items: &[Item]) -> Result<(), Fatal> {
    let mut codec = Codec::new(
        shape.clone(),
        Some(Arc::new(Prepared::new(profile.clone(), ProfileId::default())?)),
    )?;
    let mut sums = vec![(0_usize, 0_usize, 0.0_f64, 0_usize, 0_usize); profile.levels.len()];
    for item in items {
        let reference = lab.reference(item)?;
        let tokens = item.context_len();
        let text = gather_text(&lab.engine().pool(), lab.context(), tokens)?;
        for (index, (bytes, values, kl, agreements, places)) in sums.iter_mut().enumerate() {
            let decoded = coded(&mut codec, shape, LEVEL_LOSSY_FROM + index as u8, &text, bytes)?;
            let layers = 0..shape.layer_count as u32;
            scatter_text(&lab.engine().pool(), lab.context(), tokens, layers, &decoded.packed)?;
            let outcome = lab.outcome(item, 0, &reference)?;
            *values += text.packed.len() / shape.dtype.byte_size();
            *kl += outcome.kl.iter().sum::<f64>();
            *agreements += outcome.agreements;
            *places += outcome.kl.len();
        }
    }
    for (level, (bytes, values, kl, agreements, places)) in profile.levels.iter_mut().zip(sums) {
        let share = |part: f64| (part / places.max(1) as f64) as f32;
        level.accuracy = Accuracy {
            bits_per_value: (8.0 * bytes as f64 / values.max(1) as f64) as f32,
            kl: share(kl),
            agreement: share(agreements as f64),
        };
    }
    Ok(())
}

/// A text through a level's bytes, whose number is added to `bytes`.
fn coded(
    codec: &mut Codec,
    shape: &KvShapeOfModel,
    level: u8,
    text: &Sample,
    bytes: &mut usize,
) -> Result<Sample, Fatal> {
    let mut decoded = Vec::new();
    for (range, packed) in chunks_of(shape, text, CHUNK_TOKENS) {
        let (mut chunk, mut back) = (Vec::new(), Vec::new());
        codec.encode(level, &range, &packed, &mut chunk)?;
        *bytes += chunk.len();
        codec.decode(&Chunk::read(&chunk)?.0, &mut back)?;
        decoded.push((range, back));
    }
    Ok(text_of(shape, text.tokens, &decoded))
}

/// Nearly normal numbers of deviation 1, the same each time: sums of four uniform ones.
struct Gauss(u64);

impl Gauss {
    fn next(&mut self) -> f32 {
        let mut uniform = || {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (uniform() + uniform() + uniform() + uniform()) * 3.0_f32.sqrt()
    }
}

/// `NAME:fast|dense:STEP[:BIT_PRICE]`.
#[derive(Debug, Clone, PartialEq)]
pub struct LevelFlag(LevelOptions);

impl std::str::FromStr for LevelFlag {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("{text}: write NAME:fast|dense:STEP or NAME:fast|dense:STEP:BIT_PRICE, e.g. near:dense:0.25:0.1")
        };
        let fields: Vec<&str> = text.split(':').collect();
        let number = |text: &str| text.parse::<f32>().ok().filter(|x| x.is_finite() && *x >= 0.0);
        let (name, kind, step, price) = match fields[..] {
            [name, kind, step] => (name, kind, step, "0.1"),
            [name, kind, step, price] => (name, kind, step, price),
            _ => return Err(wrong()),
        };
        let rotated = match kind {
            "fast" => false,
            "dense" => true,
            _ => return Err(wrong()),
        };
        let (step, bit_price) = (
            number(step).filter(|step| *step > 0.0).ok_or_else(wrong)?,
            number(price).ok_or_else(wrong)?,
        );
        Ok(Self(LevelOptions {
            name: name.into(),
            rotated,
            step,
            bit_price,
        }))
    }
}
