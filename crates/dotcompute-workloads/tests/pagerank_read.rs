//! Edges from text: what is read, and what is said of what cannot be.

use std::io::{self, Read};
use std::ops::ControlFlow;

use dotcompute_workloads::pagerank::read::{
    Edges, Format, Malformed, Nodes, ReadError, Reader, Reason,
};
use proptest::prelude::*;

/// In one list; in pieces it is the same.
fn read(reader: &Reader, text: impl AsRef<[u8]>) -> Result<Edges, ReadError> {
    let edges = reader.read(text.as_ref(), &mut |_| ControlFlow::Continue(()));
    let pieces = reader.read_pieces(text.as_ref(), &mut |_| ControlFlow::Continue(()));
    match (&edges, pieces) {
        (Ok(edges), Ok(pieces)) => {
            assert_eq!(pieces.pairs.concat(), edges.pairs);
            assert_eq!((&pieces.nodes, pieces.malformed), (&edges.nodes, edges.malformed));
        }
        (Err(one), Err(other)) => assert_eq!(one.to_string(), other.to_string()),
        (one, other) => panic!("{one:?} and {other:?}"),
    }
    edges
}

fn list(text: &str) -> Edges {
    read(&Reader::new(Format::EdgeList), text).expect("it should be read")
}

fn ids(ids: &[u64]) -> Nodes {
    Nodes::Ids(ids.into())
}

#[test]
fn a_list_is_read_with_comments_blanks_tabs_and_more_columns() {
    let edges = list("# SNAP\n\n% other\n0\t1\n  1   2 0.5 7\r\n2 0");
    assert_eq!(edges.pairs, [[0, 1], [1, 2], [2, 0]]);
    assert_eq!(edges.nodes, Nodes::Range(3));
    assert_eq!(list("").nodes, Nodes::Range(0));
}

#[test]
fn the_nodes_of_a_list_are_the_ids_that_occur() {
    let edges = list("5 9\n9 1\n");
    assert_eq!((edges.pairs, edges.nodes), (vec![[1, 2], [2, 0]], ids(&[1, 5, 9])));
    // Far apart, and beyond 32 bits.
    let edges = list("4000000000 7\n7 4294967295\n");
    assert_eq!(edges.nodes, ids(&[7, 4_000_000_000, 4_294_967_295]));
    let edges = list("3 18446744073709551615\n4294967296 3\n");
    assert_eq!(edges.pairs, [[0, 2], [1, 0]]);
    assert_eq!(edges.nodes, ids(&[3, 1 << 32, u64::MAX]));
    assert_eq!((edges.nodes.find("4294967296"), edges.nodes.find("4")), (Some(1), None));
}

#[test]
fn a_given_number_of_nodes_is_kept_and_kept_to() {
    let reader = Reader::new(Format::EdgeList).nodes(10);
    let edges = read(&reader, "5 9\n").expect("both are below 10");
    assert_eq!((edges.pairs, edges.nodes), (vec![[5, 9]], Nodes::Range(10)));
    let error = read(&reader, "5 9\n1 10\n").expect_err("10 is no node");
    assert_eq!(error.to_string(), "line 2: a node beyond the number of nodes");
}

#[test]
fn a_malformed_line_is_named_or_counted() {
    let text = "0 1\nx 1\n1\n1 2x\n18446744073709551616 1\n-1 2\n1 0\n";
    let error = read(&Reader::new(Format::EdgeList), text).expect_err("line 2 is no edge");
    assert_eq!(error.to_string(), "line 2: two whole numbers are expected");
    let reader = Reader::new(Format::EdgeList).skip_malformed(true);
    let edges = read(&reader, text).expect("they are counted");
    assert_eq!((edges.pairs.len(), edges.malformed), (2, 5));
    let lines: Vec<_> = edges.malformed_lines.iter().map(|fault| fault.line).collect();
    assert_eq!(lines, [2, 3, 4, 5, 6]);
    assert_eq!(edges.malformed_lines[3], Malformed { line: 5, reason: Reason::TooLarge });
}

#[test]
fn line_numbers_hold_across_blocks_and_pieces() {
    // Over 16 MiB, so that there are several of both.
    let mut text = "123456 7890123\n".repeat(1_500_000);
    text.push_str("oops\n1 2\n");
    let error = read(&Reader::new(Format::EdgeList), &text).expect_err("the last but one");
    assert_eq!(error.to_string(), "line 1500001: two whole numbers are expected");
    let reader = Reader::new(Format::EdgeList).skip_malformed(true);
    assert_eq!(read(&reader, &text).expect("it is counted").pairs.len(), 1_500_001);
}

proptest! {
    #[test]
    fn whatever_is_written_is_read(pairs in prop::collection::vec(any::<[u64; 2]>(), 0..50)) {
        let text: String = pairs.iter().map(|[a, b]| format!("{a} {b}\n")).collect();
        let edges = list(&text);
        let named: Vec<_> = edges
            .pairs
            .iter()
            .map(|pair| pair.map(|node| edges.nodes.name(node).parse::<u64>().expect("an id")))
            .collect();
        prop_assert_eq!(named, pairs);
    }

    #[test]
    fn no_text_makes_a_reader_panic(text in prop::collection::vec(any::<u8>(), 0..400)) {
        for format in [Format::EdgeList, Format::MatrixMarket, Format::Csv] {
            let _ = read(&Reader::new(format).skip_malformed(true), &text);
        }
        let _ = read(&Reader::new(Format::MatrixMarket), [b"%%MatrixMarket matrix coordinate ", &text[..]].concat());
    }
}

#[test]
fn matrix_market_counts_from_one_and_may_be_symmetric() {
    let reader = Reader::new(Format::MatrixMarket);
    let text =
        "%%MatrixMarket matrix coordinate real general\n% by hand\n\n3 3 2\n1 2 0.5\n3 1 2\n";
    let edges = read(&reader, text).expect("it is a graph");
    assert_eq!((edges.pairs, edges.nodes), (vec![[0, 1], [2, 0]], Nodes::Range(3)));
    let text = "%%MatrixMarket matrix coordinate pattern symmetric\n3 3 2\n2 1\n3 3\n";
    let edges = read(&reader, text).expect("it is a graph");
    assert_eq!(edges.pairs, [[1, 0], [2, 2], [0, 1]]);
}

#[test]
fn matrix_market_that_is_no_graph_is_refused_with_the_reason() {
    let reader = Reader::new(Format::MatrixMarket);
    let banner = "%%MatrixMarket matrix coordinate pattern general\n";
    for (text, told) in [
        ("", "is expected"),
        ("%%MatrixMarket matrix array real general\n", "arrays"),
        ("%%MatrixMarket matrix coordinate complex general\n", "field"),
        ("%%MatrixMarket matrix coordinate real hermitian\n", "symmetry"),
        (banner, "sizes is missing"),
        (&format!("{banner}3 3\n"), "rows, columns and entries"),
        (&format!("{banner}3 4 0\n"), "square"),
        (&format!("{banner}3 3 1\n0 1\n"), "line 3: nodes count from 1"),
        (&format!("{banner}3 3 1\n4 1\n"), "line 3: a node beyond"),
        (&format!("{banner}3 3 2\n1 1\n"), "promises 2 entries, and there are 1"),
        (&format!("{banner}9999999999 9999999999 0\n"), "more than"),
    ] {
        let error = read(&reader, text).expect_err("it is no graph").to_string();
        assert!(error.contains(told), "{error:?} should tell {told:?}");
    }
}

#[test]
fn csv_names_are_nodes_in_the_order_of_their_appearance() {
    let names = |names: &[&str]| Nodes::Names(names.iter().map(|name| (*name).into()).collect());
    let reader = Reader::new(Format::Csv);
    let edges = read(&reader, "b,a\n a , c\n\"x,y\",b\n").expect("it is a graph");
    assert_eq!(
        (edges.pairs, edges.nodes),
        (vec![[0, 1], [1, 2], [3, 0]], names(&["b", "a", "c", "x,y"]))
    );
    // A first line that names the columns is none of the edges.
    let edges = read(&reader, "weight,Target,Source\n1,a,b\n").expect("it is a graph");
    assert_eq!((edges.pairs, edges.nodes), (vec![[0, 1]], names(&["b", "a"])));
    let reader = reader.columns("owner", "needs");
    let edges = read(&reader, "needs,owner\nlibc,bash\n").expect("it is a graph");
    assert_eq!(edges.nodes, names(&["bash", "libc"]));
    let error = read(&reader, "a,b\n").expect_err("no such columns");
    assert!(matches!(error, ReadError::NoColumn(name) if name == "owner"));
}

#[test]
fn csv_lines_without_two_names_are_malformed() {
    let text = b"a,b\nc\nd,\xff\ne,a\n";
    let error = read(&Reader::new(Format::Csv), text).expect_err("line 2 has one field");
    assert_eq!(error.to_string(), "line 2: a field is missing");
    let edges = read(&Reader::new(Format::Csv).skip_malformed(true), text).expect("counted");
    assert_eq!((edges.pairs.len(), edges.malformed), (2, 2));
    assert_eq!(edges.nodes.count(), 3, "what a malformed line names is no node");
}

/// As NumPy writes it.
fn npy(kind: &str, shape: &str, order: &str, data: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{kind}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    file.extend(data);
    file
}

#[test]
fn arrays_of_numpy_are_read_whatever_their_numbers() {
    let reader = Reader::new(Format::Npy);
    let little: Vec<u8> = [5_i64, 7, 7, 1 << 40].iter().flat_map(|id| id.to_le_bytes()).collect();
    let edges = read(&reader, npy("<i8", "(2, 2)", "False", &little)).unwrap();
    assert_eq!((edges.pairs, edges.nodes), (vec![[0, 1], [1, 2]], ids(&[5, 7, 1 << 40])));
    let big: Vec<u8> = [0_u16, 1, 1, 300].iter().flat_map(|id| id.to_be_bytes()).collect();
    let edges = read(&reader.clone().nodes(301), npy(">u2", "(2,2)", "False", &big)).unwrap();
    assert_eq!((edges.pairs, edges.nodes), (vec![[0, 1], [1, 300]], Nodes::Range(301)));
    let edges = read(&reader, npy("|u1", "(0, 2)", "False", &[])).unwrap();
    assert_eq!((edges.pairs.len(), edges.nodes.count()), (0, 0));

    let negative: Vec<u8> = [1_i32, 2, -1, 2].iter().flat_map(|id| id.to_le_bytes()).collect();
    let file = npy("<i4", "(2, 2)", "False", &negative);
    let error = read(&reader, &file).unwrap_err();
    assert!(matches!(error, ReadError::Malformed(Malformed { line: 2, reason: Reason::Negative })));
    let skipping = reader.clone().skip_malformed(true);
    assert_eq!(read(&skipping, &file).unwrap().malformed, 1);
    for (file, says) in [
        (b"0 1\n1 2\n2 0\n".to_vec(), "no file of NumPy"),
        (npy("<f8", "(1, 2)", "False", &[0; 16]), "whole numbers"),
        (npy("<i4", "(1, 3)", "False", &[0; 12]), "shape"),
        (npy("<i4", "(2, 2)", "True", &[0; 16]), "row by row"),
        (npy("<i4", "(2, 2)", "False", &[0; 12]), "promises 2 entries, and there are 1"),
    ] {
        let error = read(&reader, file).unwrap_err().to_string();
        assert!(error.contains(says), "{error}");
    }
}

#[test]
fn an_input_that_fails_and_a_watcher_that_stops_end_the_reading() {
    struct Fails;
    impl Read for Fails {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("unplugged"))
        }
    }
    for format in [Format::EdgeList, Format::Csv, Format::MatrixMarket] {
        let error = Reader::new(format).read(Fails, &mut |_| ControlFlow::Continue(()));
        assert!(error.expect_err("it fails").to_string().contains("unplugged"));
        let text = "%%MatrixMarket matrix coordinate pattern general\n1 1 0\n";
        let stopped = Reader::new(format)
            .skip_malformed(true)
            .read(text.as_bytes(), &mut |_| ControlFlow::Break(()));
        assert!(matches!(stopped, Err(ReadError::Cancelled)));
    }
}
