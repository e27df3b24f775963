//! What all ranks do together, over sends and receives. Sums are taken in order of rank, so they have the same bits on every rank and for
//! every fabric.

use crate::{Channel, Fabric, FabricError};
use std::ops::Range;

/// What sums are taken of, in its own precision.
pub trait Number: Copy + std::ops::AddAssign {
    /// Of one. # Units: bytes.
    const BYTES: usize;
    /// From the nearest.
    fn of(x: f64) -> Self;
    /// As it is.
    fn wide(self) -> f64;
    /// Adds its bytes.
    fn put(self, to: &mut Vec<u8>);
    /// From so many bytes.
    fn get(bytes: &[u8]) -> Self;
}

macro_rules! number {
    ($t:ty, $of:expr) => {
        impl Number for $t {
            const BYTES: usize = size_of::<$t>();
            fn of(x: f64) -> $t {
                $of(x)
            }
            fn wide(self) -> f64 {
                f64::from(self)
            }
            fn put(self, to: &mut Vec<u8>) {
                to.extend(self.to_le_bytes());
            }
            fn get(bytes: &[u8]) -> $t {
                <$t>::from_le_bytes(bytes.try_into().expect("as many as it has"))
            }
        }
    };
}
number!(f32, |x| x as f32);
number!(f64, |x| x);

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

/// Every rank gets the sum of all ranks' numbers, each element summed in order of rank by the rank that owns its part.
///
/// # Errors
/// As [`Fabric::receive`].
pub fn all_reduce<N: Number>(f: &dyn Fabric, x: &mut [N]) -> Result<(), FabricError> {
    let sum = reduce_scatter(f, x)?;
    let part = |r: usize| part(x.len(), f.size(), r);
    let mine = to_bytes(&sum);
    for to in (1..f.size()).map(|i| (f.rank() + i) % f.size()) {
        f.send(to, CHANNEL, &mine)?;
    }
    let parts: Vec<_> = (0..f.size()).map(part).collect();
    for (from, range) in parts.into_iter().enumerate() {
        if from == f.rank() {
            x[range].copy_from_slice(&sum);
            continue;
        }
        let mut bytes = vec![0; range.len() * N::BYTES];
        f.receive(from, CHANNEL, &mut bytes)?;
        x[range].copy_from_slice(&from_bytes(&bytes));
    }
    Ok(())
}

/// The part of the sum of all ranks' numbers that this rank owns; see [`part`].
///
/// # Errors
/// As [`Fabric::receive`].
pub fn reduce_scatter<N: Number>(f: &dyn Fabric, x: &[N]) -> Result<Vec<N>, FabricError> {
    let parts: Vec<_> = (0..f.size()).map(|r| part(x.len(), f.size(), r)).collect();
    reduce_ranges(f, x, &parts)
}

/// The sum of all ranks' numbers of this rank's range, in order of rank; `ranges` are those of all ranks.
///
/// # Errors
/// As [`Fabric::receive`].
pub fn reduce_ranges<N: Number>(f: &dyn Fabric, x: &[N], ranges: &[Range<usize>]) -> Result<Vec<N>, FabricError> {
    let parts: Vec<Vec<u8>> = ranges.iter().map(|r| to_bytes(&x[r.clone()])).collect();
    let mine = ranges[f.rank()].len();
    let arrived = all_to_all(f, &parts, &vec![mine * N::BYTES; f.size()])?;
    let mut sum: Vec<N> = from_bytes(&arrived[0]);
    for other in &arrived[1..] {
        sum.iter_mut().zip(from_bytes(other)).for_each(|(s, x)| *s += x);
    }
    Ok(sum)
}

/// The elements that rank `rank` of `size` owns of `n`: even parts, the first ones longer by one.
pub fn part(n: usize, size: usize, rank: usize) -> Range<usize> {
    let (each, more) = (n / size, n % size);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

fn to_bytes<N: Number>(x: &[N]) -> Vec<u8> {
    let mut out = Vec::with_capacity(x.len() * N::BYTES);
    x.iter().for_each(|x| x.put(&mut out));
    out
}

fn from_bytes<N: Number>(bytes: &[u8]) -> Vec<N> {
    bytes.chunks_exact(N::BYTES).map(N::get).collect()
}
