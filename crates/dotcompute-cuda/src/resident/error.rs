//! Why a grid could not be launched, changed or ended, or was lost.

use std::fmt;
use std::time::Duration;

use crate::grid::PlanError;
use crate::library::CallError;

/// Why a grid could not be launched, changed or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum ResidentError {
    /// What the driver said.
    Driver(CallError),
    /// What the driver said to the code of a grid.
    Code(CallError),
    /// No grid has this shape.
    Shape(&'static str),
    /// The device cannot hold so many blocks at once.
    NoRoom {
        /// The grid's blocks.
        blocks: u32,
        /// How many fit.
        most: u32,
    },
    /// A block of the grid wants more shared memory than there is.
    SharedMemory {
        /// How many bytes it wants for its kernels.
        wanted: u32,
        /// How many it can have.
        most: u32,
    },
    /// The plan does not fit.
    Plan(PlanError),
    /// A seat that is taken.
    Taken(u32),
    /// No seat is free.
    Full,
    /// Not all warps were there in time: something else occupies the device.
    Census,
    /// A seat does not leave: its handler does not come back.
    Stuck,
    /// The driver does not answer: something that stays on the device keeps it.
    NoAnswer {
        /// For how long it was waited for.
        within: Duration,
    },
    /// The launcher's thread could not be started.
    Thread(String),
    /// The process that has the grid's context ended, or could not be started: why.
    Process(String),
    /// The launcher is gone, after an error that was reported before.
    Gone,
}

impl ResidentError {
    /// Whether the grid is lost by it.
    pub(super) fn loses(&self) -> bool {
        let spares = [
            matches!(self, Self::Plan(_) | Self::Taken(_) | Self::Full),
            // Of code that was to be loaded; that of before goes on.
            matches!(self, Self::Code(_) | Self::NoRoom { .. } | Self::SharedMemory { .. }),
        ];
        !spares.contains(&true)
    }
}

impl fmt::Display for ResidentError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Driver(error) => error.fmt(f),
            Self::Code(error) => write!(f, "the code cannot be loaded: {error}"),
            Self::Shape(wrong) => f.write_str(wrong),
            Self::NoRoom { blocks, most } => {
                write!(f, "the device holds {most} blocks at once, not {blocks}")
            }
            Self::SharedMemory { wanted, most } => write!(
                f,
                "a block of the grid wants {wanted} bytes of shared memory for its kernels; it can have \
                 {most}"
            ),
            Self::Plan(error) => error.fmt(f),
            Self::Taken(seat) => write!(f, "seat {seat} is taken"),
            Self::Full => f.write_str("no seat is free"),
            Self::Census => f.write_str("the grid did not become resident in time"),
            Self::Stuck => f.write_str("a handler does not come back"),
            Self::NoAnswer { within } => write!(
                f,
                "the driver did not answer within {within:?}: something that does not end occupies \
                 the device"
            ),
            Self::Thread(error) => write!(f, "the launcher cannot be started: {error}"),
            Self::Process(why) => write!(f, "the process of its context: {why}"),
            Self::Gone => f.write_str("the grid is lost"),
        }
    }
}

impl std::error::Error for ResidentError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Driver(error) | Self::Code(error) => Some(error),
            Self::Plan(error) => Some(error),
            _ => None,
        }
    }
}

impl From<PlanError> for ResidentError {
    fn from(error: PlanError) -> Self {
        Self::Plan(error)
    }
}

impl From<CallError> for ResidentError {
    fn from(error: CallError) -> Self {
        Self::Driver(error)
    }
}

/// That a grid is lost, with all its kernels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loss {
    /// Why.
    pub error: ResidentError,
    /// The seats whose handlers were at work then: one of them may be the cause.
    pub suspects: Vec<u32>,
}
