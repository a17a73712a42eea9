//! The device's side of the protocol on host threads, with memory of the host's for both arenas.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::ptr::NonNull;
use std::time::Duration;

use dotcompute_abi::device::Grid as Parameters;
use dotcompute_cuda::grid::{Arena, EdgePlan, Grid, Port, SeatPlan, Shape, Way, Write};

/// The handler of `handlers.cpp` that replies with the sum of all values.
pub(crate) const ADD: u32 = 0;

type Seat = unsafe extern "C" fn(*const Parameters, u32, u32);
type Service = unsafe extern "C" fn(*const Parameters);

/// The shared memory of a kernel whose handler has several threads.
const SHARED_BYTES: u32 = 8192;

/// The device's code, compiled for the host.
#[derive(Clone, Copy)]
pub(crate) struct Twin {
    seat: Seat,
    service: Service,
}

impl Twin {
    /// Compiles the device's sources with these flags, too.
    pub(crate) fn compile(name: &str, flags: &[&str]) -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let unique = format!("{name}-{}", std::process::id());
        let (object, library) =
            (folder.join(format!("{unique}.o")), folder.join(format!("lib{unique}.so")));
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        let run = |arguments: &[&str], from: &Path, to: &PathBuf| {
            let done = Command::new(&compiler).args(arguments).arg(from).arg("-o").arg(to).output();
            let done = done.unwrap_or_else(|error| panic!("cannot run {compiler}: {error}"));
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        };
        let include = format!("-I{}", manifest.join("../dotcompute-abi/generated").display());
        let mut arguments = vec!["-std=c++20", "-O1", "-g", "-fPIC", "-fno-strict-aliasing"];
        arguments.extend(["-Wall", "-Wextra", "-Werror", &include, "-c"]);
        arguments.extend(flags);
        run(&arguments, &manifest.join("tests/twin/handlers.cpp"), &object);
        // Linked without the sanitizer: its runtime is this program's.
        run(&["-shared"], &object, &library);
        // SAFETY: compiled above; its initialisers are those of the C++ library.
        let loaded = unsafe { libloading::Library::new(&library) }.unwrap();
        let loaded = Box::leak(Box::new(loaded));
        for file in [object, library] {
            std::fs::remove_file(file).unwrap();
        }
        // SAFETY: the type that `twin.cpp` gives it.
        let seat = *unsafe { loaded.get::<Seat>(b"dc_twin_seat") }.unwrap();
        // SAFETY: as above.
        let service = *unsafe { loaded.get::<Service>(b"dc_twin_service") }.unwrap();
        Self { seat, service }
    }

    /// The work of one warp of a grid: 0 serves, the others are seats.
    pub(crate) fn warp(self, parameters: &'static Parameters, warp: u32) -> impl FnOnce() + Send {
        move || match warp {
            // SAFETY: `Stage::launch` made the parameters, and leaks what they lead to.
            0 => unsafe { (self.service)(parameters) },
            // SAFETY: as above.
            seat => unsafe { (self.seat)(parameters, seat - 1, SHARED_BYTES) },
        }
    }
}

/// A grid's memory, never freed.
pub(crate) struct Stage {
    pub(crate) grid: &'static Grid,
    device: NonNull<u8>,
    epoch: u32,
}

impl Stage {
    pub(crate) fn new(shape: Shape) -> Self {
        assert_eq!(shape.wrong(), None);
        let (host, device) = (leak(shape.host_bytes()), leak(shape.device_bytes()));
        let address = host.as_ptr() as u64;
        // SAFETY: leaked, zero, aligned; the twin keeps to the protocol.
        let host = unsafe { Arena::from_raw(host, address, shape.host_bytes(), ()) };
        let grid = Grid::new(shape, host, device.as_ptr() as u64);
        Self { grid: Box::leak(Box::new(grid)), device, epoch: 0 }
    }

    /// Puts a kernel into a seat; no grid runs.
    pub(crate) fn seat(&self, seat: u32, plan: &SeatPlan) -> Port {
        // SAFETY: no grid runs, and tests take a seat anew only when they have dropped its port.
        let (port, writes) = unsafe { self.grid.seat(seat, plan) }.unwrap();
        writes.iter().for_each(|write| self.write(write));
        port
    }

    /// Gives a kernel an edge for its replies; no grid runs.
    pub(crate) fn link(&self, seat: u32, plan: &SeatPlan, edge: EdgePlan) {
        self.grid
            .link(seat, plan, Way::Replies, edge, 0)
            .unwrap()
            .iter()
            .for_each(|write| self.write(write));
    }

    /// The records in the inbox of a seat; no grid runs.
    #[allow(dead_code, reason = "not every test looks")]
    pub(crate) fn unread(&self, seat: u32) -> Vec<dotcompute_abi::TaggedRecord> {
        let (offset, bytes) = self.grid.inbox(seat);
        self.grid.unread(&self.read(offset, bytes), 1).concat()
    }

    /// Bytes of the device's memory; no grid runs.
    #[allow(dead_code, reason = "not every test looks")]
    pub(crate) fn read(&self, offset: usize, bytes: usize) -> Vec<u8> {
        assert!(offset + bytes <= self.grid.shape().device_bytes());
        // SAFETY: inside the device's arena, as just checked.
        let place = unsafe { self.device.add(offset) };
        // SAFETY: as above; no grid runs.
        unsafe { std::slice::from_raw_parts(place.as_ptr(), bytes) }.to_vec()
    }

    pub(crate) fn write(&self, (offset, bytes): &Write) {
        assert!(offset + bytes.len() <= self.grid.shape().device_bytes());
        // SAFETY: inside the device's arena, as just checked.
        let place = unsafe { self.device.add(*offset) };
        // SAFETY: as above; no grid runs.
        unsafe { place.copy_from_nonoverlapping(NonNull::from(&bytes[..]).cast(), bytes.len()) };
    }

    /// The epoch and the parameters of the next launch.
    pub(crate) fn launch(
        &mut self,
        lease: Option<Duration>,
        silence: Option<Duration>,
    ) -> (u32, &'static Parameters) {
        self.epoch += 1;
        self.write(&self.grid.before_launch());
        let parameters = self.grid.parameters(self.epoch, lease, silence);
        (self.epoch, Box::leak(Box::new(parameters)))
    }
}

fn leak(bytes: usize) -> NonNull<u8> {
    let lines = bytes.div_ceil(128) + 1;
    let memory = vec![[0_u8; 128]; lines].leak().as_flattened_mut();
    let lead = memory.as_ptr().align_offset(128);
    NonNull::from(&mut memory[lead..]).cast()
}

/// A plan for a handler that takes and replies with the records of `handlers.cpp`.
pub(crate) fn plan(handler: u32) -> SeatPlan {
    SeatPlan { handler, reply_bytes: 16, ..SeatPlan::default() }
}

/// A message with this value.
pub(crate) fn number(token: u32, value: i64) -> dotcompute_abi::TaggedRecord {
    dotcompute_abi::TaggedRecord::new(token, &value.to_le_bytes()).unwrap()
}

/// The two numbers of a reply.
pub(crate) fn sum(record: &dotcompute_abi::TaggedRecord) -> (i64, i64) {
    let word = |at: usize| i64::from_le_bytes(record.payload[at..at + 8].try_into().unwrap());
    (word(0), word(8))
}

/// How many numbers a record has that takes five slots.
pub(crate) const SPAN: usize = 25;

/// A plan for the handler of `handlers.cpp` that takes and replies with numbers that follow each other.
#[allow(dead_code, reason = "not every test has long records")]
pub(crate) fn plan_of_spans() -> SeatPlan {
    let bytes = 8 * SPAN as u32;
    SeatPlan { message_bytes: bytes, reply_bytes: bytes, ..plan(3) }
}

/// Numbers from this one on.
#[allow(dead_code, reason = "as above")]
pub(crate) fn spanned(first: i64) -> [i64; SPAN] {
    std::array::from_fn(|at| first + at as i64)
}

/// A message of them, in its slots.
#[allow(dead_code, reason = "as above")]
pub(crate) fn span(
    token: u32,
    first: i64,
) -> impl ExactSizeIterator<Item = dotcompute_abi::TaggedRecord> {
    let bytes: Vec<u8> = spanned(first).iter().flat_map(|number| number.to_le_bytes()).collect();
    let slots: Vec<_> = dotcompute_abi::TaggedRecord::slots(token, 0, &bytes).collect();
    slots.into_iter()
}

/// The numbers of a payload.
#[allow(dead_code, reason = "as above")]
pub(crate) fn numbers_of(payload: &[u8]) -> [i64; SPAN] {
    assert_eq!(payload.len(), 8 * SPAN);
    std::array::from_fn(|at| i64::from_le_bytes(payload[8 * at..8 * at + 8].try_into().unwrap()))
}
