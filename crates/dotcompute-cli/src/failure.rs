//! How the command fails: what, where, what to do, and the exit status.

use std::io::{self, Write};
use std::process::ExitCode;

/// Bad input or a failure on the way.
pub(crate) const FAILED: u8 = 1;
/// The command line makes no sense.
pub(crate) const USAGE: u8 = 2;
/// An optional part of dotcompute is not on this machine.
pub(crate) const ABSENT: u8 = 3;
/// Stopped by Ctrl-C: 128 and the signal's number, as shells count. Also by SIGTERM, which asks for
/// the same.
pub(crate) const INTERRUPTED: u8 = 130;

/// The end of a command that did not succeed.
#[derive(Debug)]
pub(crate) struct Failure {
    status: u8,
    message: String,
    /// What the user can do about it.
    advice: String,
}

impl Failure {
    pub(crate) fn new(status: u8, message: impl ToString, advice: impl ToString) -> Self {
        Self { status, message: message.to_string(), advice: advice.to_string() }
    }

    /// Says it on standard error and gives the exit status.
    pub(crate) fn report(&self) -> ExitCode {
        let Self { status, message, advice } = self;
        // Nobody is there to be told that standard error is closed.
        let _ = match advice.as_str() {
            "" => writeln!(io::stderr(), "dotcompute: {message}"),
            advice => writeln!(io::stderr(), "dotcompute: {message}\n  {advice}"),
        };
        ExitCode::from(*status)
    }
}

/// Writes to standard output. A reader that went away (`dotcompute info | head -1`) is no failure.
pub(crate) fn print(text: &str) -> Result<ExitCode, Failure> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::new(FAILED, format!("cannot write to standard output: {error}"), ""))
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
