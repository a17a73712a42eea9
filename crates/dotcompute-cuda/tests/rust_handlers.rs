//! Handlers in Rust, an experiment: one file is a module of this program, whose handlers run on the thread
//! executor, and is compiled for the device of the stand-ins. Both compute the same.

#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "a test")]

#[allow(dead_code, unreachable_pub, reason = "what stumbles does so on the device")]
#[path = "handlers/exam.rs"]
mod exam;
mod standin;

use std::ffi::c_void;
use std::time::Duration;

use dotcompute_abi::codes;
use dotcompute_core::abi::HandlerContext;
use dotcompute_core::compiled::CompiledHandler;
use dotcompute_core::{AskError, FaultKind, KernelRef, Record, Terminate};
use dotcompute_cuda::handler::enter;
use dotcompute_cuda::{CudaError, CudaHandler, CudaKernel, CudaKernels, RustError, Scope};
use exam::{Answer, Notes, Question};
use standin::StandIn;
use standin::stage::{LONG, Stage, balanced, drain, until};

const SOURCE: &str = include_str!("handlers/exam.rs");

const NOTES: Notes = Notes {
    count: 0,
    sum: 1,
    hash: 0xcbf2_9ce4_8422_2325,
    recent: [0.25; 4],
    table: [[1.0, 0.5, -0.25], [0.1, 0.2, 0.3], [1e-3, 7.0, -1.0]],
    bytes: *b"sixteen letters.",
};

unsafe extern "C" fn exam_in_c(
    message: *const c_void,
    state: *mut c_void,
    reply: *mut c_void,
    context: *mut HandlerContext,
) -> i32 {
    // SAFETY: as the runtime promises.
    unsafe { enter(exam::exam, message, state, reply, context.cast()) }
}

fn kernels() -> CudaKernels {
    let exam = CudaHandler::from_rust("exam", SOURCE).unwrap();
    let stumble = CudaHandler::from_rust("stumble", SOURCE).unwrap();
    CudaKernels::new()
        .kernel(
            "exam",
            CudaKernel::new(exam, Question::LAYOUT)
                .output(Answer::LAYOUT)
                .state(&NOTES)
                .max_emit(3),
        )
        .kernel("stumble", CudaKernel::new(stumble, Question::LAYOUT).output(Answer::LAYOUT))
}

fn stage() -> Stage {
    Stage::of(kernels(), standin::options())
}

fn question(kind: u32) -> Question {
    Question { kind, place: 0, a: 0, b: 0, x: 0.0, y: 0.0, rounds: 0 }
}

/// Questions of all kinds: a few words at the ends of their ranges, and many from all over.
fn questions() -> Vec<Question> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word
    };
    let ends = [0, 1, -1, i64::MAX, i64::MIN, 255, -32_768, 1 << 40];
    let mut questions = Vec::new();
    for round in 0..1200_usize {
        let mut number = || match round % 3 {
            0 => ends[next() as usize % ends.len()],
            _ => next() as i64 >> (next() % 60),
        };
        let (a, b) = (number(), number());
        questions.push(Question {
            kind: round as u32 % 7,
            place: next() as u32 >> 4,
            a,
            b,
            x: a as f64 / 1e3 * if round % 5 == 0 { 1e12 } else { 1.0 },
            y: b as f32 / 77.0,
            rounds: next() as u32 % 600,
        });
    }
    questions
}

/// The bits of all replies to a question.
fn answers(kernel: &KernelRef<Question, Answer>, question: Question) -> Vec<Vec<u8>> {
    kernel.send_blocking(question, LONG).unwrap();
    let count = if question.kind == 5 { question.rounds % 4 } else { 1 };
    (0..count).map(|_| kernel.receive_blocking(LONG).unwrap().message.bytes().to_vec()).collect()
}

#[test]
fn a_handler_computes_the_same_on_the_device_and_on_the_host() {
    let _device = StandIn::get().shared();
    let stage = stage();
    // SAFETY: the handler takes, keeps and makes records of these types.
    let handler = unsafe { CompiledHandler::from_raw(exam_in_c, Question::LAYOUT) }
        .output(Answer::LAYOUT)
        .state(&NOTES)
        .max_emit(3);
    let notes = handler.state_reader();
    let host = stage.runtime.kernel("host").executor("thread").launch_compiled(handler).unwrap();
    host.activate().unwrap();
    let device = stage.launch_as("exam", stage.runtime.kernel("device"));
    for question in questions() {
        assert_eq!(answers(&device, question), answers(&host, question), "{question:?}");
    }
    let kept: Notes = stage.cuda.state("device", LONG.unwrap()).unwrap();
    assert_eq!(kept.bytes(), notes.read::<Notes>(LONG.unwrap()).unwrap().bytes());
    assert_eq!(kept.count, 1200);
    drain(&host);
    drain(&device);
}

/// The line of the exam's file that has this text.
fn line_with(text: &str) -> usize {
    1 + SOURCE.lines().position(|line| line.contains(text)).unwrap()
}

#[test]
fn a_panic_fails_the_message_and_says_where() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let overflow = Question { a: i64::MIN, b: -1, ..question(1) };
    let cases = [
        (
            Question { place: 3, ..question(0) },
            codes::FAULT_BOUNDS,
            "the line of the index",
            "index out of bounds",
        ),
        (question(1), codes::FAULT_PANIC, "the line of the division", "division by zero"),
        (overflow, codes::FAULT_PANIC, "the line of the division", "overflow"),
        (Question { a: 9, ..question(2) }, codes::FAULT_PANIC, ".unwrap(),", "there was nothing"),
        (Question { a: 9, ..question(3) }, codes::FAULT_PANIC, "panic!(", "panicked"),
    ];
    for (number, (question, code, line, what)) in cases.into_iter().enumerate() {
        let builder = stage.runtime.kernel(format!("stumble-{number}"));
        let kernel: KernelRef<Question, Answer> = stage.launch_as("stumble", builder);
        let failed = kernel.ask_blocking(question, LONG);
        let Err(AskError::Failed { fault, .. }) = failed else { panic!("{failed:?}") };
        let said = format!("line {}: {what}", line_with(line));
        assert_eq!((fault.kind(), fault.message()), (FaultKind::Code(code), said.as_str()));
        balanced(&kernel);
    }
    // Its own code, and what does not fail.
    let kernel: KernelRef<Question, Answer> =
        stage.launch_as("stumble", stage.runtime.kernel("own"));
    let answer = kernel.ask_blocking(Question { place: 2, ..question(0) }, LONG).unwrap();
    assert_eq!(answer.message.number, 3);
    let failed = kernel.ask_blocking(question(4), LONG);
    let Err(AskError::Failed { fault, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(fault.kind(), FaultKind::Code(-12));
}

#[test]
fn a_fault_with_a_text_is_as_on_the_host() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let device: KernelRef<Question, Answer> =
        stage.launch_as("exam", stage.runtime.kernel("device"));
    // SAFETY: as in the test above.
    let handler = unsafe { CompiledHandler::from_raw(exam_in_c, Question::LAYOUT) }
        .output(Answer::LAYOUT)
        .state(&NOTES)
        .max_emit(3);
    let host = stage.runtime.kernel("host").executor("thread").launch_compiled(handler).unwrap();
    host.activate().unwrap();
    for kernel in [&device, &host] {
        let failed = kernel.ask_blocking(question(99), LONG);
        let Err(AskError::Failed { fault, .. }) = failed else { panic!("{failed:?}") };
        assert_eq!(fault.kind(), FaultKind::Code(-9));
        assert!(fault.message().starts_with("no such task"), "{fault}");
    }
}

#[test]
fn a_loop_without_an_end_is_killed_though_its_handler_has_no_tick() {
    let _device = StandIn::get().shared();
    let stage = stage();
    let kernel: KernelRef<Question, Answer> =
        stage.launch_as("stumble", stage.runtime.kernel("loops"));
    let other: KernelRef<Question, Answer> = stage.launch_as("exam", stage.runtime.kernel("other"));
    kernel.send_blocking(Question { a: 1, ..question(5) }, LONG).unwrap();
    until("it is at work", || kernel.books().in_hand == 1);
    kernel.terminate_blocking(Terminate::now().within(Duration::from_secs(1)));
    balanced(&kernel);
    // The grid makes a pause for it: all of its handlers have come back, none because it was overdue.
    let within = standin::options().residency.overdue - Duration::from_secs(10);
    assert_eq!(stage.cuda.state::<Notes>("other", within).unwrap(), NOTES);
    drain(&other);
}

#[test]
fn what_a_handler_says_of_its_records_is_compared_with_what_is_declared() {
    let handler = CudaHandler::from_rust("exam", SOURCE).unwrap();
    let open = |kernel: CudaKernel| {
        CudaKernels::new().kernel("exam", kernel).open(standin::options()).unwrap_err()
    };
    let _device = StandIn::get().shared();
    let error = open(CudaKernel::new(handler.clone(), Answer::LAYOUT).output(Answer::LAYOUT));
    let told = "the handler of 'exam' has a message of 40 bytes; 24 are declared";
    assert_eq!(error.to_string(), told);
    let error = open(CudaKernel::new(handler.clone(), Question::LAYOUT).output(Answer::LAYOUT));
    assert!(matches!(error, CudaError::Size { what: "state", declared: 0, .. }), "{error}");
    let error = open(CudaKernel::new(handler.clone(), Question::LAYOUT).state(&NOTES));
    assert!(matches!(error, CudaError::Size { what: "reply", bytes: 24, .. }), "{error}");
    let wide = handler.scope(Scope::Warp);
    let error = open(CudaKernel::new(wide, Question::LAYOUT).output(Answer::LAYOUT).state(&NOTES));
    let told = "the handler 'exam' is in Rust, of which one lane calls it, and not a warp";
    assert_eq!(error.to_string(), told);
}

/// What is wrong with a handler of this body, over numbers.
fn wrong(body: &str, before: &str) -> RustError {
    let source = format!(
        "use dotcompute_cuda::handler::{{Context, Handled, Outcome}};\n\
         {before}\n\
         pub fn handler(m: &u64, s: &mut u64, r: &mut u64, c: &mut Context) -> Outcome {{\n\
         {body}\n\
         ; Ok(Handled::Reply) }}\n"
    );
    CudaHandler::from_rust("handler", &source).unwrap_err()
}

#[test]
fn an_error_in_a_handler_is_shown_with_its_line() {
    let RustError::Source(text) = wrong("*r = mesage", "") else { panic!("it compiled") };
    assert!(text.contains("cannot find value `mesage`"), "{text}");
    assert!(text.contains("handler.rs:4:6"), "{text}");
    // Of another form than a handler has.
    let error = CudaHandler::from_rust("handler", "pub fn handler(_: &u64) {}").unwrap_err();
    assert!(matches!(error, RustError::Source(_)), "{error}");
    // Not there, or no name.
    let error = CudaHandler::from_rust("nobody", "").unwrap_err();
    assert!(error.to_string().contains("nobody"), "{error}");
    let error = CudaHandler::from_rust("a-b", "").unwrap_err();
    assert_eq!(error, RustError::Name { function: "a-b".into() });
    // The standard library is not there.
    let error = wrong("*r = std::thread::available_parallelism().unwrap().get() as u64", "");
    assert!(matches!(error, RustError::Source(_)), "{error}");
}

#[test]
fn what_is_not_for_a_device_is_named_with_its_line() {
    let atomics =
        "static COUNT: sync::atomic::AtomicU64 = sync::atomic::AtomicU64::new(0); use core::sync;";
    let dynamic = "trait T { fn f(&self, m: u64) -> u64; } struct A; struct B; \
                   impl T for A { fn f(&self, m: u64) -> u64 { m + 1 } } \
                   impl T for B { fn f(&self, m: u64) -> u64 { m * 3 } } \
                   static ALL: [&(dyn T + Sync); 2] = [&A, &B];";
    let foreign = "unsafe extern \"C\" { safe fn getpid() -> i32; }";
    let cases = [
        ("*r = COUNT.fetch_add(*m, sync::atomic::Ordering::Relaxed)", atomics, "atomic"),
        ("*r = ALL[(*m & 1) as usize].f(*m)", dynamic, "by an address"),
        ("*r = getpid() as u64", foreign, "getpid"),
        ("static mut S: u64 = 1; unsafe { S += *m; *r = S }", "", "static that can change"),
        ("*r = core::hint::black_box(*m)", "", "assembly"),
    ];
    for (body, before, named) in cases {
        match wrong(body, before) {
            RustError::Unsupported { file, line, what } => {
                assert_eq!((file.as_str(), line), ("handler.rs", Some(4)), "{what}");
                assert!(what.contains(named), "{what}");
            }
            other => panic!("{other}"),
        }
    }
}
