//! `y = x Wᵀ` over packed weights, alone or fused with what follows it in a transformer layer.

mod blocks;
mod pack;
mod rows;
mod tile;

pub use pack::{PackedMatrix, WeightType};
pub use rows::QuantisedRows;

use crate::aligned::SharedMut;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::isa::Kernel;
use crate::math::{gelu_tanh, silu};
use crate::simd::{LANES, Simd};
use tile::{Input, tile};

/// Activations `[rows, cols]` ready to be multiplied, in every form that some weight needs.
#[derive(Clone, Copy)]
pub struct Activations<'a> {
    /// The values, row-major.
    pub dense: &'a [f32],
    /// The same rows quantised; read only by quantised weights.
    pub quantised: &'a QuantisedRows,
    /// Number of rows.
    pub rows: usize,
}

/// One product of a call of [`linear`]: where it goes and whether it is added to what is there.
pub struct Product<'a> {
    /// `[out, in]`.
    pub weights: &'a PackedMatrix,
    /// `[rows, out]`, row-major.
    pub out: &'a mut [f32],
    /// `out += x Wᵀ` instead of `out = x Wᵀ`.
    pub accumulate: bool,
}

/// `out = x Wᵀ` for several weights over the same activations, in one parallel region.
///
/// Sums run over the columns in order with one rounding per step; see the tile module's promise: bits depend on the row and the weights only.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when columns or buffers differ from the weights' shapes.
pub fn linear(cpu: &Cpu, x: Activations<'_>, products: &mut [Product<'_>]) -> Result<(), KernelError> {
    let mut jobs = Vec::with_capacity(products.len());
    let mut panels = 0;
    for product in products.iter_mut() {
        let weights = product.weights;
        let input = input_for(x, weights)?;
        expect_len("output", x.rows * weights.rows(), product.out.len())?;
        let mode = if product.accumulate { Mode::Add } else { Mode::Store };
        jobs.push((
            panels,
            Job {
                first: weights,
                second: None,
                mode,
                input,
                rows: x.rows,
                out: SharedMut::new(product.out),
            },
        ));
        panels += weights.panel_count();
    }
    run_jobs(cpu, &jobs, panels);
    Ok(())
}

/// What the gate of a gated MLP passes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `x · sigmoid(x)`: SwiGLU.
    Silu,
    /// GELU by its tanh approximation: GeGLU.
    GeluTanh,
}

/// `out = act(x Gᵀ) · (x Uᵀ)`, the gated half of the MLP, in one parallel region.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when shapes differ.
pub fn gated_linear(
    cpu: &Cpu,
    x: Activations<'_>,
    act: Gate,
    gate: &PackedMatrix,
    up: &PackedMatrix,
    out: &mut [f32],
) -> Result<(), KernelError> {
    let input = input_for(x, gate)?;
    input_for(x, up)?;
    expect_len("rows of the up projection", gate.rows(), up.rows())?;
    expect_len("output", x.rows * gate.rows(), out.len())?;
    let job = Job {
        first: gate,
        second: Some((act, up)),
        mode: Mode::Store,
        input,
        rows: x.rows,
        out: SharedMut::new(out),
    };
    run_jobs(cpu, &[(0, job)], gate.panel_count());
    Ok(())
}

fn input_for<'a>(x: Activations<'a>, weights: &PackedMatrix) -> Result<Input<'a>, KernelError> {
    let cols = weights.cols();
    if weights.weight_type().is_quantised() {
        x.quantised.expect_shape(x.rows, cols)?;
    } else {
        expect_len("activations", x.rows * cols, x.dense.len())?;
    }
    Ok(Input {
        cols,
        dense: x.dense,
        quantised: x.quantised,
    })
}

#[derive(Clone, Copy)]
enum Mode {
    Store,
    Add,
}

struct Job<'a> {
    first: &'a PackedMatrix,
    /// When there is one, the result is `act(first) · second`.
    second: Option<(Gate, &'a PackedMatrix)>,
    mode: Mode,
    input: Input<'a>,
    rows: usize,
    out: SharedMut<'a, f32>,
}

/// Rows that one task takes: their quantised activations stay in the second-level cache while panels pass by.
const ROWS_PER_TASK: usize = 256;

fn run_jobs(cpu: &Cpu, jobs: &[(usize, Job<'_>)], panels: usize) {
    let Some((_, first)) = jobs.first() else { return };
    if first.rows == 0 {
        return;
    }
    // Enough tasks that threads end together, few enough that handing them out costs nothing.
    let grain = panels.div_ceil(cpu.threads.threads() * 8).max(1);
    let panel_tasks = panels.div_ceil(grain);
    let row_tasks = first.rows.div_ceil(ROWS_PER_TASK);
    cpu.threads.run(panel_tasks * row_tasks, &|task| {
        let (row_task, panel_task) = (task / panel_tasks, task % panel_tasks);
        let rows = row_task * ROWS_PER_TASK..((row_task + 1) * ROWS_PER_TASK).min(first.rows);
        for panel in panel_task * grain..((panel_task + 1) * grain).min(panels) {
            let owner = jobs.partition_point(|(begin, _)| *begin <= panel) - 1;
            let (begin, job) = &jobs[owner];
            cpu.isa.run(PanelTask {
                job,
                panel: panel - begin,
                rows: rows.clone(),
            });
        }
    });
}

/// One panel of outputs for a range of rows.
struct PanelTask<'a, 'b> {
    job: &'a Job<'b>,
    panel: usize,
    rows: std::ops::Range<usize>,
}

impl Kernel for PanelTask<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let mut row = self.rows.start;
        let end = self.rows.end;
        if S::WIDE {
            while end - row >= 8 {
                self.tile::<S, 8>(s, row);
                row += 8;
            }
        }
        while end - row >= 4 {
            self.tile::<S, 4>(s, row);
            row += 4;
        }
        if end - row >= 2 {
            self.tile::<S, 2>(s, row);
            row += 2;
        }
        if end > row {
            self.tile::<S, 1>(s, row);
        }
    }
}

impl PanelTask<'_, '_> {
    #[inline(always)]
    fn tile<S: Simd, const ROWS: usize>(&self, s: S, row: usize) {
        let job = self.job;
        let mut result = tile::<S, ROWS>(s, job.first.panel(self.panel), job.input, row);
        if let Some((act, second)) = job.second {
            let up = tile::<S, ROWS>(s, second.panel(self.panel), job.input, row);
            for i in 0..ROWS {
                let passed = match act {
                    Gate::Silu => silu(s, result[i]),
                    Gate::GeluTanh => gelu_tanh(s, result[i]),
                };
                result[i] = s.mul(passed, up[i]);
            }
        }
        let width = job.first.rows();
        let lanes = (width - self.panel * LANES).min(LANES);
        for (i, result) in result.into_iter().enumerate() {
            // SAFETY: tasks own disjoint (panel, row range) pairs, and a panel's columns of a row belong to no other.
            let out = unsafe { job.out.slice((row + i) * width + self.panel * LANES, lanes) };
            if let Some(out) = out.first_chunk_mut() {
                let sum = if let Mode::Add = job.mode {
                    s.add(s.load(out), result)
                } else {
                    result
                };
                s.store(sum, out);
            } else {
                let mut full = [0.0; LANES];
                full[..lanes].copy_from_slice(out);
                let sum = if let Mode::Add = job.mode {
                    s.add(s.load(&full), result)
                } else {
                    result
                };
                s.store(sum, &mut full);
                out.copy_from_slice(&full[..lanes]);
            }
        }
    }
}

#[cfg(test)]
mod tests;
