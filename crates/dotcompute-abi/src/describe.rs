//! How a shared layout describes itself, for the generated headers.

/// A number that host and device name alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Constant {
    /// Name in upper case, without prefix.
    pub name: &'static str,
    /// The value; every constant fits.
    pub value: i64,
    /// Whether the word that carries it is signed.
    pub signed: bool,
    /// What it means.
    pub doc: &'static str,
}

/// One field of a [`Struct`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Field {
    /// Its name, alike in every language.
    pub name: &'static str,
    /// Its type in Rust.
    pub kind: Kind,
    /// Distance from the start of the struct, in bytes.
    pub offset_bytes: usize,
    /// What it means, lines separated by newlines.
    pub doc: &'static str,
}

/// The types that a shared field may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Two bytes, unsigned.
    U16,
    /// Four bytes, unsigned.
    U32,
    /// Four bytes, signed.
    I32,
    /// Eight bytes, unsigned.
    U64,
    /// So many plain bytes.
    Bytes(usize),
    /// So many words of four bytes.
    Words(usize),
    /// So many words of eight bytes.
    Longs(usize),
    /// Another shared struct.
    One(&'static Struct),
    /// So many of another shared struct.
    Many(&'static Struct, usize),
}

/// One shared struct.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Struct {
    /// Its name in Rust.
    pub name: &'static str,
    /// Its size, in bytes.
    pub size_bytes: usize,
    /// Its alignment, in bytes.
    pub align_bytes: usize,
    /// Its fields, in order.
    pub fields: &'static [Field],
    /// What it is, lines separated by newlines.
    pub doc: &'static str,
}

/// A type that may stand in a shared struct.
pub trait Shared {
    /// Its description.
    const KIND: Kind;
}

impl Shared for u16 {
    const KIND: Kind = Kind::U16;
}

impl Shared for u32 {
    const KIND: Kind = Kind::U32;
}

impl Shared for i32 {
    const KIND: Kind = Kind::I32;
}

impl Shared for u64 {
    const KIND: Kind = Kind::U64;
}

impl<const N: usize> Shared for [u8; N] {
    const KIND: Kind = Kind::Bytes(N);
}

impl<const N: usize> Shared for [u32; N] {
    const KIND: Kind = Kind::Words(N);
}

impl<const N: usize> Shared for [u64; N] {
    const KIND: Kind = Kind::Longs(N);
}

/// Defines a shared struct: its size, its alignment and the offset of every field are written down
/// and asserted, and it describes itself as `LAYOUT`.
macro_rules! shared_struct {
    (
        $(#[doc = $doc:literal])*
        $name:ident: $size:literal bytes, aligned to $align:tt;
        $( $(#[doc = $field_doc:literal])* $field:ident: $type:ty, at $offset:literal; )*
    ) => {
        $(#[doc = $doc])*
        #[derive(Clone, Copy, Debug)]
        #[repr(C, align($align))]
        pub struct $name {
            $( $(#[doc = $field_doc])* pub $field: $type, )*
        }

        const _: () = {
            assert!(size_of::<$name>() == $size);
            assert!(align_of::<$name>() == $align);
            $( assert!(core::mem::offset_of!($name, $field) == $offset); )*
        };

        impl $name {
            /// The layout, as the generated headers state it.
            pub const LAYOUT: $crate::describe::Struct = $crate::describe::Struct {
                name: stringify!($name),
                size_bytes: $size,
                align_bytes: $align,
                fields: &[ $( $crate::describe::Field {
                    name: stringify!($field),
                    kind: <$type as $crate::describe::Shared>::KIND,
                    offset_bytes: $offset,
                    doc: concat!($($field_doc, "\n"),*),
                }, )* ],
                doc: concat!($($doc, "\n"),*),
            };
        }

        impl $crate::describe::Shared for $name {
            const KIND: $crate::describe::Kind = $crate::describe::Kind::One(&$name::LAYOUT);
        }
    };
}

/// Defines constants that every side names alike, and a table of them.
macro_rules! shared_constants {
    (
        $(#[doc = $table_doc:literal])*
        $table:ident: $type:ty;
        $( $(#[doc = $doc:literal])* $name:ident = $value:expr; )*
    ) => {
        $( $(#[doc = $doc])* pub const $name: $type = $value; )*

        $(#[doc = $table_doc])*
        pub const $table: &[$crate::describe::Constant] = &[ $( $crate::describe::Constant {
            name: stringify!($name),
            value: $name as i64,
            signed: <$type>::MIN != 0,
            doc: concat!($($doc, "\n"),*),
        }, )* ];
    };
}
