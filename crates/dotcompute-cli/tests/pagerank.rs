//! `dotcompute pagerank`, as a user runs it.

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

use flate2::Compression;
use flate2::write::GzEncoder;

fn dotcompute(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_dotcompute"))
        .arg("pagerank")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the command should start");
    // A command that fails early need not read its input.
    let _ = child.stdin.take().expect("its input").write_all(input);
    child.wait_with_output().expect("it should end")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("it should be text")
}

/// A path of this test's own.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name)
}

const STAR: &[u8] = b"# all to 7\n1 7\n2 7\n3 7\n7 1\n";

#[test]
fn the_nodes_of_highest_rank_come_out_first() {
    let output = dotcompute(&["-", "--top", "2"], STAR);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let nodes: Vec<&str> = text(&output.stdout)
        .lines()
        .map(|line| line.split_once('\t').expect("rank and node").1)
        .collect();
    assert_eq!(nodes, ["7", "1"]);
    assert!(text(&output.stderr).starts_with("4 nodes, 4 edges; "));
}

#[test]
fn all_ranks_are_written_and_sum_to_one() {
    let (edges, ranks) = (path("star.txt.gz"), path("ranks.csv"));
    let mut gzip = GzEncoder::new(fs::File::create(&edges).expect("a file"), Compression::fast());
    gzip.write_all(STAR).and_then(|()| gzip.finish().map(drop)).expect("it should be written");
    let output = dotcompute(
        &[
            edges.to_str().expect("a name"),
            "--tolerance=1e-8",
            "--quiet",
            "--threads=2",
            "--output",
            ranks.to_str().expect("a name"),
        ],
        b"",
    );
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output.stderr));
    let written = fs::read_to_string(&ranks).expect("it should be there");
    let mut lines = written.lines();
    assert_eq!(lines.next(), Some("node,rank"));
    let rows: Vec<(&str, f64)> = lines
        .map(|line| line.split_once(',').expect("two columns"))
        .map(|(node, rank)| (node, rank.parse().expect("a number")))
        .collect();
    assert_eq!(rows.iter().map(|row| row.0).collect::<Vec<_>>(), ["1", "2", "3", "7"]);
    assert!((rows.iter().map(|row| row.1).sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(!path("ranks.csv.partial").exists());
}

#[test]
fn arrays_of_numpy_go_in_and_come_out() {
    let (edges, ranks) = (path("edges.npy"), path("ranks.npy"));
    let header = "{'descr': '<u4', 'fortran_order': False, 'shape': (3, 2), }\n";
    let mut file = b"\x93NUMPY\x01\x00".to_vec();
    file.extend((header.len() as u16).to_le_bytes());
    file.extend(header.as_bytes());
    [7_u32, 9, 8, 9, 9, 7].iter().for_each(|id| file.extend(id.to_le_bytes()));
    std::fs::write(&edges, file).unwrap();
    let output = dotcompute(&[edges.to_str().unwrap(), "--output", ranks.to_str().unwrap()], b"");
    assert!(output.status.success(), "{}", text(&output.stderr));
    let written = std::fs::read(&ranks).unwrap();
    let length = usize::from(u16::from_le_bytes([written[8], written[9]]));
    assert_eq!((10 + length) % 64, 0, "aligned as NumPy has it");
    assert!(text(&written[10..10 + length]).contains("('node', '<u8'), ('rank', '<f8')"));
    let (rows, rest) = written[10 + length..].as_chunks::<16>();
    assert_eq!((rows.len(), rest.len()), (3, 0));
    let row = |row: &[u8; 16]| {
        let (node, rank) = row.split_at(8);
        let rank = f64::from_le_bytes(rank.try_into().unwrap());
        (u64::from_le_bytes(node.try_into().unwrap()), rank)
    };
    let found: Vec<(u64, f64)> = rows.iter().map(row).collect();
    assert_eq!(found.iter().map(|(node, _)| *node).collect::<Vec<_>>(), [7, 8, 9]);
    assert!((found.iter().map(|(_, rank)| rank).sum::<f64>() - 1.0).abs() < 1e-6);
    assert!(found[2].1 > found[0].1 && found[0].1 > found[1].1);

    let named = path("named.npy");
    let output =
        dotcompute(&["--format", "csv", "-", "--output", named.to_str().unwrap()], b"a,b\nb,a\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("name it .csv"), "{}", text(&output.stderr));
}

#[test]
fn seeds_are_named_as_the_nodes_are() {
    let csv = b"from,to\na=b,x\nx,y\ny,x\nz,a=b\n";
    let output =
        dotcompute(&["-", "--format=csv", "--seed=a=b", "--seed=z=0", "--top=4", "-q"], csv);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let last = text(&output.stdout).lines().last().expect("four nodes");
    assert_eq!(last, "0.000000000\tz");
    let output = dotcompute(&["-", "--format=csv", "--seed=nobody"], csv);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("seed \"nobody\" is no node"));
}

#[test]
fn bad_input_and_bad_usage_are_told() {
    for (arguments, input, status, told) in [
        (&["-"][..], &b"1 2\noops\n"[..], 1, "standard input: line 2: two whole numbers"),
        (&["-", "--damping=1"], STAR, 2, "damping is 1"),
        (&["-", "--precision=f32", "--tolerance=1e-9"], STAR, 2, "at least"),
        (&["-", "--nodes=3"], STAR, 1, "line 2: a node beyond"),
        (&["graph.xyz"], b"", 2, "does not say what format"),
        (&["nowhere.txt"], b"", 1, "nowhere.txt: No such file"),
        (&["-", "--source=a"], b"", 2, "--target"),
        (&["-"], b"\x1f\x8bnot gzip after all", 1, "standard input: cannot read"),
    ] {
        let output = dotcompute(arguments, input);
        let error = text(&output.stderr);
        assert!(error.contains(told), "{error:?} should tell {told:?}");
        assert_eq!(output.status.code(), Some(status), "{error}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn malformed_lines_are_counted_where_that_is_asked_for() {
    let output = dotcompute(&["-", "--skip-malformed"], b"1 2\noops\n2 1\n");
    assert!(output.status.success());
    let error = text(&output.stderr);
    assert!(
        error.contains("line 2: two whole") && error.contains("1 malformed lines were left out")
    );
}

#[test]
fn ranks_that_have_not_settled_are_said_to_be_so() {
    let output = dotcompute(&["-", "--max-iterations=2"], STAR);
    assert!(text(&output.stderr).contains("NOT SETTLED"), "{}", text(&output.stderr));
}
