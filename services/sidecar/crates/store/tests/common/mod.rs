//! Blocks whose bytes follow from their number, so that every read can be checked.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::Path;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use kvasir_store::{Accuracy, Key, Metadata, Recovered, Store, StoreError, StoreOptions};

pub fn key(number: u64) -> Key {
    Key(xxhash_rust::xxh3::xxh3_128(&number.to_le_bytes()).to_le_bytes())
}

pub fn bytes(number: u64) -> Vec<u8> {
    let length = 1 + (number as usize * 7919) % 20_000;
    (0..length).map(|at| (number as usize * 31 + at * at) as u8).collect()
}

pub fn metadata() -> Metadata {
    Metadata {
        tenant_scope: [3; 16],
        layout_fingerprint: [4; 16],
        token_count: 32,
        position: 5,
        expires_at_unix_ms: 0,
        accuracy: Accuracy::Exact,
        level: 1,
    }
}

/// Small segments, so that a few blocks fill one.
pub fn options(directory: &Path) -> StoreOptions {
    StoreOptions {
        memory_bytes: 8 << 20,
        extent_bytes: 4096,
        directory: Some(directory.to_owned()),
        disk_bytes: 64 << 20,
        segment_bytes: 64 << 10,
        ..StoreOptions::default()
    }
}

pub fn open(options: &StoreOptions) -> (Store, Vec<Recovered>) {
    let mut found = Vec::new();
    let store = Store::open(options, &mut |recovered| found.push(recovered)).unwrap();
    (store, found)
}

/// Into memory, to disk, out of memory.
pub fn put(store: &Store, number: u64) -> Result<(), StoreError> {
    put_with(store, number, metadata())
}

pub fn put_with(store: &Store, number: u64, metadata: Metadata) -> Result<(), StoreError> {
    let value = bytes(number);
    let mut buffer = store.allocate(value.len())?;
    buffer.write(0, &value);
    store.insert(key(number), metadata, buffer);
    let (told, outcome) = channel();
    store.persist(key(number), move |result| told.send(result).unwrap());
    let result = outcome.recv().unwrap();
    store.drop_from_memory(key(number));
    result
}

pub fn remove(store: &Store, numbers: &[u64]) -> Result<(), StoreError> {
    let keys: Vec<Key> = numbers.iter().map(|number| key(*number)).collect();
    let (told, outcome) = channel();
    store.remove(&keys, move |result| told.send(result).unwrap());
    outcome.recv().unwrap()
}

/// Whether it is there; if so, its bytes are the right ones.
pub fn has(store: &Store, number: u64) -> bool {
    let found = store.get(key(number), Accuracy::Exact, 0, false).unwrap();
    if let Some(object) = &found {
        assert_eq!(
            object.value.chunks().flatten().copied().collect::<Vec<_>>(),
            bytes(number),
            "a wrong block"
        );
        assert_eq!(object.key, key(number));
    }
    found.is_some()
}

pub fn wait_until(condition: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "it did not come to pass");
        std::thread::sleep(Duration::from_millis(5));
    }
}
