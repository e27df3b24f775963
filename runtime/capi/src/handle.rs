//! `lode_library`: a session, its names as C strings, and the results of its last run.

use crate::{
    Port, Tensor,
    convert::{Failure, usage},
    dtype_number,
};
use base::DType;
use device::Memory;
use exec::{ExecError, HostTensor, Session};
use library::{Manifest, Role, names};
use std::{
    ffi::{CStr, CString},
    path::Path,
};

/// Roles by their number in C.
pub const ROLES: [Role; 8] =
    [Role::Param, Role::State, Role::Grad, Role::Moment, Role::Tally, Role::Input, Role::Scalar, Role::Result];

/// The role of a number.
pub(crate) fn role(number: i32) -> Result<Role, Failure> {
    let role = usize::try_from(number).ok().and_then(|i| ROLES.get(i));
    role.copied().ok_or_else(|| usage(&format!("{number} is no role")))
}

/// What `lode_open` gives.
pub struct Handle {
    session: Session,
    /// Parameters and states, then each entry with its ports.
    params: Vec<Listed>,
    entries: Vec<(CString, Vec<Listed>)>,
    results: Vec<Held>,
    /// What `get` points to besides.
    shape: Vec<i64>,
    name: CString,
}

/// A port in C's words.
struct Listed {
    name: CString,
    role: Role,
    dtype: DType,
    is_output: bool,
    shape: CString,
}

/// A result of the last run.
struct Held {
    name: CString,
    dtype: DType,
    shape: Vec<i64>,
    memory: Memory,
}

fn c_string(text: &str) -> CString {
    CString::new(text.replace('\0', " ")).unwrap_or_default()
}

impl Listed {
    fn new(name: &str, role: Role, dtype: DType, is_output: bool, shape: &[impl ToString]) -> Listed {
        let shape = shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        Listed { name: c_string(name), role, dtype, is_output, shape: c_string(&shape) }
    }
}

/// A tensor of the library: the whole one that holds it, where in it, and its extents.
struct Place {
    whole: String,
    shape: Vec<i64>,
    index: usize,
    count: usize,
}

/// Where a parameter or state lies, by its name in the model or in a weight file.
fn place(manifest: &Manifest, role: Role, name: &str) -> Option<Place> {
    let mut all = manifest.params.iter().filter(|p| p.role == role);
    all.clone().find(|p| p.name == name).map_or_else(
        || {
            all.find_map(|p| {
                let (names, shape) = names::expand(&p.name, &p.shape);
                let index = names.iter().position(|n| n == name)?;
                Some(Place { whole: p.name.clone(), shape, index, count: names.len() })
            })
        },
        |p| Some(Place { whole: p.name.clone(), shape: p.shape.clone(), index: 0, count: 1 }),
    )
}

impl Handle {
    /// # Safety
    /// As [`Session::open`].
    pub(crate) unsafe fn open(path: &str, threads: Option<usize>) -> Result<Handle, Failure> {
        // SAFETY: the caller vouches for the files.
        let session = unsafe { Session::open(Path::new(path), threads) }?;
        Ok(Handle::new(session))
    }
    pub(crate) fn new(session: Session) -> Handle {
        let m = &session.manifest;
        let params = m.params.iter().map(|p| Listed::new(&p.name, p.role, p.dtype, false, &p.shape)).collect();
        let list = |e: &library::Entry| {
            let args = e.args.iter().map(|p| (p, false));
            let ports = args.chain(e.outputs.iter().map(|p| (p, true)));
            let listed = ports.map(|(p, is_output)| Listed::new(&p.name, p.role, p.dtype, is_output, &p.shape)).collect();
            (c_string(&e.name), listed)
        };
        let entries = m.entries.iter().filter(|e| !e.is_variant()).map(list).collect();
        Handle { session, params, entries, results: Vec::new(), shape: Vec::new(), name: CString::default() }
    }
    pub(crate) fn initialise(&mut self, seed: u64) -> Result<(), Failure> {
        let manifest = self.session.manifest.clone();
        Ok(self.session.store.initialise(&manifest, seed)?)
    }
    pub(crate) fn load(&mut self, path: &str) -> Result<(), Failure> {
        let manifest = self.session.manifest.clone();
        Ok(self.session.store.load_weights(&manifest, Path::new(path), exec::store::TIED)?)
    }
    pub(crate) fn entry(&self, index: i64) -> Option<&CStr> {
        let (name, _) = self.entries.get(usize::try_from(index).ok()?)?;
        Some(name.as_c_str())
    }
    pub(crate) fn describe(&self, entry: Option<&str>, index: i64) -> Result<Port, Failure> {
        let list = match entry {
            None => &self.params,
            Some(entry) => {
                self.session.entry(entry)?;
                let found = self.entries.iter().find(|(n, _)| n.to_bytes() == entry.as_bytes());
                &found.expect("the session has it").1
            }
        };
        let listed = usize::try_from(index).ok().and_then(|i| list.get(i));
        let p = listed.ok_or_else(|| usage(&format!("there are {}, and none with index {index}", list.len())))?;
        let role = ROLES.iter().position(|r| *r == p.role).map_or(-1, |i| i as i32);
        let dtype = dtype_number(p.dtype);
        Ok(Port { name: p.name.as_ptr(), role, dtype, is_output: i32::from(p.is_output), shape: p.shape.as_ptr() })
    }
    pub(crate) fn set(&mut self, role: Role, name: &str, value: &HostTensor) -> Result<(), Failure> {
        let wrong = |why: String| Failure::from(ExecError::Input { name: name.into(), why });
        let Some(place) = place(&self.session.manifest, role, name) else {
            return Err(wrong("it is no parameter or state of that role".into()));
        };
        let param = self.session.manifest.params.iter().find(|p| p.name == place.whole && p.role == role);
        let param = param.expect("`place` found it").clone();
        if value.shape != place.shape || value.dtype.is_float() != param.dtype.is_float() {
            return Err(wrong(format!("{}{:?} is not {}{:?}", value.dtype, value.shape, param.dtype, place.shape)));
        }
        let slot = self.session.store.slot(role, &param.name, param.dtype, &param.shape)?;
        let each = slot.memory.len() / place.count;
        slot.memory.bytes_mut()[place.index * each..][..each].copy_from_slice(&value.cast(param.dtype).bytes);
        Ok(())
    }
    pub(crate) fn get(&mut self, role: Role, name: &str) -> Result<Tensor, Failure> {
        let missing = || {
            let why = if role.is_stored() { "the library holds none of that role" } else { "the last run gave none" };
            Failure::from(ExecError::Input { name: name.into(), why: why.into() })
        };
        if !role.is_stored() {
            let r = self.results.iter().find(|r| r.name.to_bytes() == name.as_bytes()).ok_or_else(missing)?;
            let data = r.memory.bytes().as_ptr().cast();
            let rank = r.shape.len() as i32;
            return Ok(Tensor { name: r.name.as_ptr(), dtype: dtype_number(r.dtype), rank, shape: r.shape.as_ptr(), data });
        }
        let whole = Place { whole: name.into(), shape: Vec::new(), index: 0, count: 1 };
        let place = place(&self.session.manifest, role, name).unwrap_or(whole);
        let slot = self.session.store.get(role, &place.whole).ok_or_else(missing)?;
        self.shape = if place.whole == name { slot.shape.clone() } else { place.shape };
        self.name = c_string(name);
        let at = slot.memory.len() / place.count * place.index;
        slot.memory.refresh().map_err(ExecError::from)?;
        let data = slot.memory.bytes().as_ptr().wrapping_add(at).cast();
        let (name, dtype, rank) = (self.name.as_ptr(), dtype_number(slot.dtype), self.shape.len() as i32);
        Ok(Tensor { name, dtype, rank, shape: self.shape.as_ptr(), data })
    }
    pub(crate) fn zero(&mut self, role: Role) -> Result<(), Failure> {
        if !role.is_stored() {
            return Err(usage("the library keeps no tensors of that role"));
        }
        self.session.store.zero(role);
        Ok(())
    }
    pub(crate) fn run(&mut self, entry: &str, inputs: &[(&str, HostTensor)]) -> Result<(), Failure> {
        self.results.clear();
        let shapes: Vec<(&str, &[i64])> = inputs.iter().map(|(n, t)| (*n, &t.shape[..])).collect();
        let dims = self.session.bind(entry, &shapes)?;
        let given: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (*n, t)).collect();
        for (name, t) in self.session.run(entry, &dims, &given)? {
            let what = || ExecError::Input { name: name.clone(), why: "there is no memory to hold it".into() };
            let mut memory = Memory::new(t.bytes.len()).ok_or_else(what)?;
            memory.bytes_mut().copy_from_slice(&t.bytes);
            self.results.push(Held { name: c_string(&name), dtype: t.dtype, shape: t.shape, memory });
        }
        Ok(())
    }
}
