//! `dotcompute pagerank` and `stream` over tables of Parquet, written here.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use arrow_array::cast::AsArray;
use arrow_array::types::{Float64Type, UInt64Type};
use arrow_array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringArray};
use parquet::arrow::ArrowWriter;
use parquet::arrow::arrow_reader::ParquetRecordBatchReader;

fn dotcompute(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dotcompute"));
    command.args(arguments).env_remove("RUST_LOG").output().expect("the command should run")
}

fn stdout(output: &Output) -> &str {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::str::from_utf8(&output.stdout).expect("text")
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("text")
}

/// A path of this test's own.
fn path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()))
}

fn write<const N: usize>(name: &str, columns: [(&str, ArrayRef); N]) -> String {
    let table = RecordBatch::try_from_iter(columns).expect("columns of one length");
    let path = path(name);
    let file = File::create(&path).expect("a file");
    let mut writer = ArrowWriter::try_new(file, table.schema(), None).expect("a writer");
    writer.write(&table).expect("to write");
    writer.close().expect("to close");
    path.to_str().expect("text").to_owned()
}

fn read(path: &str) -> Vec<RecordBatch> {
    let file = File::open(path).expect("the file is there");
    let reader = ParquetRecordBatchReader::try_new(file, 1000).expect("it is Parquet");
    reader.collect::<Result<_, _>>().expect("it is whole")
}

#[test]
fn a_table_of_edges_is_ranked_as_the_same_text_and_ranks_are_written_as_a_table() {
    let pairs = [(1, 7), (2, 7), (3, 7), (7, 1)];
    let list = path("star.txt");
    let text: String =
        pairs.iter().map(|(source, target)| format!("{source} {target}\n")).collect();
    fs::write(&list, text).expect("to write");
    let table = write(
        "star.parquet",
        [
            ("source", Arc::new(Int64Array::from_iter_values(pairs.map(|(source, _)| source)))),
            ("target", Arc::new(Int64Array::from_iter_values(pairs.map(|(_, target)| target)))),
        ],
    );
    let ranks = path("ranks.parquet");
    let ranks = ranks.to_str().expect("text");
    let of_text = dotcompute(&["pagerank", list.to_str().expect("text")]);
    let of_table = dotcompute(&["pagerank", &table, "--output", ranks]);
    assert_eq!(stdout(&of_table), stdout(&of_text));
    let batches = read(ranks);
    assert_eq!(batches.len(), 1);
    let node = batches[0].column_by_name("node").expect("a column").as_primitive::<UInt64Type>();
    assert_eq!(node.values(), &[1, 2, 3, 7]);
    let rank = batches[0].column_by_name("rank").expect("a column").as_primitive::<Float64Type>();
    assert!((rank.values().iter().sum::<f64>() - 1.0).abs() < 1e-9);
    assert!(rank.value(3) > rank.value(0) && rank.value(0) > rank.value(1));
}

#[test]
fn names_of_nodes_go_through_tables() {
    let table = write(
        "needs.parquet",
        [
            ("package", Arc::new(StringArray::from_iter_values(["a", "b"]))),
            ("needs", Arc::new(StringArray::from_iter_values(["c", "c"]))),
        ],
    );
    let ranks = path("names.parquet");
    let ranks = ranks.to_str().expect("text");
    let ends = ["--source", "package", "--target", "needs"];
    let arguments = [&["pagerank", &table, "--output", ranks, "--quiet", "--top", "1"][..], &ends];
    let output = dotcompute(&arguments.concat());
    assert!(stdout(&output).ends_with("\tc\n"));
    let batches = read(ranks);
    let nodes = batches[0].column_by_name("node").expect("a column").as_string::<i32>();
    assert!(nodes.iter().flatten().eq(["a", "c", "b"]));
}

#[test]
fn a_table_of_readings_gives_the_alerts_of_the_same_csv() {
    let values: Vec<f64> =
        (0..200).map(|i| if i == 150 { 90.0 } else { f64::from(i % 3) }).collect();
    let csv = path("readings.csv");
    let mut text = String::from("machine,value\n");
    values.iter().for_each(|value| text += &format!("press,{value}\n"));
    fs::write(&csv, text).expect("to write");
    let table = write(
        "readings.parquet",
        [
            ("machine", Arc::new(StringArray::from_iter_values(values.iter().map(|_| "press")))),
            ("rpm", Arc::new(Float64Array::from_iter_values(values.iter().copied()))),
            ("other", Arc::new(Int64Array::from_iter_values(0..200))),
        ],
    );
    let columns = ["--key", "machine", "--value"];
    let run =
        |file: &str, value: &str| dotcompute(&[&["stream", file], &columns[..], &[value]].concat());
    let (of_text, of_table) = (run(csv.to_str().expect("text"), "value"), run(&table, "rpm"));
    // The header is a line of the CSV.
    let expected = stdout(&of_text).replace("\"line\":152", "\"line\":151");
    assert_eq!(stdout(&of_table), expected);
    assert_eq!(expected.lines().count(), 1);
    assert!(stderr(&of_table).contains("200"), "the summary tells the readings");

    let wrong = run(&table, "machine");
    assert_eq!(wrong.status.code(), Some(1));
    assert!(stderr(&wrong).contains("column \"machine\" is Utf8: numbers are expected"));
    let absent = run(&table, "watts");
    assert_eq!(absent.status.code(), Some(1));
    assert!(stderr(&absent).contains("no column \"watts\"; the table has: machine, rpm, other"));
}

#[test]
fn a_table_is_read_from_a_file_that_is_one() {
    for command in ["pagerank", "stream"] {
        let output = dotcompute(&[command, "-", "--format", "table"]);
        assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
        assert!(stderr(&output).contains("a table is read from a file"));
        let broken = path(&format!("{command}.parquet"));
        fs::write(&broken, "PAR1, or not").expect("to write");
        let output = dotcompute(&[command, broken.to_str().expect("text")]);
        assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
        assert!(stderr(&output).contains("no table of Parquet or Arrow"), "{}", stderr(&output));
    }
}
