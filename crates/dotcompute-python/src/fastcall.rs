//! Methods of the interpreter's fast calling convention, for those that are called for each message.
//!
//! PyO3's own are of that convention too, but each goes through its trampoline and a loop over a
//! description of the arguments, which is as much as the methods themselves do.

use std::ffi::CStr;

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyString, PyTuple, PyType};
use pyo3::{Borrowed, ffi};

use crate::quick::Quick;

/// A method as the interpreter calls it.
pub(crate) type Function = unsafe extern "C" fn(
    *mut ffi::PyObject,
    *const *mut ffi::PyObject,
    ffi::Py_ssize_t,
    *mut ffi::PyObject,
) -> *mut ffi::PyObject;

/// A method that is put on a class.
pub(crate) struct Method {
    pub(crate) name: &'static CStr,
    /// The text that the interpreter reads the signature from, and the description.
    pub(crate) doc: &'static CStr,
    pub(crate) function: Function,
}

/// Puts methods on a class.
pub(crate) fn add(class: &Bound<'_, PyType>, methods: &[Method]) -> PyResult<()> {
    let py = class.py();
    for method in methods {
        // The descriptor refers to it for ever; a class gets its methods once.
        let definition = Box::leak(Box::new(ffi::PyMethodDef {
            ml_name: method.name.as_ptr(),
            ml_meth: ffi::PyMethodDefPointer { PyCFunctionFastWithKeywords: method.function },
            ml_flags: ffi::METH_FASTCALL | ffi::METH_KEYWORDS,
            ml_doc: method.doc.as_ptr(),
        }));
        // SAFETY: a type that is alive, and a definition that stays so; its flags are those of its
        // function.
        let made = unsafe { ffi::PyDescr_NewMethod(class.as_type_ptr(), definition) };
        // SAFETY: a new reference, or null with an error set.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
        let name = method.name.to_str().map_err(|error| PyTypeError::new_err(error.to_string()))?;
        class.setattr(name, made)?;
    }
    Ok(())
}

/// An attribute that is read for each message.
pub(crate) struct Getter {
    pub(crate) name: &'static CStr,
    pub(crate) doc: &'static CStr,
    pub(crate) function: ffi::getter,
}

/// Puts attributes that are only read on a class.
pub(crate) fn add_getters(class: &Bound<'_, PyType>, getters: &[Getter]) -> PyResult<()> {
    let py = class.py();
    for getter in getters {
        // As in `add`.
        let definition = Box::leak(Box::new(ffi::PyGetSetDef {
            name: getter.name.as_ptr(),
            get: Some(getter.function),
            set: None,
            doc: getter.doc.as_ptr(),
            closure: std::ptr::null_mut(),
        }));
        // SAFETY: a type that is alive, and a definition that stays so.
        let made = unsafe { ffi::PyDescr_NewGetSet(class.as_type_ptr(), definition) };
        // SAFETY: a new reference, or null with an error set.
        let made = unsafe { Bound::from_owned_ptr_or_err(py, made) }?;
        let name = getter.name.to_str().map_err(|error| PyTypeError::new_err(error.to_string()))?;
        class.setattr(name, made)?;
    }
    Ok(())
}

/// Defines a function for a [`Getter`] of a truth value: `fn name(this: Class) |py| { the body, a
/// `Quick<bool>` }`.
macro_rules! getter {
    (fn $name:ident($this:ident: $class:ty) |$py:ident| $body:block) => {
        unsafe extern "C" fn $name(
            this: *mut pyo3::ffi::PyObject,
            _: *mut std::ffi::c_void,
        ) -> *mut pyo3::ffi::PyObject {
            let get = |$py: pyo3::Python<'_>| -> $crate::quick::Quick<_> {
                // SAFETY: the caller keeps the object that it reads an attribute of.
                let this = unsafe { pyo3::Borrowed::from_ptr($py, this) };
                // SAFETY: the descriptor has seen to it that it is of the class.
                let this = unsafe { this.cast_unchecked::<$class>() };
                let $this: &pyo3::Bound<'_, $class> = &this;
                let value: $crate::quick::Quick<bool> = $body;
                Ok($crate::fastcall::truth($py, value?).into_ptr())
            };
            // SAFETY: the interpreter is calling.
            unsafe { $crate::asyncio::guard_light(std::ptr::null_mut(), get) }
        }
    };
}
pub(crate) use getter;

/// True or False.
#[inline]
pub(crate) fn truth(py: Python<'_>, value: bool) -> Py<PyAny> {
    PyBool::new(py, value).to_owned().into_any().unbind()
}

/// Defines functions for [`Method`]s: `fn name(this: Class, "Class.name", required; optional; keyword-only)
/// |py| { the body, a [`Quick`] }`. What is required is there; of the others each is an `Option`.
macro_rules! fastcall {
    ($(
        fn $name:ident(
            $this:ident: $class:ty, $method:literal $(, $required:ident)*
            ; $($optional:ident),* ; $($keyword:ident),*
        ) |$py:ident| $body:block
    )*) => {$(
        unsafe extern "C" fn $name(
            this: *mut pyo3::ffi::PyObject,
            arguments: *const *mut pyo3::ffi::PyObject,
            count: pyo3::ffi::Py_ssize_t,
            keywords: *mut pyo3::ffi::PyObject,
        ) -> *mut pyo3::ffi::PyObject {
            const REQUIRED: &[&str] = &[$(stringify!($required)),*];
            const OPTIONAL: &[&str] = &[$(stringify!($optional)),*];
            const KEYWORDS: &[&str] = &[$(stringify!($keyword)),*];
            const POSITIONAL: usize = REQUIRED.len() + OPTIONAL.len();
            const SIGNATURE: $crate::fastcall::Signature<{ POSITIONAL + KEYWORDS.len() }> =
                $crate::fastcall::Signature {
                    method: $method,
                    names: [
                        $(stringify!($required),)* $(stringify!($optional),)*
                        $(stringify!($keyword),)*
                    ],
                    required: REQUIRED.len(),
                    positional: POSITIONAL,
                };
            static INTERNED: $crate::fastcall::Interned<{ POSITIONAL + KEYWORDS.len() }> =
                $crate::fastcall::Interned::new();
            let call = |$py: pyo3::Python<'_>| -> $crate::quick::Quick<_> {
                // SAFETY: the caller keeps the object that it calls a method of.
                let this = unsafe { pyo3::Borrowed::from_ptr($py, this) };
                // SAFETY: the descriptor has seen to it that it is of the class.
                let this = unsafe { this.cast_unchecked::<$class>() };
                let $this: &pyo3::Bound<'_, $class> = &this;
                // SAFETY: the arguments of this call.
                let read = unsafe { SIGNATURE.read($py, arguments, count, keywords, &INTERNED) };
                let [$($required,)* $($optional,)* $($keyword,)*] = read?;
                $(let $required = $crate::fastcall::given($required)?;)*
                let result: $crate::quick::Quick<pyo3::Py<pyo3::PyAny>> = $body;
                Ok(result?.into_ptr())
            };
            // SAFETY: the interpreter is calling.
            unsafe { $crate::asyncio::guard_light(std::ptr::null_mut(), call) }
        }
    )*};
}
pub(crate) use fastcall;

/// The names of what a method takes, as the interpreter has them in its calls.
pub(crate) type Interned<const N: usize> = crate::once::Once<[Py<PyString>; N]>;

/// What a method takes.
pub(crate) struct Signature<const N: usize> {
    /// The method's name with its class, for errors.
    pub(crate) method: &'static str,
    pub(crate) names: [&'static str; N],
    /// How many of them have to be given.
    pub(crate) required: usize,
    /// How many of them may be given by their position.
    pub(crate) positional: usize,
}

impl<const N: usize> Signature<N> {
    /// The arguments of a call, in the order of their names.
    ///
    /// # Safety
    ///
    /// The arguments are those of a call by the interpreter that lasts as long as `'a`.
    #[inline(always)]
    pub(crate) unsafe fn read<'a, 'py>(
        &self,
        py: Python<'py>,
        arguments: *const *mut ffi::PyObject,
        count: ffi::Py_ssize_t,
        keywords: *mut ffi::PyObject,
        interned: &Interned<N>,
    ) -> Quick<[Option<Borrowed<'a, 'py, PyAny>>; N]> {
        let mut values = [None; N];
        let count = count as usize;
        if !keywords.is_null() || count < self.required || count > self.positional {
            // SAFETY: the caller's promise.
            let read = unsafe { self.read_named(py, arguments, count, keywords, interned) };
            if let Some(values) = read {
                return Ok(values);
            }
            // SAFETY: the caller's promise.
            unsafe { self.read_rarely(py, &mut values, arguments, count, keywords) }?;
            return Ok(values);
        }
        for (index, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise; below the number of arguments.
            *value = Some(unsafe { argument(py, arguments, index) });
        }
        Ok(values)
    }

    /// The same where some are named, as programs name them: the very names that are interned. `None`:
    /// it is to be read with more care.
    ///
    /// # Safety
    ///
    /// As for `read`.
    #[inline(never)]
    unsafe fn read_named<'a, 'py>(
        &self,
        py: Python<'py>,
        arguments: *const *mut ffi::PyObject,
        count: usize,
        keywords: *mut ffi::PyObject,
        interned: &Interned<N>,
    ) -> Option<[Option<Borrowed<'a, 'py, PyAny>>; N]> {
        if keywords.is_null() || count > self.positional {
            return None;
        }
        let interned = interned.get_or_init(py, || {
            std::array::from_fn(|index| PyString::intern(py, self.names[index]).unbind())
        });
        let mut values = [None; N];
        for (index, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise; below the number of arguments.
            *value = Some(unsafe { argument(py, arguments, index) });
        }
        // SAFETY: the caller's promise: a tuple of names.
        let named = unsafe { ffi::PyTuple_Size(keywords) } as usize;
        for offset in 0..named {
            // SAFETY: below the length of the tuple.
            let keyword = unsafe { ffi::PyTuple_GetItem(keywords, offset as ffi::Py_ssize_t) };
            let index = interned.iter().position(|name| name.as_ptr() == keyword)?;
            if values[index].is_some() {
                return None;
            }
            // SAFETY: the caller's promise: the values of the keywords follow the arguments.
            values[index] = Some(unsafe { argument(py, arguments, count + offset) });
        }
        values[..self.required].iter().all(Option::is_some).then_some(values)
    }

    /// # Safety
    ///
    /// As for `read`.
    #[cold]
    #[inline(never)]
    unsafe fn read_rarely<'a, 'py>(
        &self,
        py: Python<'py>,
        values: &mut [Option<Borrowed<'a, 'py, PyAny>>; N],
        arguments: *const *mut ffi::PyObject,
        count: usize,
        keywords: *mut ffi::PyObject,
    ) -> PyResult<()> {
        let Self { method, names, required, positional } = self;
        if count > *positional {
            return Err(PyTypeError::new_err(format!(
                "{method}() takes {} but {count} {} given",
                match positional {
                    0 => "no positional arguments".to_owned(),
                    1 => "1 positional argument".to_owned(),
                    many => format!("{many} positional arguments"),
                },
                if count == 1 { "was" } else { "were" },
            )));
        }
        for (index, value) in values.iter_mut().enumerate().take(count) {
            // SAFETY: the caller's promise; below the number of arguments.
            *value = Some(unsafe { argument(py, arguments, index) });
        }
        // SAFETY: the caller's promise: null, or the names of the keywords.
        let keywords = unsafe { Bound::from_borrowed_ptr_or_opt(py, keywords) };
        let keywords = keywords.map(Bound::cast_into::<PyTuple>).transpose()?;
        for (offset, keyword) in keywords.iter().flatten().enumerate() {
            let keyword = keyword.cast_into::<PyString>()?;
            let keyword = keyword.to_str()?;
            let Some(index) = names.iter().position(|name| *name == keyword) else {
                return Err(PyTypeError::new_err(format!(
                    "{method}() got an unexpected keyword argument '{keyword}'"
                )));
            };
            if values[index].is_some() {
                return Err(PyTypeError::new_err(format!(
                    "{method}() got multiple values for argument '{keyword}'"
                )));
            }
            // SAFETY: the caller's promise: the values of the keywords follow the arguments.
            values[index] = Some(unsafe { argument(py, arguments, count + offset) });
        }
        let missing: Vec<String> = (0..*required)
            .filter(|&index| values[index].is_none())
            .map(|index| format!("'{}'", names[index]))
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(PyTypeError::new_err(format!(
            "{method}() missing {} required positional argument{}: {}",
            missing.len(),
            if missing.len() == 1 { "" } else { "s" },
            missing.join(" and "),
        )))
    }
}

/// # Safety
///
/// The place is one of the arguments of a call by the interpreter that lasts as long as `'a`.
#[inline(always)]
unsafe fn argument<'a, 'py>(
    py: Python<'py>,
    arguments: *const *mut ffi::PyObject,
    index: usize,
) -> Borrowed<'a, 'py, PyAny> {
    // SAFETY: the caller's promise: inside the arguments.
    let place = unsafe { arguments.add(index) };
    // SAFETY: the caller's promise: initialised.
    let argument = unsafe { place.read() };
    // SAFETY: the caller's promise: an object that the caller of the method keeps.
    unsafe { Borrowed::from_ptr(py, argument) }
}

/// The value of an argument that may be None, with the argument named in an error about its type.
#[inline(always)]
pub(crate) fn optional<'py, T>(
    argument: Option<Borrowed<'_, 'py, PyAny>>,
    name: &'static str,
) -> Quick<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    match argument {
        Some(value) if !value.is_none() => extracted(value, name).map(Some),
        _ => Ok(None),
    }
}

#[inline(never)]
fn extracted<'py, T>(value: Borrowed<'_, 'py, PyAny>, name: &'static str) -> Quick<T>
where
    T: for<'a> FromPyObject<'a, 'py, Error = PyErr>,
{
    match value.extract::<T>() {
        Ok(value) => Ok(value),
        Err(error) if error.is_instance_of::<PyTypeError>(value.py()) => {
            let text = format!("argument '{name}': {}", error.value(value.py()));
            Err(PyTypeError::new_err(text).into())
        }
        Err(error) => Err(error.into()),
    }
}

/// An argument that was given, as the signature sees to.
#[inline(always)]
pub(crate) fn given<'a, 'py>(
    argument: Option<Borrowed<'a, 'py, PyAny>>,
) -> Quick<Borrowed<'a, 'py, PyAny>> {
    argument.ok_or_else(|| PyTypeError::new_err("an argument is missing").into())
}
