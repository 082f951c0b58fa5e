//! Fork-join threads for regions of a few microseconds.
//!
//! A region is a number of independent tasks handed out by an atomic counter; the caller takes part. A worker has to *enter* a region
//! before it may touch it, and the caller closes the region as soon as no task is left: it waits only for workers that entered, never
//! for one that the operating system has not scheduled. Idle workers spin briefly, since the next region of a step usually follows within
//! microseconds, then sleep; an idle pool costs nothing.

use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

/// Spins before a worker sleeps: some tens of microseconds. Larger burns CPU after each step; smaller pays a wake-up inside a step.
const IDLE_SPINS: u32 = 1_500;
/// Spins of the caller before it yields its core to a worker that has entered but is not running.
const JOIN_SPINS: u32 = 2_000;

// Layout of `Shared::state`: region number above, whether it may be entered, how many workers are inside.
const INSIDE: u64 = 0xffff;
const OPEN: u64 = 1 << 16;
const REGION: u64 = 1 << 17;

type Job = *const (dyn Fn(usize) + Sync);

struct Shared {
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    task_count: AtomicUsize,
    next_task: AtomicUsize,
    panicked: AtomicBool,
    stopping: AtomicBool,
    sleepers: AtomicUsize,
    sleep: Mutex<()>,
    wake: Condvar,
}

// SAFETY: `job` is written only while the region is closed with nobody inside, and read only by threads that entered (see `enter`), which
// the publishing release store of `state` orders after the write. The pointee outlives the region: `run` does not return before it is left.
unsafe impl Sync for Shared {}
// SAFETY: as for Sync; nothing in it is bound to a thread.
unsafe impl Send for Shared {}

impl Shared {
    /// Enters the region that `state` shows, unless it was closed or replaced meanwhile.
    fn enter(&self, state: u64) -> bool {
        state & OPEN != 0
            && self
                .state
                .compare_exchange(state, state + 1, Ordering::Acquire, Ordering::Relaxed)
                .is_ok()
    }

    fn take_tasks(&self, job: &(dyn Fn(usize) + Sync)) {
        let count = self.task_count.load(Ordering::Relaxed);
        loop {
            let task = self.next_task.fetch_add(1, Ordering::Relaxed);
            if task >= count {
                return;
            }
            job(task);
        }
    }

    fn work(&self) {
        let mut last_region = 0;
        let mut spins = 0;
        loop {
            let state = self.state.load(Ordering::Acquire);
            if state / REGION != last_region && state & OPEN != 0 {
                if !self.enter(state) {
                    continue;
                }
                last_region = state / REGION;
                spins = 0;
                // SAFETY: entered, so the job was published before and stays valid until we leave (see Sync above).
                let job = unsafe { (*self.job.get()).map(|job| &*job) };
                if let Some(job) = job
                    && catch_unwind(AssertUnwindSafe(|| self.take_tasks(job))).is_err()
                {
                    self.panicked.store(true, Ordering::Relaxed);
                    self.next_task.store(usize::MAX / 2, Ordering::Relaxed);
                }
                self.state.fetch_sub(1, Ordering::Release);
            } else if self.stopping.load(Ordering::Relaxed) {
                return;
            } else if spins < IDLE_SPINS {
                spins += 1;
                std::hint::spin_loop();
            } else {
                self.sleep_until_after(last_region);
                spins = 0;
            }
        }
    }

    fn sleep_until_after(&self, last_region: u64) {
        let mut guard = lock(&self.sleep);
        // Sequentially consistent on both sides: either we see the new region below, or its publisher sees us among the sleepers.
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        loop {
            let state = self.state.load(Ordering::SeqCst);
            if (state / REGION != last_region && state & OPEN != 0) || self.stopping.load(Ordering::SeqCst) {
                break;
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake_sleepers(&self) {
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            let _guard = lock(&self.sleep);
            self.wake.notify_all();
        }
    }
}

fn lock(mutex: &Mutex<()>) -> MutexGuard<'_, ()> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A fixed set of threads, the caller of [`ThreadPool::run`] included.
pub struct ThreadPool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    one_region_at_a_time: Mutex<()>,
}

impl ThreadPool {
    /// Starts `threads - 1` workers; 0 counts as 1.
    ///
    /// # Errors
    /// When the operating system refuses a thread.
    pub fn new(threads: usize) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            state: AtomicU64::new(REGION),
            job: UnsafeCell::new(None),
            task_count: AtomicUsize::new(0),
            next_task: AtomicUsize::new(0),
            panicked: AtomicBool::new(false),
            stopping: AtomicBool::new(false),
            sleepers: AtomicUsize::new(0),
            sleep: Mutex::new(()),
            wake: Condvar::new(),
        });
        let mut pool = Self {
            shared,
            workers: Vec::new(),
            one_region_at_a_time: Mutex::new(()),
        };
        for index in 1..threads {
            let shared = Arc::clone(&pool.shared);
            let worker = std::thread::Builder::new()
                .name(format!("kernel-{index}"))
                .spawn(move || shared.work())?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Number of threads that compute, the caller included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `job(0) … job(task_count - 1)`, each once, in no given order, and returns when all are done. Costs 1–2 µs. Must not be
    /// called from inside a job. A panic of a job is passed on to the caller.
    pub fn run(&self, task_count: usize, job: &(dyn Fn(usize) + Sync)) {
        if task_count <= 1 || self.workers.is_empty() {
            (0..task_count).for_each(job);
            return;
        }
        let _region = lock(&self.one_region_at_a_time);
        let shared = &*self.shared;
        // SAFETY: nobody is inside (the last region was closed and left), so nothing reads `job` now. The lifetime is erased, and the
        // guard below makes sure that every worker has left before this frame ends, by return or by unwinding.
        unsafe {
            let job: *const (dyn Fn(usize) + Sync + '_) = job;
            *shared.job.get() = Some(std::mem::transmute::<*const (dyn Fn(usize) + Sync + '_), Job>(job));
        }
        // A worker's panic during a region whose caller panicked too was not reported then and must not be now.
        shared.panicked.store(false, Ordering::Relaxed);
        shared.task_count.store(task_count, Ordering::Relaxed);
        shared.next_task.store(0, Ordering::Relaxed);
        let region = shared.state.load(Ordering::Relaxed) / REGION + 1;
        shared.state.store((region * REGION) | OPEN, Ordering::SeqCst);
        shared.wake_sleepers();
        let close = CloseOnDrop(shared);
        shared.take_tasks(job);
        drop(close);
        if shared.panicked.swap(false, Ordering::Relaxed) {
            resume_unwind(Box::new("a task of a parallel region panicked"));
        }
    }

    /// Runs `job(index, item)` on every item in parallel.
    pub fn for_each<T: Send>(&self, items: &mut [T], job: impl Fn(usize, &mut T) + Sync) {
        let count = items.len();
        let items = crate::aligned::SharedMut::new(items);
        self.run(count, &|index| {
            // SAFETY: each index is handed out once, so the parts are disjoint.
            let item = unsafe { items.slice(index, 1) };
            job(index, &mut item[0]);
        });
    }
}

struct CloseOnDrop<'a>(&'a Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        // When the caller's own task panicked, workers must not start the remaining ones.
        if std::thread::panicking() {
            self.0.next_task.store(usize::MAX / 2, Ordering::Relaxed);
        }
        self.0.state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0;
        while self.0.state.load(Ordering::Acquire) & INSIDE != 0 {
            spins += 1;
            if spins < JOIN_SPINS {
                std::hint::spin_loop();
            } else {
                std::thread::yield_now();
            }
        }
    }
}

impl Drop for ThreadPool {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::SeqCst);
        {
            let _guard = lock(&self.shared.sleep);
            self.shared.wake.notify_all();
        }
        for worker in self.workers.drain(..) {
            let _ = worker.join(); // A worker catches panics of jobs itself; there is nothing to report.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once_in_each_of_many_regions() {
        let pool = ThreadPool::new(3).unwrap();
        let counts: Vec<AtomicUsize> = (0..37).map(|_| AtomicUsize::new(0)).collect();
        for _ in 0..5_000 {
            pool.run(counts.len(), &|task| {
                counts[task].fetch_add(1, Ordering::Relaxed);
            });
        }
        assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 5_000));
    }

    #[test]
    fn writes_of_tasks_are_visible_after_the_region_even_when_workers_slept_before_it() {
        let pool = ThreadPool::new(2).unwrap();
        for round in 0..20_usize {
            std::thread::sleep(std::time::Duration::from_millis(2));
            let mut items = vec![0; 100];
            pool.for_each(&mut items, |index, item| *item = index * round);
            assert!(items.iter().enumerate().all(|(index, item)| *item == index * round));
        }
    }

    #[test]
    fn a_panicking_task_reaches_the_caller_and_the_pool_goes_on() {
        let pool = ThreadPool::new(2).unwrap();
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|task| {
                std::thread::sleep(std::time::Duration::from_micros(50));
                assert!(task % 16 != 5, "task {task}");
            });
        }));
        assert!(outcome.is_err());
        let done = AtomicUsize::new(0);
        pool.run(64, &|_| {
            done.fetch_add(1, Ordering::Relaxed);
        });
        assert_eq!(done.load(Ordering::Relaxed), 64);
    }
}
