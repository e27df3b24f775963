//! What all ranks do together, over sends and receives.

use crate::{Channel, Fabric, FabricError};

const CHANNEL: Channel = Channel::COLLECTIVE;

/// Returns once every rank has called it.
///
/// # Errors
/// As [`Fabric::receive`].
pub fn barrier(f: &dyn Fabric) -> Result<(), FabricError> {
    all_gather(f, &[]).map(drop)
}

/// Every rank gets the bytes of rank `root`.
///
/// # Errors
/// As [`Fabric::receive`].
pub fn broadcast(f: &dyn Fabric, root: usize, bytes: &mut [u8]) -> Result<(), FabricError> {
    if f.rank() != root {
        return f.receive(root, CHANNEL, bytes);
    }
    (0..f.size()).filter(|r| *r != root).try_for_each(|to| f.send(to, CHANNEL, bytes))
}

/// The bytes of every rank, in order; all have the same length.
///
/// # Errors
/// As [`Fabric::receive`].
pub fn all_gather(f: &dyn Fabric, bytes: &[u8]) -> Result<Vec<Vec<u8>>, FabricError> {
    let parts = vec![bytes.to_vec(); f.size()];
    all_to_all(f, &parts, &vec![bytes.len(); f.size()])
}

/// Rank r gets part r of every rank; `lengths` are those of the parts that come. # Units: bytes.
///
/// # Errors
/// As [`Fabric::receive`].
pub fn all_to_all(f: &dyn Fabric, parts: &[Vec<u8>], lengths: &[usize]) -> Result<Vec<Vec<u8>>, FabricError> {
    let (rank, size) = (f.rank(), f.size());
    // Each begins with its neighbour, so that not all send to rank 0 first.
    for to in (1..size).map(|i| (rank + i) % size) {
        f.send(to, CHANNEL, &parts[to])?;
    }
    let mut out: Vec<Vec<u8>> = lengths.iter().map(|n| vec![0; *n]).collect();
    for from in 0..size {
        if from == rank {
            out[from].clone_from(&parts[rank]);
        } else {
            f.receive(from, CHANNEL, &mut out[from])?;
        }
    }
    Ok(out)
}
