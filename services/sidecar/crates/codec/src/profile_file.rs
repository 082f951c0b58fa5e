//! A profile as a file: little endian, every count bounded, the whole under a checksum. Its id is a digest of these bytes.
//!
//! ```text
//! magic "KVCP", version u16, XXH3-64 of what follows, then the fields of [`Profile`] in order; lists and texts with a u32 count first
//! ```

use crate::bytes::Reader;
use crate::error::CodecError;
use crate::profile::{Accuracy, CodeGroup, ExponentTables, Level, Profile, ProfileId, Rotation, RotationGroup};
use kvasir_kernels::{AxisScale, KvDtype, RANS_SYMBOLS_MAX, RansTable};
use sha2::{Digest, Sha256};
use xxhash_rust::xxh3::xxh3_64;

const MAGIC: [u8; 4] = *b"KVCP";
const VERSION: u16 = 2;
const PREFIX_BYTES: usize = 14;
const TEXT_MAX: usize = 1 << 12;
const LAYERS_MAX: usize = 1 << 10;
const WIDTH_MAX: usize = 1 << 16;
const LEVELS_MAX: usize = 64;

impl Profile {
    /// The file.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Writer(vec![0; PREFIX_BYTES]);
        out.text(&self.model_revision);
        out.text(&self.rope);
        for count in [self.layer_count, self.kv_head_count, self.head_size] {
            out.count(count);
        }
        out.f32s(&self.first_token);
        out.0.push(dtype_code(self.exponents.dtype));
        out.0.extend_from_slice(&self.exponents.bases);
        out.tables(&self.exponents.tables);
        out.count(self.rotation.as_ref().map_or(0, |rotation| rotation.layers));
        for group in self.rotation.iter().flat_map(|rotation| &rotation.groups) {
            out.f32s(&group.mean);
            out.f32s(&group.scale);
            out.count(group.basis.len() / group.mean.len());
            out.0.extend(group.basis.iter().flat_map(|value| value.to_le_bytes()));
        }
        out.count(self.levels.len());
        for level in &self.levels {
            out.text(&level.name);
            out.0.push(u8::from(level.rotated));
            out.f32s(&[
                level.accuracy.bits_per_value,
                level.accuracy.kl,
                level.accuracy.agreement,
            ]);
            for group in &level.groups {
                out.count(group.axes.len());
                for axis in &group.axes {
                    out.count(axis.shift as usize);
                    out.f32s(&numbers_of(axis));
                }
                out.tables(&group.tables);
            }
        }
        let checksum = xxh3_64(&out.0[PREFIX_BYTES..]);
        out.0[..4].copy_from_slice(&MAGIC);
        out.0[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out.0[6..14].copy_from_slice(&checksum.to_le_bytes());
        out.0
    }

    /// Reads a file and checks it whole.
    ///
    /// # Errors
    /// [`CodecError`] with what is wrong first.
    pub fn from_bytes(bytes: &[u8]) -> Result<(Self, ProfileId), CodecError> {
        let mut from = Reader(bytes);
        if from.array("profile")? != MAGIC || from.u16("profile")? != VERSION {
            return Err(CodecError::Magic("codec profile"));
        }
        if from.u64("profile")? != xxh3_64(from.0) {
            return Err(CodecError::Checksum("codec profile"));
        }
        let (model_revision, rope) = (text(&mut from)?, text(&mut from)?);
        let layer_count = from.bounded("layer count", LAYERS_MAX)?;
        let kv_head_count = from.bounded("KV head count", WIDTH_MAX)?;
        let head_size = from.bounded("head size", WIDTH_MAX)?;
        let width = 2 * kv_head_count * head_size;
        if layer_count == 0 || width == 0 || width > WIDTH_MAX {
            return Err(CodecError::Field {
                what: "width",
                value: width as u64,
                limit: WIDTH_MAX as u64,
            });
        }
        let channels = layer_count * width;
        let first_token = from.f32s(channels, "first token")?;
        let dtype = match from.u8("element type")? {
            0 => KvDtype::F32,
            1 => KvDtype::F16,
            2 => KvDtype::Bf16,
            value => {
                return Err(CodecError::Field {
                    what: "element type",
                    value: value.into(),
                    limit: 2,
                });
            }
        };
        let bases = from.take(channels, "exponents")?.to_vec();
        let exponents = ExponentTables {
            dtype,
            bases,
            tables: tables(&mut from, channels)?,
        };
        let mut profile = Self {
            model_revision,
            rope,
            layer_count,
            kv_head_count,
            head_size,
            first_token,
            exponents,
            rotation: None,
            levels: Vec::new(),
        };
        let layers = from.bounded("layers of a group", layer_count)?;
        if layers > 0 {
            profile.rotation = Some(Rotation {
                layers,
                groups: Vec::new(),
            });
            let groups: Result<Vec<_>, _> = (0..profile.group_count(true))
                .map(|index| rotation(&mut from, profile.group_layers(true, index).len() * width))
                .collect();
            profile.rotation = Some(Rotation {
                layers,
                groups: groups?,
            });
        }
        for _ in 0..from.bounded("level count", LEVELS_MAX)? {
            let name = text(&mut from)?;
            let rotated = from.u8("kind of a level")? == 1;
            let [bits_per_value, kl, agreement] = numbers(&mut from)?;
            let groups: Result<Vec<_>, _> = (0..profile.group_count(rotated))
                .map(|index| code_group(&mut from, profile.group_layers(rotated, index).len() * width))
                .collect();
            let accuracy = Accuracy {
                bits_per_value,
                kl,
                agreement,
            };
            profile.levels.push(Level {
                name,
                rotated,
                groups: groups?,
                accuracy,
            });
        }
        from.end()?;
        profile.check()?;
        Ok((profile, id_of(bytes)))
    }
}

fn id_of(bytes: &[u8]) -> ProfileId {
    let mut id = ProfileId::default();
    id.0.copy_from_slice(&Sha256::digest(bytes)[..16]);
    id
}

fn rotation(from: &mut Reader<'_>, channels: usize) -> Result<RotationGroup, CodecError> {
    let (mean, scale) = (from.f32s(channels, "mean")?, from.f32s(channels, "scale")?);
    let axes = from.bounded("axes", channels)?;
    let bytes = from.take(axes * channels * 2, "basis")?;
    let basis: Vec<u16> = bytes
        .as_chunks::<2>()
        .0
        .iter()
        .map(|bytes| u16::from_le_bytes(*bytes))
        .collect();
    if basis.iter().any(|value| !half::bf16::from_bits(*value).is_finite()) {
        return Err(CodecError::NotFinite);
    }
    Ok(RotationGroup { mean, scale, basis })
}

fn code_group(from: &mut Reader<'_>, channels: usize) -> Result<CodeGroup, CodecError> {
    let count = from.bounded("axes of a level", channels)?;
    let mut axes = Vec::new();
    for _ in 0..count {
        let shift = from.bounded("shift", 5)? as u32;
        let [offset, symbol_max, step, base, dead_zone, rounding, first, second] = numbers(from)?;
        axes.push(AxisScale {
            shift,
            offset,
            symbol_max,
            step,
            base,
            dead_zone,
            rounding,
            first,
            second,
        });
    }
    Ok(CodeGroup {
        axes,
        tables: tables(from, count)?,
    })
}

fn numbers_of(axis: &AxisScale) -> [f32; 8] {
    let AxisScale {
        offset,
        symbol_max,
        step,
        base,
        dead_zone,
        rounding,
        first,
        second,
        ..
    } = *axis;
    [offset, symbol_max, step, base, dead_zone, rounding, first, second]
}

fn numbers<const N: usize>(from: &mut Reader<'_>) -> Result<[f32; N], CodecError> {
    let mut all = [0.0; N];
    for value in &mut all {
        *value = from.f32("number")?;
    }
    Ok(all)
}

fn text(from: &mut Reader<'_>) -> Result<String, CodecError> {
    let length = from.bounded("text", TEXT_MAX)?;
    String::from_utf8(from.take(length, "text")?.to_vec()).map_err(|_| CodecError::Magic("text in UTF-8"))
}

fn tables(from: &mut Reader<'_>, count: usize) -> Result<Vec<RansTable>, CodecError> {
    let mut all = Vec::new();
    for _ in 0..count {
        let symbols = usize::from(from.u8("table")?).min(RANS_SYMBOLS_MAX + 1);
        let bytes = from.take(2 * symbols, "table")?;
        let freqs: Vec<u16> = bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| u16::from_le_bytes(*bytes))
            .collect();
        all.push(RansTable::new(&freqs)?);
    }
    Ok(all)
}

fn dtype_code(dtype: KvDtype) -> u8 {
    match dtype {
        KvDtype::F32 => 0,
        KvDtype::F16 => 1,
        KvDtype::Bf16 => 2,
    }
}

struct Writer(Vec<u8>);

impl Writer {
    fn count(&mut self, count: usize) {
        self.0.extend_from_slice(&(count as u32).to_le_bytes());
    }

    fn text(&mut self, text: &str) {
        self.count(text.len());
        self.0.extend_from_slice(text.as_bytes());
    }

    fn f32s(&mut self, values: &[f32]) {
        self.0.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    }

    fn tables(&mut self, tables: &[RansTable]) {
        for table in tables {
            self.0.push(table.symbol_count() as u8);
            self.0.extend(table.freqs().iter().flat_map(|freq| freq.to_le_bytes()));
        }
    }
}
