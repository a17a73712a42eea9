//! NVIDIA's libraries, stood in for: see `twin/driver.cpp` and `twin/toolkit.cpp`.

#![allow(dead_code, reason = "each test uses what it needs")]

pub(crate) mod stage;

use std::ffi::c_char;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use dotcompute_cuda::driver::Driver;
use dotcompute_cuda::nvjitlink::NvJitLink;
use dotcompute_cuda::nvrtc::Nvrtc;
use dotcompute_cuda::resident::Residency;
use dotcompute_cuda::toolkit::Toolkit;
use dotcompute_cuda::{Cache, CudaOptions};

/// What is stood in for, under the names that the system's loader knows.
const NAMES: [&str; 3] = ["libcuda.so.1", "libnvrtc.so.13", "libnvJitLink.so.13"];

/// The sources that it is made of.
const SOURCES: [&str; 8] = [
    include_str!("../twin/driver.cpp"),
    include_str!("../twin/compute.cpp"),
    include_str!("../../kernels/anomaly.cu"),
    include_str!("../../kernels/pagerank.cu"),
    include_str!("../../kernels/block.cuh"),
    include_str!("../twin/toolkit.cpp"),
    include_str!("../twin/handlers.cpp"),
    dotcompute_abi::C_HEADER,
];

/// The folder with the libraries, built when it is not there. Test programs share it.
pub(crate) fn folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut hash = DefaultHasher::new();
        SOURCES.hash(&mut hash);
        for header in std::fs::read_dir(manifest.join("device")).unwrap() {
            std::fs::read(header.unwrap().path()).unwrap().hash(&mut hash);
        }
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let folder = tmp.join(format!("standin-{:016x}", hash.finish()));
        if !folder.join(NAMES[2]).exists() {
            build(manifest, &folder);
        }
        folder
    })
}

fn build(manifest: &Path, folder: &Path) {
    // Under a name of its own first: whoever finds the folder finds all of it.
    let draft = folder.with_extension(std::process::id().to_string());
    std::fs::create_dir_all(&draft).unwrap();
    let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    let built = Command::new(compiler)
        .args(["-std=c++20", "-O1", "-g", "-fPIC", "-shared", "-fno-strict-aliasing", "-pthread"])
        .args(["-Wall", "-Wextra", "-Werror", "-I"])
        .arg(manifest.join("../dotcompute-abi/generated"))
        .arg(manifest.join("tests/twin/driver.cpp"))
        .arg(manifest.join("tests/twin/toolkit.cpp"))
        .arg("-o")
        .arg(draft.join(NAMES[0]))
        .arg("-ldl")
        .output()
        .unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    for name in &NAMES[1..] {
        std::fs::copy(draft.join(NAMES[0]), draft.join(name)).unwrap();
    }
    if std::fs::rename(&draft, folder).is_err() {
        // Another test was first.
        std::fs::remove_dir_all(&draft).unwrap();
    }
}

/// Whether the tests run on a GPU instead, which `gpu-check` lets those of the executor do.
pub(crate) fn on_device() -> bool {
    std::env::var_os("DOTCOMPUTE_ON_DEVICE").is_some()
}

/// The driver, and what tests make it do.
pub(crate) struct StandIn {
    pub(crate) driver: &'static Driver,
    /// How often a call waited for resident work.
    pub(crate) waited: extern "C" fn() -> i64,
    /// Loses the context, for this reason; 0: it is well again.
    pub(crate) lose: extern "C" fn(i32),
    /// From now on this call returns this code, or launches of what is loaded "later" do; 0: what they
    /// should.
    pub(crate) fail: extern "C" fn(*const c_char, i32),
    /// Who breaks the device is alone with it.
    device: RwLock<()>,
}

impl StandIn {
    /// The device of this process.
    pub(crate) fn get() -> &'static Self {
        static STAND_IN: OnceLock<StandIn> = OnceLock::new();
        STAND_IN.get_or_init(|| {
            if on_device() {
                extern "C" fn never() -> i64 {
                    0
                }
                extern "C" fn for_good(_: i32) {}
                extern "C" fn not_here(_: *const c_char, _: i32) {}
                let driver = Driver::get().unwrap();
                let device = RwLock::new(());
                return Self { driver, waited: never, lose: for_good, fail: not_here, device };
            }
            let path = folder().join(NAMES[0]);
            // SAFETY: built with the functions' true types.
            let driver = unsafe { Driver::open(&path) }.unwrap();
            // SAFETY: as above.
            let library = unsafe { libloading::Library::new(&path) }.unwrap();
            // SAFETY: the type that `driver.cpp` gives it.
            let waited = *unsafe { library.get(b"standin_waited") }.unwrap();
            // SAFETY: as above.
            let lose = *unsafe { library.get(b"standin_lose") }.unwrap();
            // SAFETY: as above.
            let fail = *unsafe { library.get(b"standin_fail") }.unwrap();
            // It stays loaded by the driver.
            drop(library);
            let driver = Box::leak(Box::new(driver));
            Self { driver, waited, lose, fail, device: RwLock::new(()) }
        })
    }

    /// Use of the device beside other tests.
    pub(crate) fn shared(&self) -> RwLockReadGuard<'_, ()> {
        // A test that failed in its turn has failed already.
        self.device.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Use of the device alone.
    pub(crate) fn alone(&self) -> RwLockWriteGuard<'_, ()> {
        self.device.write().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The compiler and the linker.
pub(crate) fn toolkit() -> Arc<Toolkit> {
    // SAFETY: built with the functions' true types.
    let nvrtc = unsafe { Nvrtc::open(&folder().join(NAMES[1])) }.unwrap();
    // SAFETY: as above.
    let linker = unsafe { NvJitLink::open(&folder().join(NAMES[2])) }.unwrap();
    Arc::new(Toolkit::new(nvrtc, linker))
}

/// A device for tests: short leases, time enough for a machine that has more to do than it can.
pub(crate) fn options() -> CudaOptions {
    let (toolkit, cache) = match on_device() {
        true => (None, Cache::of_user()),
        false => (Some(toolkit()), Some(Cache::at(folder().join("images")))),
    };
    CudaOptions {
        driver: Some(StandIn::get().driver),
        toolkit,
        cache,
        seats: 7,
        residency: Residency {
            lease: Some(Duration::from_millis(20)),
            silence: Some(Duration::from_secs(30)),
            census: Duration::from_secs(60),
            overdue: Duration::from_secs(60),
            ring_multiprocessors: None,
        },
        ..CudaOptions::default()
    }
}

/// A command that finds the stand-ins as it would find NVIDIA's libraries.
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    if on_device() {
        return command;
    }
    command
        .env("LD_LIBRARY_PATH", folder())
        .env("DOTCOMPUTE_CUDA_LIBRARIES", folder())
        .env("DOTCOMPUTE_CACHE", folder().join("images"));
    command
}
