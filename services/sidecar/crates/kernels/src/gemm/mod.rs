//! `y = x Wᵀ` over packed weights, alone or fused with what follows it in a transformer layer.

mod activations;
mod block_formats;
mod blocks;
mod dense;
mod dense_rows;
mod pack;
mod quantised;
mod rows;

pub use activations::Activations;
pub use pack::{PackedMatrix, WeightType};

use crate::aligned::SharedMut;
use crate::cpu::Cpu;
use crate::error::{KernelError, expect_len};
use crate::isa::{Isa, Kernel};
use crate::math::{gelu_tanh, silu};
use crate::simd::element::{Brain, Half, Single};
use crate::simd::{LANES, Simd};
use block_formats::{Q4_0, Q4_1, Q4K, Q5_0, Q5K, Q6K, Q8_0};
use dense::BrainPairs;
use pack::Panel;
use std::marker::PhantomData;

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
/// Sums run over the columns in order with one rounding per step; bits depend on the row and the weights only.
///
/// # Errors
/// [`KernelError::ShapeMismatch`] when columns or buffers differ from the weights' shapes.
pub fn linear(cpu: &Cpu, x: &Activations, products: &mut [Product<'_>]) -> Result<(), KernelError> {
    let mut jobs = Vec::with_capacity(products.len());
    let mut panels = 0;
    for product in products.iter_mut() {
        let weights = product.weights;
        x.check(weights)?;
        expect_len("output", x.rows() * weights.rows(), product.out.len())?;
        let mode = if product.accumulate { Mode::Add } else { Mode::Store };
        jobs.push((
            panels,
            Job {
                passes: [Some((weights, mode)), None],
                x,
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
    x: &Activations,
    act: Gate,
    gate: &PackedMatrix,
    up: &PackedMatrix,
    out: &mut [f32],
) -> Result<(), KernelError> {
    x.check(gate)?;
    x.check(up)?;
    expect_len("rows of the up projection", gate.rows(), up.rows())?;
    expect_len("output", x.rows() * gate.rows(), out.len())?;
    let job = Job {
        passes: [Some((gate, Mode::Store)), Some((up, Mode::Gate(act)))],
        x,
        out: SharedMut::new(out),
    };
    run_jobs(cpu, &[(0, job)], gate.panel_count());
    Ok(())
}

#[derive(Clone, Copy)]
enum Mode {
    /// `out = y`
    Store,
    /// `out = out + y`
    Add,
    /// `out = act(out) · y`
    Gate(Gate),
}

struct Job<'a> {
    /// One after the other for each panel.
    passes: [Option<(&'a PackedMatrix, Mode)>; 2],
    x: &'a Activations,
    out: SharedMut<'a, f32>,
}

/// Rows that one task takes: their quantised activations stay in the second-level cache while panels pass by.
const ROWS_PER_TASK: usize = 256;
/// Rows whose results wait to be put where they belong: 4 KiB.
const ROWS_AT_ONCE: usize = 64;

fn run_jobs(cpu: &Cpu, jobs: &[(usize, Job<'_>)], panels: usize) {
    let Some((_, first)) = jobs.first() else { return };
    let all_rows = first.x.rows();
    if all_rows == 0 {
        return;
    }
    // Enough tasks that threads end together, few enough that handing them out costs nothing.
    let grain = panels.div_ceil(cpu.threads.threads() * 8).max(1);
    let panel_tasks = panels.div_ceil(grain);
    let row_tasks = all_rows.div_ceil(ROWS_PER_TASK);
    cpu.threads.run(panel_tasks * row_tasks, &|task| {
        let (row_task, panel_task) = (task / panel_tasks, task % panel_tasks);
        let rows = row_task * ROWS_PER_TASK..((row_task + 1) * ROWS_PER_TASK).min(all_rows);
        let mut sums = [[0.0; LANES]; ROWS_AT_ONCE];
        for panel in panel_task * grain..((panel_task + 1) * grain).min(panels) {
            let owner = jobs.partition_point(|(begin, _)| *begin <= panel) - 1;
            let (begin, job) = &jobs[owner];
            for row in rows.clone().step_by(ROWS_AT_ONCE) {
                let sums = &mut sums[..(rows.end - row).min(ROWS_AT_ONCE)];
                run_panel(cpu.isa, job, panel - begin, row, sums);
            }
        }
    });
}

/// One panel of outputs for as many rows from `row` as there are sums.
fn run_panel(isa: Isa, job: &Job<'_>, index: usize, row: usize, sums: &mut [[f32; LANES]]) {
    for (weights, mode) in job.passes.into_iter().flatten() {
        multiply(isa, weights.panel(index), job.x, row, sums);
        isa.run(Finish {
            sums,
            mode,
            out: job.out,
            width: weights.rows(),
            column: index * LANES,
            row,
        });
    }
}

fn multiply(isa: Isa, panel: Panel<'_>, x: &Activations, row: usize, sums: &mut [[f32; LANES]]) {
    macro_rules! dense {
        ($run:ident, $format:ty, $x:expr) => {
            isa.$run(dense::Multiply {
                weights: panel.weights,
                x: $x,
                row,
                sums,
                format: PhantomData::<$format>,
            })
        };
    }
    macro_rules! quantised {
        ($format:ty) => {
            isa.run(quantised::Multiply {
                panel,
                x: &x.quantised,
                row,
                sums,
                format: PhantomData::<$format>,
            })
        };
    }
    match panel.weight_type {
        WeightType::F32 => dense!(run, Single, &x.single),
        WeightType::F16 => dense!(run, Half, &x.single),
        WeightType::Bf16 => dense!(run, Brain, &x.single),
        WeightType::Bf16Pairs => dense!(run_bf16, BrainPairs, &x.pairs),
        WeightType::Q8_0 => quantised!(Q8_0),
        WeightType::Q4_0 => quantised!(Q4_0),
        WeightType::Q4_1 => quantised!(Q4_1),
        WeightType::Q5_0 => quantised!(Q5_0),
        WeightType::Q4_K => quantised!(Q4K),
        WeightType::Q5_K => quantised!(Q5K),
        WeightType::Q6_K => quantised!(Q6K),
    }
}

/// Puts results where they belong.
struct Finish<'a, 'b> {
    sums: &'a [[f32; LANES]],
    mode: Mode,
    out: SharedMut<'b, f32>,
    width: usize,
    column: usize,
    row: usize,
}

impl Kernel for Finish<'_, '_> {
    type Output = ();
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let lanes = (self.width - self.column).min(LANES);
        for (index, sum) in self.sums.iter().enumerate() {
            // SAFETY: tasks own disjoint (panel, row range) pairs, and a panel's columns of a row belong to no other.
            let out = unsafe { self.out.slice((self.row + index) * self.width + self.column, lanes) };
            if let Some(out) = out.first_chunk_mut() {
                s.store(combine(s, self.mode, s.load(out), s.load(sum)), out);
            } else {
                let mut full = [0.0; LANES];
                full[..lanes].copy_from_slice(out);
                s.store(combine(s, self.mode, s.load(&full), s.load(sum)), &mut full);
                out.copy_from_slice(&full[..lanes]);
            }
        }
    }
}

#[inline(always)]
fn combine<S: Simd>(s: S, mode: Mode, before: S::F, result: S::F) -> S::F {
    match mode {
        Mode::Store => result,
        Mode::Add => s.add(before, result),
        Mode::Gate(Gate::Silu) => s.mul(silu(s, before), result),
        Mode::Gate(Gate::GeluTanh) => s.mul(gelu_tanh(s, before), result),
    }
}

#[cfg(test)]
mod tests;
