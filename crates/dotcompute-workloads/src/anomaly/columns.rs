//! Which column is which.

/// The names that the caller gave to the columns; those left `None` are found by their usual names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColumnNames {
    /// The column that says whose reading it is.
    pub key: Option<String>,
    /// The column that says when it was taken.
    pub time: Option<String>,
    /// The column with the measurement.
    pub value: Option<String>,
}

/// Where the three columns lie in the header.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    pub(crate) key: Option<usize>,
    pub(crate) time: Option<usize>,
    pub(crate) value: usize,
}

/// The header does not say which column is which.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ColumnError {
    /// A column that the caller named is not there.
    #[error("no column {name:?}; {} has: {}", place(*line), header.join(", "))]
    Absent {
        /// The name asked for.
        name: String,
        /// Line of the header; 0 is that of a table.
        line: u64,
        /// The names that are there.
        header: Vec<String>,
    },
    /// No column has a usual name for the value, and more or fewer than one is left over.
    #[error("which column is the value? {} has: {}", place(*line), header.join(", "))]
    NoValue {
        /// Line of the header; 0 is that of a table.
        line: u64,
        /// The names that are there.
        header: Vec<String>,
    },
    /// The header is longer than [`MAX_LINE_BYTES`](super::MAX_LINE_BYTES), not UTF-8, or ends in an
    /// open quote.
    #[error("the header (line {line}) cannot be read: {reason}")]
    Unreadable {
        /// Line of the header.
        line: u64,
        /// Why.
        reason: super::Reason,
    },
    /// A column of a table is of another type.
    #[error("column {name:?} is {kind}: {wanted} are expected")]
    WrongType {
        /// The column.
        name: String,
        /// What it is.
        kind: String,
        /// What it has to be.
        wanted: &'static str,
    },
}

fn place(line: u64) -> String {
    if line == 0 { "the table".into() } else { format!("the header (line {line})") }
}

const KEYS: &[&str] = &["key", "id", "sensor", "station", "device", "series", "name", "host"];
const TIMES: &[&str] = &["time", "timestamp", "ts", "date", "datetime"];
const VALUES: &[&str] = &["value", "reading", "measurement"];

impl ColumnNames {
    /// Finds the columns in `header`.
    ///
    /// A name given by the caller is looked up as it is, then without regard to case. The others
    /// are, without regard to case, the first that is there of: key, id, sensor, station, device,
    /// series, name, host; time, timestamp, ts, date, datetime; value, reading, measurement. If
    /// no such value is there, exactly one column is left over and it is the value. Without
    /// a key column all readings are one stream; the time column may be absent too.
    pub(crate) fn find(&self, line: u64, header: &[String]) -> Result<Columns, ColumnError> {
        let given = |name: &Option<String>| match name {
            None => Ok(None),
            Some(name) => header
                .iter()
                .position(|h| h == name)
                .or_else(|| header.iter().position(|h| h.eq_ignore_ascii_case(name)))
                .map(Some)
                .ok_or_else(|| ColumnError::Absent {
                    name: name.clone(),
                    line,
                    header: header.to_vec(),
                }),
        };
        let (mut key, mut time, mut value) =
            (given(&self.key)?, given(&self.time)?, given(&self.value)?);
        for (column, usual) in [(&mut value, VALUES), (&mut key, KEYS), (&mut time, TIMES)] {
            if column.is_none() {
                *column = usual
                    .iter()
                    .find_map(|name| header.iter().position(|h| h.eq_ignore_ascii_case(name)));
            }
        }
        let value = value.or_else(|| {
            let mut left = (0..header.len()).filter(|i| Some(*i) != key && Some(*i) != time);
            left.next().filter(|_| left.next().is_none())
        });
        let value = value.ok_or_else(|| ColumnError::NoValue { line, header: header.to_vec() })?;
        Ok(Columns { key: key.filter(|k| *k != value), time: time.filter(|t| *t != value), value })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn find(
        names: ColumnNames,
        header: &str,
    ) -> Result<(Option<usize>, Option<usize>, usize), ColumnError> {
        let header: Vec<String> = header.split(',').map(String::from).collect();
        names.find(1, &header).map(|c| (c.key, c.time, c.value))
    }

    fn some(text: &str) -> Option<String> {
        Some(text.into())
    }

    #[test]
    fn usual_names_are_found_in_any_case_and_order() {
        let auto = ColumnNames::default();
        assert_eq!(find(auto.clone(), "Timestamp,ID,Value"), Ok((Some(1), Some(0), 2)));
        assert_eq!(find(auto.clone(), "station,time,wind_knots"), Ok((Some(0), Some(1), 2)));
        assert_eq!(find(auto.clone(), "celsius"), Ok((None, None, 0)));
        assert_eq!(find(auto.clone(), "a,b,VALUE,c"), Ok((None, None, 2)));
        assert!(matches!(find(auto.clone(), "a,b"), Err(ColumnError::NoValue { .. })));
        assert!(matches!(find(auto, "key,time"), Err(ColumnError::NoValue { .. })));
    }

    #[test]
    fn given_names_win() {
        let names = ColumnNames { key: some("b"), time: None, value: some("TIME") };
        assert_eq!(find(names, "time,b,value"), Ok((Some(1), None, 0)));
        let names = ColumnNames { value: some("speed"), ..ColumnNames::default() };
        assert!(matches!(find(names, "a,b"), Err(ColumnError::Absent { .. })));
        let names = ColumnNames { value: some("a"), ..ColumnNames::default() };
        assert_eq!(find(names, "A,a"), Ok((None, None, 1)), "exact before any case");
    }
}
