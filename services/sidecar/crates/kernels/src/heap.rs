//! What the allocator does with freed memory.

/// Freed memory up to this stays with the process. Larger: a burst of transfers finds its buffers warm; smaller: less lies idle.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const KEPT_BYTES: i32 = 128 << 20;
/// Pieces from this on are mapped one by one, and unmapped when freed: the most that glibc takes.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const MAPPED_BYTES: i32 = 32 << 20;

/// Tells glibc to keep freed memory instead of handing it back to the kernel after each transfer, which costs more in page faults than the
/// bytes' own way: the buffers of frames are large, short-lived and always needed again. Elsewhere it does nothing. Call it first.
pub fn keep_freed_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: mallopt takes plain numbers and has no other precondition; a value it dislikes changes nothing.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_BYTES);
        libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT_BYTES);
    }
}
