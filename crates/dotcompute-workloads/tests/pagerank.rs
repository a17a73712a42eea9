//! PageRank against a plain power iteration.

use std::ops::ControlFlow;

use dotcompute::Runtime;
use dotcompute_workloads::pagerank::{
    Answer, Graph, GraphError, Query, QueryError, Ranks, Refusal, Request, Resident, Score,
    generate, top, without_repeats, without_self_loops,
};
use proptest::prelude::*;

/// The textbook's form, in `f64`, one edge at a time.
fn plain(nodes: usize, edges: &[[u32; 2]], query: &Query, turns: usize) -> Vec<f64> {
    let mut out = vec![0.0_f64; nodes];
    edges.iter().for_each(|[source, _]| out[*source as usize] += 1.0);
    let total: f64 = query.seeds.iter().map(|(_, weight)| weight).sum();
    let mut teleport = vec![if query.seeds.is_empty() { 1.0 / nodes as f64 } else { 0.0 }; nodes];
    query.seeds.iter().for_each(|(node, weight)| teleport[*node as usize] += weight / total);
    let mut ranks = teleport.clone();
    for _ in 0..turns {
        let dangling: f64 =
            ranks.iter().zip(&out).filter(|(_, out)| **out == 0.0).map(|(r, _)| r).sum();
        let given = 1.0 - query.damping + query.damping * dangling;
        let mut next: Vec<f64> = teleport.iter().map(|weight| given * weight).collect();
        for [source, target] in edges {
            next[*target as usize] +=
                query.damping * ranks[*source as usize] / out[*source as usize];
        }
        ranks = next;
    }
    ranks
}

fn rank<T: Score>(nodes: u32, edges: &[[u32; 2]], query: &Query) -> Ranks<T> {
    let graph = Graph::build(nodes, edges).expect("the edges should be a graph");
    assert_eq!((graph.nodes(), graph.links()), (nodes as usize, edges.len()));
    graph.rank(query, &mut |_| ControlFlow::Continue(())).expect("the query should make sense")
}

fn distance<T: Score>(ranks: &[T], expected: &[f64]) -> f64 {
    assert_eq!(ranks.len(), expected.len());
    ranks.iter().zip(expected).map(|(a, b)| (a.to_f64() - b).abs()).sum()
}

fn precise() -> Query {
    Query { tolerance: 1e-13, ..Query::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn ranks_equal_those_of_the_plain_iteration(
        nodes in 1_u32..60,
        raw in prop::collection::vec((any::<u32>(), any::<u32>()), 0..400),
        hub in prop::option::of(any::<u32>()),
        damping in 0.0..0.95_f64,
        seeds in prop::collection::vec((any::<u32>(), 0.1..9.0_f64), 0..4),
    ) {
        let mut edges: Vec<_> = raw.iter().map(|(a, b)| [a % nodes, b % nodes]).collect();
        if let Some(hub) = hub {
            // A long row, and with luck a node that dangles.
            edges.extend((0..50).map(|i| [i % nodes, hub % nodes]));
        }
        let seeds = seeds.into_iter().map(|(node, weight)| (node % nodes, weight)).collect();
        let query = Query { damping, seeds, ..precise() };
        let expected = plain(nodes as usize, &edges, &query, 800);
        let ranks = rank::<f64>(nodes, &edges, &query);
        prop_assert!(ranks.converged);
        prop_assert!(distance(&ranks.scores, &expected) < 1e-10);
        let single = rank::<f32>(nodes, &edges, &Query { tolerance: 1e-6, ..query });
        prop_assert!(distance(&single.scores, &expected) < 3e-5);
    }
}

#[test]
fn large_graphs_of_either_kind_are_ranked_within_a_millionth() {
    let uniform = generate::uniform(50_000, 250_000, 7);
    let kronecker = generate::kronecker(14, 16, 7);
    for (nodes, edges) in [(50_000, uniform), (1 << 14, kronecker)] {
        let expected = plain(nodes as usize, &edges, &Query::default(), 150);
        for ranks in [
            rank::<f64>(nodes, &edges, &Query::default()).scores,
            rank::<f32>(nodes, &edges, &Query { tolerance: 1e-6, ..Query::default() })
                .scores
                .into_iter()
                .map(f64::from)
                .collect(),
        ] {
            assert!((ranks.iter().sum::<f64>() - 1.0).abs() < 1e-5);
            let worst = ranks.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-6, "{worst}");
        }
    }
}

#[test]
fn rows_longer_than_are_counted_are_ranked_like_others() {
    // Two hubs of different degree over 4095, one of which dangles, and one row of each short length.
    let nodes = 9_000;
    let mut edges: Vec<_> = (0..nodes).map(|node| [node, 0]).collect();
    edges.extend((0..6_000).map(|node| [node, 1]));
    edges.retain(|[source, _]| *source != 1);
    edges.extend((2..40).flat_map(|node| (0..node).map(move |from| [from + 100, node])));
    let expected = plain(nodes as usize, &edges, &precise(), 400);
    let ranks = rank::<f64>(nodes, &edges, &precise());
    assert!(distance(&ranks.scores, &expected) < 1e-10);
}

#[test]
fn the_number_of_threads_does_not_change_the_ranks() {
    let edges = generate::kronecker(13, 16, 3);
    let with = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| rank::<f64>(1 << 13, &edges, &precise()).scores)
    };
    let alone = with(1);
    assert!(distance(&with(2), &alone) < 1e-13);
    assert!(distance(&with(5), &alone) < 1e-13);
}

#[test]
fn an_empty_graph_and_one_without_links_have_ranks() {
    assert!(rank::<f64>(0, &[], &Query::default()).scores.is_empty());
    assert_eq!(rank::<f64>(4, &[], &Query::default()).scores, [0.25; 4]);
}

#[test]
fn self_loops_and_repeats_count_until_they_are_taken_out() {
    let mut edges = vec![[0, 1], [0, 1], [0, 2], [1, 1], [2, 0]];
    let repeated = rank::<f64>(3, &edges, &precise()).scores;
    assert!(repeated[1] > repeated[2] * 2.0);
    without_repeats(&mut edges);
    without_self_loops(&mut edges);
    assert_eq!(edges, [[0, 1], [0, 2], [2, 0]]);
}

#[test]
fn an_end_that_is_no_node_is_named() {
    let error = Graph::build(3, [[0, 1], [2, 3]]).expect_err("3 is no node");
    assert_eq!(error, GraphError::UnknownNode { edge: 1, node: 3, nodes: 3 });
}

#[test]
fn queries_that_make_no_sense_are_refused() {
    let graph = Graph::build(2, [[0, 1]]).expect("a graph");
    let ask = |query: Query| {
        graph
            .rank::<f64>(&query, &mut |_| ControlFlow::Continue(()))
            .expect_err("it makes no sense")
    };
    for damping in [1.0, -0.1, f64::NAN] {
        assert!(matches!(ask(Query { damping, ..precise() }), QueryError::Damping(_)));
    }
    for tolerance in [1e-17, -1.0, f64::NAN] {
        assert!(matches!(ask(Query { tolerance, ..precise() }), QueryError::Tolerance(..)));
    }
    let seeds = vec![(2, 1.0)];
    assert!(matches!(ask(Query { seeds, ..precise() }), QueryError::UnknownSeed { node: 2, .. }));
    for weight in [-1.0, 0.0, f64::NAN, f64::INFINITY] {
        let seeds = vec![(0, weight)];
        assert!(matches!(ask(Query { seeds, ..precise() }), QueryError::SeedWeights));
    }
    let error = graph.rank::<f32>(&precise(), &mut |_| ControlFlow::Continue(()));
    assert!(matches!(error, Err(QueryError::Tolerance(..))), "f32 cannot resolve it");
}

#[test]
fn whoever_watches_can_end_it_and_the_limit_is_kept() {
    let graph = Graph::build(3, [[0, 1], [1, 2], [2, 0], [0, 2]]).expect("a graph");
    let cancelled = graph.rank::<f64>(&precise(), &mut |turn| match turn.iterations {
        3 => ControlFlow::Break(()),
        _ => ControlFlow::Continue(()),
    });
    assert_eq!(cancelled.map(|_| ()), Err(QueryError::Cancelled(3)));
    let ranks = rank::<f64>(
        3,
        &[[0, 1], [1, 2], [2, 0], [0, 2]],
        &Query { max_iterations: 2, ..precise() },
    );
    assert!(!ranks.converged);
    assert_eq!(ranks.iterations, 2);
    // No tolerance: all turns, also when nothing moves any more.
    let ranks = rank::<f64>(2, &[[0, 1], [1, 0]], &Query { tolerance: 0.0, ..Query::default() });
    assert_eq!((ranks.iterations, ranks.converged), (Query::default().max_iterations, false));
}

#[test]
fn the_top_is_in_order_and_equals_are_by_number() {
    assert_eq!(top(&[0.1, 0.4, 0.1, 0.4], 3), [(1, 0.4), (3, 0.4), (0, 0.1)]);
    assert_eq!(top::<f64>(&[], 3), []);
    assert_eq!(top(&[1.0], 3), [(0, 1.0)]);
}

#[test]
fn a_resident_graph_answers_changes_and_queries() {
    let runtime = Runtime::builder().build();
    let edges = vec![[0, 1], [1, 2], [2, 0]];
    let start = edges.clone();
    let kernel = runtime
        .kernel("pagerank")
        .executor("thread")
        .launch_handler(move || Resident::<f64>::new(3, start.clone()))
        .expect("it should launch");
    kernel.activate().expect("it should start");
    let ask = |request| kernel.ask_blocking(request, None).expect("it should answer").message;

    let Answer::Ranked(ranks) = ask(Request::Rank(precise())) else { panic!("it ranks") };
    assert!(distance(&ranks.scores, &[1.0 / 3.0; 3]) < 1e-10);
    assert!(matches!(ask(Request::Add(vec![[0, 2], [0, 2]])), Answer::Changed { links: 5 }));
    let changed = [&edges[..], &[[0, 2], [0, 2]]].concat();
    let Answer::Ranked(ranks) = ask(Request::Rank(precise())) else { panic!("it ranks") };
    assert!(distance(&ranks.scores, &plain(3, &changed, &precise(), 400)) < 1e-10);
    // One of the two, and one that is not there.
    assert!(matches!(ask(Request::Remove(vec![[0, 2], [1, 1]])), Answer::Changed { links: 4 }));
    let refused = ask(Request::Add(vec![[0, 1], [3, 0]]));
    assert!(matches!(
        refused,
        Answer::Refused(Refusal::Graph(GraphError::UnknownNode { edge: 1, node: 3, .. }))
    ));
    let refused = ask(Request::Rank(Query { damping: 2.0, ..precise() }));
    assert!(matches!(refused, Answer::Refused(Refusal::Query(QueryError::Damping(_)))));
    let Answer::Ranked(ranks) = ask(Request::Rank(precise())) else { panic!("it still ranks") };
    assert!(distance(&ranks.scores, &plain(3, &changed[..4], &precise(), 400)) < 1e-10);
}
