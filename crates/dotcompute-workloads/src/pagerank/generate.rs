//! Random graphs for tests and benchmarks, the same for the same seed everywhere.

use rayon::prelude::*;

/// A uniform random graph: both ends of each edge are drawn from `0..nodes`. Self loops and repeated
/// edges occur, as they fall.
///
/// # Panics
///
/// If there are edges and no nodes.
#[must_use]
pub fn uniform(nodes: u32, edges: usize, seed: u64) -> Vec<[u32; 2]> {
    assert!(nodes > 0 || edges == 0, "edges need nodes");
    draw(edges, seed, |random| [random.below(nodes), random.below(nodes)])
}

/// A Kronecker graph as in the Graph500 and GAP benchmarks: `2^scale` nodes, `degree` edges a node
/// drawn with the probabilities 0.57, 0.19, 0.19, 0.05, in both directions, ids not shuffled.
///
/// # Panics
///
/// If `scale` is over 31.
#[must_use]
pub fn kronecker(scale: u32, degree: usize, seed: u64) -> Vec<[u32; 2]> {
    assert!(scale < 32, "a scale of at most 31");
    let edges = degree << scale;
    let mut pairs = draw(edges, seed, |random| {
        let mut pair = [0, 0];
        for _ in 0..scale {
            let [source, target] = match random.below(100) {
                0..57 => [0, 0],
                57..76 => [0, 1],
                76..95 => [1, 0],
                _ => [1, 1],
            };
            pair = [pair[0] << 1 | source, pair[1] << 1 | target];
        }
        pair
    });
    pairs.extend_from_within(..);
    pairs[edges..].par_iter_mut().for_each(|pair| pair.reverse());
    pairs
}

fn draw(edges: usize, seed: u64, pair: impl Fn(&mut Random) -> [u32; 2] + Sync) -> Vec<[u32; 2]> {
    const PIECE: usize = 1 << 16;
    let mut pairs = vec![[0, 0]; edges];
    pairs.par_chunks_mut(PIECE).enumerate().for_each(|(index, piece)| {
        let mut random = Random(seed ^ (index as u64).wrapping_mul(0xD1B5_4A32_D192_ED03));
        piece.fill_with(|| pair(&mut random));
    });
    pairs
}

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A number of `0..bound`, by Lemire's multiplication; off by at most 2^-32 from even.
    fn below(&mut self, bound: u32) -> u32 {
        (((self.next() >> 32) * u64::from(bound)) >> 32) as u32
    }
}
