//! Checkpoints of a run over ranks: each stage is written by the first rank that has it, its copies compare their checksums, rank 0 writes the
//! index when all parts are there. Going on, every rank takes its stages' tensors by name, whatever ranks wrote them.

use super::{Job, model::Model, step::copies};
use crate::{
    ExecError,
    checkpoint::{self, Contents, Identity},
    train,
};
use fabric::{Fabric, collective};
use library::Role;

/// Saves the model after a step.
pub(super) fn save(model: &mut Model, f: &dyn Fabric, step: u64, identity: &Identity) -> Result<(), ExecError> {
    let job = model.job;
    let folder = &job.options.out;
    for (stage, s) in model.sessions.iter().filter(|(stage, _)| copies(&job, **stage)[0] == model.rank) {
        checkpoint::save_part(&s.store, &s.manifest, folder, (step, usize::from(*stage)), identity)?;
    }
    // Every rank tells the checksums of its stages; that also says that its parts are on the disk.
    let own: Vec<u8> =
        model.sessions.values().flat_map(|s| checkpoint::checksum_of(&s.store, &s.manifest).to_le_bytes()).collect();
    let stages = job.plan.placement.stages_by_rank();
    let lengths: Vec<usize> = stages.iter().map(|s| s.len() * 8).collect();
    let told = collective::all_to_all(f, &vec![own; f.size()], &lengths)?;
    let sum = |rank: usize, stage: u16| {
        let at = stages[rank].iter().position(|s| *s == stage).expect("it has the stage");
        u64::from_le_bytes(told[rank].as_chunks::<8>().0[at])
    };
    let mut sums = Vec::new();
    for stage in 0..job.plan.num_stages() as u16 {
        let ranks = copies(&job, stage);
        let (owner, expected) = (ranks[0], sum(ranks[0], stage));
        if let Some(rank) = ranks.into_iter().find(|r| sum(*r, stage) != expected) {
            return Err(ExecError::Copies { stage, step, rank, found: sum(rank, stage), owner, expected });
        }
        sums.push(expected);
    }
    if model.rank == 0 {
        checkpoint::save_index(folder, step, &sums, identity)?;
    }
    Ok(())
}

/// The step to go on from: that of the newest good checkpoint if that is asked for, else 0. Rank 0 looks which it is.
pub(super) fn resume(
    model: &mut Model,
    f: &dyn Fabric,
    identity: &Identity,
    warn: &mut dyn FnMut(String),
) -> Result<u64, ExecError> {
    let job: Job = model.job;
    let o = job.options;
    for s in model.sessions.values_mut() {
        s.store.zero(Role::Moment);
    }
    let mut chosen = [0; 8];
    if model.rank == 0 {
        let newest = checkpoint::list(&o.out);
        let step = match (o.resume, newest.first()) {
            (true, _) => checkpoint::newest(&o.out, warn, &mut |_, files, _| {
                let contents = Contents::parse_all(files)?;
                Ok(contents.metadata.get("step").and_then(|s| s.parse::<u64>().ok()).unwrap_or(0))
            })?,
            (false, None) => 0,
            (false, Some(newest)) => return Err(train::occupied(o, newest)),
        };
        chosen = step.to_le_bytes();
    }
    collective::broadcast(f, 0, &mut chosen)?;
    let step = u64::from_le_bytes(chosen);
    if step == 0 {
        return Ok(0);
    }
    let name = format!("step-{step:08}");
    let path = checkpoint::list(&o.out).into_iter().find(|p| p.file_stem().is_some_and(|s| s.to_string_lossy() == name));
    let path = path.ok_or_else(|| {
        let why = format!("rank {} does not see {name}, which rank 0 does: the ranks need one folder", model.rank);
        ExecError::NoCheckpoint { path: o.out.display().to_string(), why }
    })?;
    let files = checkpoint::read(&path)?;
    for s in model.sessions.values_mut() {
        let manifest = s.manifest.clone();
        checkpoint::load(&mut s.store, &manifest, &files, &path, identity, warn)?;
    }
    Ok(step)
}
