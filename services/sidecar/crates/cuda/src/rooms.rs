//! Memory of a device that is kept between calls: to give memory back waits for the whole device.

use crate::device::{Buffer, Device, DeviceError};
use std::collections::BTreeMap;

/// Rooms that grow to what calls need, each named for what lies in it.
pub struct Rooms<Name>(BTreeMap<Name, Buffer>);

impl<Name> Default for Rooms<Name> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<Name: Ord> Rooms<Name> {
    /// Memory of at least `bytes`, with whatever it held.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`].
    pub fn room(&mut self, device: &dyn Device, name: Name, bytes: usize) -> Result<Buffer, DeviceError> {
        let bytes = bytes.max(16);
        if let Some(buffer) = self.0.get(&name).filter(|buffer| buffer.byte_len() >= bytes) {
            return Ok(buffer.clone());
        }
        // The old memory goes first: the new one may need its place.
        self.0.remove(&name);
        let buffer = device.allocate(bytes.next_multiple_of(256))?;
        self.0.insert(name, buffer.clone());
        Ok(buffer)
    }

    /// The same, holding `content`.
    ///
    /// # Errors
    /// [`DeviceError::OutOfMemory`], [`DeviceError::Failed`].
    pub fn filled(&mut self, device: &dyn Device, name: Name, content: &[u8]) -> Result<Buffer, DeviceError> {
        let buffer = self.room(device, name, content.len())?;
        device.write(&buffer, 0, content)?;
        Ok(buffer)
    }
}
