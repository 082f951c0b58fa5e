//! Both tiers together.

use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::aligned::AlignedBuffer;
use crate::arena::{Arena, ValueBuffer};
use crate::compaction::Compaction;
use crate::error::StoreError;
use crate::memory::Memory;
use crate::object::{Accuracy, Key, Metadata, Object};
use crate::record::{Kind, VALUE_BYTES_MAX};
use crate::recovery::{location, records_of, recover};
use crate::segments::Shared;
use crate::stats::{Counters, StoreStats, add, read};
use crate::writer::{Command, Log, Writer};

/// How to open a store.
#[derive(Debug, Clone)]
pub struct StoreOptions {
    /// Bytes of memory for values.
    pub memory_bytes: u64,
    /// Bytes of one extent. Larger: fewer pieces; smaller: less lost at the end of each value.
    pub extent_bytes: usize,
    /// Directory of the segment files; None for a store that forgets.
    pub directory: Option<PathBuf>,
    /// Bytes of files, dead records among them. Room for one segment is kept for compaction.
    pub disk_bytes: u64,
    /// Bytes of one segment. Larger: fewer files; smaller: compaction needs less room.
    pub segment_bytes: u64,
    /// Segments with a smaller share of live bytes are emptied.
    pub compact_below: f64,
    /// Past the page cache. It is twice as fast to read and several times as fast to write on what was measured (docs/results/store.md).
    pub direct: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self {
            memory_bytes: 1 << 30,
            extent_bytes: 64 << 10,
            directory: None,
            disk_bytes: 0,
            segment_bytes: 256 << 20,
            compact_below: 0.5,
            direct: true,
        }
    }
}

/// A block that was found on disk at opening.
#[derive(Debug, Clone, Copy)]
pub struct Recovered {
    /// Its name.
    pub key: Key,
    /// What is known.
    pub metadata: Metadata,
    /// Bytes of its value.
    pub value_bytes: u32,
}

/// Which tiers have a block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Found {
    /// Memory.
    pub memory: bool,
    /// Disk, durably.
    pub disk: bool,
}

/// An open store. Its directory belongs to one process at a time.
#[derive(Debug)]
pub struct Store {
    arena: Arena,
    memory: Memory,
    disk: Option<Disk>,
    counters: Arc<Counters>,
}

#[derive(Debug)]
struct Disk {
    shared: Arc<Shared>,
    capacity_bytes: u64,
    commands: Option<Sender<Command>>,
    writer: Option<JoinHandle<()>>,
    buffers: Mutex<Vec<AlignedBuffer>>,
    /// Locked as long as the store lives.
    _lock: File,
}

impl Store {
    /// Opens a store; `visit` gets every block that is on disk, expired ones too: their owner removes them.
    ///
    /// # Errors
    /// When the directory cannot be used: it is another process's, of another format, or the file system refuses.
    pub fn open(options: &StoreOptions, visit: &mut dyn FnMut(Recovered)) -> Result<Self, StoreError> {
        let counters = Arc::new(Counters::default());
        let disk = match &options.directory {
            Some(directory) => Some(Disk::open(options, directory.clone(), Arc::clone(&counters), visit)?),
            None => None,
        };
        Ok(Self {
            arena: Arena::new(options.memory_bytes, options.extent_bytes),
            memory: Memory::default(),
            disk,
            counters,
        })
    }

    /// Memory for a value that is about to arrive.
    ///
    /// # Errors
    /// [`StoreError::MemoryFull`], [`StoreError::TooLarge`].
    pub fn allocate(&self, value_bytes: usize) -> Result<ValueBuffer, StoreError> {
        if value_bytes > VALUE_BYTES_MAX {
            return Err(StoreError::TooLarge {
                bytes: value_bytes as u64,
                max: VALUE_BYTES_MAX as u64,
            });
        }
        self.arena.allocate(value_bytes)
    }

    /// Puts a value into memory. Returns what is kept under the key: an exact one that was there before stays.
    pub fn insert(&self, key: Key, metadata: Metadata, value: ValueBuffer) -> Arc<Object> {
        let value = value.freeze();
        let digest = value.digest();
        self.memory.insert(Arc::new(Object {
            key,
            metadata,
            digest,
            value,
        }))
    }

    /// Writes a block that is in memory to disk; `reply` is called once, when it is durable or failed. A block that is durable is not
    /// written again.
    pub fn persist(&self, key: Key, reply: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        let Some(sender) = self.disk.as_ref().and_then(|disk| disk.commands.as_ref()) else {
            return reply(Err(StoreError::NoDisk));
        };
        let Some(object) = self.memory.get(key) else {
            return reply(Err(StoreError::NotInMemory));
        };
        if let Err(refused) = sender.send(Command::Put(object, Box::new(reply))) {
            answer_closed(refused.0);
        }
    }

    /// Where a block is that may answer a look-up of this accuracy. A hint: bytes on disk are compared when they are read.
    pub fn find(&self, key: Key, accuracy: Accuracy) -> Found {
        let serves = |approximate: bool| accuracy == Accuracy::Approximate || !approximate;
        let memory = self
            .memory
            .get(key)
            .is_some_and(|object| serves(object.metadata.accuracy == Accuracy::Approximate));
        let disk = self.disk.as_ref().and_then(|disk| disk.shared.lock().index.get(key));
        Found {
            memory,
            disk: disk.is_some_and(|at| serves(at.approximate)),
        }
    }

    /// A block, from memory or else from disk (then this waits for the disk). With `retain`, what came from disk stays in memory. None: it is
    /// not there, expired, approximate when an exact one is asked for, or was damaged.
    ///
    /// # Errors
    /// [`StoreError::MemoryFull`] when it is on disk and there is no memory to read it to.
    pub fn get(
        &self,
        key: Key,
        accuracy: Accuracy,
        now_unix_ms: u64,
        retain: bool,
    ) -> Result<Option<Arc<Object>>, StoreError> {
        let serves = |metadata: &Metadata| {
            !metadata.is_expired(now_unix_ms)
                && (accuracy == Accuracy::Approximate || metadata.accuracy == Accuracy::Exact)
        };
        if let Some(object) = self.memory.get(key).filter(|object| serves(&object.metadata)) {
            return Ok(Some(object));
        }
        let Some(object) = self.load(key)?.filter(|object| serves(&object.metadata)) else {
            return Ok(None);
        };
        let object = Arc::new(object);
        Ok(Some(if retain { self.memory.insert(object) } else { object }))
    }

    fn load(&self, key: Key) -> Result<Option<Object>, StoreError> {
        let Some(disk) = &self.disk else { return Ok(None) };
        let mut buffer = disk.lock_buffers().pop().unwrap_or_default();
        // The segment is held, so it stays readable when compaction removes its file meanwhile.
        let found = disk.shared.lock().find(key);
        let outcome = found.map(|(at, segment)| {
            let mut target = self.arena.allocate(at.value_bytes as usize)?;
            match segment.read(at.offset, at.value_bytes, &mut buffer) {
                Some((header, value)) if header.kind == Kind::Value && header.key == key => {
                    target.write(0, value);
                    add(&self.counters.bytes_loaded, value.len() as u64);
                    Ok(Some(Object {
                        key,
                        metadata: header.metadata,
                        digest: header.digest,
                        value: target.freeze(),
                    }))
                }
                _ => {
                    add(&self.counters.damaged, 1);
                    disk.shared.lock().remove_at(key, at);
                    Ok(None)
                }
            }
        });
        disk.lock_buffers().push(buffer);
        outcome.unwrap_or(Ok(None))
    }

    /// Takes a block out of memory; who reads it keeps it until done. False when it was not there.
    pub fn drop_from_memory(&self, key: Key) -> bool {
        self.memory.remove(key)
    }

    /// Takes blocks out of both tiers; `reply` is called once, when that is durable.
    pub fn remove(&self, keys: &[Key], reply: impl FnOnce(Result<(), StoreError>) + Send + 'static) {
        for key in keys {
            self.memory.remove(*key);
        }
        match self.disk.as_ref().and_then(|disk| disk.commands.as_ref()) {
            None => reply(Ok(())),
            Some(sender) => {
                if let Err(refused) = sender.send(Command::Remove(keys.to_vec(), Box::new(reply))) {
                    answer_closed(refused.0);
                }
            }
        }
    }

    /// Bytes of memory that a value takes.
    pub fn occupied_bytes(&self, value_bytes: usize) -> u64 {
        self.arena.occupied_bytes(value_bytes)
    }

    /// Counters and gauges.
    pub fn stats(&self) -> StoreStats {
        let capacity = self.arena.capacity_bytes();
        let mut stats = StoreStats {
            memory_blocks: self.memory.count() as u64,
            memory_used_bytes: capacity - self.arena.free_bytes(),
            memory_capacity_bytes: capacity,
            commits: read(&self.counters.commits),
            bytes_persisted: read(&self.counters.bytes_persisted),
            bytes_compacted: read(&self.counters.bytes_compacted),
            bytes_loaded: read(&self.counters.bytes_loaded),
            damaged: read(&self.counters.damaged),
            ..StoreStats::default()
        };
        if let Some(disk) = &self.disk {
            let tables = disk.shared.lock();
            stats.disk_blocks = tables.index.len() as u64;
            stats.disk_live_bytes = tables.live_bytes();
            stats.disk_file_bytes = tables.file_bytes();
            stats.disk_capacity_bytes = disk.capacity_bytes;
            stats.segments = tables.segments.len() as u64;
            stats.index_bytes = tables.index.memory_bytes() as u64;
        }
        stats
    }
}

impl Disk {
    fn open(
        options: &StoreOptions,
        directory: PathBuf,
        counters: Arc<Counters>,
        visit: &mut dyn FnMut(Recovered),
    ) -> Result<Self, StoreError> {
        std::fs::create_dir_all(&directory).map_err(|error| StoreError::io(&directory, &error))?;
        let lock_path = directory.join("lock");
        let lock = File::create(&lock_path).map_err(|error| StoreError::io(&lock_path, &error))?;
        if lock.try_lock().is_err() {
            let message = "another process has this store open; stop it or give another directory".into();
            return Err(StoreError::Unusable {
                path: directory,
                message,
            });
        }
        let shared = Arc::new(Shared::default());
        let last_id = recover(&directory, options.direct, &mut shared.lock())?;
        Self::visit(&directory, &shared, visit);
        let (commands, receiver) = channel();
        let hasher = RandomState::new();
        let mut salts = 0u64;
        let writer = Writer {
            directory,
            capacity_bytes: options.disk_bytes,
            segment_bytes: options.segment_bytes,
            direct: options.direct,
            shared: Arc::clone(&shared),
            counters,
            last_id,
            salt: Box::new(move || {
                salts += 1;
                hasher.hash_one(salts)
            }),
            log: Log::default(),
            compaction: Compaction::below(options.compact_below),
        };
        let thread = std::thread::Builder::new().name("store-writer".into());
        let thread = thread
            .spawn(move || writer.run(&receiver))
            .map_err(|error| StoreError::io(&lock_path, &error))?;
        Ok(Self {
            shared,
            capacity_bytes: options.disk_bytes,
            commands: Some(commands),
            writer: Some(thread),
            buffers: Mutex::default(),
            _lock: lock,
        })
    }

    /// Names what the index points at. Catalogs are read once more, so that they need not all lie in memory.
    fn visit(directory: &std::path::Path, shared: &Shared, visit: &mut dyn FnMut(Recovered)) {
        let tables = shared.lock();
        for (id, state) in &tables.segments {
            for (offset, header) in records_of(directory, &state.segment, state.file_bytes) {
                let counts =
                    header.kind == Kind::Value && tables.index.get(header.key) == Some(location(*id, offset, &header));
                if counts {
                    visit(Recovered {
                        key: header.key,
                        metadata: header.metadata,
                        value_bytes: header.value_bytes,
                    });
                }
            }
        }
    }

    fn lock_buffers(&self) -> std::sync::MutexGuard<'_, Vec<AlignedBuffer>> {
        self.buffers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writer finishes what it was given and seals its segment.
impl Drop for Disk {
    fn drop(&mut self) {
        drop(self.commands.take());
        if let Some(writer) = self.writer.take() {
            // A panic of the writer was shown when it happened.
            let _ = writer.join();
        }
    }
}

fn answer_closed(command: Command) {
    match command {
        Command::Put(_, reply) | Command::Remove(_, reply) => reply(Err(StoreError::Closed)),
    }
}
