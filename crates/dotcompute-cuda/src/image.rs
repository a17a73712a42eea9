//! Handlers and the resident grid, linked into one image for one architecture.

use std::fmt;
use std::fmt::Write as _;

use crate::cache::Cache;
use crate::library::{CallError, Version};
use crate::nvjitlink::{NvJitLink, Part, PartKind};
use crate::nvrtc::{Output, Source};
use crate::rust::{self, RustError, Translated};
use crate::source::{HANDLER_HEADERS, HEADERS, RESIDENT};
use crate::toolkit::Toolkit;

/// The threads of a block at most, on any device.
const THREADS_MAX: u32 = 1024;

/// The blocks of a team at most: more than any device holds at once.
const BLOCKS_MAX: u32 = 1 << 16;

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
    scope: Scope,
    shared_bytes: u32,
    /// The sizes of its message, its state and its reply, in bytes, where they are known.
    sizes: Option<[u64; 3]>,
}

/// How many threads of a device call a handler for one message, together.
///
/// All of them are given the same message, state and reply, in memory that they share, and agree on who
/// writes what by `rk_thread`, `rk_threads` and `rk_barrier`. There is a reply if any of them says so, and a
/// fault if any of them fails, of which the first counts. Only the first thread (of the first block) emits,
/// sends and logs; if another does, or one returns that others wait for at a barrier, the message fails with the
/// code [`FAULT_DIVERGED`](dotcompute_abi::codes::FAULT_DIVERGED), and nobody waits for good.
///
/// In a team `rk_thread`, `rk_threads`, `rk_barrier` and `rk_shared` are about the block that a thread is of;
/// `rk_block` and `rk_blocks` say which that is of how many, and `rk_team_barrier` waits for all threads of all.
///
/// Handlers of different scopes have grids of their own, so that what their kernels send to each other goes by
/// the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Scope {
    /// One.
    #[default]
    Lane,
    /// The 32 of a warp.
    Warp,
    /// Those of a block.
    Block {
        /// How many: a multiple of 32, 1024 at most. The more they are, the fewer registers each
        /// has: 64 where there are 1024.
        threads: u32,
    },
    /// Those of several blocks, which a device has to hold at once, with those of all other seats of the grid.
    Team {
        /// How many blocks; at least 1.
        blocks: u32,
        /// How many threads each has, as above.
        threads: u32,
    },
}

impl Scope {
    /// How many they are; of a team, those of a block.
    pub fn threads(self) -> u32 {
        match self {
            Self::Lane => 1,
            Self::Warp => 32,
            Self::Block { threads } | Self::Team { threads, .. } => threads,
        }
    }

    /// Of how many blocks they are; 1 where there is no team.
    pub fn blocks(self) -> u32 {
        match self {
            Self::Team { blocks, .. } => blocks,
            Self::Lane | Self::Warp | Self::Block { .. } => 1,
        }
    }

    /// The compiler's options for code of this scope: see `scope.cuh`.
    fn options(self) -> Vec<String> {
        match self {
            Self::Lane => Vec::new(),
            Self::Warp => vec!["-DDC_SCOPE=1".to_owned()],
            Self::Block { threads } => {
                vec!["-DDC_SCOPE=2".to_owned(), format!("-DDC_SEAT_THREADS={threads}u")]
            }
            Self::Team { blocks, threads } => vec![
                "-DDC_SCOPE=3".to_owned(),
                format!("-DDC_SEAT_THREADS={threads}u"),
                format!("-DDC_SEAT_BLOCKS={blocks}u"),
            ],
        }
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Lane => f.write_str("lane"),
            Self::Warp => f.write_str("warp"),
            Self::Block { threads } => write!(f, "block of {threads}"),
            Self::Team { blocks, threads } => write!(f, "team of {blocks} blocks of {threads}"),
        }
    }
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
        Self::new(function.into(), Code::Source(source.into()))
    }

    /// The function `function` of `code`, which another compiler made: the intermediate form of an
    /// NVIDIA compiler that is no newer than the linker. It has the form of a handler and calls
    /// nothing but what `dotcompute.cuh` declares. So a handler in Python arrives here:
    /// `pydotcompute.handlers.compile_for_cuda`.
    pub fn from_lto_ir(function: impl Into<String>, code: impl Into<Vec<u8>>) -> Self {
        Self::new(function.into(), Code::LtoIr(code.into()))
    }

    /// The function `function` of the Rust file `source`: an **experiment**. It is a public function as
    /// [`handler`](crate::handler) says. It is compiled at once, by the `rustc` of this machine, stable and
    /// 1.88 or newer, or by what `RUSTC` names; where handlers are linked no Rust is needed.
    ///
    /// ```no_run
    /// use dotcompute_cuda::CudaHandler;
    ///
    /// let handler = CudaHandler::from_rust(
    ///     "add",
    ///     r#"
    ///     use dotcompute_cuda::handler::{Context, Handled, Outcome};
    ///
    ///     #[derive(Clone, Copy)]
    ///     #[repr(C)]
    ///     pub struct Amount { pub value: i64 }
    ///
    ///     pub fn add(message: &Amount, total: &mut Amount, reply: &mut Amount, _: &mut Context) -> Outcome {
    ///         total.value += message.value;
    ///         reply.value = total.value;
    ///         Ok(Handled::Reply)
    ///     }
    ///     "#,
    /// )?;
    /// # Ok::<(), dotcompute_cuda::RustError>(())
    /// ```
    ///
    /// - The file may be a module of the program too (`include_str!` it): paths that begin with
    ///   `dotcompute`, `dotcompute_cuda` or `dotcompute_core` lead to `cuda::handler`, `handler` and the
    ///   derive `Message`, and to nothing else; it is compiled with `--cfg dotcompute_device`, and without
    ///   the standard library.
    /// - A handler has no memory but its records and the stack, so no static that can change and no atomics;
    ///   it calls nothing by an address (no trait objects), and of `core` what is generic or inlined.
    ///   Functions of C's mathematics (`sqrt`, `exp`, ..) are there when they are declared as `extern "C"`.
    /// - It computes what it does on the host in a release build, bit for bit but for those functions.
    /// - What panics fails the message with `FAULT_PANIC`, an index out of bounds with `FAULT_BOUNDS`, and the
    ///   fault's text has the line. Every loop that is left of it looks each 256 turns whether the kernel is to
    ///   end, and then the message fails. (Where a function calls itself, nobody looks.)
    /// - One lane calls it: it has no other [`Scope`].
    ///
    /// # Errors
    ///
    /// See [`RustError`]: rustc's own words, or the line that has something which is not for a device.
    pub fn from_rust(function: impl Into<String>, source: &str) -> Result<Self, RustError> {
        let function = function.into();
        if !is_identifier(&function) {
            return Err(RustError::Name { function });
        }
        let Translated { source, sizes } = rust::translate(&function, source)?;
        Ok(Self { sizes: Some(sizes), ..Self::new(function, Code::Source(source)) })
    }

    fn new(function: String, code: Code) -> Self {
        Self { function, code, scope: Scope::Lane, shared_bytes: 0, sizes: None }
    }

    /// So many threads call it for each message, instead of one.
    #[must_use]
    pub fn scope(mut self, scope: Scope) -> Self {
        self.scope = scope;
        self
    }

    /// Its kernels have so many bytes each in a multiprocessor, and those of a team have them for each block,
    /// which `rk_shared` gives to the threads: 0 by default, and for a handler of one lane.
    #[must_use]
    pub fn shared_bytes(mut self, bytes: u32) -> Self {
        self.shared_bytes = bytes;
        self
    }

    /// What of a device its kernels need, beyond what all do.
    pub(crate) fn class(&self) -> Class {
        Class { scope: self.scope, shared_bytes: self.shared_bytes }
    }

    /// That there can be such a handler.
    pub(crate) fn check(&self) -> Result<(), BuildError> {
        let function = || self.function.clone();
        if !is_identifier(&self.function) {
            return Err(BuildError::Name { function: function() });
        }
        match self.scope {
            // Only of handlers in Rust are they known: what is borrowed there is one thread's.
            scope if self.sizes.is_some() && scope != Scope::Lane => {
                Err(BuildError::OneLane { function: function(), scope })
            }
            Scope::Block { threads } | Scope::Team { threads, .. } if !is_block(threads) => {
                Err(BuildError::Threads { function: function(), threads })
            }
            Scope::Team { blocks, .. } if !(1..=BLOCKS_MAX).contains(&blocks) => {
                Err(BuildError::Blocks { function: function(), blocks })
            }
            Scope::Lane if self.shared_bytes != 0 => {
                Err(BuildError::Shared { function: function() })
            }
            _ => Ok(()),
        }
    }

    /// The sizes of its message, its state and its reply, in bytes, where its code says them.
    pub(crate) fn sizes(&self) -> Option<[u64; 3]> {
        self.sizes
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

/// What of a device a kernel needs beyond what all do: kernels of one class share grids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) scope: Scope,
    pub(crate) shared_bytes: u32,
}

fn is_block(threads: u32) -> bool {
    (32..=THREADS_MAX).contains(&threads) && threads.is_multiple_of(32)
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
    scope: Scope,
}

impl Image {
    /// The name of the grid's kernel in the image.
    pub const KERNEL: &str = "dc_resident";

    /// Compiles `handlers` and links them with the grid for devices of `architecture`, the compute
    /// capability, unless `cache` has the image already. Takes a few hundred milliseconds without. All
    /// handlers of an image have the same [scope](CudaHandler::scope).
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
        let scope = handlers.first().map(|handler| handler.scope).unwrap_or_default();
        for (place, handler) in handlers.iter().enumerate() {
            handler.check()?;
            let function = &handler.function;
            if handlers[..place].iter().any(|other| other.function == *function) {
                return Err(BuildError::Duplicate { function: function.clone() });
            }
            if handler.scope != scope {
                let (function, other) = (function.clone(), handler.scope);
                return Err(BuildError::Scopes { function, scope: other, others: scope });
            }
        }
        let names = handlers.iter().map(|handler| handler.function.clone()).collect();
        let linker = toolkit.linker().map_err(|it| BuildError::NoLinker(it.to_string()))?;
        let key = key(handlers, scope, architecture, variant, toolkit, linker);
        if let Some(cubin) = cache.and_then(|cache| cache.read(&key)) {
            return Ok(Self { cubin, handlers: names, scope });
        }
        let cubin = link(handlers, scope, architecture, variant, toolkit, linker)?;
        if let Some(cache) = cache {
            cache.write(&key, &cubin);
        }
        Ok(Self { cubin, handlers: names, scope })
    }

    /// An image that was built elsewhere: `cubin` has these handlers, by their functions' names, in
    /// the order of their numbers, all of this scope.
    ///
    /// # Safety
    ///
    /// - The cubin is what [`build`](Self::build) made of this version's sources.
    pub unsafe fn from_cubin(cubin: Vec<u8>, handlers: Vec<String>, scope: Scope) -> Self {
        Self { cubin, handlers, scope }
    }

    /// The scope of its handlers.
    pub fn scope(&self) -> Scope {
        self.scope
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
    scope: Scope,
    architecture: Version,
    variant: Variant,
    toolkit: &Toolkit,
    linker: &NvJitLink,
) -> Result<Vec<u8>, BuildError> {
    let target = target(architecture);
    let scope = scope.options();
    let compile = |name: &str, text: &str, headers: &[(&str, &str)], more: &[&'static str]| {
        let mut options = vec!["-std=c++17", &target, "-dlto"];
        options.extend(more);
        if variant == Variant::Fenced {
            options.push("-DDC_FENCED");
        }
        options.extend(scope.iter().map(String::as_str));
        let source = Source { name, text, headers };
        toolkit.nvrtc.compile(&source, &options, Output::LtoIr).map(|(code, _warnings)| code)
    };
    // What the runtime itself brings compiles, or is broken; handlers are the user's.
    let runtime =
        |name: &str, text: &str| compile(name, text, HEADERS, &[]).map_err(BuildError::Runtime);
    let grid = runtime("resident.cu", RESIDENT)?;
    let dispatch = runtime("dispatch.cu", &dispatch(handlers))?;
    let mut compiled = vec![("resident.cu".to_owned(), grid), ("dispatch.cu".to_owned(), dispatch)];
    for handler in handlers {
        let file = handler.file();
        let code = match &handler.code {
            Code::LtoIr(code) => code.clone(),
            Code::Source(source) => {
                // What is made of Rust has integers of 128 bits.
                let more: &[_] = if handler.sizes.is_some() { &["--device-int128"] } else { &[] };
                compile(&file, source, &HEADERS[..HANDLER_HEADERS], more).map_err(|error| {
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
    scope: Scope,
    architecture: Version,
    variant: Variant,
    toolkit: &Toolkit,
    linker: &NvJitLink,
) -> String {
    let (nvrtc, linker) = (toolkit.nvrtc.version(), linker.version());
    let scope = scope.options().concat();
    let mut key = format!("{} {variant:?}{scope} {nvrtc} {linker}\n", target(architecture));
    let mut add = |text: &str| {
        let _ = writeln!(key, "{}\n{text}", text.len()); // into a String: cannot fail
    };
    HEADERS.iter().map(|(_, text)| *text).chain([RESIDENT]).for_each(&mut add);
    for CudaHandler { function, code, .. } in handlers {
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
    /// A block has no such number of threads.
    Threads {
        /// The handler.
        function: String,
        /// How many it was to have.
        threads: u32,
    },
    /// A team has no such number of blocks.
    Blocks {
        /// The handler.
        function: String,
        /// How many it was to have.
        blocks: u32,
    },
    /// A handler of one lane is to have shared memory, which it would share with nobody.
    Shared {
        /// The handler.
        function: String,
    },
    /// A handler in Rust is to be called by several threads.
    OneLane {
        /// The handler.
        function: String,
        /// The scope that it was to have.
        scope: Scope,
    },
    /// The handlers of one image have different scopes.
    Scopes {
        /// The first that differs.
        function: String,
        /// Its scope.
        scope: Scope,
        /// That of the others.
        others: Scope,
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
            Self::Threads { function, threads } => write!(
                f,
                "the handler '{function}' wants blocks of {threads} threads: name a multiple of 32, \
                 {THREADS_MAX} at most"
            ),
            Self::Blocks { function, blocks } => write!(
                f,
                "the handler '{function}' wants a team of {blocks} blocks: name 1 to {BLOCKS_MAX}, and no \
                 more than the device holds at once"
            ),
            Self::Shared { function } => write!(
                f,
                "the handler '{function}' runs on one lane, which has no shared memory: give it the \
                 scope of a warp, a block or a team"
            ),
            Self::OneLane { function, scope } => write!(
                f,
                "the handler '{function}' is in Rust, of which one lane calls it, and not a {scope}"
            ),
            Self::Scopes { function, scope, others } => write!(
                f,
                "the handler '{function}' has the scope {scope} and the others of its image {others}: \
                 each scope has images of its own"
            ),
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
            Self::Name { .. }
            | Self::Duplicate { .. }
            | Self::Threads { .. }
            | Self::Blocks { .. }
            | Self::Shared { .. }
            | Self::OneLane { .. }
            | Self::Scopes { .. }
            | Self::NoLinker(_) => None,
        }
    }
}
