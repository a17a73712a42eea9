//! The keys of the wire format.
//!
//! Those in the first group are PyDotCompute's. Those in the second stand for values that it could
//! not write, so no reader of its own is led astray by them.

pub(super) const TYPE: &str = "__type__";
pub(super) const ID: &str = "message_id";
pub(super) const PRIORITY: &str = "priority";
pub(super) const CORRELATION_ID: &str = "correlation_id";
pub(super) const UUID_BYTES: &str = "__uuid_bin__";
pub(super) const UUID_TEXT: &str = "__uuid__";
pub(super) const ARRAY: &str = "__ndarray__";
pub(super) const ARRAY_DTYPE: &str = "dtype";
pub(super) const ARRAY_SHAPE: &str = "shape";
pub(super) const ARRAY_FALLBACK: &str = "__array_fallback__";
pub(super) const ARRAY_FALLBACK_BYTES: &str = "data";
pub(super) const ARRAY_REFERENCE: &str = "__array_ref__";
pub(super) const ARRAY_DEVICE: &str = "device";
pub(super) const ARRAY_REFERENCES: &str = "__array_refs__";
pub(super) const ARRAY_MESSAGE: &str = "__array_msg__";

/// Beside the type name if two classes share it: "module:qualified name".
pub(super) const QUALIFIED: &str = "__qualified__";
/// First in a message: which of its arrays, counted from its start, are tuples.
pub(super) const TUPLES: &str = "__tuples__";
/// Beside an array's: it is a numpy scalar.
pub(super) const SCALAR: &str = "scalar";
/// Beside a datetime's: the key of its time zone.
pub(super) const ZONE: &str = "zone";
/// The only key of a map: the map holds a value that MessagePack has no form for. A dict that has
/// one of these keys itself, or one of the above, is written as the pairs of `DICT`.
pub(super) const DICT: &str = "__dict__";
pub(super) const MESSAGE: &str = "__message__";
pub(super) const SET: &str = "__set__";
pub(super) const FROZENSET: &str = "__frozenset__";
pub(super) const COMPLEX: &str = "__complex__";
pub(super) const INTEGER: &str = "__int__";
pub(super) const DECIMAL: &str = "__decimal__";
pub(super) const DATETIME: &str = "__datetime__";
pub(super) const DATE: &str = "__date__";
pub(super) const TIME: &str = "__time__";
pub(super) const TIMEDELTA: &str = "__timedelta__";

/// Whether a dict with this key would be read back as something else.
pub(super) fn is_reserved(key: &str) -> bool {
    key.starts_with("__")
        && matches!(
            key,
            UUID_BYTES
                | UUID_TEXT
                | ARRAY
                | ARRAY_FALLBACK
                | ARRAY_REFERENCE
                | DICT
                | MESSAGE
                | SET
                | FROZENSET
                | COMPLEX
                | INTEGER
                | DECIMAL
                | DATETIME
                | DATE
                | TIME
                | TIMEDELTA
        )
}
