//! What a ranking takes of memory, measured by the system. One test, since a process has one peak.

#![cfg(target_os = "linux")]

use std::ops::ControlFlow;

use dotcompute_workloads::pagerank::{Graph, Query, generate};

/// A line of the process's status, in bytes.
fn status(name: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the status of the process");
    let line = status.lines().find(|line| line.starts_with(name)).expect("the line");
    let kilobytes = line.split_whitespace().nth(1).expect("a number");
    kilobytes.parse::<usize>().expect("a number") * 1024
}

#[test]
fn from_edges_to_ranks_the_peak_is_16_bytes_a_link_and_32_a_node() {
    let rank = |nodes, links| {
        let edges = generate::uniform(nodes, links, 1);
        let graph = Graph::build(nodes, edges).expect("a graph");
        let query = Query { max_iterations: 2, tolerance: 0.0, ..Query::default() };
        graph.rank::<f32>(&query, &mut |_| ControlFlow::Continue(())).expect("a query");
    };
    // The threads are there before it counts. Two, since each counts in a table of its own.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(2).build().expect("threads");
    pool.install(|| rank(1000, 100_000));
    // In rows, and, larger, in tiles.
    for (nodes, links) in [(200_000, 1_000_000), (600_000, 3_000_000)] {
        let before = status("VmRSS:");
        pool.install(|| rank(nodes, links));
        let taken = status("VmHWM:").saturating_sub(before);
        // Beside it: contributions are rounded up to a segment (1 MiB, twice), and arrays to huge pages.
        let limit = 16 * links + 32 * nodes as usize + (8 << 20);
        assert!(taken <= limit, "{taken} bytes of {limit} for {links} links of {nodes} nodes");
        assert!(taken > 8 * links, "the edges alone take more than {taken} bytes");
    }
}
