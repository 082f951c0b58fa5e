//! The memory tier: which objects are in it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::object::{Accuracy, Key, Object};

/// Objects by key.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<HashMap<Key, Arc<Object>>>);

impl Memory {
    /// Keeps an object; what is kept under the key already wins, unless it is approximate and the new one is exact.
    pub fn insert(&self, object: Arc<Object>) -> Arc<Object> {
        let mut objects = self.lock();
        match objects.get(&object.key) {
            Some(kept) if kept.metadata.accuracy == Accuracy::Exact || object.metadata.accuracy != Accuracy::Exact => {
                Arc::clone(kept)
            }
            _ => {
                objects.insert(object.key, Arc::clone(&object));
                object
            }
        }
    }

    pub fn get(&self, key: Key) -> Option<Arc<Object>> {
        self.lock().get(&key).cloned()
    }

    pub fn remove(&self, key: Key) -> bool {
        self.lock().remove(&key).is_some()
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Arc<Object>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
