//! Who this process is among the ranks: from flags, or from what launchers put into the environment. The first complete set counts.

use crate::FabricError;

/// A rank and where the ranks meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct World {
    /// This rank's number.
    pub rank: usize,
    /// How many ranks there are.
    pub size: usize,
    /// This rank's number on its machine: which device it takes.
    pub local_rank: usize,
    /// Where rank 0 listens, `host:port`; not needed for a world of one.
    pub rendezvous: Option<String>,
    /// Where that was read.
    pub source: &'static str,
}

/// What the command line says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--rank`.
    pub rank: Option<usize>,
    /// `--world-size`.
    pub size: Option<usize>,
    /// `--local-rank`.
    pub local_rank: Option<usize>,
    /// `--rendezvous`.
    pub rendezvous: Option<String>,
}

/// Variables of a launcher: rank, size, local rank.
struct Launcher {
    name: &'static str,
    rank: &'static str,
    size: &'static str,
    local_rank: &'static str,
}

/// In order of trust. Open MPI also sets PMIX's variables, and MPICH's may be left in a Slurm job.
const LAUNCHERS: &[Launcher] = &[
    Launcher { name: "torchrun", rank: "RANK", size: "WORLD_SIZE", local_rank: "LOCAL_RANK" },
    Launcher {
        name: "Open MPI",
        rank: "OMPI_COMM_WORLD_RANK",
        size: "OMPI_COMM_WORLD_SIZE",
        local_rank: "OMPI_COMM_WORLD_LOCAL_RANK",
    },
    Launcher { name: "MPICH", rank: "PMI_RANK", size: "PMI_SIZE", local_rank: "MPI_LOCALRANKID" },
    Launcher { name: "Slurm", rank: "SLURM_PROCID", size: "SLURM_NTASKS", local_rank: "SLURM_LOCALID" },
    Launcher { name: "Kubernetes", rank: "JOB_COMPLETION_INDEX", size: "JOB_COMPLETIONS", local_rank: "LODE_LOCAL_RANK" },
];

/// The port of rank 0 where only its host is known.
const PORT: u16 = 29_400;

/// A number for this machine that others do not have: ranks that tell the same share one. Of what the system draws when it starts, else of the machine's name.
pub fn machine() -> u64 {
    let text = ["/proc/sys/kernel/random/boot_id", "/etc/machine-id", "/etc/hostname"]
        .iter()
        .find_map(|p| std::fs::read_to_string(p).ok());
    let text = text.or_else(|| std::env::var("HOSTNAME").ok()).unwrap_or_default();
    // FNV-1a. # Source: Fowler, Noll, Vo, 1991.
    text.trim().bytes().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Reads flags, then the environment through `env`; a world of one if both are silent.
///
/// # Errors
/// E0426 if a set of variables is complete but wrong, or more than one rank has no place to meet.
pub fn discover(flags: &Flags, env: &dyn Fn(&str) -> Option<String>) -> Result<World, FabricError> {
    let found = match (flags.rank, flags.size) {
        (Some(rank), Some(size)) => Some(("flags", rank, size, flags.local_rank)),
        (None, None) => None,
        (Some(_), None) => return Err(wrong("flags", "--rank without --world-size".into())),
        (None, Some(_)) => return Err(wrong("flags", "--world-size without --rank".into())),
    };
    let found = match found {
        Some(found) => Some(found),
        None => from_environment(env)?,
    };
    let Some((source, rank, size, local_rank)) = found else {
        return Ok(World { rank: 0, size: 1, local_rank: 0, rendezvous: None, source: "nothing" });
    };
    if rank >= size {
        return Err(wrong(source, format!("rank {rank} of {size} ranks")));
    }
    let rendezvous = flags.rendezvous.clone().or_else(|| meeting_place(env));
    if size > 1 && rendezvous.is_none() {
        return Err(wrong(source, "nothing says where rank 0 listens (MASTER_ADDR and MASTER_PORT, or LODE_RENDEZVOUS)".into()));
    }
    Ok(World { rank, size, local_rank: local_rank.unwrap_or(rank), rendezvous, source })
}

type Found = (&'static str, usize, usize, Option<usize>);

fn from_environment(env: &dyn Fn(&str) -> Option<String>) -> Result<Option<Found>, FabricError> {
    for l in LAUNCHERS {
        let number = |name: &'static str| match env(name) {
            Some(text) => {
                let n = text.trim().parse::<usize>().map_err(|_| wrong(l.name, format!("{name} is '{text}', not a number")))?;
                Ok(Some(n))
            }
            None => Ok(None),
        };
        if let (Some(rank), Some(size)) = (number(l.rank)?, number(l.size)?) {
            return Ok(Some((l.name, rank, size, number(l.local_rank)?)));
        }
    }
    Ok(None)
}

fn meeting_place(env: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let port = env("MASTER_PORT").unwrap_or_else(|| PORT.to_string());
    let slurm = || env("SLURM_STEP_NODELIST").or_else(|| env("SLURM_JOB_NODELIST")).map(|list| first_host(&list));
    env("LODE_RENDEZVOUS").or_else(|| env("MASTER_ADDR").or_else(slurm).map(|host| format!("{host}:{port}")))
}

/// The first host of Slurm's shorthand: `gpu[03-05,09],cpu1` is `gpu03`.
fn first_host(list: &str) -> String {
    let Some((prefix, rest)) = list.split_once('[').filter(|(prefix, _)| !prefix.contains(',')) else {
        return list.split(',').next().unwrap_or(list).to_string();
    };
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    let suffix = rest.split_once(']').map_or("", |(_, after)| after.split(',').next().unwrap_or(""));
    format!("{prefix}{digits}{suffix}")
}

fn wrong(source_name: &'static str, what: String) -> FabricError {
    FabricError::Discovery { source_name, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(vars: &[(&str, &str)]) -> Result<World, FabricError> {
        discover(&Flags::default(), &|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn every_launcher_is_understood() {
        let cases: &[(&[(&str, &str)], (usize, usize, usize), &str, &str)] = &[
            (
                &[("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "7")],
                (3, 8, 1),
                "torchrun",
                "a:7",
            ),
            (
                &[
                    ("OMPI_COMM_WORLD_RANK", "2"),
                    ("OMPI_COMM_WORLD_SIZE", "4"),
                    ("OMPI_COMM_WORLD_LOCAL_RANK", "0"),
                    ("LODE_RENDEZVOUS", "b:1"),
                ],
                (2, 4, 0),
                "Open MPI",
                "b:1",
            ),
            (
                &[("PMI_RANK", "1"), ("PMI_SIZE", "2"), ("MPI_LOCALRANKID", "1"), ("MASTER_ADDR", "c")],
                (1, 2, 1),
                "MPICH",
                "c:29400",
            ),
            (
                &[
                    ("SLURM_PROCID", "5"),
                    ("SLURM_NTASKS", "6"),
                    ("SLURM_LOCALID", "2"),
                    ("SLURM_JOB_NODELIST", "gpu[03-05,09],cpu1"),
                ],
                (5, 6, 2),
                "Slurm",
                "gpu03:29400",
            ),
            (
                &[("JOB_COMPLETION_INDEX", "0"), ("JOB_COMPLETIONS", "2"), ("MASTER_ADDR", "d")],
                (0, 2, 0),
                "Kubernetes",
                "d:29400",
            ),
        ];
        for (vars, (rank, size, local_rank), source, place) in cases {
            let want = World { rank: *rank, size: *size, local_rank: *local_rank, rendezvous: Some(place.to_string()), source };
            assert_eq!(with(vars), Ok(want));
        }
        assert_eq!(with(&[]).map(|w| (w.rank, w.size)), Ok((0, 1)));
    }

    #[test]
    fn flags_come_first_and_mistakes_are_told() {
        let env = |name: &str| (name == "RANK" || name == "WORLD_SIZE").then(|| "9".to_string());
        let flags = Flags { rank: Some(1), size: Some(2), local_rank: None, rendezvous: Some("h:1".into()) };
        assert_eq!(discover(&flags, &env).map(|w| (w.rank, w.size, w.source)), Ok((1, 2, "flags")));
        assert!(discover(&Flags { size: None, ..flags }, &env).is_err());
        for vars in [
            &[("RANK", "2"), ("WORLD_SIZE", "2"), ("MASTER_ADDR", "a")][..],
            &[("RANK", "x"), ("WORLD_SIZE", "2")],
            &[("RANK", "0"), ("WORLD_SIZE", "2")],
        ] {
            assert!(matches!(with(vars), Err(FabricError::Discovery { .. })), "{vars:?}");
        }
    }

    #[test]
    fn slurm_lists_name_their_first_host() {
        for (list, first) in [("a1", "a1"), ("a1,b[1-2]", "a1"), ("n[08-12]", "n08"), ("n[3,5]-ib,m", "n3-ib")] {
            assert_eq!(first_host(list), first);
        }
    }
}
