//! Edges into rows by their target, as graph libraries keep them: a counting sort in two passes on two
//! threads, edges dealt into ranges of nodes that the cache holds and sorted there.

use std::hint::black_box;
use std::slice::{ChunksMut, IterMut};
use std::time::Instant;

use rayon::prelude::*;

use crate::harness::{Slice, Wrong, expect};
use crate::ours::pagerank::{SPARSE, TWO, repeat};

const RANGES: usize = 256;

struct Rows {
    /// Where each node's row begins.
    starts: Vec<u32>,
    sources: Vec<u32>,
    out_degrees: Vec<u32>,
}

fn rows(nodes: usize, edges: &[[u32; 2]]) -> Rows {
    let width = nodes.div_ceil(RANGES).next_power_of_two();
    let shift = width.trailing_zeros();
    let ranges = nodes.div_ceil(width);
    let parts: Vec<&[[u32; 2]]> = edges.chunks(edges.len().div_ceil(2)).collect();
    let counted: Vec<(Vec<usize>, Vec<u32>)> = parts
        .par_iter()
        .map(|part| {
            let (mut counts, mut leaving) = (vec![0; ranges], vec![0; nodes]);
            for [source, target] in *part {
                counts[(target >> shift) as usize] += 1;
                leaving[*source as usize] += 1;
            }
            (counts, leaving)
        })
        .collect();
    let mut dealt = vec![[0_u32; 2]; edges.len()];
    let mut rest = &mut dealt[..];
    let mut places: Vec<Vec<IterMut<'_, [u32; 2]>>> = parts.iter().map(|_| Vec::new()).collect();
    for range in 0..ranges {
        for ((counts, _), places) in counted.iter().zip(&mut places) {
            places.push(rest.split_off_mut(..counts[range]).unwrap_or_default().iter_mut());
        }
    }
    parts.par_iter().zip(&mut places).for_each(|(part, places)| {
        for pair in *part {
            if let Some(place) = places[(pair[1] >> shift) as usize].next() {
                *place = *pair;
            }
        }
    });
    let (mut starts, mut sources) = (vec![0_u32; nodes], vec![0_u32; edges.len()]);
    let mut work = Vec::with_capacity(ranges);
    let (mut first, mut dealt, mut left) = (0, &dealt[..], &mut sources[..]);
    let in_ranges: ChunksMut<'_, u32> = starts.chunks_mut(width);
    for (range, starts) in in_ranges.enumerate() {
        let count = counted.iter().map(|(counts, _)| counts[range]).sum();
        let own = dealt.split_off(..count).unwrap_or_default();
        work.push((first, starts, own, left.split_off_mut(..count).unwrap_or_default()));
        first += count as u32;
    }
    work.into_par_iter().for_each(|(first, starts, dealt, sources)| {
        let mut next = vec![0_u32; width];
        let within = |target: u32| target as usize & (width - 1);
        dealt.iter().for_each(|[_, target]| next[within(*target)] += 1);
        let mut at = 0;
        for (next, start) in next.iter_mut().zip(starts) {
            *start = first + at;
            at += std::mem::replace(next, at);
        }
        for [source, target] in dealt {
            let next = &mut next[within(*target)];
            sources[*next as usize] = *source;
            *next += 1;
        }
    });
    let mut parts = counted.into_iter().map(|(_, leaving)| leaving);
    let mut out_degrees = parts.next().unwrap_or_default();
    for part in parts {
        out_degrees.iter_mut().zip(part).for_each(|(total, leaving)| *total += leaving);
    }
    Rows { starts, sources, out_degrees }
}

/// From edges in memory to rows, not in an order that is good for ranking.
pub(crate) fn build(operations: u64) -> Result<Slice, Wrong> {
    let sample = &*SPARSE;
    repeat(operations, sample.edges.len() as u64, || {
        let start = Instant::now();
        let rows = black_box(TWO.install(|| rows(sample.nodes as usize, &sample.edges)));
        let elapsed = start.elapsed();
        let leaving: u64 = rows.out_degrees.iter().map(|count| u64::from(*count)).sum();
        expect("links", leaving, sample.edges.len() as u64)?;
        // One edge stands for all: its source is in the row of its target.
        let [source, target] = sample.edges[sample.edges.len() / 2];
        let end =
            rows.starts.get(target as usize + 1).map_or(rows.sources.len(), |end| *end as usize);
        let row = &rows.sources[rows.starts[target as usize] as usize..end];
        expect("the edge is there", row.contains(&source), true)?;
        Ok(elapsed)
    })
}
