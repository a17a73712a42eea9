//! How long a queue may wait.

use std::time::{Duration, Instant};

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;

/// A timeout as the user gave it: none (the default) means for ever, 0 or less not at all.
#[derive(Clone, Copy, Default)]
pub(super) struct Timeout {
    seconds: Option<f64>,
}

impl Timeout {
    pub(super) fn after(seconds: f64) -> PyResult<Self> {
        if seconds.is_nan() {
            return Err(PyValueError::new_err("timeout must be a number of seconds, not NaN"));
        }
        Ok(Self { seconds: Some(seconds) })
    }

    /// `seconds` for the message of an error.
    pub(super) fn seconds(self) -> Option<f64> {
        self.seconds
    }

    pub(super) fn is_zero(self) -> bool {
        self.seconds.is_some_and(|seconds| seconds <= 0.0)
    }

    /// None if it never ends.
    pub(super) fn duration(self) -> Option<Duration> {
        Duration::try_from_secs_f64(self.seconds?.max(0.0)).ok()
    }

    /// When it ends, counted from now.
    pub(super) fn deadline(self) -> Option<Instant> {
        Instant::now().checked_add(self.duration()?)
    }
}

impl<'a, 'py> FromPyObject<'a, 'py> for Timeout {
    type Error = PyErr;

    fn extract(value: Borrowed<'a, 'py, PyAny>) -> PyResult<Self> {
        Self::after(value.extract()?)
    }
}
