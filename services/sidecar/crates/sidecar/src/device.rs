//! The thread that owns the engine. Everybody else reaches it through a bounded channel.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use kvasir_engine::{Engine, StepError, StepOutput, StepPlan};
use opentelemetry::trace::{Span as _, SpanBuilder, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use tokio::sync::mpsc::{self, error::TryRecvError};

use crate::block_uses::{BlockUses, SwapState};
use crate::exports::Exports;
use crate::stats::{Stats, add};
use crate::telemetry::{Telemetry, context_from_traceparent};

/// Steps that may wait while one runs: with it, two are unanswered.
const QUEUED_STEPS: usize = 2;
/// Chunks of one prompt that get a span each; of longer prompts the rest is only counted.
const CHUNK_SPANS_MAX: usize = 64;
/// Between two looks at a device that computes and at the queue. Larger: steps end and begin later; smaller: more of a core is spent on looking.
const LOOK_INTERVAL: Duration = Duration::from_micros(20);

/// What the thread is asked to do.
pub enum DeviceCommand {
    /// Run a step and answer.
    Step {
        /// What to run.
        plan: StepPlan,
        /// Trace contexts of the plan's new sequences.
        traceparents: Vec<(u64, String)>,
        /// Where the answer goes; a closed one is fine.
        answer: mpsc::Sender<DeviceAnswer>,
        /// Names the answer.
        step_id: u64,
    },
    /// Forget every sequence.
    Reset,
}

/// A step's answer.
pub struct DeviceAnswer {
    /// The command's.
    pub step_id: u64,
    /// What came of it.
    pub outcome: Result<StepOutput, StepError>,
    /// How long the device waited for this step after the one before.
    pub idle_nanos: u64,
}

/// Sends commands to the device thread.
pub type DeviceHandle = mpsc::Sender<DeviceCommand>;

/// Starts the thread. It ends when every handle is gone. `block_uses` where blocks may be swapped while steps run.
///
/// # Errors
/// The system's, when no thread can be made.
pub fn start_device(
    engine: Engine,
    exports: Arc<Exports>,
    block_uses: Option<Arc<BlockUses>>,
    stats: Arc<Stats>,
    telemetry: Telemetry,
) -> std::io::Result<DeviceHandle> {
    let (sender, receiver) = mpsc::channel(QUEUED_STEPS);
    let device = Device {
        engine,
        exports,
        block_uses,
        stats,
        telemetry,
        prompts: HashMap::new(),
        begun: VecDeque::new(),
        born: Instant::now(),
    };
    std::thread::Builder::new()
        .name("device".into())
        .spawn(move || device.run(receiver))?;
    Ok(sender)
}

/// A prompt being computed, for its span.
struct Prompt {
    context: Context,
    prompt_tokens: u32,
    computed_tokens: u64,
    chunk_count: i64,
    /// The first [`CHUNK_SPANS_MAX`] of them.
    chunks: Vec<Chunk>,
    device_nanos: u64,
}

/// A part of a prompt that one step computed.
struct Chunk {
    began: SystemTime,
    ended: SystemTime,
    start_position: u32,
    token_count: u32,
    /// Tokens of the whole step, others' too.
    step_tokens: u64,
    device_nanos: u64,
}

struct Device {
    engine: Engine,
    exports: Arc<Exports>,
    block_uses: Option<Arc<BlockUses>>,
    stats: Arc<Stats>,
    telemetry: Telemetry,
    prompts: HashMap<u64, Prompt>,
    /// Steps in flight, oldest first.
    begun: VecDeque<BegunStep>,
    born: Instant,
}

/// A step in flight.
struct BegunStep {
    plan: StepPlan,
    traceparents: Vec<(u64, String)>,
    answer: mpsc::Sender<DeviceAnswer>,
    step_id: u64,
    idle_nanos: u64,
    began: SystemTime,
}

impl Device {
    fn run(mut self, mut receiver: mpsc::Receiver<DeviceCommand>) {
        let mut finished: Option<Instant> = None;
        loop {
            let (command, waited) = match receiver.try_recv() {
                Ok(command) => (command, false),
                Err(TryRecvError::Empty) if self.begun.is_empty() => match receiver.blocking_recv() {
                    Some(command) => (command, true),
                    None => return,
                },
                Err(TryRecvError::Empty) => {
                    // A device of its own computes while we look for the step after.
                    if self.engine.is_ready() {
                        self.finish();
                        finished = Some(Instant::now());
                    } else {
                        std::thread::sleep(LOOK_INTERVAL);
                    }
                    continue;
                }
                Err(TryRecvError::Disconnected) => return,
            };
            match command {
                DeviceCommand::Reset => {
                    while !self.begun.is_empty() {
                        self.finish();
                    }
                    self.engine.reset();
                    self.exports.forget_all();
                    self.prompts.clear();
                    self.count_sequences();
                    finished = None;
                }
                DeviceCommand::Step {
                    plan,
                    traceparents,
                    answer,
                    step_id,
                } => {
                    let idle = if waited {
                        finished.map_or(0, |at| nanos(at.elapsed()))
                    } else {
                        0
                    };
                    let step = BegunStep {
                        plan,
                        traceparents,
                        answer,
                        step_id,
                        idle_nanos: idle,
                        began: SystemTime::now(),
                    };
                    self.begin(step);
                    // One that waits for the next is enough.
                    while self.engine.in_flight() > 1 {
                        self.finish();
                    }
                    finished = Some(Instant::now());
                }
            }
        }
    }

    /// Before the answer goes out, so that who has it finds the gauge right.
    fn count_sequences(&self) {
        let count = self.engine.sequence_count() as u32;
        self.stats.sequences.store(count, Ordering::Relaxed);
    }

    /// Begins a step; one that cannot run is answered at once, after those before it.
    fn begin(&mut self, mut step: BegunStep) {
        while !self.engine.can_begin(&step.plan) {
            self.finish();
        }
        if let Err(error) = self.take_blocks(&step.plan) {
            while !self.begun.is_empty() {
                self.finish();
            }
            return self.answer(step, Err(error));
        }
        step.began = SystemTime::now();
        self.stats
            .step_began_nanos
            .store(nanos(self.born.elapsed()).max(1), Ordering::Relaxed);
        let (exports, layer_count) = (Arc::clone(&self.exports), self.engine.layout().layer_count as u32);
        let mut watch = |ends: &[(u64, u32)], layers: usize| exports.stored(ends, layers as u32, layer_count);
        match self.engine.begin(&step.plan, &mut watch) {
            Ok(()) => self.begun.push_back(step),
            Err(error) => {
                if let Some(uses) = &self.block_uses {
                    uses.undo_step();
                }
                while !self.begun.is_empty() {
                    self.finish();
                }
                self.answer(step, Err(error));
            }
        }
    }

    /// Waits until no swap has blocks that the step must not meet there; steps before it end meanwhile.
    fn take_blocks(&mut self, plan: &StepPlan) -> Result<(), StepError> {
        let Some(uses) = self.block_uses.clone() else {
            return Ok(());
        };
        let mut used = self.engine.blocks_used(plan);
        while let Err((again, awaited)) = uses.begin_step(used) {
            while awaited.fate.get() == SwapState::Running {
                if !self.begun.is_empty() && self.engine.is_ready() {
                    self.finish();
                } else {
                    std::thread::sleep(LOOK_INTERVAL);
                }
            }
            if awaited.fills && awaited.fate.get() == SwapState::EndedEarly {
                return Err(StepError::NotSwappedIn { block: awaited.block });
            }
            used = again;
        }
        Ok(())
    }

    /// Ends the oldest step and answers it.
    fn finish(&mut self) {
        let Some(step) = self.begun.pop_front() else {
            return;
        };
        let (exports, layer_count) = (Arc::clone(&self.exports), self.engine.layout().layer_count as u32);
        let mut watch = |ends: &[(u64, u32)], layers: usize| exports.stored(ends, layers as u32, layer_count);
        let outcome = self.engine.finish(&mut watch);
        // Before the answer: who has it may swap these blocks.
        if let Some(uses) = &self.block_uses {
            uses.end_step();
        }
        let outcome = outcome.inspect(|output| self.tell(&step, output));
        self.answer(step, outcome);
    }

    fn answer(&mut self, step: BegunStep, outcome: Result<StepOutput, StepError>) {
        let runs_since = if self.begun.is_empty() {
            0
        } else {
            nanos(self.born.elapsed()).max(1)
        };
        self.stats.step_began_nanos.store(runs_since, Ordering::Relaxed);
        self.count_sequences();
        // A worker that went away does not want the answer; the stream's end resets the engine.
        let _ = step.answer.blocking_send(DeviceAnswer {
            step_id: step.step_id,
            outcome,
            idle_nanos: step.idle_nanos,
        });
    }

    /// Counts, spans and exports of a step that ended.
    fn tell(&mut self, step: &BegunStep, output: &StepOutput) {
        let (plan, began, ended) = (&step.plan, step.began, SystemTime::now());
        add(&self.stats.steps, 1);
        add(&self.stats.device_nanos, output.device_nanos);
        add(&self.stats.prompt_tokens, output.prompt_tokens);
        add(&self.stats.decode_tokens, output.decode_tokens);
        for sequence_id in &plan.dropped {
            self.exports.forget(*sequence_id);
            self.prompts.remove(sequence_id);
        }
        for start in &plan.starts {
            let traceparent = step.traceparents.iter().find(|(id, _)| *id == start.sequence_id);
            let context = context_from_traceparent(traceparent.map_or("", |(_, text)| text.as_str()));
            let prompt = Prompt {
                context,
                prompt_tokens: start.prompt_token_count,
                computed_tokens: 0,
                chunk_count: 0,
                chunks: Vec::new(),
                device_nanos: 0,
            };
            self.prompts.insert(start.sequence_id, prompt);
        }
        for slice in &plan.slices {
            let end = slice.start_position + slice.token_count;
            let Some(prompt) = self.prompts.get_mut(&slice.sequence_id) else {
                continue;
            };
            if slice.start_position >= prompt.prompt_tokens {
                self.prompts.remove(&slice.sequence_id);
                continue;
            }
            self.exports.advance(slice.sequence_id, end);
            prompt.computed_tokens += u64::from(slice.token_count);
            prompt.chunk_count += 1;
            prompt.device_nanos += output.device_nanos;
            if prompt.chunks.len() < CHUNK_SPANS_MAX {
                prompt.chunks.push(Chunk {
                    began,
                    ended,
                    start_position: slice.start_position,
                    token_count: slice.token_count,
                    step_tokens: output.prompt_tokens + output.decode_tokens,
                    device_nanos: output.device_nanos,
                });
            }
            if end >= prompt.prompt_tokens
                && let Some(prompt) = self.prompts.remove(&slice.sequence_id)
            {
                self.record(prompt);
            }
        }
    }

    /// The span `sidecar.prefill`, from the first chunk's start to the last one's end, with a `prefill.chunk` below it for each of them.
    fn record(&self, prompt: Prompt) {
        let tracer = &self.telemetry.tracer;
        let attributes = vec![
            KeyValue::new("kvasir.prompt_tokens", prompt.computed_tokens as i64),
            KeyValue::new("kvasir.chunks", prompt.chunk_count),
            KeyValue::new("kvasir.device_ms", prompt.device_nanos as f64 / 1e6),
        ];
        let began = prompt.chunks.first().map_or_else(SystemTime::now, |chunk| chunk.began);
        let builder = SpanBuilder::from_name("sidecar.prefill")
            .with_start_time(began)
            .with_attributes(attributes);
        let context = prompt
            .context
            .with_span(tracer.build_with_context(builder, &prompt.context));
        for chunk in prompt.chunks {
            let attributes = vec![
                KeyValue::new("kvasir.start_position", i64::from(chunk.start_position)),
                KeyValue::new("kvasir.tokens", i64::from(chunk.token_count)),
                KeyValue::new("kvasir.step_tokens", chunk.step_tokens as i64),
                KeyValue::new("kvasir.device_ms", chunk.device_nanos as f64 / 1e6),
            ];
            let builder = SpanBuilder::from_name("prefill.chunk")
                .with_start_time(chunk.began)
                .with_attributes(attributes);
            tracer
                .build_with_context(builder, &context)
                .end_with_timestamp(chunk.ended);
        }
        context.span().end();
    }
}

fn nanos(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
