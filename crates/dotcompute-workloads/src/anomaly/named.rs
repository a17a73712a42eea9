//! The detector over keys that are names, as a compiled handler: as [`handler`], for
//! records that say `"oven"` where those say 17.
//!
//! A name is at most [`NAME_BYTES`] bytes long, and not empty; [`name`] refuses others, since two that
//! are cut alike would become one key. Names are found in a table in the kernel's state. It has room for
//! as many as the detector was made for: one more is a fault, which says so.
//!
//! ```
//! use dotcompute::{RecordBatch, Runtime};
//! use dotcompute_workloads::anomaly::Settings;
//! use dotcompute_workloads::anomaly::named::{Named, NamedAlarm, NamedEvent, name, text};
//!
//! let detector = Named::new(Settings::new(0.1, 4.0, 5)?, 1000)?;
//! let handler = detector.handler();
//! let state = handler.state_reader();
//! let runtime = Runtime::builder().build();
//! let kernel = runtime
//!     .kernel("detect")
//!     .executor("thread")
//!     .launch_compiled::<RecordBatch, RecordBatch>(handler)?;
//! kernel.activate()?;
//!
//! let oven = name("oven")?;
//! let values = [1.0, 2.0, 1.0, 2.0, 1.0, 90.0, 2.0];
//! let events = (0..).zip(values).map(|(sequence, value)| NamedEvent {
//!     name: oven,
//!     sequence,
//!     time: f64::NAN,
//!     value,
//! });
//! let reply = kernel.ask_blocking(RecordBatch::from_vec(events.collect()), None)?;
//! let alarms = reply.message.as_slice::<NamedAlarm>().unwrap();
//! assert_eq!((alarms.len(), alarms[0].value), (1, 90.0));
//! assert_eq!(text(&alarms[0].name), "oven");
//!
//! // The state of all names at once: kept, and gone on from.
//! let snapshot = state.bytes(std::time::Duration::from_secs(1)).unwrap();
//! assert_eq!(detector.names(&snapshot).unwrap(), [oven]);
//! let _gone_on = Named::restored(&snapshot, detector.settings(), 1000)?.handler();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use dotcompute::compiled::{Call, HandlerCode};
use dotcompute::record::{ElementType, LayoutError, RecordLayout};
use dotcompute::{BoxError, CompiledHandler, Message, Record};

use super::handler::{self, Counts, KeyedError, detect, misplaced};
use super::model::{self, Model, Settings, Verdict, Weights};
use super::{Anomaly, VALUE_LIMIT};

/// How many bytes of UTF-8 a name can have.
pub const NAME_BYTES: usize = 24;

/// The bytes of a name, four to a word with the first lowest, and zeros behind them.
pub type Name = [u32; NAME_BYTES / 4];

/// The fault code of a name for which there is no room.
pub const TABLE_FULL: i32 = -1;

/// The name with these bytes.
///
/// # Errors
///
/// If it is empty, too long, or has a zero, which would end it.
pub fn name(text: &str) -> Result<Name, NameError> {
    if text.is_empty() || text.len() > NAME_BYTES || text.contains('\0') {
        return Err(NameError { name: text.to_owned() });
    }
    let mut bytes = [0; NAME_BYTES];
    bytes[..text.len()].copy_from_slice(text.as_bytes());
    Ok(std::array::from_fn(|word| {
        u32::from_le_bytes(std::array::from_fn(|byte| bytes[4 * word + byte]))
    }))
}

/// The text of a name; what is no UTF-8 in it is replaced.
#[must_use]
pub fn text(name: &Name) -> String {
    let bytes: Vec<u8> = name.iter().flat_map(|word| word.to_le_bytes()).collect();
    let end = bytes.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// A text that cannot be the name of a key.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{name}' is no name of a key: it has {} bytes, and a name has 1 to {NAME_BYTES}, none of them zero",
    name.len()
)]
pub struct NameError {
    /// The text.
    pub name: String,
}

/// A reading of a name, as a record.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record)]
#[repr(C)]
pub struct NamedEvent {
    /// Whose it is: see [`name`]. Zeros alone are none, and the event is malformed.
    pub name: [u32; 6],
    /// Whatever tells its alarm apart from others.
    pub sequence: u64,
    /// When it was taken: see [`Event`](handler::Event).
    pub time: f64,
    /// The measurement.
    pub value: f64,
}

/// An unusual event of a name.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record)]
#[repr(C)]
pub struct NamedAlarm {
    /// That of the event.
    pub name: [u32; 6],
    /// That of the event.
    pub sequence: u64,
    /// That of the event.
    pub time: f64,
    /// That of the event.
    pub value: f64,
    /// What was expected: see [`Anomaly`].
    pub expected: f64,
    /// How far the readings of its key were from it.
    pub deviation: f64,
    /// How far this one is, in deviations.
    pub z: f64,
}

/// The beginning of the state, as that of a detector whose keys are numbers: the rows follow, one for each
/// place of the table, then [`Fill`], then the names of the places.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Head {
    weights: Weights,
    counts: Counts,
}

/// How full the table is.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Fill {
    known: i64,
    keys: i64,
}

/// The parts of a state.
struct Parts<'a> {
    head: &'a mut Head,
    rows: &'a mut [f64],
    fill: &'a mut Fill,
    names: &'a mut [Name],
}

impl<'a> Parts<'a> {
    fn of(state: &'a mut [u8], width: usize) -> Result<Self, BoxError> {
        let wrong = || BoxError::from("the state is that of no detector of names");
        let rest = state.len().checked_sub(size_of::<Head>() + size_of::<Fill>());
        let places = rest.ok_or_else(wrong)? / (8 * width + NAME_BYTES);
        let (head, state) = state.split_at_mut(size_of::<Head>());
        let (rows, state) = state.split_at_mut_checked(8 * width * places).ok_or_else(wrong)?;
        let (fill, names) = state.split_at_mut_checked(size_of::<Fill>()).ok_or_else(wrong)?;
        Ok(Self {
            head: bytemuck::try_from_bytes_mut(head).map_err(misplaced)?,
            rows: bytemuck::try_cast_slice_mut(rows).map_err(misplaced)?,
            fill: bytemuck::try_from_bytes_mut(fill).map_err(misplaced)?,
            names: bytemuck::try_cast_slice_mut(names).map_err(misplaced)?,
        })
    }
}

/// How many places a table for so many names has: a quarter of them stays free, so that a name is found
/// after two and a half places in the mean.
fn places(keys: u32) -> usize {
    keys as usize + keys as usize / 3 + 1
}

/// Where a table of so many places looks for a name first. MurmurHash3 (A. Appleby, 32 bits, seed 0), which
/// is made of operations that every device and the Python source have; its place in the table is the
/// hash's place in its own range.
#[inline(always)]
fn first_place(name: &Name, places: usize) -> usize {
    ((u64::from(hash(name)) * places as u64) >> 32) as usize
}

#[inline(always)]
fn hash(name: &Name) -> u32 {
    let mut hash = 0_u32;
    for word in name {
        let mixed = word.wrapping_mul(0xCC9E_2D51).rotate_left(15).wrapping_mul(0x1B87_3593);
        hash = (hash ^ mixed).rotate_left(13).wrapping_mul(5).wrapping_add(0xE654_6B64);
    }
    hash ^= NAME_BYTES as u32;
    hash = (hash ^ (hash >> 16)).wrapping_mul(0x85EB_CA6B);
    hash = (hash ^ (hash >> 13)).wrapping_mul(0xC2B2_AE35);
    hash ^ (hash >> 16)
}

const NO_NAME: Name = [0; 6];

/// The place of the name, or the free one that is to be its own, from `first` on; none if there is neither.
#[inline(always)]
fn find(names: &[Name], name: &Name, first: usize) -> Option<(usize, bool)> {
    let mut place = first;
    // A free place is always near, unless the state is one that no detector wrote.
    for _ in 0..names.len() {
        let kept = names.get(place)?;
        if kept == name {
            return Some((place, true));
        }
        if *kept == NO_NAME {
            return Some((place, false));
        }
        place += 1;
        if place == names.len() {
            place = 0;
        }
    }
    None
}

/// How many events are looked ahead.
const AHEAD: usize = 32;

/// Where the names of the next events are, as far as one look tells. The looks of several events do not
/// wait for one another, neither for the hash nor for memory.
struct Ahead {
    /// The first place of each, and whether the name is there.
    places: [(usize, bool); AHEAD],
    next: usize,
}

impl Ahead {
    fn new() -> Self {
        Self { places: [(0, false); AHEAD], next: 0 }
    }

    /// What one look says of the next event, which `events` has in its turn.
    #[inline(always)]
    fn look(&mut self, events: &[NamedEvent], names: &[Name]) -> (usize, bool) {
        let at = self.next % AHEAD;
        if at == 0 {
            for (place, event) in self.places.iter_mut().zip(events.iter().skip(self.next)) {
                let first = first_place(&event.name, names.len());
                *place = (first, names.get(first) == Some(&event.name));
            }
        }
        self.next += 1;
        self.places[at]
    }
}

/// A name for which there is no room.
struct Full;

/// A detector over at most so many names, whose state is one record: the settings, the counts, a row for
/// each place of its table ([`Model`]), how full it is, and the places' names: 75 bytes a name by
/// [`Model::Ewma`]. The handlers of `pydotcompute.workloads.anomaly` have the same, byte for byte.
///
/// It begins and is restored as [`Keyed`](handler::Keyed) is.
#[derive(Clone, Debug)]
pub struct Named {
    settings: Settings,
    keys: u32,
    layout: &'static RecordLayout,
    state: Vec<u8>,
}

impl Named {
    /// A detector that has seen nothing, for so many names.
    ///
    /// # Errors
    ///
    /// If the state of so many is larger than 1 GiB: some 14 million by [`Model::Ewma`].
    pub fn new(settings: Settings, keys: u32) -> Result<Self, KeyedError> {
        let layout = layout(settings.model(), keys)?;
        let mut state = vec![0; layout.bytes];
        let head = Head { weights: settings.weights(), counts: Counts::default() };
        state[..size_of::<Head>()].copy_from_slice(bytemuck::bytes_of(&head));
        let fill = Fill { known: 0, keys: i64::from(keys) };
        let at = size_of::<Head>() + 8 * settings.model().row() * places(keys);
        state[at..at + size_of::<Fill>()].copy_from_slice(bytemuck::bytes_of(&fill));
        Ok(Self { settings, keys, layout, state })
    }

    /// A detector that goes on from a snapshot, with these settings instead of the ones it had.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and if the snapshot is of another model or number of names.
    pub fn restored(snapshot: &[u8], settings: Settings, keys: u32) -> Result<Self, KeyedError> {
        let mut fresh = Self::new(settings, keys)?;
        let expected = fresh.state.len();
        if snapshot.len() != expected {
            return Err(KeyedError::Size { found: snapshot.len(), expected });
        }
        let own = size_of::<Weights>();
        fresh.state[own..].copy_from_slice(&snapshot[own..]);
        Ok(fresh)
    }

    /// The settings.
    #[must_use]
    pub fn settings(&self) -> Settings {
        self.settings
    }

    /// How many names there is room for.
    #[must_use]
    pub fn keys(&self) -> u32 {
        self.keys
    }

    /// The layout of the state.
    #[must_use]
    pub fn layout(&self) -> &'static RecordLayout {
        self.layout
    }

    /// The handler: takes [`NamedEvent`]s, singly or in batches, and replies with [`NamedAlarm`]s.
    #[must_use]
    pub fn handler(&self) -> CompiledHandler {
        CompiledHandler::from_code(code(self.settings.model()), NamedEvent::LAYOUT)
            .output(NamedAlarm::LAYOUT)
            .state_bytes(self.layout, &self.state)
    }

    /// What a snapshot says of the events so far; none if it is no state of this detector.
    #[must_use]
    pub fn counts(&self, snapshot: &[u8]) -> Option<Counts> {
        let head = snapshot.get(..size_of::<Head>()).filter(|_| snapshot.len() == self.state.len());
        head.map(|head| bytemuck::pod_read_unaligned::<Head>(head).counts)
    }

    /// The names that a snapshot has rows for, in the order of the table; none if it is no state of this
    /// detector.
    #[must_use]
    pub fn names(&self, snapshot: &[u8]) -> Option<Vec<Name>> {
        if snapshot.len() != self.state.len() {
            return None;
        }
        let table = &snapshot[snapshot.len() - NAME_BYTES * places(self.keys)..];
        let names = table.as_chunks::<NAME_BYTES>().0;
        let names = names.iter().map(|name| bytemuck::pod_read_unaligned::<Name>(name));
        Some(names.filter(|name| *name != NO_NAME).collect())
    }
}

fn layout(model: Model, keys: u32) -> Result<&'static RecordLayout, LayoutError> {
    let name = match model {
        Model::Ewma => "NamedEwma",
        Model::Robust { .. } => "NamedRobust",
        Model::Seasonal { .. } => "NamedSeasonal",
    };
    // No keys: refused as a table of no places is.
    let places = if keys == 0 { 0 } else { places(keys) };
    let mut fields = handler::head_fields();
    fields.push(("rows", ElementType::F64.array_of(model.row()).array_of(places)));
    fields.extend(["known", "keys"].map(|name| (name, ElementType::I64)));
    fields.push(("names", ElementType::U32.array_of(NO_NAME.len()).array_of(places)));
    RecordLayout::c(name, &fields)
}

/// The code of such a handler alone, for whoever has the state: its settings are those that stand in
/// it.
#[must_use]
pub fn code(model: Model) -> Box<dyn HandlerCode> {
    Box::new(Code(model))
}

/// A loop over the events of a message.
struct Code(Model);

impl HandlerCode for Code {
    fn run(&self, call: &mut Call<'_>) -> Result<(), BoxError> {
        let (events, state, room) = call.memory();
        let width = self.0.row();
        let Parts { head, rows, fill, names } = Parts::of(state, width)?;
        let events: &[NamedEvent] = bytemuck::try_cast_slice(events).map_err(misplaced)?;
        let room: &mut [NamedAlarm] = bytemuck::try_cast_slice_mut(room).map_err(misplaced)?;
        let weights = head.weights;
        let counts = &mut head.counts;
        let mut ahead = Ahead::new();
        let (written, failed) = match self.0 {
            Model::Ewma => {
                let (rows, _) = rows.as_chunks_mut::<4>();
                detect(events, counts, room, NamedAlarm::new, |event| {
                    take(names, ahead.look(events, names), fill, event, |place| {
                        let row = rows.get_mut(place)?;
                        Some(model::ewma(&weights, row, event.time, event.value))
                    })
                })
            }
            model => {
                let step = match model {
                    Model::Robust { .. } => model::robust,
                    _ => model::seasonal,
                };
                detect(events, counts, room, NamedAlarm::new, |event| {
                    take(names, ahead.look(events, names), fill, event, |place| {
                        let row = rows.get_mut(place * width..)?.get_mut(..width)?;
                        Some(step(&weights, row, event.time, event.value))
                    })
                })
            }
        };
        let keys = fill.keys;
        call.wrote(written);
        let Some((at, Full)) = failed else { return Ok(()) };
        call.set_record(at);
        let new = text(&events[at].name);
        let said = format!(
            "the table of names is full: it has room for {keys}, and '{new}' is one more; make the \
             detector with more keys"
        );
        let code = call.fault(TABLE_FULL, said);
        call.check(code)
    }
}

/// Takes an event up in the row of its name. A name gets its place with the first event that is taken.
#[inline(always)]
fn take(
    names: &mut [Name],
    seen: (usize, bool),
    fill: &mut Fill,
    event: &NamedEvent,
    step: impl FnOnce(usize) -> Option<Verdict>,
) -> Result<Option<Verdict>, Full> {
    let sound = (-VALUE_LIMIT..=VALUE_LIMIT).contains(&event.value);
    if !sound || event.name == NO_NAME {
        return Ok(None);
    }
    // A name stays where it is; what was not there when it was looked for may have come since.
    let (place, is_known) =
        if seen.1 { seen } else { find(names, &event.name, seen.0).ok_or(Full)? };
    if is_known {
        return Ok(step(place));
    }
    if fill.known >= fill.keys {
        return Err(Full);
    }
    let verdict = step(place);
    if matches!(verdict, Some(Verdict::Usual | Verdict::Unusual(_))) {
        names[place] = event.name;
        fill.known += 1;
    }
    Ok(verdict)
}

impl NamedAlarm {
    fn new(event: &NamedEvent, anomaly: Anomaly) -> Self {
        let NamedEvent { name, sequence, time, value } = *event;
        let Anomaly { expected, deviation, z } = anomaly;
        Self { name, sequence, time, value, expected, deviation, z }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Of the 24 bytes of each text with zeros behind it, by the package mmh3 of Python.
    const HASHES: [(&str, u32); 4] = [
        ("a", 0x5927_BDBD),
        ("oven", 0xE61A_1378),
        ("sensor-000123", 0x0872_B3EC),
        ("twenty-four bytes, whole", 0x8B2D_444B),
    ];

    #[test]
    fn the_hash_is_the_published_one() {
        for (of, expected) in HASHES {
            assert_eq!(hash(&name(of).unwrap()), expected, "{of}");
        }
    }

    #[test]
    fn a_name_comes_back_as_the_text_it_was() {
        for of in ["a", "oven", "Zürich, Hbf", "twenty-four bytes, whole"] {
            assert_eq!(text(&name(of).unwrap()), of);
        }
        for of in ["", "twenty-five bytes, whole.", "a\0b"] {
            let said = name(of).unwrap_err().to_string();
            assert!(said.contains(of) && said.contains("1 to 24"), "{said}");
        }
    }
}
