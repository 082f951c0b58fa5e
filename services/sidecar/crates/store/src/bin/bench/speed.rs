//! Both tiers beside their limits, alternating, so that a noisy moment hits all alike.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::channel;
use std::time::Instant;

use clap::Args;
use kvasir_store::{Accuracy, Store, StoreOptions};

use crate::blocks;

type Failure = Box<dyn std::error::Error>;

#[derive(Args)]
pub struct Flags {
    /// Directory for the store
    #[arg(long)]
    directory: PathBuf,
    /// Bytes of one value: a block
    #[arg(long, default_value_t = 1_474_560)]
    value_bytes: usize,
    /// Bytes written and read in a round
    #[arg(long, default_value_t = 512 << 20)]
    round_bytes: usize,
    /// Rounds
    #[arg(long, default_value_t = 5)]
    rounds: usize,
}

/// Reads and writes of the disk's own limit are this long, as dd's `bs=4M`.
const RAW_BYTES: usize = 4 << 20;

pub fn measure(flags: &Flags) -> Result<serde_json::Value, Failure> {
    let mut rounds = Vec::new();
    for _ in 0..flags.rounds {
        let (direct, buffered) = (Way::Direct, Way::Buffered);
        let (copy_gb, digest_gb) = memory_limits(flags);
        let raw_direct = raw(flags, &direct)?;
        let store_direct = tiers(flags, &direct)?;
        let raw_buffered = raw(flags, &buffered)?;
        let store_buffered = tiers(flags, &buffered)?;
        rounds.push(serde_json::json!({
            "memcpy": copy_gb, "digest": digest_gb,
            "memory_put": store_direct.memory_put, "memory_get": store_direct.memory_get,
            "raw_direct_write": raw_direct.0, "raw_direct_read": raw_direct.1,
            "disk_direct_put": store_direct.disk_put, "disk_direct_get": store_direct.disk_get,
            "raw_buffered_write": raw_buffered.0, "raw_buffered_read": raw_buffered.1,
            "disk_buffered_put": store_buffered.disk_put, "disk_buffered_get": store_buffered.disk_get,
        }));
    }
    Ok(serde_json::json!({ "value_bytes": flags.value_bytes, "round_bytes": flags.round_bytes, "gb_per_s": rounds }))
}

enum Way {
    Direct,
    Buffered,
}

struct Tiers {
    memory_put: f64,
    memory_get: f64,
    disk_put: f64,
    disk_get: f64,
}

fn gb_per_s(bytes: usize, since: Instant) -> f64 {
    bytes as f64 / since.elapsed().as_secs_f64() / 1e9
}

/// One copy, and one digest, of values of the same size: no store can put faster than both after each other.
fn memory_limits(flags: &Flags) -> (f64, f64) {
    let count = flags.round_bytes / flags.value_bytes;
    let from = vec![1u8; flags.value_bytes];
    let mut to: Vec<Vec<u8>> = (0..count).map(|_| vec![0; flags.value_bytes]).collect();
    let started = Instant::now();
    to.iter_mut().for_each(|to| to.copy_from_slice(&from));
    let copy = gb_per_s(count * flags.value_bytes, started);
    let started = Instant::now();
    let sum = to
        .iter()
        .fold(0u128, |sum, value| sum ^ xxhash_rust::xxh3::xxh3_128(value));
    std::hint::black_box(sum);
    (copy, gb_per_s(count * flags.value_bytes, started))
}

/// Sequential, one after the other, synced at the end: what `dd bs=4M` does.
fn raw(flags: &Flags, way: &Way) -> Result<(f64, f64), Failure> {
    let path = flags.directory.join("raw");
    let mut memory = vec![7u8; RAW_BYTES + 4096];
    let start = memory.as_ptr().align_offset(4096);
    let buffer = &mut memory[start..start + RAW_BYTES];
    let file = open(&path, way)?;
    let offsets = || (0..flags.round_bytes as u64).step_by(RAW_BYTES);
    let started = Instant::now();
    offsets().try_for_each(|offset| file.write_all_at(buffer, offset))?;
    file.sync_data()?;
    let write = gb_per_s(flags.round_bytes, started);
    forget_pages(&path)?;
    let started = Instant::now();
    offsets().try_for_each(|offset| file.read_exact_at(buffer, offset))?;
    let read = gb_per_s(flags.round_bytes, started);
    std::fs::remove_file(&path)?;
    Ok((write, read))
}

fn open(path: &Path, way: &Way) -> std::io::Result<File> {
    let flag = match way {
        Way::Direct => libc::O_DIRECT,
        Way::Buffered => 0,
    };
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .custom_flags(flag)
        .open(path)
}

/// Drops a file from the page cache: what a read gets then comes from the disk.
fn forget_pages(path: &Path) -> Result<(), Failure> {
    let status = std::process::Command::new("dd")
        .arg(format!("if={}", path.display()))
        .args(["iflag=nocache", "count=0", "status=none"])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("dd cannot drop a file from the page cache".into())
    }
}

fn forget(store: &Store, count: u64) {
    for number in 0..count {
        store.drop_from_memory(blocks::key(number));
    }
}

fn tiers(flags: &Flags, way: &Way) -> Result<Tiers, Failure> {
    let directory = flags.directory.join("store");
    let options = StoreOptions {
        memory_bytes: 2 * flags.round_bytes as u64,
        directory: Some(directory.clone()),
        disk_bytes: 4 * flags.round_bytes as u64,
        direct: matches!(way, Way::Direct),
        ..StoreOptions::default()
    };
    let store = Store::open(&options, &mut |_| {})?;
    let count = (flags.round_bytes / flags.value_bytes) as u64;
    let bytes = count as usize * flags.value_bytes;
    let mut value = vec![0; flags.value_bytes];
    blocks::fill(1, &mut value);
    // Extents are allocated by the first round and used again by the second, as in a store that has run for a while.
    let mut memory_put = 0.0;
    for _ in 0..2 {
        forget(&store, count);
        let started = Instant::now();
        (0..count).try_for_each(|number| blocks::insert(&store, number, &value).map(drop))?;
        memory_put = gb_per_s(bytes, started);
    }
    let mut frame = Vec::with_capacity(flags.value_bytes);
    let started = Instant::now();
    for number in 0..count {
        let object = store
            .get(blocks::key(number), Accuracy::Exact, 0, false)?
            .ok_or("a block left memory")?;
        frame.clear();
        object.value.append_range(0..flags.value_bytes, &mut frame);
        std::hint::black_box(&frame);
    }
    let memory_get = gb_per_s(bytes, started);

    let (told, outcomes) = channel();
    let started = Instant::now();
    for number in 0..count {
        let told = told.clone();
        store.persist(blocks::key(number), move |outcome| drop(told.send(outcome)));
    }
    for _ in 0..count {
        outcomes.recv()??;
    }
    let disk_put = gb_per_s(bytes, started);

    forget(&store, count);
    for entry in std::fs::read_dir(&directory)? {
        forget_pages(&entry?.path())?;
    }
    // Two at once, as requests come: one verifies while the other waits for the disk.
    let started = Instant::now();
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..2)
            .map(|reader| {
                let store = &store;
                scope.spawn(move || {
                    (reader..count).step_by(2).all(|number| {
                        matches!(store.get(blocks::key(number), Accuracy::Exact, 0, false), Ok(Some(object)) if object.value.len() == flags.value_bytes)
                    })
                })
            })
            .collect();
        if readers.into_iter().all(|reader| reader.join().is_ok_and(|all| all)) {
            Ok(())
        } else {
            Err("a block is missing")
        }
    })?;
    let disk_get = gb_per_s(bytes, started);
    drop(store);
    std::fs::remove_dir_all(&directory)?;
    Ok(Tiers {
        memory_put,
        memory_get,
        disk_put,
        disk_get,
    })
}
