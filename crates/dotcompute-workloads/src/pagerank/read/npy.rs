//! NumPy's file of one array: whole numbers, of shape (edges, 2).

use std::io::{BufReader, Read};
use std::ops::ControlFlow;

use super::{Edges, Faults, Ids, Malformed, Nodes, Progress, ReadError, Reader, Reason, go_on};

/// Edges between two calls of whoever watches.
const WATCHED: usize = 1 << 20;
/// The longest header that is looked at; NumPy's own are a few hundred bytes.
const HEADER_BYTES_MAX: usize = 1 << 16;

/// How a number is written.
#[derive(Clone, Copy)]
struct Number {
    bytes: usize,
    signed: bool,
    big_endian: bool,
}

impl Reader {
    /// Rows count from 1, as lines do.
    pub(super) fn npy(
        &self,
        input: impl Read,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges, ReadError> {
        let mut input = BufReader::with_capacity(1 << 18, input);
        let (number, rows) = header(&mut input)?;
        let limit = self.nodes.map(u64::from);
        let (mut edges, mut faults) = (Ids::new(), Faults::default());
        let mut row = [0; 16];
        let row = &mut row[..2 * number.bytes];
        for line in 1..=rows {
            if let Err(error) = input.read_exact(row) {
                return match error.kind() {
                    std::io::ErrorKind::UnexpectedEof => {
                        Err(ReadError::Entries { promised: rows, found: line - 1 })
                    }
                    _ => Err(error.into()),
                };
            }
            let (source, target) = row.split_at(number.bytes);
            let pair = number.read(source).and_then(|source| Ok([source, number.read(target)?]));
            match pair {
                Ok(pair) if limit.is_some_and(|limit| pair.iter().any(|id| *id >= limit)) => {
                    self.malformed(&mut faults, Malformed { line, reason: Reason::Beyond })?;
                }
                Ok(pair) => edges.push(pair),
                Err(reason) => self.malformed(&mut faults, Malformed { line, reason })?,
            }
            if (line as usize).is_multiple_of(WATCHED) {
                let bytes = line * 2 * number.bytes as u64;
                go_on(watch(Progress { bytes, edges: edges.len() }))?;
            }
        }
        let bytes = rows * 2 * number.bytes as u64;
        go_on(watch(Progress { bytes, edges: edges.len() }))?;
        match (edges, self.nodes) {
            (Ids::Narrow(pairs), Some(nodes)) => Ok(Edges::new(pairs, Nodes::Range(nodes), faults)),
            (edges, _) => {
                let (pairs, nodes) = edges.number()?;
                Ok(Edges::new(pairs, nodes, faults))
            }
        }
    }
}

impl Number {
    fn read(self, bytes: &[u8]) -> Result<u64, Reason> {
        let mut wide = [0; 8];
        wide[..bytes.len()].copy_from_slice(bytes);
        if self.big_endian {
            wide[..bytes.len()].reverse();
        }
        let value = u64::from_le_bytes(wide);
        let sign = 1_u64 << (8 * bytes.len() - 1);
        if self.signed && value & sign != 0 { Err(Reason::Negative) } else { Ok(value) }
    }
}

/// What the numbers are, and how many pairs there are.
fn header(input: &mut impl Read) -> Result<(Number, u64), ReadError> {
    let refused = |why| Err(ReadError::Header(why));
    let mut start = [0; 10];
    let short = |_| ReadError::Header("it is no file of NumPy");
    input.read_exact(&mut start).map_err(short)?;
    let length = match start {
        [0x93, b'N', b'U', b'M', b'P', b'Y', 1, _, low, high] => {
            usize::from(u16::from_le_bytes([low, high]))
        }
        [0x93, b'N', b'U', b'M', b'P', b'Y', 2 | 3, _, a, b] => {
            let mut rest = [0; 2];
            input.read_exact(&mut rest).map_err(short)?;
            u32::from_le_bytes([a, b, rest[0], rest[1]]) as usize
        }
        _ => return refused("it is no file of NumPy"),
    };
    if length > HEADER_BYTES_MAX {
        return refused("it is too long");
    }
    let mut text = vec![0; length];
    input.read_exact(&mut text).map_err(short)?;
    // `{'descr': '<i8', 'fortran_order': False, 'shape': (5, 2), }`, in any order.
    let text: String =
        String::from_utf8_lossy(&text).chars().filter(|letter| !letter.is_whitespace()).collect();
    let after = |key: &str| text.split_once(key).map(|(_, rest)| rest);
    let kind = after("'descr':'").and_then(|rest| rest.split('\'').next()).unwrap_or_default();
    let number = match kind.as_bytes() {
        [
            order @ (b'<' | b'>' | b'|'),
            sign @ (b'i' | b'u'),
            size @ (b'1' | b'2' | b'4' | b'8'),
        ] => Number {
            bytes: usize::from(size - b'0'),
            signed: *sign == b'i',
            big_endian: *order == b'>',
        },
        _ => return refused("whole numbers of 1 to 8 bytes are expected"),
    };
    if !after("'fortran_order':").is_some_and(|rest| rest.starts_with("False")) {
        return refused("the array has to lie row by row (order='C')");
    }
    let shape = after("'shape':(").and_then(|rest| rest.split_once(')')).map(|(shape, _)| shape);
    let lengths: Vec<u64> =
        shape.unwrap_or_default().split(',').filter_map(|length| length.parse().ok()).collect();
    match lengths[..] {
        [rows, 2] => Ok((number, rows)),
        _ => refused("the shape has to be (edges, 2)"),
    }
}
