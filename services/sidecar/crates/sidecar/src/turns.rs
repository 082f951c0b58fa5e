//! Whose frame leaves next when several pulls share a connection: the one that is needed soonest, without starving the others.
//!
//! A pull asks for a turn before it reads a frame, and the turn is over when the connection takes the frame. So few turns are out that a frame
//! never waits behind many of a pull that has more time. After earliest deadline first (Liu & Layland, JACM 1973), with a share for who was
//! served longest ago, so that a pull of a far deadline goes on too.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::exports::lock;

/// Turns that are out at a time. More would only hold memory, and let frames of a later deadline go ahead: HTTP/2 has its own window.
pub const TURNS_OUT: usize = 4;
/// Of so many turns one goes to who was served longest ago. Larger: near deadlines are kept better; smaller: far ones go on faster.
const FAIR_EVERY: u64 = 4;
/// A turn that lasts longer is of a puller that reads nothing, and holds up nobody else.
const STALE: Duration = Duration::from_millis(100);

/// The pulls of one connection.
#[derive(Default)]
pub struct Turns {
    queue: Mutex<Queue>,
    changed: Notify,
}

/// One pull among them.
pub struct Line {
    turns: Arc<Turns>,
    id: u64,
}

/// The right to put one frame on the connection, until it is dropped.
pub struct Turn {
    turns: Arc<Turns>,
    number: u64,
}

impl Turns {
    /// Adds a pull that is needed by a deadline.
    pub fn join(self: &Arc<Self>, deadline: Instant) -> Line {
        Line {
            turns: Arc::clone(self),
            id: lock(&self.queue).join(deadline),
        }
    }
}

impl Line {
    /// Waits for its turn. Dropping the future gives the place up.
    pub async fn turn(&self) -> Turn {
        let _waiting = Waiting::new(self);
        loop {
            let changed = self.turns.changed.notified();
            let granted = lock(&self.turns.queue).grant(self.id, Instant::now());
            if let Some(number) = granted {
                // Others may have a turn beside it.
                self.turns.changed.notify_waiters();
                let turns = Arc::clone(&self.turns);
                return Turn { turns, number };
            }
            let _ = tokio::time::timeout(STALE, changed).await;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        lock(&self.turns.queue).lines.remove(&self.id);
        self.turns.changed.notify_waiters();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        lock(&self.turns.queue).out.remove(&self.number);
        self.turns.changed.notify_waiters();
    }
}

/// Counts a line among those that wait while it lives.
struct Waiting<'a>(&'a Line);

impl<'a> Waiting<'a> {
    fn new(line: &'a Line) -> Self {
        lock(&line.turns.queue).set_waiting(line.id, true);
        Self(line)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.0.turns.queue).set_waiting(self.0.id, false);
        self.0.turns.changed.notify_waiters();
    }
}

#[derive(Default)]
struct Queue {
    lines: BTreeMap<u64, LineState>,
    /// Turns that are out, by their number, and when they began.
    out: BTreeMap<u64, Instant>,
    joined: u64,
    granted: u64,
}

struct LineState {
    deadline: Instant,
    is_waiting: bool,
    /// Number of its last turn.
    served: u64,
}

impl Queue {
    fn join(&mut self, deadline: Instant) -> u64 {
        self.joined += 1;
        let state = LineState {
            deadline,
            is_waiting: false,
            served: self.granted,
        };
        self.lines.insert(self.joined, state);
        self.joined
    }

    fn set_waiting(&mut self, id: u64, is_waiting: bool) {
        if let Some(line) = self.lines.get_mut(&id) {
            line.is_waiting = is_waiting;
        }
    }

    /// The turn's number, when it is this line's.
    fn grant(&mut self, id: u64, now: Instant) -> Option<u64> {
        if self.next(now) != Some(id) {
            return None;
        }
        self.granted += 1;
        let line = self.lines.get_mut(&id)?;
        (line.served, line.is_waiting) = (self.granted, false);
        self.out.insert(self.granted, now);
        Some(self.granted)
    }

    /// Whose turn it is; None when nobody waits or enough turns are out.
    fn next(&self, now: Instant) -> Option<u64> {
        let live = self.out.values().filter(|began| now.duration_since(**began) < STALE);
        if live.count() >= TURNS_OUT {
            return None;
        }
        let waiting = self.lines.iter().filter(|(_, line)| line.is_waiting);
        let chosen = if (self.granted + 1).is_multiple_of(FAIR_EVERY) {
            waiting.min_by_key(|(id, line)| (line.served, **id))
        } else {
            waiting.min_by_key(|(id, line)| (line.deadline, **id))
        };
        chosen.map(|(id, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines that always have a frame; each turn ends before the next begins. Tells who is served.
    fn served(queue: &mut Queue, now: Instant, turns: usize) -> Vec<u64> {
        let serve = |_| {
            queue.lines.values_mut().for_each(|line| line.is_waiting = true);
            let id = queue.next(now).expect("somebody waits");
            let number = queue.grant(id, now).expect("its turn");
            queue.out.remove(&number);
            id
        };
        (0..turns).map(serve).collect()
    }

    #[test]
    fn the_nearest_deadline_goes_first_and_nobody_starves() {
        let (now, mut queue) = (Instant::now(), Queue::default());
        let far = queue.join(now + Duration::from_secs(9));
        let near = queue.join(now + Duration::from_secs(1));
        let middle = queue.join(now + Duration::from_secs(5));
        let first = served(&mut queue, now, 12);
        assert_eq!(
            first,
            [near, near, near, far, near, near, near, middle, near, near, near, far]
        );
        queue.lines.remove(&near);
        let rest = served(&mut queue, now, 8);
        assert_eq!(rest.iter().filter(|id| **id == middle).count(), 6, "{rest:?}");
    }

    #[test]
    fn equal_deadlines_are_served_in_the_order_of_arrival() {
        let (now, mut queue) = (Instant::now(), Queue::default());
        let first = queue.join(now);
        let second = queue.join(now);
        assert_eq!(served(&mut queue, now, 4), [first, first, first, second]);
    }

    #[test]
    fn a_puller_that_reads_nothing_holds_up_nobody() {
        let (now, mut queue) = (Instant::now(), Queue::default());
        let stuck = queue.join(now);
        for _ in 0..TURNS_OUT {
            queue.set_waiting(stuck, true);
            assert!(queue.grant(stuck, now).is_some());
        }
        let other = queue.join(now + Duration::from_secs(1));
        queue.set_waiting(other, true);
        assert_eq!(queue.grant(other, now + STALE / 2), None);
        assert!(queue.grant(other, now + STALE).is_some());
    }

    #[tokio::test]
    async fn a_turn_ends_when_it_is_dropped_and_a_place_when_it_is_given_up() {
        let turns = Arc::new(Turns::default());
        let (line, other) = (turns.join(Instant::now()), turns.join(Instant::now()));
        let mut held = Vec::new();
        for _ in 0..TURNS_OUT {
            held.push(line.turn().await);
        }
        assert_eq!(lock(&turns.queue).next(Instant::now()), None);
        let soon = Duration::from_millis(10);
        assert!(tokio::time::timeout(soon, line.turn()).await.is_err());
        // Whoever gave up is not waited for.
        held.pop();
        let turn = tokio::time::timeout(STALE / 2, other.turn())
            .await
            .expect("a free turn");
        drop((turn, held, line, other));
        let queue = lock(&turns.queue);
        assert!(queue.lines.is_empty() && queue.out.is_empty());
    }
}
