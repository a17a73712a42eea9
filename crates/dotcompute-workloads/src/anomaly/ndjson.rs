//! NDJSON: one object per line. `serde_json` finds and checks the tokens; the three that matter are
//! kept as the input wrote them.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::Batch;
use super::batch::{Reason, excerpt};
use super::parser::{Fault, Fields, InputError, ONLY_KEY, Sink};

#[derive(Debug, Default)]
pub(super) struct Ndjson {
    names: Option<Names>,
}

/// The names of the fields, decided by the first object.
#[derive(Debug)]
struct Names {
    key: Option<Arc<str>>,
    time: Option<Arc<str>>,
    value: Arc<str>,
}

impl Ndjson {
    /// Reads the next line, without its newline.
    pub(super) fn line(
        &mut self,
        line: &[u8],
        sink: &mut Sink,
        batch: &mut Batch,
    ) -> Result<(), InputError> {
        batch.tally.lines += 1;
        if line.trim_ascii().is_empty() {
            batch.tally.blank += 1;
            return Ok(());
        }
        let at = sink.line;
        if self.names.is_none() {
            match parse(line, FieldNames) {
                Ok(header) => {
                    let columns = sink.names.find(at, &header).inspect_err(|_| {
                        batch.tally.header += 1; // the line decided, and is no reading
                    })?;
                    let name = |i: usize| Arc::from(header[i].as_str());
                    self.names = Some(Names {
                        key: columns.key.map(name),
                        time: columns.time.map(name),
                        value: name(columns.value),
                    });
                }
                Err(error) => return sink.malformed(at, None, json(&error), batch),
            }
        }
        let Some(names) = &self.names else { return Ok(()) };
        let tokens = match parse(line, names) {
            Ok(tokens) => tokens,
            Err(error) => return sink.malformed(at, None, json(&error), batch),
        };
        let (name, reason) = match tokens.record(names, at, sink, batch) {
            Ok(()) => return Ok(()),
            Err(Fault::Key(reason)) => (names.key.as_ref(), reason),
            Err(Fault::Time(reason)) => (names.time.as_ref(), reason),
            Err(Fault::Value(reason)) => (Some(&names.value), reason),
        };
        sink.malformed(at, name.map(|name| (None, Arc::clone(name))), reason, batch)
    }
}

fn parse<'de, S: DeserializeSeed<'de>>(line: &'de [u8], seed: S) -> serde_json::Result<S::Value> {
    let mut json = serde_json::Deserializer::from_slice(line);
    let value = seed.deserialize(&mut json)?;
    json.end()?;
    Ok(value)
}

fn json(error: &serde_json::Error) -> Reason {
    // The line in the message is that of the one line given to it.
    Reason::Json(error.to_string().replace(" at line 1 column ", " at byte "))
}

/// The values of one object as they were written; of a repeated field the last.
#[derive(Default)]
struct Tokens<'de> {
    key: Option<&'de RawValue>,
    time: Option<&'de RawValue>,
    value: Option<&'de RawValue>,
}

impl Tokens<'_> {
    fn record(
        &self,
        names: &Names,
        line: u64,
        sink: &mut Sink,
        batch: &mut Batch,
    ) -> Result<(), Fault> {
        let key = names.key.as_ref().map(|_| text(self.key)).transpose().map_err(Fault::Key)?;
        let time = names.time.as_ref().map(|_| text(self.time)).transpose().map_err(Fault::Time)?;
        let value = text(self.value).map_err(Fault::Value)?;
        let fields = Fields {
            key: key.as_deref().map_or(ONLY_KEY, str::as_bytes),
            time: time.as_deref().unwrap_or_default().as_bytes(),
            value: value.as_bytes(),
        };
        sink.record(line, &fields, batch)
    }
}

/// The text of a token: a string's content, a number as it was written, nothing for `null`.
fn text(token: Option<&RawValue>) -> Result<Cow<'_, str>, Reason> {
    let token = token.ok_or(Reason::NoField)?.get();
    match token.as_bytes() {
        [b'"', inner @ .., b'"'] if !inner.contains(&b'\\') => {
            Ok(Cow::Borrowed(&token[1..token.len() - 1]))
        }
        [b'"', ..] => serde_json::from_str(token).map(Cow::Owned).map_err(|error| json(&error)),
        [b'-' | b'0'..=b'9', ..] => Ok(Cow::Borrowed(token)),
        b"null" => Ok(Cow::Borrowed("")),
        other => Err(Reason::WrongType { text: excerpt(other) }),
    }
}

/// A field's name; borrowed unless it has escapes.
#[derive(serde::Deserialize)]
struct Field<'a>(#[serde(borrow)] Cow<'a, str>);

impl<'de> DeserializeSeed<'de> for &Names {
    type Value = Tokens<'de>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Tokens<'de>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for &Names {
    type Value = Tokens<'de>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tokens<'de>, A::Error> {
        let mut tokens = Tokens::default();
        while let Some(Field(name)) = map.next_key()? {
            if name == *self.value {
                tokens.value = Some(map.next_value()?);
            } else if self.key.as_deref() == Some(&*name) {
                tokens.key = Some(map.next_value()?);
            } else if self.time.as_deref() == Some(&*name) {
                tokens.time = Some(map.next_value()?);
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(tokens)
    }
}

/// Reads only the names of an object's fields.
struct FieldNames;

impl<'de> DeserializeSeed<'de> for FieldNames {
    type Value = Vec<String>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Vec<String>, D::Error> {
        json.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for FieldNames {
    type Value = Vec<String>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vec<String>, A::Error> {
        let mut names = Vec::new();
        while let Some(name) = map.next_key()? {
            names.push(name);
            map.next_value::<IgnoredAny>()?;
        }
        Ok(names)
    }
}
