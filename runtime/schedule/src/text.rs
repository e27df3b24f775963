//! The text of a plan: a header, then a line a rank, its cells separated by commas.
//!
//! ```text
//! schedule 1f1b micro 2 placement 0 1
//! 0F0,0SEND_F0,0F1,0SEND_F1,0RECV_B0,0B0,…
//! 1RECV_F0,1F0,1B0,1SEND_B0,…
//! ```
//!
//! A cell is stage, kind, micro-batch, as torch.distributed.pipelining writes them: `3F0`, `3B0`, `3I0`, `3W0`, `(0F7;7B3)OVERLAP_F_B`, `1SEND_F2`,
//! `2RECV_F2`, `3REDUCE_GRAD`; the stage of a message is the one at whose end it stands. `d1:` before it is the direction, if that is not 0.
//! Ours alone are `1WAIT_SEND_F2`, `3RECOMPUTE0` and `3UPDATE`. Lines without the header are read too (empty cells are nothing): the
//! placement is then where the forwards are.

use crate::{Action, Message, Payload, Placement, Plan, ScheduleError, Unit};
use std::fmt::Write;

/// The whole text.
pub fn print(plan: &Plan) -> String {
    let dirs = plan.placement.ranks().iter().map(|d| d.iter().map(u32::to_string).collect::<Vec<_>>().join(" "));
    let header = format!("schedule {} micro {} placement {}\n", plan.policy, plan.num_micro, dirs.collect::<Vec<_>>().join("/"));
    header + &print_rows(plan)
}

/// Without the header: what torch's `_load_csv` reads, if the plan has one direction and no waits, recomputations and updates.
pub fn print_rows(plan: &Plan) -> String {
    let mut out = String::new();
    for list in &plan.actions {
        for (n, action) in list.iter().enumerate() {
            if n > 0 {
                out.push(',');
            }
            write_cell(&mut out, *action, plan.num_stages());
        }
        out.push('\n');
    }
    out
}

/// An action's text.
pub fn cell(action: Action, num_stages: usize) -> String {
    let mut out = String::new();
    write_cell(&mut out, action, num_stages);
    out
}

fn write_cell(out: &mut String, action: Action, num_stages: usize) {
    let done = match action {
        Action::Forward(u) => write_unit(out, u, "F"),
        Action::Backward(u) => write_unit(out, u, "B"),
        Action::BackwardInput(u) => write_unit(out, u, "I"),
        Action::BackwardWeight(u) => write_unit(out, u, "W"),
        Action::Recompute(u) => write_unit(out, u, "RECOMPUTE"),
        Action::Pair { forward, backward } => {
            out.push('(');
            let halves = write_unit(out, forward, "F").and_then(|()| {
                out.push(';');
                write_unit(out, backward, "B")
            });
            out.push_str(")OVERLAP_F_B");
            halves
        }
        Action::Send(m) => write_unit(out, m.unit, ["SEND_F", "SEND_B"][m.payload as usize]),
        Action::WaitSend(m) => write_unit(out, m.unit, ["WAIT_SEND_F", "WAIT_SEND_B"][m.payload as usize]),
        Action::Receive(m) => {
            // A message to nowhere has no cell of its own; its sender's stage will do, and it fails verification.
            write_unit(out, m.reader(num_stages).unwrap_or(m.unit), ["RECV_F", "RECV_B"][m.payload as usize])
        }
        Action::ReduceGrad { stage } => write!(out, "{stage}REDUCE_GRAD"),
        Action::Update { stage } => write!(out, "{stage}UPDATE"),
    };
    done.expect("strings can be written");
}

fn write_unit(out: &mut String, u: Unit, kind: &str) -> std::fmt::Result {
    if u.dir > 0 {
        write!(out, "d{}:", u.dir)?;
    }
    write!(out, "{}{kind}{}", u.stage, u.micro)
}

/// Reads a plan.
///
/// # Errors
/// E0404 with the line.
pub fn parse(text: &str) -> Result<Plan, ScheduleError> {
    let mut lines = text.lines().enumerate().map(|(n, l)| (n + 1, l)).peekable();
    let header = match lines.peek() {
        Some((n, line)) if line.starts_with("schedule ") => {
            Some(parse_header(line).map_err(|what| ScheduleError::Text { line: *n, what })?)
        }
        _ => None,
    };
    if header.is_some() {
        lines.next();
    }
    let mut actions = Vec::new();
    for (line, row) in lines {
        let cells = row.split(',').map(str::trim).filter(|c| !c.is_empty());
        let list: Result<Vec<Action>, String> = cells.map(parse_cell).collect();
        actions.push(list.map_err(|what| ScheduleError::Text { line, what })?);
    }
    let (policy, num_micro, placement) = match header {
        Some(header) => header,
        None => infer(&actions).map_err(|what| ScheduleError::Text { line: actions.len().max(1), what })?,
    };
    if placement.num_ranks() > actions.len() {
        let what = format!("the placement names rank {}, and there are {} lines", placement.num_ranks() - 1, actions.len());
        return Err(ScheduleError::Text { line: 1, what });
    }
    let placement = Placement::new(actions.len(), placement.ranks().to_vec());
    // Every unit has a forward and a backward. A number that is far off, such as a slip of the pen, is told before memory is set aside for it.
    let cells: usize = actions.iter().map(Vec::len).sum();
    let units = num_micro.saturating_mul(placement.num_dirs() * placement.num_stages());
    if units > 2 * cells + 16 {
        let what = format!("{num_micro} micro-batches through {} stages, and only {cells} cells", placement.num_stages());
        return Err(ScheduleError::Text { line: 1, what });
    }
    Ok(Plan { policy, placement, num_micro, actions })
}

fn parse_header(line: &str) -> Result<(String, usize, Placement), String> {
    let form = || "a header is 'schedule NAME micro N placement RANK RANK …/RANK …'".to_string();
    let (policy, rest) = line.strip_prefix("schedule ").and_then(|r| r.split_once(" micro ")).ok_or_else(form)?;
    let (micro, placement) = rest.split_once(" placement ").ok_or_else(form)?;
    let dir = |d: &str| d.split_whitespace().map(|r| r.parse().map_err(|_| form())).collect::<Result<Vec<u32>, _>>();
    let ranks = placement.split('/').map(dir).collect::<Result<Vec<_>, _>>()?;
    if ranks.iter().any(|r| r.is_empty() || r.len() != ranks[0].len()) {
        return Err("every direction has the same stages, and at least one".into());
    }
    let num = ranks.iter().flatten().max().map_or(0, |r| *r as usize + 1);
    Ok((policy.into(), micro.trim().parse().map_err(|_| form())?, Placement::new(num, ranks)))
}

/// The placement is where forwards are; the number of micro-batches is one more than the largest.
fn infer(actions: &[Vec<Action>]) -> Result<(String, usize, Placement), String> {
    let forwards = || actions.iter().enumerate().flat_map(|(r, l)| l.iter().filter_map(move |a| Some((r, a.forward()?))));
    let most = |of: fn(&Unit) -> usize| forwards().map(|(_, u)| of(&u) + 1).max().unwrap_or(0);
    let (dirs, stages, micro) = (most(|u| u.dir.into()), most(|u| u.stage.into()), most(|u| u.micro as usize));
    if dirs == 0 {
        return Err("no forward anywhere".into());
    }
    let mut ranks = vec![vec![None; stages]; dirs];
    for (rank, u) in forwards() {
        ranks[usize::from(u.dir)][usize::from(u.stage)].get_or_insert(rank as u32);
    }
    let found = |(d, dir): (usize, &Vec<Option<u32>>)| {
        let stage = |(s, rank): (usize, &Option<u32>)| rank.ok_or_else(|| format!("no forward of stage {s} in direction {d}"));
        dir.iter().enumerate().map(stage).collect::<Result<Vec<u32>, String>>()
    };
    let ranks = ranks.iter().enumerate().map(found).collect::<Result<_, _>>()?;
    Ok(("custom".into(), micro, Placement::new(actions.len(), ranks)))
}

fn parse_cell(cell: &str) -> Result<Action, String> {
    let bad = || format!("'{cell}' is no action");
    if let Some(halves) = cell.strip_prefix('(').and_then(|c| c.strip_suffix(")OVERLAP_F_B")) {
        let (forward, backward) = halves.split_once(';').ok_or_else(bad)?;
        return match (parse_cell(forward)?, parse_cell(backward)?) {
            (Action::Forward(forward), Action::Backward(backward)) => Ok(Action::Pair { forward, backward }),
            _ => Err(format!("'{cell}': a pair is a forward and a whole backward")),
        };
    }
    let (dir, rest) = match cell.strip_prefix('d').and_then(|c| c.split_once(':')) {
        Some((dir, rest)) => (dir.parse().map_err(|_| bad())?, rest),
        None => (0, cell),
    };
    let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (stage, rest) = rest.split_at(digits);
    let stage = stage.parse().map_err(|_| bad())?;
    let kind = rest.trim_end_matches(|c: char| c.is_ascii_digit());
    if kind == "REDUCE_GRAD" || kind == "UPDATE" {
        let plain = dir == 0 && rest == kind;
        let action = if kind == "UPDATE" { Action::Update { stage } } else { Action::ReduceGrad { stage } };
        return if plain { Ok(action) } else { Err(bad()) };
    }
    let unit = Unit { dir, stage, micro: rest[kind.len()..].parse().map_err(|_| bad())? };
    let message = |payload| Message { payload, unit };
    let sent = |payload| {
        let from = match payload {
            Payload::Activation => stage.checked_sub(1),
            Payload::Gradient => stage.checked_add(1),
        };
        let unit = from.map(|stage| Unit { stage, ..unit }).ok_or_else(|| format!("'{cell}': nothing comes before stage 0"));
        Ok::<_, String>(Message { payload, unit: unit? })
    };
    Ok(match kind {
        "F" => Action::Forward(unit),
        "B" => Action::Backward(unit),
        "I" => Action::BackwardInput(unit),
        "W" => Action::BackwardWeight(unit),
        "RECOMPUTE" => Action::Recompute(unit),
        "SEND_F" => Action::Send(message(Payload::Activation)),
        "SEND_B" => Action::Send(message(Payload::Gradient)),
        "WAIT_SEND_F" => Action::WaitSend(message(Payload::Activation)),
        "WAIT_SEND_B" => Action::WaitSend(message(Payload::Gradient)),
        "RECV_F" => Action::Receive(sent(Payload::Activation)?),
        "RECV_B" => Action::Receive(sent(Payload::Gradient)?),
        _ => return Err(bad()),
    })
}
