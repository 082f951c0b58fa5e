//! Compiled constraints of one model.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use llguidance::panic_utils::catch_unwind;
use llguidance::toktrie::InferenceCapabilities;
use llguidance::{Matcher, ParserFactory};

use crate::constraint::Constraint;
use crate::guide::Guide;
use crate::mask_thread::{MaskThread, STACK_BYTES};
use crate::{GrammarError, vocabulary};

/// Compiled constraints kept. More costs memory, fewer compiles the same schema again.
const COMPILED_MAX: usize = 64;
/// A state takes up to 2 KiB, for each sequence. Fewer end answers under intricate expressions early.
const LEXER_STATES_MAX: usize = 50_000;
/// JSON strings are mostly made of these; the parser prepares their masks (llguidance's own slices).
const SLICES: [&str; 4] = [
    r"[\x20\x0A\x0D\x09]+",
    r#"[^"\\\x00-\x1F\x7F]{1,10}"#,
    r#"[^"\\\x00-\x1F\x7F]{1,30}"#,
    r#"[^"\\\x00-\x1F\x7F]+"#,
];

/// Constraints over one vocabulary: compiled once, followed by many sequences.
pub struct Grammars {
    tokenizer: PathBuf,
    vocab_size: usize,
    eos_token_id: u32,
    /// Made at first use: reading a large vocabulary takes a second.
    ready: OnceLock<Result<Ready, GrammarError>>,
    /// Used last at the end.
    compiled: Mutex<Vec<(Constraint, Matcher)>>,
    compiling: Mutex<()>,
}

struct Ready {
    factory: ParserFactory,
    thread: MaskThread,
}

impl Grammars {
    /// For the model in this directory or file, whose tokenizer is `tokenizer.json` there. Reads nothing yet.
    pub fn of_model(model: &Path, vocab_size: usize, eos_token_ids: &[u32]) -> Self {
        Self {
            tokenizer: vocabulary::tokenizer_path(model),
            vocab_size,
            eos_token_id: eos_token_ids.first().copied().unwrap_or(0),
            ready: OnceLock::new(),
            compiled: Mutex::new(Vec::new()),
            compiling: Mutex::new(()),
        }
    }

    /// Checks a constraint and keeps what was compiled, so that a sequence under it starts at once. Takes milliseconds; large schemas more.
    ///
    /// # Errors
    /// [`GrammarError`]: what is wrong with the constraint or, for every one alike, with the tokenizer.
    pub fn check(&self, constraint: &Constraint) -> Result<(), GrammarError> {
        self.matcher(constraint).map(|_| ())
    }

    /// A sequence under a constraint.
    ///
    /// # Errors
    /// Those of [`Grammars::check`].
    pub fn guide(&self, constraint: &Constraint, prompt_token_count: usize) -> Result<Guide, GrammarError> {
        let matcher = self.matcher(constraint)?;
        Ok(Guide::new(self.ready()?.thread.clone(), matcher, prompt_token_count))
    }

    fn matcher(&self, constraint: &Constraint) -> Result<Matcher, GrammarError> {
        if let Some(matcher) = self.known(constraint) {
            return Ok(matcher);
        }
        let ready = self.ready()?;
        let grammar = constraint.grammar()?;
        // One at a time, or a crowd of schemas takes every core from the device.
        let _turn = lock(&self.compiling);
        if let Some(matcher) = self.known(constraint) {
            return Ok(matcher);
        }
        let compile = || {
            let parser = std::panic::AssertUnwindSafe(|| ready.factory.create_parser(grammar));
            let mut matcher = Matcher::new(catch_unwind(parser));
            // The first mask fills caches that every clone begins with, and finds grammars that cost too much.
            match matcher.compute_mask_or_eos() {
                Ok(_) => Ok(matcher),
                Err(error) => Err(GrammarError::Constraint(first_line(&error.to_string()))),
            }
        };
        let compiled = std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .stack_size(STACK_BYTES)
                .spawn_scoped(scope, compile);
            match thread.map(std::thread::ScopedJoinHandle::join) {
                Ok(Ok(compiled)) => compiled,
                _ => Err(GrammarError::Internal("no thread to compile the constraint in".into())),
            }
        });
        let matcher = compiled?;
        let fresh = matcher.deep_clone();
        let mut kept = lock(&self.compiled);
        if kept.len() == COMPILED_MAX {
            kept.remove(0);
        }
        kept.push((constraint.clone(), matcher));
        Ok(fresh)
    }

    fn known(&self, constraint: &Constraint) -> Option<Matcher> {
        let mut kept = lock(&self.compiled);
        let index = kept.iter().position(|(known, _)| known == constraint)?;
        let entry = kept.remove(index);
        let matcher = entry.1.deep_clone();
        kept.push(entry);
        Some(matcher)
    }

    fn ready(&self) -> Result<&Ready, GrammarError> {
        let ready = self.ready.get_or_init(|| {
            let env = vocabulary::read(&self.tokenizer, self.vocab_size, self.eos_token_id)?;
            let slices = SLICES.map(String::from);
            let mut factory = ParserFactory::new(&env, InferenceCapabilities::default(), &slices)
                .map_err(|error| GrammarError::Tokenizer(error.to_string()))?;
            factory.quiet();
            factory.limits_mut().verbose_errors = false;
            factory.limits_mut().max_lexer_states = LEXER_STATES_MAX;
            let thread = MaskThread::start()?;
            Ok(Ready { factory, thread })
        });
        ready.as_ref().map_err(Clone::clone)
    }
}

fn first_line(message: &str) -> String {
    let line = message.lines().next().unwrap_or_default();
    line.chars().take(300).collect()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
