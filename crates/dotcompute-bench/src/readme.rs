//! The figures of the README: a few rows of a report, written between two lines that mark their place.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::Wrong;

/// The lines between which the table stands.
const BEGIN: &str =
    "<!-- figures: written by `dotcompute bench --from report.json --readme README.md` -->";
const END: &str = "<!-- figures end -->";

/// The rows that stand for all: of the table, in its order, each with what it is in a few words.
pub(crate) const CHOSEN: &[(&str, &str)] = &[
    ("ring.throughput.single", "records one by one through a ring between two threads"),
    ("ask.tokio", "a question to a kernel and its answer"),
    ("throughput.kameo", "messages to a kernel on another thread"),
    ("handlers.batches", "a record through a compiled handler, in batches of 1000"),
    ("anomaly.batches", "events through an anomaly detector of 10,000 keys, in batches of 1000"),
    ("pagerank.turn.sparse", "links of a graph of a million nodes, gone over by PageRank"),
    ("pagerank.turn.graphblas", "the same from Python"),
    ("pagerank.turn.scipy_1_core", "the same on one core"),
    ("anomaly.batches.river", "an event through the anomaly detector, from Python"),
    ("asyncio.round_trip.uvloop", "a message to an asyncio kernel and its answer, from Python"),
    ("actors.echo.ray", "the same"),
    ("message.encode", "a message as bytes, from Python"),
];

/// Writes the table of a report into the page at `page`.
pub(crate) fn rewrite(report: &Value, page: &Path) -> Result<(), Wrong> {
    let failed = |error: &dyn std::fmt::Display| Wrong::new(format!("{}: {error}", page.display()));
    let old = fs::read_to_string(page).map_err(|error| failed(&error))?;
    let new = replaced(&old, &table(report))
        .ok_or_else(|| failed(&format!("there are no lines {BEGIN} and {END} to write between")))?;
    fs::write(page, new).map_err(|error| failed(&error))
}

fn replaced(page: &str, table: &str) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    Some(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

fn table(report: &Value) -> String {
    let rows =
        || [&report["rows"], &report["python"]].into_iter().filter_map(Value::as_array).flatten();
    let mut text =
        String::from("| what | ours | other | against | ours is |\n|---|--:|--:|---|--:|\n");
    for (id, what) in CHOSEN {
        let Some(row) = rows().find(|row| row["id"] == *id) else { continue };
        let (Some(ours), Some(other), Some(ratio)) =
            (row["ours"].as_f64(), row["other"].as_f64(), row["ratio"].as_f64())
        else {
            continue;
        };
        let unit = row["unit"].as_str().unwrap_or_default();
        let times = if row["better"] == "higher" { ratio } else { 1.0 / ratio };
        // Writing into a String does not fail.
        let _ = writeln!(
            text,
            "| {what} | {} {unit} | {} {unit} | {} | {} |",
            digits(ours),
            digits(other),
            row["against"].as_str().unwrap_or_default(),
            match times {
                times if times >= 1.0 => format!("{}\u{d7} as fast", digits(times)),
                times => format!("{:.0} % as fast", times * 100.0),
            },
        );
    }
    let environment = &report["environment"];
    let said = |name: &str| environment[name].as_str().unwrap_or_default().to_owned();
    let _ = write!(
        text,
        "\n{}, {} cores, commit {}, {}.",
        said("cpu"),
        environment["cores"],
        said("commit"),
        said("date").split('T').next().unwrap_or_default(),
    );
    text
}

/// Three digits, with commas between thousands.
fn digits(value: f64) -> String {
    let whole = match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => return format!("{value:.1}"),
        value => return format!("{value:.2}"),
    };
    let mut text = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::groups::ROWS;

    #[test]
    fn the_table_stands_between_its_marks_and_the_rest_stays() {
        let report = serde_json::json!({
            "environment": {"cpu": "a core", "cores": 2, "commit": "abc", "date": "2026-01-02T03:04"},
            "rows": [{"id": "ask.tokio", "ours": 300.0, "other": 150.0, "ratio": 2.0, "unit": "ns",
                      "better": "lower", "against": "tokio"}],
            "python": [{"id": "actors.echo.ray", "ours": 2e4, "other": 1e6, "ratio": 0.02,
                        "unit": "ns", "better": "lower", "against": "ray"},
                       {"id": "message.encode", "ours": 1.0, "other": null, "ratio": null}],
        });
        let page = replaced(&format!("a\n{BEGIN}\nold\n{END}\nz\n"), &table(&report));
        let page = page.expect("the marks are there");
        assert!(page.starts_with("a\n") && page.ends_with("\nz\n"), "{page}");
        assert!(page.contains("| 300 ns | 150 ns | tokio | 50 % as fast |"), "{page}");
        assert!(page.contains("| 20,000 ns | 1,000,000 ns | ray | 50.0\u{d7} as fast |"), "{page}");
        assert!(!page.contains("old") && !page.contains("bytes, from Python"), "{page}");
        assert_eq!(replaced("no marks", ""), None);
    }

    #[test]
    fn the_rust_rows_of_the_table_exist() {
        let python = [
            "pagerank.turn.graphblas",
            "pagerank.turn.scipy_1_core",
            "anomaly.batches.river",
            "asyncio.round_trip.uvloop",
            "actors.echo.ray",
            "message.encode",
        ];
        for (id, _) in CHOSEN {
            assert!(ROWS.iter().any(|row| row.id == *id) || python.contains(id), "{id}");
        }
    }
}
