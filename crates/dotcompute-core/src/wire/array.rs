//! Arrays of numbers, as numpy's.

use std::borrow::Cow;
use std::fmt;

use bytemuck::{AnyBitPattern, NoUninit};

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::error::{DecodeError, DecodeErrorKind};
use super::{WireField, keys};

/// The most dimensions that an array can have: as numpy 2.
const MAX_DIMENSIONS: usize = 64;

/// An array of numbers of any number of dimensions, in C order and the byte order of this machine:
/// numpy's `ndarray` on the wire.
///
/// ```
/// use dotcompute_core::wire::Array;
///
/// let matrix = Array::new(&[2, 3], &[1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0])?;
/// assert_eq!(matrix.dtype(), "float32");
/// assert_eq!(matrix.view::<f32>()?[3], 4.0);
///
/// let error = matrix.view::<f64>().unwrap_err();
/// assert_eq!(error.to_string(), "the array holds `float32`, not `float64`");
/// # Ok::<(), dotcompute_core::wire::ArrayError>(())
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Array {
    dtype: Cow<'static, str>,
    shape: Vec<usize>,
    /// Words, so that every element type is aligned in them.
    words: Vec<u64>,
    bytes: usize,
}

/// A number that an [`Array`] can hold.
///
/// ```
/// use dotcompute_core::wire::Element;
/// assert_eq!(<i16 as Element>::DTYPE, "int16");
/// ```
pub trait Element: AnyBitPattern + NoUninit + private::Sealed {
    /// Its name in numpy.
    const DTYPE: &'static str;
}

mod private {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($type:ident $dtype:literal;)*) => {$(
        impl private::Sealed for $type {}
        impl Element for $type {
            const DTYPE: &'static str = $dtype;
        }
    )*};
}

elements! {
    u8 "uint8"; u16 "uint16"; u32 "uint32"; u64 "uint64";
    i8 "int8"; i16 "int16"; i32 "int32"; i64 "int64";
    f32 "float32"; f64 "float64";
}

/// Type, shape and bytes of an array do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ArrayError {
    /// The array holds another type than the one asked for.
    #[error("the array holds `{found}`, not `{expected}`")]
    Type {
        /// The type asked for.
        expected: &'static str,
        /// The type that it holds.
        found: String,
    },
    /// The shape has another number of elements than there are.
    #[error("{bytes} bytes are not an array of `{dtype}` with shape {shape:?}")]
    Shape {
        /// The type of the elements.
        dtype: String,
        /// The lengths of the dimensions.
        shape: Vec<usize>,
        /// How many bytes there are.
        bytes: usize,
    },
    /// More dimensions than numpy knows.
    #[error("{found} dimensions: an array has {MAX_DIMENSIONS} at most")]
    Dimensions {
        /// How many.
        found: usize,
    },
}

impl Array {
    /// An array of this shape with these elements in C order (the last dimension varies fastest).
    ///
    /// # Errors
    ///
    /// The shape has another number of elements.
    pub fn new<T: Element>(shape: &[usize], elements: &[T]) -> Result<Self, ArrayError> {
        Self::from_bytes(T::DTYPE, shape.to_vec(), bytemuck::cast_slice(elements))
    }

    /// An array of any type that numpy knows, with the bytes of its elements in C order.
    ///
    /// # Errors
    ///
    /// The number of bytes does not fit the shape and the type. (Of a type that is not known here,
    /// such as a structured one, it must be a multiple of the number of elements.)
    ///
    /// ```
    /// use dotcompute_core::wire::Array;
    /// let mask = Array::from_bytes("bool", vec![3], &[1, 0, 1])?;
    /// assert_eq!(mask.bytes(), [1, 0, 1]);
    /// assert!(Array::from_bytes("float64", vec![3], &[0; 16]).is_err());
    /// # Ok::<(), dotcompute_core::wire::ArrayError>(())
    /// ```
    pub fn from_bytes(
        dtype: impl Into<Cow<'static, str>>,
        shape: Vec<usize>,
        bytes: &[u8],
    ) -> Result<Self, ArrayError> {
        let dtype = dtype.into();
        if shape.len() > MAX_DIMENSIONS {
            return Err(ArrayError::Dimensions { found: shape.len() });
        }
        // With a length of 0 in it a shape is empty, however large the others are.
        let elements = if shape.contains(&0) {
            Some(0)
        } else {
            shape.iter().try_fold(1usize, |product, &length| product.checked_mul(length))
        };
        let fits = elements.is_some_and(|elements| match element_bytes(&dtype) {
            Some(each) => elements.checked_mul(each) == Some(bytes.len()),
            None => bytes.len().checked_rem(elements).unwrap_or(bytes.len()) == 0,
        });
        if !fits {
            return Err(ArrayError::Shape { dtype: dtype.into(), shape, bytes: bytes.len() });
        }
        Ok(Self::pack(dtype, shape, bytes))
    }

    fn pack(dtype: Cow<'static, str>, shape: Vec<usize>, bytes: &[u8]) -> Self {
        let mut words = vec![0u64; bytes.len().div_ceil(size_of::<u64>())];
        bytemuck::cast_slice_mut(&mut words)[..bytes.len()].copy_from_slice(bytes);
        Self { dtype, shape, words, bytes: bytes.len() }
    }

    /// The type of its elements, by its name in numpy: `float32`.
    pub fn dtype(&self) -> &str {
        &self.dtype
    }

    /// The length of each dimension, in elements. Empty for a single number.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The bytes of its elements, in C order.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.bytes]
    }

    /// Its elements, in C order.
    ///
    /// # Errors
    ///
    /// It holds elements of another type.
    pub fn view<T: Element>(&self) -> Result<&[T], ArrayError> {
        self.check_type::<T>()?;
        Ok(bytemuck::cast_slice(self.bytes()))
    }

    /// Its elements, in C order, to be changed.
    ///
    /// # Errors
    ///
    /// It holds elements of another type.
    ///
    /// ```
    /// use dotcompute_core::wire::Array;
    /// let mut array = Array::from(&[1i32, 2, 3][..]);
    /// array.view_mut::<i32>()?[0] = 10;
    /// assert_eq!(array.view::<i32>()?, [10, 2, 3]);
    /// # Ok::<(), dotcompute_core::wire::ArrayError>(())
    /// ```
    pub fn view_mut<T: Element>(&mut self) -> Result<&mut [T], ArrayError> {
        self.check_type::<T>()?;
        let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut self.words);
        Ok(bytemuck::cast_slice_mut(&mut bytes[..self.bytes]))
    }

    fn check_type<T: Element>(&self) -> Result<(), ArrayError> {
        if self.dtype == T::DTYPE {
            return Ok(());
        }
        Err(ArrayError::Type { expected: T::DTYPE, found: self.dtype.clone().into_owned() })
    }
}

/// An array of one dimension.
impl<T: Element> From<&[T]> for Array {
    fn from(elements: &[T]) -> Self {
        Self::pack(T::DTYPE.into(), vec![elements.len()], bytemuck::cast_slice(elements))
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Array")
            .field("dtype", &self.dtype)
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

/// The size of an element of a numpy type; none if the type is not known here.
fn element_bytes(dtype: &str) -> Option<usize> {
    Some(match dtype {
        "bool" | "int8" | "uint8" => 1,
        "int16" | "uint16" | "float16" => 2,
        "int32" | "uint32" | "float32" => 4,
        "int64" | "uint64" | "float64" | "complex64" => 8,
        "complex128" => 16,
        _ => {
            // The other way that numpy writes types: byte order, kind, size. `>f4`, `<U10`.
            let (kind, size) = dtype.strip_prefix(['<', '>', '|', '='])?.split_at_checked(1)?;
            let size: usize = size.parse().ok()?;
            match kind {
                "b" | "i" | "u" | "f" | "c" | "S" | "V" => size,
                "U" => size.checked_mul(4)?,
                _ => return None,
            }
        }
    })
}

impl WireField for Array {
    fn encode(&self, encoder: &mut Encoder<'_>) {
        encoder.map(3, |encoder| {
            encoder.str(keys::ARRAY_BYTES);
            encoder.bytes(self.bytes());
            encoder.str(keys::ARRAY_DTYPE);
            encoder.str(&self.dtype);
            encoder.field(keys::ARRAY_SHAPE, &self.shape);
        });
    }

    fn decode(decoder: &mut Decoder<'_>) -> Result<Self, DecodeError> {
        let at = decoder.offset();
        decoder.map(|decoder, length| {
            let (mut bytes, mut dtype, mut shape) = (None, None, None);
            for _ in 0..length {
                match decoder.str()? {
                    keys::ARRAY_BYTES | keys::ARRAY_FALLBACK_BYTES => {
                        bytes = Some(decoder.bytes()?);
                    }
                    keys::ARRAY_DTYPE => dtype = Some(decoder.str()?),
                    keys::ARRAY_SHAPE => shape = Some(Vec::decode(decoder)?),
                    keys::ARRAY_REFERENCE => {
                        return Err(DecodeError::new(at, DecodeErrorKind::ArrayReference));
                    }
                    _ => decoder.skip()?,
                }
            }
            let (Some(bytes), Some(dtype), Some(shape)) = (bytes, dtype, shape) else {
                return Err(decoder.invalid(at, "a map with `__ndarray__`, `dtype` and `shape`"));
            };
            decoder.claim_memory::<u8>(bytes.len())?;
            Array::from_bytes(owned(dtype), shape, bytes)
                .map_err(|error| DecodeError::new(at, error.into()))
        })
    }

    fn heap_bytes(&self) -> usize {
        self.bytes
    }
}

/// The name, without memory of its own if it is one of the usual types.
fn owned(dtype: &str) -> Cow<'static, str> {
    macro_rules! known {
        ($($type:ident)*) => {
            match dtype {
                $(<$type as Element>::DTYPE => Cow::Borrowed(<$type as Element>::DTYPE),)*
                other => Cow::Owned(other.to_owned()),
            }
        };
    }
    known!(u8 u16 u32 u64 i8 i16 i32 i64 f32 f64)
}
