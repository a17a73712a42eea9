//! Lines of two numbers: edge lists and Matrix Market.

use std::io::{BufRead, BufReader, Read};
use std::ops::ControlFlow;

use rayon::prelude::*;

use super::{Edges, Faults, Ids, Malformed, Nodes, Progress, ReadError, Reader, Reason, go_on};

/// What is read before it is parsed: enough for every core to have several pieces.
const BLOCK_BYTES: usize = 16 << 20;
const PIECE_BYTES: usize = 256 << 10;

/// What one piece of text holds.
struct Piece {
    edges: Ids,
    lines: u64,
    /// Line numbers within the piece, from 0.
    malformed: Vec<(u64, Reason)>,
}

impl Reader {
    /// Which numbers an edge list's nodes can have.
    fn list_rule(&self) -> impl Fn([u64; 2]) -> Result<[u64; 2], Reason> + Sync + use<> {
        let limit = self.nodes.map(u64::from);
        move |pair: [u64; 2]| match limit {
            Some(limit) if pair.iter().any(|id| *id >= limit) => Err(Reason::Beyond),
            _ => Ok(pair),
        }
    }

    /// As [`edge_list`](Self::edge_list), with the edges in the pieces in which they were parsed.
    pub(super) fn edge_list_in_pieces(
        &self,
        input: impl Read,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges<Vec<Vec<[u32; 2]>>>, ReadError> {
        let mut pieces = Vec::new();
        let (mut wide, mut found) = (None::<Ids>, 0);
        let mut take = |piece: Ids| {
            found += piece.len();
            match (piece, &mut wide) {
                (piece, Some(all)) => all.append(piece),
                (Ids::Narrow(pairs), None) => pieces.push(pairs),
                (piece, all) => {
                    let mut ids = Ids::new();
                    pieces.drain(..).for_each(|pairs| ids.append(Ids::Narrow(pairs)));
                    ids.append(piece);
                    *all = Some(ids);
                }
            }
            found
        };
        let faults = self.lines(input, 0, &self.list_rule(), &mut take, watch)?;
        let nodes = match (wide, self.nodes) {
            (Some(ids), _) => {
                let (pairs, nodes) = ids.number()?;
                pieces.push(pairs);
                nodes
            }
            (None, Some(nodes)) => Nodes::Range(nodes),
            (None, None) => super::ids::number_narrow(&mut pieces),
        };
        Ok(Edges::new(pieces, nodes, faults))
    }

    pub(super) fn edge_list(
        &self,
        input: impl Read,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges, ReadError> {
        let mut edges = Ids::new();
        let faults = self.lines(input, 0, &self.list_rule(), &mut into(&mut edges), watch)?;
        match (edges, self.nodes) {
            // Below a limit of 32 bits nothing is wide.
            (Ids::Narrow(pairs), Some(nodes)) => Ok(Edges::new(pairs, Nodes::Range(nodes), faults)),
            (edges, _) => {
                let (pairs, nodes) = edges.number()?;
                Ok(Edges::new(pairs, nodes, faults))
            }
        }
    }

    pub(super) fn matrix_market(
        &self,
        input: impl Read,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges, ReadError> {
        let mut input = BufReader::with_capacity(1 << 16, input);
        let header = Header::read(&mut input)?;
        let nodes = u64::from(header.nodes);
        let rule = move |[row, column]: [u64; 2]| match () {
            () if row == 0 || column == 0 => Err(Reason::Zero),
            () if row > nodes || column > nodes => Err(Reason::Beyond),
            () => Ok([row - 1, column - 1]),
        };
        let mut edges = Ids::new();
        let faults = self.lines(input, header.lines, &rule, &mut into(&mut edges), watch)?;
        let found = (edges.len() + faults.count) as u64;
        if found != header.entries {
            return Err(ReadError::Entries { promised: header.entries, found });
        }
        let Ids::Narrow(mut pairs) = edges else { return Err(ReadError::TooManyNodes) };
        if header.symmetric {
            let entries = pairs.len();
            // An entry on the diagonal is its own mirror image.
            let mirrored = |index: usize| Some(pairs[index]).filter(|[row, column]| row != column);
            let mirror: Vec<_> =
                (0..entries).filter_map(mirrored).map(|[row, column]| [column, row]).collect();
            pairs.extend(mirror);
        }
        Ok(Edges::new(pairs, Nodes::Range(header.nodes), faults))
    }

    /// Parses the lines of `input`, and gives `take` the edges, piece after piece, which says how many it
    /// has; `rule` says which numbers are nodes.
    fn lines(
        &self,
        mut input: impl Read,
        lines_before: u64,
        rule: &(dyn Fn([u64; 2]) -> Result<[u64; 2], Reason> + Sync),
        take: &mut dyn FnMut(Ids) -> usize,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Faults, ReadError> {
        let (mut faults, mut edges) = (Faults::default(), 0);
        let (mut block, mut bytes, mut line) = (Vec::new(), 0, lines_before);
        loop {
            let kept = block.len();
            let room = BLOCK_BYTES.saturating_sub(kept).max(PIECE_BYTES) as u64;
            let read = input.by_ref().take(room).read_to_end(&mut block)?;
            bytes += read as u64;
            let whole = match block.iter().rposition(|byte| *byte == b'\n') {
                _ if read == 0 => block.len(),
                Some(end) => end + 1,
                // One line longer than a block: read on.
                None => continue,
            };
            let pieces: Vec<Piece> =
                cut(&block[..whole]).into_par_iter().map(|piece| parse(piece, rule)).collect();
            for piece in pieces {
                for (offset, reason) in piece.malformed {
                    self.malformed(&mut faults, Malformed { line: line + offset + 1, reason })?;
                }
                line += piece.lines;
                edges = take(piece.edges);
            }
            go_on(watch(Progress { bytes, edges }))?;
            if read == 0 {
                return Ok(faults);
            }
            block.drain(..whole);
        }
    }
}

/// Appends what is read.
fn into(edges: &mut Ids) -> impl FnMut(Ids) -> usize {
    |piece| {
        edges.append(piece);
        edges.len()
    }
}

/// Cuts text into pieces that end with a line.
fn cut(mut text: &[u8]) -> Vec<&[u8]> {
    let mut pieces = Vec::new();
    while text.len() > PIECE_BYTES {
        let end = memchr::memchr(b'\n', &text[PIECE_BYTES..])
            .map_or(text.len(), |offset| PIECE_BYTES + offset + 1);
        let (piece, rest) = text.split_at(end);
        pieces.push(piece);
        text = rest;
    }
    pieces.push(text);
    pieces
}

fn parse(text: &[u8], rule: &(dyn Fn([u64; 2]) -> Result<[u64; 2], Reason> + Sync)) -> Piece {
    let mut piece = Piece { edges: Ids::new(), lines: 0, malformed: Vec::new() };
    let mut rest = text;
    while !rest.is_empty() {
        let (line, after) = match memchr::memchr(b'\n', rest) {
            Some(end) => (&rest[..end], &rest[end + 1..]),
            None => (rest, &rest[rest.len()..]),
        };
        rest = after;
        match pair(line).and_then(|pair| pair.map(rule).transpose()) {
            Ok(Some(pair)) => piece.edges.push(pair),
            Ok(None) => {}
            Err(reason) => piece.malformed.push((piece.lines, reason)),
        }
        piece.lines += 1;
    }
    piece
}

/// The two numbers that a line begins with; `None` if it is empty or a comment.
fn pair(line: &[u8]) -> Result<Option<[u64; 2]>, Reason> {
    let line = line.trim_ascii_start();
    match line.first() {
        None | Some(b'#' | b'%') => return Ok(None),
        _ => {}
    }
    let (source, rest) = number(line)?;
    let (target, rest) = number(rest.trim_ascii_start())?;
    match rest.first() {
        None => Ok(Some([source, target])),
        Some(byte) if byte.is_ascii_whitespace() => Ok(Some([source, target])),
        Some(_) => Err(Reason::NoNumbers),
    }
}

/// The number that some text begins with, and what follows it.
fn number(text: &[u8]) -> Result<(u64, &[u8]), Reason> {
    let digits = text.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (own, rest) = text.split_at(digits);
    if digits == 0 {
        return Err(Reason::NoNumbers);
    }
    let digit = |byte: &u8| u64::from(byte - b'0');
    // 19 digits cannot overflow; that there are more is rare, and then each step is checked.
    let value = if digits < 20 {
        own.iter().fold(0, |value, byte| value * 10 + digit(byte))
    } else {
        own.iter()
            .try_fold(0_u64, |value, byte| value.checked_mul(10)?.checked_add(digit(byte)))
            .ok_or(Reason::TooLarge)?
    };
    Ok((value, rest))
}

/// What a Matrix Market file says before its entries.
struct Header {
    nodes: u32,
    entries: u64,
    symmetric: bool,
    lines: u64,
}

impl Header {
    fn read(input: &mut impl BufRead) -> Result<Self, ReadError> {
        // A header line is short; a file that is none of these must not be read whole for it.
        let mut line = |lines: &mut u64| -> Result<String, ReadError> {
            let mut text = Vec::new();
            input.by_ref().take(1 << 16).read_until(b'\n', &mut text)?;
            *lines += 1;
            String::from_utf8(text).map_err(|_| ReadError::Header("it is not text"))
        };
        let mut lines = 0;
        let banner = line(&mut lines)?.to_ascii_lowercase();
        let words: Vec<&str> = banner.split_whitespace().collect();
        let ["%%matrixmarket", "matrix", form, field, symmetry] = words[..] else {
            return Err(ReadError::Header("%%MatrixMarket matrix coordinate ... is expected"));
        };
        if form != "coordinate" {
            return Err(ReadError::Header("only coordinate matrices are graphs, not arrays"));
        }
        if !matches!(field, "pattern" | "real" | "integer" | "double") {
            return Err(ReadError::Header("the field has to be pattern, integer or real"));
        }
        let symmetric = match symmetry {
            "general" => false,
            "symmetric" | "skew-symmetric" => true,
            _ => return Err(ReadError::Header("the symmetry has to be general or symmetric")),
        };
        let sizes = loop {
            let text = line(&mut lines)?;
            if text.is_empty() {
                return Err(ReadError::Header("the line of sizes is missing"));
            }
            if !text.starts_with('%') && !text.trim().is_empty() {
                break text;
            }
        };
        let sizes: Vec<u64> =
            sizes.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        let [rows, columns, entries] = sizes[..] else {
            return Err(ReadError::Header("rows, columns and entries are expected"));
        };
        if rows != columns {
            return Err(ReadError::Header("a graph's matrix is square"));
        }
        let nodes = u32::try_from(rows).map_err(|_| ReadError::TooManyNodes)?;
        Ok(Self { nodes, entries, symmetric, lines })
    }
}
