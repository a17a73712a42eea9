//! compute-sanitizer over a grid: it lets kernels run one at a time, and so a grid that stays keeps all
//! else waiting. Here each lease is short, and its messages are there before it begins.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use dotcompute_abi::control::{COMMAND_RUN, COMMAND_STOP};
use dotcompute_cuda::resident::Residency;
use dotcompute_mailbox::Band;

use crate::device::Gpu;
use crate::handlers::Five;
use crate::messages::{LONG, received, record, until};
use crate::recovery::CHILD;
use crate::{Check, Failure, handlers};

const NAME: &str = "compute-sanitizer";

/// Where the toolkit puts it.
const PLACES: [&str; 3] = [
    NAME,
    "/usr/local/cuda/bin/compute-sanitizer",
    "/usr/local/cuda/compute-sanitizer/compute-sanitizer",
];

/// How long one of its tools may take, in seconds.
const WITHIN: &str = "40";

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    if std::env::var_os(CHILD).is_some() {
        return checked(check, &gpu);
    }
    let works = |place: &&&str| {
        Command::new(place).arg("--version").output().is_ok_and(|output| output.status.success())
    };
    let Some(sanitizer) = PLACES.iter().find(works) else {
        let note = format!("left out: there is no {NAME}; it comes with the CUDA toolkit");
        return check.results.finding(NAME, &note);
    };
    for tool in ["memcheck", "racecheck", "synccheck"] {
        let output = Command::new("timeout")
            .args(["-k", "5", WITHIN, sanitizer, "--tool", tool])
            .arg(std::env::current_exe()?)
            .args(["--alone", "--stage", "sanitizer", "--results", "/dev/null"])
            .env(CHILD, "1")
            .output()?;
        let text =
            String::from_utf8_lossy(&[&*output.stdout, &*output.stderr].concat()).into_owned();
        let name = format!("{} --tool {tool}", Path::new(sanitizer).display());
        // Its own last word; without one it did not come to check anything.
        match text.lines().rev().find(|line| line.contains("SUMMARY")) {
            Some(summary) => {
                let clean = output.status.success() && summary.contains(" 0 ");
                check.results.fact(&name, clean, summary.trim_start_matches(['=', ' ']))?;
            }
            None => {
                let last = text.lines().last().unwrap_or("it said nothing");
                let note = format!("left out: it gave no result, and {}: {last}", output.status);
                check.results.finding(&name, &note)?;
            }
        }
    }
    Ok(())
}

/// What is run under it: windows of messages, each sent before the kernel may begin with it.
fn checked(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let residency = Residency {
        lease: Some(Duration::from_millis(20)),
        silence: None,
        census: LONG,
        overdue: LONG,
        ring_multiprocessors: None,
    };
    let (resident, image) = handlers::grid(check, gpu, 1, residency)?;
    let mut port = resident.seat(0, handlers::plan(&image, "echo", 40)?)?;
    for number in 0..64 {
        port.send(Band::Normal, record(0, &Five::of(number))?).map_err(|_| "no room")?;
    }
    port.command(COMMAND_RUN);
    for number in 0..64 {
        let reply = until(|| port.receive())?;
        if received::<Five>(&reply)? != Five::of(number + 1) {
            return check.results.fact("replies are right", false, &format!("at {number}"));
        }
    }
    check.results.fact("replies are right", true, "")?;
    port.command(COMMAND_STOP);
    Ok(resident.end(LONG)?)
}
