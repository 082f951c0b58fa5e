//! One stream of a pull: from one shard of the source into one of ours.

use std::borrow::Cow;
use std::ops::Range;

use kvasir_codec::LEVEL_RAW;
use kvasir_engine::KvDtype;
use kvasir_kernels::{PoolError, convert};
use xxhash_rust::xxh3::xxh3_128;

use crate::chunk_coder::{ChunkPlace, chunk_range};
use crate::coding::{Decoded, Expected};
use crate::errors::CallError;
use crate::fetch::{Fetch, fenced};
use crate::frames::{Coverage, FrameRange, within_block};
use crate::intervals::Route;
use crate::layouts::{dtype_from_wire, frame_dtype, layout_to_wire};
use crate::levels::Levels;
use crate::proto::kernel::LevelTraffic;
use crate::proto::transfer::{Frame, PullEnd, PullHeader};
use crate::state::Sidecar;

/// What has come, verified and placed.
pub(crate) struct Arriving<'a> {
    sidecar: &'a Sidecar,
    fetch: &'a Fetch,
    route: &'a Route,
    arrived: Coverage,
    dtype: KvDtype,
    bytes: u64,
    frames: u32,
    pub(crate) has_begun: bool,
    pub(crate) is_ended: bool,
}

/// A frame in its turn, whose digest holds.
struct Verified {
    range: FrameRange,
    level: u8,
    raw_bytes: usize,
}

impl<'a> Arriving<'a> {
    /// Nothing yet.
    pub(crate) fn new(sidecar: &'a Sidecar, fetch: &'a Fetch, route: &'a Route) -> Self {
        Self {
            sidecar,
            fetch,
            route,
            arrived: Coverage::new(fetch.pieces.clone(), route.part.layers.clone()),
            dtype: frame_dtype(fetch.source.dtype, sidecar.layout.dtype),
            bytes: 0,
            frames: 0,
            has_begun: false,
            is_ended: false,
        }
    }

    /// Tokens up to here are in place.
    pub(crate) fn token_end(&self) -> u32 {
        self.arrived.token_end()
    }

    /// Checks that the stream is what was asked for.
    pub(crate) fn begin(&mut self, header: &PullHeader) -> Result<(), CallError> {
        if self.has_begun {
            return Err(CallError::Internal("the source sent a second header".into()));
        }
        if header.layout.as_ref() != Some(&layout_to_wire(&self.fetch.source)) {
            return Err(CallError::LayoutMismatch(
                "the source's KV layout is not the one it was said to have; place the request again".into(),
            ));
        }
        let heads = header.head_begin..header.head_begin.saturating_add(header.head_count);
        if heads != self.route.part.heads || dtype_from_wire(header.frame_dtype()) != Some(self.dtype) {
            let message = format!(
                "the source sends heads {heads:?} as {}; heads {:?} as {:?} are expected",
                header.frame_dtype().as_str_name(),
                self.route.part.heads,
                self.dtype
            );
            return Err(CallError::LayoutMismatch(message));
        }
        self.has_begun = true;
        Ok(())
    }

    /// Verifies frames of one level, whole, decodes them, and only then places them. Tells what came, up to the first that is wrong, and what is
    /// wrong with it. Dropping the future places nothing.
    pub(crate) async fn admit(&mut self, frames: &[Frame]) -> (Vec<LevelTraffic>, Result<(), CallError>) {
        let (mut verified, mut wrong) = (Vec::with_capacity(frames.len()), Ok(()));
        for frame in frames {
            match self.verify(frame) {
                Ok(one) => verified.push((frame, one)),
                Err(error) => {
                    wrong = Err(error);
                    break;
                }
            }
        }
        let mut placed = Vec::with_capacity(verified.len());
        let outcome = self.place_all(&verified, &mut placed).await;
        (placed, outcome.and(wrong))
    }

    async fn place_all(
        &mut self,
        verified: &[(&Frame, Verified)],
        placed: &mut Vec<LevelTraffic>,
    ) -> Result<(), CallError> {
        let is_raw = verified.iter().all(|(_, one)| one.level == LEVEL_RAW);
        let mut decoded = if is_raw {
            None
        } else {
            Some(self.decode(verified).await?)
        };
        for (index, (frame, one)) in verified.iter().enumerate() {
            let decode_nanos = match &mut decoded {
                None => {
                    self.place(&one.range, &frame.data)?;
                    0
                }
                Some(decoded) => {
                    self.place_decoded(index, &one.range, decoded)?;
                    decoded.nanos_each
                }
            };
            self.bytes += frame.data.len() as u64;
            self.frames += 1;
            placed.push(LevelTraffic {
                level: one.level.into(),
                wire_bytes: frame.data.len() as u64,
                raw_bytes: one.raw_bytes as u64,
                encode_nanos: frame.encode_nanos,
                decode_nanos,
            });
        }
        Ok(())
    }

    /// Checks all of a frame but what its data decode to, and counts it as having come.
    fn verify(&mut self, frame: &Frame) -> Result<Verified, CallError> {
        if !self.has_begun {
            return Err(CallError::Internal("the source began without a header".into()));
        }
        let layers = frame.layer_begin..frame.layer_begin.saturating_add(frame.layer_count);
        let tokens = frame.token_begin..frame.token_begin.saturating_add(frame.token_count);
        let displaced = |next: &str| {
            let (begin, count) = (frame.token_begin, frame.token_count);
            let message = format!("a frame of tokens {begin}+{count} and layers {layers:?} came where {next}");
            CallError::DigestMismatch(message)
        };
        let within = layers.end <= self.route.part.layers.end;
        let Some(pieces) = self.arrived.pieces().of(tokens.clone()).filter(|_| within) else {
            let (token, layer) = (self.token_end(), self.route.part.layers.end);
            return Err(displaced(&format!(
                "tokens from {token} in whole blocks and layers below {layer} are left"
            )));
        };
        let asked = self.fetch.levels.of(&tokens).map(u32::from);
        let level = u8::try_from(frame.level).unwrap_or(u8::MAX);
        if !asked.is_some_and(|asked| Levels::allows(asked as u8, level)) {
            let own = frame.level;
            return Err(displaced(&format!("level {asked:?} was asked for, not {own}")));
        }
        if frame.layout_fingerprint != self.sidecar.layout.fingerprint {
            return Err(CallError::LayoutMismatch("a frame of another model's KV came".into()));
        }
        let refused = |what: &str| {
            let message = format!("the frame at token {} {what}", frame.token_begin);
            Err(CallError::DigestMismatch(message))
        };
        if frame.tenant_scope != self.fetch.tenant_scope {
            return refused("is of another tenant");
        }
        if frame.digest != xxh3_128(&frame.data).to_be_bytes() {
            return refused("was altered on its way");
        }
        let raw_bytes = tokens.len() * layers.len() * self.token_layer_bytes(self.dtype);
        if level == LEVEL_RAW && frame.data.len() != raw_bytes {
            return refused(&format!("has {} bytes, which is not its size", frame.data.len()));
        }
        let range = FrameRange {
            pieces,
            layers: layers.clone(),
        };
        self.arrived
            .take(&range)
            .map_err(|layer| displaced(&format!("layer {layer} was next")))?;
        Ok(Verified {
            range,
            level,
            raw_bytes,
        })
    }

    /// The elements of coded frames.
    async fn decode(&self, frames: &[(&Frame, Verified)]) -> Result<Decoded, CallError> {
        let expected = |(frame, one): &(&Frame, Verified)| {
            let expected = Expected {
                range: chunk_range(&one.range, self.arrived.pieces()),
                level: one.level,
                elements_digest: frame.elements_digest.clone(),
            };
            (expected, frame.data.clone())
        };
        let coding = self.sidecar.coders.take(self.fetch.levels.profile()).await?;
        coding.decode(frames.iter().map(expected).collect()).await
    }

    fn place_decoded(&self, index: usize, range: &FrameRange, decoded: &mut Decoded) -> Result<(), CallError> {
        let (pieces, blocks) = (self.arrived.pieces(), &self.fetch.request.block_ids);
        let place = ChunkPlace::of_frame(range, pieces, self.sidecar.block_size(), blocks)?;
        let written = self.fetch.gate.write(|| decoded.write(index, &place));
        written.unwrap_or_else(|| Err(fenced()))
    }

    fn place(&self, range: &FrameRange, data: &[u8]) -> Result<(), CallError> {
        let own = self.sidecar.layout.dtype;
        let data = if self.dtype == own {
            Cow::Borrowed(data)
        } else {
            let mut converted = Vec::new();
            convert(self.sidecar.isa, self.dtype, data, own, &mut converted);
            Cow::Owned(converted)
        };
        let first_head = self.sidecar.pool.heads(self.route.sink).start as u32;
        let heads = self.route.part.heads.start - first_head..self.route.part.heads.end - first_head;
        let written = self.fetch.gate.write(|| self.scatter(range, &heads, &data));
        match written {
            None => Err(fenced()),
            Some(placed) => placed.map_err(|error| CallError::DigestMismatch(error.to_string())),
        }
    }

    fn scatter(&self, range: &FrameRange, heads: &Range<u32>, mut data: &[u8]) -> Result<(), PoolError> {
        let pool = &self.sidecar.pool.shards()[self.route.sink];
        let token_bytes = range.layers.len() * self.token_layer_bytes(self.sidecar.layout.dtype);
        for piece in range.pieces.clone() {
            let tokens = self.arrived.pieces().tokens(piece..piece + 1);
            let (packed, rest) = data.split_at(tokens.len() * token_bytes);
            data = rest;
            let (index, within) = within_block(&tokens, self.sidecar.block_size());
            let block = self.fetch.request.block_ids[index];
            pool.scatter(block, within, range.layers.clone(), heads.clone(), packed)?;
        }
        Ok(())
    }

    /// Bytes of one token's keys and values in one layer of this stream.
    fn token_layer_bytes(&self, dtype: KvDtype) -> usize {
        2 * self.route.part.heads.len() * self.sidecar.layout.head_size * dtype.byte_size()
    }

    /// Whether everything came.
    pub(crate) fn end(&mut self, end: &PullEnd) -> Result<(), CallError> {
        if !self.arrived.is_complete() || end.data_bytes != self.bytes || end.frame_count != self.frames {
            let message = format!(
                "the source ended after {} bytes in {} frames, {} and {} came, up to token {} of {}",
                end.data_bytes,
                end.frame_count,
                self.bytes,
                self.frames,
                self.token_end(),
                self.fetch.request.token_end
            );
            return Err(CallError::DigestMismatch(message));
        }
        self.is_ended = true;
        Ok(())
    }
}
