//! What a level's kernels read of a profile, uploaded once.

use crate::rotation::{DeviceMatrices, upload};
use kvasir_codec::{CodecError, LEVEL_LOSSLESS, LEVEL_LOSSY_FROM, Matrices, Prepared};
use kvasir_cuda::{Args, Buffer, Device};
use kvasir_kernels::{RANS_SYMBOLS_MAX, RansTable};

use crate::coder::CodingError;

/// Where a group's part of the tables begins.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct GroupPlace {
    pub(crate) axis_begin: u32,
    pub(crate) axis_count: u32,
    pub(crate) channel_begin: u32,
    pub(crate) plane_begin: u32,
    pub(crate) plane_count: u32,
}

/// One level.
pub(crate) struct LevelTables {
    /// u32 `[axes of all groups][32]`.
    pub(crate) rans: Buffer,
    pub(crate) groups: Vec<GroupPlace>,
    /// Axes or channels of the largest group.
    pub(crate) axes_max: usize,
    /// Low planes of the group that has most.
    pub(crate) lows_max: usize,
    pub(crate) kind: Kind,
}

/// What is particular to lossless and lossy levels.
pub(crate) enum Kind {
    /// u32 `[axes]`: base and count of exponents.
    Lossless { windows: Buffer },
    /// A lossy one.
    Lossy(Box<Lossy>),
}

pub(crate) struct Lossy {
    pub(crate) axes: Buffer,
    pub(crate) planes: Buffer,
    /// f32 `[channels of all groups]`.
    pub(crate) centres: Buffer,
    pub(crate) rotation: Option<Rotation>,
}

pub(crate) struct Rotation {
    pub(crate) factors: Buffer,
    pub(crate) forward: DeviceMatrices,
    pub(crate) back: DeviceMatrices,
}

impl LevelTables {
    /// Uploads a level's tables; raw has none.
    pub(crate) fn new(device: &dyn Device, prepared: &Prepared, level: u8) -> Result<Self, CodingError> {
        if level == LEVEL_LOSSLESS {
            return Self::lossless(device, prepared);
        }
        let unknown = CodingError::Codec(CodecError::Level(level));
        let index = usize::from(level.checked_sub(LEVEL_LOSSY_FROM).ok_or(unknown.clone())?);
        let profile = prepared.profile();
        let own = profile.levels.get(index).ok_or(unknown)?;
        let mut tables = Vec::new();
        let (mut axes, mut planes, mut centres, mut factors) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut groups, mut axis_begin, mut lows_max, mut axes_max) = (Vec::new(), 0, 0, 0);
        let (mut plane_begin, mut channel_begin) = (0, 0);
        let matrices = prepared.matrices(level);
        for (index, group) in own.groups.iter().enumerate() {
            let (mut low, mut plane) = (0, 0);
            for axis in &group.axes {
                let counts = [axis.shift, low, plane];
                let numbers = [
                    axis.offset,
                    axis.symbol_max,
                    axis.step,
                    axis.base,
                    axis.dead_zone,
                    axis.rounding,
                    axis.first,
                    axis.second,
                ];
                let fields = counts.into_iter().fold(Args::new(), Args::u32);
                axes.extend(numbers.into_iter().fold(fields, Args::f32).finish());
                planes.extend((0..axis.shift).flat_map(|bit| (low | bit << 16).to_ne_bytes()));
                low += u32::from(axis.shift > 0);
                plane += axis.shift;
            }
            tables.extend(group.tables.iter().flat_map(entries));
            let channels = profile.group_layers(own.rotated, index).len() * profile.width();
            match matrices.get(index) {
                Some(Matrices { mean, factors: own, .. }) => {
                    centres.extend(mean.iter().flat_map(|mean| mean.to_ne_bytes()));
                    factors.extend(own.iter().flat_map(|factor| factor.to_ne_bytes()));
                }
                None => centres.extend(group.axes.iter().flat_map(|axis| axis.base.to_ne_bytes())),
            }
            groups.push(GroupPlace {
                axis_begin,
                axis_count: group.axes.len() as u32,
                channel_begin,
                plane_begin,
                plane_count: plane,
            });
            axis_begin += group.axes.len() as u32;
            channel_begin += channels as u32;
            plane_begin += plane;
            lows_max = lows_max.max(low as usize);
            axes_max = axes_max.max(channels);
        }
        let rotation = if own.rotated {
            let of = |pick: fn(&Matrices) -> &kvasir_kernels::Matrix8| {
                let begins = groups.iter().map(|group| group.channel_begin as usize);
                let all: Vec<_> = matrices.iter().map(pick).zip(begins).collect();
                DeviceMatrices::new(device, &all)
            };
            Some(Rotation {
                factors: upload(device, &factors)?,
                forward: of(|matrices| &matrices.forward)?,
                back: of(|matrices| &matrices.back)?,
            })
        } else {
            None
        };
        Ok(Self {
            rans: upload(device, &tables)?,
            groups,
            axes_max,
            lows_max,
            kind: Kind::Lossy(Box::new(Lossy {
                axes: upload(device, &axes)?,
                planes: upload(device, &planes)?,
                centres: upload(device, &centres)?,
                rotation,
            })),
        })
    }

    fn lossless(device: &dyn Device, prepared: &Prepared) -> Result<Self, CodingError> {
        let profile = prepared.profile();
        let (width, exponents) = (profile.width(), &profile.exponents);
        let windows = exponents.bases.iter().zip(&exponents.tables);
        let windows = windows.map(|(base, table)| u32::from(*base) | (table.symbol_count() as u32) << 8);
        let windows: Vec<u8> = windows.flat_map(u32::to_ne_bytes).collect();
        let tables: Vec<u8> = exponents.tables.iter().flat_map(entries).collect();
        let of_layer = |layer: usize| GroupPlace {
            axis_begin: (layer * width) as u32,
            axis_count: width as u32,
            ..GroupPlace::default()
        };
        Ok(Self {
            rans: upload(device, &tables)?,
            groups: (0..profile.layer_count).map(of_layer).collect(),
            axes_max: width,
            lows_max: 0,
            kind: Kind::Lossless {
                windows: upload(device, &windows)?,
            },
        })
    }
}

/// A table's 32 entries: first slot, frequency in the upper half. Those that are no symbols begin where no slot is.
fn entries(table: &RansTable) -> Vec<u8> {
    let mut start = 0;
    let mut all = Vec::with_capacity(4 * RANS_SYMBOLS_MAX);
    for index in 0..RANS_SYMBOLS_MAX {
        let freq = table.freqs().get(index).map_or(0, |freq| u32::from(*freq));
        all.extend((start | freq << 16).to_ne_bytes());
        start += freq;
    }
    all
}
