//! What may be pulled from this sidecar: sequences' prompts under leases.
//!
//! A lease is open until it is released, expires, or its process ends. Reading happens under a guard; closing waits for running
//! guards, so that after `close` nothing reads the blocks and they may be reused.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::errors::CallError;
use crate::ticket::ID_BYTES;

/// A lease's id.
pub type LeaseId = [u8; ID_BYTES];

/// What an export grants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportTerms {
    /// Its lease.
    pub lease_id: LeaseId,
    /// Whose KV.
    pub sequence_id: u64,
    /// Tokens `[0, token_count)`.
    pub token_count: u32,
    /// Where they are, in order.
    pub block_ids: Vec<u32>,
    /// Whose tenant.
    pub tenant_scope: [u8; ID_BYTES],
    /// When it ends by itself.
    pub expires_at_unix_ms: u64,
}

/// How far a prompt is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Tokens whose KV is in place in all layers.
    pub computed_tokens: u32,
    /// Tokens, these included, whose KV is in place in the first [`Progress::layers`] layers.
    pub layered_tokens: u32,
    /// See [`Progress::layered_tokens`].
    pub layers: u32,
    /// No more reads.
    pub closed: bool,
}

impl Progress {
    fn of(computed_tokens: u32) -> Self {
        Self {
            computed_tokens,
            layered_tokens: computed_tokens,
            layers: 0,
            closed: false,
        }
    }

    /// In how many layers, counted from the first, the tokens before `token_end` are in place; all is `u32::MAX`.
    pub fn layers_of(&self, token_end: u32) -> u32 {
        if token_end <= self.computed_tokens {
            u32::MAX
        } else if token_end <= self.layered_tokens {
            self.layers
        } else {
            0
        }
    }
}

/// One open (or just closed) lease.
#[derive(Debug)]
pub struct Export {
    /// What it grants.
    pub terms: ExportTerms,
    progress: watch::Sender<Progress>,
    readers: Mutex<Readers>,
    quiet: Notify,
}

#[derive(Debug, Default)]
struct Readers {
    count: usize,
    closed: bool,
}

/// While it lives, the export's blocks are not reused.
pub struct ReadGuard<'a>(&'a Export);

impl Export {
    /// Follows the prompt.
    pub fn follow(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Begins to read; None when closed or, at `now`, expired.
    pub fn read(&self, now_unix_ms: u64) -> Option<ReadGuard<'_>> {
        let mut readers = lock(&self.readers);
        if readers.closed || now_unix_ms >= self.terms.expires_at_unix_ms {
            return None;
        }
        readers.count += 1;
        Some(ReadGuard(self))
    }

    fn is_closed(&self) -> bool {
        lock(&self.readers).closed
    }

    async fn close(&self) {
        lock(&self.readers).closed = true;
        self.progress.send_modify(|progress| progress.closed = true);
        loop {
            let quiet = self.quiet.notified();
            if lock(&self.readers).count == 0 {
                return;
            }
            quiet.await;
        }
    }
}

impl Drop for ReadGuard<'_> {
    fn drop(&mut self) {
        let mut readers = lock(&self.0.readers);
        readers.count -= 1;
        if readers.count == 0 {
            // Stored when nobody waits yet, so a close between its check and its wait is not lost.
            self.0.quiet.notify_waiters();
            self.0.quiet.notify_one();
        }
    }
}

/// All leases, and how far each running sequence is.
#[derive(Debug, Default)]
pub struct Exports {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    by_lease: HashMap<LeaseId, Arc<Export>>,
    by_sequence: HashMap<u64, Vec<Arc<Export>>>,
    computed: HashMap<u64, u32>,
}

impl State {
    /// The export that this opens; None where it is open already.
    fn open(&mut self, terms: ExportTerms, computed_tokens: u32) -> Result<Option<Arc<Export>>, CallError> {
        if let Some(existing) = self.by_lease.get(&terms.lease_id) {
            if existing.terms == terms && !existing.is_closed() {
                return Ok(None);
            }
            let message = "is published already with other terms, or was closed; use a new lease".into();
            return Err(CallError::InvalidRequest {
                field: "lease_id".into(),
                message,
            });
        }
        let (progress, _) = watch::channel(Progress::of(computed_tokens));
        let lease_id = terms.lease_id;
        let export = Arc::new(Export {
            terms,
            progress,
            readers: Mutex::default(),
            quiet: Notify::new(),
        });
        self.by_lease.insert(lease_id, Arc::clone(&export));
        Ok(Some(export))
    }
}

impl Exports {
    /// Opens a lease. The same terms again are fine; other terms under the same id are not.
    ///
    /// # Errors
    /// [`CallError::InvalidRequest`].
    pub fn publish(&self, terms: ExportTerms) -> Result<(), CallError> {
        let mut state = lock(&self.state);
        let computed_tokens = state.computed.get(&terms.sequence_id).copied().unwrap_or(0);
        let sequence_id = terms.sequence_id;
        if let Some(export) = state.open(terms, computed_tokens)? {
            state.by_sequence.entry(sequence_id).or_default().push(export);
        }
        Ok(())
    }

    /// The same for KV that is in place already, all of it: of no sequence that the engine knows.
    ///
    /// # Errors
    /// [`CallError::InvalidRequest`].
    pub fn publish_computed(&self, terms: ExportTerms) -> Result<(), CallError> {
        let token_count = terms.token_count;
        lock(&self.state).open(terms, token_count)?;
        Ok(())
    }

    /// The open export of a lease.
    pub fn find(&self, lease_id: &LeaseId) -> Option<Arc<Export>> {
        lock(&self.state).by_lease.get(lease_id).cloned()
    }

    /// Leases open.
    pub fn open_count(&self) -> usize {
        lock(&self.state).by_lease.len()
    }

    /// One of these blocks that an open lease names.
    pub fn exported(&self, blocks: &[u32]) -> Option<u32> {
        let blocks: HashSet<u32> = blocks.iter().copied().collect();
        let state = lock(&self.state);
        let mut named = state.by_lease.values().flat_map(|export| &export.terms.block_ids);
        named.find(|block| blocks.contains(block)).copied()
    }

    /// Closes a lease and waits until nobody reads, also when somebody else is closing it already. An unknown lease is closed.
    pub async fn release(&self, lease_id: &LeaseId) {
        let Some(export) = self.find(lease_id) else { return };
        export.close().await;
        // Known until here, so that every release of it waits for the same readers.
        let mut state = lock(&self.state);
        state.by_lease.remove(lease_id);
        let sequence_id = export.terms.sequence_id;
        if let Some(exports) = state.by_sequence.get_mut(&sequence_id) {
            exports.retain(|other| other.terms.lease_id != *lease_id);
            if exports.is_empty() {
                state.by_sequence.remove(&sequence_id);
            }
        }
    }

    /// Closes what has expired.
    pub async fn sweep(&self, now_unix_ms: u64) {
        let expired: Vec<LeaseId> = lock(&self.state)
            .by_lease
            .values()
            .filter(|export| export.terms.expires_at_unix_ms <= now_unix_ms)
            .map(|export| export.terms.lease_id)
            .collect();
        for lease_id in expired {
            self.release(&lease_id).await;
        }
    }

    /// A sequence's KV is in place up to here.
    pub fn advance(&self, sequence_id: u64, computed_tokens: u32) {
        let mut state = lock(&self.state);
        state.computed.insert(sequence_id, computed_tokens);
        for export in state.by_sequence.get(&sequence_id).into_iter().flatten() {
            export.progress.send_modify(|progress| {
                *progress = Progress {
                    closed: progress.closed,
                    ..Progress::of(computed_tokens)
                }
            });
        }
    }

    /// While a step runs: the KV of some sequences' tokens, each up to an end, is in place in the first `layers` of `layer_count` layers.
    /// What comes before these tokens is in place in all of them.
    pub fn stored(&self, ends: &[(u64, u32)], layers: u32, layer_count: u32) {
        let state = lock(&self.state);
        if state.by_sequence.is_empty() {
            return;
        }
        for (sequence_id, token_end) in ends {
            for export in state.by_sequence.get(sequence_id).into_iter().flatten() {
                export.progress.send_modify(|progress| {
                    if layers == layer_count {
                        progress.computed_tokens = progress.computed_tokens.max(*token_end);
                    }
                    (progress.layered_tokens, progress.layers) = (*token_end, layers);
                });
            }
        }
    }

    /// The engine forgets a sequence; its exports stay readable as far as they are.
    pub fn forget(&self, sequence_id: u64) {
        let mut state = lock(&self.state);
        state.computed.remove(&sequence_id);
        state.by_sequence.remove(&sequence_id);
    }

    /// The engine forgets every sequence.
    pub fn forget_all(&self) {
        let mut state = lock(&self.state);
        state.computed.clear();
        state.by_sequence.clear();
    }
}

/// A panic while a lock was held is a defect elsewhere; what these locks guard stays consistent between statements.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn terms(lease: u8) -> ExportTerms {
        ExportTerms {
            lease_id: [lease; 16],
            sequence_id: 5,
            token_count: 40,
            block_ids: vec![1, 2],
            tenant_scope: [9; 16],
            expires_at_unix_ms: 1_000,
        }
    }

    #[tokio::test]
    async fn a_release_waits_for_readers_and_refuses_new_ones() {
        let exports = Arc::new(Exports::default());
        exports.publish(terms(1)).unwrap();
        let export = exports.find(&[1; 16]).unwrap();
        let guard = export.read(0).unwrap();
        let released = tokio::spawn({
            let exports = Arc::clone(&exports);
            async move { exports.release(&[1; 16]).await }
        });
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(!released.is_finished());
        assert!(export.read(0).is_none());
        drop(guard);
        released.await.unwrap();
        assert_eq!(exports.open_count(), 0);
    }

    #[tokio::test]
    async fn a_release_that_is_repeated_waits_as_well() {
        let exports = Exports::default();
        exports.publish(terms(1)).unwrap();
        let export = exports.find(&[1; 16]).unwrap();
        let guard = export.read(0).unwrap();
        let (first, second) = (exports.sweep(1_000), exports.release(&[1; 16]));
        tokio::pin!(first, second);
        assert!(poll_once(first.as_mut()).await.is_none());
        assert!(
            poll_once(second.as_mut()).await.is_none(),
            "a block would be reused while it is read"
        );
        assert!(
            exports.publish(terms(1)).is_err(),
            "a lease that is being closed does not open again"
        );
        drop(guard);
        second.await;
        first.await;
        assert_eq!(exports.open_count(), 0);
    }

    /// What a future gives when it is asked once.
    async fn poll_once<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|context| match future.as_mut().poll(context) {
            std::task::Poll::Ready(output) => std::task::Poll::Ready(Some(output)),
            std::task::Poll::Pending => std::task::Poll::Ready(None),
        })
        .await
    }

    #[tokio::test]
    async fn a_lease_lapses_at_its_expiry() {
        let exports = Exports::default();
        exports.publish(terms(1)).unwrap();
        let export = exports.find(&[1; 16]).unwrap();
        exports.sweep(999).await;
        assert!(export.read(999).is_some() && exports.open_count() == 1);
        assert!(export.read(1_000).is_none());
        exports.sweep(1_000).await;
        assert_eq!(exports.open_count(), 0);
    }

    #[test]
    fn progress_made_before_the_lease_counts() {
        let exports = Exports::default();
        exports.advance(5, 33);
        exports.publish(terms(1)).unwrap();
        let export = exports.find(&[1; 16]).unwrap();
        assert_eq!(export.follow().borrow().computed_tokens, 33);
        exports.forget_all();
        exports.advance(5, 7);
        assert_eq!(
            export.follow().borrow().computed_tokens,
            33,
            "a new stream's sequence is another one"
        );
    }

    #[test]
    fn layers_of_a_chunk_are_told_while_later_ones_are_computed() {
        let exports = Exports::default();
        exports.publish(terms(1)).unwrap();
        exports.advance(5, 16);
        let progress = exports.find(&[1; 16]).unwrap().follow();
        let layers = |tokens: [u32; 4]| tokens.map(|end| progress.borrow().layers_of(end));
        assert_eq!(layers([0, 16, 17, 40]), [u32::MAX, u32::MAX, 0, 0]);
        exports.stored(&[(4, 9), (5, 32)], 2, 3);
        assert_eq!(layers([16, 17, 32, 33]), [u32::MAX, 2, 2, 0]);
        exports.stored(&[(5, 32)], 3, 3);
        assert_eq!(layers([16, 17, 32, 33]), [u32::MAX, u32::MAX, u32::MAX, 0]);
        // The next pass of the same step.
        exports.stored(&[(5, 40)], 1, 3);
        assert_eq!(layers([32, 33, 40, 41]), [u32::MAX, 1, 1, 0]);
        exports.advance(5, 40);
        assert_eq!(layers([32, 33, 40, 41]), [u32::MAX, u32::MAX, u32::MAX, 0]);
    }

    #[test]
    fn what_is_computed_already_is_open_whole_and_follows_no_sequence() {
        let exports = Exports::default();
        exports.publish_computed(terms(1)).unwrap();
        exports.advance(5, 7);
        let export = exports.find(&[1; 16]).unwrap();
        assert_eq!(export.follow().borrow().layers_of(40), u32::MAX);
    }

    #[test]
    fn a_lease_is_published_once() {
        let exports = Exports::default();
        exports.publish(terms(1)).unwrap();
        exports.publish(terms(1)).unwrap();
        assert!(
            exports
                .publish(ExportTerms {
                    token_count: 41,
                    ..terms(1)
                })
                .is_err()
        );
    }
}
