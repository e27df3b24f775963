//! Rows for several members of another node cross to it once: a rank packs what a node's members get from it, equal rows once, for one of
//! them, which hands each of the others its rows. A token whose experts lie on several ranks of a node is such a row: its copies have equal bytes.
//! Members of the same node send each other theirs as they are.
//! # Source: DeepSeek-V3 report, 2024, section 3.2.2: a token goes once to each node, and on to its experts' ranks inside.

use std::collections::{BTreeMap, HashMap};

/// The node of each member of a group.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ways(pub Vec<usize>);

impl Ways {
    /// Whether all members share a node.
    pub fn is_one(&self) -> bool {
        self.0.windows(2).all(|w| w[0] == w[1])
    }
    /// Whether some share one.
    pub fn are_shared(&self) -> bool {
        (0..self.0.len()).any(|m| self.0[..m].contains(&self.0[m]))
    }
    pub fn together(&self, a: usize, b: usize) -> bool {
        self.0[a] == self.0[b]
    }
    /// The members on the node of one of them, in order.
    pub fn beside(&self, member: usize) -> Vec<usize> {
        (0..self.0.len()).filter(|m| self.together(*m, member)).collect()
    }
    /// The members of each other node, from the next one on, so that not all send to the first node first.
    pub fn elsewhere(&self, member: usize) -> Vec<Vec<usize>> {
        let firsts: Vec<usize> = (0..self.0.len()).filter(|m| self.beside(*m)[0] == *m).collect();
        let own = firsts.iter().position(|f| self.together(*f, member)).expect("a member is on its node");
        (1..firsts.len()).map(|i| self.beside(firsts[(own + i) % firsts.len()])).collect()
    }
    /// Who of the node that these members share takes what `from` sends to it: who stands there where `from` stands on its own.
    pub fn relay(&self, from: usize, at: &[usize]) -> usize {
        let place = self.beside(from).iter().position(|m| *m == from).expect("a member is on its node");
        at[place % at.len()]
    }
}

/// Rows for the members of a node of which some are equal.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Once {
    /// Those that are sent: the first of each that are equal.
    pub rows: Vec<u32>,
    /// For each row which of them it is.
    pub places: Vec<u32>,
}

impl Once {
    /// Of rows, by a mark that equal ones have alike; none if all marks differ.
    pub fn new(given: &[u32], mark: impl Fn(u32) -> u64) -> Option<Once> {
        // It is only asked what it holds, so its order does not count.
        let mut seen: HashMap<u64, u32> = HashMap::with_capacity(given.len());
        let (mut rows, mut places) = (Vec::new(), Vec::with_capacity(given.len()));
        for row in given {
            places.push(*seen.entry(mark(*row)).or_insert_with(|| {
                rows.push(*row);
                rows.len() as u32 - 1
            }));
        }
        (rows.len() < given.len()).then_some(Once { rows, places })
    }
    /// Each row that is not sent with the one that is sent for it.
    pub fn pairs(&self, given: &[u32]) -> Vec<[u32; 2]> {
        let all = given.iter().zip(&self.places).map(|(row, place)| [*row, self.rows[*place as usize]]);
        all.filter(|[row, sent]| row != sent).collect()
    }
}

/// Parts of whole rows of `unit` bytes in one message: for each part its number of rows, then the place of each row among the different ones, then
/// those; and how many bytes those are.
pub(super) fn pack(parts: &[&[u8]], unit: usize) -> (Vec<u8>, usize) {
    let (mut places, mut rows): (BTreeMap<&[u8], u32>, Vec<&[u8]>) = (BTreeMap::new(), Vec::new());
    let (mut counts, mut list) = (Vec::new(), Vec::new());
    for part in parts {
        debug_assert!(part.len().is_multiple_of(unit), "{} bytes in rows of {unit}", part.len());
        counts.extend(((part.len() / unit) as u32).to_le_bytes());
        for row in part.chunks(unit) {
            let place = *places.entry(row).or_insert_with(|| {
                rows.push(row);
                rows.len() as u32 - 1
            });
            list.extend(place.to_le_bytes());
        }
    }
    let rows = rows.concat();
    let length = rows.len();
    ([counts, list, rows].concat(), length)
}

/// So many parts, of a message that [`pack`] made; none if it is damaged.
pub(super) fn unpack(message: &[u8], parts: usize, unit: usize) -> Option<Vec<Vec<u8>>> {
    let word = |bytes: &[u8]| bytes.as_chunks::<4>().0.first().map(|b| u32::from_le_bytes(*b) as usize);
    let (counts, rest) = message.split_at_checked(parts * 4)?;
    let counts = counts.chunks(4).map(word).collect::<Option<Vec<usize>>>()?;
    let all = counts.iter().try_fold(0usize, |n, c| n.checked_add(*c))?;
    let (list, rows) = rest.split_at_checked(all.checked_mul(4)?)?;
    let rows: Vec<&[u8]> = Some(rows.chunks(unit).collect()).filter(|_| rows.len().is_multiple_of(unit))?;
    let mut places = list.chunks(4).map(word);
    let part = |count: usize| {
        let mut out = Vec::new();
        for _ in 0..count {
            out.extend_from_slice(rows.get(places.next()??)?);
        }
        Some(out)
    };
    counts.into_iter().map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_packed_once() {
        let parts: [&[u8]; 4] = [b"aabbaa", b"", b"bbcccc", b"aa"];
        let (packed, rows) = pack(&parts, 2);
        // aa, bb, cc
        assert_eq!(rows, 6);
        assert_eq!(packed.len(), 4 * 4 + 7 * 4 + 6);
        assert_eq!(unpack(&packed, 4, 2), Some(parts.map(<[u8]>::to_vec).to_vec()));
        let nothing: [&[u8]; 2] = [b"", b""];
        assert_eq!(unpack(&pack(&nothing, 8).0, 2, 8), Some(vec![Vec::new(), Vec::new()]));
    }

    #[test]
    fn rows_that_are_equal_are_sent_once() {
        let mark = |row: u32| u64::from(row % 3);
        let given = [5, 4, 2, 8, 7];
        let once = Once::new(&given, mark).expect("some are equal");
        assert_eq!(once, Once { rows: vec![5, 4], places: vec![0, 1, 0, 0, 1] });
        assert_eq!(once.pairs(&given), [[2, 5], [8, 5], [7, 4]]);
        assert_eq!((Once::new(&[3, 4, 5], mark), Once::new(&[], mark)), (None, None));
    }

    #[test]
    fn a_damaged_message_is_none_and_never_a_panic() {
        let (packed, _) = pack(&[b"aabb", b"bbaa"], 2);
        for cut in 0..packed.len() {
            assert_eq!(unpack(&packed[..cut], 2, 2), None, "{cut}");
        }
        for at in 0..6 * 4 {
            let mut wrong = packed.clone();
            wrong[at] ^= 0xf0;
            assert_eq!(unpack(&wrong, 2, 2), None, "{at}");
        }
    }

    #[test]
    fn each_rank_of_a_node_takes_in_for_its_like() {
        // Five members on three nodes, the last alone.
        let ways = Ways(vec![0, 0, 2, 2, 4]);
        assert_eq!((ways.is_one(), Ways(vec![3, 3]).is_one(), ways.beside(3)), (false, true, vec![2, 3]));
        assert_eq!(ways.elsewhere(1), [vec![2, 3], vec![4]]);
        assert_eq!(ways.elsewhere(4), [vec![0, 1], vec![2, 3]]);
        assert_eq!([ways.are_shared(), Ways(vec![0, 1, 2]).are_shared()], [true, false]);
        let relay = |from: usize| ways.elsewhere(from).iter().map(|at| ways.relay(from, at)).collect::<Vec<_>>();
        assert_eq!([0, 1, 3, 4].map(relay), [[2, 4], [3, 4], [4, 1], [0, 2]]);
    }
}
