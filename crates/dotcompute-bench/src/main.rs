//! `dotcompute-bench`: dotcompute beside its peers and floors, each pair in the same run.
//!
//! Linux only: the floors are futexes and pinned threads.

#[cfg(not(target_os = "linux"))]
compile_error!("dotcompute-bench measures against Linux futexes and pinned threads");

mod groups;
mod handled;
mod harness;
mod load;
mod memory;
mod os;
mod ours;
mod page;
mod peers;
mod readme;
mod report;

use std::fmt;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::Instant;

use clap::error::ErrorKind;
use clap::{ArgGroup, CommandFactory, Parser};
use serde_json::Value;

use crate::groups::{GROUPS, ROWS};
use crate::harness::{Effort, Row, SHARES, Wrong, measure};
use crate::memory::Population;
use crate::report::{Environment, Line, Report};

const EXAMPLES: &str = "\
Each row runs ours and a peer, floor or limit in alternating slices in this very run; the ratio is
the median over the pairs, with its quartiles. Results are verified. The table goes to stdout,
progress to stderr.

Examples:
  dotcompute-bench                          every row, about two minutes
  dotcompute-bench --quick                  the same with fewer and shorter slices
  dotcompute-bench --only ring,ask          two groups
  dotcompute-bench --only mailbox.books     one row
  dotcompute-bench --json figures.json      also write the figures to a file
  dotcompute-bench --report target/report --python .venv/bin/python
                                            a page with plots, of Rust and Python
  dotcompute-bench --from report/report.json --report report --readme README.md
                                            its page drawn anew, its chosen figures into another
  dotcompute-bench --list                   what there is

Exit status: 0 whatever the figures; 1 if a result was wrong or a file could not be written;
2 for wrong usage.";

/// Measures dotcompute against its peers and floors.
#[derive(Debug, Parser)]
#[command(name = "dotcompute-bench", version, after_help = EXAMPLES)]
#[command(group = ArgGroup::new("drawn").multiple(true))]
struct Arguments {
    /// Only these groups or rows, separated by commas.
    #[arg(long, value_name = "GROUP,...", value_delimiter = ',')]
    only: Vec<String>,
    /// Fewer and shorter slices: a look, not a measurement.
    #[arg(long)]
    quick: bool,
    /// Write environment and rows to this file, too.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table to a file as Markdown, too.
    #[arg(long, value_name = "FILE")]
    markdown: Option<PathBuf>,
    /// Write a folder with report.json and index.html, a page with plots that needs nothing beside
    /// itself. Takes curves over sizes, too.
    #[arg(long, value_name = "DIR", group = "drawn")]
    report: Option<PathBuf>,
    /// With --report: the interpreter whose `-m pydotcompute.bench` adds its rows; by default python3,
    /// if it has the package. Beside the released PyDotCompute and the libraries of the field where
    /// their environments were made (by --peer and --peers of that program).
    #[arg(long, value_name = "PYTHON", requires = "report")]
    python: Option<PathBuf>,
    /// Measure nothing: take the report.json that --report wrote, for --readme, or to draw its page anew
    /// (--report).
    #[arg(long, value_name = "FILE", conflicts_with_all = ["only", "json", "markdown", "python"])]
    #[arg(requires = "drawn")]
    from: Option<PathBuf>,
    /// Write the chosen figures into this file, between the lines that mark their place.
    #[arg(long, value_name = "FILE", requires = "from", group = "drawn")]
    readme: Option<PathBuf>,
    /// List groups and rows, measure nothing.
    #[arg(long)]
    list: bool,
    /// Start so many idle ones and print what it took: how the memory rows call this program.
    #[arg(long, hide = true, requires = "count")]
    idle: Option<Population>,
    #[arg(long, hide = true)]
    count: Option<u64>,
}

fn main() -> ExitCode {
    // The children of the rows about processes are this program; there it does not return.
    let _ = ours::process::processes();
    let arguments = Arguments::parse();
    let outcome = match (&arguments.from, arguments.idle, arguments.count) {
        (_, Some(population), Some(count)) => idle(population, count),
        (Some(file), ..) => from(file, &arguments),
        _ if arguments.list => say(&list()),
        _ => bench(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(wrong) => {
            eprintln!("dotcompute-bench: {wrong}");
            ExitCode::FAILURE
        }
    }
}

/// Measures the rows chosen and prints them.
fn bench(arguments: &Arguments) -> Result<(), Wrong> {
    let rows = chosen(&arguments.only);
    let effort = if arguments.quick { Effort::QUICK } else { Effort::FULL };
    let environment = Environment::read();
    let started = Instant::now();
    say(&environment.text())?;
    let mut lines = Vec::with_capacity(rows.len());
    let mut skipped = Vec::new();
    for (number, row) in rows.iter().enumerate() {
        if row.cores > environment.cores() {
            skipped.push(format!("{}: needs {} cores", row.id, row.cores));
            continue;
        }
        eprintln!("[{:2}/{}] {}: {}", number + 1, rows.len(), row.id, row.what);
        let measured = measure(row, effort)
            .map_err(|wrong| Wrong::new(format_args!("{}: {wrong}", row.id)))?;
        lines.push(Line::new(row, &measured));
    }
    let load_average_after = report::load_average();
    let mut text = format!("\n{}\n", report::table(&lines));
    for row in &skipped {
        text.push_str(&format!("skipped {row}\n"));
    }
    text.push_str(&format!("load average afterwards {load_average_after}\n"));
    say(&text)?;
    let write = |path: &PathBuf, text: String| {
        fs::write(path, text)
            .map_err(|error| Wrong::new(format_args!("{}: {error}", path.display())))
    };
    if let Some(path) = &arguments.markdown {
        write(path, report::markdown(&environment, &lines, &skipped))?;
    }
    let mut curves = Vec::new();
    if arguments.report.is_some() {
        let has = |group| rows.iter().any(|row| row.group() == group);
        if has("pagerank") {
            eprintln!("[curves] pagerank over sizes");
            curves.push(ours::pagerank::sizes(arguments.quick, peers::memory::of)?);
        }
        if has("anomaly") {
            eprintln!("[curves] anomaly over keys");
            curves.push(ours::anomaly::sizes(arguments.quick)?);
        }
    }
    let report = Report {
        environment: &environment,
        load_average_after,
        shares: SHARES,
        rows: &lines,
        curves,
        skipped,
    };
    let mut json = serde_json::to_value(&report).map_err(Wrong::new)?;
    let pretty = |json: &Value| serde_json::to_string_pretty(json).map(|text| text + "\n");
    if let Some(path) = &arguments.json {
        write(path, pretty(&json).map_err(Wrong::new)?)?;
    }
    if let Some(folder) = &arguments.report {
        fs::create_dir_all(folder)
            .map_err(|error| Wrong::new(format_args!("{}: {error}", folder.display())))?;
        match arguments.python.clone().or_else(find_python) {
            Some(python) => {
                let python = python_rows(&python, arguments.quick, &folder.join("python.json"))?;
                json["python"] = python;
            }
            None => eprintln!("no python3 here has pydotcompute: its rows are left out (--python)"),
        }
        write(&folder.join("report.json"), pretty(&json).map_err(Wrong::new)?)?;
        draw(&json, folder)?;
    }
    eprintln!("measured in {:.0} s", started.elapsed().as_secs_f64());
    Ok(())
}

/// Writes the page of a report.
fn draw(report: &Value, folder: &Path) -> Result<(), Wrong> {
    let page = folder.join("index.html");
    let failed = |error: &dyn fmt::Display| Wrong::new(format_args!("{}: {error}", page.display()));
    fs::create_dir_all(folder).map_err(|error| failed(&error))?;
    fs::write(&page, page::html(&page::parts(report)?)).map_err(|error| failed(&error))?;
    say(&format!("report: {}\n", page.display()))
}

/// Takes a report that was written instead of measuring.
fn from(file: &Path, arguments: &Arguments) -> Result<(), Wrong> {
    let failed = |error: &dyn fmt::Display| Wrong::new(format_args!("{}: {error}", file.display()));
    let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
    let report: Value = serde_json::from_str(&text).map_err(|error| failed(&error))?;
    if let Some(page) = &arguments.readme {
        readme::rewrite(&report, page)?;
    }
    if let Some(folder) = &arguments.report {
        draw(&report, folder)?;
    }
    Ok(())
}

/// The interpreter of the environment that is in use, where it has the package.
fn find_python() -> Option<PathBuf> {
    let mut probe = Command::new("python3");
    probe.args(["-c", "import pydotcompute"]).stdout(Stdio::null()).stderr(Stdio::null());
    probe.status().ok()?.success().then(|| "python3".into())
}

/// The rows of the Python package, measured by itself.
fn python_rows(python: &Path, quick: bool, file: &Path) -> Result<Value, Wrong> {
    let mut command = Command::new(python);
    command.args(["-m", "pydotcompute.bench", "--json"]).arg(file);
    if quick {
        command.arg("--quick");
    }
    let failed = |error: &dyn fmt::Display| {
        Wrong::new(format_args!("{} -m pydotcompute.bench: {error}", python.display()))
    };
    let status = command.status().map_err(|error| failed(&error))?;
    // 1 says that a row of its own failed, which the rows say, too.
    if !status.success() && status.code() != Some(1) {
        return Err(failed(&status));
    }
    let text = fs::read_to_string(file).map_err(|error| failed(&error))?;
    serde_json::from_str(&text).map_err(|error| failed(&error))
}

/// The rows of the groups and ids given, all if none; ends the program if one is unknown.
fn chosen(only: &[String]) -> Vec<&'static Row> {
    let of = |name: &str, row: &Row| row.group() == name || row.id == name;
    if let Some(unknown) = only.iter().find(|name| !ROWS.iter().any(|row| of(name, row))) {
        let groups: Vec<&str> = GROUPS.iter().map(|(group, _)| *group).collect();
        Arguments::command()
            .error(
                ErrorKind::InvalidValue,
                format!("no group or row is called '{unknown}'; groups: {}", groups.join(", ")),
            )
            .exit();
    }
    ROWS.iter().filter(|row| only.is_empty() || only.iter().any(|name| of(name, row))).collect()
}

/// The groups and rows.
fn list() -> String {
    let mut text = String::new();
    for (group, about) in GROUPS {
        text.push_str(&format!("{group}: {about}\n"));
        for row in ROWS.iter().filter(|row| row.group() == group) {
            text.push_str(&format!("  {:<28} {}; against {}\n", row.id, row.what, row.against));
        }
    }
    text
}

/// The child process of a memory row.
fn idle(population: Population, count: u64) -> Result<(), Wrong> {
    let census = population.start(count)?;
    say(&serde_json::to_string(&census).map_err(Wrong::new)?)
}

/// Prints to stdout; a reader that has gone is no failure of the bench.
fn say(text: &str) -> Result<(), Wrong> {
    match io::stdout().write_all(text.as_bytes()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(Wrong::new(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn only_takes_groups_and_rows() {
        let names = |only: &[&str]| {
            let only: Vec<String> = only.iter().map(|name| (*name).to_owned()).collect();
            chosen(&only).iter().map(|row| row.id).collect::<Vec<_>>()
        };
        assert_eq!(names(&[]).len(), ROWS.len());
        assert_eq!(names(&["hop"]), ["hop.tokio"]);
        assert_eq!(names(&["hop", "mailbox.books"]), ["mailbox.books", "hop.tokio"]);
    }
}
