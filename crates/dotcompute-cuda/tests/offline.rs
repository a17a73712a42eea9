//! Every device source, compiled and linked by the code that ships for the architectures that are
//! supported, and the machine code looked at: no device is needed. Run by `make cuda-offline`, which
//! says where the toolkit lies.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::collections::HashMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dotcompute_cuda::toolkit::Toolkit;
use dotcompute_cuda::{BuildError, Cache, CudaHandler, Image, Scope, Variant, Version};

const ARCHITECTURES: [Version; 3] = [Version::new(8, 0), Version::new(9, 0), Version::new(10, 0)];

fn toolkit() -> Toolkit {
    Toolkit::load().expect("make cuda-offline says where the toolkit lies")
}

/// Replies to every message, from its state: the least that a handler does.
fn adder() -> CudaHandler {
    CudaHandler::from_source(
        "add",
        r#"
        #include "dotcompute.cuh"
        struct Amount { long long value; };
        extern "C" __device__ int32_t
        add(const Amount *message, Amount *total, Amount *reply, rk_ctx *) {
            total->value += message->value;
            reply->value = total->value;
            return DC_HANDLER_REPLY;
        }
        "#,
    )
}

/// Calls all that a handler can call.
fn caller() -> CudaHandler {
    CudaHandler::from_source(
        "call",
        r#"
        #include "dotcompute.cuh"
        struct Work { uint32_t kind, rounds; float value; };
        extern "C" __device__ int32_t
        call(const Work *message, Work *state, Work *reply, rk_ctx *ctx) {
            for (uint32_t round = 0; round < message->rounds; ++round) {
                state->value = state->value * 0.5f + message->value;
                if (int32_t fault = rk_tick(ctx)) return fault;
            }
            if (message->kind == 1) return rk_fault(ctx, -7, "kind 1", 6);
            if (message->kind == 2) rk_log(ctx, 20, "kind 2", 6);
            reply->value = float(rk_clock(ctx));
            if (int32_t fault = rk_emit(ctx, reply)) return fault;
            if (int32_t fault = rk_send(ctx, 0, reply)) return fault;
            *reply = *state;
            return DC_HANDLER_REPLY;
        }
        "#,
    )
}

/// Adds up, by a tree in shared memory.
fn summer() -> CudaHandler {
    CudaHandler::from_source(
        "sum",
        r#"
        #include "dotcompute.cuh"
        struct Range { long long first, count; };
        struct Total { long long value; };
        extern "C" __device__ int32_t
        sum(const Range *message, Total *total, Total *reply, rk_ctx *ctx) {
            long long *partial = static_cast<long long *>(rk_shared(ctx));
            const uint32_t thread = rk_thread(ctx), threads = rk_threads(ctx);
            long long mine = 0;
            for (long long at = thread; at < message->count; at += threads)
                mine += message->first + at;
            partial[thread] = mine;
            if (int32_t fault = rk_barrier(ctx)) return fault;
            for (uint32_t half = threads / 2; half != 0; half /= 2) {
                if (thread < half) partial[thread] += partial[thread + half];
                if (int32_t fault = rk_barrier(ctx)) return fault;
            }
            if (thread == 0) { total->value += partial[0]; reply->value = partial[0]; }
            return DC_HANDLER_REPLY;
        }
        "#,
    )
}

/// The same of a team, by its barrier.
fn gatherer() -> CudaHandler {
    CudaHandler::from_source(
        "gather",
        r#"
        #include "dotcompute.cuh"
        struct Range { long long first, count; };
        struct Total { long long value, of[8]; };
        extern "C" __device__ int32_t
        gather(const Range *message, Total *total, long long *reply, rk_ctx *ctx) {
            const uint32_t block = rk_block(ctx), blocks = rk_blocks(ctx);
            if (rk_thread(ctx) == 0) total->of[block] = message->first + message->count * block;
            if (int32_t fault = rk_team_barrier(ctx)) return fault;
            if (block != 0 || rk_thread(ctx) != 0) return DC_HANDLER_DONE;
            for (uint32_t other = 0; other < blocks; ++other) total->value += total->of[other];
            *reply = total->value;
            return DC_HANDLER_REPLY;
        }
        "#,
    )
}

/// The same in Rust, and one that has more of the language.
fn in_rust() -> [CudaHandler; 2] {
    let source = include_str!("handlers/offline.rs");
    ["tally", "ledger"].map(|function| CudaHandler::from_rust(function, source).unwrap())
}

/// The scopes of several threads; of blocks the least, the usual one and the largest.
const WIDE: [Scope; 6] = [
    Scope::Warp,
    Scope::Block { threads: 32 },
    Scope::Block { threads: 256 },
    Scope::Block { threads: 1024 },
    Scope::Team { blocks: 4, threads: 256 },
    Scope::Team { blocks: 132, threads: 1024 },
];

/// One instruction of machine code: what it is, and all of it.
struct Instruction {
    operation: String,
    text: String,
}

/// The machine code of an image, by section. nvdisasm can succeed and print nothing, so what it
/// printed is counted too.
struct Code {
    sections: Vec<String>,
    instructions: Vec<Instruction>,
    /// Where labels stand: before the instruction of this number.
    labels: HashMap<String, usize>,
}

impl Code {
    fn of(image: &Image, name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.cubin"));
        fs::write(&path, image.cubin()).unwrap();
        let tool = env::var_os("NVDISASM").expect("make cuda-offline says where nvdisasm lies");
        let output = Command::new(tool).arg("-c").arg(&path).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let text = String::from_utf8(output.stdout).unwrap();
        let sections = text
            .lines()
            .filter_map(|line| line.trim().strip_prefix(".section\t.text."))
            .map(|rest| rest.split(',').next().unwrap().to_owned())
            .collect();
        let code = Self { sections, ..Self::parsed(text.lines()) };
        assert!(code.instructions.len() > 500, "{name}: {} instructions", code.instructions.len());
        code
    }

    /// Instructions and labels.
    fn parsed<'a>(lines: impl IntoIterator<Item = &'a str>) -> Self {
        let (mut instructions, mut labels) = (Vec::new(), HashMap::new());
        for line in lines {
            match line.strip_suffix(':') {
                Some(label) => drop(labels.insert(label.to_owned(), instructions.len())),
                None => instructions.extend(instruction(line)),
            }
        }
        Self { sections: Vec::new(), instructions, labels }
    }

    /// Where the routines begin that the compiler brings along, behind the code itself.
    fn helpers(&self) -> usize {
        let helpers = self.labels.iter().filter(|(label, _)| is_helper(label));
        helpers.map(|(_, place)| *place).min().unwrap_or(self.instructions.len())
    }

    /// Calls of functions that are not the compiler's own, and returns from such.
    ///
    /// Before sm_90 the compiler calls routines of its own where lanes meet and vote; they lie behind the
    /// code, under names. And it jumps out of a loop by a call of a label of the code itself: that is a call of
    /// no function, since nothing in the code returns.
    fn calls(&self) -> Vec<&str> {
        let helpers = self.helpers();
        let strange = |(place, found): &(usize, &Instruction)| {
            let is_call = found.operation.starts_with("CALL") && {
                let target = found.text.split_once("`(").and_then(|(_, rest)| rest.split_once(')'));
                let label =
                    target.map(|(label, _)| label.trim_start_matches('(')).unwrap_or_default();
                let is_inside = self.labels.get(label).is_some_and(|at| *at < helpers);
                !(is_helper(label) || label.starts_with(".L_x_") && is_inside)
            };
            is_call || (found.operation.starts_with("RET") && *place < helpers)
        };
        let all = self.instructions.iter().enumerate();
        all.filter(strange).map(|(_, found)| found.text.as_str()).collect()
    }

    fn with(&self, operation: &str) -> impl Iterator<Item = &Instruction> {
        self.instructions.iter().filter(move |found| found.operation.starts_with(operation))
    }

    fn count(&self, operation: &str) -> usize {
        self.instructions.iter().filter(|found| found.operation == operation).count()
    }

    /// The accesses that other threads see, and the fences between them, in the order of the code.
    fn protocol(&self) -> Vec<String> {
        let shared = |found: &&Instruction| {
            found.operation.contains(".STRONG.")
                || found.operation.starts_with("MEMBAR")
                || found.operation.starts_with("CCTL")
        };
        self.instructions.iter().filter(shared).map(|found| found.operation.clone()).collect()
    }
}

/// `/*0a10*/ @P0 STG.E.128.STRONG.SYS desc[..] ;`
fn instruction(line: &str) -> Option<Instruction> {
    let line = line.trim().strip_prefix("/*")?;
    let (address, text) = line.split_once("*/")?;
    if !address.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    let text = text.trim();
    let mut words = text.split_whitespace();
    let first = words.next()?;
    let operation = if first.starts_with('@') { words.next()? } else { first };
    operation.starts_with(|first: char| first.is_ascii_uppercase()).then(|| Instruction {
        operation: operation.trim_end_matches(';').to_owned(),
        text: text.to_owned(),
    })
}

/// Where the protocol of an architecture is written down, for one lane.
fn golden(Version { major, minor }: Version) -> PathBuf {
    let file = format!("tests/golden/protocol_sm_{major}{minor}.txt");
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(file)
}

fn build(handlers: &[CudaHandler], architecture: Version, variant: Variant) -> Image {
    Image::build(handlers, architecture, variant, &toolkit(), None).unwrap()
}

fn each_architecture(handlers: &[CudaHandler], variant: Variant, check: impl Fn(Version, &Code)) {
    for architecture in ARCHITECTURES {
        let handler = handlers.last().unwrap().function();
        let image = build(handlers, architecture, variant);
        let Version { major, minor } = architecture;
        let name = format!("{handler}-{}-{variant:?}-{major}{minor}", image.scope());
        check(architecture, &Code::of(&image, &name));
    }
}

/// Whether a label is that of a routine by which the compiler lets lanes meet, shuffle or vote.
fn is_helper(label: &str) -> bool {
    let name = label.strip_prefix("$__internal_").and_then(|rest| rest.split_once("_$"));
    name.is_some_and(|(number, name)| {
        number.bytes().all(|byte| byte.is_ascii_digit())
            && ["shflsync", "votesync", "warpsync", "barrier_red"].iter().any(|kind| {
                name.strip_prefix("__cuda_sm70_").is_some_and(|it| it.starts_with(kind))
            })
    })
}

/// What the check of calls is worth: a function that is called, and so returns, is found, under a name
/// of its own or under a label alone.
#[test]
fn a_call_of_a_function_is_told_from_those_of_the_compiler() {
    let code = |lines: &[&str]| Code::parsed(lines.iter().copied());
    let helper = "$__internal_0_$__cuda_sm70_warpsync:";
    let call = "/*0000*/ CALL.REL.NOINC `($__internal_0_$__cuda_sm70_warpsync) ;";
    let jump = "/*0010*/ @P1 CALL.REL.NOINC `(.L_x_1) ;";
    let (exit, back) = ("/*0020*/ EXIT ;", "/*0030*/ RET.REL.NODEC R2 `(dc_resident) ;");
    assert!(code(&[call, jump, ".L_x_1:", exit, helper, back]).calls().is_empty());
    // A function of the user's, behind the code, or among it.
    for name in ["add", "$__internal_0_$__cuda_sm20_div", "$dc_resident$add"] {
        let call = format!("/*0000*/ CALL.REL.NOINC `({name}) ;");
        let label = format!("{name}:");
        assert_eq!(code(&[&call, exit, &label, back]).calls().len(), 2, "{name}");
        assert_eq!(code(&[&call, exit]).calls(), [&call[9..]], "{name}");
    }
    // A label that returns is a function, whatever it is called; so is one behind the helpers.
    assert_eq!(code(&[jump, exit, ".L_x_1:", back]).calls(), [&back[9..]]);
    assert_eq!(code(&[jump, exit, helper, back, ".L_x_1:", back]).calls(), [&jump[9..]]);
    // Where nobody knows where it goes.
    let indirect = "/*0000*/ CALL.ABS.NOINC R4 ;";
    assert_eq!(code(&[indirect, exit]).calls(), [&indirect[9..]]);
}

#[test]
fn handlers_are_inlined_and_nothing_lies_on_a_stack() {
    for variant in [Variant::Tagged, Variant::Fenced] {
        each_architecture(&[adder(), caller()], variant, |architecture, code| {
            inlined_without_a_stack(&architecture.to_string(), code);
        });
    }
}

/// Rust handlers, an experiment, become what those in CUDA C++ do.
#[test]
fn handlers_in_rust_are_inlined_without_a_stack_too() {
    each_architecture(&in_rust(), Variant::Tagged, |architecture, code| {
        inlined_without_a_stack(&format!("in Rust, {architecture}"), code);
        // A product and a sum in double precision, each rounded: they are not fused.
        assert!(code.with("DMUL").next().is_some(), "{architecture}");
        assert_eq!(code.with("DFMA").count(), 0, "{architecture}");
    });
}

/// What the test of parity runs compiles for devices, integers of 128 bits, tables, numbers of all widths and
/// a function that calls itself among it.
#[test]
fn the_handlers_in_rust_that_are_run_on_the_host_compile_for_each_architecture() {
    let source = include_str!("handlers/exam.rs");
    let handlers = ["exam", "stumble"].map(|it| CudaHandler::from_rust(it, source).unwrap());
    each_architecture(&handlers, Variant::Tagged, |architecture, code| {
        let section = &code.sections[0];
        assert_eq!(section, Image::KERNEL, "{architecture}");
        // The sum of the test's weights, and the line of a panic.
        assert!(code.instructions.len() > 2000, "{architecture}: {}", code.instructions.len());
    });
}

fn inlined_without_a_stack(what: &str, code: &Code) {
    assert_eq!(code.sections, [Image::KERNEL], "{what}: a handler of its own");
    assert!(code.calls().is_empty(), "{what}: {:?}", code.calls());
    for local in ["LDL", "STL"] {
        assert_eq!(code.with(local).count(), 0, "{what}: {local}");
    }
    let frame = code.instructions.iter().find(|found| found.text.contains("R1, R1, -"));
    assert!(frame.is_none(), "{what}: a stack frame");
}

#[test]
fn handlers_of_several_threads_are_inlined_too_and_meet_by_the_barrier_of_their_scope() {
    for scope in WIDE {
        // The other one differs in what chunks are stored by.
        let variants: &[Variant] = match scope.threads() {
            256 => &[Variant::Tagged, Variant::Fenced],
            _ => &[Variant::Tagged],
        };
        for &variant in variants {
            let handlers = [caller().scope(scope), summer().scope(scope).shared_bytes(4096)];
            each_architecture(&handlers, variant, |architecture, code| {
                let what = format!("{scope}, {variant:?}, {architecture}");
                inlined_without_a_stack(&what, code);
                let barriers: Vec<_> = code.with("BAR.").collect();
                match scope {
                    Scope::Block { .. } | Scope::Team { .. } => {
                        assert!(!barriers.is_empty(), "{what}");
                        // Each tells how many have returned, and so none is one that only waits.
                        for barrier in barriers {
                            let operation = &barrier.operation;
                            assert!(operation.starts_with("BAR.RED.POPC"), "{what}: {operation}");
                        }
                    }
                    // Lanes of a warp wait for each other without the block's barriers, of which other
                    // seats of the block are no part.
                    _ => assert!(barriers.is_empty(), "{what}: {}", barriers[0].text),
                }
            });
        }
    }
}

/// The first warp of a wide seat does what a seat of one lane does: the loads of messages, and all stores and
/// fences, are those that are written down. (Of the words that are polled the compiler makes more copies here
/// and fewer there; and of counters it stores two at once where they lie in registers.)
#[test]
fn with_several_threads_a_message_costs_the_same_loads_and_stores() {
    for scope in [Scope::Warp, Scope::Block { threads: 256 }] {
        let handler = summer().scope(scope).shared_bytes(4096);
        each_architecture(&[handler], Variant::Tagged, |architecture, code| {
            let kept = |all: Vec<String>| {
                let mut kept = Vec::new();
                for it in all {
                    if it == "STG.E.128.STRONG.GPU" {
                        kept.extend(["STG.E.64.STRONG.GPU"; 2].map(str::to_owned));
                    } else if !it.starts_with("LDG") || it.starts_with("LDG.E.128.STRONG.") {
                        kept.push(it);
                    }
                }
                kept.sort_unstable();
                kept
            };
            let written = fs::read_to_string(golden(architecture)).unwrap();
            let lane = written.lines().map(str::to_owned).collect();
            assert_eq!(kept(code.protocol()), kept(lane), "{scope}, {architecture}");
        });
    }
}

/// A team's first block tells the others of a call after a fence, and each block comes to a meeting after one;
/// the last of them tells the others after one more.
#[test]
fn the_blocks_of_a_team_meet_between_fences() {
    let handler = gatherer().scope(Scope::Team { blocks: 4, threads: 256 });
    each_architecture(&[handler], Variant::Tagged, |architecture, code| {
        let (fence, come, tell) =
            ("MEMBAR.ALL.GPU", "ATOMG.E.ADD.64.STRONG.GPU", "STG.E.64.STRONG.GPU");
        let protocol = code.protocol();
        let is_order =
            |operation: &&String| !operation.starts_with("LDG") && !operation.starts_with("CCTL");
        let protocol: Vec<&str> = protocol.iter().filter(is_order).map(String::as_str).collect();
        // Who is the last to come clears who is here, and tells the others. Before sm_90 there is no fence that only
        // acquires.
        let acquires = architecture < Version::new(9, 0);
        let meeting = [fence, come, fence, tell, fence, tell];
        let meeting: Vec<&str> = meeting
            .into_iter()
            .enumerate()
            .filter(|(at, _)| acquires || *at != 2)
            .map(|it| it.1)
            .collect();
        let count =
            |steps: &[&str]| protocol.windows(steps.len()).filter(|it| *it == steps).count();
        let meetings = count(&meeting);
        // At the barrier of the team and at the end; the compiler makes copies. Besides, a seat leaves so.
        assert!(meetings >= 2, "{architecture}: {protocol:#?}");
        let left = count(&[fence, come]) - meetings;
        assert!(left <= 1, "{architecture}: {protocol:#?}");
        if !acquires {
            // Besides of a call, that the grid is left, and of the head of an inbox.
            assert_eq!(count(&[fence, tell]), meetings + 3, "{architecture}: {protocol:#?}");
        }
    });
}

/// A look reads sixteen slots with two loads, and all replies to a message go out with one store.
#[test]
fn a_message_costs_one_store_and_less_than_one_load() {
    each_architecture(&[adder()], Variant::Tagged, |architecture, code| {
        // The third is the service warp's.
        assert_eq!(code.count("LDG.E.128.STRONG.SYS"), 3, "{architecture}");
        assert_eq!(code.count("STG.E.128.STRONG.SYS"), 1, "{architecture}");
        // Device to device the same, with device scope.
        assert_eq!(code.count("LDG.E.128.STRONG.GPU"), 1, "{architecture}");
    });
}

/// From the look at the host's rings to the published reply there is no fence, but for the ones
/// behind a credit that had run out: those of a look at the host's head and at an inbox's.
#[test]
fn no_fence_lies_between_a_message_and_its_reply() {
    each_architecture(&[adder()], Variant::Tagged, |architecture, code| {
        let protocol = code.protocol();
        // The look's two loads follow each other; the service warp has one.
        let look =
            protocol.windows(2).position(|pair| pair == ["LDG.E.128.STRONG.SYS"; 2]).unwrap();
        let publish = protocol.iter().position(|o| o == "STG.E.128.STRONG.SYS").unwrap();
        assert!(look < publish, "{architecture}");
        let hot = &protocol[look..publish];
        let fences: Vec<_> = hot.iter().filter(|o| o.starts_with("MEMBAR")).collect();
        // Before sm_90 there is no fence that only acquires.
        let allowed: &[&str] = match architecture < Version::new(9, 0) {
            true => &["MEMBAR.ALL.SYS", "MEMBAR.ALL.GPU"],
            false => &[],
        };
        assert_eq!(fences, allowed, "{architecture}: {hot:#?}");
    });
}

/// Whatever else a change does to the machine code, what other threads see of it is written down:
/// a fence that goes, or moves, shows here. To accept a change, run with `UPDATE_GOLDEN=1` and read
/// the difference.
#[test]
fn the_protocol_in_machine_code_is_the_one_written_down() {
    each_architecture(&[adder()], Variant::Tagged, |architecture, code| {
        let golden = golden(architecture);
        let found = code.protocol().join("\n") + "\n";
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(golden.parent().unwrap()).unwrap();
            fs::write(&golden, &found).unwrap();
        }
        let written = fs::read_to_string(&golden).unwrap_or_default();
        assert!(found == written, "{architecture} differs from {}:\n{found}", golden.display());
    });
}

/// Each position that frees slots is published after a fence, and so is each state of a seat.
#[test]
fn what_frees_slots_comes_after_a_fence() {
    each_architecture(&[adder()], Variant::Tagged, |architecture, code| {
        let protocol = code.protocol();
        let after = |fence: &str, store: &str| {
            let follows = |pair: &&[String]| pair[0] == fence && pair[1] == store;
            let no_cache: Vec<String> =
                protocol.iter().filter(|o| !o.starts_with("CCTL")).cloned().collect();
            no_cache.windows(2).filter(follows).count()
        };
        // Heads to the host; the inbox's head; the state of a seat and the end of a grid; an order.
        assert_eq!(after("MEMBAR.ALL.SYS", "STG.E.64.STRONG.SYS"), 1, "{architecture}");
        assert_eq!(after("MEMBAR.ALL.GPU", "STG.E.64.STRONG.GPU"), 1, "{architecture}");
        assert_eq!(after("MEMBAR.ALL.SYS", "STG.E.STRONG.SYS"), 2, "{architecture}");
        let left = after("MEMBAR.ALL.GPU", "RED.E.ADD.64.STRONG.GPU")
            + after("MEMBAR.ALL.GPU", "ATOMG.E.ADD.64.STRONG.GPU");
        assert_eq!(left, 1, "{architecture}: a seat leaves after a fence");
    });
}

#[test]
fn an_error_in_a_source_is_shown_with_its_line() {
    let handler = CudaHandler::from_source(
        "typo",
        "#include \"dotcompute.cuh\"\n\
         extern \"C\" __device__ int32_t\n\
         typo(const int *m, int *s, int *r, rk_ctx *) {\n\
         \x20   return mesage;\n\
         }\n",
    );
    let built = Image::build(&[handler], Version::new(9, 0), Variant::Tagged, &toolkit(), None);
    let error = built.unwrap_err();
    assert!(matches!(error, BuildError::Source { .. }), "{error:?}");
    let told = error.to_string();
    assert!(told.contains("typo.cu(4): error: identifier \"mesage\" is undefined"), "{told}");
    assert!(told.contains("    return mesage;"), "{told}");
}

#[test]
fn a_function_that_nobody_defines_is_named() {
    let handler = CudaHandler::from_source(
        "lonely",
        "#include \"dotcompute.cuh\"\n\
         extern \"C\" __device__ int elsewhere();\n\
         extern \"C\" __device__ int32_t\n\
         lonely(const int *, int *, int *, rk_ctx *) { return elsewhere(); }\n",
    );
    let built = Image::build(&[handler], Version::new(9, 0), Variant::Tagged, &toolkit(), None);
    let error = built.unwrap_err();
    assert!(matches!(error, BuildError::Link(_)), "{error:?}");
    assert!(error.to_string().contains("elsewhere"), "{error}");
    // The handler's own name is wrong.
    let handler = CudaHandler::from_source("nobody", "#include \"dotcompute.cuh\"\n");
    let built = Image::build(&[handler], Version::new(9, 0), Variant::Tagged, &toolkit(), None);
    assert!(built.unwrap_err().to_string().contains("nobody"));
}

#[test]
fn names_that_cannot_be_told_apart_or_are_no_names_are_refused() {
    let build = |handlers: &[CudaHandler]| {
        Image::build(handlers, Version::new(9, 0), Variant::Tagged, &toolkit(), None).unwrap_err()
    };
    assert_eq!(build(&[adder(), adder()]), BuildError::Duplicate { function: "add".into() });
    for name in ["", "2nd", "a-b", "a;b"] {
        let error = build(&[CudaHandler::from_source(name, "")]);
        assert_eq!(error, BuildError::Name { function: name.into() });
    }
}

#[test]
fn an_architecture_that_the_compiler_does_not_know_is_an_error() {
    let built = Image::build(&[adder()], Version::new(99, 0), Variant::Tagged, &toolkit(), None);
    assert!(matches!(built.unwrap_err(), BuildError::Runtime(_)));
}

#[test]
fn an_image_is_built_once_and_then_read() {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("cache");
    let _ = fs::remove_dir_all(&folder); // what an earlier run left
    let cache = Cache::at(&folder);
    let toolkit = toolkit();
    let build = |handlers: &[CudaHandler], architecture| {
        Image::build(handlers, architecture, Variant::Tagged, &toolkit, Some(&cache)).unwrap()
    };
    let files = || fs::read_dir(&folder).unwrap().count();
    let first = build(&[adder()], Version::new(9, 0));
    assert_eq!(files(), 1);
    // What is read is what lies there: a mark in the file shows.
    assert_eq!(build(&[adder()], Version::new(9, 0)), first);
    assert_eq!(files(), 1);
    assert_eq!(first.handler("add"), Some(0));
    assert_eq!(first.handler("call"), None);
    build(&[adder()], Version::new(8, 0));
    let both = build(&[adder(), caller()], Version::new(9, 0));
    assert_eq!(both.handler("call"), Some(1));
    assert_eq!(files(), 3);
}
