//! The paged KV cache divided among tensor-parallel shards by KV heads.

use crate::kv_pool::{KvPool, KvShape, PoolError};
use std::ops::Range;

/// One pool for each shard. Shard `s` of `n` holds the heads `s·H/n .. (s+1)·H/n` of every block and layer, in memory of its own; block ids
/// and token places are the same in all of them. Source of the division: Shoeybi et al., "Megatron-LM", 2019, section 3 (attention by heads).
pub struct KvShards {
    shards: Vec<KvPool>,
    /// Of all shards together.
    shape: KvShape,
    heads_each: usize,
}

impl KvShards {
    /// As many blocks as fit into `bytes` over all shards; `shape` is that of the whole.
    ///
    /// # Errors
    /// [`PoolError::Shards`] when the heads cannot be divided evenly, else as [`KvPool::new`].
    pub fn new(shape: KvShape, shard_count: usize, bytes: u64) -> Result<Self, PoolError> {
        Self::check(shape.kv_head_count, shard_count)?;
        let each = KvShape {
            kv_head_count: shape.kv_head_count / shard_count,
            ..shape
        };
        let block_bytes = shape.bytes_per_token() * shape.block_size;
        if block_bytes > 0 && bytes < block_bytes as u64 && matches!(shape.block_size, 16 | 32 | 64) {
            return Err(PoolError::TooSmall { bytes, block_bytes });
        }
        let shards = (0..shard_count)
            .map(|_| KvPool::new(each, bytes / shard_count as u64))
            .collect::<Result<_, _>>()?;
        Ok(Self {
            shards,
            shape,
            heads_each: each.kv_head_count,
        })
    }

    /// One pool that holds all heads.
    pub fn whole(pool: KvPool) -> Self {
        let shape = *pool.shape();
        Self {
            shards: vec![pool],
            shape,
            heads_each: shape.kv_head_count,
        }
    }

    /// Whether heads can be divided evenly.
    ///
    /// # Errors
    /// [`PoolError::Shards`].
    pub fn check(kv_head_count: usize, shard_count: usize) -> Result<(), PoolError> {
        if shard_count == 0 || !kv_head_count.is_multiple_of(shard_count) {
            return Err(PoolError::Shards {
                shard_count,
                kv_head_count,
            });
        }
        Ok(())
    }

    /// Sizes of all shards together.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Each shard's memory, in order.
    pub fn shards(&self) -> &[KvPool] {
        &self.shards
    }

    /// The KV heads that a shard holds.
    pub fn heads(&self, shard: usize) -> Range<usize> {
        shard * self.heads_each..(shard + 1) * self.heads_each
    }

    /// Blocks in each shard's pool.
    pub fn block_count(&self) -> u32 {
        self.shards[0].block_count()
    }

    /// Bytes of one token's KV over all layers and shards.
    pub fn bytes_per_token(&self) -> usize {
        self.shape.bytes_per_token()
    }

    /// The pool that holds a KV head, and the head's index there.
    #[inline]
    pub(crate) fn locate(&self, kv_head: usize) -> (&KvPool, usize) {
        (&self.shards[kv_head / self.heads_each], kv_head % self.heads_each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kv_pool::KvDtype;

    const SHAPE: KvShape = KvShape {
        layer_count: 2,
        kv_head_count: 6,
        head_size: 8,
        block_size: 16,
        dtype: KvDtype::F16,
    };

    #[test]
    fn heads_are_divided_in_order_and_bytes_evenly() {
        let block_bytes = SHAPE.bytes_per_token() as u64 * 16;
        let shards = KvShards::new(SHAPE, 3, block_bytes * 5 + 7).unwrap();
        assert_eq!((shards.block_count(), shards.shards().len()), (5, 3));
        assert_eq!([shards.heads(0), shards.heads(1), shards.heads(2)], [0..2, 2..4, 4..6]);
        assert!(shards.shards().iter().all(|pool| pool.shape().kv_head_count == 2));
        for head in 0..6 {
            let (pool, local) = shards.locate(head);
            assert!(std::ptr::eq(pool, &shards.shards()[head / 2]) && local == head % 2);
        }
    }

    #[test]
    fn heads_that_do_not_divide_are_refused() {
        for shard_count in [0, 4, 12] {
            let refused = KvShards::new(SHAPE, shard_count, 1 << 20).err();
            let expected = PoolError::Shards {
                shard_count,
                kv_head_count: 6,
            };
            assert_eq!(refused, Some(expected));
        }
    }
}
