//! Which copy of a stage keeps which part of its optimiser: with ZeRO-1 each part of the update, with its moments, has one owner among the
//! stage's copies (DualPipe's mirrors and replicas). A gradient's sum is made where its owner is, in the order that all copies would sum it in;
//! the owner updates, and tells the others the new parameters. So the bits are those of copies that each do all of it.
//! # Source: Rajbhandari et al., ZeRO, 2020, P_os; by whole tensors in place of elements, as an optimiser may look at a whole matrix.

use super::{
    Job,
    execute::tag,
    model::Model,
    step,
    sums::{Among, spread},
};
use crate::{ExecError, train::is_update};
use fabric::{Channel, Direct, Tag};
use library::{Entry, Manifest, Port, Role};
use std::collections::{BTreeMap, BTreeSet};

/// New parameters, by stage.
const UPDATED: u32 = 0x7000_0000;

/// Tensors of a stage that some copies have in common, and what each of these owns. All ranks make the same of it.
pub(super) struct Shards {
    /// The ranks that have them, in order of the stage's directions.
    pub members: Vec<usize>,
    /// The copy that owns each part of the update; none if every copy does all parts.
    parts: Option<BTreeMap<String, usize>>,
    /// The copy that owns each parameter and state.
    names: BTreeMap<String, usize>,
    /// Whether these are the experts of one share, or what all copies have.
    experts: bool,
    /// Parameters of experts that are divided: of the share, or of all.
    divided: BTreeSet<String>,
}

/// A part of a stage's update that reads or writes both experts and what all copies have: nobody could own it.
pub(super) fn mixed<'a>(job: &Job<'a>, share: usize, stage: u16) -> Option<&'a str> {
    let divided = experts(job, share, stage);
    let is_expert = |p: &Port| divided.contains(p.name.rsplit_once('#').map_or(&*p.name, |(param, _)| param));
    let kept = |p: &&Port| matches!(p.role, Role::Param | Role::State | Role::Grad | Role::Moment);
    let entries = &job.programs[share][usize::from(stage)].manifest.entries;
    let mut updates = entries.iter().filter(|e| is_update(&e.name));
    let is_mixed = |e: &&Entry| {
        let mut ports = e.args.iter().chain(&e.outputs).filter(kept).map(is_expert);
        let first = ports.next();
        ports.any(|p| Some(p) != first)
    };
    updates.find(is_mixed).map(|e| e.name.as_str())
}

/// So many parts shared out, the largest first, each to who has least: whose each is.
fn share_out(sizes: &[i64], members: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..sizes.len()).collect();
    // A stable sort: equals keep their order.
    order.sort_by_key(|i| std::cmp::Reverse(sizes[*i]));
    let (mut load, mut owners) = (vec![0; members], vec![0; sizes.len()]);
    for i in order {
        owners[i] = (0..members).min_by_key(|m| load[*m]).expect("there are members");
        load[owners[i]] += sizes[i];
    }
    owners
}

/// The parameters of a share of the experts, in a stage.
fn experts(job: &Job, share: usize, stage: u16) -> BTreeSet<String> {
    let names = |share: usize| job.programs[share][usize::from(stage)].manifest.params.iter().map(|p| p.name.clone());
    // What another share calls the same belongs to all.
    let other: BTreeSet<String> = names((share + 1) % job.members()).collect();
    names(share).filter(|n| job.members() > 1 && !other.contains(n)).collect()
}

impl Shards {
    /// What all copies of a stage have.
    pub fn common(job: &Job, stage: u16) -> Shards {
        let divided = (0..job.members()).flat_map(|share| experts(job, share, stage)).collect();
        Shards::new(job, (0, stage), step::copies(job, stage), divided, false)
    }
    /// The experts of a share: those that have it.
    fn of_share(job: &Job, share: usize, stage: u16) -> Shards {
        let members = step::copies(job, stage).into_iter().filter(|rank| job.member(*rank) == share).collect();
        Shards::new(job, (share, stage), members, experts(job, share, stage), true)
    }
    fn new(job: &Job, (share, stage): (usize, u16), members: Vec<usize>, divided: BTreeSet<String>, experts: bool) -> Shards {
        let out = Shards { members, parts: None, names: BTreeMap::new(), experts, divided };
        if !job.sharded || out.members.len() < 2 {
            return out;
        }
        let elems = |e: &Entry| -> i64 {
            let stored = e.args.iter().filter(|p| p.role.is_stored() && p.role != Role::Tally);
            stored.map(|p| p.shape.iter().filter_map(base::Dim::known).product::<i64>() * p.dtype.bytes() as i64).sum()
        };
        let kept = |p: &&Port| matches!(p.role, Role::Param | Role::State | Role::Grad);
        let entries = &job.programs[share][usize::from(stage)].manifest.entries;
        let covered =
            |e: &&Entry| is_update(&e.name) && e.args.iter().chain(&e.outputs).filter(kept).all(|p| out.covers(&p.name));
        let updates: Vec<&Entry> = entries.iter().filter(covered).collect();
        let sizes: Vec<i64> = updates.iter().map(|e| elems(e)).collect();
        let (mut parts, mut names) = (BTreeMap::new(), BTreeMap::new());
        for (e, owner) in updates.into_iter().zip(share_out(&sizes, out.members.len())) {
            parts.insert(e.name.clone(), owner);
            names.extend(e.args.iter().chain(&e.outputs).filter(kept).map(|p| (p.name.clone(), owner)));
        }
        Shards { parts: Some(parts), names, ..out }
    }
    /// Whether a tensor is one of these.
    fn covers(&self, name: &str) -> bool {
        let param = name.rsplit_once('#').map_or(name, |(param, _)| param);
        self.divided.contains(param) == self.experts
    }
    /// The manifest with these parameters and states alone.
    pub fn part_of(&self, manifest: &Manifest) -> Manifest {
        let params = manifest.params.iter().filter(|p| self.covers(&p.name)).cloned().collect();
        Manifest { params, ..manifest.clone() }
    }
    /// Whether copies own parts.
    pub fn is_sharded(&self) -> bool {
        self.parts.is_some()
    }
    /// The copy that owns a parameter, a state or a gradient: the first one, if all have all.
    pub fn owner(&self, name: &str) -> usize {
        self.names.get(name).copied().unwrap_or(0)
    }
    /// The number of a rank among the copies.
    pub fn member(&self, rank: usize) -> Option<usize> {
        self.members.iter().position(|m| *m == rank)
    }
    fn runs(&self, rank: usize, entry: &str) -> bool {
        self.parts.as_ref().and_then(|p| p.get(entry)).is_none_or(|owner| self.members[*owner] == rank)
    }
    fn owns(&self, rank: usize, name: &str) -> bool {
        self.covers(name) && self.members[self.owner(name)] == rank
    }
    fn channel(&self, of: u32, stage: u16) -> Channel {
        Channel(of | u32::from(self.experts) << 16 | u32::from(stage))
    }
}

/// What a rank has of a stage, by whom it has it in common with.
pub(super) struct Held {
    rank: usize,
    /// What all copies have, and this rank's share of the experts if they are divided.
    pub shards: Vec<Shards>,
}

impl Held {
    /// Of a rank that has the stage.
    pub fn new(job: &Job, stage: u16, rank: usize) -> Held {
        let mut shards = vec![Shards::common(job, stage)];
        if !shards[0].divided.is_empty() {
            shards.push(Shards::of_share(job, job.member(rank), stage));
        }
        Held { rank, shards }
    }
    /// Whether the rank is the first of the stage's copies.
    pub fn is_first(&self) -> bool {
        self.shards[0].members[0] == self.rank
    }
    /// Whether the rank runs an entry.
    pub fn runs(&self, entry: &str) -> bool {
        self.shards.iter().all(|s| s.runs(self.rank, entry))
    }
    /// Whether the rank owns a parameter, a state or a gradient.
    pub fn owns(&self, name: &str) -> bool {
        self.shards.iter().any(|s| s.owns(self.rank, name))
    }
    /// Whether the rank writes a part of a checkpoint.
    pub fn writes(&self) -> bool {
        let owns = |s: &Shards| s.names.values().any(|m| s.members[*m] == self.rank);
        self.shards.iter().any(|s| s.members[0] == self.rank || owns(s))
    }
    /// The manifest with the parameters and states that the rank owns.
    pub fn owned(&self, manifest: &Manifest) -> Manifest {
        let params = manifest.params.iter().filter(|p| self.owns(&p.name)).cloned().collect();
        Manifest { params, ..manifest.clone() }
    }
}

impl Shards {
    fn among<'m>(&'m self, way: &'m dyn Direct, rank: usize, tag: Tag) -> Among<'m> {
        Among { way, members: &self.members, own: self.member(rank).expect("a stage of this rank"), tag }
    }
    /// Sums a stage's gradients, each where its owner is, and its tallies everywhere.
    pub fn reduce(&self, model: &mut Model, stage: u16) -> Result<(), ExecError> {
        if self.members.len() < 2 {
            return Ok(());
        }
        let step = model.step;
        let Model { sessions, sums, lent, .. } = model;
        let store = &mut sessions.get_mut(&stage).expect("a stage of this rank").store;
        for (number, role) in [Role::Grad, Role::Tally].into_iter().enumerate() {
            let owned = role == Role::Grad && self.is_sharded();
            let slots: Vec<_> = store.of_role(role).filter(|(n, _)| self.covers(n)).collect();
            // What all get is added up by all.
            let sizes: Vec<i64> = slots.iter().map(|(_, slot)| slot.memory.len() as i64).collect();
            let shared = share_out(&sizes, self.members.len());
            let owner = |i: usize, name: &str| if owned { self.owner(name) } else { shared[i] };
            let slots = slots.into_iter().enumerate().map(|(i, (name, slot))| (owner(i, name), slot)).collect();
            let tag = tag(b"SUMS", self.channel(step::COPIES, stage), (0, stage, number as u32), step);
            sums.reduce(&self.among(lent, model.rank, tag), slots, !owned)?;
        }
        Ok(())
    }
    /// Tells the other copies what this one has updated, and takes what they have.
    pub fn share_updates(&self, model: &mut Model, stage: u16) -> Result<(), ExecError> {
        if self.members.len() < 2 || !self.is_sharded() {
            return Ok(());
        }
        let tag = tag(b"NEXT", self.channel(UPDATED, stage), (0, stage, 0), model.step);
        let store = &mut model.sessions.get_mut(&stage).expect("a stage of this rank").store;
        let slots = store.iter_mut().filter(|((role, _), _)| matches!(role, Role::Param | Role::State));
        let mut slots: Vec<_> = slots.filter_map(|((_, name), slot)| Some((*self.names.get(name)?, slot))).collect();
        spread(&model.device, &self.among(&model.lent, model.rank, tag), &mut slots)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_go_first_and_to_who_has_least() {
        assert_eq!(share_out(&[1, 8, 3, 3, 1], 2), [1, 0, 1, 1, 1]);
        assert_eq!(share_out(&[5, 5, 5], 2), [0, 1, 0]);
        assert!(share_out(&[], 3).is_empty());
    }
}
