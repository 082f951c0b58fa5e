//! Buffers that start on a cache line, so that no 64-byte access straddles two.

use std::ops::{Deref, DerefMut};

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// Growable `f32` storage, 64-byte aligned.
#[derive(Default)]
pub struct AlignedF32 {
    lines: Vec<Line>,
    len: usize,
}

impl AlignedF32 {
    /// Gives the buffer `len` elements. What was there stays; new elements are unspecified but initialised. Capacity never shrinks.
    pub fn resize(&mut self, len: usize) {
        let lines = len.div_ceil(16);
        if lines > self.lines.len() {
            self.lines.resize(lines, Line([0; 64]));
        }
        self.len = len;
    }
}

impl Deref for AlignedF32 {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        // SAFETY: `lines` holds at least `len` initialised f32 (any bit pattern is a valid f32), aligned to 64.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for AlignedF32 {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as in `deref`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

/// Fixed-size bytes, 64-byte aligned; readable as little `f32` and `u16` slices where the offset allows.
pub struct AlignedBytes {
    lines: Vec<Line>,
}

impl AlignedBytes {
    /// `len` zero bytes, rounded up to whole lines.
    pub fn zeroed(len: usize) -> Self {
        let mut lines: Vec<Line> = Vec::with_capacity(len.div_ceil(64));
        prefer_huge_pages(lines.as_mut_ptr().cast(), lines.capacity() * 64);
        lines.resize(len.div_ceil(64), Line([0; 64]));
        Self { lines }
    }

    /// All of them.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `Line` is 64 bytes without padding, so the lines are `64 * len` initialised bytes.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * 64) }
    }

    /// All of them.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * 64) }
    }
}

/// Asks for 2 MiB pages for the whole ones inside a fresh allocation. Weights and KV are read in long strides over hundreds of megabytes:
/// with 4 KiB pages the address translation costs as much as the reads. A hint: where it is refused everything works, slower.
#[cfg(target_os = "linux")]
pub(crate) fn prefer_huge_pages(start: *mut u8, len: usize) {
    const HUGE: usize = 2 << 20;
    let padding = start.addr().next_multiple_of(HUGE) - start.addr();
    let whole = len.saturating_sub(padding) / HUGE * HUGE;
    if whole > 0 {
        // SAFETY: the range lies inside an allocation of ours; the advice changes neither content nor validity.
        unsafe { libc::madvise(start.add(padding).cast(), whole, libc::MADV_HUGEPAGE) };
    }
}

/// Nothing to ask for on other systems.
#[cfg(not(target_os = "linux"))]
pub(crate) fn prefer_huge_pages(_start: *mut u8, _len: usize) {}

/// Views bytes as `f32`.
///
/// # Panics
/// When the slice is not aligned to 4 or not whole elements: the packer lays panels out so that it is.
#[inline(always)]
pub(crate) fn as_f32(bytes: &[u8]) -> &[f32] {
    assert!(bytes.as_ptr().addr().is_multiple_of(4) && bytes.len().is_multiple_of(4));
    // SAFETY: alignment and length were just checked; any bit pattern is a valid f32.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 4) }
}

/// Views bytes as `u16`.
///
/// # Panics
/// When the slice is not aligned to 2 or not whole elements.
#[inline(always)]
pub(crate) fn as_u16(bytes: &[u8]) -> &[u16] {
    assert!(bytes.as_ptr().addr().is_multiple_of(2) && bytes.len().is_multiple_of(2));
    // SAFETY: alignment and length were just checked; any bit pattern is a valid u16.
    unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / 2) }
}

/// A mutable slice that several threads of one parallel region write, each its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<'a, T> {
    ptr: *mut T,
    len: usize,
    _borrow: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: access is only through `slice`, whose callers promise disjoint parts; T is Send, so a part may be used on another thread.
unsafe impl<T: Send> Sync for SharedMut<'_, T> {}
// SAFETY: as for Sync.
unsafe impl<T: Send> Send for SharedMut<'_, T> {}

impl<'a, T> SharedMut<'a, T> {
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Self {
            ptr: slice.as_mut_ptr(),
            len: slice.len(),
            _borrow: std::marker::PhantomData,
        }
    }

    /// The part `[start, start + len)`, bounds checked.
    ///
    /// # Safety
    /// While the returned slice lives, no other part that overlaps it may exist.
    #[inline(always)]
    #[allow(clippy::mut_from_ref)] // The contract above is what makes it exclusive.
    pub(crate) unsafe fn slice(&self, start: usize, len: usize) -> &'a mut [T] {
        assert!(start <= self.len && len <= self.len - start);
        // SAFETY: in bounds by the check; exclusive by the caller's promise; the borrow of the whole lives for 'a.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(start), len) }
    }
}
