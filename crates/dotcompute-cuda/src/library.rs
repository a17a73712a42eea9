//! How a library of CUDA is opened, and why it may be absent.

use std::ffi::{CStr, c_char};
use std::fmt;
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

/// The version of a library of CUDA, as CUDA counts: 13.0 is the toolkit of the end of 2025.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The first number.
    pub major: u32,
    /// The second number.
    pub minor: u32,
}

impl Version {
    /// Version `major.minor`.
    pub const fn new(major: u32, minor: u32) -> Self {
        Self { major, minor }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// One of the libraries, and what to install for it.
#[derive(Debug)]
pub(crate) struct Library {
    /// What people call it.
    pub(crate) name: &'static str,
    /// The file that the system's loader is asked for.
    pub(crate) file: &'static str,
    /// The oldest version that will do; none where there are no versions to tell apart.
    pub(crate) oldest: Option<Version>,
    /// What to do where it is absent.
    pub(crate) advice: &'static str,
}

/// Why a library of CUDA cannot be used on this machine.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Absent {
    /// No file that the loader takes.
    NotFound {
        /// Which library.
        library: &'static str,
        /// What the loader said of the last place.
        cause: String,
        /// What to do.
        advice: &'static str,
    },
    /// The library lacks a function: it is too old, or another one of the same name.
    MissingSymbol {
        /// Which library.
        library: &'static str,
        /// Where it lies.
        path: PathBuf,
        /// The function.
        symbol: &'static str,
        /// What to do.
        advice: &'static str,
    },
    /// The library is older than what this crate was written for.
    TooOld {
        /// Which library.
        library: &'static str,
        /// Where it lies.
        path: PathBuf,
        /// Its version.
        found: Version,
        /// The oldest version that will do.
        oldest: Version,
        /// What to do.
        advice: &'static str,
    },
    /// The library is there and says that it cannot work here: no device, say.
    Refused {
        /// Which library.
        library: &'static str,
        /// Where it lies.
        path: PathBuf,
        /// What it said.
        error: CallError,
    },
}

impl Absent {
    /// What to install or change; where the library itself refused, there is no more to say than
    /// its own error does.
    pub fn advice(&self) -> Option<&'static str> {
        match self {
            Self::NotFound { advice, .. }
            | Self::MissingSymbol { advice, .. }
            | Self::TooOld { advice, .. } => Some(advice),
            Self::Refused { .. } => None,
        }
    }
}

impl fmt::Display for Absent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { library, cause, .. } => write!(f, "{library} was not found: {cause}"),
            Self::MissingSymbol { library, path, symbol, .. } => {
                write!(f, "{library} at {} has no function {symbol}", path.display())
            }
            Self::TooOld { library, path, found, oldest, .. } => {
                write!(f, "{library} at {} is {found}, older than {oldest}", path.display())
            }
            Self::Refused { library, path, error } => {
                write!(f, "{library} at {} cannot be used: {error}", path.display())
            }
        }
    }
}

impl std::error::Error for Absent {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Refused { error, .. } => Some(error),
            _ => None,
        }
    }
}

/// A call into a library of CUDA that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CallError {
    /// The function that was called.
    pub call: &'static str,
    /// The code that it returned.
    pub code: i32,
    /// What the library says of the code, or the log of a compilation.
    pub text: String,
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} returned {}: {}", self.call, self.code, self.text)
    }
}

impl std::error::Error for CallError {}

/// A library that was opened. It is never closed: CUDA's libraries start threads and register exit
/// hooks, which must not lose their code.
#[derive(Debug)]
pub(crate) struct Opened {
    library: &'static Library,
    pub(crate) path: PathBuf,
    handle: ManuallyDrop<libloading::Library>,
}

impl Opened {
    /// Opens the file at `path`, or the one that the system's loader finds under a bare name. What
    /// it defines stays its own: another library's functions of the same names are not touched.
    ///
    /// # Safety
    ///
    /// - The file's initialisers do no harm: it is what it is named for, or a test's.
    pub(crate) unsafe fn open(library: &'static Library, path: &Path) -> Result<Self, Absent> {
        // SAFETY: as the caller promises.
        match unsafe { libloading::Library::new(path) } {
            Ok(handle) => {
                Ok(Self { library, path: path.to_owned(), handle: ManuallyDrop::new(handle) })
            }
            Err(cause) => Err(Absent::NotFound {
                library: library.name,
                cause: loader_says(&cause),
                advice: library.advice,
            }),
        }
    }

    /// The function named `symbol`.
    ///
    /// # Safety
    ///
    /// - `F` is a function pointer type, and the function's own.
    pub(crate) unsafe fn symbol<F: Copy>(&self, symbol: &'static str) -> Result<F, Absent> {
        // SAFETY: as the caller promises.
        match unsafe { self.handle.get::<F>(symbol.as_bytes()) } {
            Ok(function) => Ok(*function),
            Err(_) => Err(Absent::MissingSymbol {
                library: self.library.name,
                path: self.path.clone(),
                symbol,
                advice: self.library.advice,
            }),
        }
    }

    /// Refuses a library older than what this crate was written for.
    pub(crate) fn check(&self, found: Version) -> Result<(), Absent> {
        match self.library.oldest {
            Some(oldest) if found < oldest => Err(Absent::TooOld {
                library: self.library.name,
                path: self.path.clone(),
                found,
                oldest,
                advice: self.library.advice,
            }),
            _ => Ok(()),
        }
    }

    /// The library itself says no.
    pub(crate) fn refused(&self, error: CallError) -> Absent {
        Absent::Refused { library: self.library.name, path: self.path.clone(), error }
    }
}

/// The cause alone: libloading's text would repeat that a library could not be opened.
fn loader_says(error: &libloading::Error) -> String {
    let cause = std::error::Error::source(error);
    cause.map_or_else(|| error.to_string(), ToString::to_string)
}

/// A text that a library of CUDA returned.
///
/// # Safety
///
/// - `text` is null or points to a text that ends in a zero byte and stays as it is.
pub(crate) unsafe fn text_at(text: *const c_char) -> String {
    if text.is_null() {
        return "no description".to_owned();
    }
    // SAFETY: not null, and the rest as the caller promises.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// Defines a table of functions of one library, all of which are looked up when it is opened.
macro_rules! functions {
    (
        $visibility:vis $table:ident;
        $( $name:ident = $symbol:literal($($argument:ty),* $(,)?) -> $result:ty; )*
    ) => {
        #[derive(Clone, Copy, Debug)]
        $visibility struct $table {
            $( $visibility $name: unsafe extern "C" fn($($argument),*) -> $result, )*
        }

        impl $table {
            /// # Safety
            ///
            /// - The library's functions of these names have these types.
            unsafe fn load(opened: &$crate::library::Opened) -> Result<Self, $crate::Absent> {
                $(
                    // SAFETY: as the caller promises.
                    let $name = unsafe { opened.symbol($symbol) }?;
                )*
                Ok(Self { $( $name, )* })
            }
        }
    };
}

pub(crate) use functions;
