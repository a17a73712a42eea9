//! Records: messages of a fixed size that cross threads, processes and the bus without encoding.
//!
//! A record is plain data in the layout of C. It travels in slots of 64 bytes, each an 8-byte
//! header and 56 bytes of the record.
//!
//! ```
//! use dotcompute_core::record::{ElementType, Record};
//! use dotcompute_core::Message;
//!
//! #[derive(Clone, Copy, Debug, PartialEq, Message)]
//! #[message(record, crate = "dotcompute_core")]
//! #[repr(C)]
//! struct Particle {
//!     position: [f64; 3],
//!     mass: f64,
//!     cell: u32,
//!     flags: u32,
//! }
//!
//! assert_eq!(Particle::SLOTS, 1);
//! assert_eq!(Particle::LAYOUT.bytes, 40);
//! assert_eq!(Particle::LAYOUT.fields[1].name, "mass");
//! assert_eq!(Particle::LAYOUT.fields[1].offset, 24);
//! assert_eq!(Particle::LAYOUT.fields[1].element, ElementType::F64);
//!
//! let particle = Particle { position: [1.0, 2.0, 3.0], mass: 0.5, cell: 7, flags: 0 };
//! assert_eq!(Particle::from_bytes(particle.bytes()), Some(particle));
//! ```

mod layout;

use std::mem::size_of;

use bytemuck::Pod;

pub use layout::LayoutError;

use crate::message::Message;

/// The size of a slot, in bytes.
pub const SLOT_BYTES: usize = dotcompute_abi::slot::SLOT_BYTES as usize;

/// How many bytes of a record one slot carries; the others are its header.
pub const SLOT_PAYLOAD_BYTES: usize = dotcompute_abi::slot::PLAIN_PAYLOAD_BYTES as usize;

/// The largest size of a record, in bytes: the header of its first slot has 16 bits for it.
///
/// ```compile_fail,E0080
/// #[derive(Clone, Copy, dotcompute_core::Message)]
/// #[message(record, no_wire, crate = "dotcompute_core")]
/// #[repr(C)]
/// struct TooLarge {
///     values: [u64; 8192],
/// }
/// ```
pub const MAX_BYTES: usize = u16::MAX as usize;

/// The largest alignment that a record can have, in bytes: that of the payload in its slot.
pub const MAX_ALIGN_BYTES: usize = 8;

/// A message of a fixed size that is plain data. Derived with `#[message(record)]` on a
/// `#[repr(C)]` struct.
///
/// The derive refuses, when the program is compiled, a layout with padding and a field that is not
/// plain data:
///
/// ```compile_fail,E0080
/// #[derive(Clone, Copy, dotcompute_core::Message)]
/// #[message(record, crate = "dotcompute_core")]
/// #[repr(C)]
/// struct Padded {
///     flag: u8,
///     value: f64, // 7 bytes of padding before it: write `_padding: [u8; 7]` instead
/// }
/// ```
///
/// ```compile_fail,E0277
/// #[derive(Clone, Copy, dotcompute_core::Message)]
/// #[message(record, no_wire, crate = "dotcompute_core")]
/// #[repr(C)]
/// struct NotPlain {
///     address: *const u8, // nor references, `bool`, `char`, `usize`, enums
/// }
/// ```
pub trait Record: Message + Pod {
    /// Names and places of its fields.
    const LAYOUT: &'static RecordLayout;

    /// How many slots one record takes.
    const SLOTS: usize = size_of::<Self>().div_ceil(SLOT_PAYLOAD_BYTES);

    /// Its bytes, in the byte order of this machine.
    fn bytes(&self) -> &[u8] {
        bytemuck::bytes_of(self)
    }

    /// The record with these bytes, of any alignment; none if they are too many or too few.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        bytemuck::try_pod_read_unaligned(bytes).ok()
    }
}

/// The layout of a record: what a numpy dtype or a C struct needs to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordLayout {
    /// The type name of the message.
    pub name: &'static str,
    /// Its size in bytes.
    pub bytes: usize,
    /// Its alignment in bytes.
    pub align_bytes: usize,
    /// Its fields, in order of their offsets; those of a derived record leave no gaps.
    pub fields: &'static [RecordField],
}

/// One field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordField {
    /// Its name.
    pub name: &'static str,
    /// Its type.
    pub element: ElementType,
    /// Where it begins, in bytes from the start of the record.
    pub offset: usize,
    /// Its size in bytes.
    pub bytes: usize,
}

/// The type of a field of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementType {
    /// `u8`.
    U8,
    /// `u16`.
    U16,
    /// `u32`.
    U32,
    /// `u64`.
    U64,
    /// `i8`.
    I8,
    /// `i16`.
    I16,
    /// `i32`.
    I32,
    /// `i64`.
    I64,
    /// `f32`.
    F32,
    /// `f64`.
    F64,
    /// An array of a fixed length; of several dimensions, an array of arrays.
    Array {
        /// The type of its elements.
        element: &'static ElementType,
        /// The number of its elements.
        length: usize,
    },
    /// Another record.
    Record(&'static RecordLayout),
}

impl ElementType {
    /// What reads an integer of this type, in 64 bits, from its bytes; none if it is no integer.
    pub(crate) fn as_integer(self) -> Option<fn(&[u8]) -> u64> {
        macro_rules! read {
            ($number:ty, $wide:ty) => {
                |bytes| {
                    let number = bytes.try_into().map_or(0, <$number>::from_ne_bytes);
                    <$wide>::from(number) as u64
                }
            };
        }
        Some(match self {
            Self::U8 => read!(u8, u64),
            Self::U16 => read!(u16, u64),
            Self::U32 => read!(u32, u64),
            Self::U64 => read!(u64, u64),
            Self::I8 => read!(i8, i64),
            Self::I16 => read!(i16, i64),
            Self::I32 => read!(i32, i64),
            Self::I64 => read!(i64, i64),
            Self::F32 | Self::F64 | Self::Array { .. } | Self::Record(_) => return None,
        })
    }
}

/// A type that a field of a record can have: numbers of a fixed size, arrays of them, and other
/// records.
///
/// ```
/// use dotcompute_core::record::{ElementType, Plain};
/// const ROW: ElementType = ElementType::Array { element: &ElementType::F32, length: 3 };
/// assert_eq!(<[[f32; 3]; 2]>::ELEMENT, ElementType::Array { element: &ROW, length: 2 });
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be a field of a record",
    label = "not plain data of a fixed size",
    note = "a record has numbers (u8 to u64, i8 to i64, f32, f64), arrays of them, and records; \
            write `u8` for `bool` and `u64` for `usize`"
)]
pub trait Plain: Pod {
    /// Which type it is.
    const ELEMENT: ElementType;
}

macro_rules! plain {
    ($($type:ident $element:ident;)*) => {$(
        impl Plain for $type {
            const ELEMENT: ElementType = ElementType::$element;
        }
    )*};
}

plain! {
    u8 U8; u16 U16; u32 U32; u64 U64;
    i8 I8; i16 I16; i32 I32; i64 I64;
    f32 F32; f64 F64;
}

impl<T: Plain, const N: usize> Plain for [T; N]
where
    [T; N]: Pod,
{
    const ELEMENT: ElementType = ElementType::Array { element: &T::ELEMENT, length: N };
}
