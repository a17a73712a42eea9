//! Where the toolkit's libraries lie, and which of them are taken.
//!
//! They come as Python packages, as a toolkit under `/usr/local`, or from the distribution. All
//! places are looked at, and the newest NVRTC that the newest nvJitLink can link is taken: a linker
//! refuses what a newer compiler made.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::library::{Absent, Library, Version};
use crate::nvjitlink::{NVJITLINK, NvJitLink};
use crate::nvrtc::{NVRTC, Nvrtc};

/// The variable that names the folders to look in; if it is set, no others are.
pub const FOLDERS_VARIABLE: &str = "DOTCOMPUTE_CUDA_LIBRARIES";

/// Major versions that the system's loader is asked for by name, newest first.
const MAJORS: [u32; 2] = [13, 12];

/// A compiler, and a linker that fits it, if there is one.
#[derive(Debug)]
pub struct Toolkit {
    /// The compiler.
    pub nvrtc: Nvrtc,
    linker: Result<NvJitLink, Absent>,
}

impl Toolkit {
    /// These two. The linker is to be at least as new as the compiler.
    pub fn new(nvrtc: Nvrtc, linker: NvJitLink) -> Self {
        Self { nvrtc, linker: Ok(linker) }
    }

    /// The linker, at least as new as the compiler. Kernels on the device are linked; what is used
    /// launch by launch need not be.
    ///
    /// # Errors
    ///
    /// Why there is none.
    pub fn linker(&self) -> Result<&NvJitLink, &Absent> {
        self.linker.as_ref()
    }

    /// The toolkit of this machine: what [`FOLDERS_VARIABLE`] names, or else the best of an active
    /// Python environment, `CUDA_HOME`, `CUDA_PATH`, `/usr/local` and the system's loader.
    ///
    /// # Errors
    ///
    /// Why there is no compiler. That there is no linker shows when it is [asked for](Self::linker).
    pub fn load() -> Result<Self, Absent> {
        Self::load_beside(&[])
    }

    /// As [`Toolkit::load`], with the packages of these environments of Python too, such as the one
    /// that runs.
    ///
    /// # Errors
    ///
    /// As for `load`.
    pub fn load_beside(environments: &[PathBuf]) -> Result<Self, Absent> {
        let places = Places::beside(environments);
        let linker = linker(&places);
        Ok(Self { nvrtc: nvrtc(&places, linker.as_ref().ok())?, linker })
    }
}

/// The newest linker.
pub(crate) fn linker(places: &Places) -> Result<NvJitLink, Absent> {
    // SAFETY: a file named as NVIDIA names its linker, where NVIDIA's packages put it or where the
    // user said it lies.
    let open = |path: &Path| unsafe { NvJitLink::open(path) };
    newest(&NVJITLINK, places, open, NvJitLink::version, None)
}

/// The newest compiler whose output `linker` takes; without a linker, the newest.
pub(crate) fn nvrtc(places: &Places, linker: Option<&NvJitLink>) -> Result<Nvrtc, Absent> {
    // SAFETY: as for the linker.
    let open = |path: &Path| unsafe { Nvrtc::open(path) };
    newest(&NVRTC, places, open, Nvrtc::version, linker.map(NvJitLink::version))
}

/// The newest of what can be opened, up to version `most`.
fn newest<T>(
    library: &'static Library,
    places: &Places,
    open: impl Fn(&Path) -> Result<T, Absent>,
    version: impl Fn(&T) -> Version,
    most: Option<Version>,
) -> Result<T, Absent> {
    let mut best: Option<T> = None;
    let mut why_not = None;
    for path in places.candidates(library) {
        match open(&path) {
            Ok(found) if most.is_some_and(|most| version(&found) > most) => {
                let cause = format!(
                    "{} is {}, which the linker, being {}, cannot link",
                    path.display(),
                    version(&found),
                    most.unwrap_or(version(&found))
                );
                why_not = Some(not_found(library, cause));
            }
            Ok(found) => {
                if best.as_ref().is_none_or(|best| version(best) < version(&found)) {
                    best = Some(found);
                }
            }
            // A file that is there and does not do says more than a name that nobody knows.
            Err(absent) if path.is_absolute() || why_not.is_none() => why_not = Some(absent),
            Err(_) => {}
        }
    }
    best.ok_or_else(|| {
        why_not.unwrap_or_else(|| not_found(library, format!("none in {FOLDERS_VARIABLE}")))
    })
}

fn not_found(library: &'static Library, cause: String) -> Absent {
    Absent::NotFound { library: library.name, cause, advice: library.advice }
}

/// Where libraries are looked for.
#[derive(Debug)]
pub(crate) struct Places {
    folders: Vec<PathBuf>,
    /// Whether the system's loader is asked too.
    loader: bool,
}

impl Places {
    /// Those that the user named, or else all that are usual.
    pub(crate) fn usual() -> Self {
        Self::beside(&[])
    }

    fn beside(environments: &[PathBuf]) -> Self {
        if let Some(named) = env::var_os(FOLDERS_VARIABLE) {
            return Self { folders: env::split_paths(&named).collect(), loader: false };
        }
        let mut folders = Vec::new();
        let active = env::var_os("VIRTUAL_ENV").or_else(|| env::var_os("CONDA_PREFIX"));
        for environment in environments.iter().cloned().chain(active.map(PathBuf::from)) {
            for python in entries(&environment.join("lib"), "python3") {
                let packages = python.join("site-packages/nvidia");
                folders.extend(
                    ["cu13", "cuda_nvrtc", "nvjitlink"].map(|p| packages.join(p).join("lib")),
                );
            }
            folders.push(environment.join("lib"));
        }
        let toolkits = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(env::var_os);
        let toolkits = toolkits.map(PathBuf::from).chain(entries(Path::new("/usr/local"), "cuda"));
        folders.extend(toolkits.flat_map(|toolkit| [toolkit.join("lib64"), toolkit.join("lib")]));
        Self { folders, loader: true }
    }

    /// What may be `library`, each once.
    fn candidates(&self, library: &Library) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for folder in &self.folders {
            for path in entries(folder, library.file) {
                let real = fs::canonicalize(&path).unwrap_or(path);
                if !found.contains(&real) {
                    found.push(real);
                }
            }
        }
        if self.loader {
            found.extend(MAJORS.map(|major| PathBuf::from(format!("{}.{major}", library.file))));
        }
        found
    }
}

/// What in `folder` has a name that begins so; nothing if there is no such folder.
fn entries(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let begins = |path: &PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(prefix))
    };
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let mut entries: Vec<PathBuf> = entries.filter(begins).collect();
    entries.sort();
    entries
}
