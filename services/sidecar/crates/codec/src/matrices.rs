//! A group's rotation as matrices of 8 bits, there and back.

use crate::error::CodecError;
use crate::profile::{Level, Profile};
use half::bf16;
use kvasir_kernels::{Blocks, Matrix8};

/// Numbers of a block at most. Larger: fewer scalings; smaller: finer scales.
const BLOCK: usize = 192;
/// Axes of most variance, whose numbers are too large beside the others' to be rounded with them.
const FINE_AXES: usize = 64;

/// One group's rotation.
pub struct Matrices {
    /// Subtracted from channels before they are turned, added after they were turned back.
    pub mean: Vec<f32>,
    /// What channels are multiplied with before they are rounded, so that loud ones do not drown the others; [`Self::forward`] takes it back.
    pub factors: Vec<f32>,
    /// `[axes, channels]`: numbers along the axes.
    pub forward: Matrix8,
    /// `[channels, axes]`.
    pub back: Matrix8,
    /// A 0 and a 1 for each axis.
    pub(crate) nothing: Vec<f32>,
    pub(crate) ones: Vec<f32>,
}

impl Matrices {
    /// Matrices of a level's axes in a group.
    ///
    /// # Errors
    /// [`CodecError::Layout`] when the profile has no such group.
    pub(crate) fn new(profile: &Profile, level: &Level, index: usize) -> Result<Self, CodecError> {
        let rotation = profile.rotation.as_ref().ok_or(CodecError::Layout("rotation"))?;
        let group = rotation.groups.get(index).ok_or(CodecError::Layout("rotation"))?;
        let axes = &level.groups.get(index).ok_or(CodecError::Layout("groups"))?.axes;
        let channels = group.mean.len();
        let basis = |axis: usize, channel: usize| bf16::from_bits(group.basis[axis * channels + channel]).to_f32();
        // How far the axes reach says how far the channels do. The root of it: half of the spread stays with the matrix.
        let factor = |channel: usize| {
            let reach = |axis: usize| axes[axis].symbol_max * axes[axis].step * basis(axis, channel);
            let square: f32 = (0..axes.len()).map(|axis| reach(axis) * reach(axis)).sum();
            let factor = (square.sqrt() / group.scale[channel]).sqrt().recip();
            if factor.is_normal() { factor } else { 1.0 }
        };
        let factors: Vec<f32> = (0..channels).map(factor).collect();
        let forward: Vec<f32> = (0..axes.len())
            .flat_map(|axis| (0..channels).map(move |channel| (axis, channel)))
            .map(|(axis, channel)| basis(axis, channel) * group.scale[channel] / factors[channel])
            .collect();
        let back: Vec<f32> = (0..channels)
            .flat_map(|channel| (0..axes.len()).map(move |axis| (axis, channel)))
            .map(|(axis, channel)| basis(axis, channel) / group.scale[channel])
            .collect();
        let part = profile.width() / 2;
        let length = part.div_ceil(part.div_ceil(BLOCK)).next_multiple_of(4);
        let of_channels = Blocks {
            length,
            fine: 0,
            count: channels,
        };
        let of_axes = Blocks {
            length: BLOCK,
            fine: FINE_AXES.min(axes.len() / 4 * 4),
            count: axes.len(),
        };
        Ok(Self {
            mean: group.mean.clone(),
            factors,
            forward: Matrix8::new(axes.len(), of_channels, &forward)?,
            back: Matrix8::new(channels, of_axes, &back)?,
            nothing: vec![0.0; axes.len()],
            ones: vec![1.0; axes.len()],
        })
    }
}
