//! `lode run`: one call of an entry, by the interpreter or compiled.

use super::common::{self, FAILED, USAGE};
use crate::putln;
use crate::{
    cli::{Backend, Machine, MessageFormat, On, Run},
    pipeline::{self, Options},
};
use exec::{HostTensor, npy, store::TIED};
use graph::interp;
use library::Role;
use std::path::Path;

/// Runs the entry; prints each output's shape and range, and compares with what is expected.
pub fn run(args: &Run, format: MessageFormat) -> u8 {
    call(args, format).unwrap_or_else(|code| code)
}

fn read(pairs: &[String]) -> Result<Vec<(String, HostTensor)>, u8> {
    pairs
        .iter()
        .map(|p| match p.split_once("=@") {
            Some((name, path)) => npy::read(Path::new(path)).map(|t| (name.to_string(), t)).map_err(|e| common::fail_with(&e)),
            None => {
                eprintln!("inputs are written name=@file.npy, not '{p}'");
                Err(USAGE)
            }
        })
        .collect()
}

fn call(args: &Run, format: MessageFormat) -> Result<u8, u8> {
    let backend = if args.backend == Backend::Cuda { Machine::Cuda } else { Machine::Host };
    let on = On { backend, device: args.device };
    let options =
        Options { overrides: common::overrides(&args.model)?, locked: args.model.locked, gpu: on.is_gpu(), ..Options::default() };
    let (inputs, expected) = (read(&args.input)?, read(&args.expect)?);
    let built = args.model.file.extension().is_some_and(|e| e == library::file::EXTENSION);
    if built && args.backend == Backend::Ref {
        eprintln!("the interpreter takes a source, not a library");
        return Err(USAGE);
    }
    let mut session = common::session_on(common::library(&args.model, &options, format)?, &on, None)?;
    let failed = |e: exec::ExecError| common::fail_with(&e);
    let manifest = session.manifest.clone();
    session.store.initialise(&manifest, args.seed).map_err(failed)?;
    if let Some(path) = &args.weights {
        session.store.load_weights(&manifest, path, TIED).map_err(failed)?;
    }
    let shapes: Vec<(&str, &[i64])> = inputs.iter().map(|(n, t)| (n.as_str(), &t.shape[..])).collect();
    let dims = session.bind(&args.entry, &shapes).map_err(failed)?;
    let given: Vec<(&str, &HostTensor)> = inputs.iter().map(|(n, t)| (n.as_str(), t)).collect();
    let outputs = match args.backend {
        Backend::Host | Backend::Cuda => session.run(&args.entry, &dims, &given).map_err(failed)?,
        Backend::Ref => {
            let front = common::front(&args.model, &options, format)?;
            let program = front.program.as_ref().expect("checked by `front`");
            let (module, _) = pipeline::middle(program, &Options { no_optimize: true, ..options.clone() })
                .map_err(|e| common::back_failed(&e))?;
            let func = module.func(&args.entry).expect("the session has the entry");
            let mut tensors = Vec::new();
            for (arg, _, ty) in func.arg_values() {
                let role = if arg.role == graph::Role::State { Role::State } else { Role::Param };
                let t = match (arg.role, given.iter().find(|(n, _)| *n == arg.name)) {
                    (graph::Role::Input | graph::Role::Scalar, Some((_, t))) => (*t).clone(),
                    (graph::Role::Param | graph::Role::State, _) => {
                        let slot = session.store.get(role, &arg.name).expect("initialised above");
                        HostTensor { dtype: slot.dtype, shape: slot.shape.clone(), bytes: slot.memory.bytes().to_vec() }
                    }
                    _ => {
                        let shape = ty.eval(&dims).unwrap_or_default();
                        let n = shape.iter().product::<i64>().max(0) as usize;
                        HostTensor::from_f64(ty.dtype, &shape, vec![0.0; n])
                    }
                };
                tensors.push(interp::Tensor { dtype: t.dtype, shape: t.shape.clone(), data: t.to_f64() });
            }
            let results = interp::eval(func, &tensors, &dims, interp::Options::EXACT).map_err(|e| {
                eprintln!("{e}");
                FAILED
            })?;
            let named = func.outputs.iter().zip(results);
            named.map(|(o, t)| (o.name.clone(), HostTensor::from_f64(base::DType::F64, &t.shape, t.data))).collect()
        }
    };
    for (name, t) in &outputs {
        let data = t.to_f64();
        let (low, high) = data.iter().fold((f64::INFINITY, f64::NEG_INFINITY), |(a, b), x| (a.min(*x), b.max(*x)));
        putln!("{name}: {}{:?} in {low:.6} … {high:.6}", t.dtype, t.shape);
        if let Some(folder) = &args.out {
            std::fs::create_dir_all(folder).map_err(|e| common::fail_with(&exec::ExecError::io(folder, &e)))?;
            npy::write(&folder.join(format!("{name}.npy")), t).map_err(failed)?;
        }
    }
    let mut code = 0;
    for (name, want) in &expected {
        let Some((_, got)) = outputs.iter().find(|(n, _)| n == name) else {
            eprintln!("there is no output '{name}'");
            return Err(USAGE);
        };
        let (a, b) = (got.to_f64(), want.to_f64());
        let scale = b.iter().fold(0.0f64, |m, x| m.max(x.abs())).max(f64::MIN_POSITIVE);
        let worst = if a.len() == b.len() {
            a.iter().zip(&b).fold(0.0f64, |m, (x, y)| m.max((x - y).abs() / scale))
        } else {
            f64::INFINITY
        };
        let fits = worst <= args.tolerance;
        putln!("{name}: {} by at most {worst:.2e} of the largest", if fits { "agrees" } else { "differs" });
        if !fits {
            code = FAILED;
        }
    }
    Ok(code)
}
