//! A coder in somebody's hands: on a thread of its own while it codes, beside those of the device's steps and of the connections.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use kvasir_codec::{Chunk, ChunkRange, CodecError, LEVEL_LOSSLESS, ProfileId};
use tokio::sync::OwnedSemaphorePermit;

use crate::chunk_coder::{ChunkCoder, ChunkPlace, CoderError, EncodedChunk};
use crate::coders::Coders;
use crate::errors::CallError;

/// A coder until it is dropped.
pub struct Coding {
    /// None only while it is being dropped.
    coder: Option<Box<dyn ChunkCoder>>,
    profile: ProfileId,
    home: Arc<Coders>,
    _permit: OwnedSemaphorePermit,
}

/// A frame's bytes.
pub struct Encoded {
    /// The chunk.
    pub data: Bytes,
    /// Its level: that which was asked, or lossless.
    pub level: u8,
    /// Of the elements, for the lossless level.
    pub elements_digest: Vec<u8>,
    /// Time on the thread, its share of those that were coded together.
    pub nanos: u64,
}

/// Frames' elements, on the way to their blocks.
pub struct Decoded {
    coding: Coding,
    /// Of each frame, up to the first that is wrong.
    outcomes: Vec<Result<(), CallError>>,
    /// Time on the thread for each frame.
    pub nanos_each: u64,
}

/// A chunk that should be in a frame.
pub struct Expected {
    /// Tokens and layers.
    pub range: ChunkRange,
    /// Level.
    pub level: u8,
    /// Of the elements, for the lossless level.
    pub elements_digest: Vec<u8>,
}

impl Coding {
    pub(crate) fn new(
        coder: Box<dyn ChunkCoder>,
        profile: ProfileId,
        home: Arc<Coders>,
        permit: OwnedSemaphorePermit,
    ) -> Self {
        Self {
            coder: Some(coder),
            profile,
            home,
            _permit: permit,
        }
    }

    fn coder(&mut self) -> Result<&mut Box<dyn ChunkCoder>, CallError> {
        let coder = self.coder.as_mut();
        coder.ok_or_else(|| CallError::Internal("a coder was given back before it was used".into()))
    }

    /// Copies the elements of chunks out of their blocks.
    ///
    /// # Errors
    /// [`CallError::Internal`].
    pub fn read(&mut self, places: &[ChunkPlace]) -> Result<(), CallError> {
        self.coder()?.read(places).map_err(internal)
    }

    /// Encodes what was read; what no lossy level can encode becomes lossless. Dropping the future loses the result and nothing else.
    ///
    /// # Errors
    /// [`CallError::Internal`].
    pub async fn encode(mut self, level: u8) -> Result<Vec<Encoded>, CallError> {
        on_a_thread(move || {
            let began = Instant::now();
            let chunks = self.coder()?.encode(level).map_err(internal)?;
            let nanos = nanos_each(began, chunks.len());
            let digest = |digest: u128| digest.to_be_bytes().to_vec();
            let frame = |chunk: EncodedChunk| Encoded {
                data: Bytes::from(chunk.data),
                level: chunk.level,
                elements_digest: chunk.elements_digest.map_or_else(Vec::new, digest),
                nanos,
            };
            Ok(chunks.into_iter().map(frame).collect())
        })
        .await
    }

    /// Decodes frames, each of which should hold a chunk; [`Decoded::write`] says of which that is so. Dropping the future loses the result and
    /// nothing else.
    ///
    /// # Errors
    /// [`CallError::Internal`].
    pub async fn decode(mut self, frames: Vec<(Expected, Bytes)>) -> Result<Decoded, CallError> {
        on_a_thread(move || {
            let began = Instant::now();
            let (mut chunks, mut wrong) = (Vec::with_capacity(frames.len()), None);
            for (expected, data) in &frames {
                match expected.chunk_of(data, self.profile) {
                    Ok(chunk) => chunks.push(chunk),
                    Err(error) => {
                        wrong = Some(Err(error));
                        break;
                    }
                }
            }
            let decoded = self.coder()?.decode(&chunks).map_err(internal)?;
            let check = |((expected, _), outcome): (&(Expected, Bytes), Result<_, CodecError>)| {
                expected.check(outcome.map_err(refused)?)
            };
            let outcomes = frames.iter().zip(decoded).map(check).chain(wrong).collect();
            let nanos_each = nanos_each(began, frames.len());
            Ok(Decoded {
                coding: self,
                outcomes,
                nanos_each,
            })
        })
        .await
    }
}

impl Drop for Coding {
    fn drop(&mut self) {
        if let Some(coder) = self.coder.take() {
            self.home.put_back(self.profile, coder);
        }
    }
}

impl Decoded {
    /// Writes the elements of a frame, by its index, to their blocks.
    ///
    /// # Errors
    /// [`CallError::DigestMismatch`] when it holds another chunk, or bytes that decode to nothing or to other elements, or when there are no such
    /// blocks.
    pub fn write(&mut self, index: usize, place: &ChunkPlace) -> Result<(), CallError> {
        let missing = || CallError::Internal("a frame was not decoded".into());
        self.outcomes.get(index).cloned().ok_or_else(missing)??;
        let written = self.coding.coder()?.write(index, place);
        written.map_err(|error| match error {
            CoderError::Pool(error) => CallError::DigestMismatch(error.to_string()),
            error => internal(error),
        })
    }
}

impl Expected {
    /// The chunk of a frame.
    fn chunk_of<'a>(&self, data: &'a [u8], profile: ProfileId) -> Result<Chunk<'a>, CallError> {
        let (chunk, rest) = Chunk::read(data).map_err(refused)?;
        let Self { range, level, .. } = self;
        if rest.is_empty() && chunk.range == *range && chunk.level == *level && chunk.profile == profile {
            return Ok(chunk);
        }
        let (found, at) = (&chunk.range, chunk.level);
        let message = format!("a frame holds a chunk of {found:?} at level {at} where {range:?} at {level} is due");
        Err(CallError::DigestMismatch(message))
    }

    /// Whether these are the elements that were encoded.
    fn check(&self, digest: Option<u128>) -> Result<(), CallError> {
        if self.level != LEVEL_LOSSLESS || digest.is_some_and(|own| own.to_be_bytes()[..] == self.elements_digest) {
            return Ok(());
        }
        let message = format!("{:?} decodes to other elements than were encoded", self.range);
        Err(CallError::DigestMismatch(message))
    }
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    let running = tokio::task::spawn_blocking(work).await;
    running.map_err(|error| CallError::Internal(format!("coding frames: {error}")))?
}

fn nanos_each(began: Instant, count: usize) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX) / count.max(1) as u64
}

fn refused(error: CodecError) -> CallError {
    CallError::DigestMismatch(format!("a frame cannot be decoded: {error}"))
}

fn internal(error: CoderError) -> CallError {
    CallError::Internal(format!("coding frames: {error}"))
}
