//! Memory, streams and launches: the device used as by any other program, launch by launch.
//!
//! A [`Context`] is a device's primary context, which every library of the process shares, so that
//! addresses and streams mean the same to CuPy, PyTorch and numba. From it come [`Stream`]s, which
//! never wait for the legacy stream nor it for them; [`DeviceBuffer`]s out of the device's [`Pool`],
//! taken and freed in the order of a stream; [`PinnedBuffer`]s of host memory; and [`Module`]s with
//! their [`Function`]s.
//!
//! All of it may be used from any thread: each call makes the context current for itself, and puts
//! back what was current before.
//!
//! # Beside a resident grid
//!
//! Some of the driver's calls wait for all work of the context, and so for a grid that stays: to
//! take or free pinned memory, and to load or unload a module. Calls that free are put off while
//! someone has [`Context::hold_frees`], until the last has let go. Those that take
//! ([`PinnedBuffer::new`], [`Module::load`]) do wait, two leases at most, and say so: make them
//! before a grid is launched. Everything else here is in the order of a stream and waits for nothing
//! else. Nothing here waits for the whole context.

mod calls;
mod context;
mod memory;
mod module;
mod pool;
mod stream;

use std::fmt;

pub use context::{Context, FreesHeld, Limits, MemoryInfo};
pub use memory::{DeviceBuffer, PinnedBuffer};
pub use module::{Function, FunctionNeeds, Launch, Module};
pub use pool::{Pool, PoolStatistics};
pub use stream::{Event, Stream};

use crate::library::{Absent, CallError};

/// CUDA C++ of the kernels that the package brings along: `vector_add_NAME` and
/// `matrix_multiply_NAME` for float32, float64, int32 and int64.
pub const KERNELS: &str = include_str!("../kernels/compute.cu");

/// CUDA C++ of what the workloads do on a device, by name: the detector over batches whose state stays
/// there (`anomaly_ewma`), the places of names in its table (`anomaly_find`, `anomaly_insert`), and PageRank,
/// all of whose iterations are one launch (`pagerank`). Each includes [`BLOCK_HEADER`].
pub const WORKLOADS: [(&str, &str); 3] = [
    ("anomaly", include_str!("../kernels/anomaly.cu")),
    ("pagerank", include_str!("../kernels/pagerank.cu")),
    ("anomaly_names", include_str!("../kernels/anomaly_names.cu")),
];

/// The name and the text of the header of [`WORKLOADS`].
pub const BLOCK_HEADER: (&str, &str) = ("block.cuh", include_str!("../kernels/block.cuh"));

/// Why something could not be done on a device.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ComputeError {
    /// There is no driver, or it lacks what this needs.
    Absent(Absent),
    /// What the driver said.
    Driver(CallError),
    /// The context is lost: a kernel went wrong, and every further call of this process fails.
    Lost(CallError),
    /// There is not so much memory.
    OutOfMemory {
        /// What was asked for.
        requested_bytes: u64,
        /// What of the pool is in use.
        used_bytes: u64,
        /// The pool's limit, if that is what stands in the way.
        limit_bytes: Option<u64>,
        /// What the device has free, as far as it tells.
        free_bytes: u64,
        /// What the device has.
        total_bytes: u64,
    },
    /// A launch that the device or the kernel does not take: why, and what would do.
    Launch(String),
    /// A copy that does not lie within its buffer.
    Bounds {
        /// The first byte.
        offset_bytes: usize,
        /// How many.
        bytes: usize,
        /// How many the buffer has.
        buffer_bytes: usize,
    },
    /// An image that is none, or is cut off.
    Image(&'static str),
    /// The device cannot do this at all.
    Unsupported(&'static str),
    /// This process was forked from one that used CUDA, which CUDA does not survive.
    Forked,
}

impl ComputeError {
    /// What to do about it; none where the text says it.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::Absent(absent) => absent.advice(),
            Self::Driver(error) => advice(error.code),
            Self::Lost(_) => Some(
                "the context of this process cannot be used again: start a new process, and run \
                 the kernel under compute-sanitizer to see what it did",
            ),
            Self::OutOfMemory { limit_bytes: Some(_), .. } => {
                Some("free buffers, or raise the pool's limit")
            }
            Self::OutOfMemory { .. } => Some(
                "free buffers, trim the pools of this and of other libraries, or use a smaller \
                 batch",
            ),
            Self::Forked => Some("start child processes by spawn, or use CUDA in children only"),
            Self::Launch(_) | Self::Bounds { .. } | Self::Image(_) | Self::Unsupported(_) => None,
        }
    }
}

impl fmt::Display for ComputeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent(absent) => absent.fmt(f)?,
            Self::Driver(error) | Self::Lost(error) => error.fmt(f)?,
            Self::OutOfMemory {
                requested_bytes,
                used_bytes,
                limit_bytes,
                free_bytes,
                total_bytes,
            } => {
                write!(f, "no {requested_bytes} bytes of device memory: {used_bytes} in use")?;
                if let Some(limit) = limit_bytes {
                    write!(f, " of the {limit} that the pool's limit allows")?;
                }
                write!(f, ", {free_bytes} of the device's {total_bytes} free")?;
            }
            Self::Launch(why) => f.write_str(why)?,
            Self::Bounds { offset_bytes, bytes, buffer_bytes } => write!(
                f,
                "{bytes} bytes from byte {offset_bytes} do not lie in a buffer of {buffer_bytes}"
            )?,
            Self::Image(why) => write!(f, "not an image that can be loaded: {why}")?,
            Self::Unsupported(what) => write!(f, "this device does not support {what}")?,
            Self::Forked => {
                f.write_str("CUDA cannot be used after a fork of a process that used it")?;
            }
        }
        match self.advice() {
            Some(advice) => write!(f, "; {advice}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for ComputeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Absent(absent) => Some(absent),
            Self::Driver(error) | Self::Lost(error) => Some(error),
            _ => None,
        }
    }
}

impl From<Absent> for ComputeError {
    fn from(absent: Absent) -> Self {
        Self::Absent(absent)
    }
}

impl From<CallError> for ComputeError {
    fn from(error: CallError) -> Self {
        // Those after which the driver's documentation asks for a new process.
        match error.code {
            700 | 702 | 709 | 710 | 714..=719 => Self::Lost(error),
            _ => Self::Driver(error),
        }
    }
}

/// What to do about an error of the driver's, where that is known.
fn advice(code: i32) -> Option<&'static str> {
    Some(match code {
        2 => "free buffers, trim the pools, or use a smaller batch",
        3 | 4 => "the driver is shutting down: use CUDA before the process ends",
        100 => "check nvidia-smi and CUDA_VISIBLE_DEVICES; in a container, run it with --gpus all",
        101 => "devices are counted from 0, after CUDA_VISIBLE_DEVICES",
        200 | 209 | 218 | 222 => {
            "compile for this device's architecture, with a toolkit no newer than the driver"
        }
        500 => "kernels are found by the name in the image: declare them extern \"C\"",
        701 => "use fewer threads or less shared memory for each block",
        802 | 803 => "the driver's library and kernel module do not fit each other: reboot",
        _ => return None,
    })
}
