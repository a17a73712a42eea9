//! The header for WGSL is WGSL, and has the values and layouts that Rust has.

use std::collections::BTreeMap;

use dotcompute_abi::describe::{Constant, Field, Kind, Struct};
use dotcompute_abi::generate::write_wgsl;
use dotcompute_abi::{codes, slot};
use naga::valid::{Capabilities, ValidationFlags, Validator};
use naga::{Expression, Literal, Module, TypeInner};

/// The size of a struct, with offset and size of each of its members.
type Layout = (usize, Vec<(usize, usize)>);

/// The header as naga, wgpu's compiler, understands it.
fn parsed() -> Module {
    let mut text = String::new();
    write_wgsl(&mut text).expect("a string takes all that is written");
    let module = naga::front::wgsl::parse_str(&text)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
    Validator::new(ValidationFlags::all(), Capabilities::empty())
        .validate(&module)
        .unwrap_or_else(|error| panic!("{}", error.emit_to_string(&text)));
    module
}

#[test]
fn every_constant_has_its_value() {
    let module = parsed();
    let found: BTreeMap<&str, i64> = module
        .constants
        .iter()
        .map(|(_, constant)| {
            let value = match module.global_expressions[constant.init] {
                Expression::Literal(Literal::U32(value)) => i64::from(value),
                Expression::Literal(Literal::I32(value)) => i64::from(value),
                ref other => panic!("{:?} is {other:?}", constant.name),
            };
            (constant.name.as_deref().unwrap(), value)
        })
        .collect();
    let tables = [slot::SIZES, slot::FLAGS, codes::HANDLER_RESULTS, codes::FAULTS];
    let mut wanted =
        BTreeMap::from([("DC_ABI_VERSION".into(), i64::from(dotcompute_abi::ABI_VERSION))]);
    wanted.extend(
        tables
            .into_iter()
            .flatten()
            .map(|&Constant { name, value, .. }| (format!("DC_{name}"), value)),
    );
    let found: BTreeMap<String, i64> =
        found.into_iter().map(|(name, value)| (name.into(), value)).collect();
    assert_eq!(found, wanted);
}

/// The size of a field, as Rust has it.
fn size_bytes(kind: Kind) -> usize {
    match kind {
        Kind::U16 => 2,
        Kind::U32 | Kind::I32 => 4,
        Kind::U64 => 8,
        Kind::Bytes(count) => count,
        Kind::Words(count) => 4 * count,
        Kind::Longs(count) => 8 * count,
        Kind::One(of) => of.size_bytes,
        Kind::Many(of, count) => count * of.size_bytes,
    }
}

/// Where the words of a struct begin and how long they are: two fields of 16 bits are one.
fn words(part: &Struct) -> Vec<(usize, usize)> {
    let mut fields = part.fields.iter();
    let mut words = Vec::new();
    while let Some(&Field { kind, offset_bytes, .. }) = fields.next() {
        let both =
            if kind == Kind::U16 { fields.next().map_or(0, |f| size_bytes(f.kind)) } else { 0 };
        words.push((offset_bytes, size_bytes(kind) + both));
    }
    words
}

#[test]
fn every_struct_has_its_size_and_offsets() {
    let module = parsed();
    let context = module.to_ctx();
    let mut structs: BTreeMap<&str, Layout> = module
        .types
        .iter()
        .filter_map(|(_, kind)| match &kind.inner {
            TypeInner::Struct { members, span } => {
                let words = members.iter().map(|member| {
                    let size = module.types[member.ty].inner.size(context);
                    (member.offset as usize, size as usize)
                });
                Some((kind.name.as_deref().unwrap(), (*span as usize, words.collect())))
            }
            _ => None,
        })
        .collect();
    for part in slot::STRUCTS {
        let found = structs.remove(format!("Dc{}", part.name).as_str());
        assert_eq!(found, Some((part.size_bytes, words(part))), "{}", part.name);
    }
    assert!(structs.is_empty(), "{structs:?}");
}
