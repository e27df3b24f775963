//! Steps with addresses, and what runs them.

use crate::{
    Code, DeviceError, Exchange, Gpu, Grouped, HostDevice, KernelFn, Memory, Product,
    cuda::{self, Event},
    memory::available_bytes,
};
use base::DType;
use std::time::Instant;

/// A launch with addresses.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel's number in the manifest.
    pub kernel: usize,
    /// Its buffers.
    pub buffers: Vec<*mut u8>,
    /// Its extents.
    pub dims: Vec<i64>,
    /// The number of blocks.
    pub grid: i64,
}

// SAFETY: the pointers are only used by who runs it, whose caller keeps the memory alive.
unsafe impl Send for Launch {}
// SAFETY: as above; a launch is never changed while it is shared.
unsafe impl Sync for Launch {}

/// One thing to do.
pub enum Step {
    /// Runs a kernel.
    Launch(Launch),
    /// Dense products.
    Product(Product),
    /// A grouped product.
    Grouped(Grouped),
    /// Rows among ranks; carried out here as in a group of one, see [`Device::run_part`].
    Exchange(Exchange),
    /// Moves bytes.
    #[allow(missing_docs)]
    Copy { from: *const u8, to: *mut u8, bytes: usize },
    /// Zeros bytes.
    #[allow(missing_docs)]
    Zero { at: *mut u8, bytes: usize },
}

// SAFETY: the pointers go to memory that the steps' owner keeps and changes only through `&mut self`.
unsafe impl Send for Step {}
// SAFETY: as above.
unsafe impl Sync for Step {}

/// The host with compiled kernels, in the manifest's order.
pub struct Host {
    device: HostDevice,
    kernels: Vec<KernelFn>,
    /// Holds the kernels in memory.
    _code: Box<dyn Code>,
}

/// What runs steps.
pub enum Device {
    /// This machine's processor.
    Host(Host),
    /// A GPU.
    Gpu(Gpu),
}

/// Steps, prepared for a device.
pub struct Program {
    /// The steps.
    pub steps: Vec<Step>,
    gpu: Option<cuda::Program>,
}

/// A moment.
pub enum Mark {
    /// By the host's clock.
    Host(Instant),
    /// Among what was started on the device.
    Gpu(Event),
}

impl Host {
    /// The host on `threads` threads, or one a core.
    ///
    /// # Errors
    /// The first symbol that the code does not have.
    pub fn new<'s>(
        code: Box<dyn Code>,
        symbols: impl IntoIterator<Item = &'s str>,
        threads: Option<usize>,
    ) -> Result<Host, String> {
        let kernels = symbols.into_iter().map(|s| code.kernel(s).ok_or_else(|| s.to_string())).collect::<Result<_, _>>()?;
        Ok(Host { device: HostDevice::new(threads), kernels, _code: code })
    }
    /// # Safety
    /// The step's pointers are valid for its extents, and nothing else uses the memory.
    unsafe fn execute(&self, step: &Step) {
        // SAFETY: the caller vouches for the pointers.
        unsafe {
            match step {
                Step::Launch(l) => self.device.launch(self.kernels[l.kernel], l),
                Step::Product(p) => self.device.multiply(p),
                Step::Grouped(g) => self.device.multiply_groups(g),
                Step::Exchange(x) => x.alone(),
                Step::Copy { from, to, bytes } => std::ptr::copy(*from, *to, *bytes),
                Step::Zero { at, bytes } => at.write_bytes(0, *bytes),
            }
        }
    }
}

impl Program {
    /// As the driver has it.
    pub(crate) fn on_gpu(&self) -> Option<&cuda::Program> {
        self.gpu.as_ref()
    }
    /// Kernels that a run launches, and other steps.
    pub fn counts(&self) -> (usize, usize) {
        let launches = self.steps.iter().filter(|s| matches!(s, Step::Launch(_))).count();
        self.gpu.as_ref().map_or((launches, self.steps.len() - launches), cuda::Program::counts)
    }
}

impl Device {
    /// Zeros; none if there is no room. If `pinned`, transfers between host and device are fast.
    ///
    /// # Errors
    /// E0443 if a GPU fails.
    pub fn memory(&self, bytes: usize, pinned: bool) -> Result<Option<Memory>, DeviceError> {
        match self {
            Device::Host(_) => Ok(Memory::new(bytes)),
            Device::Gpu(g) => match g.memory(bytes, pinned) {
                Ok(m) => Ok(Some(m)),
                Err(DeviceError::Memory { .. }) => Ok(None),
                Err(e) => Err(e),
            },
        }
    }
    /// What can still be allocated, if that is known. # Units: bytes.
    pub fn available_bytes(&self) -> Option<u64> {
        match self {
            Device::Host(_) => available_bytes(),
            Device::Gpu(g) => Some(g.available_bytes()),
        }
    }
    /// Memory that a launch needs besides its buffers. # Units: bytes.
    pub fn workspace_bytes(&self, kernel: usize, dims: &[i64], grid: i64) -> usize {
        match self {
            Device::Host(_) => 0,
            Device::Gpu(g) => g.workspace_bytes(kernel, dims, grid),
        }
    }
    /// Makes steps ready. `workspace` is for what each launch needs besides.
    ///
    /// # Errors
    /// E0442.
    pub fn prepare(&self, steps: Vec<Step>, workspace: *mut u8) -> Result<Program, DeviceError> {
        let gpu = match self {
            Device::Host(_) => None,
            Device::Gpu(g) => Some(g.prepare(&steps, workspace)?),
        };
        Ok(Program { steps, gpu })
    }
    /// Runs all steps; on a GPU they may still be under way.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// The steps' pointers are valid for their extents, and nothing else uses the memory until `wait` returns.
    pub unsafe fn run(&self, program: &mut Program) -> Result<(), DeviceError> {
        match (self, &mut program.gpu) {
            (Device::Host(h), _) => {
                // SAFETY: the caller vouches for the pointers.
                h.device.install(|| program.steps.iter().for_each(|s| unsafe { h.execute(s) }));
                Ok(())
            }
            // SAFETY: as above.
            (Device::Gpu(_), Some(p)) => unsafe { p.run() },
            (Device::Gpu(_), None) => base::bug!("a program for the host on a GPU"),
        }
    }
    /// Runs some of the steps of a program; on a GPU they may still be under way.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As `run`.
    pub unsafe fn run_part(&self, program: &Program, mut steps: std::ops::Range<usize>) -> Result<(), DeviceError> {
        match self {
            Device::Host(h) => {
                // SAFETY: the caller vouches for the pointers.
                h.device.install(|| program.steps[steps].iter().for_each(|s| unsafe { h.execute(s) }));
                Ok(())
            }
            // SAFETY: as above.
            Device::Gpu(_) => steps.try_for_each(|i| unsafe { self.execute(program, i) }),
        }
    }
    /// As the first run that is recorded: recorded anew, and started.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As `run`.
    pub unsafe fn run_anew(&self, program: &mut Program) -> Result<(), DeviceError> {
        if let Some(p) = &mut program.gpu {
            p.forget();
        }
        // SAFETY: the caller vouches for the pointers.
        unsafe { self.run(program) }
    }
    /// Starts all steps one by one, also on a GPU.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As `run`.
    pub unsafe fn run_one_by_one(&self, program: &mut Program) -> Result<(), DeviceError> {
        match (self, &program.gpu) {
            // SAFETY: the caller vouches for the pointers.
            (Device::Host(_), _) => unsafe { self.run(program) },
            // SAFETY: as above.
            (Device::Gpu(_), Some(p)) => unsafe { p.start_all() },
            (Device::Gpu(_), None) => base::bug!("a program for the host on a GPU"),
        }
    }
    /// Runs one step; on a GPU it may still be under way.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As `run`.
    pub unsafe fn execute(&self, program: &Program, i: usize) -> Result<(), DeviceError> {
        match (self, &program.gpu) {
            (Device::Host(h), _) => {
                // SAFETY: the caller vouches for the pointers.
                h.device.install(|| unsafe { h.execute(&program.steps[i]) });
                Ok(())
            }
            // SAFETY: as above.
            (Device::Gpu(_), Some(p)) => unsafe { p.start(i) },
            (Device::Gpu(_), None) => base::bug!("a program for the host on a GPU"),
        }
    }
    /// Waits for all that was started.
    ///
    /// # Errors
    /// E0443: what failed since the last time.
    pub fn wait(&self) -> Result<(), DeviceError> {
        match self {
            Device::Host(_) => Ok(()),
            Device::Gpu(g) => g.wait(),
        }
    }
    /// A GPU with another stream, for what goes on while steps run; the host has nothing like it, as its steps are over when they were started.
    ///
    /// # Errors
    /// E0441.
    pub fn beside(&self) -> Result<Option<Device>, DeviceError> {
        match self {
            Device::Host(_) => Ok(None),
            Device::Gpu(g) => Ok(Some(Device::Gpu(g.beside()?))),
        }
    }
    /// Waits for a moment of this device.
    ///
    /// # Errors
    /// E0443.
    pub fn wait_for(&self, mark: &Mark) -> Result<(), DeviceError> {
        match (self, mark) {
            (Device::Host(_), Mark::Host(_)) => Ok(()),
            (Device::Gpu(g), Mark::Gpu(event)) => g.wait_for(event),
            (Device::Host(_), Mark::Gpu(_)) | (Device::Gpu(_), Mark::Host(_)) => base::bug!("a moment of another device"),
        }
    }
    /// This moment among the steps.
    ///
    /// # Errors
    /// E0443.
    pub fn mark(&self) -> Result<Mark, DeviceError> {
        match self {
            Device::Host(_) => Ok(Mark::Host(Instant::now())),
            Device::Gpu(g) => g.mark().map(Mark::Gpu),
        }
    }
    /// The time between two moments of this device; they are over once `wait` returned. # Units: nanoseconds.
    pub fn nanoseconds(&self, from: &Mark, to: &Mark) -> f64 {
        match (self, from, to) {
            (_, Mark::Host(a), Mark::Host(b)) => b.duration_since(*a).as_secs_f64() * 1e9,
            (Device::Gpu(g), Mark::Gpu(a), Mark::Gpu(b)) => g.nanoseconds(a, b),
            _ => base::bug!("moments of two devices"),
        }
    }
    /// The bytes at an address of the device.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// The memory is valid for so many bytes.
    pub unsafe fn read(&self, from: *const u8, bytes: usize) -> Result<Vec<u8>, DeviceError> {
        match self {
            // SAFETY: the caller vouches for the memory.
            Device::Host(_) => Ok(unsafe { std::slice::from_raw_parts(from, bytes) }.to_vec()),
            // SAFETY: as above.
            Device::Gpu(g) => unsafe { g.read(from, bytes) },
        }
    }
    /// Fills memory of the device, after all that was started.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// The memory is valid for the bytes.
    pub unsafe fn write(&self, to: *mut u8, bytes: &[u8]) -> Result<(), DeviceError> {
        match self {
            // SAFETY: the caller vouches for the memory.
            Device::Host(_) => unsafe { std::ptr::copy(bytes.as_ptr(), to, bytes.len()) },
            // SAFETY: as above.
            Device::Gpu(g) => unsafe { g.write(to, bytes) }?,
        }
        Ok(())
    }
    /// Copies memory of the device, after all that was started; on a GPU that may still be under way.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// Both are valid for so many bytes, and nothing else uses them until `wait` returns.
    pub unsafe fn copy(&self, from: *const u8, to: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        match self {
            _ if bytes == 0 || from == to.cast_const() => {}
            // SAFETY: the caller vouches for the memory.
            Device::Host(_) => unsafe { std::ptr::copy(from, to, bytes) },
            // SAFETY: as above.
            Device::Gpu(g) => unsafe { g.copy(from, to, bytes) }?,
        }
        Ok(())
    }
    /// Zeros memory of the device, as `copy`.
    ///
    /// # Errors
    /// E0443.
    ///
    /// # Safety
    /// As `copy`.
    pub unsafe fn zero(&self, at: *mut u8, bytes: usize) -> Result<(), DeviceError> {
        match self {
            _ if bytes == 0 => {}
            // SAFETY: the caller vouches for the memory.
            Device::Host(_) => unsafe { at.write_bytes(0, bytes) },
            // SAFETY: as above.
            Device::Gpu(g) => unsafe { g.zero(at, bytes) }?,
        }
        Ok(())
    }
    /// Kernels that add up tensors where they lie; none on the host.
    ///
    /// # Errors
    /// E0442.
    pub fn sums(&self) -> Result<Option<cuda::Sums>, DeviceError> {
        match self {
            Device::Host(_) => Ok(None),
            Device::Gpu(g) => g.sums().map(Some),
        }
    }
    /// Whether each tensor is finite, without a copy of it; none where this device does not know.
    ///
    /// # Errors
    /// E0443.
    pub fn are_finite(&self, tensors: &[(DType, &Memory)]) -> Result<Vec<Option<bool>>, DeviceError> {
        match self {
            Device::Host(_) => Ok(vec![None; tensors.len()]),
            Device::Gpu(g) => {
                let places: Vec<_> = tensors.iter().map(|(d, m)| (*d, m.as_ptr().cast_const(), m.len())).collect();
                // SAFETY: the memory is borrowed, and of this device.
                unsafe { g.are_finite(&places) }
            }
        }
    }
}
