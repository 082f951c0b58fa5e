//! Host memory for blocks that make room in the pool for others, by slots of one block each.
//!
//! A block lies in one piece over all layers (see [`KvPool`]), and so does a slot: blocks that follow each other and go to slots that follow each
//! other are one copy, however many layers the model has. Source: the block groups of FastSwitch (arXiv
//! 2411.18424), which are such runs: with a copy for each block, starting the copies takes longer than the bytes do.

use crate::kv_pool::{KvPool, PoolError};
use crate::kv_shards::KvShards;
use crate::remote_kv::RemoteSlots;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

/// Which way blocks are copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SwapDirection {
    /// From the pool to the host.
    Out,
    /// From the host to the pool.
    In,
}

/// Blocks that follow each other, and the slots, which do too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockGroup {
    /// First block.
    pub block: u32,
    /// First slot.
    pub slot: u32,
    /// Blocks, and slots.
    pub count: u32,
}

/// Cuts pairs of a block and its slot into groups of at most `count_max`.
pub fn block_groups(pairs: impl IntoIterator<Item = (u32, u32)>, count_max: u32) -> Vec<BlockGroup> {
    let mut groups: Vec<BlockGroup> = Vec::new();
    for (block, slot) in pairs {
        match groups.last_mut() {
            Some(last)
                if last.count < count_max
                    && last.block.checked_add(last.count) == Some(block)
                    && last.slot.checked_add(last.count) == Some(slot) =>
            {
                last.count += 1;
            }
            _ => groups.push(BlockGroup { block, slot, count: 1 }),
        }
    }
    groups
}

/// The slots of one pool, over all its shards. Who copies to or from a slot is the only one to do so (the pool's rule, for slots).
pub struct SwapSpace {
    pool: Arc<KvShards>,
    /// One for each shard.
    slots: Vec<Slots>,
    slot_count: u32,
}

enum Slots {
    Local(LocalSlots),
    Remote(Box<dyn RemoteSlots>),
}

impl SwapSpace {
    /// As many slots as fit into `bytes`. Memory is taken when it is first written; on a GPU all of it, page-locked, with the first swap.
    ///
    /// # Errors
    /// [`PoolError::TooSmall`], [`PoolError::OutOfMemory`], [`PoolError::Device`].
    pub fn new(pool: Arc<KvShards>, bytes: u64) -> Result<Self, PoolError> {
        let block_bytes = pool.bytes_per_token() * pool.shape().block_size;
        let slot_count = u32::try_from(bytes / block_bytes.max(1) as u64).unwrap_or(u32::MAX);
        if slot_count == 0 {
            return Err(PoolError::TooSmall { bytes, block_bytes });
        }
        let slots = |shard: &KvPool| match shard.remote_memory() {
            Some(remote) => Ok(Slots::Remote(remote.slots(slot_count)?)),
            None => Ok(Slots::Local(LocalSlots::new(slot_count, block_bytes_of(shard))?)),
        };
        let slots = pool.shards().iter().map(slots).collect::<Result<_, PoolError>>()?;
        Ok(Self {
            pool,
            slots,
            slot_count,
        })
    }

    /// Slots, each for one block.
    pub fn slot_count(&self) -> u32 {
        self.slot_count
    }

    /// Bytes of one block over all shards.
    pub fn block_bytes(&self) -> usize {
        self.pool.bytes_per_token() * self.pool.shape().block_size
    }

    /// Copies groups, one copy for each in each shard; returns when the bytes are in place.
    ///
    /// # Errors
    /// [`PoolError::UnknownBlock`], [`PoolError::UnknownSlot`]: nothing is copied then. [`PoolError::OutOfMemory`], [`PoolError::Device`].
    pub fn copy(&self, direction: SwapDirection, groups: &[BlockGroup]) -> Result<(), PoolError> {
        groups.iter().try_for_each(|group| self.check(group))?;
        for (shard, slots) in self.pool.shards().iter().zip(&self.slots) {
            match slots {
                Slots::Remote(slots) => slots.copy(direction, groups)?,
                Slots::Local(slots) => groups
                    .iter()
                    .try_for_each(|group| slots.copy(shard, direction, *group))?,
            }
        }
        Ok(())
    }

    fn check(&self, group: &BlockGroup) -> Result<(), PoolError> {
        let last = |first: u32| first.saturating_add(group.count.saturating_sub(1));
        let (block, slot, block_count) = (last(group.block), last(group.slot), self.pool.block_count());
        if block >= block_count {
            return Err(PoolError::UnknownBlock { block, block_count });
        }
        if slot >= self.slot_count {
            let slot_count = self.slot_count;
            return Err(PoolError::UnknownSlot { slot, slot_count });
        }
        Ok(())
    }
}

fn block_bytes_of(pool: &KvPool) -> usize {
    pool.bytes_per_token() * pool.shape().block_size
}

/// Slots in plain memory, beside a pool in plain memory.
struct LocalSlots {
    base: NonNull<u8>,
    layout: Layout,
    block_bytes: usize,
}

// SAFETY: plain memory that only `copy` reaches, whose accesses never conflict by the rule of `SwapSpace`.
unsafe impl Send for LocalSlots {}
// SAFETY: as for Send.
unsafe impl Sync for LocalSlots {}

impl LocalSlots {
    fn new(slot_count: u32, block_bytes: usize) -> Result<Self, PoolError> {
        let size = (slot_count as usize).checked_mul(block_bytes);
        let bytes = size.unwrap_or(usize::MAX) as u64;
        // Alignment 16 keeps the allocator on its zeroed-pages path, as for the pool.
        let layout = size
            .and_then(|size| Layout::from_size_align(size.max(1), 16).ok())
            .ok_or(PoolError::OutOfMemory { bytes })?;
        // SAFETY: the size is at least 1.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(PoolError::OutOfMemory { bytes })?;
        crate::aligned::prefer_huge_pages(base.as_ptr(), layout.size());
        Ok(Self {
            base,
            layout,
            block_bytes,
        })
    }

    fn copy(&self, pool: &KvPool, direction: SwapDirection, group: BlockGroup) -> Result<(), PoolError> {
        let BlockGroup { block, slot, count } = group;
        let blocks = pool.local_blocks(block, count).ok_or(PoolError::UnknownBlock {
            block,
            block_count: pool.block_count(),
        })?;
        let (offset, length) = (slot as usize * self.block_bytes, count as usize * self.block_bytes);
        // SAFETY: `SwapSpace::check` put the slots inside, and `local_blocks` the blocks. The two are different allocations, and nobody else
        // touches either while they are swapped (rules of the pool and of `SwapSpace`).
        unsafe {
            let slots = self.base.as_ptr().add(offset);
            match direction {
                SwapDirection::Out => std::ptr::copy_nonoverlapping(blocks.as_ptr(), slots, length),
                SwapDirection::In => std::ptr::copy_nonoverlapping(slots, blocks.as_ptr(), length),
            }
        }
        Ok(())
    }
}

impl Drop for LocalSlots {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_pool::{KvDtype, KvShape};

    fn group(block: u32, slot: u32, count: u32) -> BlockGroup {
        BlockGroup { block, slot, count }
    }

    #[test]
    fn what_follows_on_both_sides_is_one_copy() {
        let pairs = [(4, 0), (5, 1), (6, 2), (7, 9), (9, 10), (8, 11), (3, 12), (4, 13)];
        let expected = [
            group(4, 0, 3),
            group(7, 9, 1),
            group(9, 10, 1),
            group(8, 11, 1),
            group(3, 12, 2),
        ];
        assert_eq!(block_groups(pairs, 100), expected);
        let run = (0..5).map(|i| (i, i));
        assert_eq!(block_groups(run, 2), [group(0, 0, 2), group(2, 2, 2), group(4, 4, 1)]);
        assert_eq!(
            block_groups([(u32::MAX, 1), (0, 2)], 9),
            [group(u32::MAX, 1, 1), group(0, 2, 1)]
        );
        assert_eq!(block_groups([], 9), []);
    }

    fn space(shard_count: usize) -> (Arc<KvShards>, SwapSpace) {
        let shape = KvShape {
            layer_count: 2,
            kv_head_count: 2,
            head_size: 8,
            block_size: 16,
            dtype: KvDtype::F16,
        };
        let block_bytes = (shape.bytes_per_token() * 16) as u64;
        let pool = Arc::new(KvShards::new(shape, shard_count, 6 * block_bytes).expect("a pool"));
        let space = SwapSpace::new(Arc::clone(&pool), 4 * block_bytes + 5).expect("slots");
        (pool, space)
    }

    /// All bytes of a block, shard by shard.
    fn bytes(pool: &KvShards, block: u32) -> Vec<u8> {
        let mut all = Vec::new();
        for shard in pool.shards() {
            let heads = 0..shard.shape().kv_head_count as u32;
            shard.gather(block, 0..16, 0..2, heads, &mut all).expect("a block");
        }
        all
    }

    fn fill(pool: &KvShards, block: u32, seed: usize) {
        for (index, shard) in pool.shards().iter().enumerate() {
            let length = block_bytes_of(shard);
            let data: Vec<u8> = (0..length).map(|i| (i * 7 + seed * 31 + index * 101) as u8).collect();
            let heads = 0..shard.shape().kv_head_count as u32;
            shard.scatter(block, 0..16, 0..2, heads, &data).expect("a block");
        }
    }

    #[test]
    fn blocks_come_back_elsewhere_with_the_same_bytes_and_no_other_changes() {
        for shard_count in [1, 2] {
            let (pool, space) = space(shard_count);
            assert_eq!(space.slot_count(), 4);
            for block in 0..6 {
                fill(&pool, block, block as usize);
            }
            let before: Vec<Vec<u8>> = (0..6).map(|block| bytes(&pool, block)).collect();
            space
                .copy(SwapDirection::Out, &[group(2, 1, 2), group(0, 3, 1)])
                .expect("out");
            for block in [0, 2, 3] {
                fill(&pool, block, 99);
            }
            let poisoned = bytes(&pool, 0);
            space
                .copy(SwapDirection::In, &[group(4, 1, 2), group(3, 3, 1)])
                .expect("in");
            let after: Vec<Vec<u8>> = (0..6).map(|block| bytes(&pool, block)).collect();
            let expected = [&poisoned, &before[1], &poisoned, &before[0], &before[2], &before[3]];
            assert!(after.iter().eq(expected), "{shard_count} shards");
        }
    }

    #[test]
    fn what_lies_outside_is_refused_and_nothing_is_copied() {
        let (pool, space) = space(1);
        fill(&pool, 0, 5);
        let refused = space.copy(SwapDirection::Out, &[group(0, 0, 1), group(4, 1, 3)]);
        assert_eq!(
            refused,
            Err(PoolError::UnknownBlock {
                block: 6,
                block_count: 6
            })
        );
        let refused = space.copy(SwapDirection::In, &[group(0, 3, 1), group(1, 3, 2)]);
        assert_eq!(refused, Err(PoolError::UnknownSlot { slot: 4, slot_count: 4 }));
        // Slot 3 was never written: it would have brought zeros.
        assert_ne!(bytes(&pool, 0), vec![0; block_bytes_of(&pool.shards()[0])]);
        assert_eq!(
            SwapSpace::new(pool, 7).err(),
            Some(PoolError::TooSmall {
                bytes: 7,
                block_bytes: 2048
            })
        );
    }
}
