//! Tables of Parquet and Arrow, written here, against the same as text.

use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow_array::types::Int8Type;
use arrow_array::{
    ArrayRef, BooleanArray, Date32Array, DictionaryArray, Float32Array, Float64Array, Int32Array,
    Int64Array, LargeStringArray, RecordBatch, StringArray, StringViewArray,
    TimestampMillisecondArray, UInt64Array,
};
use arrow_ipc::writer::{FileWriter, StreamWriter};
use dotcompute_workloads::anomaly::{
    Batch, ColumnError, ColumnNames, Format, InputError, Parser, TableReader,
};
use dotcompute_workloads::pagerank::read::{self, Edges, Nodes, ReadError, Reader, Reason};
use dotcompute_workloads::tables::{TableError, Tables};
use parquet::arrow::ArrowWriter;
use parquet::basic::{Compression, ZstdLevel};
use parquet::file::properties::WriterProperties;

fn rows<const N: usize>(columns: [(&str, ArrayRef); N]) -> RecordBatch {
    // All may hold nulls, so that batches with and without them agree.
    RecordBatch::try_from_iter_with_nullable(columns.map(|(name, cells)| (name, cells, true)))
        .expect("columns of one length")
}

/// A file that is gone when it is closed.
fn file() -> File {
    let path = std::env::temp_dir().join(format!(
        "dotcompute-tables-{}-{:?}",
        std::process::id(),
        std::thread::current().id()
    ));
    let file = File::options().create(true).truncate(true).read(true).write(true).open(&path);
    let file = file.expect("a temporary file");
    std::fs::remove_file(path).expect("to remove it");
    file
}

/// Row groups of `group` rows.
fn parquet(table: &RecordBatch, group: usize, compression: Compression) -> File {
    let mut out = file();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(group))
        .set_compression(compression)
        .build();
    let to = out.try_clone().expect("another handle");
    let mut writer = ArrowWriter::try_new(to, table.schema(), Some(properties)).expect("a writer");
    writer.write(table).expect("to write");
    writer.close().expect("to close");
    out.rewind().expect("to rewind");
    out
}

fn arrow(table: &RecordBatch) -> File {
    let mut out = file();
    let mut writer = FileWriter::try_new(&out, &table.schema()).expect("a writer");
    writer.write(table).expect("to write");
    writer.finish().expect("to finish");
    drop(writer);
    out.rewind().expect("to rewind");
    out
}

fn arrow_stream(table: &RecordBatch) -> File {
    let mut out = file();
    let mut writer = StreamWriter::try_new(&out, &table.schema()).expect("a writer");
    writer.write(table).expect("to write");
    writer.finish().expect("to finish");
    drop(writer);
    out.rewind().expect("to rewind");
    out
}

/// The table in each form of a file.
fn every_form(table: &RecordBatch) -> Vec<File> {
    let zstd = Compression::ZSTD(ZstdLevel::default());
    vec![
        parquet(table, 2, Compression::SNAPPY),
        parquet(table, 1000, zstd),
        parquet(table, 3, Compression::LZ4_RAW),
        parquet(table, 3, Compression::GZIP(Default::default())),
        arrow(table),
        arrow_stream(table),
    ]
}

fn read_edges(reader: &Reader, file: File) -> Result<Edges, ReadError> {
    let tables = Tables::open(file).expect("it is a table");
    reader.read_table(tables, &mut |_| ControlFlow::Continue(()))
}

fn edge_list() -> Reader {
    Reader::new(read::Format::EdgeList)
}

#[test]
fn edges_of_a_table_are_those_of_the_same_text() {
    let text = "10 20\n20 10\n10 30\n30 7000000000\n5 5\n";
    let expected = edge_list().read(text.as_bytes(), &mut |_| ControlFlow::Continue(()));
    let expected = expected.expect("it is a list");
    let source = UInt64Array::from(vec![10, 20, 10, 30, 5]);
    let target = Int64Array::from(vec![20, 10, 30, 7_000_000_000, 5]);
    let weight = Float64Array::from(vec![0.5; 5]);
    let table = rows([
        ("weight", Arc::new(weight)),
        ("Target", Arc::new(target)),
        ("Source", Arc::new(source)),
    ]);
    for file in every_form(&table) {
        let edges = read_edges(&edge_list(), file).expect("it is a table of edges");
        assert_eq!((edges.pairs, edges.nodes), (expected.pairs.clone(), expected.nodes.clone()));
    }
    // The first two columns where no names are known, and nodes by their own number.
    let small: ArrayRef = Arc::new(Int32Array::from(vec![0, 2]));
    let table = rows([("a", Arc::clone(&small)), ("b", small)]);
    let edges = read_edges(&edge_list().nodes(4), parquet(&table, 10, Compression::SNAPPY));
    let edges = edges.expect("it is a table of edges");
    assert_eq!((edges.pairs, edges.nodes), (vec![[0, 0], [2, 2]], Nodes::Range(4)));
}

#[test]
fn nodes_that_have_names_are_those_of_the_same_csv() {
    let text = "from,to\na,b\nb,c\nc,a\na,d\n";
    let expected = Reader::new(read::Format::Csv)
        .read(text.as_bytes(), &mut |_| ControlFlow::Continue(()))
        .expect("it is CSV");
    let (from, to) = (["a", "b", "c", "a"], ["b", "c", "a", "d"]);
    let texts: [(ArrayRef, ArrayRef); 3] = [
        (
            Arc::new(StringArray::from_iter_values(from)),
            Arc::new(LargeStringArray::from_iter_values(to)),
        ),
        (
            Arc::new(StringViewArray::from_iter_values(from)),
            Arc::new(to.into_iter().collect::<DictionaryArray<Int8Type>>()),
        ),
        (
            Arc::new(from.into_iter().collect::<DictionaryArray<Int8Type>>()),
            Arc::new(StringArray::from_iter_values(to)),
        ),
    ];
    for (from, to) in texts {
        for file in every_form(&rows([("from", from.clone()), ("to", to.clone())])) {
            let edges = read_edges(&edge_list(), file).expect("it is a table of edges");
            assert_eq!(edges.pairs, expected.pairs);
            assert_eq!(edges.nodes, expected.nodes);
        }
    }
}

#[test]
fn rows_that_are_no_edges_are_told_by_their_number() {
    let source = Int64Array::from(vec![Some(0), Some(1), None, Some(-1), Some(9)]);
    let target = Int64Array::from(vec![Some(1), None, Some(0), Some(0), Some(0)]);
    let table = rows([("source", Arc::new(source)), ("target", Arc::new(target))]);
    for file in every_form(&table) {
        let error = read_edges(&edge_list(), file).expect_err("a null is no node");
        let ReadError::Malformed(malformed) = error else { panic!("{error}") };
        assert_eq!((malformed.line, malformed.reason), (2, Reason::Null));
    }
    for file in every_form(&table) {
        let reader = edge_list().nodes(3).skip_malformed(true);
        let edges = read_edges(&reader, file).expect("the rest is read");
        assert_eq!((edges.pairs, edges.malformed), (vec![[0, 1]], 4));
        let told = edges.malformed_lines.iter().map(|line| (line.line, line.reason));
        let expected =
            [(2, Reason::Null), (3, Reason::Null), (4, Reason::Negative), (5, Reason::Beyond)];
        assert!(told.eq(expected));
    }
}

#[test]
fn columns_that_cannot_be_used_are_named() {
    let numbers: ArrayRef = Arc::new(Int64Array::from(vec![0, 1]));
    let others: [ArrayRef; 3] = [
        Arc::new(BooleanArray::from(vec![true, false])),
        Arc::new(Float64Array::from(vec![0.0, 1.0])),
        Arc::new(StringArray::from_iter_values(["a", "b"])),
    ];
    for other in others {
        let table = rows([("source", Arc::clone(&numbers)), ("target", other)]);
        let error = read_edges(&edge_list(), parquet(&table, 9, Compression::SNAPPY));
        let Err(ReadError::ColumnType { name, .. }) = error else { panic!("{error:?}") };
        assert_eq!(name, "target");
    }
    let table = rows([("source", Arc::clone(&numbers)), ("target", numbers)]);
    let error = read_edges(&edge_list().columns("source", "to"), arrow(&table));
    assert!(matches!(error, Err(ReadError::NoColumn(name)) if name == "to"));
}

#[test]
fn a_broken_row_group_is_named_with_its_columns_and_no_table_is_refused() {
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..3000));
    let table = rows([("source", Arc::clone(&numbers)), ("target", numbers)]);
    let mut file = parquet(&table, 1000, Compression::SNAPPY);
    let length = file.metadata().expect("its length").len();
    // In the pages of the second of three groups.
    file.seek(SeekFrom::Start(length / 2)).expect("to seek");
    file.write_all(&[0xff; 256]).expect("to write");
    file.rewind().expect("to rewind");
    let error = read_edges(&edge_list(), file).expect_err("it is broken");
    let ReadError::Table(TableError::RowGroup { group, columns, .. }) = &error else {
        panic!("{error}")
    };
    assert_eq!((*group, columns.join(",")), (1, "source,target".into()));
    assert!(error.to_string().starts_with("row group 1 (columns source, target): "), "{error}");

    for bytes in [&b""[..], b"PAR1", b"PAR1 and nothing of a table", b"ARROW1\0\0", b"a,b\n1,2\n"] {
        let mut file = self::file();
        file.write_all(bytes).expect("to write");
        file.rewind().expect("to rewind");
        let error = Tables::open(file).expect_err("it is no table");
        assert!(matches!(error, TableError::Open(_)), "{error}");
    }
}

fn read_all(mut reader: TableReader) -> Result<Batch, InputError> {
    let mut batch = Batch::default();
    while reader.read_next(&mut batch)? {}
    Ok(batch)
}

fn reader(file: File) -> TableReader {
    let tables = Tables::open(file).expect("it is a table");
    TableReader::new(tables, ColumnNames::default()).expect("the columns are there")
}

/// What a reading says, and its line.
fn told(batch: &Batch, lines_before: u64) -> Vec<(u32, String, Option<f64>, f64, u64)> {
    let one = |reading: &dotcompute_workloads::anomaly::Reading| {
        let time = batch.time(reading).to_owned();
        (reading.key, time, reading.at, reading.value, reading.line - lines_before)
    };
    batch.readings.iter().map(one).collect()
}

#[test]
fn readings_of_a_table_are_those_of_the_same_csv() {
    let text = "station,time,wind\n\
        a,2013-01-01T00:00:00Z,1.5\n\
        b,2013-01-01T00:00:00.25Z,-2\n\
        a,,\n\
        a,1969-12-31T23:59:59.999Z,NaN\n\
        c,2013-01-02T00:00:00Z,1e300\n\
        ,2013-01-03T00:00:00Z,4\n\
        b,2013-01-03T00:00:00Z,4\n";
    let (mut parser, mut expected) = (Parser::new(Format::Csv), Batch::default());
    parser.feed(text.as_bytes(), &mut expected).expect("it is CSV");

    let first = 1_356_998_400_000;
    let station = StringArray::from(vec![
        Some("a"),
        Some(" b"),
        Some("a"),
        Some("a"),
        Some("c"),
        None,
        Some("b"),
    ]);
    let time = TimestampMillisecondArray::from(vec![
        Some(first),
        Some(first + 250),
        None,
        Some(-1),
        Some(first + 86_400_000),
        Some(first + 2 * 86_400_000),
        Some(first + 2 * 86_400_000),
    ]);
    let wind = Float64Array::from(vec![
        Some(1.5),
        Some(-2.0),
        None,
        Some(f64::NAN),
        Some(1e300),
        Some(4.0),
        Some(4.0),
    ]);
    let table = rows([
        ("station", Arc::new(station)),
        ("time", Arc::new(time.with_timezone("+00:00"))),
        ("wind", Arc::new(wind)),
    ]);
    for file in every_form(&table) {
        let batch = read_all(reader(file)).expect("the table is whole");
        assert!(batch.tally.balance());
        assert_eq!(told(&batch, 0), told(&expected, 1));
        assert_eq!(batch.new_keys, expected.new_keys);
        assert_eq!((batch.tally.lines, batch.tally.missing), (7, 2));
        let malformed: Vec<String> = batch.malformed.iter().map(ToString::to_string).collect();
        assert_eq!(malformed.len(), 2);
        assert!(malformed[0].starts_with("line 5, column 3 \"wind\": "), "{malformed:?}");
        assert_eq!(malformed[1], "line 6, column 1 \"station\": the key is empty");
    }
    let error = read_all(reader(arrow(&table)).strict(true)).expect_err("row 5 is malformed");
    assert!(matches!(error, InputError::Malformed(malformed) if malformed.line == 5));
    let batch = read_all(reader(arrow(&table)).max_keys(1)).expect("the table is whole");
    assert_eq!((batch.new_keys.len(), batch.tally.readings), (1, 1));
}

#[test]
fn keys_times_and_values_may_be_of_any_type_that_makes_sense() {
    let table = rows([
        ("sensor", Arc::new(Int32Array::from(vec![7, -7, 7])) as ArrayRef),
        ("date", Arc::new(Date32Array::from(vec![0, 15_706, -1]))),
        ("value", Arc::new(Float32Array::from(vec![0.5, 1.5, 2.5]))),
    ]);
    for file in every_form(&table) {
        let batch = read_all(reader(file)).expect("the table is whole");
        assert_eq!(batch.new_keys, ["7".into(), "-7".into()]);
        let expected = [
            (0, "1970-01-01".into(), Some(0.0), 0.5, 1),
            (1, "2013-01-01".into(), Some(15_706.0 * 86_400.0), 1.5, 2),
            (0, "1969-12-31".into(), Some(-86_400.0), 2.5, 3),
        ];
        assert_eq!(told(&batch, 0), expected);
    }
    let bad: [(&str, ArrayRef); 2] = [
        ("key", Arc::new(Float64Array::from(vec![1.0]))),
        ("value", Arc::new(StringArray::from_iter_values(["1"]))),
    ];
    for (name, cells) in bad {
        let good = |name, value| (name, Arc::new(Int64Array::from(vec![value])) as ArrayRef);
        let columns = match name {
            "key" => [("key", cells), good("value", 1)],
            _ => [good("key", 1), ("value", cells)],
        };
        let error = read_all(reader(arrow(&rows(columns)))).expect_err("it cannot be used");
        let InputError::Columns(ColumnError::WrongType { name: told, .. }) = &error else {
            panic!("{error}")
        };
        assert_eq!(told, name);
    }
    let table = rows([("a", Arc::new(Int64Array::from(vec![1])) as ArrayRef)]);
    let names = ColumnNames { value: Some("wind".into()), ..ColumnNames::default() };
    let tables = Tables::open(arrow(&table)).expect("it is a table");
    let error = TableReader::new(tables, names).expect_err("there is no such column");
    assert_eq!(error.to_string(), "no column \"wind\"; the table has: a");
}
