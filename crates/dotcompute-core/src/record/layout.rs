//! Layouts that are made at run time, by the rules of C: for records that Python describes.

use std::fmt::Write;
use std::sync::Mutex;

use dotcompute_mailbox::sync::lock;

use super::{ElementType, RecordField, RecordLayout};

/// The largest record, in bytes: a state can be large, but offsets must not overflow.
const BYTES_MAX: usize = 1 << 30;

/// Layouts made at run time. They live as long as the program, as those of derived records do, so
/// that one can be named by a plain reference from anywhere; equal ones are one.
static LAYOUTS: Mutex<Vec<(String, &'static RecordLayout)>> = Mutex::new(Vec::new());

/// Words that no field or struct of C and C++ can be named.
const C_WORDS: &[&str] = &[
    "alignas",
    "alignof",
    "and",
    "asm",
    "auto",
    "bool",
    "break",
    "case",
    "catch",
    "char",
    "class",
    "const",
    "constexpr",
    "continue",
    "default",
    "delete",
    "do",
    "double",
    "else",
    "enum",
    "explicit",
    "export",
    "extern",
    "false",
    "float",
    "for",
    "friend",
    "goto",
    "if",
    "inline",
    "int",
    "long",
    "mutable",
    "namespace",
    "new",
    "not",
    "operator",
    "or",
    "private",
    "protected",
    "public",
    "register",
    "restrict",
    "return",
    "short",
    "signed",
    "sizeof",
    "static",
    "struct",
    "switch",
    "template",
    "this",
    "throw",
    "true",
    "try",
    "typedef",
    "typename",
    "union",
    "unsigned",
    "using",
    "virtual",
    "void",
    "volatile",
    "while",
    "xor",
];

/// Why a record cannot be laid out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LayoutError {
    /// It has no fields.
    #[error("record '{record}' has no fields")]
    Empty {
        /// The record.
        record: String,
    },
    /// Two fields have one name.
    #[error("record '{record}' has two fields '{field}'")]
    Twice {
        /// The record.
        record: String,
        /// The field.
        field: String,
    },
    /// A field's name is not a name in C.
    #[error(
        "record '{record}', field '{field}': a name has letters, digits and '_' of ASCII, and \
             begins with a letter (names that begin with '_' are padding)"
    )]
    Name {
        /// The record.
        record: String,
        /// The field.
        field: String,
    },
    /// An array has no elements.
    #[error("record '{record}', field '{field}': an array has at least one element")]
    EmptyArray {
        /// The record.
        record: String,
        /// The field.
        field: String,
    },
    /// It is too large.
    #[error("record '{record}' is larger than 1 GiB at field '{field}'")]
    TooLarge {
        /// The record.
        record: String,
        /// The field.
        field: String,
    },
}

impl ElementType {
    /// Its size in bytes; none if it is beyond what a record can have.
    pub fn bytes(&self) -> Option<usize> {
        let bytes = match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array { element, length } => element.bytes()?.checked_mul(*length)?,
            Self::Record(layout) => layout.bytes,
        };
        (bytes <= BYTES_MAX).then_some(bytes)
    }

    /// Its alignment in bytes: that of its numbers.
    pub fn align_bytes(&self) -> usize {
        match self {
            Self::U8 | Self::I8 => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 => 8,
            Self::Array { element, .. } => element.align_bytes(),
            Self::Record(layout) => layout.align_bytes,
        }
    }

    /// An array of this type that lives as long as the program.
    pub fn array_of(self, length: usize) -> Self {
        static ELEMENTS: Mutex<Vec<&'static ElementType>> = Mutex::new(Vec::new());
        let mut elements = lock(&ELEMENTS);
        let known = elements.iter().find(|element| ***element == self).copied();
        let element = known.unwrap_or_else(|| {
            let element: &'static Self = Box::leak(Box::new(self));
            elements.push(element);
            element
        });
        Self::Array { element, length }
    }

    fn c_name(&self) -> String {
        match self {
            Self::U8 => "uint8_t".into(),
            Self::U16 => "uint16_t".into(),
            Self::U32 => "uint32_t".into(),
            Self::U64 => "uint64_t".into(),
            Self::I8 => "int8_t".into(),
            Self::I16 => "int16_t".into(),
            Self::I32 => "int32_t".into(),
            Self::I64 => "int64_t".into(),
            Self::F32 => "float".into(),
            Self::F64 => "double".into(),
            Self::Array { element, .. } => element.c_name(),
            Self::Record(layout) => layout.c_name(),
        }
    }
}

impl RecordLayout {
    /// The layout of a struct of C with these fields: each at the next offset that its type is
    /// aligned at, the whole padded to its own alignment. Such padding is zero in every record
    /// that is made here, and nobody reads it.
    ///
    /// A layout lives as long as the program, and equal ones are one: their number is that of the
    /// different records that a program describes, and should not grow while it runs.
    ///
    /// ```
    /// use dotcompute_core::record::{ElementType, RecordLayout};
    /// let layout = RecordLayout::c("Reading", &[
    ///     ("flag", ElementType::U8),
    ///     ("celsius", ElementType::F64),
    ///     ("history", ElementType::F32.array_of(3)),
    /// ])?;
    /// assert_eq!(layout.fields.iter().map(|f| f.offset).collect::<Vec<_>>(), [0, 8, 16]);
    /// assert_eq!((layout.bytes, layout.align_bytes), (32, 8));
    /// # Ok::<(), dotcompute_core::record::LayoutError>(())
    /// ```
    ///
    /// # Errors
    ///
    /// See [`LayoutError`]: it names the field.
    pub fn c(name: &str, fields: &[(&str, ElementType)]) -> Result<&'static Self, LayoutError> {
        Self::c_of("", name, fields)
    }

    /// [`c`](Self::c) of a type that is known as `owner`, its whole path: two types may have the same
    /// name and the same fields, and their layouts are two, which [agree](Self::agrees_with).
    ///
    /// # Errors
    ///
    /// See [`LayoutError`]: it names the field.
    pub fn c_of(
        owner: &str,
        name: &str,
        fields: &[(&str, ElementType)],
    ) -> Result<&'static Self, LayoutError> {
        let record = || name.to_owned();
        if fields.is_empty() {
            return Err(LayoutError::Empty { record: record() });
        }
        let (mut end, mut align_bytes) = (0_usize, 1);
        let mut laid_out: Vec<(String, ElementType, usize, usize)> = Vec::new();
        for &(field, element) in fields {
            let of = || (record(), field.to_owned());
            if !is_c_name(field) {
                let (record, field) = of();
                return Err(LayoutError::Name { record, field });
            }
            if laid_out.iter().any(|(other, ..)| other == field) {
                let (record, field) = of();
                return Err(LayoutError::Twice { record, field });
            }
            let align = element.align_bytes();
            let bytes = element.bytes().filter(|bytes| end + align + bytes <= BYTES_MAX);
            let Some(bytes) = bytes else {
                let (record, field) = of();
                return Err(LayoutError::TooLarge { record, field });
            };
            if bytes == 0 {
                let (record, field) = of();
                return Err(LayoutError::EmptyArray { record, field });
            }
            let offset = end.next_multiple_of(align);
            laid_out.push((field.to_owned(), element, offset, bytes));
            end = offset + bytes;
            align_bytes = align_bytes.max(align);
        }
        let bytes = end.next_multiple_of(align_bytes);

        let mut layouts = lock(&LAYOUTS);
        let same = |(of, known): &&(String, &'static Self)| {
            of == owner
                && known.name == name
                && known.fields.len() == laid_out.len()
                && known.fields.iter().zip(&laid_out).all(|(known, (field, element, ..))| {
                    known.name == field && known.element == *element
                })
        };
        if let Some((_, known)) = layouts.iter().find(same) {
            return Ok(known);
        }
        let fields: Vec<RecordField> = laid_out
            .into_iter()
            .map(|(field, element, offset, bytes)| RecordField {
                name: field.leak(),
                element,
                offset,
                bytes,
            })
            .collect();
        let layout: &'static Self = Box::leak(Box::new(Self {
            name: name.to_owned().leak(),
            bytes,
            align_bytes,
            fields: fields.leak(),
        }));
        layouts.push((owner.to_owned(), layout));
        Ok(layout)
    }

    /// Whether records of the two layouts have the same bytes: the same size and alignment, and
    /// the same fields at the same places. Fields whose names begin with `_` are padding.
    ///
    /// So a derived record, which fills its gaps with fields, agrees with the struct of C that
    /// leaves them open.
    pub fn agrees_with(&self, other: &Self) -> bool {
        if std::ptr::eq(self, other) {
            return true;
        }
        let fields = |layout: &Self| {
            let fields = layout.fields.iter().filter(|field| !field.name.starts_with('_'));
            fields.copied().collect::<Vec<_>>()
        };
        let (ours, theirs) = (fields(self), fields(other));
        self.bytes == other.bytes
            && self.align_bytes == other.align_bytes
            && ours.len() == theirs.len()
            && ours.iter().zip(&theirs).all(|(a, b)| {
                a.name == b.name && a.offset == b.offset && a.element.agrees_with(&b.element)
            })
    }

    /// The same as a struct of C, C++ and CUDA, with assertions of its size and of every offset:
    /// to be compiled after `dotcompute_abi.h`. Records inside come first, each once.
    pub fn c_struct(&self) -> String {
        let mut text = String::new();
        self.write_c(&mut text, &mut Vec::new());
        text
    }

    fn write_c(&self, text: &mut String, written: &mut Vec<String>) {
        let name = self.c_name();
        if written.contains(&name) {
            return;
        }
        written.push(name.clone());
        for field in self.fields {
            let mut element = &field.element;
            while let ElementType::Array { element: inner, .. } = element {
                element = inner;
            }
            if let ElementType::Record(layout) = element {
                layout.write_c(text, written);
            }
        }
        let mut line = |line: std::fmt::Arguments<'_>| {
            text.write_fmt(line).expect("a String takes all that is written");
            text.push('\n');
        };
        line(format_args!("typedef struct {name} {{"));
        for field in self.fields {
            let mut dimensions = String::new();
            let mut element = &field.element;
            while let ElementType::Array { element: inner, length } = element {
                dimensions.push_str(&format!("[{length}]"));
                element = inner;
            }
            line(format_args!("    {} {}{dimensions};", element.c_name(), c_word(field.name)));
        }
        line(format_args!("}} {name};"));
        line(format_args!("DC_ASSERT(sizeof({name}) == {}, \"{name}\");", self.bytes));
        for RecordField { name: field, offset, .. } in self.fields {
            let field = c_word(field);
            line(format_args!(
                "DC_ASSERT(DC_OFFSET({name}, {field}) == {offset}, \"{name}.{field}\");"
            ));
        }
    }

    /// Its name in C.
    pub fn c_name(&self) -> String {
        let letter = |letter: char| if letter.is_ascii_alphanumeric() { letter } else { '_' };
        c_word(&self.name.chars().map(letter).collect::<String>())
    }
}

impl ElementType {
    fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Record(ours), Self::Record(theirs)) => ours.agrees_with(theirs),
            (
                Self::Array { element: ours, length },
                Self::Array { element: theirs, length: other },
            ) => length == other && ours.agrees_with(theirs),
            (ours, theirs) => ours == theirs,
        }
    }
}

fn is_c_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic())
        && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
}

/// `name`, or what stands for it where it is a word of C.
fn c_word(name: &str) -> String {
    match C_WORDS.contains(&name) {
        true => format!("{name}_"),
        false => name.to_owned(),
    }
}
