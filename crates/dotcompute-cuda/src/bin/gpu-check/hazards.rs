//! Which calls wait for what is resident: what is believed of each, beside what is measured.

use std::ffi::{c_int, c_uint, c_void};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use dotcompute_abi::control::COMMAND_RUN;
use dotcompute_cuda::resident::Residency;

use crate::device::{Gpu, Raw};
use crate::{Check, Failure, handlers};

/// A call, whether it is believed to wait, and who says so.
struct Hazard {
    call: &'static str,
    waits: bool,
    source: &'static str,
    /// Calls it; none where the driver has no such call.
    run: fn(&Raw) -> Option<c_int>,
}

const HAZARDS: &[Hazard] = &[
    Hazard { call: "cuCtxSynchronize", waits: true, source: "by its name", run: synchronize },
    Hazard {
        call: "cuMemAlloc",
        waits: true,
        source: "programming guide, implicit synchronization",
        run: alloc,
    },
    Hazard { call: "cuMemHostAlloc", waits: true, source: "the same", run: host_alloc },
    Hazard {
        call: "cuMemsetD8, legacy stream",
        waits: false,
        source: "non-blocking streams do not join it",
        run: set,
    },
    Hazard {
        call: "cuStreamCreate",
        waits: false,
        source: "no document says that it waits",
        run: stream,
    },
    Hazard { call: "cuEventCreate", waits: false, source: "the same", run: event },
    Hazard {
        call: "cuGreenCtxCreate, with a stream",
        waits: false,
        source: "the same",
        run: green_context,
    },
];

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    let gpu = Gpu::open(check)?;
    for hazard in HAZARDS {
        let residency = Residency { lease: None, ..Residency::default() };
        let (resident, image) = handlers::grid(check, &gpu, 1, residency)?;
        let port = resident.seat(0, handlers::plan(&image, "echo", 40)?)?;
        port.command(COMMAND_RUN);
        let (raw, run) = (Raw::open(gpu.driver)?, hazard.run);
        let (told, hears) = channel();
        let caller = thread::spawn(move || {
            let start = Instant::now();
            let outcome = raw.set_context().map(|()| run(&raw).map(|code| (code, start.elapsed())));
            drop(told.send(outcome));
        });
        let found = match hears.recv_timeout(Duration::from_millis(500)) {
            Ok(outcome) => match outcome? {
                None => "the driver has no such call".to_owned(),
                Some((0, took)) => format!("does not wait ({:.0} us)", took.as_secs_f64() * 1e6),
                Some((code, _)) => format!("returned {code}"),
            },
            Err(RecvTimeoutError::Timeout) => "**waits**".to_owned(),
            Err(RecvTimeoutError::Disconnected) => "its thread ended".to_owned(),
        };
        resident.end(Duration::from_secs(5))?;
        caller.join().map_err(|_| "the caller panicked")?;
        let believed = if hazard.waits { "waits" } else { "does not wait" };
        let what = format!("{}, believed: {believed} ({})", hazard.call, hazard.source);
        check.results.finding(&what, &found)?;
    }
    Ok(())
}

fn synchronize(raw: &Raw) -> Option<c_int> {
    // SAFETY: the type that NVIDIA documents; so below.
    let call: unsafe extern "C" fn() -> c_int = unsafe { raw.get("cuCtxSynchronize") }?;
    // SAFETY: takes nothing.
    Some(unsafe { call() })
}

fn alloc(raw: &Raw) -> Option<c_int> {
    type Call = unsafe extern "C" fn(*mut u64, usize) -> c_int;
    // SAFETY: as above.
    let call: Call = unsafe { raw.get("cuMemAlloc_v2") }?;
    let mut address = 0;
    // SAFETY: `address` outlives the call. The memory is the process's to its end.
    Some(unsafe { call(&mut address, 1 << 20) })
}

fn host_alloc(raw: &Raw) -> Option<c_int> {
    type Call = unsafe extern "C" fn(*mut *mut c_void, usize, c_uint) -> c_int;
    // SAFETY: as above.
    let call: Call = unsafe { raw.get("cuMemHostAlloc") }?;
    let mut place = std::ptr::null_mut();
    // SAFETY: `place` outlives the call; mapped and portable. Kept to the end of the process.
    Some(unsafe { call(&mut place, 1 << 20, 3) })
}

fn set(raw: &Raw) -> Option<c_int> {
    type Alloc = unsafe extern "C" fn(*mut u64, usize, *mut c_void) -> c_int;
    type Set = unsafe extern "C" fn(u64, u8, usize) -> c_int;
    // SAFETY: as above.
    let alloc: Alloc = unsafe { raw.get("cuMemAllocAsync") }?;
    // SAFETY: as above.
    let set: Set = unsafe { raw.get("cuMemsetD8_v2") }?;
    let mut address = 0;
    // SAFETY: `address` outlives the call; a null stream is the legacy one.
    let code = unsafe { alloc(&mut address, 64, std::ptr::null_mut()) };
    if code != 0 {
        return Some(code);
    }
    // SAFETY: memory that was just taken, on the same stream.
    Some(unsafe { set(address, 0, 64) })
}

fn stream(raw: &Raw) -> Option<c_int> {
    type Call = unsafe extern "C" fn(*mut *mut c_void, c_uint) -> c_int;
    // SAFETY: as above.
    let call: Call = unsafe { raw.get("cuStreamCreate") }?;
    let mut made = std::ptr::null_mut();
    // SAFETY: `made` outlives the call; 1: non-blocking.
    Some(unsafe { call(&mut made, 1) })
}

fn event(raw: &Raw) -> Option<c_int> {
    type Call = unsafe extern "C" fn(*mut *mut c_void, c_uint) -> c_int;
    // SAFETY: as above.
    let call: Call = unsafe { raw.get("cuEventCreate") }?;
    let mut made = std::ptr::null_mut();
    // SAFETY: `made` outlives the call; 2: without times.
    Some(unsafe { call(&mut made, 2) })
}

fn green_context(raw: &Raw) -> Option<c_int> {
    /// As large as a `CUdevResource`.
    #[repr(C, align(8))]
    struct Resource([u8; 144]);
    type Get = unsafe extern "C" fn(c_int, *mut Resource, c_uint) -> c_int;
    type Describe = unsafe extern "C" fn(*mut *mut c_void, *mut Resource, c_uint) -> c_int;
    type Create = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, c_int, c_uint) -> c_int;
    type MakeStream = unsafe extern "C" fn(*mut *mut c_void, *mut c_void, c_uint, c_int) -> c_int;
    // SAFETY: as above.
    let get: Get = unsafe { raw.get("cuDeviceGetDevResource") }?;
    // SAFETY: as above.
    let describe: Describe = unsafe { raw.get("cuDevResourceGenerateDesc") }?;
    // SAFETY: as above.
    let create: Create = unsafe { raw.get("cuGreenCtxCreate") }?;
    // SAFETY: as above.
    let stream: MakeStream = unsafe { raw.get("cuGreenCtxStreamCreate") }?;
    let mut all = Resource([0; 144]);
    let [mut description, mut context, mut made] = [std::ptr::null_mut(); 3];
    // SAFETY: `all` outlives the call; 1: multiprocessors.
    let mut code = unsafe { get(0, &mut all, 1) };
    if code == 0 {
        // SAFETY: both outlive the call; all of the device's multiprocessors.
        code = unsafe { describe(&mut description, &mut all, 1) };
    }
    if code == 0 {
        // SAFETY: a description that was just made; 1: for the default stream. Kept to the process's end.
        code = unsafe { create(&mut context, description, 0, 1) };
    }
    if code == 0 {
        // SAFETY: a context that was just made; 1: non-blocking.
        code = unsafe { stream(&mut made, context, 1, 0) };
    }
    Some(code)
}
