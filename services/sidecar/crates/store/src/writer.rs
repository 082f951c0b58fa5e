//! The only thread that writes: what is asked for meanwhile becomes one group, with one `fdatasync`.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, TryRecvError};

use crate::aligned::AlignedBuffer;
use crate::catalog;
use crate::compaction::Compaction;
use crate::error::StoreError;
use crate::index::Location;
use crate::object::{Accuracy, Key, Metadata, Object};
use crate::record::{HEADER_BYTES, Header, Kind, record_bytes};
use crate::recovery::{Records, location};
use crate::segment::{FIRST_RECORD, Segment};
use crate::segments::{SegmentState, Shared};
use crate::stats::{Counters, add};

/// Told once, when the outcome is known.
pub(crate) type Reply = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Bytes written at once. Larger: fewer syncs; smaller: less memory, and a group is answered sooner.
pub(crate) const GROUP_BYTES: usize = 32 << 20;
/// Keys of one removal record.
const REMOVAL_KEYS_MAX: usize = 65_536;

/// What the writer is asked for.
pub(crate) enum Command {
    Put(Arc<Object>, Reply),
    Remove(Vec<Key>, Reply),
}

/// What becomes true when the group is durable.
enum Effect {
    Put(Key, Location),
    Remove(Vec<Key>),
    Move { key: Key, from: Location, to: Location },
}

/// The segment that is written.
struct Active {
    segment: Arc<Segment>,
    records: Records,
    /// Where the next group goes.
    end: u64,
}

/// The writer's state.
pub(crate) struct Writer {
    pub directory: PathBuf,
    pub capacity_bytes: u64,
    pub segment_bytes: u64,
    pub direct: bool,
    pub shared: Arc<Shared>,
    pub counters: Arc<Counters>,
    pub last_id: u32,
    pub salt: Box<dyn FnMut() -> u64 + Send>,
    pub log: Log,
    pub compaction: Compaction,
}

/// What is written and not durable yet.
#[derive(Default)]
pub(crate) struct Log {
    active: Option<Active>,
    buffer: AlignedBuffer,
    records: Records,
    effects: Vec<Effect>,
    pending: HashSet<Key>,
    replies: Vec<Reply>,
}

impl Writer {
    /// Serves commands until all senders are gone.
    pub fn run(mut self, commands: &Receiver<Command>) {
        loop {
            let first = if self.has_compaction_work() {
                commands.try_recv()
            } else {
                commands.recv().map_err(TryRecvError::from)
            };
            match first {
                Ok(command) => {
                    self.accept(command);
                    while self.log.buffer.len() < GROUP_BYTES {
                        let Ok(command) = commands.try_recv() else { break };
                        self.accept(command);
                    }
                    self.commit();
                    self.resume_compaction();
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => break,
            }
            self.compact_some();
        }
        self.seal();
    }

    fn accept(&mut self, command: Command) {
        match command {
            Command::Put(object, reply) => self.put(&object, reply),
            Command::Remove(keys, reply) => {
                self.remove(&keys);
                self.log.replies.push(reply);
            }
        }
    }

    fn put(&mut self, object: &Object, reply: Reply) {
        let kept = self.shared.lock().index.get(object.key);
        let serves = kept.is_some_and(|kept| !kept.approximate || object.metadata.accuracy == Accuracy::Approximate);
        if serves && !self.log.pending.contains(&object.key) {
            return reply(Ok(()));
        }
        let wanted = record_bytes(object.value.len());
        let used = self.shared.lock().file_bytes() + self.log.buffer.len() as u64;
        // One segment's room is kept for compaction, which copies before it frees.
        if used + wanted + self.segment_bytes > self.capacity_bytes {
            let capacity = self.capacity_bytes.saturating_sub(self.segment_bytes);
            return reply(Err(StoreError::DiskFull { wanted, used, capacity }));
        }
        let header = Header {
            kind: Kind::Value,
            value_bytes: object.value.len() as u32,
            key: object.key,
            metadata: object.metadata,
            digest: object.digest,
        };
        match self.append(&header, object.value.chunks()) {
            Ok(at) => {
                add(&self.counters.bytes_persisted, wanted);
                self.log.effects.push(Effect::Put(object.key, at));
                self.log.pending.insert(object.key);
                self.log.replies.push(reply);
            }
            Err(error) => reply(Err(error)),
        }
    }

    /// Takes keys away. When that cannot be written it holds until the process ends: a block that comes back then is still the right one.
    pub(crate) fn remove(&mut self, keys: &[Key]) {
        let (mut present, tables) = (keys.to_vec(), self.shared.lock());
        present.retain(|key| tables.index.get(*key).is_some() || self.log.pending.contains(key));
        drop(tables);
        for part in present.chunks(REMOVAL_KEYS_MAX) {
            self.append_removal(part);
            self.log.effects.push(Effect::Remove(part.to_vec()));
        }
    }

    /// Writes that keys are gone.
    pub(crate) fn append_removal(&mut self, keys: &[Key]) {
        let value: Vec<u8> = keys.iter().flat_map(|key| key.0).collect();
        let header = Header {
            kind: Kind::Removal,
            value_bytes: value.len() as u32,
            key: Key([0; 16]),
            metadata: Metadata {
                tenant_scope: [0; 16],
                layout_fingerprint: [0; 16],
                token_count: 0,
                position: 0,
                expires_at_unix_ms: 0,
                accuracy: Accuracy::Exact,
                level: 0,
            },
            digest: xxhash_rust::xxh3::xxh3_128(&value),
        };
        // Without a segment to write to there is nothing more to do, see `remove`.
        let _ = self.append(&header, std::iter::once(&value[..]));
    }

    /// Copies a record for compaction.
    pub(crate) fn copy(&mut self, header: &Header, value: &[u8], from: Location) -> Result<(), StoreError> {
        let to = self.append(header, std::iter::once(value))?;
        add(&self.counters.bytes_compacted, header.record_bytes());
        self.log.effects.push(Effect::Move {
            key: header.key,
            from,
            to,
        });
        Ok(())
    }

    /// Bytes of the group so far.
    pub(crate) fn group_bytes(&self) -> usize {
        self.log.buffer.len()
    }

    /// Adds a record to the group, in a new segment when the active one is full.
    fn append<'a>(&mut self, header: &Header, value: impl Iterator<Item = &'a [u8]>) -> Result<Location, StoreError> {
        let bytes = header.record_bytes();
        let end = self
            .log
            .active
            .as_ref()
            .map(|active| active.end + self.log.buffer.len() as u64);
        if end.is_some_and(|end| end > FIRST_RECORD && end + bytes > self.segment_bytes) {
            self.commit();
            self.seal();
        }
        self.open_active()?;
        let Some(active) = &self.log.active else {
            return Err(StoreError::Closed);
        };
        let offset = active.end + self.log.buffer.len() as u64;
        let encoded = header.encode(active.segment.salt, offset);
        debug_assert_eq!(encoded.len(), HEADER_BYTES);
        self.log.buffer.append(&encoded);
        value.for_each(|chunk| self.log.buffer.append(chunk));
        self.log.buffer.pad();
        self.log.records.push((offset, *header));
        Ok(location(active.segment.id, offset, header))
    }

    fn open_active(&mut self) -> Result<(), StoreError> {
        if self.log.active.is_some() {
            return Ok(());
        }
        self.last_id += 1;
        let segment = Segment::create(&self.directory, self.last_id, (self.salt)(), self.direct)
            .map_err(|error| self.full_or(error))?;
        let state = SegmentState {
            segment: Arc::clone(&segment),
            file_bytes: FIRST_RECORD,
            live_bytes: 0,
            sealed: false,
        };
        self.shared.lock().segments.insert(segment.id, state);
        self.log.active = Some(Active {
            segment,
            records: Records::new(),
            end: FIRST_RECORD,
        });
        Ok(())
    }

    /// Writes the group, makes it durable, lets it take effect, and answers.
    pub(crate) fn commit(&mut self) {
        let mut outcome = Ok(());
        if !self.log.buffer.bytes().is_empty() {
            outcome = self.flush();
        }
        self.log.buffer.clear();
        self.log.pending.clear();
        let mut tables = self.shared.lock();
        for effect in self.log.effects.drain(..) {
            match (effect, &outcome) {
                (Effect::Remove(keys), _) => keys.into_iter().for_each(|key| {
                    tables.remove(key);
                }),
                (Effect::Put(key, at), Ok(())) => tables.put(key, at),
                (Effect::Move { key, from, to }, Ok(())) => tables.relocate(key, from, to),
                (Effect::Put(..) | Effect::Move { .. }, Err(_)) => {}
            }
        }
        drop(tables);
        for reply in self.log.replies.drain(..) {
            reply(outcome.clone());
        }
    }

    fn flush(&mut self) -> Result<(), StoreError> {
        let Some(active) = &mut self.log.active else {
            return Ok(());
        };
        let bytes = self.log.buffer.bytes();
        let written = active
            .segment
            .write(active.end, bytes)
            .and_then(|()| active.segment.sync());
        if let Err(error) = written {
            // What reached the medium is unknown, so nothing more goes to this file: it is cut back to what is.
            let _ = active.segment.truncate(active.end);
            self.log.records.clear();
            self.seal();
            return Err(self.full_or(error));
        }
        active.end += bytes.len() as u64;
        active.records.append(&mut self.log.records);
        if let Some(state) = self.shared.lock().segments.get_mut(&active.segment.id) {
            state.file_bytes = active.end;
        }
        add(&self.counters.commits, 1);
        Ok(())
    }

    /// Ends the active segment; the next record begins another one.
    pub(crate) fn seal(&mut self) {
        let Some(active) = self.log.active.take() else { return };
        if active.records.is_empty() {
            // Should its removal fail, the next open removes it.
            let _ = crate::recovery::remove_files(&self.directory, active.segment.id);
            self.shared.lock().segments.remove(&active.segment.id);
            return;
        }
        // A catalog that cannot be written costs a walk over the segment.
        let _ = catalog::write(&self.directory, &active.segment, &active.records);
        if let Some(state) = self.shared.lock().segments.get_mut(&active.segment.id) {
            state.sealed = true;
        }
    }

    /// A full file system is the same to the caller as a full tier.
    fn full_or(&self, error: StoreError) -> StoreError {
        match error {
            StoreError::Io { ref message, .. } if message.contains("No space left") || message.contains("quota") => {
                StoreError::DiskFull {
                    wanted: self.log.buffer.len() as u64,
                    used: self.shared.lock().file_bytes(),
                    capacity: self.capacity_bytes,
                }
            }
            other => other,
        }
    }
}
