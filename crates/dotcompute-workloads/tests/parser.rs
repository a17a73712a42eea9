//! The parser against tables of cases, against the `csv` crate, and against anything at all.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use dotcompute_workloads::anomaly::{
    Batch, ColumnError, ColumnNames, Format, InputError, MAX_LINE_BYTES, Parser, Tally,
};
use proptest::prelude::*;

/// What an input says: (key, time, value, line) of each reading.
type Rows = Vec<(String, String, f64, u64)>;

struct Parsed {
    rows: Rows,
    tally: Tally,
    faults: Vec<String>,
    error: Option<InputError>,
}

/// Parses `input` in blocks of `block_bytes`.
fn parse_in_blocks(mut parser: Parser, input: &[u8], block_bytes: usize) -> Parsed {
    let mut names = Vec::new();
    let mut parsed =
        Parsed { rows: Vec::new(), tally: Tally::default(), faults: Vec::new(), error: None };
    let blocks = input.chunks(block_bytes.max(1)).map(Some).chain([None]);
    for block in blocks {
        let mut batch = Batch::default();
        let done = match block {
            Some(block) => parser.feed(block, &mut batch),
            None => parser.finish(&mut batch),
        };
        assert!(batch.tally.balance(), "{:?}", batch.tally);
        assert_eq!(batch.tally.readings as usize, batch.readings.len());
        names.extend(batch.new_keys.iter().map(|name| name.to_string()));
        for reading in &batch.readings {
            let name = names[reading.key as usize].clone();
            parsed.rows.push((name, batch.time(reading).into(), reading.value, reading.line));
        }
        parsed.tally.add(&batch.tally);
        parsed.faults.extend(batch.malformed.iter().map(ToString::to_string));
        if let Err(error) = done {
            parsed.error = Some(error);
            break;
        }
    }
    assert_eq!(parser.keys(), names.len());
    parsed
}

fn parse(format: Format, input: impl AsRef<[u8]>) -> Parsed {
    parse_in_blocks(Parser::new(format), input.as_ref(), usize::MAX)
}

fn csv(input: impl AsRef<[u8]>) -> Parsed {
    parse(Format::Csv, input)
}

fn ndjson(input: impl AsRef<[u8]>) -> Parsed {
    parse(Format::Ndjson, input)
}

fn row(key: &str, time: &str, value: f64, line: u64) -> (String, String, f64, u64) {
    (key.into(), time.into(), value, line)
}

#[test]
fn csv_in_every_dress_gives_the_same_readings() {
    let rows = vec![row("a", "t1", 1.5, 2), row("b", "t2", -2e3, 3)];
    for input in [
        "key,time,value\na,t1,1.5\nb,t2,-2e3\n",
        "key,time,value\na,t1,1.5\nb,t2,-2e3",
        "key,time,value\r\na,t1,1.5\r\nb,t2,-2e3\r\n",
        "\u{feff}key,time,value\na,t1,1.5\nb,t2,-2e3\n",
        "\u{feff}\"key\",\"time\",\"value\"\n\"a\",\"t1\",\"1.5\"\n\"b\",t2,\"-2e3\"",
        " key , time , value \n a ,t1 ,\t1.5\nb,t2,  -2e3 \n",
        "Time,Value,KEY\nt1,1.5,a\nt2,-2000,b\n",
        "key,extra,time,value,\na,,t1,1.5,x\nb,y,t2,-2e3,\n",
    ] {
        let parsed = csv(input);
        assert_eq!((&parsed.rows, &parsed.error), (&rows, &None), "{input:?}");
        assert_eq!((parsed.tally.lines, parsed.tally.header), (3, 1), "{input:?}");
    }
}

#[test]
fn quoted_fields_hold_commas_quotes_and_newlines() {
    let parsed = csv("key,time,value\n\"a,\"\"b\"\"\",\"t\n\n1\",1\r\nc,\"t\r\n2\",2\nd,t\"3,3\n");
    assert_eq!(
        parsed.rows,
        [row("a,\"b\"", "t\n\n1", 1.0, 2), row("c", "t\n2", 2.0, 5), row("d", "t\"3", 3.0, 7)]
    );
    assert_eq!((parsed.tally.lines, parsed.tally.continued), (7, 3));
}

#[test]
fn a_csv_without_key_or_time_is_one_stream() {
    assert_eq!(csv("celsius\n1\n\n2\n").rows, [row("all", "", 1.0, 2), row("all", "", 2.0, 4)]);
}

#[test]
fn missing_values_are_neither_readings_nor_faults() {
    let parsed = csv("key,value\na,\na,NaN\na,-nan\na,NA\nb,null\na,\"\"\na, \na,1\n");
    assert_eq!(parsed.rows, [row("a", "", 1.0, 9)]);
    assert_eq!((parsed.tally.missing, parsed.tally.malformed), (6, 1));
    let parsed = ndjson(
        "{\"key\":\"a\",\"value\":null}\n{\"key\":\"a\",\"value\":\"nan\"}\n{\"key\":\"a\",\"value\":\"\"}\n",
    );
    assert_eq!((parsed.tally.missing, parsed.rows.len()), (3, 0));
}

#[test]
fn each_fault_is_told_with_line_column_and_reason() {
    let parsed =
        csv(b"key,time,value\na,t,abc\na,t\na,t,1,2\n,t,1\na,t,inf\na,t,1e151\na,t,1e999\n\
        \xff,t,1\na,\xff,1\na,t,\xff\na,t,7\n");
    assert_eq!(
        parsed.faults,
        [
            "line 2, column 3 \"value\": \"abc\" is not a number",
            "line 3: 2 fields where the header has 3",
            "line 4: 4 fields where the header has 3",
            "line 5, column 1 \"key\": the key is empty",
            "line 6, column 3 \"value\": \"inf\" is larger than 1e150",
            "line 7, column 3 \"value\": \"1e151\" is larger than 1e150",
            "line 8, column 3 \"value\": \"1e999\" is larger than 1e150",
            "line 9, column 1 \"key\": not UTF-8",
            "line 10, column 2 \"time\": not UTF-8",
            "line 11, column 3 \"value\": not UTF-8",
        ]
    );
    assert_eq!((parsed.tally.malformed, parsed.rows), (10, vec![row("a", "t", 7.0, 12)]));
}

#[test]
fn each_fault_of_ndjson_is_told() {
    let parsed = ndjson(
        "garbage\n{\"key\":\"a\",\"time\":1,\"value\":1}\n{\"key\":\"a\",\"time\":1}\n\
         {\"key\":[1],\"time\":1,\"value\":1}\n{\"key\":\"a\",\"time\":1,\"value\":true}\n[1,2]\n\
         {\"key\":\"a\",\"time\":1,\"value\":1\n{\"key\":\"a\",\"time\":1,\"value\":1} x\n\
         {\"key\":null,\"time\":1,\"value\":1}\n{\"key\":\"a\",\"time\":1,\"value\":\"x\"}\n",
    );
    assert_eq!(parsed.rows, [row("a", "1", 1.0, 2)]);
    let faults: Vec<&str> = parsed.faults.iter().map(String::as_str).collect();
    assert!(faults[0].starts_with("line 1: not a JSON object: expected value at byte 1"));
    assert_eq!(
        faults[1..4],
        [
            "line 3, field \"value\": the object has no such field",
            "line 4, field \"key\": [1] cannot be used here",
            "line 5, field \"value\": true cannot be used here",
        ]
    );
    assert!(faults[4].starts_with("line 6: not a JSON object"), "{}", faults[4]);
    assert!(faults[5].starts_with("line 7: not a JSON object: EOF"), "{}", faults[5]);
    assert!(faults[6].starts_with("line 8: not a JSON object: trailing"), "{}", faults[6]);
    assert_eq!(faults[7], "line 9, field \"key\": the key is empty");
    assert_eq!(faults[8], "line 10, field \"value\": \"x\" is not a number");
}

#[test]
fn ndjson_takes_names_escapes_numbers_and_other_fields() {
    let parsed = ndjson(
        "\u{feff}{\"Sensor\":\"a\\u0062\\n\",\"ts\":1700000000.50,\"Value\":1.5,\"more\":{\"value\":[1,{}]}}\r\n\
         \n{\"v\\u0061lue\":7,\"Value\":\"2.5\",\"ts\":\"x\",\"Sensor\":12}\n   \n",
    );
    assert_eq!(parsed.rows, [row("ab\n".trim(), "1700000000.50", 1.5, 1), row("12", "x", 2.5, 3)]);
    assert_eq!((parsed.tally.blank, parsed.error), (2, None));
    let names = ColumnNames { key: None, time: None, value: Some("kelvin".into()) };
    let parser = Parser::new(Format::Ndjson).columns(names);
    let parsed = parse_in_blocks(parser, b"{\"kelvin\":3,\"id\":\"x\",\"value\":8}\n", 1);
    assert_eq!(parsed.rows, [row("x", "", 3.0, 1)]);
}

#[test]
fn columns_that_are_not_there_end_the_input() {
    let Some(InputError::Columns(ColumnError::NoValue { line: 3, header })) =
        csv("\n\na,b\n1,2\n").error
    else {
        panic!("the header says nothing about the value");
    };
    assert_eq!(header, ["a", "b"]);
    assert!(ndjson("{\"a\":1,\"b\":2}\n").error.is_some());
    let error = csv("key,\"value\n1,2\n").error.unwrap().to_string();
    assert!(error.starts_with("the header (line 1) cannot be read: a quoted field"), "{error}");
    assert!(csv(b"key,\xff\n").error.is_some());
}

#[test]
fn strict_ends_at_the_first_fault_and_keeps_what_came_before() {
    let parser = Parser::new(Format::Csv).strict(true);
    let parsed = parse_in_blocks(parser, b"key,value\na,1\na,x\na,2\n", usize::MAX);
    assert_eq!(parsed.rows, [row("a", "", 1.0, 2)]);
    let error = parsed.error.unwrap().to_string();
    assert_eq!(error, "line 3, column 2 \"value\": \"x\" is not a number");
}

#[test]
fn ten_faults_are_described_and_all_are_counted() {
    let parsed = csv("key,value\n".to_owned() + &"a,x\n".repeat(25));
    assert_eq!((parsed.faults.len(), parsed.tally.malformed), (10, 25));
}

#[test]
fn the_number_of_keys_is_limited() {
    let parser = Parser::new(Format::Csv).max_keys(2);
    let parsed = parse_in_blocks(parser, b"key,value\na,1\nb,2\nc,3\na,4\n", 3);
    assert_eq!(parsed.rows.len(), 3);
    assert_eq!(parsed.faults, ["line 4, column 1 \"key\": more than 2 keys"]);
}

#[test]
fn a_line_beyond_the_limit_is_one_fault_however_it_is_cut() {
    let longest = "9".repeat(MAX_LINE_BYTES - 2) + ",1";
    for (line, readings) in [(longest.clone(), 2), (longest + "1", 1)] {
        let input = format!("key,value\n{line}\nb,2\n");
        for block_bytes in [4096, 65_536, usize::MAX] {
            for parsed in [
                parse_in_blocks(Parser::new(Format::Csv), input.as_bytes(), block_bytes),
                parse_in_blocks(
                    Parser::new(Format::Csv),
                    input.replace("9,", "9\",").replace("\n9", "\n\"9").as_bytes(),
                    block_bytes,
                ),
            ] {
                assert!(parsed.tally.readings <= readings, "{:?}", parsed.tally);
                assert_eq!(parsed.tally.lines, 3);
                assert_eq!(parsed.rows.last(), Some(&row("b", "", 2.0, 3)));
            }
        }
    }
    let json = format!("{{\"value\":1}}\n{}\n{{\"value\":2}}", " ".repeat(MAX_LINE_BYTES + 1));
    let parsed = parse_in_blocks(Parser::new(Format::Ndjson), json.as_bytes(), 1000);
    assert_eq!((parsed.rows.len(), parsed.tally.malformed), (2, 1));
    assert_eq!(parsed.faults, ["line 2: longer than 1048576 bytes (an open quote?)"]);
}

#[test]
fn an_open_quote_is_a_fault_with_the_line_where_it_opens() {
    let parsed = csv("key,value\na,1\n\"b,2\nc,3\nd,4\n");
    assert_eq!(parsed.faults, ["line 3: a quoted field is still open at the end of the input"]);
    assert_eq!((parsed.tally.lines, parsed.tally.continued), (5, 2));
    // Beyond the limit the parser gives the record up and reads on.
    let many = "c,3\n".repeat(MAX_LINE_BYTES / 4 + 10);
    let parsed = csv(format!("key,value\na,1\n\"b,2\n{many}z,5\n"));
    assert_eq!(parsed.tally.malformed, 1);
    assert!(parsed.faults[0].starts_with("line 3: longer than"));
    assert_eq!(parsed.rows.last().unwrap().0, "z");
}

#[test]
fn unfinished_bytes_are_those_that_no_line_has_taken() {
    let mut parser = Parser::new(Format::Csv);
    let mut batch = Batch::default();
    parser.feed(b"key,value\na,1\nb,12", &mut batch).unwrap();
    assert_eq!((parser.unfinished_bytes(), batch.readings.len()), (4, 1));
    parser.feed(b"\n\"x\ny", &mut batch).unwrap();
    assert_eq!((parser.unfinished_bytes(), batch.readings.len()), (4, 2));
    assert!(batch.tally.balance());
}

#[test]
fn nothing_gives_nothing() {
    for format in [Format::Csv, Format::Ndjson] {
        for input in ["", "\n\n", "\r\n", " \n"] {
            let parsed = parse(format, input);
            assert_eq!((parsed.rows.len(), parsed.error, parsed.faults.len()), (0, None, 0));
            assert_eq!(parsed.tally.lines, parsed.tally.blank);
        }
    }
}

/// Text that is likely to be nearly an input.
fn nearly_input() -> impl Strategy<Value = Vec<u8>> {
    let pieces = proptest::sample::select(vec![
        &b"key,time,value\n"[..],
        b"a,t,1\n",
        b"{\"key\":\"a\",\"value\":1}\n",
        b"{\"key\":",
        b"\"",
        b"\"\"",
        b",",
        b"\n",
        b"\r\n",
        b"\r",
        b"1e5",
        b"nan",
        b"\xff",
        b"\xef\xbb\xbf",
        b"}",
        b"\\u00",
        b"x",
        b" ",
    ]);
    proptest::collection::vec(pieces, 0..60).prop_map(|pieces| pieces.concat())
}

/// A CSV of three columns whose fields may need quotes.
fn any_csv() -> impl Strategy<Value = String> {
    let field = || {
        proptest::collection::vec(
            proptest::sample::select(vec!["a", "b", ",", " ", "\"", "\n", "\r"]),
            0..6,
        )
        .prop_map(|pieces| pieces.concat())
    };
    let end = proptest::sample::select(vec!["\n", "\r\n", "\n\n", "\r\n\r\n"]);
    let quoted = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    let line = (field(), field(), -999i16..999, any::<bool>(), end).prop_map(
        move |(key, time, value, plain, end)| {
            let value = if plain { value.to_string() } else { quoted(&value.to_string()) };
            format!("{},{},{value}{end}", quoted(&format!("k{key}")), quoted(&time))
        },
    );
    proptest::collection::vec(line, 0..20)
        .prop_map(|lines| "key,time,value\n".to_owned() + &lines.concat())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes_are_read_alike_in_blocks_of_any_size(
        input in prop_oneof![proptest::collection::vec(any::<u8>(), 0..300), nearly_input()],
        block_bytes in 1usize..40,
        strict in any::<bool>(),
    ) {
        for format in [Format::Csv, Format::Ndjson] {
            let parser = || Parser::new(format).strict(strict);
            let whole = parse_in_blocks(parser(), &input, usize::MAX);
            let cut = parse_in_blocks(parser(), &input, block_bytes);
            prop_assert_eq!(&whole.rows, &cut.rows);
            prop_assert_eq!(whole.tally, cut.tally);
            prop_assert_eq!(&whole.faults, &cut.faults);
            prop_assert_eq!(&whole.error, &cut.error);
            if whole.error.is_none() {
                let mut lines = input.iter().filter(|b| **b == b'\n').count() as u64;
                lines += u64::from(input.last().is_some_and(|b| *b != b'\n'));
                prop_assert_eq!(whole.tally.lines, lines);
            }
        }
    }

    #[test]
    fn a_csv_is_read_as_the_csv_crate_reads_it(input in any_csv(), block_bytes in 1usize..40) {
        let ours = parse_in_blocks(Parser::new(Format::Csv), input.as_bytes(), block_bytes);
        prop_assert_eq!(ours.error, None);
        prop_assert_eq!(ours.tally.malformed, 0);
        let trim = |text: &str| text.replace("\r\n", "\n").trim_ascii().to_owned();
        let theirs: Vec<_> = csv::Reader::from_reader(input.as_bytes())
            .records()
            .map(|record| {
                let record = record.unwrap();
                (trim(&record[0]), trim(&record[1]), record[2].parse::<f64>().unwrap())
            })
            .collect();
        let ours: Vec<_> =
            ours.rows.iter().map(|r| (r.0.clone(), r.1.clone(), r.2)).collect();
        prop_assert_eq!(ours, theirs);
    }
}
