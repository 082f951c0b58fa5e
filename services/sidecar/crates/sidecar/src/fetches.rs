//! Which pulls may write into the pool. A fenced lease never writes again, and fencing waits for the write under way.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::exports::{LeaseId, lock};

/// How long a fenced lease is remembered: longer than any message of it can still be on its way.
const TOMBSTONE: Duration = Duration::from_secs(600);

/// All leases under which this sidecar pulls.
#[derive(Default)]
pub struct Fetches {
    gates: Mutex<HashMap<LeaseId, Gate>>,
}

struct Gate {
    writes: Arc<Mutex<bool>>,
    fenced: watch::Sender<bool>,
    fenced_at: Option<Instant>,
}

/// The right of one fetch to write until it is fenced.
pub struct WriteGate {
    open: Arc<Mutex<bool>>,
    fenced: watch::Receiver<bool>,
}

impl WriteGate {
    /// Runs a short write unless fenced. A fence waits for it.
    pub fn write<T>(&self, write: impl FnOnce() -> T) -> Option<T> {
        let open = lock(&self.open);
        (*open).then(write)
    }

    /// Follows whether it is fenced.
    pub fn watch(&self) -> watch::Receiver<bool> {
        self.fenced.clone()
    }
}

/// Fences a lease when it is dropped.
pub struct FencedOnDrop<'a> {
    fetches: &'a Fetches,
    lease_id: LeaseId,
}

impl Drop for FencedOnDrop<'_> {
    fn drop(&mut self) {
        self.fetches.fence(self.lease_id);
    }
}

impl Fetches {
    /// Fences a lease at the latest when the answer is dropped.
    pub fn fenced_on_drop(&self, lease_id: LeaseId) -> FencedOnDrop<'_> {
        FencedOnDrop {
            fetches: self,
            lease_id,
        }
    }

    /// The gate of a lease; None when it is fenced.
    pub fn open(&self, lease_id: LeaseId) -> Option<WriteGate> {
        let mut gates = lock(&self.gates);
        let now = Instant::now();
        gates.retain(|_, gate| gate.fenced_at.is_none_or(|at| now.duration_since(at) < TOMBSTONE));
        let gate = gates.entry(lease_id).or_insert_with(|| new_gate(true));
        gate.fenced_at.is_none().then(|| WriteGate {
            open: Arc::clone(&gate.writes),
            fenced: gate.fenced.subscribe(),
        })
    }

    /// Stops a lease's writes for good; when it returns none is under way.
    pub fn fence(&self, lease_id: LeaseId) {
        let mut gates = lock(&self.gates);
        let gate = gates.entry(lease_id).or_insert_with(|| new_gate(false));
        // Waits for a write: a copy of one frame.
        *lock(&gate.writes) = false;
        gate.fenced.send_replace(true);
        gate.fenced_at.get_or_insert_with(Instant::now);
    }
}

fn new_gate(open: bool) -> Gate {
    Gate {
        writes: Arc::new(Mutex::new(open)),
        fenced: watch::channel(!open).0,
        fenced_at: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fenced_lease_never_writes_again() {
        let fetches = Fetches::default();
        let gate = fetches.open([1; 16]).expect("a new lease may write");
        assert_eq!(gate.write(|| 7), Some(7));
        fetches.fence([1; 16]);
        assert!(*gate.watch().borrow());
        assert_eq!(gate.write(|| 7), None);
        assert!(fetches.open([1; 16]).is_none());
        assert!(fetches.open([2; 16]).is_some());
    }

    #[test]
    fn what_is_given_up_writes_no_more() {
        let fetches = Fetches::default();
        let given_up = fetches.fenced_on_drop([1; 16]);
        let gate = fetches.open([1; 16]).expect("a new lease may write");
        assert_eq!(gate.write(|| 7), Some(7));
        drop(given_up);
        assert_eq!(gate.write(|| 7), None);
    }

    #[test]
    fn a_fence_may_come_before_its_fetch() {
        let fetches = Fetches::default();
        fetches.fence([1; 16]);
        assert!(fetches.open([1; 16]).is_none());
    }
}
