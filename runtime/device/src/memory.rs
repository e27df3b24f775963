//! Memory of a device: aligned, and what is left of it. What lies on a GPU has a copy on the host that comes and goes as it is asked for.

use crate::{DeviceError, cuda::Mirror};
use std::{
    alloc::{Layout, alloc_zeroed, dealloc},
    sync::OnceLock,
};

/// Alignment of every buffer. # Units: bytes; a cache line, and the widest vector.
pub const ALIGNMENT: usize = 64;

/// A zeroed, aligned piece of memory.
#[derive(Debug)]
pub struct Memory {
    bytes: usize,
    /// Made when it is first asked for, if the memory lies on a GPU.
    host: OnceLock<Host>,
    gpu: Option<Mirror>,
    /// Whether the host's copy is for fast transfers.
    pinned: bool,
}

/// Memory of the host.
#[derive(Debug)]
struct Host {
    start: *mut u8,
    pinned: bool,
}

// SAFETY: the memory belongs to this value alone; access goes through its pointer under the caller's rules.
unsafe impl Send for Host {}
// SAFETY: as above.
unsafe impl Sync for Host {}

fn layout(bytes: usize) -> Option<Layout> {
    Layout::from_size_align(bytes.max(1), ALIGNMENT).ok()
}

impl Host {
    fn new(bytes: usize) -> Option<Host> {
        // SAFETY: the layout is not empty.
        let start = unsafe { alloc_zeroed(layout(bytes)?) };
        (!start.is_null()).then_some(Host { start, pinned: false })
    }
}

impl Memory {
    /// `bytes` of zeros on the host; `None` if the system has no more.
    pub fn new(bytes: usize) -> Option<Memory> {
        let host = OnceLock::from(Host::new(bytes)?);
        Some(Memory { bytes, host, gpu: None, pinned: false })
    }
    /// What lies on a GPU. If `pinned`, its copy on the host is for fast transfers.
    pub(crate) fn on_gpu(bytes: usize, mirror: Mirror, pinned: bool) -> Memory {
        Memory { bytes, host: OnceLock::new(), gpu: Some(mirror), pinned }
    }
    /// The first byte, as steps of its device find it.
    pub fn as_ptr(&self) -> *mut u8 {
        self.gpu.as_ref().map_or_else(|| self.start(), Mirror::address)
    }
    /// The size. # Units: bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }
    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
    /// Brings the host's copy up to date.
    ///
    /// # Errors
    /// E0443 if the device fails.
    pub fn refresh(&self) -> Result<(), DeviceError> {
        match &self.gpu {
            // SAFETY: the memory has these bytes, and all who read it come through here first.
            Some(m) if m.is_ahead() => unsafe { m.fetch(self.start()) },
            _ => Ok(()),
        }
    }
    /// The bytes.
    ///
    /// # Panics
    /// If they are on a device that fails: whoever can report that calls `refresh` before.
    pub fn bytes(&self) -> &[u8] {
        self.refresh().unwrap_or_else(|e| panic!("{e}"));
        // SAFETY: the memory is valid, initialised and borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start(), self.bytes) }
    }
    /// The bytes, to be changed.
    ///
    /// # Panics
    /// As `bytes`.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.refresh().unwrap_or_else(|e| panic!("{e}"));
        if let Some(m) = &mut self.gpu {
            m.host_changes();
        }
        // SAFETY: the memory is valid, initialised and borrowed alone with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.bytes) }
    }
    /// Sets all bytes, whatever was there before: nothing is brought from a device.
    ///
    /// # Panics
    /// If there are more or fewer.
    pub fn set(&mut self, bytes: &[u8]) {
        if let Some(m) = &mut self.gpu {
            m.host_changes();
        }
        // SAFETY: the memory is valid, initialised and borrowed alone with `self`.
        unsafe { std::slice::from_raw_parts_mut(self.start(), self.bytes) }.copy_from_slice(bytes);
    }
    /// Sets every byte. A failure of a GPU shows in the next run.
    pub fn fill(&mut self, byte: u8) {
        match &mut self.gpu {
            Some(m) => m.fill(byte),
            None => self.bytes_mut().fill(byte),
        }
    }
    /// Brings the device's copy up to date; the transfer ends before the steps that follow.
    ///
    /// # Errors
    /// E0443.
    pub fn send(&mut self) -> Result<(), DeviceError> {
        let start = self.host.get().map(|h| h.start);
        let (Some(m), Some(start)) = (&mut self.gpu, start) else { return Ok(()) };
        // SAFETY: the memory is valid, initialised and borrowed alone with `self`.
        m.send(unsafe { std::slice::from_raw_parts(start, self.bytes) })
    }
    /// Steps wrote to it.
    pub fn written(&mut self) {
        if let Some(m) = &mut self.gpu {
            m.device_changed();
        }
    }
    /// The host's first byte.
    fn start(&self) -> *mut u8 {
        let pinned =
            || self.gpu.as_ref().filter(|_| self.pinned).and_then(Mirror::pinned).map(|start| Host { start, pinned: true });
        let new = || pinned().or_else(|| Host::new(self.bytes)).unwrap_or_else(|| panic!("no {} bytes on the host", self.bytes));
        self.host.get_or_init(new).start
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        match (self.host.take(), &self.gpu) {
            // SAFETY: its mirror gave it, and nothing else has it.
            (Some(Host { start, pinned: true }), Some(m)) => unsafe { m.free_pinned(start) },
            (Some(Host { start, .. }), _) => {
                let layout = layout(self.bytes).expect("the layout it was made with");
                // SAFETY: allocated by `new` with this layout.
                unsafe { dealloc(start, layout) };
            }
            (None, _) => {}
        }
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
