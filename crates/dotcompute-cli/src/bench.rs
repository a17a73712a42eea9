//! `dotcompute bench`: hands over to `dotcompute-bench`, which carries every peer it measures against
//! and is therefore built apart.

use std::env;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use crate::failure::{ABSENT, FAILED, Failure};

/// Measure dotcompute against its peers (needs the separate program dotcompute-bench)
///
/// All arguments are passed to dotcompute-bench, which is looked for beside this program and then on
/// the PATH. If it is not there, the exit status is 3.
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Examples:\n  dotcompute bench --quick\n  dotcompute bench --only ring,mailbox --json bench.json"
)]
pub(crate) struct Arguments {
    /// Arguments of dotcompute-bench
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<OsString>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let Some(program) = find() else {
        return Err(Failure::new(
            ABSENT,
            "dotcompute-bench is neither beside this program nor on the PATH",
            "Build it in dotcompute's source tree with: cargo build --release -p dotcompute-bench",
        ));
    };
    let mut command = Command::new(&program);
    command.args(&arguments.arguments);
    let cannot = |error: std::io::Error| {
        Failure::new(
            FAILED,
            format!("cannot run {}: {error}", program.display()),
            "Build it anew with: cargo build --release -p dotcompute-bench",
        )
    };
    #[cfg(unix)]
    {
        use std::os::unix::process::CommandExt as _;
        Err(cannot(command.exec())) // returns only if it fails
    }
    #[cfg(not(unix))]
    {
        let status = command.status().map_err(cannot)?;
        let code = status.code().and_then(|code| u8::try_from(code).ok());
        Ok(ExitCode::from(code.unwrap_or(FAILED)))
    }
}

fn find() -> Option<PathBuf> {
    let name = format!("dotcompute-bench{}", env::consts::EXE_SUFFIX);
    let beside = env::current_exe().ok().and_then(|exe| Some(exe.parent()?.to_owned()));
    let path = env::var_os("PATH").unwrap_or_default();
    beside
        .into_iter()
        .chain(env::split_paths(&path))
        .map(|folder| folder.join(&name))
        .find(|program| program.is_file())
}
