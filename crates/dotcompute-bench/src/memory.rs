//! The rows about memory: each slice starts its kernels, or what else is counted, in a child process of its
//! own, so that what earlier rows left in the allocator does not count.

use std::env;
use std::process::{Command, Stdio};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use dotcompute_mailbox::sync::{AtomicU64, Ordering};
use serde::{Deserialize, Serialize};

use crate::harness::{Slice, Wrong};
use crate::{os, ours, peers};

/// What a child process starts many of.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Population {
    Kernels,
    UsedKernels,
    TokioTasks,
    KameoActors,
    Links,
    Keys,
    Names,
    NamesInMap,
}

impl Population {
    /// Starts `count` of them in this process and says what that took.
    pub(crate) fn start(self, count: u64) -> Result<Census, Wrong> {
        match self {
            Population::Kernels => ours::idle::kernels(count),
            Population::UsedKernels => ours::idle::used_kernels(count),
            Population::TokioTasks => peers::tokio::idle_tasks(count),
            Population::KameoActors => peers::kameo::idle_actors(count),
            Population::Links => ours::pagerank::peak(count),
            Population::Keys => ours::anomaly::keys_kept(count),
            Population::Names => ours::anomaly::names_kept(count),
            Population::NamesInMap => ours::anomaly::names_in_map(count),
        }
    }

    /// Starts `count` of them in a child process.
    fn in_child(self, count: u64) -> Result<Census, Wrong> {
        let name = self.to_possible_value().ok_or_else(|| Wrong::new("no such population"))?;
        let program = env::current_exe().map_err(Wrong::new)?;
        let output = Command::new(program)
            .args(["--idle", name.get_name(), "--count", &count.to_string()])
            .stderr(Stdio::inherit())
            .output()
            .map_err(Wrong::new)?;
        if !output.status.success() {
            return Err(Wrong::new(format_args!("the child process ended with {}", output.status)));
        }
        serde_json::from_slice(&output.stdout).map_err(Wrong::new)
    }
}

/// What starting many idle kernels, actors or tasks took, or another many of something.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Census {
    /// From the first launch until the last one waits for a message.
    seconds: f64,
    /// Resident memory gained.
    gained_bytes: u64,
    /// Resident memory of the whole process.
    resident_bytes: u64,
}

impl Census {
    /// Starts `count` of something: `start` is called with each number and an arrival to report
    /// from inside the new kernel, actor or task; the first one, number 0, is not counted.
    pub(crate) fn take<T>(
        count: u64,
        mut start: impl FnMut(u64, Arc<Arrivals>) -> Result<T, Wrong>,
    ) -> Result<Self, Wrong> {
        let (arrivals, all) = Arrivals::new(1);
        let first = start(0, arrivals)?;
        wait(&all)?;
        let (arrivals, all) = Arrivals::new(count);
        let mut population = Vec::with_capacity(count as usize);
        let before = os::resident_bytes();
        let started = Instant::now();
        for number in 1..=count {
            population.push(start(number, Arc::clone(&arrivals))?);
        }
        wait(&all)?;
        let seconds = started.elapsed().as_secs_f64();
        let resident_bytes = os::resident_bytes();
        drop((first, population));
        Ok(Self { seconds, gained_bytes: resident_bytes.saturating_sub(before), resident_bytes })
    }

    /// What `work` takes, and the memory gained that what it gives holds.
    pub(crate) fn kept<T>(work: impl FnOnce() -> Result<T, Wrong>) -> Result<Self, Wrong> {
        Self::of(work, os::resident_bytes)
    }

    /// The same of the most that it held meanwhile.
    pub(crate) fn peak(work: impl FnOnce() -> Result<(), Wrong>) -> Result<Self, Wrong> {
        Self::of(work, os::peak_bytes)
    }

    fn of<T>(work: impl FnOnce() -> Result<T, Wrong>, bytes: fn() -> u64) -> Result<Self, Wrong> {
        let (before, started) = (os::resident_bytes(), Instant::now());
        let kept = work()?;
        let seconds = started.elapsed().as_secs_f64();
        let resident_bytes = bytes();
        drop(kept);
        Ok(Self { seconds, gained_bytes: resident_bytes.saturating_sub(before), resident_bytes })
    }
}

fn wait(all: &mpsc::Receiver<()>) -> Result<(), Wrong> {
    all.recv_timeout(Duration::from_secs(120)).map_err(|_| Wrong::new("not all have started"))
}

/// Counts those that run.
#[derive(Debug)]
pub(crate) struct Arrivals {
    missing: AtomicU64,
    all: mpsc::Sender<()>,
}

impl Arrivals {
    fn new(count: u64) -> (Arc<Self>, mpsc::Receiver<()>) {
        let (all, arrived) = mpsc::channel();
        (Arc::new(Self { missing: AtomicU64::new(count), all }), arrived)
    }

    /// One more runs.
    pub(crate) fn arrive(&self) {
        // Relaxed: only the count matters; the channel orders the report.
        if self.missing.fetch_sub(1, Ordering::Relaxed) == 1 {
            // Nobody listens once the wait for the last one has timed out.
            let _ = self.all.send(());
        }
    }
}

/// Resident memory gained, by kernels.
pub(crate) fn kernels_gained(count: u64) -> Result<Slice, Wrong> {
    Population::Kernels.in_child(count).map(|census| bytes(census.gained_bytes))
}

/// Resident memory gained, by tokio tasks that each wait on a bounded channel.
pub(crate) fn tasks_gained(count: u64) -> Result<Slice, Wrong> {
    Population::TokioTasks.in_child(count).map(|census| bytes(census.gained_bytes))
}

/// Resident memory gained, by kameo actors.
pub(crate) fn actors_gained(count: u64) -> Result<Slice, Wrong> {
    Population::KameoActors.in_child(count).map(|census| bytes(census.gained_bytes))
}

/// The peak from so many edges to ranks.
pub(crate) fn links_gained(count: u64) -> Result<Slice, Wrong> {
    Population::Links.in_child(count).map(|census| bytes(census.gained_bytes))
}

/// Resident memory gained, by a detector of so many keys.
pub(crate) fn keys_gained(count: u64) -> Result<Slice, Wrong> {
    Population::Keys.in_child(count).map(|census| bytes(census.gained_bytes))
}

/// The same of names.
pub(crate) fn names_gained(count: u64) -> Result<Slice, Wrong> {
    Population::Names.in_child(count).map(|census| bytes(census.gained_bytes))
}

/// The same of names whose rows are in a map.
pub(crate) fn names_in_map_gained(count: u64) -> Result<Slice, Wrong> {
    Population::NamesInMap.in_child(count).map(|census| bytes(census.gained_bytes))
}

/// Resident memory of the whole process with that many kernels.
pub(crate) fn kernels_resident(count: u64) -> Result<Slice, Wrong> {
    Population::Kernels.in_child(count).map(|census| bytes(census.resident_bytes))
}

/// The same with kernels that have had a message each.
pub(crate) fn used_kernels_resident(count: u64) -> Result<Slice, Wrong> {
    Population::UsedKernels.in_child(count).map(|census| bytes(census.resident_bytes))
}

/// Time until that many kernels wait for their first message.
pub(crate) fn kernels_start(count: u64) -> Result<Slice, Wrong> {
    let census = Population::Kernels.in_child(count)?;
    Ok(Slice::took(Duration::from_secs_f64(census.seconds)))
}

fn bytes(bytes: u64) -> Slice {
    Slice { bytes, ..Slice::default() }
}
