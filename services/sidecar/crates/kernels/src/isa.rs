//! Which instructions to use, chosen at run time, and how a kernel written once is compiled for each of them.

use crate::simd::{Simd, portable::Portable};
#[cfg(target_arch = "x86_64")]
use crate::simd::{avx2::Avx2, avx512::Avx512};

/// An instruction set that this processor has. Every kernel gives the same bits on each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Isa(Level);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Portable,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx512Bf16,
}

impl Isa {
    /// The fastest one.
    pub fn detect() -> Self {
        Self::available()[0]
    }

    /// All that this processor has, fastest first; the last is the portable one.
    pub fn available() -> Vec<Self> {
        let mut all = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if Avx512::<true>::is_available() {
                all.push(Self(Level::Avx512Bf16));
            }
            if Avx512::<false>::is_available() {
                all.push(Self(Level::Avx512));
            }
            if Avx2::is_available() {
                all.push(Self(Level::Avx2));
            }
        }
        all.push(Self(Level::Portable));
        all
    }

    /// For people: `avx512-bf16`, `avx512-vnni`, `avx2` or `portable`.
    pub fn name(self) -> &'static str {
        match self.0 {
            Level::Portable => "portable",
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => "avx2",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => "avx512-vnni",
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => "avx512-bf16",
        }
    }

    /// Whether AVX-512 F, BW, DQ and VL are there.
    pub(crate) fn has_avx512(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        return matches!(self.0, Level::Avx512 | Level::Avx512Bf16);
        #[cfg(not(target_arch = "x86_64"))]
        false
    }

    /// Runs a kernel compiled for this instruction set.
    #[inline]
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            Level::Portable => kernel.run(Portable),
            // SAFETY (both): a `Level` other than `Portable` is made by `available` only, after it found the features.
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => unsafe { run_avx2(kernel, Avx2::assume_available()) },
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 | Level::Avx512Bf16 => unsafe { run_avx512(kernel, Avx512::assume_available()) },
        }
    }

    /// The same for a kernel of bf16 products, which is compiled for the processors that have them too.
    #[inline]
    pub(crate) fn run_bf16<K: Kernel>(self, kernel: K) -> K::Output {
        match self.0 {
            // SAFETY: as in `run`.
            #[cfg(target_arch = "x86_64")]
            Level::Avx512Bf16 => unsafe { run_avx512_bf16(kernel, Avx512::assume_available()) },
            _ => self.run(kernel),
        }
    }
}

/// A kernel written against [`Simd`]. `run` and everything it calls must be `#[inline(always)]`: the code takes on the features of the
/// function it is inlined into.
pub(crate) trait Kernel {
    type Output;
    fn run<S: Simd>(self, simd: S) -> Self::Output;
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,f16c")]
fn run_avx2<K: Kernel>(kernel: K, simd: Avx2) -> K::Output {
    kernel.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma,f16c")]
fn run_avx512<K: Kernel>(kernel: K, simd: Avx512<false>) -> K::Output {
    kernel.run(simd)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx512bf16,avx2,fma,f16c")]
fn run_avx512_bf16<K: Kernel>(kernel: K, simd: Avx512<true>) -> K::Output {
    kernel.run(simd)
}
