//! `kvasir-sidecar bench-codec`: speed of the codec's levels on a text's KV, one thread, beside copying memory. Each chunk counts with the best
//! of its repetitions: what others on the machine take is not the codec's.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Instant;

use kvasir_codec::{Chunk, Codec, Prepared, Profile};
use serde::Serialize;

use crate::cli::BenchCodecFlags;
use crate::quality::coding::texts_of_file;
use crate::serve::Fatal;
use crate::text_kv::chunks_of;

/// Bytes of a copy: a chunk of 256 tokens of a small model.
const COPY_BYTES: usize = 6 << 20;

/// One level. Speeds are of raw KV.
#[derive(Serialize)]
struct Row {
    level: String,
    chunk_tokens: usize,
    ratio: f64,
    encode_gb_per_s: f64,
    decode_gb_per_s: f64,
    /// Copying in the same round.
    copy_gb_per_s: f64,
}

/// Measures and prints JSON.
///
/// # Errors
/// A model, profile or text that does not load.
pub fn bench_codec(flags: &BenchCodecFlags) -> Result<(), Fatal> {
    let (shape, texts) = texts_of_file(&flags.engine, &flags.items)?;
    let (profile, id) = Profile::from_bytes(&std::fs::read(&flags.codec_profile)?)?;
    let prepared = Arc::new(Prepared::new(profile, id)?);
    let mut codec = Codec::new(shape.clone(), Some(Arc::clone(&prepared)))?;
    let names = ["raw", "lossless"]
        .into_iter()
        .chain(prepared.profile().levels.iter().map(|level| level.name.as_str()));
    let from = vec![1_u8; COPY_BYTES];
    let mut to = vec![0_u8; COPY_BYTES];
    let mut rows = Vec::new();
    for (level, name) in names.enumerate() {
        for chunk_tokens in &flags.chunk_tokens {
            let chunks: Vec<_> = texts
                .iter()
                .flat_map(|text| chunks_of(&shape, text, *chunk_tokens))
                .collect();
            let raw: usize = chunks.iter().map(|(_, packed)| packed.len()).sum();
            let mut coded: Vec<Vec<u8>> = vec![Vec::new(); chunks.len()];
            let mut back = Vec::new();
            let mut best = vec![[f64::INFINITY; 2]; chunks.len()];
            let mut copy = f64::INFINITY;
            for _ in 0..flags.repetitions {
                for (((range, packed), coded), best) in chunks.iter().zip(&mut coded).zip(&mut best) {
                    coded.clear();
                    let begun = Instant::now();
                    codec.encode(level as u8, range, packed, coded)?;
                    best[0] = best[0].min(begun.elapsed().as_secs_f64());
                    let begun = Instant::now();
                    codec.decode(&Chunk::read(coded)?.0, &mut back)?;
                    black_box(&back);
                    best[1] = best[1].min(begun.elapsed().as_secs_f64());
                }
                let begun = Instant::now();
                to.copy_from_slice(black_box(&from));
                black_box(&to);
                copy = copy.min(begun.elapsed().as_secs_f64());
            }
            let [encode, decode] = [0, 1].map(|way| best.iter().map(|best| best[way]).sum::<f64>());
            rows.push(Row {
                level: name.to_owned(),
                chunk_tokens: *chunk_tokens,
                ratio: raw as f64 / coded.iter().map(Vec::len).sum::<usize>() as f64,
                encode_gb_per_s: raw as f64 / encode / 1e9,
                decode_gb_per_s: raw as f64 / decode / 1e9,
                copy_gb_per_s: COPY_BYTES as f64 / copy / 1e9,
            });
        }
    }
    println!("{}", serde_json::to_string(&rows)?);
    Ok(())
}
