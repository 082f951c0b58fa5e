//! What a model's KV is like: the tables and axes that both ends of a transfer share by id.

use crate::error::CodecError;
use kvasir_kernels::{AxisScale, KvDtype, RansTable};

/// The first 16 bytes of SHA-256 over the profile's file; zero: none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct ProfileId(pub [u8; 16]);

impl std::fmt::Display for ProfileId {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(to, "{byte:02x}"))
    }
}

/// A model's profile. Widths count a layer's channels: K of all heads, then V.
#[derive(Debug, Clone, PartialEq)]
pub struct Profile {
    /// Model it was made from; see the engine's layout.
    pub model_revision: String,
    /// Canonical description of the rotary embedding.
    pub rope: String,
    /// Layers.
    pub layer_count: usize,
    /// KV heads of a layer.
    pub kv_head_count: usize,
    /// Elements of a head.
    pub head_size: usize,
    /// KV of the token that texts begin with, `[layers · width]`.
    pub first_token: Vec<f32>,
    /// For the lossless level.
    pub exponents: ExponentTables,
    /// For the dense levels; none when the profile has no such level.
    pub rotation: Option<Rotation>,
    /// Lossy levels, the most exact first.
    pub levels: Vec<Level>,
}

impl Profile {
    /// Channels of a layer.
    pub fn width(&self) -> usize {
        2 * self.kv_head_count * self.head_size
    }
}

/// How often each exponent occurs in each channel, of one element type.
#[derive(Debug, Clone, PartialEq)]
pub struct ExponentTables {
    /// Element type that was counted.
    pub dtype: KvDtype,
    /// Exponent of symbol 0 of each channel, `[layers · width]`.
    pub bases: Vec<u8>,
    /// `[layers · width]`.
    pub tables: Vec<RansTable>,
}

/// Principal axes of the channels of neighbouring layers, K and V together.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    /// Layers of a group; the last group may have fewer.
    pub layers: usize,
    /// In layer order.
    pub groups: Vec<RotationGroup>,
}

/// Axes of one group: `y = basis (x - mean) · scale`.
#[derive(Debug, Clone, PartialEq)]
pub struct RotationGroup {
    /// `[channels]`.
    pub mean: Vec<f32>,
    /// What a channel's unit weighs: more where an error does more harm. `[channels]`.
    pub scale: Vec<f32>,
    /// bf16, row-major `[axes][channels]`, axes of large variance first.
    pub basis: Vec<u16>,
}

/// One lossy level.
#[derive(Debug, Clone, PartialEq)]
pub struct Level {
    /// For people and flags, e.g. `near`.
    pub name: String,
    /// Whether axes are the rotation's; else they are channels of single layers.
    pub rotated: bool,
    /// Of each group of layers.
    pub groups: Vec<CodeGroup>,
    /// What it cost when the profile was made.
    pub accuracy: Accuracy,
}

/// How a group's axes are quantised and coded.
#[derive(Debug, Clone, PartialEq)]
pub struct CodeGroup {
    /// One for each axis that is sent.
    pub axes: Vec<AxisScale>,
    /// One for each axis: of its symbols without their low bits.
    pub tables: Vec<RansTable>,
}

/// Measured on texts that the profile was not made from; zero when it was not measured.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Accuracy {
    /// Bits of a value, headers and all.
    pub bits_per_value: f32,
    /// Mean divergence of the next token's distribution, nats.
    pub kl: f32,
    /// Share of places where the likeliest next token is the same.
    pub agreement: f32,
}

impl Profile {
    /// Checks that all parts fit each other: what coding indexes by.
    ///
    /// # Errors
    /// [`CodecError::Layout`] with the part that does not.
    pub fn check(&self) -> Result<(), CodecError> {
        let channels = self.layer_count * self.width();
        let fits = |what: &'static str, fits: bool| if fits { Ok(()) } else { Err(CodecError::Layout(what)) };
        fits("first token", self.first_token.len() == channels)?;
        fits(
            "exponents",
            self.exponents.bases.len() == channels && self.exponents.tables.len() == channels,
        )?;
        if let Some(rotation) = &self.rotation {
            fits("layers of a rotation", rotation.layers > 0)?;
            fits(
                "rotation",
                rotation.groups.len() == self.layer_count.div_ceil(rotation.layers),
            )?;
            for (index, group) in rotation.groups.iter().enumerate() {
                let channels = self.group_layers(true, index).len() * self.width();
                fits("mean", group.mean.len() == channels && group.scale.len() == channels)?;
                fits("scale", group.scale.iter().all(|scale| *scale > 0.0))?;
                fits(
                    "basis",
                    !group.basis.is_empty() && group.basis.len().is_multiple_of(channels),
                )?;
            }
        }
        for level in &self.levels {
            fits("rotation of a level", !level.rotated || self.rotation.is_some())?;
            fits(
                "groups of a level",
                level.groups.len() == self.group_count(level.rotated),
            )?;
            for (index, group) in level.groups.iter().enumerate() {
                let channels = self.group_layers(level.rotated, index).len() * self.width();
                let axes = match &self.rotation {
                    Some(rotation) if level.rotated => rotation.groups[index].basis.len() / channels,
                    _ => channels,
                };
                let enough = if level.rotated {
                    group.axes.len() <= axes
                } else {
                    group.axes.len() == axes
                };
                fits("axes of a level", enough && !group.axes.is_empty())?;
                group.check()?;
            }
        }
        Ok(())
    }

    /// Layers that a level codes together.
    pub fn layers_each(&self, rotated: bool) -> usize {
        self.rotation
            .as_ref()
            .filter(|_| rotated)
            .map_or(1, |rotation| rotation.layers)
    }

    /// Groups of layers.
    pub fn group_count(&self, rotated: bool) -> usize {
        self.layer_count.div_ceil(self.layers_each(rotated))
    }

    /// Layers of a group.
    pub fn group_layers(&self, rotated: bool, index: usize) -> std::ops::Range<usize> {
        let each = self.layers_each(rotated);
        index * each..((index + 1) * each).min(self.layer_count)
    }
}

impl CodeGroup {
    /// Low bits of each axis.
    pub(crate) fn shifts(&self) -> impl Iterator<Item = u32> + Clone {
        self.axes.iter().map(|axis| axis.shift)
    }

    /// Every axis has a table, and tables have the symbols that axes make.
    fn check(&self) -> Result<(), CodecError> {
        if self.axes.len() != self.tables.len() {
            return Err(CodecError::Layout("tables of a level"));
        }
        for (axis, table) in self.axes.iter().zip(&self.tables) {
            let symbols = table.symbol_count() << axis.shift.min(5);
            let fits = axis.symbol_max == (symbols - 1) as f32 && (0.0..=axis.symbol_max).contains(&axis.offset);
            if axis.shift > 5 || !fits || axis.step <= 0.0 {
                return Err(CodecError::Layout("symbols of an axis"));
            }
        }
        Ok(())
    }
}
