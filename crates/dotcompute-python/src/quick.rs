//! Results that fit into two registers, for what is done for each message.
//!
//! PyO3's error takes 64 bytes. A result with it in place goes through memory wherever it is handed on,
//! and on the way of a message that costs more than what the functions do.

use pyo3::PyErr;

/// An error of Python, at one pointer's size.
#[derive(Debug)]
pub(crate) struct Error(Box<PyErr>);

pub(crate) type Quick<T> = Result<T, Error>;

impl From<PyErr> for Error {
    #[cold]
    fn from(error: PyErr) -> Self {
        Self(Box::new(error))
    }
}

impl From<Error> for PyErr {
    #[cold]
    fn from(error: Error) -> Self {
        *error.0
    }
}
