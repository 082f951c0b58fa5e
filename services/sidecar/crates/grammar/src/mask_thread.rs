//! The thread that follows grammars while the device computes.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use llguidance::Matcher;
use llguidance::api::StopReason;

use crate::GrammarError;
use crate::mask::Mask;

/// Nested grammars recurse.
pub(crate) const STACK_BYTES: usize = 16 << 20;

/// A sequence's place in its grammar, shared with the thread.
pub(crate) struct Place {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Absent while the thread has it.
    matcher: Option<Matcher>,
    mask: Option<Arc<Mask>>,
}

impl Place {
    pub(crate) fn new(matcher: Matcher) -> Self {
        Self {
            state: Mutex::new(State {
                matcher: Some(matcher),
                mask: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// The mask asked for last.
    pub(crate) fn wait(&self) -> Arc<Mask> {
        let mut state = self.lock();
        loop {
            match &state.mask {
                Some(mask) => return Arc::clone(mask),
                None => state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes tokens and finds the mask behind them.
    fn follow(&self, tokens: &[u32]) {
        let taken = self.lock().matcher.take();
        let (matcher, mask) = match taken {
            Some(mut matcher) => {
                let mask = next_mask(&mut matcher, tokens);
                (Some(matcher), mask)
            }
            None => (None, Mask::default()),
        };
        let mut state = self.lock();
        state.matcher = matcher;
        state.mask = Some(Arc::new(mask));
        self.changed.notify_all();
    }
}

/// A dead mask where the grammar cannot be followed within its limits.
fn next_mask(matcher: &mut Matcher, tokens: &[u32]) -> Mask {
    if matcher.consume_tokens(tokens).is_err() {
        return Mask::default();
    }
    match matcher.stop_reason() {
        StopReason::NotStopped => {}
        StopReason::NoExtension | StopReason::NoExtensionBias | StopReason::EndOfSentence => {
            return Mask::new(Vec::new(), true);
        }
        _ => return Mask::default(),
    }
    let (Ok(mut allowed), Ok(complete)) = (matcher.compute_mask(), matcher.is_accepting()) else {
        return Mask::default();
    };
    if let Ok(env) = matcher.tok_env() {
        // Which tokens end a sequence is the sequence's to say.
        for token in env.tok_trie().eos_tokens() {
            allowed.disallow_token(*token);
        }
    }
    Mask::new(allowed.as_slice().to_vec(), complete)
}

struct Job {
    place: Arc<Place>,
    tokens: Vec<u32>,
}

/// Hands work to the thread, which ends with the last of these.
#[derive(Clone)]
pub(crate) struct MaskThread(Sender<Job>);

impl MaskThread {
    pub(crate) fn start() -> Result<Self, GrammarError> {
        let (sender, receiver): (_, Receiver<Job>) = channel();
        std::thread::Builder::new()
            .name("masks".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                for Job { place, tokens } in receiver {
                    place.follow(&tokens);
                }
            })
            .map_err(|error| GrammarError::Internal(format!("the system refused to start a thread: {error}")))?;
        Ok(Self(sender))
    }

    /// Forgets the place's mask and has the next one made.
    pub(crate) fn follow(&self, place: &Arc<Place>, tokens: Vec<u32>) {
        place.lock().mask = None;
        let job = Job {
            place: Arc::clone(place),
            tokens,
        };
        if let Err(unsent) = self.0.send(job) {
            unsent.0.place.follow(&unsent.0.tokens);
        }
    }
}
