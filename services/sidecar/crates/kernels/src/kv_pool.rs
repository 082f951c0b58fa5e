//! The paged KV cache: `[block][layer][K, V][kv_head][token][head_size]`, keys after rotation.
//!
//! # Who may touch a block when
//!
//! The pool is shared by the engine (reads blocks of running sequences, writes the tokens it computes) and by transfers (`gather` reads
//! tokens in layers in which they were computed, `scatter` writes tokens that nobody computes or reads yet). The worker owns block ids: it hands a block out
//! again only after `Release` (source) or `Fence` (destination) was answered and every step that names it has ended. Swaps copy whole blocks
//! that nobody writes to host slots, and from slots to blocks that nobody reads or writes. So two accesses of
//! which one is a write never meet on the same bytes. Every `unsafe` below leans on that rule for exclusion, and on its own checks for bounds.

pub use crate::pool_error::PoolError;
use crate::remote_kv::RemoteKv;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

/// Keys per attention tile; a divisor of every block size.
pub(crate) const KEY_TILE: usize = 16;

/// Number format of one KV element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvDtype {
    /// IEEE 754 binary32.
    F32,
    /// IEEE 754 binary16.
    F16,
    /// bfloat16.
    Bf16,
}

impl KvDtype {
    /// Bytes of one element.
    pub fn byte_size(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }
}

/// Sizes of a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer layers.
    pub layer_count: usize,
    /// KV heads per layer.
    pub kv_head_count: usize,
    /// Elements per head.
    pub head_size: usize,
    /// Tokens per block: 16, 32 or 64.
    pub block_size: usize,
    /// Element type.
    pub dtype: KvDtype,
}

impl KvShape {
    /// Bytes of one token's KV over all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.layer_count * 2 * self.kv_head_count * self.head_size * self.dtype.byte_size()
    }

    fn token_bytes(&self) -> usize {
        self.head_size * self.dtype.byte_size()
    }
}

/// KV memory, `Send + Sync`; see the module's rule on who may touch a block when.
pub struct KvPool {
    shape: KvShape,
    block_count: u32,
    /// Blocks that lie at `base`: all of them, or none when the memory is another device's.
    local_count: u32,
    remote: Option<Box<dyn RemoteKv>>,
    base: NonNull<u8>,
    allocation: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the memory is reached only through the methods, whose accesses never conflict by the module's rule; the rest is immutable.
unsafe impl Send for KvPool {}
// SAFETY: as for Send.
unsafe impl Sync for KvPool {}

impl KvPool {
    /// As many blocks as fit into `bytes`. The memory is zero and, until it is first written, costs address space only.
    ///
    /// # Errors
    /// [`PoolError::BlockSize`], [`PoolError::TooSmall`], [`PoolError::OutOfMemory`].
    pub fn new(shape: KvShape, bytes: u64) -> Result<Self, PoolError> {
        if !matches!(shape.block_size, 16 | 32 | 64) {
            return Err(PoolError::BlockSize(shape.block_size));
        }
        let block_bytes = shape.bytes_per_token() * shape.block_size;
        let too_small = PoolError::TooSmall { bytes, block_bytes };
        if block_bytes == 0 {
            return Err(too_small);
        }
        let block_count = u32::try_from(bytes / block_bytes as u64).unwrap_or(u32::MAX);
        if block_count == 0 {
            return Err(too_small);
        }
        let out_of_memory = PoolError::OutOfMemory { bytes };
        let size = (block_count as usize)
            .checked_mul(block_bytes)
            .and_then(|size| size.checked_add(64));
        // Alignment 16 keeps the allocator on its zeroed-pages path; the base is rounded up to a line by hand.
        let layout = size
            .and_then(|size| Layout::from_size_align(size, 16).ok())
            .ok_or(out_of_memory.clone())?;
        // SAFETY: the size is at least 64.
        let allocation = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(out_of_memory)?;
        crate::aligned::prefer_huge_pages(allocation.as_ptr(), layout.size());
        let padding = allocation.as_ptr().addr().next_multiple_of(64) - allocation.as_ptr().addr();
        // SAFETY: padding < 64, which the size includes beyond the blocks.
        let base = unsafe { allocation.add(padding) };
        Ok(Self {
            shape,
            block_count,
            local_count: block_count,
            remote: None,
            base,
            allocation,
            layout,
        })
    }

    /// A pool whose memory is another device's. The CPU's attention cannot use it.
    ///
    /// # Errors
    /// [`PoolError::BlockSize`], [`PoolError::TooSmall`].
    pub fn remote(shape: KvShape, block_count: u32, memory: Box<dyn RemoteKv>) -> Result<Self, PoolError> {
        // One local block, never touched, stands where the memory of other pools is.
        let one = if block_count == 0 {
            0
        } else {
            shape.bytes_per_token() * shape.block_size
        };
        let mut pool = Self::new(shape, one as u64)?;
        (pool.block_count, pool.local_count, pool.remote) = (block_count, 0, Some(memory));
        Ok(pool)
    }

    /// Sizes.
    pub fn shape(&self) -> &KvShape {
        &self.shape
    }

    /// Blocks in the pool.
    pub fn block_count(&self) -> u32 {
        self.block_count
    }

    /// Bytes of one token's KV over all layers.
    pub fn bytes_per_token(&self) -> usize {
        self.shape.bytes_per_token()
    }

    /// Appends the KV of some tokens of one block in some layers and heads to `out`, packed `[layer][K, V][kv_head][token][head_size]`.
    ///
    /// # Errors
    /// [`PoolError::UnknownBlock`], [`PoolError::Range`]; `out` is then unchanged.
    pub fn gather(
        &self,
        block: u32,
        tokens: Range<u32>,
        layers: Range<u32>,
        heads: Range<u32>,
        out: &mut Vec<u8>,
    ) -> Result<(), PoolError> {
        let length = self.check(block, &tokens, &layers, &heads)?;
        if let Some(remote) = &self.remote {
            return remote.gather(block, [tokens, layers, heads], length, out);
        }
        out.reserve(length);
        for offset in self.runs(block, &tokens, &layers, &heads) {
            let run = tokens.len() * self.shape.token_bytes();
            // SAFETY: `check` put the run inside the pool; nobody writes computed tokens of a leased block (module rule).
            out.extend_from_slice(unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), run) });
        }
        Ok(())
    }

    /// Writes what `gather` on an equal layout gave.
    ///
    /// # Errors
    /// [`PoolError::UnknownBlock`], [`PoolError::Range`], [`PoolError::DataLength`]; nothing is written then.
    pub fn scatter(
        &self,
        block: u32,
        tokens: Range<u32>,
        layers: Range<u32>,
        heads: Range<u32>,
        data: &[u8],
    ) -> Result<(), PoolError> {
        let expected = self.check(block, &tokens, &layers, &heads)?;
        if data.len() != expected {
            return Err(PoolError::DataLength {
                expected,
                actual: data.len(),
            });
        }
        if let Some(remote) = &self.remote {
            return remote.scatter(block, [tokens, layers, heads], data);
        }
        let run = tokens.len() * self.shape.token_bytes();
        for (offset, from) in self.runs(block, &tokens, &layers, &heads).zip(data.chunks_exact(run)) {
            // SAFETY: `check` put the run inside the pool; a block being fetched is read and written by nobody else (module rule), and
            // `data` cannot overlap the pool, which hands out no references.
            unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.base.as_ptr().add(offset), run) };
        }
        Ok(())
    }

    /// Who has the memory, when it is another device's.
    pub(crate) fn remote_memory(&self) -> Option<&dyn RemoteKv> {
        self.remote.as_deref()
    }

    /// Where some blocks lie, one behind the other; None when they are not all in local memory.
    pub(crate) fn local_blocks(&self, first: u32, count: u32) -> Option<NonNull<u8>> {
        let end = first.checked_add(count)?;
        let offset = first as usize * self.shape.bytes_per_token() * self.shape.block_size;
        // SAFETY: the offset is that of a block below `local_count`, or of the end of the last one, in an allocation of so many.
        (end <= self.local_count).then(|| unsafe { self.base.add(offset) })
    }

    /// Bytes of some tokens of a block in some layers and heads, packed.
    ///
    /// # Errors
    /// [`PoolError::UnknownBlock`], [`PoolError::Range`].
    pub fn check(
        &self,
        block: u32,
        tokens: &Range<u32>,
        layers: &Range<u32>,
        heads: &Range<u32>,
    ) -> Result<usize, PoolError> {
        if block >= self.block_count {
            return Err(PoolError::UnknownBlock {
                block,
                block_count: self.block_count,
            });
        }
        for (what, range, limit) in [
            ("tokens", tokens, self.shape.block_size),
            ("layers", layers, self.shape.layer_count),
            ("heads", heads, self.shape.kv_head_count),
        ] {
            if range.start >= range.end || range.end as usize > limit {
                return Err(PoolError::Range {
                    what,
                    begin: range.start,
                    end: range.end,
                    limit,
                });
            }
        }
        Ok(layers.len() * 2 * heads.len() * tokens.len() * self.shape.token_bytes())
    }

    /// Byte offsets of the contiguous runs that the ranges consist of, in packed order.
    fn runs(
        &self,
        block: u32,
        tokens: &Range<u32>,
        layers: &Range<u32>,
        heads: &Range<u32>,
    ) -> impl Iterator<Item = usize> {
        let (first, heads) = (layers.start as usize * 2, heads.start as usize..heads.end as usize);
        let token = tokens.start as usize;
        (first..layers.end as usize * 2).flat_map(move |half| {
            let begin = half * self.shape.kv_head_count;
            heads.clone().map(move |head| self.offset(block, begin + head, token))
        })
    }

    /// Byte offset of a token; `head` counts over layers, K and V, and KV heads.
    #[inline(always)]
    fn offset(&self, block: u32, head: usize, token: usize) -> usize {
        let heads = self.shape.layer_count * 2 * self.shape.kv_head_count;
        ((block as usize * heads + head) * self.shape.block_size + token) * self.shape.token_bytes()
    }

    #[inline(always)]
    fn head_index(&self, layer: usize, value: bool, kv_head: usize) -> usize {
        (layer * 2 + usize::from(value)) * self.shape.kv_head_count + kv_head
    }

    /// The bytes of a tile of keys or values: `[KEY_TILE tokens][head_size]`.
    ///
    /// # Safety
    /// Tokens of the tile that the caller reads must have been written, and nobody may write them while the slice lives.
    ///
    /// # Panics
    /// When a coordinate is out of range.
    #[inline(always)]
    pub(crate) unsafe fn tile(&self, block: u32, layer: usize, value: bool, kv_head: usize, token: usize) -> &[u8] {
        assert!(block < self.local_count && layer < self.shape.layer_count && kv_head < self.shape.kv_head_count);
        assert!(token + KEY_TILE <= self.shape.block_size);
        let offset = self.offset(block, self.head_index(layer, value, kv_head), token);
        // SAFETY: inside the pool by the checks; initialised, since the memory started as zero; no writer by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset), KEY_TILE * self.shape.token_bytes()) }
    }

    /// The bytes of one token's key or value.
    ///
    /// # Safety
    /// Nobody may write this token of this layer and head while the slice lives.
    ///
    /// # Panics
    /// When a coordinate is out of range.
    #[inline(always)]
    pub(crate) unsafe fn token(&self, block: u32, layer: usize, value: bool, kv_head: usize, token: usize) -> &[u8] {
        // SAFETY: read only, and without a writer by the caller's promise.
        unsafe { self.token_mut(block, layer, value, kv_head, token) }
    }

    /// The bytes of one token's key or value, to be written.
    ///
    /// # Safety
    /// Nobody else may access this token of this layer and head while the slice lives.
    ///
    /// # Panics
    /// When a coordinate is out of range.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // Exclusive by the caller's promise.
    pub(crate) unsafe fn token_mut(
        &self,
        block: u32,
        layer: usize,
        value: bool,
        kv_head: usize,
        token: usize,
    ) -> &mut [u8] {
        assert!(block < self.local_count && layer < self.shape.layer_count && kv_head < self.shape.kv_head_count);
        assert!(token < self.shape.block_size);
        let offset = self.offset(block, self.head_index(layer, value, kv_head), token);
        // SAFETY: inside the pool by the checks; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr().add(offset), self.shape.token_bytes()) }
    }
}

impl Drop for KvPool {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, freed once.
        unsafe { dealloc(self.allocation.as_ptr(), self.layout) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pool(dtype: KvDtype, block_size: usize) -> KvPool {
        let shape = KvShape {
            layer_count: 3,
            kv_head_count: 2,
            head_size: 4,
            block_size,
            dtype,
        };
        KvPool::new(shape, (shape.bytes_per_token() * block_size * 5) as u64).unwrap()
    }

    proptest! {
        #[test]
        fn what_is_scattered_is_gathered_and_nothing_else_changes(
            dtype in prop_oneof![Just(KvDtype::F32), Just(KvDtype::F16), Just(KvDtype::Bf16)],
            block_size in prop_oneof![Just(16_usize), Just(32), Just(64)],
            block in 0_u32..5,
            (token_begin, token_count, layer_begin, layer_count) in (0_u32..16, 1_u32..=16, 0_u32..3, 1_u32..=3),
            (head_begin, head_count) in prop_oneof![Just((0_u32, 2_u32)), Just((0, 1)), Just((1, 1))],
        ) {
            let pool = pool(dtype, block_size);
            let tokens = token_begin..(token_begin + token_count).min(block_size as u32);
            let layers = layer_begin..(layer_begin + layer_count).min(3);
            let heads = head_begin..head_begin + head_count;
            let length = layers.len() * 2 * heads.len() * tokens.len() * 4 * dtype.byte_size();
            let data: Vec<u8> = (0..length).map(|i| (i % 255 + 1) as u8).collect();
            pool.scatter(block, tokens.clone(), layers.clone(), heads.clone(), &data).unwrap();
            let mut back = Vec::new();
            pool.gather(block, tokens, layers, heads, &mut back).unwrap();
            prop_assert_eq!(&back, &data);
            let mut written = 0;
            for other in 0..5 {
                let mut all = Vec::new();
                pool.gather(other, 0..block_size as u32, 0..3, 0..2, &mut all).unwrap();
                let nonzero = all.iter().filter(|byte| **byte != 0).count();
                prop_assert!(other == block || nonzero == 0);
                written += nonzero;
            }
            prop_assert_eq!(written, length);
        }
    }

    #[test]
    fn packed_order_is_layer_then_k_v_then_head_then_token() {
        let pool = pool(KvDtype::F32, 16);
        // SAFETY: the pool is this test's own.
        unsafe { pool.token_mut(2, 1, true, 1, 5) }.fill(7);
        let mut data = Vec::new();
        pool.gather(2, 4..6, 1..3, 0..2, &mut data).unwrap();
        // Runs of 2 tokens of 16 bytes: layer 1 K0 K1 V0 V1, then layer 2. V1 is the fourth run, token 5 its second half.
        let expected: Vec<u8> = (0..8 * 32)
            .map(|i| if (3 * 32 + 16..4 * 32).contains(&i) { 7 } else { 0 })
            .collect();
        assert_eq!(data, expected);
    }

    #[test]
    fn what_lies_outside_is_refused_by_name() {
        let pool = pool(KvDtype::F16, 16);
        let mut out = Vec::new();
        assert_eq!(
            pool.gather(5, 0..1, 0..1, 0..2, &mut out),
            Err(PoolError::UnknownBlock {
                block: 5,
                block_count: 5
            })
        );
        let range = PoolError::Range {
            what: "tokens",
            begin: 3,
            end: 17,
            limit: 16,
        };
        assert_eq!(pool.gather(0, 3..17, 0..1, 0..2, &mut out), Err(range));
        assert_eq!(
            pool.scatter(0, 0..1, 2..2, 0..2, &[]),
            Err(PoolError::Range {
                what: "layers",
                begin: 2,
                end: 2,
                limit: 3
            })
        );
        assert_eq!(
            pool.scatter(0, 0..1, 0..1, 0..2, &[0; 3]),
            Err(PoolError::DataLength {
                expected: 32,
                actual: 3
            })
        );
        let heads = PoolError::Range {
            what: "heads",
            begin: 1,
            end: 3,
            limit: 2,
        };
        assert_eq!(pool.gather(0, 0..1, 0..1, 1..3, &mut out), Err(heads));
        let shape = KvShape {
            block_size: 48,
            ..*pool.shape()
        };
        assert_eq!(KvPool::new(shape, 1 << 20).err(), Some(PoolError::BlockSize(48)));
    }
}
