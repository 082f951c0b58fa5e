//! From chunks to packed KV.

use crate::coder::{CodingError, DeviceCodec, PackedChunk, Use, is_far, is_lossy};
use crate::encode::u32s;
use crate::launch::Way;
use crate::section::Section;
use crate::tables::{Kind, LevelTables};
use kvasir_codec::{Chunk, ChunkParts, CodecError, SectionParts};
use kvasir_cuda::{Args, Buffer, Device, DeviceError};
use kvasir_kernels::{RANS_LANES, RansError};
use std::collections::BTreeMap;

/// What one call has of a level's chunks.
#[derive(Default)]
struct Gathered {
    sections: Vec<Section>,
    payload: Vec<u8>,
    first: Vec<u8>,
    /// As the kernels read them.
    exceptions: Vec<u8>,
    exception_count: usize,
    /// Which chunk each section is of.
    owners: Vec<usize>,
}

impl DeviceCodec {
    /// Writes the KV of chunks into `packed`, each to its offset: the elements that [`kvasir_codec::Codec::decode`] makes of it. For a chunk that is
    /// refused its place in `packed` is unspecified.
    ///
    /// # Errors
    /// [`CodingError`], when none of them could be decoded.
    pub fn decode(
        &mut self,
        device: &dyn Device,
        chunks: &[(Chunk<'_>, u64)],
        packed: &Buffer,
    ) -> Result<Vec<Result<(), CodecError>>, CodingError> {
        let mut outcomes: Vec<Result<(), CodecError>> = Vec::with_capacity(chunks.len());
        let mut by_level: BTreeMap<u8, Gathered> = BTreeMap::new();
        for (index, (chunk, offset)) in chunks.iter().enumerate() {
            let parts = match self.codec.parts(chunk) {
                Ok(parts) => parts,
                Err(error) => {
                    outcomes.push(Err(error));
                    continue;
                }
            };
            packed.check(*offset as usize, parts.shape.byte_len())?;
            let is_ordered = parts
                .sections
                .iter()
                .all(|section| is_ordered(section, chunk.level, &parts));
            if !is_ordered || is_lossy(chunk.level) && is_far(&chunk.range) {
                outcomes.push(self.decode_by_host(device, chunk, *offset, packed)?);
                continue;
            }
            let gathered = by_level.entry(chunk.level).or_default();
            let tables = self.level(device, chunk.level)?;
            outcomes.push(self.gather(&tables, chunk, *offset, (index, parts), gathered));
        }
        for (level, gathered) in by_level {
            for (section, is_damaged) in self
                .decode_level(device, level, &gathered, packed)?
                .into_iter()
                .enumerate()
            {
                let outcome = &mut outcomes[gathered.owners[section]];
                if is_damaged && outcome.is_ok() {
                    let bytes = gathered.sections[section].stream_bytes as usize;
                    *outcome = Err(RansError::Damaged { bytes }.into());
                }
            }
        }
        Ok(outcomes)
    }

    fn gather(
        &self,
        tables: &LevelTables,
        chunk: &Chunk<'_>,
        offset: u64,
        (index, parts): (usize, ChunkParts),
        to: &mut Gathered,
    ) -> Result<(), CodecError> {
        let range = chunk.range.clone();
        let mut sections = self.sections(chunk.level, tables, &PackedChunk { range, offset })?;
        let payload_begin = to.payload.len();
        let mut first = parts.first.as_ref().map(|_| to.first.len() as u64);
        for (section, part) in sections.iter_mut().zip(&parts.sections) {
            let states = 4 * RANS_LANES.min(section.token_count as usize);
            if part.stream.len() < states {
                let bytes = part.stream.len();
                return Err(RansError::Damaged { bytes }.into());
            }
            section.stream = (payload_begin + part.stream.start) as u64;
            section.stream_bytes = part.stream.len() as u32;
            section.tail = (payload_begin + part.tail.start) as u64;
            if let Some(first) = &mut first {
                section.first = *first;
                let size = self.shape.head_size * self.shape.dtype.byte_size();
                *first += u64::from(section.head_count) * size as u64;
            }
        }
        for (place, part) in parts.sections.iter().enumerate() {
            for one in &part.beyond {
                let section = (to.sections.len() + place) as u32;
                let fields = [section, one.token, one.axis, one.steps as u32];
                to.exceptions
                    .extend(fields.into_iter().fold(Args::new(), Args::u32).finish());
                to.exception_count += 1;
            }
        }
        to.owners.extend(sections.iter().map(|_| index));
        to.sections.append(&mut sections);
        to.payload.extend_from_slice(chunk.payload);
        to.first.extend(parts.first.into_iter().flatten());
        Ok(())
    }

    /// Whether each section's stream is damaged.
    fn decode_level(
        &mut self,
        device: &dyn Device,
        level: u8,
        gathered: &Gathered,
        packed: &Buffer,
    ) -> Result<Vec<bool>, CodingError> {
        let Gathered {
            sections,
            exceptions,
            exception_count,
            ..
        } = gathered;
        if sections.is_empty() {
            return Ok(Vec::new());
        }
        let tables = self.level(device, level)?;
        let described = self.describe(device, sections)?;
        let shape = self.shape.clone();
        let run = Self::run(device, &shape, &tables, sections, &described);
        let payload = self.filled(device, Use::Payload, &gathered.payload)?;
        let exceptions = self.filled(device, Use::Exceptions, exceptions)?;
        let high = self.room(device, Use::High, run.plane())?;
        let is_damaged = self.room(device, Use::Marks, 4 * run.section_count)?;
        run.rans_decode([&payload, &high, &is_damaged])?;
        match &tables.kind {
            Kind::Lossless { windows } => {
                let buffers = [Some(packed), Some(windows), Some(&high), None, None, Some(&payload)];
                run.exponents("join_exponents", buffers)?;
                if *exception_count > 0 {
                    run.set_exponents(packed, &exceptions, *exception_count)?;
                }
            }
            Kind::Lossy(_) => {
                let first = self.filled(device, Use::First, &gathered.first)?;
                let turns = self.turns(device, sections)?;
                let columns = self.room(device, Use::Columns, 4 * run.plane())?;
                let buffers = [Some(&columns), Some(&high), None, None, None, Some(&payload)];
                run.symbols("symbols_to_columns", buffers)?;
                if *exception_count > 0 {
                    run.set_columns(&columns, &exceptions, *exception_count)?;
                }
                let columns = self.rotated(&run, Way::ToPacked, columns)?;
                run.columns(Way::ToPacked, &turns, [packed, &columns, &first])?;
            }
        }
        let marks = u32s(device, &is_damaged, sections.len())?;
        Ok(marks.into_iter().map(|mark| mark != 0).collect())
    }

    fn decode_by_host(
        &mut self,
        device: &dyn Device,
        chunk: &Chunk<'_>,
        offset: u64,
        packed: &Buffer,
    ) -> Result<Result<(), CodecError>, DeviceError> {
        let mut elements = Vec::new();
        if let Err(error) = self.codec.decode(chunk, &mut elements) {
            return Ok(Err(error));
        }
        device.write(packed, offset as usize, &elements).map(Ok)
    }
}

/// Whether exceptions are in the encoder's order, which no place has twice: threads set them all at once.
fn is_ordered(section: &SectionParts, level: u8, parts: &ChunkParts) -> bool {
    let size = parts.shape.head_size as u32;
    let place = |at: usize| {
        let one = &section.beyond[at];
        match is_lossy(level) {
            true => (one.axis, one.token, 0),
            false => (one.axis / size, one.token, one.axis % size),
        }
    };
    (1..section.beyond.len()).all(|at| place(at - 1) < place(at))
}
