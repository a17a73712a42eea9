//! `dotcompute info`: what this machine offers, and why a backend is absent.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use dotcompute_cuda::{Found, LibraryReport, Probe};
use serde::Serialize;

use crate::failure::{self, Failure};

/// Show what this machine offers, and why a backend is absent
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  dotcompute info\n  dotcompute info --json | jq .cuda")]
pub(crate) struct Arguments {
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

/// What cannot be found out is `null` in JSON and "unknown" in text.
#[derive(Debug, Serialize)]
struct Info {
    version: &'static str,
    cpu: Cpu,
    memory: Memory,
    os: Os,
    executors: Vec<Executor>,
    cuda: Cuda,
    clock: Clock,
}

#[derive(Debug, Serialize)]
struct Cpu {
    model: Option<String>,
    architecture: &'static str,
    /// As many threads as this process may run at once: affinity and cgroup quota count.
    cores_usable: Option<usize>,
}

#[derive(Debug, Serialize)]
struct Memory {
    total_bytes: Option<u64>,
    available_bytes: Option<u64>,
}

#[derive(Debug, Serialize)]
struct Os {
    name: Option<String>,
    kernel: Option<String>,
}

#[derive(Debug, Serialize)]
struct Executor {
    name: &'static str,
    available: bool,
    /// What its kernels are, or why there is none.
    reason: String,
}

#[derive(Debug, Serialize)]
struct Cuda {
    libraries: Vec<Library>,
    devices: Vec<Device>,
    /// Whether multiprocessors can be set aside for kernels that stay, where there is a device.
    set_aside: Option<SetAside>,
    /// What the driver said instead of naming its devices.
    devices_error: Option<String>,
    /// The version of the driver's kernel module, if it is loaded.
    driver_module: Option<String>,
}

/// One of NVIDIA's libraries.
#[derive(Debug, Serialize)]
struct Library {
    name: &'static str,
    version: Option<String>,
    path: Option<PathBuf>,
    /// Why it cannot be used.
    absent: Option<String>,
    /// What to install.
    advice: Option<&'static str>,
}

#[derive(Debug, Serialize)]
struct Device {
    name: String,
    compute_capability: String,
    multiprocessors: u32,
    memory_bytes: u64,
    /// Whether the system ends kernels that run for seconds.
    kernel_timeout: bool,
}

#[derive(Debug, Serialize)]
struct SetAside {
    available: bool,
    /// When they are, or why they cannot be.
    reason: String,
}

#[derive(Debug, Serialize)]
struct Clock {
    /// The smallest step seen between two readings of the clock.
    resolution_ns: u64,
    /// What one reading costs.
    read_ns: f64,
}

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let info = gather();
    if arguments.json {
        let json = serde_json::to_string_pretty(&info)
            .map_err(|error| Failure::new(failure::FAILED, error, ""))?;
        failure::print(&(json + "\n"))
    } else {
        failure::print(&text(&info))
    }
}

fn gather() -> Info {
    let probe = Probe::new();
    Info {
        version: env!("CARGO_PKG_VERSION"),
        cpu: Cpu {
            model: field("/proc/cpuinfo", "model name"),
            architecture: env::consts::ARCH,
            cores_usable: thread::available_parallelism().ok().map(Into::into),
        },
        memory: Memory {
            total_bytes: kibibytes("MemTotal"),
            available_bytes: kibibytes("MemAvailable"),
        },
        os: Os {
            name: field("/etc/os-release", "PRETTY_NAME")
                .map(|name| name.trim_matches('"').to_owned())
                .or_else(|| Some(env::consts::OS.to_owned())),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .ok()
                .map(|release| release.trim().to_owned()),
        },
        executors: executors(&probe),
        cuda: cuda(probe),
        clock: clock(),
    }
}

fn executors(probe: &Probe) -> Vec<Executor> {
    let executor = |name, available, reason: &str| {
        let reason = reason.to_owned();
        Executor { name, available, reason }
    };
    vec![
        executor("async", true, "a task of the tokio runtime per kernel"),
        executor("thread", true, "an operating system thread per kernel"),
        match dotcompute::process::unavailable() {
            None => executor("process", true, "a child process per kernel"),
            Some(reason) => executor("process", false, reason),
        },
        match probe.executor() {
            Ok(device) => {
                let what = "a seat per kernel on a grid that stays; not yet tried on a GPU";
                executor("cuda", true, &format!("{what} ({device})"))
            }
            Err(absent) => executor("cuda", false, &absent),
        },
        executor("wgpu", false, "this build has no wgpu backend"),
    ]
}

/// The value of the first `name: value` or `name=value` line of a file.
fn field(path: &str, name: &str) -> Option<String> {
    fs::read_to_string(path).ok()?.lines().find_map(|line| {
        let (key, value) = line.split_once([':', '='])?;
        (key.trim() == name).then(|| value.trim().to_owned())
    })
}

fn kibibytes(name: &str) -> Option<u64> {
    let text = field("/proc/meminfo", name)?;
    text.strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn cuda(probe: Probe) -> Cuda {
    let library = |(name, report): (&'static str, &LibraryReport)| match report {
        Ok(Found { version, path }) => Library {
            name,
            version: Some(version.clone()),
            path: Some(path.clone()),
            absent: None,
            advice: None,
        },
        Err(absent) => Library {
            name,
            version: None,
            path: None,
            absent: Some(absent.to_string()),
            advice: absent.advice(),
        },
    };
    let libraries = probe.libraries().map(library).into();
    let set_aside = probe.set_aside.map(|can| match can {
        Ok(()) => {
            let reason = "multiprocessors are set aside for kernels that stay where a program asks for it; \
                          not yet tried on a GPU";
            SetAside { available: true, reason: reason.to_owned() }
        }
        Err(why) => SetAside {
            available: false,
            reason: format!("multiprocessors cannot be set aside for kernels that stay: {why}"),
        },
    });
    let (devices, devices_error) = match probe.devices {
        Ok(devices) => (devices, None),
        Err(error) => (Vec::new(), Some(error.to_string())),
    };
    let device = |device: dotcompute_cuda::driver::Device| Device {
        name: device.name,
        compute_capability: device.compute_capability.to_string(),
        multiprocessors: device.multiprocessors,
        memory_bytes: device.memory_bytes,
        kernel_timeout: device.kernel_timeout,
    };
    Cuda {
        libraries,
        devices: devices.into_iter().map(device).collect(),
        set_aside,
        devices_error,
        driver_module: fs::read_to_string("/proc/driver/nvidia/version")
            .ok()
            .and_then(|text| text.lines().next().map(str::to_owned)),
    }
}

fn clock() -> Clock {
    const READS: u32 = 10_000;
    let mut resolution_ns = u64::MAX;
    let mut fastest_ns = f64::INFINITY;
    for _ in 0..10 {
        let start = Instant::now();
        let mut last = start;
        for _ in 0..READS {
            let now = Instant::now();
            match now.duration_since(last).as_nanos() as u64 {
                0 => {}
                step => resolution_ns = resolution_ns.min(step),
            }
            last = now;
        }
        let total_ns = last.duration_since(start).as_nanos() as f64;
        fastest_ns = fastest_ns.min(total_ns / f64::from(READS));
    }
    Clock { resolution_ns, read_ns: (fastest_ns * 10.0).round() / 10.0 }
}

fn text(info: &Info) -> String {
    let unknown = || "unknown".to_owned();
    let gibibytes = |bytes: Option<u64>| {
        bytes.map_or_else(unknown, |bytes| format!("{:.1} GiB", bytes as f64 / (1u64 << 30) as f64))
    };
    let Info { version, cpu, memory, os, executors, cuda, clock } = info;
    let mut text = format!("dotcompute {version}\n\n");
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<10}{value}"); // into a String: cannot fail
    };
    let cores = cpu.cores_usable.map_or_else(unknown, |cores| cores.to_string());
    line(
        "cpu",
        format!(
            "{} ({}), {cores} cores usable",
            cpu.model.as_deref().unwrap_or("unknown model"),
            cpu.architecture
        ),
    );
    line(
        "memory",
        format!(
            "{}, {} available",
            gibibytes(memory.total_bytes),
            gibibytes(memory.available_bytes)
        ),
    );
    line(
        "system",
        format!(
            "{}, kernel {}",
            os.name.as_deref().unwrap_or("unknown"),
            os.kernel.as_deref().unwrap_or("unknown")
        ),
    );
    line(
        "clock",
        format!("step {} ns, one reading costs {:.1} ns", clock.resolution_ns, clock.read_ns),
    );
    let module = cuda.driver_module.as_deref().unwrap_or("no NVIDIA kernel module loaded");
    line("module", module.to_owned());
    text.push_str("\ncuda\n");
    for Device { name, compute_capability, multiprocessors, memory_bytes, .. } in &cuda.devices {
        let memory = gibibytes(Some(*memory_bytes));
        let _ = writeln!(
            text,
            "  device     {name}, compute capability {compute_capability}, {multiprocessors} \
             multiprocessors, {memory}"
        );
    }
    if let Some(SetAside { reason, .. }) = &cuda.set_aside {
        let _ = writeln!(text, "  {:<11}{reason}", "");
    }
    if let Some(error) = &cuda.devices_error {
        let _ = writeln!(text, "  devices    {error}");
    }
    for Library { name, version, path, absent, advice } in &cuda.libraries {
        let path = path.as_deref().unwrap_or(Path::new("")).display();
        let _ = match (version, absent) {
            (Some(version), _) => writeln!(text, "  {name:<11}{version}, {path}"),
            (None, absent) => {
                writeln!(text, "  {name:<11}{}", absent.as_deref().unwrap_or("absent"))
            }
        };
        if let Some(advice) = advice {
            let _ = writeln!(text, "  {:<11}{advice}", "");
        }
    }
    text.push_str("\nexecutors\n");
    for Executor { name, available, reason } in executors {
        let available = if *available { "yes" } else { "no" };
        let _ = writeln!(text, "  {name:<10}{available:<5}{reason}"); // into a String: cannot fail
    }
    text
}
