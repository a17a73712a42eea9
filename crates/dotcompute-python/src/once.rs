//! What is made when it is first needed.
//!
//! PyO3's `PyOnceLock` and `intern!` give the interpreter away as they begin to make a value. When they
//! have it back they drop the objects that other threads have put aside to be dropped; if the destructor
//! of one of those needs the same value, it waits for itself. A lease of a batch did. So that neither is
//! used here: these keep nobody waiting, and a value that was made twice is dropped once.

use std::sync::OnceLock;

use pyo3::prelude::*;
use pyo3::types::PyString;

/// A value that is made when it is first needed.
pub(crate) struct Once<T>(OnceLock<T>);

impl<T> Once<T> {
    pub(crate) const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The value, if it has been made.
    #[inline]
    pub(crate) fn get(&self) -> Option<&T> {
        self.0.get()
    }

    /// The value. `make` may run any code, and so come back here; the value that is there first stays.
    #[inline]
    pub(crate) fn get_or_try_init<E>(
        &self,
        _py: Python<'_>,
        make: impl FnOnce() -> Result<T, E>,
    ) -> Result<&T, E> {
        match self.0.get() {
            Some(value) => Ok(value),
            None => self.first(make()?),
        }
    }

    /// [`get_or_try_init`](Self::get_or_try_init) where nothing can fail.
    #[inline]
    pub(crate) fn get_or_init(&self, py: Python<'_>, make: impl FnOnce() -> T) -> &T {
        match self.get_or_try_init(py, || Ok::<T, std::convert::Infallible>(make())) {
            Ok(value) => value,
        }
    }

    #[cold]
    fn first<E>(&self, value: T) -> Result<&T, E> {
        let mut value = Some(value);
        // What is put there is ready, so that nobody waits for long. Another one is dropped afterwards.
        Ok(self.0.get_or_init(|| value.take().unwrap_or_else(|| unreachable!("called once"))))
    }
}

/// A name that Python knows, as an object; see [`intern!`](crate::once::intern).
pub(crate) struct Name(&'static str, Once<Py<PyString>>);

impl Name {
    pub(crate) const fn new(text: &'static str) -> Self {
        Self(text, Once::new())
    }

    #[inline]
    pub(crate) fn get<'py>(&self, py: Python<'py>) -> &Bound<'py, PyString> {
        self.1.get_or_init(py, || PyString::intern(py, self.0).unbind()).bind(py)
    }
}

/// The name as an object, made once.
macro_rules! intern {
    ($py:expr, $text:expr) => {{
        static NAME: $crate::once::Name = $crate::once::Name::new($text);
        NAME.get($py)
    }};
}
pub(crate) use intern;
