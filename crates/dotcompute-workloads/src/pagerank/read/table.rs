//! Tables of Parquet and Arrow.

use std::ops::ControlFlow;

use arrow_array::Array;

use super::named::{KNOWN, Names, number};
use super::{Edges, Faults, Ids, Malformed, Nodes, Progress, ReadError, Reader, Reason, go_on};
use crate::tables::{Cells, Column, Tables};

/// The edges so far.
enum Found {
    Numbers(Ids),
    Named(Vec<[u32; 2]>, Names),
}

impl Reader {
    /// Reads all edges of a table, whatever the format of this reader: of the columns that it names,
    /// or `source` and `target` and the like, as in CSV, or else of the first two. Whole numbers are
    /// nodes as in a list of edges, text as in CSV. A malformed row is told as a line is, by its number
    /// from 1.
    ///
    /// # Errors
    ///
    /// See [`ReadError`]; nothing of what was read is kept.
    ///
    /// # Examples
    ///
    /// ```no_run
    /// use std::fs::File;
    /// use std::ops::ControlFlow;
    /// use dotcompute_workloads::pagerank::read::{Format, Reader};
    /// use dotcompute_workloads::tables::Tables;
    ///
    /// let tables = Tables::open(File::open("edges.parquet")?)?;
    /// let reader = Reader::new(Format::EdgeList);
    /// let edges = reader.read_table(tables, &mut |_| ControlFlow::Continue(()))?;
    /// println!("{} edges", edges.pairs.len());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn read_table(
        &self,
        mut tables: Tables,
        watch: &mut dyn FnMut(Progress) -> ControlFlow<()>,
    ) -> Result<Edges, ReadError> {
        let ends = self.ends(tables.columns())?;
        let names = ends.map(|at| tables.columns()[at].clone());
        tables.want(ends);
        let limit = self.nodes.map(u64::from);
        let (mut found, mut faults) = (None, Faults::default());
        let (mut line, mut bytes) = (0, 0);
        while let Some(rows) = tables.next()? {
            // They were there when the table was opened.
            let arrays = names.each_ref().map(|name| rows.column_by_name(name));
            let wrong = |end: usize| ReadError::ColumnType {
                name: names[end].clone(),
                kind: arrays[end].map_or_else(String::new, |array| array.data_type().to_string()),
            };
            let column = |end: usize| {
                arrays[end].and_then(|array| Column::new(array.as_ref())).ok_or_else(|| wrong(end))
            };
            let columns = [column(0)?, column(1)?];
            for row in 0..rows.num_rows() {
                line += 1;
                let read = if columns.iter().any(|column| column.is_null(row)) {
                    Err(Reason::Null)
                } else {
                    match (&columns[0].cells, &columns[1].cells) {
                        (Cells::Whole(source), Cells::Whole(target)) => {
                            let Found::Numbers(edges) =
                                found.get_or_insert_with(|| Found::Numbers(Ids::new()))
                            else {
                                return Err(wrong(0));
                            };
                            node(source(row), limit)
                                .and_then(|source| Ok([source, node(target(row), limit)?]))
                                .map(|pair| edges.push(pair))
                        }
                        (Cells::Text(source), Cells::Text(target)) => {
                            let Found::Named(pairs, names) = found
                                .get_or_insert_with(|| Found::Named(Vec::new(), Names::default()))
                            else {
                                return Err(wrong(0));
                            };
                            let source = number(names, source(row))?;
                            pairs.push([source, number(names, target(row))?]);
                            Ok(())
                        }
                        (Cells::Whole(_) | Cells::Text(_), _) => return Err(wrong(1)),
                        _ => return Err(wrong(0)),
                    }
                };
                if let Err(reason) = read {
                    self.malformed(&mut faults, Malformed { line, reason })?;
                }
            }
            bytes += rows.get_array_memory_size() as u64;
            go_on(watch(Progress { bytes, edges: line as usize - faults.count }))?;
        }
        let (pairs, nodes) = match found {
            Some(Found::Named(pairs, names)) => (pairs, Nodes::Names(names.into_iter().collect())),
            Some(Found::Numbers(Ids::Narrow(pairs))) if self.nodes.is_some() => {
                (pairs, Nodes::Range(self.nodes.unwrap_or_default()))
            }
            Some(Found::Numbers(ids)) => ids.number()?,
            None => (Vec::new(), Nodes::Range(self.nodes.unwrap_or_default())),
        };
        Ok(Edges::new(pairs, nodes, faults))
    }

    /// Which columns hold the ends.
    fn ends(&self, columns: &[String]) -> Result<[usize; 2], ReadError> {
        let position =
            |name: &str| columns.iter().position(|column| column.eq_ignore_ascii_case(name));
        if let Some(ends) = &self.columns {
            let [source, target] = ends
                .each_ref()
                .map(|name| position(name).ok_or_else(|| ReadError::NoColumn(name.clone())));
            return Ok([source?, target?]);
        }
        let known =
            KNOWN.iter().find_map(|[source, target]| Some([position(source)?, position(target)?]));
        match known {
            Some(ends) => Ok(ends),
            None if columns.len() >= 2 => Ok([0, 1]),
            None => Err(ReadError::Header("a table of edges has two columns")),
        }
    }
}

/// A number as a node.
fn node(number: i128, limit: Option<u64>) -> Result<u64, Reason> {
    if number < 0 {
        return Err(Reason::Negative);
    }
    let node = u64::try_from(number).map_err(|_| Reason::TooLarge)?;
    if limit.is_some_and(|limit| node >= limit) { Err(Reason::Beyond) } else { Ok(node) }
}
