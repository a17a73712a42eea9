//! Writes the headers for C, CUDA and WGSL from the descriptions in this crate.

use crate::describe::{Constant, Field, Kind, Struct};
use crate::ring::RING_MAGIC;
use crate::{ABI_VERSION, LINE_BYTES, codes, control, device, handler, ring, slot};
use core::fmt::{self, Write};

const CONSTANTS: &[&[Constant]] = &[
    slot::SIZES,
    slot::FLAGS,
    ring::FORMATS,
    control::COMMANDS,
    control::STATES,
    device::SEATS,
    codes::HANDLER_RESULTS,
    codes::FAULTS,
];

const C_PROLOGUE: &str = "\
#ifndef DOTCOMPUTE_ABI_H
#define DOTCOMPUTE_ABI_H

/* NVRTC has no standard headers. */
#ifdef __CUDACC_RTC__
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef short int16_t;
typedef unsigned short uint16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#define DC_OFFSET(type, field) __INTADDR__(&((type *)0)->field)
#else
#include <stddef.h>
#include <stdint.h>
#define DC_OFFSET(type, field) offsetof(type, field)
#endif

#ifdef __cplusplus
#define DC_ALIGN(bytes) alignas(bytes)
#define DC_ASSERT(condition, text) static_assert(condition, text)
#else
#define DC_ALIGN(bytes) _Alignas(bytes)
#define DC_ASSERT(condition, text) _Static_assert(condition, text)
#endif
";

/// Writes the header for C11, C++11 and CUDA (NVRTC too).
///
/// # Errors
///
/// Only those of `out`.
pub fn write_c(out: &mut impl Write) -> fmt::Result {
    title(out)?;
    writeln!(out, "{C_PROLOGUE}")?;
    writeln!(out, "#define DC_ABI_VERSION {ABI_VERSION}u")?;
    writeln!(out, "#define DC_LINE_BYTES {LINE_BYTES}u")?;
    writeln!(out, "#define DC_RING_MAGIC 0x{RING_MAGIC:016x}ull\n")?;
    for table in CONSTANTS {
        for &Constant { name, value, signed, doc } in *table {
            comment(out, "", "/* ", doc)?;
            match signed {
                true => writeln!(out, "#define DC_{name} ({value})")?,
                false => writeln!(out, "#define DC_{name} {value}u")?,
            }
        }
        writeln!(out)?;
    }
    for part in
        slot::STRUCTS.iter().chain(ring::STRUCTS).chain(control::STRUCTS).chain(device::STRUCTS)
    {
        c_struct(out, part)?;
    }
    writeln!(out, "{}", handler::C_TEXT)?;
    writeln!(out, "#endif")
}

fn c_struct(out: &mut impl Write, part: &Struct) -> fmt::Result {
    let name = Snake(part.name);
    comment(out, "", "/* ", part.doc)?;
    writeln!(out, "typedef struct dc_{name} {{")?;
    let mut align = part.align_bytes;
    for field in part.fields {
        comment(out, "    ", "/* ", field.doc)?;
        write!(out, "    ")?;
        // The first member's alignment is the struct's.
        if align > 8 {
            write!(out, "DC_ALIGN({align}) ")?;
        }
        align = 0;
        let Field { name, kind, .. } = *field;
        match kind {
            Kind::U16 => writeln!(out, "uint16_t {name};")?,
            Kind::U32 => writeln!(out, "uint32_t {name};")?,
            Kind::I32 => writeln!(out, "int32_t {name};")?,
            Kind::U64 => writeln!(out, "uint64_t {name};")?,
            Kind::Bytes(count) => writeln!(out, "uint8_t {name}[{count}];")?,
            Kind::Words(count) => writeln!(out, "uint32_t {name}[{count}];")?,
            Kind::Longs(count) => writeln!(out, "uint64_t {name}[{count}];")?,
            Kind::One(of) => writeln!(out, "dc_{} {name};", Snake(of.name))?,
            Kind::Many(of, count) => writeln!(out, "dc_{} {name}[{count}];", Snake(of.name))?,
        }
    }
    writeln!(out, "}} dc_{name};")?;
    writeln!(out, "DC_ASSERT(sizeof(dc_{name}) == {}, \"dc_{name}\");", part.size_bytes)?;
    for Field { name: field, offset_bytes, .. } in part.fields {
        writeln!(
            out,
            "DC_ASSERT(DC_OFFSET(dc_{name}, {field}) == {offset_bytes}, \"dc_{name}.{field}\");"
        )?;
    }
    writeln!(out)
}

/// Writes the header for WGSL: the codes and the slots. A WGSL kernel runs one batch per dispatch
/// and shares no ring with the host, so it needs no more.
///
/// # Errors
///
/// Only those of `out`.
pub fn write_wgsl(out: &mut impl Write) -> fmt::Result {
    title(out)?;
    writeln!(out, "const DC_ABI_VERSION: u32 = {ABI_VERSION}u;\n")?;
    for table in [slot::SIZES, slot::FLAGS, codes::HANDLER_RESULTS, codes::FAULTS] {
        for &Constant { name, value, signed, doc } in table {
            comment(out, "", "// ", doc)?;
            match signed {
                true => writeln!(out, "const DC_{name}: i32 = {value};")?,
                false => writeln!(out, "const DC_{name}: u32 = {value}u;")?,
            }
        }
        writeln!(out)?;
    }
    for part in slot::STRUCTS {
        wgsl_struct(out, part)?;
    }
    Ok(())
}

/// WGSL has neither bytes nor 16-bit words: bytes become words, and two neighbouring 16-bit fields
/// one word, the first in its low half.
fn wgsl_struct(out: &mut impl Write, part: &Struct) -> fmt::Result {
    comment(out, "", "// ", part.doc)?;
    writeln!(out, "struct Dc{} {{", part.name)?;
    let mut align = part.align_bytes;
    let mut fields = part.fields.iter();
    while let Some(field) = fields.next() {
        comment(out, "    ", "// ", field.doc)?;
        write!(out, "    ")?;
        if align > 4 {
            write!(out, "@align({align}) ")?;
        }
        align = 0;
        let Field { name, kind, .. } = *field;
        match kind {
            Kind::U16 => {
                let high = fields.next().map_or("", |field| field.name);
                writeln!(out, "{name}_low_{high}_high: u32,")?;
            }
            Kind::U32 => writeln!(out, "{name}: u32,")?,
            Kind::I32 => writeln!(out, "{name}: i32,")?,
            Kind::U64 => writeln!(out, "{name}: vec2<u32>,")?,
            Kind::Bytes(count) => writeln!(out, "{name}: array<u32, {}>,", count / 4)?,
            Kind::Words(count) => writeln!(out, "{name}: array<u32, {count}>,")?,
            Kind::Longs(count) => writeln!(out, "{name}: array<vec2<u32>, {count}>,")?,
            Kind::One(of) => writeln!(out, "{name}: Dc{},", of.name)?,
            Kind::Many(of, count) => writeln!(out, "{name}: array<Dc{}, {count}>,", of.name)?,
        }
    }
    writeln!(out, "}}\n")
}

fn title(out: &mut impl Write) -> fmt::Result {
    writeln!(out, "// Written by `cargo run -p dotcompute-abi --example generate`. Do not edit.\n")
}

/// Writes the lines of `doc`, each as a comment that `open` begins.
fn comment(out: &mut impl Write, indent: &str, open: &str, doc: &str) -> fmt::Result {
    let close = if open == "/* " { " */" } else { "" };
    for line in doc.lines() {
        writeln!(out, "{indent}{open}{}{close}", line.trim())?;
    }
    Ok(())
}

/// A Rust type's name in snake case.
#[derive(Clone, Copy)]
struct Snake(&'static str);

impl fmt::Display for Snake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, letter) in self.0.char_indices() {
            if place > 0 && letter.is_ascii_uppercase() {
                f.write_char('_')?;
            }
            f.write_char(letter.to_ascii_lowercase())?;
        }
        Ok(())
    }
}
