//! One stream of a pull: from one shard of the source into one of ours.

use std::borrow::Cow;
use std::ops::Range;

use kvasir_codec::{ChunkRange, LEVEL_RAW};
use kvasir_engine::KvDtype;
use kvasir_kernels::{PoolError, convert};
use xxhash_rust::xxh3::xxh3_128;

use crate::coders::Expected;
use crate::errors::CallError;
use crate::fetch::{Fetch, fenced};
use crate::frames::{Coverage, FrameRange, within_block};
use crate::intervals::Route;
use crate::layouts::{dtype_from_wire, frame_dtype, layout_to_wire};
use crate::levels::Levels;
use crate::packing;
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

    /// Verifies a frame, whole, decodes it, and only then places it. Tells what came. Dropping the future places nothing.
    pub(crate) async fn admit(&mut self, frame: &Frame) -> Result<LevelTraffic, CallError> {
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
        let decoded = match level {
            LEVEL_RAW => None,
            _ => Some(self.decode(frame, level, &range).await?),
        };
        let (elements, decode_nanos) = match &decoded {
            None => (frame.data.as_ref(), 0),
            Some((elements, nanos)) => (elements.as_slice(), *nanos),
        };
        self.place(&range, elements)?;
        self.bytes += frame.data.len() as u64;
        self.frames += 1;
        Ok(LevelTraffic {
            level: level.into(),
            wire_bytes: frame.data.len() as u64,
            raw_bytes: raw_bytes as u64,
            encode_nanos: frame.encode_nanos,
            decode_nanos,
        })
    }

    /// The elements of a coded frame, by pieces, and how long it took.
    async fn decode(&self, frame: &Frame, level: u8, range: &FrameRange) -> Result<(Vec<u8>, u64), CallError> {
        let expected = Expected {
            range: ChunkRange {
                token_begin: frame.token_begin,
                token_count: frame.token_count,
                layers: range.layers.start as u16..range.layers.end as u16,
            },
            level,
            profile: self.fetch.levels.profile(),
            elements_digest: &frame.elements_digest,
        };
        let decoded = self.sidecar.coders.decode(expected, frame.data.clone()).await?;
        let counts = self.arrived.pieces().counts(range.pieces.clone());
        let run = self.sidecar.layout.head_size * self.dtype.byte_size();
        Ok((packing::split(&decoded.packed, &counts, run), decoded.nanos))
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
