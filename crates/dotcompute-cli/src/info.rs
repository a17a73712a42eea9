//! `dotcompute info`: what this machine offers, and why a backend is absent.

use std::env;
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

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
    reason: &'static str,
}

#[derive(Debug, Serialize)]
struct Cuda {
    /// Whether this program was built with a CUDA backend.
    backend: bool,
    /// Where the driver's library lies, if the machine has one.
    driver_library: Option<PathBuf>,
    /// The version of the driver's kernel module, if it is loaded.
    driver_module: Option<String>,
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
        executors: executors(),
        cuda: Cuda {
            backend: false,
            driver_library: cuda_library(),
            driver_module: fs::read_to_string("/proc/driver/nvidia/version")
                .ok()
                .and_then(|text| text.lines().next().map(str::to_owned)),
        },
        clock: clock(),
    }
}

fn executors() -> Vec<Executor> {
    let executor = |name, available, reason| Executor { name, available, reason };
    vec![
        executor("async", true, "a task of the tokio runtime per kernel"),
        executor("thread", true, "an operating system thread per kernel"),
        executor("process", false, "this build has no process executor"),
        executor("cuda", false, "this build has no CUDA backend"),
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

/// Where the loader would find the driver's library: the folders it is told of, its cache, and
/// the folders where distributions and containers put it. Nothing is loaded.
fn cuda_library() -> Option<PathBuf> {
    const NAME: &str = "libcuda.so.1";
    let told = env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    let usual = [
        "/usr/lib/x86_64-linux-gnu",
        "/usr/lib/aarch64-linux-gnu",
        "/usr/lib64",
        "/usr/lib",
        "/usr/lib/wsl/lib",
        "/usr/local/nvidia/lib64",
        "/usr/local/cuda/compat",
    ];
    // The cache holds the path of each library as a text that ends in a zero byte.
    let cache = fs::read("/etc/ld.so.cache").unwrap_or_default();
    let cached = cache
        .split(|byte| *byte == 0)
        .filter_map(|text| std::str::from_utf8(text).ok())
        .map(|text| &text[text.find('/').unwrap_or(0)..])
        .map(PathBuf::from)
        .filter(|path| path.is_absolute() && path.ends_with(NAME));
    env::split_paths(&told)
        .map(|folder| folder.join(NAME))
        .chain(cached)
        .chain(usual.map(|folder| Path::new(folder).join(NAME)))
        .find(|path| path.exists())
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
    let library = match &cuda.driver_library {
        Some(path) => format!("driver library {}", path.display()),
        None => "no driver library (libcuda.so.1) on this machine".into(),
    };
    let module = match &cuda.driver_module {
        Some(module) => format!("; {module}"),
        None => "; no NVIDIA kernel module loaded".into(),
    };
    line("cuda", library + &module);
    text.push_str("\nexecutors\n");
    for Executor { name, available, reason } in executors {
        let available = if *available { "yes" } else { "no" };
        let _ = writeln!(text, "  {name:<10}{available:<5}{reason}"); // into a String: cannot fail
    }
    text
}
