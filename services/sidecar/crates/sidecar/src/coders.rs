//! Which codec profiles there are, at which levels KV may travel, and coders for whoever has frames.

use std::ops::Range;
use std::sync::{Arc, Mutex};

use kvasir_codec::{Codec, KvShapeOfModel, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, LEVEL_RAW, Prepared, Profile, ProfileId};
use tokio::sync::Semaphore;

use crate::builtin_profile::builtin_profile;
use crate::chunk_coder::{ChunkCoder, CoderError, CodingSite};
use crate::codec_speed::{Speed, measure};
use crate::coding::Coding;
use crate::errors::CallError;
use crate::exports::lock;
use crate::levels::{Levels, spans_from_wire};
use crate::proto::kernel::{CodecLevel, CodecProfile};
use crate::proto::transfer::TokenLevel;

/// Coders that are used at a time. Larger: several pulls go on at once; smaller: more of the machine is left for the device.
pub const THREADS: usize = 2;
/// Said of the built-in tables before anything was sent.
const BUILTIN_RATIO: f64 = 1.3;

/// Codecs of one model, for whoever has a frame.
pub struct Coders {
    known: Vec<Known>,
    made: Option<(KvShapeOfModel, Arc<dyn CodingSite>)>,
    /// Coders that nobody uses now.
    idle: Mutex<Vec<(ProfileId, Box<dyn ChunkCoder>)>>,
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

impl Coders {
    /// Nothing but raw.
    pub fn none() -> Arc<Self> {
        Arc::new(Self {
            known: Vec::new(),
            made: None,
            idle: Mutex::default(),
            threads: Arc::new(Semaphore::new(THREADS)),
        })
    }

    /// The built-in profile and, where there is one, the model's own, for KV at `site`, whose speed is measured.
    ///
    /// # Errors
    /// [`CoderError::Codec`] when the profile is of another shape, [`CoderError::Device`].
    pub fn new(
        shape: KvShapeOfModel,
        own: Option<(Profile, ProfileId)>,
        site: Arc<dyn CodingSite>,
    ) -> Result<Arc<Self>, CoderError> {
        let (mut known, mut idle) = (Vec::new(), Vec::new());
        for (profile, id) in [Some(builtin_profile(&shape)?), own].into_iter().flatten() {
            let prepared = Arc::new(Prepared::new(profile, id)?);
            let codec = Codec::new(shape.clone(), Some(Arc::clone(&prepared)))?;
            let levels = 0..codec.level_count();
            let layers_each = levels.map(|level| Ok(codec.layers_each(level)? as u32));
            let layers_each = layers_each.collect::<Result<Vec<u32>, CoderError>>()?;
            let mut coder = site.coder(&shape, &prepared)?;
            let speeds = measure(
                &mut *coder,
                site.chunks_at_once(),
                &shape,
                prepared.profile(),
                &layers_each,
            )?;
            known.push(Known {
                prepared,
                layers_each,
                speeds,
            });
            idle.push((id, coder));
        }
        Ok(Arc::new(Self {
            known,
            made: Some((shape, site)),
            idle: Mutex::new(idle),
            threads: Arc::new(Semaphore::new(THREADS)),
        }))
    }

    /// Frames that are best coded together.
    pub fn chunks_at_once(&self) -> usize {
        self.made.as_ref().map_or(1, |(_, site)| site.chunks_at_once())
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

    /// A coder that nobody else uses, when there is one.
    ///
    /// # Errors
    /// [`CallError::Internal`] for a profile that is not among ours.
    pub async fn take(self: &Arc<Self>, profile: ProfileId) -> Result<Coding, CallError> {
        let internal = |error: &dyn std::fmt::Display| CallError::Internal(format!("coding frames: {error}"));
        let threads = Arc::clone(&self.threads).acquire_owned();
        let permit = threads.await.map_err(|error| internal(&error))?;
        let coder = match self.idle_one(profile) {
            Some(coder) => coder,
            None => {
                let missing = || CallError::Internal(format!("codec profile {profile} is not known here"));
                let (known, (shape, site)) = self.find(&profile.0).zip(self.made.as_ref()).ok_or_else(missing)?;
                site.coder(shape, &known.prepared).map_err(|error| internal(&error))?
            }
        };
        Ok(Coding::new(coder, profile, Arc::clone(self), permit))
    }

    fn idle_one(&self, profile: ProfileId) -> Option<Box<dyn ChunkCoder>> {
        let mut idle = lock(&self.idle);
        let index = idle.iter().position(|(id, _)| *id == profile)?;
        Some(idle.swap_remove(index).1)
    }

    pub(crate) fn put_back(&self, profile: ProfileId, coder: Box<dyn ChunkCoder>) {
        lock(&self.idle).push((profile, coder));
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

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
