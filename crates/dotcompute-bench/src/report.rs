//! What the bench prints: the environment, the table, and the JSON file.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use serde::{Deserialize, Serialize};

use crate::harness::{Better, Measured, Row, SHARES};
use crate::os;
use crate::page::Curve;

/// Where and when the figures were taken.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Environment {
    date: String,
    cpu: String,
    /// Cores this process may use.
    cores: usize,
    /// The two that pinned threads run on.
    pinned_cores: [usize; 2],
    os_kernel: String,
    rustc: String,
    profile: String,
    commit: String,
    /// One reading of the clock; single timed operations include about one of it.
    timer_ns: f64,
    load_average: String,
}

impl Environment {
    pub(crate) fn cores(&self) -> usize {
        self.cores
    }

    pub(crate) fn read() -> Self {
        let unknown = || "unknown".to_owned();
        let os::Cores { first, second } = os::cores();
        Self {
            date: output_of("date", &["-u", "+%Y-%m-%dT%H:%M:%SZ"]).unwrap_or_else(unknown),
            cpu: cpu_model().unwrap_or_else(unknown),
            cores: thread::available_parallelism().map_or(1, usize::from),
            pinned_cores: [first, second],
            os_kernel: first_line("/proc/sys/kernel/osrelease").unwrap_or_else(unknown),
            rustc: env!("BENCH_RUSTC").into(),
            profile: if cfg!(debug_assertions) { "debug" } else { "release" }.into(),
            commit: commit().unwrap_or_else(unknown),
            timer_ns: timer_ns(),
            load_average: first_line("/proc/loadavg").unwrap_or_else(unknown),
        }
    }

    pub(crate) fn text(&self) -> String {
        let [first, second] = self.pinned_cores;
        format!(
            "{}  commit {}  {} ({})\n\
             {}, {} cores (pinned: {first} and {second}), Linux {}\n\
             clock reading {:.0} ns, load average {}\n",
            self.date,
            self.commit,
            self.rustc,
            self.profile,
            self.cpu,
            self.cores,
            self.os_kernel,
            self.timer_ns,
            self.load_average,
        )
    }
}

/// The commit that this is run in; and that its figures are not of that, where the program was built before
/// what it is made of was last changed.
fn commit() -> Option<String> {
    let commit = output_of("git", &["describe", "--always", "--dirty"])?;
    let changed = output_of("git", &["log", "-1", "--format=%ct", "--", ":/crates"])?;
    let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(changed.parse().ok()?);
    let built = fs::metadata(env::current_exe().ok()?).ok()?.modified().ok()?;
    Some(if built < changed { format!("{commit} (the program is of one before)") } else { commit })
}

fn first_line(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.lines().next()?.trim().to_owned())
}

fn output_of(program: &str, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

fn cpu_model() -> Option<String> {
    let info = fs::read_to_string("/proc/cpuinfo").ok()?;
    let (_, model) = info.lines().find(|line| line.starts_with("model name"))?.split_once(':')?;
    Some(model.trim().to_owned())
}

fn timer_ns() -> f64 {
    const READINGS: u32 = 100_000;
    let started = Instant::now();
    for _ in 0..READINGS {
        std::hint::black_box(Instant::now());
    }
    started.elapsed().as_nanos() as f64 / f64::from(READINGS)
}

/// One row as it goes into the JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Line {
    id: &'static str,
    group: &'static str,
    what: &'static str,
    unit: &'static str,
    better: Better,
    /// Median over our slices.
    ours: f64,
    /// The name of the peer, floor or limit.
    against: &'static str,
    /// Median over its slices.
    other: f64,
    /// Median over the pairs of ours/other.
    ratio: f64,
    ratio_min: f64,
    ratio_q1: f64,
    ratio_q3: f64,
    ratio_max: f64,
    pairs: usize,
    /// Slices, of both sides, that count although another program took a core from them.
    disturbed: usize,
    /// The ratio to reach: at least this much if higher is better, else at most. None: only stated.
    goal: Option<f64>,
    /// Whether the goal is reached; none where there is none.
    met: Option<bool>,
    ours_p50_ns: Option<f64>,
    ours_p99_ns: Option<f64>,
    other_p50_ns: Option<f64>,
    other_p99_ns: Option<f64>,
    /// Below how many nanoseconds the shares of single operations stayed that the report's
    /// `shares` name; empty where the row is no latency.
    ours_distribution_ns: Vec<f64>,
    other_distribution_ns: Vec<f64>,
}

impl Line {
    pub(crate) fn new(row: &Row, measured: &Measured) -> Self {
        let better = row.unit.better();
        let ratio = measured.ratio(0.5);
        Self {
            id: row.id,
            group: row.group(),
            what: row.what,
            unit: row.unit.name(),
            better,
            ours: measured.ours.median,
            against: row.against,
            other: measured.other.median,
            ratio,
            ratio_min: measured.ratio(0.0),
            ratio_q1: measured.ratio(0.25),
            ratio_q3: measured.ratio(0.75),
            ratio_max: measured.ratio(1.0),
            pairs: measured.pairs(),
            disturbed: measured.disturbed,
            goal: row.goal,
            met: row.goal.map(|goal| match better {
                Better::Lower => ratio <= goal,
                Better::Higher => ratio >= goal,
            }),
            ours_p50_ns: measured.ours.p50_p99_ns.map(|(p50, _)| p50),
            ours_p99_ns: measured.ours.p50_p99_ns.map(|(_, p99)| p99),
            other_p50_ns: measured.other.p50_p99_ns.map(|(p50, _)| p50),
            other_p99_ns: measured.other.p50_p99_ns.map(|(_, p99)| p99),
            ours_distribution_ns: measured.ours.distribution_ns.clone(),
            other_distribution_ns: measured.other.distribution_ns.clone(),
        }
    }

    /// The line's cells, in the order of `HEADINGS`.
    fn cells(&self) -> [String; 8] {
        let latency = |p50: Option<f64>, p99: Option<f64>| match (p50, p99) {
            (Some(p50), Some(p99)) => format!(" ({}/{})", figure(p50), figure(p99)),
            _ => String::new(),
        };
        let goal = match self.goal {
            None => "stated".to_owned(),
            Some(goal) => {
                let sign = if self.better == Better::Higher { ">=" } else { "<=" };
                format!("{sign} {goal:.2}")
            }
        };
        let met = match self.met {
            None => "",
            Some(true) => "yes",
            Some(false) => "NO",
        };
        let disturbed = match self.disturbed {
            0 => String::new(),
            slices => format!(" ({slices} of {} slices disturbed)", 2 * self.pairs),
        };
        [
            self.id.to_owned(),
            format!("{}{}", figure(self.ours), latency(self.ours_p50_ns, self.ours_p99_ns)),
            format!("{}{}", figure(self.other), latency(self.other_p50_ns, self.other_p99_ns)),
            self.unit.to_owned(),
            format!("{:.2} [{:.2} .. {:.2}]", self.ratio, self.ratio_q1, self.ratio_q3),
            goal,
            met.to_owned(),
            format!("{}{disturbed}", self.against),
        ]
    }
}

const HEADINGS: [&str; 8] = [
    "row",
    "ours (p50/p99)",
    "other (p50/p99)",
    "unit",
    "ratio [quartiles]",
    "goal",
    "met",
    "against",
];

/// The lines as an aligned table.
pub(crate) fn table(lines: &[Line]) -> String {
    let mut rows = vec![HEADINGS.map(str::to_owned)];
    rows.extend(lines.iter().map(Line::cells));
    let widths: [usize; 8] =
        std::array::from_fn(|column| rows.iter().map(|row| row[column].len()).max().unwrap_or(0));
    let mut text = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            // Writing into a String does not fail.
            let _ = write!(line, "{cell:<width$}  ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The lines as a page to keep, which says itself how it was made.
pub(crate) fn markdown(environment: &Environment, lines: &[Line], skipped: &[String]) -> String {
    let mut text = format!(
        "# Benchmarks\n\n\
         Written by `dotcompute bench --markdown FILE`; not edited by hand. Each row measures ours and\n\
         the other in the same run, in alternating slices: the ratio is the median of the pairs, with\n\
         its quartiles. Absolute times are noise on a shared machine.\n\n```text\n{}```\n\n",
        environment.text()
    );
    let mut row = |cells: &[String; 8]| {
        // Writing into a String does not fail.
        let _ = writeln!(text, "| {} |", cells.join(" | "));
    };
    row(&HEADINGS.map(str::to_owned));
    row(&HEADINGS.map(|_| "---".to_owned()));
    lines.iter().for_each(|line| row(&line.cells()));
    for row in skipped {
        let _ = writeln!(text, "\nSkipped {row}.");
    }
    text
}

/// A figure with three or more digits, none of them beyond its precision.
fn figure(value: f64) -> String {
    if value >= 100.0 {
        format!("{value:.0}")
    } else if value >= 10.0 {
        format!("{value:.1}")
    } else {
        format!("{value:.2}")
    }
}

/// The JSON file.
#[derive(Debug, Serialize)]
pub(crate) struct Report<'a> {
    pub(crate) environment: &'a Environment,
    pub(crate) load_average_after: String,
    /// The shares that the distributions tell.
    pub(crate) shares: [f64; SHARES.len()],
    pub(crate) rows: &'a [Line],
    pub(crate) curves: Vec<Curve>,
    /// Rows that this machine cannot run, each with the reason.
    pub(crate) skipped: Vec<String>,
}

/// The load average now.
pub(crate) fn load_average() -> String {
    first_line("/proc/loadavg").unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_keep_three_digits() {
        assert_eq!(figure(1234.5), "1234");
        assert_eq!(figure(56.78), "56.8");
        assert_eq!(figure(1.234), "1.23");
    }

    #[test]
    fn the_page_has_its_headings_and_says_how_it_was_made() {
        let page = markdown(&Environment::read(), &[], &["x: needs 2 cores".to_owned()]);
        assert!(page.contains("| row | ours (p50/p99) |"), "{page}");
        assert!(page.contains("--markdown"), "{page}");
        assert!(page.contains("Skipped x"), "{page}");
    }

    #[test]
    fn the_environment_names_the_machine() {
        let text = Environment::read().text();
        assert!(text.contains("rustc"), "{text}");
        assert!(text.contains("clock reading"), "{text}");
    }
}
