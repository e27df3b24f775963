//! Rows of a device's memory, where they lie: which of them are equal, and copies of them at other places.

use crate::{Device, DeviceError};

/// Rows one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Rows {
    /// The first, as the device's steps find it.
    pub at: *mut u8,
    /// Of a row. # Units: bytes.
    pub bytes: usize,
    /// How many there are.
    pub count: usize,
}

impl Rows {
    /// # Safety
    /// The memory is the host's, and has them.
    unsafe fn row(&self, i: u32) -> &[u8] {
        // SAFETY: the caller vouches for the memory.
        unsafe { std::slice::from_raw_parts(self.at.wrapping_add(i as usize * self.bytes), self.bytes) }
    }
}

/// What looking at so many rows, or copying them, needs on the device besides. # Units: bytes.
pub fn room(count: usize) -> usize {
    HEAD + 8 * count
}

/// Before what is told of each row: a word that a kernel sets.
pub(crate) const HEAD: usize = 8;

/// Factors of [`mark`]: any odd numbers whose bits look random do. # Source: Steele, Lea, Flood, Fast splittable pseudorandom number generators, 2014.
pub(crate) const FACTORS: [u64; 2] = [0x9e37_79b9_7f4a_7c15, 0xbf58_476d_1ce4_e5b9];

/// A number that equal rows have alike, and others hardly ever: a sum over the words, so that they may be taken in any order.
fn mark(row: &[u8]) -> u64 {
    let of = |(i, word): (usize, u32)| {
        let x = ((i as u64) << 32 | u64::from(word)).wrapping_mul(FACTORS[0]);
        (x ^ x >> 32).wrapping_mul(FACTORS[1])
    };
    let sum = |a: u64, b: u64| a.wrapping_add(b);
    match row.as_chunks::<4>() {
        (words, []) => words.iter().map(|w| u32::from_le_bytes(*w)).enumerate().map(of).fold(0, sum),
        _ => row.iter().map(|b| u32::from(*b)).enumerate().map(of).fold(0, sum),
    }
}

impl Device {
    /// Makes ready for what follows, before messages are under way.
    ///
    /// # Errors
    /// E0442.
    pub fn prepare_rows(&self) -> Result<(), DeviceError> {
        match self {
            Device::Host(_) => Ok(()),
            Device::Gpu(g) => g.prepare_rows(),
        }
    }
    /// A number for each row: equal rows have equal ones, different rows hardly ever. `room` has as many bytes as [`room`] says.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// Both are this device's, and nothing else uses them meanwhile.
    pub unsafe fn marks(&self, rows: Rows, room: *mut u8) -> Result<Vec<u64>, DeviceError> {
        match self {
            // SAFETY: the caller vouches for the memory.
            Device::Host(_) => Ok((0..rows.count as u32).map(|i| mark(unsafe { rows.row(i) })).collect()),
            // SAFETY: as above.
            Device::Gpu(g) => unsafe { g.marks(rows, room) },
        }
    }
    /// Whether the rows of each pair are equal. `room` is for as many rows as there are pairs.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As [`Device::marks`]; the pairs are of these rows.
    pub unsafe fn are_alike(&self, rows: Rows, pairs: &[[u32; 2]], room: *mut u8) -> Result<bool, DeviceError> {
        match self {
            // SAFETY: the caller vouches for the memory.
            Device::Host(_) => Ok(pairs.iter().all(|[a, b]| unsafe { rows.row(*a) == rows.row(*b) })),
            // SAFETY: as above.
            Device::Gpu(g) => unsafe { g.are_alike(rows, pairs, room) },
        }
    }
    /// Copies rows: each pair is where in `to` one goes and which of `from` it is. On a GPU that may still be under way. `room` is for as many rows as there
    /// are pairs.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As [`Device::marks`], until the device was waited for; the pairs are of these rows, and none of `to` is in two.
    pub unsafe fn copy_rows(&self, to: Rows, from: Rows, pairs: &[[u32; 2]], room: *mut u8) -> Result<(), DeviceError> {
        debug_assert_eq!(to.bytes, from.bytes);
        match self {
            Device::Host(_) => {
                for [own, other] in pairs {
                    let own = to.at.wrapping_add(*own as usize * to.bytes);
                    // SAFETY: the caller vouches for the memory.
                    unsafe { own.copy_from(from.row(*other).as_ptr(), from.bytes) };
                }
                Ok(())
            }
            // SAFETY: as above.
            Device::Gpu(g) => unsafe { g.copy_rows(to, from, pairs, room) },
        }
    }
}
