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

/// What programs can still use: the system's estimate, or what the control group leaves if that is less. # Units: bytes.
/// # Source: proc(5), MemAvailable; the kernel's cgroup-v2 page, memory.max, memory.current and memory.stat.
pub fn available_bytes() -> Option<u64> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let system = field(&read("/proc/meminfo")?, "MemAvailable:")? * 1024;
    let group = |max: &str, used: &str, stat: &str, cache: &str| {
        let (max, used) = (read(max)?.trim().parse::<u64>().ok()?, read(used)?.trim().parse::<u64>().ok()?);
        // Pages of files that were not used lately are given back before anything is refused.
        let cached = read(stat).and_then(|t| field(&t, cache)).unwrap_or(0);
        Some(max.saturating_sub(used.saturating_sub(cached)))
    };
    let new = |name: &str| format!("/sys/fs/cgroup/{name}");
    let old = |name: &str| format!("/sys/fs/cgroup/memory/{name}");
    let limits = [
        group(&new("memory.max"), &new("memory.current"), &new("memory.stat"), "inactive_file"),
        group(&old("memory.limit_in_bytes"), &old("memory.usage_in_bytes"), &old("memory.stat"), "total_inactive_file"),
    ];
    Some(limits.into_iter().flatten().fold(system, u64::min))
}

/// The number after a name at the start of a line.
fn field(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(name).filter(|r| r.starts_with([' ', '\t'])))?;
    rest.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_zero() {
        for bytes in [0, 1, 63, 64, 100_000] {
            let mut m = Memory::new(bytes).expect("there is that much");
            assert_eq!((m.as_ptr() as usize % ALIGNMENT, m.len(), m.is_empty()), (0, bytes, bytes == 0));
            assert!(m.bytes().iter().all(|b| *b == 0));
            m.bytes_mut().fill(1);
        }
        assert!(Memory::new(usize::MAX / 2 + 1).is_none());
    }

    #[test]
    fn fields_are_whole_words() {
        let text = "MemTotal:  9 kB\nMemAvailable:    7 kB\ninactive_file_x 1\ninactive_file 5\n";
        assert_eq!([field(text, "MemAvailable:"), field(text, "inactive_file"), field(text, "Mem")], [Some(7), Some(5), None]);
        assert!(available_bytes().is_none_or(|n| n > 0));
    }
}
