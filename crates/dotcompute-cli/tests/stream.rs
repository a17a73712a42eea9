//! `dotcompute stream` from outside: what it prints, how it ends.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

const DATA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../data");
const EXECUTORS: [&str; 2] = ["async", "thread"];

fn stream(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dotcompute"));
    command.arg("stream").args(arguments).env_remove("RUST_LOG");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// Runs to the end with `input` on standard input.
fn run(arguments: &[&str], input: &[u8]) -> Output {
    let mut child = stream(arguments).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // The program may end before it has read all; that is what some tests are about.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    output
}

fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).unwrap()
}

fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).unwrap()
}

fn temporary(name: &str) -> PathBuf {
    // Two runs of the tests may share the folder.
    PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{name}", std::process::id()))
}

/// Readings of one key that alternate, so that `9` stands out.
const HEAD: &str = "key,value\na,1\na,2\na,1\na,2\na,1\na,2\n";
const SHORT: [&str; 4] = ["--warm-up", "4", "--alpha", "0.1"];

#[test]
fn the_bundled_data_give_the_same_alerts_on_every_executor() {
    for executor in EXECUTORS {
        for (name, more) in [("nyc-wind-2013", ""), ("elnino", "--key=month --threshold=3")] {
            let file = format!("{DATA}/{name}.csv");
            let mut arguments = vec![file.as_str(), "--executor", executor, "--capacity", "1"];
            arguments.extend(more.split_whitespace());
            let output = run(&arguments, b"");
            let golden = format!("{}/tests/golden/{name}.ndjson", env!("CARGO_MANIFEST_DIR"));
            assert_eq!(stdout(&output), fs::read_to_string(golden).unwrap(), "{name}");
            assert_eq!(output.status.code(), Some(0));
            assert!(stderr(&output).starts_with("alerts    "), "{}", stderr(&output));
        }
    }
}

#[test]
fn csv_and_ndjson_on_standard_input_give_the_same_alerts() {
    let csv = fs::read_to_string(format!("{DATA}/nyc-wind-2013.csv")).unwrap();
    let ndjson: String = csv
        .lines()
        .skip(1)
        .map(|line| {
            let fields: Vec<&str> = line.split(',').collect();
            let [station, time, value] = fields[..] else { panic!("{line}") };
            let value = if value == "NA" { "null" } else { value };
            format!("{{\"time\":\"{time}\",\"wind\":{value},\"station\":\"{station}\"}}\n")
        })
        .collect();
    let csv = run(&["-q"], csv.as_bytes());
    let ndjson = run(&["-q", "--format", "ndjson", "-"], ndjson.as_bytes());
    // A CSV has one line more, its header.
    let without_line = |output: &Output| -> Vec<String> {
        stdout(output).lines().map(|l| l.split(",\"line\"").next().unwrap().to_owned()).collect()
    };
    assert_eq!(without_line(&csv), without_line(&ndjson));
    assert_eq!(without_line(&csv).len(), 14);
    assert_eq!((stderr(&csv), stderr(&ndjson)), ("", ""), "quiet");
}

#[test]
fn each_detector_finds_what_it_is_for() {
    // A day has a peak at noon; on the last day there is none, and 7 at midnight. An hour comes late.
    let mut csv = String::from("time,value\n");
    for hour in 0..240 {
        let value = match hour {
            228 => 1,
            216 => 7,
            _ if hour % 24 == 12 => 50,
            _ => 1 + hour % 2 + hour / 24 % 2,
        };
        csv += &format!("2024-01-{:02}T{:02}:00Z,{value}\n", 1 + hour / 24, hour % 24);
    }
    csv += "2024-01-10T22:00Z,1000\n";
    let found = |detector: &[&str]| {
        let output = run(&[detector, &["--warm-up", "5", "-"]].concat(), csv.as_bytes());
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("1 late readings"), "{}", stderr(&output));
        let hours: Vec<String> = stdout(&output)
            .lines()
            .map(|line| line.split('"').nth(7).unwrap()[8..13].to_owned())
            .collect();
        hours
    };
    assert_eq!(found(&["--detector", "seasonal"]), ["10T00", "10T12"]);
    let robust = found(&["--detector", "robust", "--window", "24"]);
    assert!(robust.contains(&"10T00".to_owned()) && !robust.contains(&"10T12".to_owned()));
    assert!(robust.contains(&"05T12".to_owned()), "a peak is far from the median: {robust:?}");
    assert!(!found(&["--threshold", "6"]).contains(&"10T12".to_owned()));
}

#[test]
fn malformed_lines_are_told_and_passed_over() {
    let input = HEAD.to_owned() + &"a,x\n".repeat(25) + "a,9\n";
    let output = run(&SHORT, input.as_bytes());
    assert_eq!(output.status.code(), Some(0));
    let told: Vec<&str> =
        stderr(&output).lines().filter(|l| l.contains("standard input, ")).collect();
    assert_eq!(told.len(), 11);
    assert_eq!(
        told[0],
        "dotcompute: standard input, line 8, column 2 \"value\": \"x\" is not a number"
    );
    assert_eq!(told[10], "dotcompute: standard input, 15 more malformed lines");
    assert!(stderr(&output).contains("25 malformed"));
    assert!(stdout(&output).contains("\"value\":9.0"));
}

#[test]
fn strict_ends_at_the_first_malformed_line() {
    let input = HEAD.to_owned() + "a,9\na,1,2\na,99\n";
    for executor in EXECUTORS {
        let arguments = [&SHORT[..], &["--strict", "--executor", executor]].concat();
        let output = run(&arguments, input.as_bytes());
        assert_eq!(output.status.code(), Some(1));
        assert!(
            stderr(&output).contains("line 9: 3 fields where the header has 2\n"),
            "{}",
            stderr(&output)
        );
        assert_eq!(stdout(&output).lines().count(), 1, "the alert before the fault is given");
    }
}

#[test]
fn inputs_that_cannot_be_used_say_what_to_do() {
    let no_extension = temporary("readings");
    fs::write(&no_extension, "value\n1\n").unwrap();
    let cases: [(&[&str], &str, i32, &str); 11] = [
        (&["/no/such/file.csv"], "", 1, "cannot open /no/such/file.csv: No such file"),
        (&["/tmp"], "", 1, "/tmp is a directory"),
        (&[no_extension.to_str().unwrap()], "", 2, "--format csv or --format ndjson"),
        (&[], "a,b\n1,2\n", 1, "Name the columns with --key, --time and --value"),
        (&["--value", "speed"], "a,b\n1,2\n", 1, "no column \"speed\""),
        (&[], "{\"value\":1,\"b\":2}\n", 1, "--format ndjson"),
        (&["--alpha", "-1"], "", 2, "alpha is -1"),
        (&["--detector", "robust", "--window", "1"], "", 2, "the window is 1"),
        (&["--detector", "seasonal", "--slot", "0"], "", 2, "a slot is 0 long"),
        (&["--threshold", "nan"], "", 2, "the threshold is NaN"),
        (&["--capacity", "0"], "", 2, "--capacity"),
    ];
    for (arguments, input, status, message) in cases {
        let output = run(arguments, input.as_bytes());
        assert_eq!(output.status.code(), Some(status), "{arguments:?}");
        assert!(stderr(&output).contains(message), "{arguments:?}: {}", stderr(&output));
        assert_eq!(stdout(&output), "");
    }
    fs::remove_file(&no_extension).unwrap();
}

#[test]
fn an_empty_input_is_no_failure() {
    for input in ["", "\n", "key,value\n", "\u{feff}key,value\r\n\r\n"] {
        let output = run(&[], input.as_bytes());
        assert_eq!((output.status.code(), stdout(&output)), (Some(0), ""));
        assert!(stderr(&output).contains("0 in 0 readings of 0 keys"), "{}", stderr(&output));
    }
}

#[test]
fn the_summary_as_json_adds_up() {
    let file = temporary("summary.json");
    for executor in EXECUTORS {
        let input = HEAD.to_owned() + "a,x\n\na,\na,9\n";
        let arguments =
            [&SHORT[..], &["-q", "--executor", executor, "--json-summary", file.to_str().unwrap()]];
        let output = run(&arguments.concat(), input.as_bytes());
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let summary: serde_json::Value = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        assert_eq!(summary["alerts"], 1);
        assert_eq!(summary["keys"], 1);
        assert_eq!(summary["executor"], executor);
        assert_eq!(summary["interrupted"], false);
        assert_eq!(
            summary["lines"],
            serde_json::json!({"lines": 11, "readings": 7, "missing": 1, "malformed": 1,
                "blank": 1, "header": 1, "continued": 0})
        );
        let kernels = summary["kernels"].as_array().unwrap();
        assert_eq!(kernels.len(), 2);
        for (kernel, name) in kernels.iter().zip(["parse", "detect"]) {
            let count = |field: &str| kernel[field].as_u64().unwrap();
            assert_eq!(kernel["name"], name);
            assert!(count("accepted") >= 2, "a block and the end");
            assert_eq!(count("accepted"), count("processed"));
            assert!(kernel["queue"]["samples"].as_u64().unwrap() >= 1);
            assert!(kernel["handler"]["p50_ns"].as_u64().unwrap() >= 1);
        }
    }
    fs::remove_file(&file).unwrap();
    let output = run(&["--json-summary", "/no/such/folder/s.json"], b"value\n1\n");
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr(&output).contains("cannot write the summary to /no/such/folder/s.json"));
}

#[test]
fn help_shows_examples_and_statuses() {
    let output = run(&["--help"], b"");
    assert_eq!(output.status.code(), Some(0));
    for text in ["Examples:", "Exit status: 0 done; 1", "130 interrupted", "--strict"] {
        assert!(stdout(&output).contains(text), "{text}");
    }
    assert_eq!(run(&["--no-such-option"], b"").status.code(), Some(2));
}

#[cfg(unix)]
mod unix {
    use std::fs::{File, OpenOptions};
    use std::io::{BufRead, BufReader, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::process::Child;

    use rustix::process::{Pid, Signal, kill_process};

    use super::*;

    fn interrupt(child: &Child) {
        tell(child, Signal::INT);
    }

    fn tell(child: &Child, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    #[test]
    fn the_first_interrupt_or_sigterm_finishes_what_was_read() {
        for (executor, signal) in
            EXECUTORS.into_iter().flat_map(|e| [(e, Signal::INT), (e, Signal::TERM)])
        {
            let arguments = [&SHORT[..], &["--executor", executor]].concat();
            let mut child = stream(&arguments).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            let mut stdout = BufReader::new(child.stdout.take().unwrap());
            // In one piece, as it is shorter than a pipe's: the last line has no end yet.
            stdin.write_all((HEAD.to_owned() + "a,9\na,10").as_bytes()).unwrap();
            let mut alert = String::new();
            stdout.read_line(&mut alert).unwrap();
            assert!(alert.contains("\"value\":9.0"), "{alert}");

            tell(&child, signal); // standard input is still open
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(130));
            let told = stderr(&output);
            assert!(told.contains("1 in 7 readings of 1 keys"), "{told}");
            assert!(told.contains("an unfinished line of 4 bytes was not used"), "{told}");
            assert!(told.contains("interrupted: the rest"), "{told}");
            drop(stdin);
        }
    }

    #[test]
    fn the_second_interrupt_ends_at_once() {
        let mut child = stream(&["--threshold", "1"]).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut told = BufReader::new(child.stderr.take().unwrap());
        // More alerts than the pipe holds, and nobody reads them: the program cannot finish.
        stdin
            .write_all((HEAD.to_owned() + &"a,1\na,2\na,3\na,9\n".repeat(10_000)).as_bytes())
            .unwrap();
        interrupt(&child);
        let mut line = String::new();
        told.read_line(&mut line).unwrap();
        assert!(line.contains("Ctrl-C again ends at once"), "{line}");
        interrupt(&child);
        assert_eq!(child.wait().unwrap().code(), Some(130));
        let mut rest = String::new();
        told.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
    }

    #[test]
    fn a_closed_standard_output_ends_the_work() {
        for executor in EXECUTORS {
            let arguments = [&SHORT[..], &["--executor", executor]].concat();
            let mut child = stream(&arguments).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            drop(child.stdout.take());
            stdin.write_all((HEAD.to_owned() + "a,9\n").as_bytes()).unwrap();
            // Standard input stays open: the program does not wait for its end.
            let output = child.wait_with_output().unwrap();
            assert_eq!(output.status.code(), Some(0));
            assert!(stderr(&output).contains("standard output was closed by its reader"));
            drop(stdin);
        }
    }

    #[test]
    fn a_closed_standard_error_does_no_harm() {
        let mut child = stream(&SHORT).spawn().unwrap();
        drop(child.stderr.take());
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all((HEAD.to_owned() + "a,x\na,9\n").as_bytes()).unwrap();
        drop(stdin);
        let output = child.wait_with_output().unwrap();
        assert_eq!((output.status.code(), stdout(&output).lines().count()), (Some(0), 1));
    }

    #[test]
    fn telemetry_is_served_while_it_runs() {
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let arguments = [&SHORT[..], &["--prometheus", &address]].concat();
        let mut child = stream(&arguments).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all((HEAD.to_owned() + "a,9\n").as_bytes()).unwrap();
        let mut alert = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut alert).unwrap();

        let mut connection = TcpStream::connect(&address).unwrap();
        connection.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut page = String::new();
        connection.read_to_string(&mut page).unwrap();
        assert!(page.contains("dotcompute_kernel_accepted_total{kernel=\"parse\"}"), "{page}");
        drop(stdin);
        assert_eq!(child.wait_with_output().unwrap().status.code(), Some(0));

        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = taken.local_addr().unwrap().to_string();
        let output = run(&["--prometheus", &address], b"");
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("no Prometheus endpoint at"), "{}", stderr(&output));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_full_disk_is_a_failure() {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let mut child = stream(&SHORT).stdout(full).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        stdin.write_all((HEAD.to_owned() + "a,9\n").as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("cannot write the alerts"), "{}", stderr(&output));
        drop(stdin);
    }

    #[test]
    fn an_unreadable_input_is_a_failure() {
        // A directory on standard input opens, and fails when it is read.
        let folder = File::open("/tmp").unwrap();
        let output = stream(&[]).stdin(folder).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        assert!(stderr(&output).contains("cannot read standard input"), "{}", stderr(&output));
    }
}
