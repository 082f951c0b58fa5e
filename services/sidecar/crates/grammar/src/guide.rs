//! A sequence under a constraint.

use std::sync::Arc;

use llguidance::Matcher;

use crate::mask::Mask;
use crate::mask_thread::{MaskThread, Place};

/// Follows the tokens of one sequence through its grammar.
///
/// The device thread never parses. As soon as a token is sampled it is pushed and [`Guide::prepare`] hands the parser to the mask thread,
/// which works while the device computes the next step's logits; [`Guide::mask`] waits for what is left of that, mostly nothing. With two
/// steps in flight nothing changes: the second waits in the queue without a token, and takes the first one's here, on this side.
pub struct Guide {
    thread: MaskThread,
    place: Arc<Place>,
    prompt_token_count: usize,
    /// Generated tokens known.
    token_count: usize,
    /// Those of them that the parser has not seen.
    unseen: Vec<u32>,
    prepared: bool,
}

impl Guide {
    pub(crate) fn new(thread: MaskThread, matcher: Matcher, prompt_token_count: usize) -> Self {
        Self {
            thread,
            place: Arc::new(Place::new(matcher)),
            prompt_token_count,
            token_count: 0,
            unseen: Vec::new(),
            prepared: false,
        }
    }

    /// Takes the token at `position` into account; what lies in the prompt or is known already changes nothing.
    pub fn push(&mut self, position: usize, token: u32) {
        if position == self.prompt_token_count + self.token_count {
            if self.prepared {
                // One job at a time has the parser.
                self.place.wait();
            }
            self.token_count += 1;
            self.unseen.push(token);
            self.prepared = false;
        }
    }

    /// Has the mask for the next token made. Returns at once.
    pub fn prepare(&mut self) {
        if !self.prepared {
            self.thread.follow(&self.place, std::mem::take(&mut self.unseen));
            self.prepared = true;
        }
    }

    /// The mask for the next token, once prepared.
    pub fn mask(&self) -> Option<Arc<Mask>> {
        self.prepared.then(|| self.place.wait())
    }
}
