//! From the ids of an input to nodes that count from 0.

use rayon::prelude::*;

use super::{Nodes, ReadError};

/// Edges by the ids of the input, in half the memory while all ids fit 32 bits.
pub(super) enum Ids {
    Narrow(Vec<[u32; 2]>),
    Wide(Vec<[u64; 2]>),
}

impl Ids {
    pub(super) fn new() -> Self {
        Self::Narrow(Vec::new())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::Narrow(pairs) => pairs.len(),
            Self::Wide(pairs) => pairs.len(),
        }
    }

    pub(super) fn push(&mut self, pair: [u64; 2]) {
        match (&mut *self, pair.map(u32::try_from)) {
            (Self::Narrow(pairs), [Ok(source), Ok(target)]) => pairs.push([source, target]),
            _ => self.wide().push(pair),
        }
    }

    pub(super) fn append(&mut self, other: Self) {
        match (&mut *self, other) {
            (Self::Narrow(pairs), Self::Narrow(mut more)) => pairs.append(&mut more),
            (_, Self::Narrow(more)) => self.wide().extend(more.into_iter().map(widen)),
            (_, Self::Wide(mut more)) => self.wide().append(&mut more),
        }
    }

    fn wide(&mut self) -> &mut Vec<[u64; 2]> {
        if let Self::Narrow(pairs) = self {
            *self = Self::Wide(std::mem::take(pairs).into_iter().map(widen).collect());
        }
        match self {
            Self::Wide(pairs) => pairs,
            Self::Narrow(_) => unreachable!("it has just been widened"),
        }
    }

    /// Numbers the ids that occur, ascending.
    pub(super) fn number(self) -> Result<(Vec<[u32; 2]>, Nodes), ReadError> {
        match self {
            Self::Narrow(mut pairs) => {
                let nodes = number_narrow(std::slice::from_mut(&mut pairs));
                Ok((pairs, nodes))
            }
            Self::Wide(pairs) => number_wide(&pairs),
        }
    }
}

fn widen(pair: [u32; 2]) -> [u64; 2] {
    pair.map(u64::from)
}

/// By a table of all ids up to the largest: 4 bytes each, at most 16 GiB for 32 bits.
pub(super) fn number_narrow(pieces: &mut [Vec<[u32; 2]>]) -> Nodes {
    let count: usize = pieces.iter().map(Vec::len).sum();
    let pairs = pieces.par_iter().flat_map(|pairs| pairs.par_iter());
    let Some(largest) = pairs.clone().map(|pair| pair[0].max(pair[1])).max() else {
        return Nodes::Range(0);
    };
    // A few edges with large ids are looked up rather than given a table of gigabytes.
    if largest as usize / 16 > count + (1 << 16) {
        let ids = distinct(pairs.flatten_iter().copied().collect());
        renumber(pieces, |id| place(&ids, &id));
        return Nodes::Ids(ids.into_iter().map(u64::from).collect());
    }
    let mut node_of = vec![0_u32; largest as usize + 1];
    for id in pieces.iter().flatten().flatten() {
        node_of[*id as usize] = 1;
    }
    let mut count = 0;
    let mut ids = Vec::new();
    for (id, node) in node_of.iter_mut().enumerate() {
        if *node == 1 {
            *node = count;
            count += 1;
            ids.push(id as u64);
        }
    }
    if count == largest.wrapping_add(1) {
        return Nodes::Range(count);
    }
    renumber(pieces, |id| node_of[id as usize]);
    Nodes::Ids(ids.into())
}

fn renumber(pieces: &mut [Vec<[u32; 2]>], number: impl Fn(u32) -> u32 + Sync) {
    let pairs = pieces.par_iter_mut().flat_map(|pairs| pairs.par_iter_mut());
    pairs.flatten_iter().for_each(|id| *id = number(*id));
}

fn number_wide(pairs: &[[u64; 2]]) -> Result<(Vec<[u32; 2]>, Nodes), ReadError> {
    let ids = distinct(pairs.par_iter().flatten_iter().copied().collect());
    if u32::try_from(ids.len()).is_err() {
        return Err(ReadError::TooManyNodes);
    }
    let pairs =
        pairs.par_iter().map(|pair| [place(&ids, &pair[0]), place(&ids, &pair[1])]).collect();
    Ok((pairs, Nodes::Ids(ids.into())))
}

fn distinct<T: Ord + Send>(mut ids: Vec<T>) -> Vec<T> {
    ids.par_sort_unstable();
    ids.dedup();
    ids
}

/// Where an id is among all that occur, itself included.
fn place<T: Ord>(ids: &[T], id: &T) -> u32 {
    ids.binary_search(id).unwrap_or_default() as u32
}
