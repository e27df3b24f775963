//! Which rank runs which stage.

use crate::Unit;

/// For every direction and stage the rank that runs it. All directions have the same stages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Placement {
    num_ranks: usize,
    /// By direction, then by stage.
    ranks: Vec<Vec<u32>>,
}

impl Placement {
    /// From the ranks of each direction's stages.
    ///
    /// # Panics
    /// If directions differ in their number of stages, or there is none.
    pub fn new(num_ranks: usize, ranks: Vec<Vec<u32>>) -> Placement {
        assert!(
            !ranks.is_empty() && ranks.iter().all(|r| !r.is_empty() && r.len() == ranks[0].len()),
            "directions with the same stages"
        );
        assert!(ranks.iter().flatten().all(|r| (*r as usize) < num_ranks), "ranks below {num_ranks}");
        Placement { num_ranks, ranks }
    }

    /// Stage r on rank r.
    pub fn linear(ranks: usize) -> Placement {
        Placement::looped(ranks, 1)
    }

    /// Stage s on rank s mod `ranks`, `chunks` stages a rank.
    pub fn looped(ranks: usize, chunks: usize) -> Placement {
        Placement::new(ranks, vec![(0..ranks * chunks).map(|s| (s % ranks) as u32).collect()])
    }

    /// Down and up again: stages r and 2·`ranks` − 1 − r on rank r.
    pub fn v(ranks: usize) -> Placement {
        Placement::new(ranks, vec![(0..ranks).chain((0..ranks).rev()).map(|r| r as u32).collect()])
    }

    /// Both ways: stage r of direction 0 and stage `ranks` − 1 − r of direction 1 on rank r.
    pub fn mirrored(ranks: usize) -> Placement {
        Placement::new(ranks, vec![(0..ranks as u32).collect(), (0..ranks as u32).rev().collect()])
    }

    /// This many copies side by side, as data parallelism has them: copy c's direction d is direction `c · directions + d`, its rank r rank
    /// `c · ranks + r`.
    pub fn copies(&self, copies: usize) -> Placement {
        let shift = |c: usize| self.ranks.iter().map(move |d| d.iter().map(|r| r + (c * self.num_ranks) as u32).collect());
        Placement::new(copies * self.num_ranks, (0..copies).flat_map(shift).collect())
    }

    /// How many ranks there are.
    pub fn num_ranks(&self) -> usize {
        self.num_ranks
    }

    /// How many stages the model is cut into.
    pub fn num_stages(&self) -> usize {
        self.ranks[0].len()
    }

    /// How many directions there are.
    pub fn num_dirs(&self) -> usize {
        self.ranks.len()
    }

    /// The rank that runs a stage, if there is that direction and stage.
    pub fn rank(&self, dir: u16, stage: u16) -> Option<usize> {
        Some(*self.ranks.get(usize::from(dir))?.get(usize::from(stage))? as usize)
    }

    /// The rank that runs a unit, if there is its direction and stage.
    pub fn rank_of(&self, unit: Unit) -> Option<usize> {
        self.rank(unit.dir, unit.stage)
    }

    /// The ranks that hold a stage's parameters, in ascending order: whom a [`crate::Action::ReduceGrad`] is among.
    pub fn holders(&self, stage: u16) -> Vec<usize> {
        let mut out: Vec<usize> = (0..self.num_dirs()).filter_map(|d| self.rank(d as u16, stage)).collect();
        out.sort_unstable();
        out.dedup();
        out
    }

    /// The stages on each rank, in ascending order, each once.
    pub fn stages_by_rank(&self) -> Vec<Vec<u16>> {
        let mut out = vec![Vec::new(); self.num_ranks];
        for dir in &self.ranks {
            dir.iter().enumerate().for_each(|(s, r)| out[*r as usize].push(s as u16));
        }
        for stages in &mut out {
            stages.sort_unstable();
            stages.dedup();
        }
        out
    }

    /// By direction, then by stage.
    pub fn ranks(&self) -> &[Vec<u32>] {
        &self.ranks
    }
}
