//! `kvasir-sidecar quality-codec`: what answers lose, and how many bytes are saved, when the context's KV was encoded and decoded.

use std::io::Write;
use std::path::Path;
use std::sync::Arc;

use kvasir_codec::train::Sample;
use kvasir_codec::{
    Chunk, Codec, CodecError, KvShapeOfModel, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, LEVEL_RAW, Prepared, Profile,
};
use serde::Serialize;

use super::baselines::{AnchorDelta, uniform};
use super::lab::{Lab, Outcome};
use super::{check, read_items};
use crate::cli::{EngineFlags, QualityCodecFlags};
use crate::serve::{Fatal, load_engine};
use crate::text_kv::{chunks_of, gather_text, scatter_text, shape_of, text_of};

/// What a method has to work with.
struct Bench {
    codec: Codec,
    shape: KvShapeOfModel,
    chunk_tokens: usize,
    anchor_delta: AnchorDelta,
}

/// Encodes a text's KV and decodes it again; returns the bytes it took, everything counted, and what came back.
type Method = Box<dyn Fn(&mut Bench, &Sample) -> Result<(usize, Sample), CodecError>>;

/// One line of output.
#[derive(Serialize)]
struct Line<'a> {
    id: &'a str,
    method: &'a str,
    context_tokens: usize,
    /// Bytes of the context's KV as it lies in the pool.
    raw_bytes: usize,
    /// Bytes that the method made of it.
    coded_bytes: usize,
    #[serde(flatten)]
    outcome: Outcome,
}

/// Every method on every item; prints one JSON object for each pair.
///
/// # Errors
/// A model or profile that does not load or fit, an item that is malformed or larger than half the pool, an unknown method.
pub fn quality_codec(flags: &QualityCodecFlags) -> Result<(), Fatal> {
    let mut lab = Lab::new(load_engine(&flags.engine, &mut |_, _| {})?);
    let shape = shape_of(lab.engine());
    let (profile, id) = Profile::from_bytes(&std::fs::read(&flags.codec_profile)?)?;
    let prepared = Arc::new(Prepared::new(profile, id)?);
    let fit_on = texts(&mut lab, &read_items(&flags.fit_items)?)?;
    let mut bench = Bench {
        codec: Codec::new(shape.clone(), Some(Arc::clone(&prepared)))?,
        anchor_delta: AnchorDelta::fit(&shape, &fit_on)?,
        shape,
        chunk_tokens: flags.chunk_tokens,
    };
    let methods: Vec<(String, Method)> = methods(prepared.profile())
        .into_iter()
        .filter(|(name, _)| flags.methods.is_empty() || flags.methods.contains(name))
        .collect();
    let mut out = std::io::stdout().lock();
    for (index, item) in read_items(&flags.items)?.iter().enumerate() {
        check(item, lab.engine(), index + 1)?;
        let reference = lab.reference(item)?;
        let tokens = item.context_len();
        let text = gather_text(&lab.engine().pool(), lab.context(), tokens)?;
        for (name, method) in &methods {
            let (coded_bytes, decoded) = method(&mut bench, &text)?;
            let layers = 0..bench.shape.layer_count as u32;
            scatter_text(&lab.engine().pool(), lab.context(), tokens, layers, &decoded.packed)?;
            let outcome = lab.outcome(item, 0, &reference)?;
            let (id, method, raw_bytes) = (item.id.as_str(), name.as_str(), text.packed.len());
            let line = Line {
                id,
                method,
                context_tokens: tokens,
                raw_bytes,
                coded_bytes,
                outcome,
            };
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        }
        out.flush()?;
    }
    Ok(())
}

/// A model's KV shape, and the contexts' KV of a file's items.
///
/// # Errors
/// A model that does not load, an item that is malformed or larger than half the pool.
pub fn texts_of_file(engine: &EngineFlags, path: &Path) -> Result<(KvShapeOfModel, Vec<Sample>), Fatal> {
    let mut lab = Lab::new(load_engine(engine, &mut |_, _| {})?);
    let all = texts(&mut lab, &read_items(path)?)?;
    Ok((shape_of(lab.engine()), all))
}

/// The contexts' KV of some items.
pub(super) fn texts(lab: &mut Lab, items: &[super::Item]) -> Result<Vec<Sample>, Fatal> {
    let mut all = Vec::new();
    for (index, item) in items.iter().enumerate() {
        check(item, lab.engine(), index + 1)?;
        lab.compute(&item.context(), 0)?;
        all.push(gather_text(&lab.engine().pool(), lab.context(), item.context_len())?);
    }
    Ok(all)
}

fn methods(profile: &Profile) -> Vec<(String, Method)> {
    let level = |level: u8| -> Method { Box::new(move |bench, text| bench.level(level, text)) };
    let bits = |bits: u32| -> Method { Box::new(move |bench, text| uniform(&bench.shape, text, bits)) };
    let anchors = |index: usize| -> Method { Box::new(move |bench, text| bench.anchor_delta.code(text, index)) };
    let mut all = vec![
        ("raw".to_owned(), level(LEVEL_RAW)),
        ("lossless".to_owned(), level(LEVEL_LOSSLESS)),
    ];
    all.extend([8, 6, 5, 4].map(|count| (format!("uniform-{count}"), bits(count))));
    let factors = AnchorDelta::FACTORS.iter().enumerate();
    all.extend(factors.map(|(index, factor)| (format!("cachegen-{factor}"), anchors(index))));
    for (index, own) in profile.levels.iter().enumerate() {
        all.push((own.name.clone(), level(LEVEL_LOSSY_FROM + index as u8)));
    }
    all
}

impl Bench {
    /// A level of the codec, chunk by chunk, through its bytes.
    fn level(&mut self, level: u8, text: &Sample) -> Result<(usize, Sample), CodecError> {
        let mut bytes = 0;
        let mut decoded = Vec::new();
        for (range, packed) in chunks_of(&self.shape, text, self.chunk_tokens) {
            let (mut coded, mut back) = (Vec::new(), Vec::new());
            self.codec.encode(level, &range, &packed, &mut coded)?;
            bytes += coded.len();
            self.codec.decode(&Chunk::read(&coded)?.0, &mut back)?;
            decoded.push((range, back));
        }
        Ok((bytes, text_of(&self.shape, text.tokens, &decoded)))
    }
}
