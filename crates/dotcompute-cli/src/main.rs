//! The `dotcompute` command: what a machine offers, a stream of readings through two ring kernels,
//! the ranks of a graph, and the benchmarks.

mod bench;
mod failure;
mod info;
mod pagerank;
mod stream;
#[cfg(feature = "tables")]
mod tables;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Ring kernels: long-lived actors for compute, with bounded mailboxes.
#[derive(Debug, Parser)]
#[command(version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  dotcompute info
  dotcompute stream data/nyc-wind-2013.csv
  dotcompute stream --help
  dotcompute pagerank EDGES --tolerance 1e-8 --output ranks.csv

Exit status: 0 done; 1 bad input or a failure; 2 wrong usage; 3 an optional part is not there;
130 interrupted.
RUST_LOG=debug shows what the runtime does, on standard error.";

#[derive(Debug, Subcommand)]
enum Command {
    Info(info::Arguments),
    Stream(Box<stream::Arguments>),
    Pagerank(Box<pagerank::Arguments>),
    Bench(bench::Arguments),
}

fn main() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version are "errors" too, with status 0. A closed terminal needs no telling.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(failure::USAGE));
        }
    };
    tracing_subscriber::fmt()
        .with_env_filter(EnvFilter::try_from_default_env().unwrap_or_else(|_| "warn".into()))
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    let done = match arguments.command {
        Command::Info(arguments) => info::run(&arguments),
        Command::Stream(arguments) => stream::run(&arguments),
        Command::Pagerank(arguments) => pagerank::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    match done {
        Ok(code) => code,
        Err(failure) => failure.report(),
    }
}
