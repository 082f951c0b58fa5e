//! One pull being served: frames as they are computed, in turn with the others of its connection.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kvasir_codec::{ChunkRange, LEVEL_RAW};
use kvasir_engine::KvDtype;
use kvasir_kernels::convert;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_128;

use crate::errors::CallError;
use crate::exports::{Export, Progress};
use crate::frames::{Coverage, FrameRange, Pieces, within_block};
use crate::layouts::dtype_to_wire;
use crate::levels::Levels;
use crate::packing;
use crate::proto::transfer::{Frame, PullEnd, PullHeader, PullResponse, pull_response::Kind};
use crate::state::Sidecar;
use crate::stats::add;
use crate::telemetry::unix_ms;
use crate::turns::{Line, Turn};

/// A pull that may be served.
pub(crate) struct Admitted {
    pub(crate) export: Arc<Export>,
    pub(crate) pieces: Pieces,
    pub(crate) shard: usize,
    /// Counted in the shard's pool.
    pub(crate) heads: Range<u32>,
    /// The same, counted in the model.
    pub(crate) model_heads: Range<u32>,
    pub(crate) dtype: KvDtype,
    pub(crate) levels: Levels,
}

/// A message on its way to the connection.
pub(crate) struct Outgoing {
    pub(crate) message: PullResponse,
    _turn: Option<Turn>,
}

/// How far a pull is.
pub(crate) struct Serving<'a> {
    sidecar: &'a Sidecar,
    admitted: &'a Admitted,
    sent: Coverage,
    line: Line,
    sender: mpsc::Sender<Outgoing>,
    pub(crate) bytes: u64,
    pub(crate) frames: u32,
}

impl<'a> Serving<'a> {
    /// Nothing sent yet.
    pub(crate) fn new(
        sidecar: &'a Sidecar,
        admitted: &'a Admitted,
        line: Line,
        sender: mpsc::Sender<Outgoing>,
    ) -> Self {
        let layers = 0..sidecar.layout.layer_count as u32;
        Self {
            sidecar,
            admitted,
            sent: Coverage::new(admitted.pieces.clone(), layers),
            line,
            sender,
            bytes: 0,
            frames: 0,
        }
    }

    /// Sends everything, as it is computed.
    pub(crate) async fn run(&mut self) -> Result<(), CallError> {
        let heads = &self.admitted.model_heads;
        let header = PullHeader {
            layout: Some(self.sidecar.wire_layout()),
            source_epoch: self.sidecar.epoch,
            frame_dtype: dtype_to_wire(self.admitted.dtype).into(),
            head_begin: heads.start,
            head_count: heads.len() as u32,
        };
        self.send(Kind::Header(header), None).await?;
        let token_layer_bytes = 2 * heads.len() * self.sidecar.layout.head_size * self.admitted.dtype.byte_size();
        let mut progress = self.admitted.export.follow();
        let mut wait_nanos = 0;
        while !self.sent.is_complete() {
            let next = |progress: &Progress| {
                let ready = |tokens: &Range<u32>| progress.layers_of(tokens.end);
                self.sent.next_frame(ready, token_layer_bytes, &self.admitted.levels)
            };
            let now = *progress.borrow_and_update();
            if now.closed {
                return Err(closed());
            }
            if let Some(range) = next(&now) {
                // Encoded before its turn: nobody waits for it meanwhile.
                let coded = match self.level(&range) {
                    LEVEL_RAW => None,
                    level => {
                        let frame = self.coded_frame(&range, level, std::mem::take(&mut wait_nanos)).await?;
                        Some((range, frame))
                    }
                };
                let turn = tokio::select! {
                    turn = self.line.turn() => turn,
                    () = self.sender.closed() => return Err(gone()),
                    _ = progress.wait_for(|progress| progress.closed) => return Err(closed()),
                };
                let (range, frame) = match coded {
                    Some(coded) => coded,
                    None => {
                        // There may be more by now.
                        let range = next(&progress.borrow()).filter(|range| self.level(range) == LEVEL_RAW);
                        let Some(range) = range else {
                            continue;
                        };
                        let frame = self.raw_frame(&range, std::mem::take(&mut wait_nanos))?;
                        (range, frame)
                    }
                };
                let bytes = frame.data.len() as u64;
                self.send(Kind::Frame(frame), Some(turn)).await?;
                // Of our own choosing, so it is next.
                let _ = self.sent.take(&range);
                self.bytes += bytes;
                self.frames += 1;
                add(&self.sidecar.stats.kv_bytes_sent, bytes);
                continue;
            }
            let waited = Instant::now();
            tokio::select! {
                changed = progress.changed() => changed.map_err(|_| closed())?,
                () = self.sender.closed() => return Err(gone()),
            }
            wait_nanos += u64::try_from(waited.elapsed().as_nanos()).unwrap_or(u64::MAX);
        }
        let end = PullEnd {
            data_bytes: self.bytes,
            frame_count: self.frames,
        };
        self.send(Kind::End(end), None).await
    }

    fn level(&self, range: &FrameRange) -> u8 {
        let tokens = self.admitted.pieces.tokens(range.pieces.clone());
        self.admitted.levels.of(&tokens).unwrap_or(LEVEL_RAW)
    }

    /// Reads one frame's elements, piece by piece. The lease is checked before, and held open by the guard until the bytes are copied; epoch
    /// cannot change within a process.
    fn read(&self, range: &FrameRange) -> Result<Vec<u8>, CallError> {
        let Admitted { export, pieces, .. } = self.admitted;
        let guard = export.read(unix_ms()).ok_or_else(closed)?;
        let mut data = Vec::new();
        for piece in range.pieces.clone() {
            self.gather(&pieces.tokens(piece..piece + 1), &range.layers, &mut data)?;
        }
        drop(guard);
        if unix_ms() >= export.terms.expires_at_unix_ms {
            return Err(closed());
        }
        Ok(data)
    }

    fn raw_frame(&self, range: &FrameRange, source_wait_nanos: u64) -> Result<Frame, CallError> {
        let mut data = self.read(range)?;
        let own = self.sidecar.layout.dtype;
        if self.admitted.dtype != own {
            let mut converted = Vec::new();
            convert(self.sidecar.isa, own, &data, self.admitted.dtype, &mut converted);
            data = converted;
        }
        Ok(self.frame(range, Bytes::from(data), source_wait_nanos))
    }

    async fn coded_frame(&self, range: &FrameRange, level: u8, source_wait_nanos: u64) -> Result<Frame, CallError> {
        let Admitted { pieces, levels, .. } = self.admitted;
        let run = self.sidecar.layout.head_size * self.admitted.dtype.byte_size();
        let packed = packing::joined(&self.read(range)?, &pieces.counts(range.pieces.clone()), run);
        let tokens = pieces.tokens(range.pieces.clone());
        let of_chunk = ChunkRange {
            token_begin: tokens.start,
            token_count: tokens.len() as u32,
            layers: range.layers.start as u16..range.layers.end as u16,
        };
        let coders = &self.sidecar.coders;
        let encoded = coders.encode(levels.profile(), level, of_chunk, packed).await?;
        Ok(Frame {
            level: encoded.level.into(),
            elements_digest: encoded.elements_digest,
            encode_nanos: encoded.nanos,
            ..self.frame(range, encoded.data, source_wait_nanos)
        })
    }

    /// A frame around raw elements, or around whatever the caller says that they are.
    fn frame(&self, range: &FrameRange, data: Bytes, source_wait_nanos: u64) -> Frame {
        let tokens = self.admitted.pieces.tokens(range.pieces.clone());
        Frame {
            token_begin: tokens.start,
            token_count: tokens.len() as u32,
            layer_begin: range.layers.start,
            layer_count: range.layers.len() as u32,
            level: LEVEL_RAW.into(),
            digest: xxh3_128(&data).to_be_bytes().to_vec(),
            layout_fingerprint: self.sidecar.layout.fingerprint.to_vec(),
            tenant_scope: self.admitted.export.terms.tenant_scope.to_vec(),
            data,
            source_wait_nanos,
            elements_digest: Vec::new(),
            encode_nanos: 0,
        }
    }

    fn gather(&self, tokens: &Range<u32>, layers: &Range<u32>, data: &mut Vec<u8>) -> Result<(), CallError> {
        let (index, within) = within_block(tokens, self.sidecar.block_size());
        let blocks = &self.admitted.export.terms.block_ids;
        let block = blocks
            .get(index)
            .ok_or_else(|| CallError::Internal(format!("the export has no block {index} for its tokens")))?;
        self.sidecar.pool.shards()[self.admitted.shard]
            .gather(*block, within, layers.clone(), self.admitted.heads.clone(), data)
            .map_err(|error| CallError::Internal(error.to_string()))
    }

    /// Waits while the puller is slower, but not longer than the lease lives.
    async fn send(&self, kind: Kind, turn: Option<Turn>) -> Result<(), CallError> {
        let mut progress = self.admitted.export.follow();
        let outgoing = Outgoing {
            message: PullResponse { kind: Some(kind) },
            _turn: turn,
        };
        tokio::select! {
            biased;
            sent = self.sender.send(outgoing) => sent.map_err(|_| gone()),
            _ = progress.wait_for(|progress| progress.closed) => Err(closed()),
        }
    }
}

fn closed() -> CallError {
    CallError::LeaseExpired("the lease was released or has expired; ask for a new ticket".into())
}

fn gone() -> CallError {
    CallError::Cancelled("the puller closed the stream".into())
}
