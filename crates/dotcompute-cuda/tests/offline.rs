//! Every device source, compiled and linked by the code that ships for the architectures that are
//! supported, and the machine code looked at: no device is needed. Run by `make cuda-offline`, which
//! says where the toolkit lies.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dotcompute_cuda::toolkit::Toolkit;
use dotcompute_cuda::{BuildError, Cache, CudaHandler, Image, Variant, Version};

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
        let instructions: Vec<Instruction> = text.lines().filter_map(instruction).collect();
        assert!(instructions.len() > 500, "{name}: {} instructions", instructions.len());
        Self { sections, instructions }
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

fn build(handlers: &[CudaHandler], architecture: Version, variant: Variant) -> Image {
    Image::build(handlers, architecture, variant, &toolkit(), None).unwrap()
}

fn each_architecture(handlers: &[CudaHandler], variant: Variant, check: impl Fn(Version, &Code)) {
    for architecture in ARCHITECTURES {
        let handler = handlers.last().unwrap().function();
        let image = build(handlers, architecture, variant);
        let Version { major, minor } = architecture;
        check(architecture, &Code::of(&image, &format!("{handler}-{variant:?}-{major}{minor}")));
    }
}

/// Before sm_90 the compiler itself calls routines of its own where lanes meet and vote, and labels
/// behind them where some lanes need not: a function is called by its name.
fn is_of_the_compiler(call: &Instruction) -> bool {
    call.text.contains("$__cuda_sm70_") || call.text.contains("`(.L_x_")
}

#[test]
fn handlers_are_inlined_and_nothing_lies_on_a_stack() {
    for variant in [Variant::Tagged, Variant::Fenced] {
        each_architecture(&[adder(), caller()], variant, |architecture, code| {
            assert_eq!(code.sections, [Image::KERNEL], "{architecture}: a handler of its own");
            let calls: Vec<_> =
                code.with("CALL").filter(|call| !is_of_the_compiler(call)).collect();
            assert!(calls.is_empty(), "{architecture}: {}", calls[0].text);
            for local in ["LDL", "STL"] {
                assert_eq!(code.with(local).count(), 0, "{architecture}: {local}");
            }
            let frame = code.instructions.iter().find(|found| found.text.contains("R1, R1, -"));
            assert!(frame.is_none(), "{architecture}: a stack frame");
        });
    }
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
    each_architecture(&[adder()], Variant::Tagged, |Version { major, minor }, code| {
        let golden = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
            .join(format!("tests/golden/protocol_sm_{major}{minor}.txt"));
        let found = code.protocol().join("\n") + "\n";
        if env::var_os("UPDATE_GOLDEN").is_some() {
            fs::create_dir_all(golden.parent().unwrap()).unwrap();
            fs::write(&golden, &found).unwrap();
        }
        let written = fs::read_to_string(&golden).unwrap_or_default();
        assert!(found == written, "sm_{major}{minor} differs from {}:\n{found}", golden.display());
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
