//! Kernels as a GPU would run them, for tests: the same module, but for narrow floats, with threads of the host that take turns. One runs
//! until it has to wait, then the next. With the first thread first and with the last thread first, what a missing barrier lets a thread see
//! too early or too late differs.

use crate::{
    CodegenError, Jit, Options,
    emit::{Machine, function, functions_module},
    gpu::plan::{Limits, Plan, prepare},
    llvm, mlir,
};
use std::{
    collections::BTreeMap,
    sync::{Condvar, Mutex},
};
use tile::Kernel;

/// Small, so that small problems have several warps and blocks, and scratch that does not fit.
const LIMITS: Limits = Limits { warp: 4, threads: (8, 16), most: 32, shared_bytes: 4 << 10, hopper: false, cluster: 16 };
const ALIGN: usize = 128;

/// Kernels compiled for threads of the host.
pub struct Emulated {
    jit: Jit,
    plans: Vec<(String, Plan, usize)>,
}

/// What a compiled function is passed, as `emit/simt.rs` says.
#[repr(C)]
struct Thread<'a> {
    tid: i64,
    ctaid: i64,
    nctaid: i64,
    grid: i64,
    shared: *mut u8,
    sums: *mut u8,
    /// From one block's to the next one's of a cluster.
    sums_bytes: i64,
    workspace: *mut u8,
    wait: extern "C" fn(&Thread<'_>, i64),
    exchange: extern "C" fn(&Thread<'_>, i64, i64, i64) -> i64,
    /// Among the threads of the cluster.
    number: usize,
    context: &'a Block,
}

// SAFETY: threads of a block take turns, so no memory is touched by two at once.
unsafe impl Send for Thread<'_> {}

type Function = unsafe extern "C" fn(*const *mut u8, *const i64, &Thread<'_>);

#[derive(Clone, Copy, PartialEq)]
enum State {
    Ready,
    /// In a group of this size, with a value for the others.
    Waiting(i64, i64),
    Done,
}

/// The threads of a block, or of the blocks of a cluster; one of them runs.
struct Block {
    state: Mutex<(Vec<State>, usize, Vec<i64>)>,
    /// One a thread.
    turn: Vec<Condvar>,
    /// Whether the last thread goes first.
    reversed: bool,
}

impl Block {
    fn new(threads: usize, reversed: bool) -> Block {
        let first = if reversed { threads - 1 } else { 0 };
        Block {
            state: Mutex::new((vec![State::Ready; threads], first, vec![0; threads])),
            turn: (0..threads).map(|_| Condvar::new()).collect(),
            reversed,
        }
    }
    /// Blocks until it is this thread's turn.
    fn resume(&self, tid: usize) {
        let guard = self.state.lock().expect("no thread panics");
        drop(self.turn[tid].wait_while(guard, |s| s.1 != tid).expect("no thread panics"));
    }
    /// Ends this thread's turn, and starts that of another one.
    fn pass(&self, tid: usize, to: State) {
        let mut guard = self.state.lock().expect("no thread panics");
        let (states, turn, values) = &mut *guard;
        states[tid] = to;
        if let State::Waiting(size, _) = to {
            let group = tid / size as usize * size as usize..(tid / size as usize + 1) * size as usize;
            let all = states[group.clone()].iter().all(|s| matches!(s, State::Waiting(n, _) if *n == size));
            if all {
                for i in group {
                    if let State::Waiting(_, value) = states[i] {
                        values[i] = value;
                    }
                    states[i] = State::Ready;
                }
            }
        }
        let mut order: Vec<usize> = (0..states.len()).collect();
        if self.reversed {
            order.reverse();
        }
        match order.into_iter().find(|i| states[*i] == State::Ready) {
            Some(next) => {
                *turn = next;
                self.turn[next].notify_one();
            }
            None if states.iter().all(|s| *s == State::Done) => {}
            None => {
                eprintln!("threads wait for others that do not come");
                std::process::abort();
            }
        }
    }
}

extern "C" fn wait(thread: &Thread<'_>, size: i64) {
    thread.context.pass(thread.number, State::Waiting(size, 0));
    thread.context.resume(thread.number);
}

extern "C" fn exchange(thread: &Thread<'_>, value: i64, distance: i64, lanes: i64) -> i64 {
    thread.context.pass(thread.number, State::Waiting(lanes, value));
    thread.context.resume(thread.number);
    let other = thread.context.state.lock().expect("no thread panics").2[thread.number ^ distance as usize];
    // Nobody may pass another value before all have this one.
    wait(thread, lanes);
    other
}

impl Emulated {
    /// Compiles kernels for threads of the host.
    ///
    /// # Errors
    /// What MLIR, LLVM or the linker refuses.
    pub fn load(kernels: &[Kernel]) -> Result<Emulated, CodegenError> {
        let prepared: Vec<(Kernel, Plan)> = kernels.iter().map(|k| prepare(k, LIMITS)).collect();
        let one = |(i, (k, plan)): (usize, &(Kernel, Plan))| function(i, (k, plan), &BTreeMap::new(), Machine::Emulated);
        let functions: Vec<_> = prepared.iter().enumerate().map(one).collect();
        let text = functions_module(&functions.iter().collect::<Vec<_>>(), Machine::Emulated);
        let object = mlir::with_llvm(&text, |module| {
            llvm::optimise(module, &Options::default())?;
            llvm::object(module, &Options::default())
        });
        let jit = Jit::load(&[object?])?;
        let plans = prepared.into_iter().zip(functions).map(|((k, plan), f)| (k.name, plan, f.reductions)).collect();
        Ok(Emulated { jit, plans })
    }
    /// Runs a kernel of `grid` blocks with `blocks` blocks of threads, the last thread first if `reversed`.
    ///
    /// # Panics
    /// If there is no such kernel. The process ends if threads wait for others that do not come.
    ///
    /// # Safety
    /// The buffers and extents are what the kernel expects, and it keeps in bounds.
    pub unsafe fn run(&self, name: &str, buffers: &[*mut u8], dims: &[i64], grid: i64, blocks: i64, reversed: bool) {
        let (_, plan, sums) = self.plans.iter().find(|(n, ..)| n == name).expect("a kernel that was compiled");
        let f = self.jit.symbol(name).expect("a kernel has a symbol");
        // SAFETY: the symbol is a function of this type.
        let f = unsafe { std::mem::transmute::<*const (), Function>(f) };
        let (threads, cluster) = (plan.threads as usize, i64::from(plan.cluster));
        // Whole clusters, whose blocks run together.
        let blocks = (blocks + cluster - 1) / cluster * cluster;
        // What is not set is NaN.
        let memory = |bytes: usize| {
            let mut m = vec![0xffu8; bytes + ALIGN];
            let skip = m.as_mut_ptr().align_offset(ALIGN);
            (m, skip)
        };
        let (mut workspace, skip) = memory(plan.workspace_bytes * blocks as usize);
        let workspace = workspace[skip..].as_mut_ptr();
        for first in (0..blocks).step_by(cluster as usize) {
            let ((mut shared, shared_skip), (mut all_sums, sums_skip)) =
                (memory(plan.shared_bytes), memory(*sums * cluster as usize));
            let (shared, all_sums) = (shared[shared_skip..].as_mut_ptr(), all_sums[sums_skip..].as_mut_ptr());
            let block = Block::new(threads * cluster as usize, reversed);
            let start = |number: usize| Thread {
                tid: (number % threads) as i64,
                ctaid: first + (number / threads) as i64,
                nctaid: blocks,
                grid,
                shared,
                sums: all_sums.wrapping_add(number / threads * *sums),
                sums_bytes: *sums as i64,
                workspace,
                wait,
                exchange,
                number,
                context: &block,
            };
            let passed = Passed(buffers, dims);
            std::thread::scope(|s| {
                for thread in (0..threads * cluster as usize).map(start) {
                    let passed = &passed;
                    s.spawn(move || {
                        let thread = thread;
                        thread.context.resume(thread.number);
                        // SAFETY: as the caller says, and the memory is what the plan asks for.
                        unsafe { f(passed.0.as_ptr(), passed.1.as_ptr(), &thread) };
                        thread.context.pass(thread.number, State::Done);
                    });
                }
            });
        }
    }
}

/// The arguments of all threads.
struct Passed<'a>(&'a [*mut u8], &'a [i64]);

// SAFETY: as for `Thread`.
unsafe impl Sync for Passed<'_> {}
