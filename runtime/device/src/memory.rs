//! Memory of the device: aligned, and what is left of it.

use std::alloc::{Layout, alloc_zeroed, dealloc};

/// Alignment of every buffer. # Units: bytes; a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// A zeroed, aligned piece of memory.
#[derive(Debug)]
pub struct Memory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the memory belongs to this value alone; access goes through its pointer under the caller's rules.
unsafe impl Send for Memory {}
// SAFETY: as above.
unsafe impl Sync for Memory {}

impl Memory {
    /// `bytes` of zeros; `None` if the system has no more.
    pub fn new(bytes: usize) -> Option<Memory> {
        let layout = Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()?;
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout) };
        (!start.is_null()).then_some(Memory { start, bytes })
    }
    /// The first byte.
    pub fn as_ptr(&self) -> *mut u8 {
        self.start
    }
    /// The size. # Units: bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the memory is valid, initialised and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start, self.bytes) }
    }
    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the memory is valid, initialised and borrowed alone with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start, self.bytes) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let layout = Layout::from_size_align(self.bytes.max(1), ALIGNMENT).expect("the layout it was made with");
        // SAFETY: allocated by `new` with this layout.
        unsafe { dealloc(self.start, layout) };
    }
}

/// What programs can still use: the system's estimate, or the control group's limit if that is lower. # Units: bytes.
pub fn available_bytes() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = info.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    let system = line.trim().trim_end_matches("kB").trim().parse::<u64>().ok()? * 1024;
    let number = |path: &str| std::fs::read_to_string(path).ok().and_then(|t| t.trim().parse::<u64>().ok());
    let group = number("/sys/fs/cgroup/memory.max")
        .zip(number("/sys/fs/cgroup/memory.current"))
        .map(|(max, used)| max.saturating_sub(used));
    Some(group.map_or(system, |g| g.min(system)))
}
