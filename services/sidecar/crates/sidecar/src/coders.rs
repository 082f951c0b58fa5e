//! Encoding and decoding of frames: which profiles there are, and threads beside those of the device and of the connections.

use std::ops::Range;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use kvasir_codec::{
    Chunk, ChunkRange, Codec, CodecError, KvShapeOfModel, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, LEVEL_RAW, Prepared,
    Profile, ProfileId,
};
use tokio::sync::Semaphore;
use xxhash_rust::xxh3::xxh3_128;

use crate::builtin_profile::builtin_profile;
use crate::codec_speed::{Speed, measure};
use crate::errors::CallError;
use crate::exports::lock;
use crate::levels::{Levels, spans_from_wire};
use crate::proto::kernel::{CodecLevel, CodecProfile};
use crate::proto::transfer::TokenLevel;

/// Frames that are encoded or decoded at a time. Larger: several pulls go on at once; smaller: more of the machine is left for the device.
const THREADS: usize = 2;
/// Said of the built-in tables before anything was sent.
const BUILTIN_RATIO: f64 = 1.3;

/// Codecs of one model, for whoever has a frame.
pub struct Coders {
    known: Vec<Known>,
    shape: Option<KvShapeOfModel>,
    /// Codecs that nobody uses now.
    idle: Mutex<Vec<(ProfileId, Codec)>>,
    threads: Arc<Semaphore>,
}

struct Known {
    prepared: Arc<Prepared>,
    layers_each: Vec<u32>,
    /// Of each level.
    speeds: Vec<Speed>,
}

/// What is asked of a pull.
pub struct LevelRequest<'a> {
    /// Spans.
    pub levels: &'a [TokenLevel],
    /// Profile, empty where all is raw.
    pub profile_id: &'a [u8],
    /// Tokens of the pull.
    pub tokens: Range<u32>,
    /// Where tokens may be cut.
    pub piece_size: u32,
    /// Whether elements travel as both sides have them, and with all heads: chunks are of whole layers and of one type.
    pub is_whole: bool,
}

/// A frame's bytes.
pub struct Encoded {
    /// The chunk.
    pub data: Bytes,
    /// Its level: that which was asked, or lossless.
    pub level: u8,
    /// Of the elements, for the lossless level.
    pub elements_digest: Vec<u8>,
    /// Time on the thread.
    pub nanos: u64,
}

/// A frame's elements.
pub struct Decoded {
    /// `[layer][K, V][kv_head][token][head_size]`.
    pub packed: Vec<u8>,
    /// Time on the thread.
    pub nanos: u64,
}

/// A chunk that should be in a frame.
pub struct Expected<'a> {
    /// Tokens and layers.
    pub range: ChunkRange,
    /// Level.
    pub level: u8,
    /// Profile.
    pub profile: ProfileId,
    /// Of the elements, for the lossless level.
    pub elements_digest: &'a [u8],
}

impl Coders {
    /// Nothing but raw.
    pub fn none() -> Arc<Self> {
        Arc::new(Self {
            known: Vec::new(),
            shape: None,
            idle: Mutex::default(),
            threads: Arc::new(Semaphore::new(THREADS)),
        })
    }

    /// The built-in profile and, where there is one, the model's own.
    ///
    /// # Errors
    /// [`CodecError`] when the profile is of another shape.
    pub fn new(shape: KvShapeOfModel, own: Option<(Profile, ProfileId)>) -> Result<Arc<Self>, CodecError> {
        let profiles = [Some(builtin_profile(&shape)?), own];
        let known = profiles.into_iter().flatten().map(|(profile, id)| {
            let prepared = Arc::new(Prepared::new(profile, id)?);
            let mut codec = Codec::new(shape.clone(), Some(Arc::clone(&prepared)))?;
            let each = |level| codec.layers_each(level).map(|each| each as u32);
            let layers_each = (0..codec.level_count()).map(each).collect::<Result<Vec<_>, _>>()?;
            let speeds = measure(&mut codec, &shape, prepared.profile())?;
            Ok::<_, CodecError>(Known {
                prepared,
                layers_each,
                speeds,
            })
        });
        Ok(Arc::new(Self {
            known: known.collect::<Result<Vec<_>, _>>()?,
            shape: Some(shape),
            idle: Mutex::default(),
            threads: Arc::new(Semaphore::new(THREADS)),
        }))
    }

    /// What the worker and its peers are told.
    pub fn describe(&self) -> Vec<CodecProfile> {
        let one = |known: &Known| CodecProfile {
            id: known.prepared.id().0.to_vec(),
            levels: known
                .speeds
                .iter()
                .enumerate()
                .map(|(level, speed)| known.describe(level as u8, speed))
                .collect(),
        };
        self.known.iter().map(one).collect()
    }

    /// The name of a level of a profile.
    pub fn name(&self, profile: ProfileId, level: u8) -> String {
        let lossy = usize::from(level).checked_sub(usize::from(LEVEL_LOSSY_FROM));
        match (level, lossy, self.find(&profile.0)) {
            (LEVEL_RAW, ..) => "raw".into(),
            (LEVEL_LOSSLESS, ..) => "lossless".into(),
            (_, Some(index), Some(known)) => {
                let found = known.prepared.profile().levels.get(index);
                found.map_or_else(|| level.to_string(), |own| own.name.clone())
            }
            _ => level.to_string(),
        }
    }

    fn find(&self, id: &[u8]) -> Option<&Known> {
        self.known.iter().find(|known| known.prepared.id().0.as_slice() == id)
    }

    /// Whether we can have a pull at the levels that it asks for.
    ///
    /// # Errors
    /// [`CallError::InvalidRequest`] for spans that cannot be, [`CallError::CodecMismatch`] for levels that are not to be had.
    pub fn levels(&self, request: &LevelRequest<'_>) -> Result<Levels, CallError> {
        let spans = spans_from_wire(request.levels, &request.tokens, request.piece_size);
        let spans = spans.map_err(|message| CallError::InvalidRequest {
            field: "levels".into(),
            message,
        })?;
        if spans.is_empty() {
            return Ok(Levels::raw());
        }
        if !request.is_whole {
            let message =
                "the two layouts differ in element type or divide the heads; coded levels need them whole, use raw";
            return Err(CallError::CodecMismatch(message.into()));
        }
        let known = self.find(request.profile_id).ok_or_else(|| {
            let (asked, own) = (hex(request.profile_id), self.known.iter().map(|own| own.prepared.id().to_string()));
            let own = own.collect::<Vec<_>>().join(", ");
            CallError::CodecMismatch(format!(
                "codec profile {asked} is not known here ({own} are); use raw, or start both sidecars with one --codec-profile"
            ))
        })?;
        let count = known.layers_each.len();
        if let Some((_, level)) = spans.iter().find(|(_, level)| usize::from(*level) >= count) {
            let id = known.prepared.id();
            let message = format!("codec profile {id} has no level {level}; its levels are below {count}");
            return Err(CallError::CodecMismatch(message));
        }
        Ok(Levels::of_profile(
            spans,
            known.prepared.id(),
            known.layers_each.clone(),
        ))
    }

    /// Encodes elements; what no lossy level can encode becomes lossless. Dropping the future loses the result and nothing else.
    ///
    /// # Errors
    /// [`CallError::Internal`].
    pub async fn encode(
        self: &Arc<Self>,
        profile: ProfileId,
        level: u8,
        range: ChunkRange,
        packed: Vec<u8>,
    ) -> Result<Encoded, CallError> {
        let work = move |codec: &mut Codec| {
            let began = Instant::now();
            let mut data = Vec::with_capacity(packed.len());
            let mut used = level;
            if let Err(error) = codec.encode(used, &range, &packed, &mut data) {
                if error != CodecError::NotFinite {
                    return Err(CallError::Internal(format!("a frame could not be encoded: {error}")));
                }
                used = LEVEL_LOSSLESS;
                codec
                    .encode(used, &range, &packed, &mut data)
                    .map_err(|error| CallError::Internal(error.to_string()))?;
            }
            let elements_digest = match used {
                LEVEL_LOSSLESS => xxh3_128(&packed).to_be_bytes().to_vec(),
                _ => Vec::new(),
            };
            Ok(Encoded {
                data: Bytes::from(data),
                level: used,
                elements_digest,
                nanos: nanos_since(began),
            })
        };
        self.run(profile, work).await
    }

    /// Decodes a frame that should hold a chunk. Dropping the future loses the result and nothing else.
    ///
    /// # Errors
    /// [`CallError::DigestMismatch`] when it holds another chunk, or bytes that decode to nothing or to other elements.
    pub async fn decode(self: &Arc<Self>, expected: Expected<'_>, data: Bytes) -> Result<Decoded, CallError> {
        let Expected {
            range, level, profile, ..
        } = expected;
        let elements_digest = expected.elements_digest.to_vec();
        let work = move |codec: &mut Codec| {
            let began = Instant::now();
            let refused = |error: CodecError| CallError::DigestMismatch(format!("a frame cannot be decoded: {error}"));
            let (chunk, rest) = Chunk::read(&data).map_err(refused)?;
            if !rest.is_empty() || chunk.range != range || chunk.level != level || chunk.profile != profile {
                let (found, at) = (&chunk.range, chunk.level);
                let message =
                    format!("a frame holds a chunk of {found:?} at level {at} where {range:?} at {level} is due");
                return Err(CallError::DigestMismatch(message));
            }
            let mut packed = Vec::new();
            codec.decode(&chunk, &mut packed).map_err(refused)?;
            if level == LEVEL_LOSSLESS && elements_digest != xxh3_128(&packed).to_be_bytes() {
                let message = format!("{range:?} decodes to other elements than were encoded");
                return Err(CallError::DigestMismatch(message));
            }
            Ok(Decoded {
                packed,
                nanos: nanos_since(began),
            })
        };
        self.run(profile, work).await
    }

    /// Runs on a thread of its own, with a codec that nobody else uses.
    async fn run<T: Send + 'static>(
        self: &Arc<Self>,
        profile: ProfileId,
        work: impl FnOnce(&mut Codec) -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let internal = |error: &dyn std::fmt::Display| CallError::Internal(format!("coding a frame: {error}"));
        let permit = Arc::clone(&self.threads)
            .acquire_owned()
            .await
            .map_err(|error| internal(&error))?;
        let own = Arc::clone(self);
        let running = tokio::task::spawn_blocking(move || {
            let mut codec = own.take(profile)?;
            let outcome = work(&mut codec);
            lock(&own.idle).push((profile, codec));
            drop(permit);
            outcome
        });
        running.await.map_err(|error| internal(&error))?
    }

    fn take(&self, profile: ProfileId) -> Result<Codec, CallError> {
        let mut idle = lock(&self.idle);
        if let Some(index) = idle.iter().position(|(id, _)| *id == profile) {
            return Ok(idle.swap_remove(index).1);
        }
        drop(idle);
        let missing = || CallError::Internal(format!("codec profile {profile} is not known here"));
        let (known, shape) = self.find(&profile.0).zip(self.shape.clone()).ok_or_else(missing)?;
        Codec::new(shape, Some(Arc::clone(&known.prepared))).map_err(|error| CallError::Internal(error.to_string()))
    }
}

impl Known {
    fn describe(&self, level: u8, speed: &Speed) -> CodecLevel {
        let profile = self.prepared.profile();
        let raw_bits = 8.0 * profile.exponents.dtype.byte_size() as f64;
        let lossy = level
            .checked_sub(LEVEL_LOSSY_FROM)
            .and_then(|index| profile.levels.get(usize::from(index)));
        let (name, ratio, kl) = match (level, lossy) {
            (_, Some(own)) if own.accuracy.bits_per_value > 0.0 => {
                let ratio = raw_bits / f64::from(own.accuracy.bits_per_value);
                (own.name.clone(), ratio, f64::from(own.accuracy.kl))
            }
            (_, Some(own)) => (own.name.clone(), speed.ratio, -1.0),
            (LEVEL_RAW, _) => ("raw".to_owned(), 1.0, 0.0),
            _ => ("lossless".to_owned(), BUILTIN_RATIO, 0.0),
        };
        CodecLevel {
            name,
            ratio,
            kl,
            encode_bytes_per_second: speed.encode,
            decode_bytes_per_second: speed.decode,
        }
    }
}

fn nanos_since(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
