//! Checkpoints of a run over ranks: each stage is written by the first rank that has it, or each part of it by its owner; its copies compare
//! the checksums of what they share; rank 0 writes the index when all parts are there. Going on, every rank takes its stages' tensors by name, whatever ranks wrote them.

use super::{
    Job,
    model::Model,
    shards::{Held, Shards},
    step::copies,
};
use crate::{
    ExecError,
    checkpoint::{self, Contents, Identity, Part},
    train,
};
use fabric::{Fabric, collective};
use library::Role;

/// Saves the model after a step.
pub(super) fn save(model: &mut Model, f: &dyn Fabric, step: u64, identity: &Identity) -> Result<(), ExecError> {
    let job = model.job;
    let folder = &job.options.out;
    // Every rank tells the checksums of what its stages share with their copies, and of its own parts; that also says that these are on the disk.
    let mut own: Vec<u8> = Vec::new();
    for (stage, s) in &model.sessions {
        s.store.refresh()?;
        let held = Held::new(&job, *stage, model.rank);
        let copy = held.shards[0].member(model.rank).expect("a stage of this rank");
        let sum = |shards: &Shards| checkpoint::checksum_of(&s.store, &shards.part_of(&s.manifest), !shards.is_sharded());
        own.extend([0, 1].map(|i| held.shards.get(i).map_or(0, sum)).map(u64::to_le_bytes).concat());
        let written = if held.writes() {
            let part = Part { stage: usize::from(*stage), copy };
            checkpoint::save_part(&s.store, &held.owned(&s.manifest), folder, (step, part), identity)?
        } else {
            0
        };
        own.extend(written.to_le_bytes());
    }
    let stages = job.plan.placement.stages_by_rank();
    let lengths: Vec<usize> = stages.iter().map(|s| s.len() * 24).collect();
    let told = collective::all_to_all(f, &vec![own; f.size()], &lengths)?;
    let sums = |rank: usize, stage: u16| {
        let at = stages[rank].iter().position(|s| *s == stage).expect("it has the stage");
        [0, 1, 2].map(|k| u64::from_le_bytes(told[rank].as_chunks::<8>().0[3 * at + k]))
    };
    let mut parts = Vec::new();
    for stage in 0..job.plan.num_stages() as u16 {
        for (copy, rank) in copies(&job, stage).into_iter().enumerate() {
            let held = Held::new(&job, stage, rank);
            let found = sums(rank, stage);
            for (i, shards) in held.shards.iter().enumerate() {
                let owner = shards.members[0];
                let (found, expected) = (found[i], sums(owner, stage)[i]);
                if found != expected {
                    return Err(ExecError::Copies { stage, step, rank, found, owner, expected });
                }
            }
            if held.writes() {
                let written = found[2];
                parts.push((Part { stage: usize::from(stage), copy }, written));
            }
        }
    }
    if model.rank == 0 {
        checkpoint::save_index(folder, step, &parts, identity)?;
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
