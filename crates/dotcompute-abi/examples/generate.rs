//! Writes `generated/` anew from the definitions of this crate.

use dotcompute_abi::generate::{write_c, write_wgsl};
use std::path::Path;
use std::{fs, io};

fn main() -> io::Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("generated");
    let (mut c, mut wgsl) = (String::new(), String::new());
    write_c(&mut c).map_err(io::Error::other)?;
    write_wgsl(&mut wgsl).map_err(io::Error::other)?;
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("dotcompute_abi.h"), c)?;
    fs::write(folder.join("dotcompute_abi.wgsl"), wgsl)
}
