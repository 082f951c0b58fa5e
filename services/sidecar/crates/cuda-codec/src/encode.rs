//! From packed KV to chunks.

use crate::coder::{CodingError, DeviceCodec, PackedChunk, Use, is_far, is_lossy};
use crate::launch::{Run, Way};
use crate::section::Section;
use crate::tables::{Kind, LevelTables};
use kvasir_codec::{CHUNK_HEADER_BYTES, CodecError, FirstToken};
use kvasir_cuda::{Buffer, Device, DeviceError};
use std::ops::Range;

/// Bytes that a chunk's sections may take beyond what its KV takes raw, each: who needs more is encoded by the host.
const SPARE_BYTES: usize = 1024;

/// A chunk's sections, and how its first token is told.
struct Planned {
    sections: Range<usize>,
    first_token: FirstToken,
    first: Vec<u8>,
    bytes: usize,
}

impl DeviceCodec {
    /// The chunks of KV in `packed`, each the bytes that [`kvasir_codec::Codec::encode`] makes of it, or its error.
    ///
    /// # Errors
    /// [`CodingError`], when none of them could be encoded.
    pub fn encode(
        &mut self,
        device: &dyn Device,
        level: u8,
        packed: &Buffer,
        chunks: &[PackedChunk],
    ) -> Result<Vec<Result<Vec<u8>, CodecError>>, CodingError> {
        if chunks.is_empty() {
            return Ok(Vec::new());
        }
        if is_lossy(level) && chunks.iter().any(|chunk| is_far(&chunk.range)) {
            let by_host = chunks.iter().map(|chunk| {
                let bytes = self.codec.sections(level, &chunk.range)?.0.byte_len();
                Ok(self.encode_by_host(device, level, packed, chunk, bytes)?)
            });
            return by_host.collect();
        }
        let tables = self.level(device, level)?;
        let (mut sections, mut planned) = (Vec::new(), Vec::new());
        for chunk in chunks {
            let begin = sections.len();
            sections.extend(self.sections(level, &tables, chunk)?);
            let shape = self.codec.sections(level, &chunk.range)?.0;
            packed.check(chunk.offset as usize, shape.byte_len())?;
            sections[begin].gap = CHUNK_HEADER_BYTES as u32;
            planned.push(Planned {
                sections: begin..sections.len(),
                first_token: FirstToken::Absent,
                first: Vec::new(),
                bytes: shape.byte_len(),
            });
        }
        if is_lossy(level) {
            self.look_at_first_tokens(device, &tables, packed, chunks, &mut sections, &mut planned)?;
        }
        let described = self.describe(device, &sections)?;
        let shape = self.shape.clone();
        let run = Self::run(device, &shape, &tables, &sections, &described);
        let high = self.room(device, Use::High, run.plane())?;
        let low = self.room(device, Use::Low, run.low_bytes())?;
        let counts = self.room(device, Use::Counts, 4 * run.section_count * run.counts_each)?;
        let totals = self.room(device, Use::Totals, 4 * run.section_count)?;
        let beyond = self.room(device, Use::Beyond, 8 * run.section_count * run.beyond_max)?;
        let marks = self.filled(device, Use::Marks, &vec![0; 4 * run.section_count])?;
        match &tables.kind {
            Kind::Lossless { windows } => {
                let buffers = [
                    Some(packed),
                    Some(windows),
                    Some(&high),
                    Some(&counts),
                    Some(&beyond),
                    None,
                ];
                run.exponents("split_exponents", buffers)?;
                run.sum_counts(&counts, &totals)?;
                run.exponents("exponents_beyond", buffers)?;
            }
            Kind::Lossy(_) => {
                let columns = self.columns(&run, &sections, packed, &marks)?;
                let buffers = [
                    Some(&columns),
                    Some(&high),
                    Some(&low),
                    Some(&counts),
                    Some(&beyond),
                    None,
                ];
                run.symbols("symbols_from_columns", buffers)?;
                run.sum_counts(&counts, &totals)?;
                run.symbols("symbols_beyond", buffers)?;
            }
        }
        let words = self.room(device, Use::Words, 2 * run.plane())?;
        let word_begins = self.room(device, Use::WordBegins, 4 * run.section_count)?;
        let states = self.room(device, Use::States, run.state_bytes())?;
        run.rans_encode([&high, &words, &word_begins, &states])?;
        let begins = self.room(device, Use::Begins, 8 * (run.section_count + 1))?;
        let raw: usize = planned.iter().map(|one| one.bytes + one.first.len()).sum();
        let payload = self.room(device, Use::Payload, raw + SPARE_BYTES * run.section_count)?;
        run.payload([
            &word_begins,
            &states,
            &words,
            &beyond,
            &totals,
            &low,
            packed,
            &begins,
            &payload,
        ])?;
        let (beyond_max, count) = (run.beyond_max, run.section_count);
        let (totals, marks) = (u32s(device, &totals, count)?, u32s(device, &marks, count)?);
        let begins: Vec<usize> = {
            let mut bytes = vec![0; 8 * (count + 1)];
            device.read(&begins, 0, &mut bytes)?;
            bytes
                .as_chunks()
                .0
                .iter()
                .map(|bytes| u64::from_ne_bytes(*bytes) as usize)
                .collect()
        };
        let capacity = payload.byte_len() / 4 * 4;
        let mut bytes = vec![0; begins[count].min(capacity)];
        device.read(&payload, 0, &mut bytes)?;
        let mut all = Vec::with_capacity(chunks.len());
        for (chunk, planned) in chunks.iter().zip(planned) {
            let own = planned.sections.clone();
            if marks[own.clone()].iter().any(|mark| *mark != 0) {
                all.push(Err(CodecError::NotFinite));
                continue;
            }
            let fits = totals[own.clone()].iter().all(|total| *total as usize <= beyond_max);
            match bytes.get(begins[own.start]..begins[own.end]).filter(|_| fits) {
                Some(bytes) => all.push(self.sealed(level, chunk, &planned, bytes)),
                None => all.push(self.encode_by_host(device, level, packed, chunk, planned.bytes)?),
            }
        }
        Ok(all)
    }

    /// Numbers that are quantised: channels, or along the axes.
    fn columns(
        &mut self,
        run: &Run<'_>,
        sections: &[Section],
        packed: &Buffer,
        marks: &Buffer,
    ) -> Result<Buffer, DeviceError> {
        let turns = self.turns(run.device, sections)?;
        let columns = self.room(run.device, Use::Columns, 4 * run.plane())?;
        run.columns(Way::FromPacked, &turns, [packed, &columns, marks])?;
        self.rotated(run, Way::FromPacked, columns)
    }

    /// The columns after the level's rotation, if it has one.
    pub(crate) fn rotated(&mut self, run: &Run<'_>, way: Way, columns: Buffer) -> Result<Buffer, DeviceError> {
        let Kind::Lossy(lossy) = &run.level.kind else {
            return Ok(columns);
        };
        let Some(rotation) = &lossy.rotation else {
            return Ok(columns);
        };
        let matrices = match way {
            Way::FromPacked => &rotation.forward,
            Way::ToPacked => &rotation.back,
        };
        let along = self.room(run.device, Use::Along, 4 * run.plane())?;
        let tokens = run.section_count * run.stride;
        let content = self.room(run.device, Use::Content, tokens * matrices.content_bytes)?;
        let scales = self.room(run.device, Use::Scales, 4 * tokens * matrices.scales_each)?;
        run.rotate(way, [&columns, &along, &content, &scales])?;
        Ok(along)
    }

    /// Asks of chunks from position 0 on whether their first token is the profile's, and makes room for those that are not.
    fn look_at_first_tokens(
        &mut self,
        device: &dyn Device,
        tables: &LevelTables,
        packed: &Buffer,
        chunks: &[PackedChunk],
        sections: &mut [Section],
        planned: &mut [Planned],
    ) -> Result<(), CodingError> {
        let mut own: Vec<Section> = Vec::new();
        let mut bytes = 0;
        let size = (self.shape.head_size * self.shape.dtype.byte_size()) as u64;
        for section in sections.iter().filter(|section| section.token_begin == 0) {
            own.push(Section {
                first: bytes,
                ..*section
            });
            bytes += u64::from(section.head_count) * size;
        }
        if own.is_empty() {
            return Ok(());
        }
        let shape = self.shape.clone();
        let (described, first) = (
            self.describe(device, &own)?,
            self.room(device, Use::First, bytes as usize)?,
        );
        let run = Self::run(device, &shape, tables, &own, &described);
        run.first_tokens(packed, &first)?;
        let mut all = vec![0; bytes as usize];
        device.read(&first, 0, &mut all)?;
        let mut rest = &all[..];
        for (chunk, planned) in chunks
            .iter()
            .zip(planned)
            .filter(|(chunk, _)| chunk.range.token_begin == 0)
        {
            let heads = sections[planned.sections.clone()]
                .iter()
                .map(|one| u64::from(one.head_count));
            let (own, others) = rest.split_at((heads.sum::<u64>() * size) as usize);
            rest = others;
            planned.first_token = self.codec.first_token(&chunk.range, own)?;
            if planned.first_token == FirstToken::Stored {
                planned.first = own.to_vec();
                sections[planned.sections.start].gap += own.len() as u32;
            }
        }
        Ok(())
    }

    fn sealed(&self, level: u8, chunk: &PackedChunk, planned: &Planned, bytes: &[u8]) -> Result<Vec<u8>, CodecError> {
        let mut bytes = bytes.to_vec();
        bytes[CHUNK_HEADER_BYTES..][..planned.first.len()].copy_from_slice(&planned.first);
        self.codec.seal(level, &chunk.range, planned.first_token, &mut bytes)?;
        Ok(bytes)
    }

    fn encode_by_host(
        &mut self,
        device: &dyn Device,
        level: u8,
        packed: &Buffer,
        chunk: &PackedChunk,
        length: usize,
    ) -> Result<Result<Vec<u8>, CodecError>, DeviceError> {
        let (mut elements, mut out) = (vec![0; length], Vec::new());
        device.read(packed, chunk.offset as usize, &mut elements)?;
        let encoded = self.codec.encode(level, &chunk.range, &elements, &mut out);
        Ok(encoded.map(|()| out))
    }
}

/// Numbers read back.
pub(crate) fn u32s(device: &dyn Device, buffer: &Buffer, count: usize) -> Result<Vec<u32>, DeviceError> {
    let mut bytes = vec![0; 4 * count];
    device.read(buffer, 0, &mut bytes)?;
    Ok(bytes
        .as_chunks()
        .0
        .iter()
        .map(|bytes| u32::from_ne_bytes(*bytes))
        .collect())
}
