//! Blocks whose bytes follow from their number.

use std::sync::Arc;

use kvasir_store::{Accuracy, Key, Metadata, Object, Store, StoreError};
use xxhash_rust::xxh3::{xxh3_64, xxh3_128};

pub fn key(number: u64) -> Key {
    Key(xxh3_128(&number.to_le_bytes()).to_le_bytes())
}

pub fn metadata() -> Metadata {
    Metadata {
        tenant_scope: [1; 16],
        layout_fingerprint: [2; 16],
        token_count: 32,
        position: 0,
        expires_at_unix_ms: 0,
        accuracy: Accuracy::Exact,
        level: 1,
    }
}

/// Its first words are a digest of the number and the place, the rest repeats them: quick to make, and a block of another number or a shifted
/// one differs.
pub fn fill(number: u64, out: &mut [u8]) {
    for (place, page) in out.chunks_mut(4096).enumerate() {
        let word = xxh3_64(&[number.to_le_bytes(), (place as u64).to_le_bytes()].concat()).to_le_bytes();
        let (words, rest) = page.as_chunks_mut::<8>();
        words.fill(word);
        rest.copy_from_slice(&word[..rest.len()]);
    }
}

/// Sizes around one block of a small model, none of them round.
pub fn length(number: u64) -> usize {
    1 + (xxh3_64(&number.to_le_bytes()) % 200_000) as usize
}

pub fn insert(store: &Store, number: u64, bytes: &[u8]) -> Result<Arc<Object>, StoreError> {
    let mut buffer = store.allocate(bytes.len())?;
    buffer.write(0, bytes);
    Ok(store.insert(key(number), metadata(), buffer))
}

/// Compares every byte.
pub fn is_right(number: u64, object: &Object) -> bool {
    let mut expected = vec![0; length(number)];
    fill(number, &mut expected);
    let mut found = Vec::new();
    object.value.append_range(0..usize::MAX, &mut found);
    found == expected && object.key == key(number)
}
