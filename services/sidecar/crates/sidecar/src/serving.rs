//! One pull being served: frames as they are computed, in turn with the others of its connection.

use std::ops::Range;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kvasir_codec::LEVEL_RAW;
use kvasir_engine::KvDtype;
use kvasir_kernels::convert;
use tokio::sync::mpsc;
use xxhash_rust::xxh3::xxh3_128;

use crate::chunk_coder::ChunkPlace;
use crate::coding::Encoded;
use crate::errors::CallError;
use crate::exports::{Export, Progress};
use crate::frames::{Coverage, FrameRange, Pieces};
use crate::layouts::dtype_to_wire;
use crate::levels::Levels;
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
        let mut progress = self.admitted.export.follow();
        let mut wait_nanos = 0;
        while !self.sent.is_complete() {
            let now = *progress.borrow_and_update();
            if now.closed {
                return Err(closed());
            }
            match self.next(&self.sent, &now) {
                Some(range) if self.level(&range) == LEVEL_RAW => {
                    let turn = self.turn().await?;
                    // There may be more by now.
                    let range = self.next(&self.sent, &progress.borrow());
                    if let Some(range) = range.filter(|range| self.level(range) == LEVEL_RAW) {
                        let frame = self.raw_frame(&range, std::mem::take(&mut wait_nanos))?;
                        self.send_frame(&range, frame, turn).await?;
                    }
                    continue;
                }
                Some(_) => {
                    // Encoded before its turn: nobody waits for it meanwhile.
                    let ranges = self.coded_ranges(&now);
                    let frames = self.coded_frames(&ranges, std::mem::take(&mut wait_nanos)).await?;
                    for (range, frame) in ranges.iter().zip(frames) {
                        let turn = self.turn().await?;
                        self.send_frame(range, frame, turn).await?;
                    }
                    continue;
                }
                None => {}
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

    /// The frame after those that are `sent`.
    fn next(&self, sent: &Coverage, progress: &Progress) -> Option<FrameRange> {
        let Admitted {
            heads, dtype, levels, ..
        } = self.admitted;
        let token_layer_bytes = 2 * heads.len() * self.sidecar.layout.head_size * dtype.byte_size();
        let ready = |tokens: &Range<u32>| progress.layers_of(tokens.end);
        sent.next_frame(ready, token_layer_bytes, levels)
    }

    fn level(&self, range: &FrameRange) -> u8 {
        let tokens = self.admitted.pieces.tokens(range.pieces.clone());
        self.admitted.levels.of(&tokens).unwrap_or(LEVEL_RAW)
    }

    /// Frames that are ready at the level of the first of them: as many as are coded at once.
    fn coded_ranges(&self, progress: &Progress) -> Vec<FrameRange> {
        let mut ahead = self.sent.clone();
        let mut ranges: Vec<FrameRange> = Vec::new();
        while ranges.len() < self.sidecar.coders.chunks_at_once()
            && let Some(range) = self.next(&ahead, progress)
            && ranges
                .first()
                .is_none_or(|first| self.level(first) == self.level(&range))
            && ahead.take(&range).is_ok()
        {
            ranges.push(range);
        }
        ranges
    }

    /// Waits for the connection.
    async fn turn(&mut self) -> Result<Turn, CallError> {
        let mut progress = self.admitted.export.follow();
        tokio::select! {
            turn = self.line.turn() => Ok(turn),
            () = self.sender.closed() => Err(gone()),
            _ = progress.wait_for(|progress| progress.closed) => Err(closed()),
        }
    }

    async fn send_frame(&mut self, range: &FrameRange, frame: Frame, turn: Turn) -> Result<(), CallError> {
        let bytes = frame.data.len() as u64;
        self.send(Kind::Frame(frame), Some(turn)).await?;
        // Of our own choosing, so it is next.
        let _ = self.sent.take(range);
        self.bytes += bytes;
        self.frames += 1;
        add(&self.sidecar.stats.kv_bytes_sent, bytes);
        Ok(())
    }

    /// Reads blocks. The lease is checked before, and held open by the guard until the elements are copied; epoch cannot change within a process.
    fn leased(&self, read: impl FnOnce(&[u32]) -> Result<(), CallError>) -> Result<(), CallError> {
        let export = &self.admitted.export;
        let guard = export.read(unix_ms()).ok_or_else(closed)?;
        read(&export.terms.block_ids)?;
        drop(guard);
        if unix_ms() >= export.terms.expires_at_unix_ms {
            return Err(closed());
        }
        Ok(())
    }

    fn raw_frame(&self, range: &FrameRange, source_wait_nanos: u64) -> Result<Frame, CallError> {
        let Admitted {
            pieces, heads, shard, ..
        } = self.admitted;
        let (mut data, pool) = (Vec::new(), &self.sidecar.pool.shards()[*shard]);
        self.leased(|blocks| {
            let place = ChunkPlace::of_frame(range, pieces, self.sidecar.block_size(), blocks)?;
            for (block, within) in place.pieces {
                pool.gather(block, within, range.layers.clone(), heads.clone(), &mut data)
                    .map_err(|error| CallError::Internal(error.to_string()))?;
            }
            Ok(())
        })?;
        let own = self.sidecar.layout.dtype;
        if self.admitted.dtype != own {
            let mut converted = Vec::new();
            convert(self.sidecar.isa, own, &data, self.admitted.dtype, &mut converted);
            data = converted;
        }
        Ok(self.frame(range, Bytes::from(data), source_wait_nanos))
    }

    /// Frames of one level; the first one says how long the pull waited for them.
    async fn coded_frames(&self, ranges: &[FrameRange], source_wait_nanos: u64) -> Result<Vec<Frame>, CallError> {
        let Admitted { pieces, levels, .. } = self.admitted;
        let level = ranges.first().map_or(LEVEL_RAW, |first| self.level(first));
        let mut coding = self.sidecar.coders.take(levels.profile()).await?;
        self.leased(|blocks| {
            let place = |range| ChunkPlace::of_frame(range, pieces, self.sidecar.block_size(), blocks);
            coding.read(&ranges.iter().map(place).collect::<Result<Vec<_>, _>>()?)
        })?;
        let waits = std::iter::once(source_wait_nanos).chain(std::iter::repeat(0));
        let frames = coding.encode(level).await?.into_iter().zip(ranges).zip(waits);
        let frame = |((encoded, range), wait_nanos): ((Encoded, &FrameRange), u64)| Frame {
            level: encoded.level.into(),
            elements_digest: encoded.elements_digest,
            encode_nanos: encoded.nanos,
            ..self.frame(range, encoded.data, wait_nanos)
        };
        Ok(frames.map(frame).collect())
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
