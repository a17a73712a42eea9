//! Handlers in Python, compiled by numba-cuda and linked by the code that ships: without a device.
//! Run by `make cuda-offline`, which says where they lie.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a failed test")]

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use dotcompute_cuda::toolkit::Toolkit;
use dotcompute_cuda::{BuildError, CudaHandler, Image, Variant, Version};

const ARCHITECTURES: [Version; 3] = [Version::new(8, 0), Version::new(9, 0), Version::new(10, 0)];

fn toolkit() -> Toolkit {
    Toolkit::load().expect("make cuda-offline says where the toolkit lies")
}

fn handler(name: &str, Version { major, minor }: Version) -> CudaHandler {
    let folder = env::var_os("DOTCOMPUTE_PYTHON_HANDLERS");
    let folder = PathBuf::from(folder.expect("make cuda-offline compiles them there"));
    let code = fs::read(folder.join(format!("{name}-{major}.{minor}.ltoir"))).unwrap();
    CudaHandler::from_lto_ir(name, code)
}

/// The machine code of an image, in words.
fn disassembled(image: &Image, name: &str) -> String {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.cubin"));
    fs::write(&path, image.cubin()).unwrap();
    let tool = env::var_os("NVDISASM").expect("make cuda-offline says where nvdisasm lies");
    let output = Command::new(tool).arg("-c").arg(&path).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn python_handlers_are_inlined_in_the_grid_beside_those_in_cuda() {
    let cuda = CudaHandler::from_source(
        "echo",
        "#include \"dotcompute.cuh\"\n\
         extern \"C\" __device__ int32_t\n\
         echo(const int *message, int *, int *reply, rk_ctx *) { *reply = *message; return 1; }\n",
    );
    for architecture in ARCHITECTURES {
        let handlers =
            [handler("book", architecture), cuda.clone(), handler("clerk", architecture)];
        let image =
            Image::build(&handlers, architecture, Variant::Tagged, &toolkit(), None).unwrap();
        assert_eq!(image.handler("clerk"), Some(2));
        let code = disassembled(&image, &format!("python-{architecture}"));
        let sections: Vec<_> =
            code.lines().filter_map(|line| line.trim().strip_prefix(".section\t.text.")).collect();
        assert_eq!(sections.len(), 1, "{architecture}: a handler of its own: {sections:?}");
        assert!(sections[0].starts_with(Image::KERNEL), "{architecture}: {}", sections[0]);
        // Before sm_90 the compiler itself calls routines of its own where lanes meet and vote; and
        // on all, those of a division.
        let of_the_compiler = |line: &&str| {
            ["$__cuda_sm", "$__internal", "`(.L_x_"].iter().any(|own| line.contains(own))
        };
        let calls: Vec<_> = code
            .lines()
            .filter(|line| line.contains("CALL"))
            .filter(|line| !of_the_compiler(line))
            .collect();
        assert!(calls.is_empty(), "{architecture}: {calls:#?}");
        // What was compiled is there: both replies of a book are numbers in double precision.
        assert!(code.contains("DFMA") && code.lines().count() > 1000, "{architecture}");
    }
}

#[test]
fn code_that_is_none_is_an_error_of_the_linker() {
    let broken = CudaHandler::from_lto_ir("broken", b"no code".to_vec());
    let built = Image::build(&[broken], Version::new(9, 0), Variant::Tagged, &toolkit(), None);
    let error = built.unwrap_err();
    assert!(matches!(error, BuildError::Link(_)), "{error:?}");
    // Another name than the code has.
    let code = handler("book", Version::new(9, 0));
    let missing = CudaHandler::from_source("other", "#include \"dotcompute.cuh\"\n");
    let built =
        Image::build(&[code, missing], Version::new(9, 0), Variant::Tagged, &toolkit(), None);
    assert!(built.unwrap_err().to_string().contains("other"));
}
