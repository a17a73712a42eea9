//! `gpu-check`: what a GPU shows of the executor "cuda", in one run of about ten minutes.
//!
//! Each stage is a process of its own under `timeout`, so that one that hangs or loses the device
//! costs its own rows. Each row is appended to the results as it is measured, as a line of JSON; a
//! table in Markdown is made of them at the end. Everything it needs is in its folder.
//!
//! On a stand-in for NVIDIA's libraries it runs too, to rehearse it: every row says so.

mod apart;
mod device;
mod floors;
mod handlers;
mod hazards;
mod idle;
mod link;
mod messages;
mod package;
mod recovery;
mod report;
mod sanitizer;
mod throughput;
mod workloads;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use dotcompute_cuda::isolated;
use dotcompute_process::{Kernels, Processes};
use report::Results;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What a stage is given.
struct Check {
    results: Results,
    /// Small numbers, for a rehearsal.
    quick: bool,
    /// Where the images lie that were built elsewhere.
    folder: PathBuf,
    /// Starts this program as the process of a context.
    processes: Processes,
}

impl Check {
    /// So many, or fewer where it is quick.
    fn count(&self, full: u64) -> u64 {
        if self.quick { (full / 500).max(20) } else { full }
    }

    /// How many pairs of kernels: a rehearsal has a thread for each kernel.
    fn pairs(&self) -> u32 {
        if self.quick { 4 } else { 64 }
    }

    fn time(&self, full: Duration) -> Duration {
        if self.quick { full / 60 } else { full }
    }
}

struct Stage {
    name: &'static str,
    what: &'static str,
    seconds: u64,
    run: fn(&mut Check) -> Result<(), Failure>,
}

const STAGES: &[Stage] = &[
    Stage { name: "null", what: "an empty kernel", seconds: 60, run: floors::null },
    Stage {
        name: "floors",
        what: "what less than the runtime costs",
        seconds: 60,
        run: floors::floors,
    },
    Stage {
        name: "hazards",
        what: "which calls wait for what is resident",
        seconds: 120,
        run: hazards::run,
    },
    Stage {
        name: "torn",
        what: "whether chunks of 16 bytes arrive whole",
        seconds: 90,
        run: messages::torn,
    },
    Stage {
        name: "round-trip",
        what: "send to answer; hops on the device",
        seconds: 90,
        run: messages::round_trip,
    },
    Stage { name: "throughput", what: "messages a second", seconds: 90, run: throughput::run },
    Stage {
        name: "lease",
        what: "what a change of lease costs",
        seconds: 60,
        run: messages::lease,
    },
    Stage {
        name: "idle",
        what: "what kernels cost that have nothing to do",
        seconds: 60,
        run: idle::run,
    },
    Stage {
        name: "apart",
        what: "kernels on multiprocessors of their own, and other work beside them",
        seconds: 60,
        run: apart::run,
    },
    Stage {
        name: "executor",
        what: "the executor's tests, chaos too",
        seconds: 240,
        run: recovery::tests,
    },
    Stage {
        name: "recovery",
        what: "a stuck handler, a trap, SIGKILL, in this process and in one of the context's own",
        seconds: 120,
        run: recovery::run,
    },
    Stage {
        name: "package",
        what: "the Python package: arrays, copies, kernels, other libraries",
        seconds: 180,
        run: package::run,
    },
    Stage {
        name: "sanitizer",
        what: "compute-sanitizer over a grid with short leases",
        seconds: 150,
        run: sanitizer::run,
    },
    Stage {
        name: "workloads",
        what: "the detector over batches, PageRank in one launch",
        seconds: 240,
        run: workloads::run,
    },
    Stage {
        name: "soak",
        what: "a minute of chaos with exact books",
        seconds: 120,
        run: messages::soak,
    },
];

const HELP: &str = "\
Usage: gpu-check [--stage NAME]... [--quick] [--results FILE] [--table FILE]
       gpu-check --build FOLDER

Measures what a GPU shows of the executor \"cuda\". Without --stage all stages run, each as a process of
its own under timeout.

  --stage NAME     this stage only; see below
  --quick          small numbers: a rehearsal
  --results FILE   append rows as lines of JSON (gpu-check.jsonl)
  --table FILE     write the table of all rows of the results (gpu-check.md)
  --table-only     measure nothing: write the table
  --build FOLDER   compile what the check needs for sm_80, sm_90 and sm_100 into FOLDER/images, where the
                   program finds it if it lies in FOLDER; needs NVRTC and nvJitLink, no GPU
  --help           this

Stages:
";

#[derive(Default)]
struct Arguments {
    stages: Vec<String>,
    quick: bool,
    table_only: bool,
    /// This process is a stage.
    alone: bool,
    results: Option<PathBuf>,
    table: Option<PathBuf>,
    build: Option<PathBuf>,
}

fn main() -> ExitCode {
    let processes = isolated(Kernels::new()).child_main();
    match run(processes) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("gpu-check: {error}");
            ExitCode::from(2)
        }
    }
}

/// Whether everything was as it should be.
fn run(processes: Processes) -> Result<bool, Failure> {
    let Some(arguments) = parse()? else { return Ok(true) };
    if let Some(folder) = &arguments.build {
        handlers::build(&folder.join("images"))?;
        return Ok(true);
    }
    let results = arguments.results.clone().unwrap_or_else(|| "gpu-check.jsonl".into());
    if arguments.alone {
        let folder = std::env::current_exe()?.parent().map(PathBuf::from).unwrap_or_default();
        let name = &arguments.stages[0];
        let stage = find(name)?;
        let results = Results::append(&results, stage.name)?;
        let mut check = Check { results, quick: arguments.quick, folder, processes };
        let outcome = (stage.run)(&mut check);
        if let Err(error) = outcome {
            check.results.failure(&error.to_string())?;
        }
        return Ok(check.results.all_good());
    }
    let mut good = true;
    if !arguments.table_only {
        for stage in STAGES {
            let wanted = &arguments.stages;
            if wanted.is_empty() || wanted.iter().any(|name| name == stage.name) {
                good &= in_a_process(stage, &arguments, &results)?;
            }
        }
    }
    let table = arguments.table.unwrap_or_else(|| "gpu-check.md".into());
    let stages: Vec<(&str, &str)> = STAGES.iter().map(|stage| (stage.name, stage.what)).collect();
    std::fs::write(&table, report::table(&results, &stages)?)?;
    Ok(good)
}

fn find(name: &str) -> Result<&'static Stage, Failure> {
    STAGES.iter().find(|stage| stage.name == name).ok_or_else(|| {
        let names: Vec<&str> = STAGES.iter().map(|stage| stage.name).collect();
        format!("no stage '{name}'; there are: {}", names.join(", ")).into()
    })
}

fn parse() -> Result<Option<Arguments>, Failure> {
    let mut arguments = Arguments::default();
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        let mut value = || given.next().ok_or(format!("{argument} takes a value; see --help"));
        match argument.as_str() {
            "--stage" => {
                let name = value()?;
                arguments.stages.push(find(&name)?.name.to_owned());
            }
            "--quick" => arguments.quick = true,
            "--table-only" => arguments.table_only = true,
            "--alone" => arguments.alone = true,
            "--results" => arguments.results = Some(value()?.into()),
            "--table" => arguments.table = Some(value()?.into()),
            "--build" => arguments.build = Some(value()?.into()),
            "--help" | "-h" => {
                let mut text = HELP.to_owned();
                for Stage { name, what, seconds, .. } in STAGES {
                    text += &format!("  {name:<16} {what} (at most {seconds} s)\n");
                }
                report::say(&text);
                return Ok(None);
            }
            _ => return Err(format!("no argument '{argument}'; see --help").into()),
        }
    }
    if arguments.alone && arguments.stages.len() != 1 {
        return Err("--alone takes one --stage".into());
    }
    Ok(Some(arguments))
}

/// Runs a stage, and notes if it did not come to its end.
fn in_a_process(stage: &Stage, arguments: &Arguments, results: &PathBuf) -> Result<bool, Failure> {
    report::say(&format!("{}: {}\n", stage.name, stage.what));
    let mut command = Command::new("timeout");
    command.args(["-k", "5", &stage.seconds.to_string()]).arg(std::env::current_exe()?);
    command.args(["--alone", "--stage", stage.name, "--results"]).arg(results);
    if arguments.quick {
        command.arg("--quick");
    }
    let status = command.status()?;
    if !matches!(status.code(), Some(0 | 1)) {
        let what = match status.code() {
            Some(124 | 137) => format!("did not end within {} s", stage.seconds),
            _ => format!("ended by {status}"),
        };
        Results::append(results, stage.name)?.failure(&what)?;
    }
    Ok(status.success())
}
