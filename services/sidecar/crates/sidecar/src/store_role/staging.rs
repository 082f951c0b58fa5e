//! Blocks of the pool that blocks pass through on their way.

use std::sync::{Arc, Mutex};

use crate::exports::lock;

/// All of them.
#[derive(Clone)]
pub(crate) struct Staging(Arc<Mutex<Vec<u32>>>);

/// Some, until dropped.
pub(crate) struct StagedBlocks {
    pub ids: Vec<u32>,
    home: Staging,
}

impl Staging {
    /// Every block of a pool.
    pub fn new(block_count: u32) -> Self {
        Self(Arc::new(Mutex::new((0..block_count).rev().collect())))
    }

    /// At most `count` blocks; fewer when others have them.
    pub fn take(&self, count: usize) -> StagedBlocks {
        let mut free = lock(&self.0);
        let kept = free.len().saturating_sub(count);
        StagedBlocks {
            ids: free.split_off(kept),
            home: self.clone(),
        }
    }
}

impl StagedBlocks {
    /// Gives those after the first `count` back.
    pub fn shrink(&mut self, count: usize) {
        let unused = self.ids.split_off(count.min(self.ids.len()));
        lock(&self.home.0).extend(unused);
    }
}

impl Drop for StagedBlocks {
    fn drop(&mut self) {
        lock(&self.home.0).append(&mut self.ids);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_come_back_when_they_are_dropped() {
        let staging = Staging::new(3);
        let two = staging.take(2);
        assert_eq!(two.ids.len(), 2);
        let rest = staging.take(5);
        assert_eq!(rest.ids.len(), 1);
        assert!(staging.take(1).ids.is_empty());
        drop(two);
        assert_eq!(staging.take(5).ids.len(), 2);
    }
}
