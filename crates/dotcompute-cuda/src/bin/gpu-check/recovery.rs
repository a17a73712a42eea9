//! What is left when something goes wrong: processes that start anew must find the device well.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use dotcompute_abi::codes;
use dotcompute_core::{AskError, FaultKind, Terminate};
use dotcompute_cuda::resident::{Isolation, Residency};
use dotcompute_cuda::toolkit::Toolkit;

use crate::device::Gpu;
use crate::handlers::Number;
use crate::messages::percentile_us;
use crate::{Check, Failure, handlers};

const LONG: Duration = Duration::from_secs(30);

/// Set where a stage runs itself as a child.
pub(crate) const CHILD: &str = "GPU_CHECK_CHILD";

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    if std::env::var_os(CHILD).is_some() {
        // Stays on the device, without a lease, until it is killed.
        let stage = handlers::executor(check, &gpu, 3, None)?;
        let kernel = handlers::worker(&stage, "victim", false)?;
        kernel.ask_blocking(Number { value: 1 }, Some(LONG))?;
        crate::report::say("resident\n");
        std::io::Write::flush(&mut std::io::stdout())?;
        loop {
            std::thread::park();
        }
    }
    killed(check)?;
    answers(check, &gpu, "after SIGKILL of a process with a resident grid")?;
    stuck(check, &gpu)?;
    answers(check, &gpu, "after a handler that did not come back")?;
    isolated(check, &gpu)?;
    trap(check, &gpu)
}

/// Kernels whose context lives in a process of its own, which is lost again and again.
fn isolated(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let residency = Residency { overdue: Duration::from_millis(500), ..Residency::default() };
    let isolation = Isolation::Process(check.processes.clone());
    let before = children()?;
    let stage = handlers::executor_in(check, gpu, 3, residency, isolation)?;
    let kernel = handlers::worker(&stage, "isolated", true)?;
    let ask = || kernel.ask_blocking(Number { value: 1 }, Some(LONG));
    ask()?;
    let mut times = Vec::new();
    for _ in 0..check.count(50_000) {
        let start = Instant::now();
        ask()?;
        times.push(start.elapsed());
    }
    let p50 = percentile_us(&mut times, 50.0);
    check.results.figure("an ask across processes, p50", p50, "us", None)?;
    // What is lost is told, and the state begins anew.
    let back = |start: Instant| -> Result<Duration, Failure> {
        loop {
            match ask() {
                Ok(sum) if sum.message.count == 1 => return Ok(start.elapsed()),
                _ if start.elapsed() > LONG => return Err("the kernel did not come back".into()),
                Ok(_) | Err(_) => {}
            }
        }
    };
    let child = children()?.difference(&before).next().copied().ok_or("the child is not there")?;
    let start = Instant::now();
    let killed = Command::new("kill").args(["-KILL", &child.to_string()]).status()?.success();
    let took = format!("{:.0} ms to the first answer", back(start)?.as_secs_f64() * 1e3);
    let what = "isolated: a kernel answers after SIGKILL of its context's process";
    check.results.fact(what, killed, &took)?;
    for (what, value) in [
        ("isolated: a kernel answers after it trapped", -5),
        ("isolated: a kernel answers after it did not come back", -i64::MAX),
    ] {
        let start = Instant::now();
        let told = match kernel.ask_blocking(Number { value }, Some(LONG)) {
            Err(AskError::Failed { fault, .. }) => fault.to_string(),
            other => format!("{other:?}"),
        };
        let note =
            format!("{:.0} ms to the first answer; {told}", back(start)?.as_secs_f64() * 1e3);
        check.results.fact(what, told.contains("the grid of the kernel was lost"), &note)?;
    }
    kernel.terminate_blocking(Terminate::now());
    Ok(())
}

/// The processes that this one has started and not reaped.
fn children() -> Result<BTreeSet<u32>, Failure> {
    let (own, mut found) = (std::process::id(), BTreeSet::new());
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // It may be gone by now.
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit(')').next().and_then(|rest| rest.split_whitespace().nth(1));
        if parent.and_then(|parent| parent.parse().ok()) == Some(own) {
            found.insert(pid);
        }
    }
    Ok(found)
}

/// A process that is resident is killed.
fn killed(check: &mut Check) -> Result<(), Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--alone", "--stage", "recovery", "--results", "/dev/null"])
        .env(CHILD, "1")
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = child.stdout.take().map(std::io::BufReader::new).ok_or("no output")?;
    let mut line = String::new();
    while !line.contains("resident") {
        line.clear();
        if std::io::BufRead::read_line(&mut lines, &mut line)? == 0 {
            return Err("the child did not become resident".into());
        }
    }
    let start = Instant::now();
    child.kill()?;
    child.wait()?;
    let took = start.elapsed().as_secs_f64() * 1e3;
    check.results.figure("SIGKILL of a process with a resident grid", took, "ms", None)
}

fn answers(check: &mut Check, gpu: &Gpu, when: &str) -> Result<(), Failure> {
    let start = Instant::now();
    let stage = handlers::executor(check, gpu, 3, Some(Duration::from_millis(250)))?;
    let kernel = handlers::worker(&stage, "after", false)?;
    let sum = kernel.ask_blocking(Number { value: 42 }, Some(LONG))?.message;
    kernel.terminate_blocking(Terminate::now());
    let took = format!("{:.0} ms to the first answer", start.elapsed().as_secs_f64() * 1e3);
    check.results.fact(&format!("a kernel answers {when}"), sum.total == 42, &took)
}

fn stuck(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let stage = handlers::executor(check, gpu, 3, Some(Duration::from_millis(250)))?;
    let kernel = handlers::worker(&stage, "stuck", false)?;
    let value = -(Duration::from_secs(3).as_nanos() as i64);
    kernel.send_blocking(Number { value }, None).map_err(|error| error.to_string())?;
    while kernel.books().in_hand == 0 {
        std::thread::yield_now();
    }
    // On its way to the device, where it then is for seconds.
    std::thread::park_timeout(Duration::from_millis(200));
    let within = Duration::from_millis(500);
    let start = Instant::now();
    let ended = kernel.terminate_blocking(Terminate::now().within(within));
    let took = start.elapsed();
    let note = format!("{ended:?} after {:.0} ms", took.as_secs_f64() * 1e3);
    let what = "terminate returns while the handler does not";
    check.results.fact(what, took < 4 * within, &note)
}

/// The last: the process has no device afterwards.
fn trap(check: &mut Check, gpu: &Gpu) -> Result<(), Failure> {
    let stage = handlers::executor(check, gpu, 3, Some(Duration::from_millis(250)))?;
    let kernel = handlers::worker(&stage, "traps", false)?;
    let (lost, note) = match kernel.ask_blocking(Number { value: -5 }, Some(LONG)) {
        Err(AskError::Failed { fault, .. }) => {
            (fault.kind() == FaultKind::Code(codes::FAULT_LOST), fault.to_string())
        }
        other => (false, format!("{other:?}")),
    };
    check.results.fact("a trap fails its kernel as lost, with the suspect", lost, &note)
}

/// The tests of the executor, conformance and chaos among them, which were carried along.
pub(crate) fn tests(check: &mut Check) -> Result<(), Failure> {
    Gpu::open(check)?;
    if let Err(absent) = Toolkit::load().and_then(|it| it.linker().map(drop).map_err(Clone::clone))
    {
        let note = format!("left out, since they compile their handlers: {absent}");
        return check.results.finding("the executor's tests", &note);
    }
    const LOSES: &str = "a_trap_loses_the_device_and_every_kernel_is_told";
    for (binary, what, arguments) in [
        ("executor-tests", "the executor's tests, chaos too", &["--skip", LOSES][..]),
        ("conformance-tests", "what handlers are promised on every executor", &[]),
        ("connected-tests", "kernels that are connected on the device", &[]),
        // Last, and in a process of its own.
        ("executor-tests", "the test that loses the device", &["--exact", LOSES]),
    ] {
        let path = check.folder.join(binary);
        if !path.exists() {
            let note =
                format!("there is no {}: make gpu-check-bundle puts it there", path.display());
            check.results.finding(what, &note)?;
            continue;
        }
        let start = Instant::now();
        let output = Command::new(&path)
            .arg("--test-threads=1")
            .args(arguments)
            .env("DOTCOMPUTE_ON_DEVICE", "1")
            .output()?;
        let text = String::from_utf8_lossy(&output.stdout);
        let result =
            text.lines().rev().find(|line| line.starts_with("test result")).unwrap_or("no result");
        let failed: Vec<&str> = text.lines().filter(|line| line.ends_with("FAILED")).collect();
        let took = start.elapsed().as_secs_f64();
        let note = format!("{result} {} in {took:.1} s", failed.join(", "));
        check.results.fact(what, output.status.success(), &note)?;
    }
    Ok(())
}
