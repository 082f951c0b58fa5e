//! The device of the CPU backend: an instruction set and threads.

use crate::isa::Isa;
use crate::thread_pool::ThreadPool;

/// Rows below which a region over rows runs on the caller alone: dividing a microsecond of work costs more than it saves.
const PARALLEL_ROWS: usize = 8;

/// Where kernels run.
pub struct Cpu {
    /// Instructions to use. Never changes a result.
    pub isa: Isa,
    /// Threads to use. Never changes a result.
    pub threads: ThreadPool,
}

impl Cpu {
    /// The fastest instruction set and `threads` threads, the caller included.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        Self::with_isa(Isa::detect(), threads)
    }

    /// A chosen instruction set, for comparisons.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn with_isa(isa: Isa, threads: usize) -> std::io::Result<Self> {
        Ok(Self {
            isa,
            threads: ThreadPool::new(threads)?,
        })
    }

    /// For people: e.g. `cpu avx512-vnni 2 threads`.
    pub fn description(&self) -> String {
        format!("cpu {} {} threads", self.isa.name(), self.threads.threads())
    }

    /// Calls `job(begin, end)` on disjoint ranges that cover `0..rows`.
    pub(crate) fn over_rows(&self, rows: usize, job: &(dyn Fn(usize, usize) + Sync)) {
        if rows == 0 {
            return;
        }
        if rows < PARALLEL_ROWS {
            return job(0, rows);
        }
        let grain = rows.div_ceil(self.threads.threads() * 4);
        self.threads.run(rows.div_ceil(grain), &|task| {
            job(task * grain, ((task + 1) * grain).min(rows))
        });
    }
}
