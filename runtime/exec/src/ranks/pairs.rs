//! Pairs of a schedule: where ranks divide experts, the forward of one micro-batch and the backward of another run as one list, so that rows of one travel while the
//! other computes. The bits are those of one after the other, see [`crate::pair`]; a pair of which a stage exchanges no rows runs so.

use super::{Job, model::Model};
use crate::{
    ExecError,
    kept::Pool,
    pair::{Half, Resolved},
    peers,
};
use base::DimEnv;
use device::{Device, Memory, Placed};
use schedule::{Action, Payload, Unit};
use std::{
    cell::Cell,
    collections::{BTreeMap, BTreeSet},
    time::Instant,
};

/// A rank's pairs, by the stage that goes forward and the one that goes backward.
#[derive(Default)]
pub(super) struct Pairs {
    lists: BTreeMap<(u16, u16), Listed>,
    /// For what exchanges copy while the device computes.
    beside: Option<Device>,
}

struct Listed {
    of: Resolved,
    list: Vec<Placed>,
}

impl Pairs {
    /// Those of a rank that can run as lists, with all their memory. All of a group come to the same.
    ///
    /// # Errors
    /// E0703.
    pub fn new(
        job: &Job,
        rank: usize,
        sessions: &mut BTreeMap<u16, crate::Session>,
        device: &Device,
        dims: &DimEnv,
    ) -> Result<Pairs, ExecError> {
        let of = |a: &Action| match a {
            Action::Pair { forward, backward } => Some((forward.stage, backward.stage)),
            Action::Forward(_) | Action::Backward(_) | Action::BackwardInput(_) | Action::BackwardWeight(_) => None,
            Action::Send(_) | Action::Receive(_) | Action::WaitSend(_) | Action::Recompute(_) => None,
            Action::ReduceGrad { .. } | Action::Update { .. } => None,
        };
        let all: BTreeSet<(u16, u16)> = job.plan.actions[rank].iter().filter_map(of).collect();
        let mut lists = BTreeMap::new();
        for (ahead, back) in all.into_iter().filter(|(ahead, back)| ahead != back) {
            let mut forward = sessions.remove(&ahead).expect("a stage of this rank");
            let backward = sessions.get_mut(&back).expect("a stage of this rank");
            let made = Resolved::of_two(&mut forward, backward, dims)
                .and_then(|of| Ok(Listed { list: of.interleaved(&forward.manifest)?, of }));
            sessions.insert(ahead, forward);
            match made {
                Ok(listed) => _ = lists.insert((ahead, back), listed),
                // Layers of several kinds, or none that has rows to exchange.
                Err(ExecError::Input { .. }) => {}
                Err(e) => return Err(e),
            }
        }
        let beside = if lists.is_empty() { None } else { device.beside()? };
        Ok(Pairs { lists, beside })
    }
    /// Memory of their own. # Units: bytes.
    pub fn bytes(&self) -> u64 {
        self.lists.values().map(|l| l.of.bytes()).sum()
    }
}

/// What a stage hands over.
type Parcel = Vec<Memory>;

/// Runs a pair: what each half hands over. As one list if there is one.
pub(super) fn run(model: &mut Model, ahead: (Unit, Parcel), back: (Unit, Parcel)) -> Result<[Parcel; 2], ExecError> {
    let (stages, since) = ((ahead.0.stage, back.0.stage), Instant::now());
    let Some(Listed { mut of, list }) = model.pairs.lists.remove(&stages) else {
        use super::Compute;
        return Ok([model.forward(ahead.0, ahead.1)?, model.backward(back.0, back.1)?]);
    };
    let done = run_list(model, (&mut of, &list), ahead, back);
    model.pairs.lists.insert(stages, Listed { of, list });
    model.counts.add_pair(since);
    done
}

fn run_list(
    model: &mut Model,
    (of, list): (&mut Resolved, &[Placed]),
    (ahead, input): (Unit, Parcel),
    (back, gradient): (Unit, Parcel),
) -> Result<[Parcel; 2], ExecError> {
    let device = model.device.clone();
    let first_row = model.number(ahead) * model.shapes[0].rows;
    let mut forward = model.taken_by_forward(ahead.stage, 0, first_row, input)?;
    let mut backward = model.taken_by_backward(back, gradient);
    of.take_in(Half::Forward, &device, &mut forward)?;
    of.take_in(Half::Backward, &device, &mut backward)?;
    each_entry(model, (ahead, back), |k, session| of.send(k, &mut session.store))?;
    // The list orders its own steps alone.
    device.wait()?;
    let waited = Cell::default();
    let sent = |bytes| model.lent.count_rows(bytes);
    let carry = model.carry(&waited, &sent);
    // SAFETY: `Pairs::new` resolved every pointer into memory of the sessions' stores and of the pair, which live.
    let ran = unsafe { peers::run_list(&device, model.pairs.beside.as_ref(), &of.program, list, &carry) };
    each_entry(model, (ahead, back), |k, session| {
        of.written(k, &mut session.store);
        Ok(())
    })?;
    ran?;
    let mut back_made = Pool::new();
    of.give_out(Half::Forward, &device, (&mut forward, &mut model.shelf), |_| true)?;
    of.give_out(Half::Backward, &device, (&mut back_made, &mut model.shelf), |name| name.starts_with("d_in."))?;
    device.wait()?;
    let made = model.encode(ahead.stage, Payload::Activation, &mut forward);
    model.keep_forward(ahead, forward)?;
    let gradient = model.encode(back.stage, Payload::Gradient, &mut back_made);
    for mut pool in [backward, back_made] {
        model.shelf.retain(&mut pool, |_| false);
    }
    Ok([made, gradient])
}

/// For each entry of a pair its session.
fn each_entry(
    model: &mut Model,
    (ahead, back): (Unit, Unit),
    mut f: impl FnMut(usize, &mut crate::Session) -> Result<(), ExecError>,
) -> Result<(), ExecError> {
    for (k, stage) in [ahead.stage, back.stage, back.stage].into_iter().enumerate() {
        f(k, model.sessions.get_mut(&stage).expect("a stage of this rank"))?;
    }
    Ok(())
}
