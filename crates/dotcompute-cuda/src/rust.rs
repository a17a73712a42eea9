//! Handlers in Rust, for a GPU: an experiment.
//!
//! A stable rustc compiles the handler for the host, without the standard library, to LLVM IR; that becomes
//! C++ (`cpp.rs`), which NVRTC compiles as it does any handler's. Nothing else is needed where handlers are
//! compiled: no other target of rustc's, no LLVM of the same age, no libNVVM, whose dialects of LLVM IR are
//! older than rustc's. What of the IR has no counterpart is an error that names the handler's line.

mod cpp;
mod ir;

use std::env;
use std::ffi::OsString;
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{self, Command};

use dotcompute_mailbox::sync::{AtomicU64, Ordering};

use crate::library::Version;

/// What handlers see as `dotcompute_cuda::handler`.
const HANDLER: &str = include_str!("../device/handler.rs");

/// The oldest rustc: the one that this crate needs itself.
const OLDEST: Version = Version::new(1, 88);

/// `#[derive(Message)]`: what it adds is the host's.
const MACROS: &str = "\
extern crate proc_macro;
#[proc_macro_derive(Message, attributes(message))]
pub fn message(_: proc_macro::TokenStream) -> proc_macro::TokenStream {
    proc_macro::TokenStream::new()
}
";

/// A handler in C++, and the sizes of its message, its state and its reply, in bytes.
#[derive(Debug)]
pub(crate) struct Translated {
    pub(crate) source: String,
    pub(crate) sizes: [u64; 3],
}

/// Compiles the function `function` of `source`.
pub(crate) fn translate(function: &str, source: &str) -> Result<Translated, RustError> {
    let rustc = Rustc::find()?;
    let folder = Folder::make().map_err(|error| RustError::Folder(error.to_string()))?;
    let file = format!("{function}.rs");
    folder.write(&file, source)?;
    folder.write("handler_.rs", HANDLER)?;
    folder.write("macros_.rs", MACROS)?;
    folder.write("root_.rs", &root(function, &file))?;
    let edition = ["--edition", "2024"];
    let macros = ["--crate-name", "dotcompute_macros", "--crate-type", "proc-macro", "macros_.rs"];
    rustc.run(&folder, edition.iter().chain(&macros))?;
    // Vectors have no counterpart; everything else that rustc optimises need not be C++.
    let to_ir = "--crate-name handler --crate-type lib --emit llvm-ir=handler.ll --cfg dotcompute_device \
                 -A dead_code -C opt-level=2 -C panic=abort -C codegen-units=1 -C overflow-checks=no \
                 -C debug-assertions=no -C debuginfo=line-tables-only -C no-vectorize-loops \
                 -C no-vectorize-slp -L . --extern dotcompute_macros root_.rs";
    rustc.run(&folder, edition.iter().copied().chain(to_ir.split_whitespace()))?;
    let ir = folder.read("handler.ll")?;
    let translated = cpp::translate(&ir, function, &file).map_err(|strange| {
        RustError::Unsupported { file, line: strange.line, what: strange.what }
    })?;
    Ok(Translated { source: translated.text, sizes: translated.sizes })
}

/// The crate around a handler's file. It goes by the names that its module for the host uses.
fn root(function: &str, file: &str) -> String {
    let (entry, sizes) = (cpp::ENTRY, cpp::SIZES);
    format!(
        "#![no_std]\n\
         #[cfg(not(all(target_endian = \"little\", target_pointer_width = \"64\")))]\n\
         compile_error!(\"handlers for a GPU are compiled on 64-bit little-endian machines\");\n\
         extern crate self as dotcompute;\n\
         extern crate self as dotcompute_core;\n\
         extern crate self as dotcompute_cuda;\n\
         pub use dotcompute_macros::Message;\n\
         #[path = \"handler_.rs\"]\n\
         pub mod handler;\n\
         pub mod cuda {{ pub use crate::handler; }}\n\
         #[path = \"{file}\"]\n\
         mod source;\n\
         #[unsafe(no_mangle)]\n\
         pub static {sizes}: [u64; 3] = handler::sizes(source::{function});\n\
         #[unsafe(no_mangle)]\n\
         unsafe extern \"C\" fn {entry}(\n\
         \x20   message: *const core::ffi::c_void,\n\
         \x20   state: *mut core::ffi::c_void,\n\
         \x20   reply: *mut core::ffi::c_void,\n\
         \x20   context: *mut core::ffi::c_void,\n\
         ) -> i32 {{\n\
         \x20   unsafe {{ handler::enter(source::{function}, message, state, reply, context) }}\n\
         }}\n"
    )
}

/// A compiler that was found and is new enough.
struct Rustc {
    program: OsString,
}

impl Rustc {
    /// `$RUSTC`, or else `rustc` of the search path.
    fn find() -> Result<Self, RustError> {
        Self::at(env::var_os("RUSTC").filter(|it| !it.is_empty()).unwrap_or("rustc".into()))
    }

    fn at(program: OsString) -> Result<Self, RustError> {
        let absent = |cause: String| {
            let program = program.to_string_lossy().into_owned();
            RustError::NoCompiler { program, cause }
        };
        let output = Command::new(&program).arg("--version").output();
        let output = output.map_err(|error| absent(error.to_string()))?;
        let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        if !output.status.success() {
            return Err(absent(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        // rustc 1.95.0 (59807616e 2026-04-14)
        let mut numbers = text.split(' ').nth(1).unwrap_or_default().split('.');
        let mut number = || numbers.next().and_then(|number| number.parse().ok());
        match (number(), number()) {
            (Some(major), Some(minor)) if Version::new(major, minor) >= OLDEST => {
                Ok(Self { program })
            }
            _ => Err(RustError::TooOld { found: text, oldest: OLDEST }),
        }
    }

    fn run(
        &self,
        folder: &Folder,
        arguments: impl IntoIterator<Item = impl AsRef<std::ffi::OsStr>>,
    ) -> Result<(), RustError> {
        let output = Command::new(&self.program).args(arguments).current_dir(&folder.path).output();
        let output = output.map_err(|error| RustError::NoCompiler {
            program: self.program.to_string_lossy().into_owned(),
            cause: error.to_string(),
        })?;
        match output.status.success() {
            true => Ok(()),
            false => Err(RustError::Source(String::from_utf8_lossy(&output.stderr).into_owned())),
        }
    }
}

/// A folder of this call alone, gone at its end.
struct Folder {
    path: PathBuf,
}

impl Folder {
    fn make() -> io::Result<Self> {
        // Relaxed: a number that nobody else has.
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let name = format!("dotcompute-rust-{}-{number}", process::id());
            let path = env::temp_dir().join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Ok(Self { path }),
                // What another process left that had this number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&self, file: &str, text: &str) -> Result<(), RustError> {
        fs::write(self.path.join(file), text).map_err(|error| RustError::Folder(error.to_string()))
    }

    fn read(&self, file: &str) -> Result<String, RustError> {
        let path: &Path = &self.path;
        fs::read_to_string(path.join(file)).map_err(|error| RustError::Folder(error.to_string()))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.path); // the system removes it some day
    }
}

/// Why a handler in Rust does not become one for a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RustError {
    /// The name is no name of a function.
    Name {
        /// The name.
        function: String,
    },
    /// There is no rustc.
    NoCompiler {
        /// What was called.
        program: String,
        /// What the system said.
        cause: String,
    },
    /// The rustc is older than will do.
    TooOld {
        /// What it says that it is.
        found: String,
        /// The oldest version that will do.
        oldest: Version,
    },
    /// The handler does not compile: what rustc says, with the lines at fault.
    Source(String),
    /// The handler compiles, but has something that is not for a device.
    Unsupported {
        /// The handler's file.
        file: String,
        /// The line, where it is known.
        line: Option<u32>,
        /// What it is.
        what: String,
    },
    /// There is no folder for the compiler to work in: why.
    Folder(String),
}

impl fmt::Display for RustError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { function } => {
                write!(f, "'{function}' cannot be the name of a handler's function")
            }
            Self::NoCompiler { program, cause } => write!(
                f,
                "the Rust compiler '{program}' does not run: {cause}; install Rust (rustup.rs), or \
                 name a compiler in RUSTC"
            ),
            Self::TooOld { found, oldest } => {
                write!(f, "handlers in Rust need rustc {oldest} or newer, and this is '{found}'")
            }
            Self::Source(text) => write!(f, "the handler does not compile:\n{text}"),
            Self::Unsupported { file, line: Some(line), what } => {
                write!(f, "{file}:{line}: not for a device: {what}")
            }
            Self::Unsupported { file, line: None, what } => {
                write!(f, "{file}: not for a device: {what}")
            }
            Self::Folder(cause) => write!(f, "no folder for the compiler to work in: {cause}"),
        }
    }
}

impl std::error::Error for RustError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compiler_that_is_not_there_or_does_not_do_is_an_error_that_says_so() {
        let found = |program: &str| Rustc::at(program.into()).map(|_| ()).unwrap_err();
        let error = found("/nowhere/rustc");
        assert!(
            matches!(&error, RustError::NoCompiler { program, .. } if program == "/nowhere/rustc")
        );
        assert!(error.to_string().contains("RUSTC"), "{error}");
        // What fails, and what says that it is something else.
        assert!(matches!(found("false"), RustError::NoCompiler { .. }));
        assert!(matches!(found("echo"), RustError::TooOld { .. }));
    }

    #[test]
    fn the_oldest_compiler_is_the_one_that_the_crate_is_built_with() {
        let version = format!("{}.{}", OLDEST.major, OLDEST.minor);
        assert!(env!("CARGO_PKG_RUST_VERSION").starts_with(&version), "{version}");
    }
}
