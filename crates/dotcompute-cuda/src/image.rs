//! Handlers and the resident grid, linked into one image for one architecture.

use std::fmt;
use std::fmt::Write as _;

use crate::cache::Cache;
use crate::library::{CallError, Version};
use crate::nvjitlink::{NvJitLink, Part, PartKind};
use crate::nvrtc::{Output, Source};
use crate::source::{HANDLER_HEADERS, HEADERS, RESIDENT};
use crate::toolkit::Toolkit;

/// A handler, as CUDA C++ or compiled already.
///
/// ```
/// use dotcompute_cuda::CudaHandler;
///
/// let handler = CudaHandler::from_source(
///     "add",
///     r#"
///     #include "dotcompute.cuh"
///     struct Amount { long long value; };
///     extern "C" __device__ int32_t
///     add(const Amount *message, Amount *total, Amount *reply, rk_ctx *) {
///         total->value += message->value;
///         reply->value = total->value;
///         return DC_HANDLER_REPLY;
///     }
///     "#,
/// );
/// assert_eq!(handler.function(), "add");
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct CudaHandler {
    function: String,
    code: Code,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Code {
    Source(String),
    LtoIr(Vec<u8>),
}

impl CudaHandler {
    /// The function `function` of `source`, a translation unit that includes `dotcompute.cuh`. It
    /// is an `extern "C" __device__` function from a record, the state, a reply and a context to
    /// what `dotcompute_abi::codes` lists. It is compiled when it is linked.
    pub fn from_source(function: impl Into<String>, source: impl Into<String>) -> Self {
        Self { function: function.into(), code: Code::Source(source.into()) }
    }

    /// The function `function` of `code`, which another compiler made: the intermediate form of an
    /// NVIDIA compiler that is no newer than the linker. It has the form of a handler and calls
    /// nothing but what `dotcompute.cuh` declares. So a handler in Python arrives here:
    /// `pydotcompute.handlers.compile_for_cuda`.
    pub fn from_lto_ir(function: impl Into<String>, code: impl Into<Vec<u8>>) -> Self {
        Self { function: function.into(), code: Code::LtoIr(code.into()) }
    }

    /// Its name, which is unique in its image.
    pub fn function(&self) -> &str {
        &self.function
    }

    fn file(&self) -> String {
        match self.code {
            Code::Source(_) => format!("{}.cu", self.function),
            Code::LtoIr(_) => format!("{}.ltoir", self.function),
        }
    }
}

/// Which variant of the protocol an image has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Variant {
    /// Chunks of sixteen bytes travel in one access, without a fence.
    #[default]
    Tagged,
    /// A fence between a chunk's data and its tag: for a device that tears sixteen bytes.
    Fenced,
}

/// Code for one architecture: the resident grid with its handlers, which are inlined in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    cubin: Vec<u8>,
    handlers: Vec<String>,
}

impl Image {
    /// The name of the grid's kernel in the image.
    pub const KERNEL: &str = "dc_resident";

    /// Compiles `handlers` and links them with the grid for devices of `architecture`, the compute
    /// capability, unless `cache` has the image already. Takes a few hundred milliseconds without.
    ///
    /// # Errors
    ///
    /// With the compiler's words, and the lines that they are about, if a source is at fault.
    pub fn build(
        handlers: &[CudaHandler],
        architecture: Version,
        variant: Variant,
        toolkit: &Toolkit,
        cache: Option<&Cache>,
    ) -> Result<Self, BuildError> {
        for (place, handler) in handlers.iter().enumerate() {
            let function = &handler.function;
            if !is_identifier(function) {
                return Err(BuildError::Name { function: function.clone() });
            }
            if handlers[..place].iter().any(|other| other.function == *function) {
                return Err(BuildError::Duplicate { function: function.clone() });
            }
        }
        let names = handlers.iter().map(|handler| handler.function.clone()).collect();
        let linker = toolkit.linker().map_err(|it| BuildError::NoLinker(it.to_string()))?;
        let key = key(handlers, architecture, variant, toolkit, linker);
        if let Some(cubin) = cache.and_then(|cache| cache.read(&key)) {
            return Ok(Self { cubin, handlers: names });
        }
        let cubin = link(handlers, architecture, variant, toolkit, linker)?;
        if let Some(cache) = cache {
            cache.write(&key, &cubin);
        }
        Ok(Self { cubin, handlers: names })
    }

    /// An image that was built elsewhere: `cubin` has these handlers, by their functions' names, in
    /// the order of their numbers.
    ///
    /// # Safety
    ///
    /// - The cubin is what [`build`](Self::build) made of this version's sources.
    pub unsafe fn from_cubin(cubin: Vec<u8>, handlers: Vec<String>) -> Self {
        Self { cubin, handlers }
    }

    /// The code, as the driver loads it.
    pub fn cubin(&self) -> &[u8] {
        &self.cubin
    }

    /// How many handlers it has.
    pub(crate) fn handlers(&self) -> u32 {
        self.handlers.len() as u32
    }

    /// The number by which seats name the handler of this function.
    pub fn handler(&self, function: &str) -> Option<u32> {
        self.handlers.iter().position(|name| name == function).map(|place| place as u32)
    }
}

fn link(
    handlers: &[CudaHandler],
    architecture: Version,
    variant: Variant,
    toolkit: &Toolkit,
    linker: &NvJitLink,
) -> Result<Vec<u8>, BuildError> {
    let target = target(architecture);
    let compile = |name: &str, text: &str, headers: &[(&str, &str)]| {
        let mut options = vec!["-std=c++17", &target, "-dlto"];
        if variant == Variant::Fenced {
            options.push("-DDC_FENCED");
        }
        let source = Source { name, text, headers };
        toolkit.nvrtc.compile(&source, &options, Output::LtoIr).map(|(code, _warnings)| code)
    };
    // What the runtime itself brings compiles, or is broken; handlers are the user's.
    let runtime =
        |name: &str, text: &str| compile(name, text, HEADERS).map_err(BuildError::Runtime);
    let grid = runtime("resident.cu", RESIDENT)?;
    let dispatch = runtime("dispatch.cu", &dispatch(handlers))?;
    let mut compiled = vec![("resident.cu".to_owned(), grid), ("dispatch.cu".to_owned(), dispatch)];
    for handler in handlers {
        let file = handler.file();
        let code = match &handler.code {
            Code::LtoIr(code) => code.clone(),
            Code::Source(source) => {
                compile(&file, source, &HEADERS[..HANDLER_HEADERS]).map_err(|error| {
                    BuildError::Source { function: handler.function.clone(), error }
                })?
            }
        };
        compiled.push((file, code));
    }
    let parts: Vec<Part<'_>> =
        compiled.iter().map(|(name, bytes)| Part { name, kind: PartKind::LtoIr, bytes }).collect();
    linker.link(&parts, &[&target, "-lto"]).map_err(BuildError::Link)
}

/// The function that finds a seat's handler, as CUDA C++.
fn dispatch(handlers: &[CudaHandler]) -> String {
    let mut declarations = String::new();
    let mut cases = String::new();
    for (number, CudaHandler { function, .. }) in handlers.iter().enumerate() {
        // Into strings: cannot fail.
        let _ = writeln!(
            declarations,
            "DC_HANDLER int32_t {function}(const void *, void *, void *, rk_ctx *);"
        );
        let _ =
            writeln!(cases, "    case {number}: return {function}(message, state, reply, ctx);");
    }
    format!(
        "#include \"dotcompute.cuh\"\n\
         {declarations}\
         DC_HANDLER int32_t dc_dispatch(uint32_t handler, const void *message, void *state,\n\
         \x20                              void *reply, rk_ctx *ctx) {{\n\
         \x20   switch (handler) {{\n\
         {cases}\
         \x20   default: return DC_FAULT_BOUNDS;\n\
         \x20   }}\n\
         }}\n"
    )
}

/// All that an image depends on.
fn key(
    handlers: &[CudaHandler],
    architecture: Version,
    variant: Variant,
    toolkit: &Toolkit,
    linker: &NvJitLink,
) -> String {
    let (nvrtc, linker) = (toolkit.nvrtc.version(), linker.version());
    let mut key = format!("{} {variant:?} {nvrtc} {linker}\n", target(architecture));
    let mut add = |text: &str| {
        let _ = writeln!(key, "{}\n{text}", text.len()); // into a String: cannot fail
    };
    HEADERS.iter().map(|(_, text)| *text).chain([RESIDENT]).for_each(&mut add);
    for CudaHandler { function, code } in handlers {
        add(function);
        match code {
            Code::Source(source) => add(source),
            Code::LtoIr(code) => {
                add(&code.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
            }
        }
    }
    key
}

fn target(architecture: Version) -> String {
    format!("-arch=sm_{}{}", architecture.major, architecture.minor)
}

fn is_identifier(name: &str) -> bool {
    let mut letters = name.chars();
    letters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && letters.all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// Why an image could not be built.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BuildError {
    /// A handler's name is no name of a function of C.
    Name {
        /// The name.
        function: String,
    },
    /// Two handlers of one image have the same name.
    Duplicate {
        /// The name.
        function: String,
    },
    /// A handler's source does not compile.
    Source {
        /// The handler.
        function: String,
        /// Its text is the compiler's, with the lines at fault.
        error: CallError,
    },
    /// There is no linker, or one that does not do: why.
    NoLinker(String),
    /// The parts do not link: a handler calls what nobody defines, say.
    Link(CallError),
    /// The runtime's own source does not compile with this toolkit.
    Runtime(CallError),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name { function } => {
                write!(f, "'{function}' cannot be the name of a handler's function")
            }
            Self::Duplicate { function } => {
                write!(f, "two handlers of one image are named '{function}'")
            }
            Self::Source { function, error } => {
                write!(f, "the handler '{function}' does not compile:\n{}", error.text)
            }
            Self::NoLinker(why) => write!(f, "the handlers cannot be linked: {why}"),
            Self::Link(error) => write!(f, "the handlers do not link:\n{}", error.text),
            Self::Runtime(error) => {
                write!(f, "the toolkit does not compile the runtime:\n{}", error.text)
            }
        }
    }
}

impl std::error::Error for BuildError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Source { error, .. } | Self::Link(error) | Self::Runtime(error) => Some(error),
            Self::Name { .. } | Self::Duplicate { .. } | Self::NoLinker(_) => None,
        }
    }
}
