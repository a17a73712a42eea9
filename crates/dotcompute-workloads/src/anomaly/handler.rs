//! The detector as a compiled handler: records in, records out, all keys in the kernel's state. Keys are
//! numbers here, and names in [`named`](super::named).
//!
//! ```
//! use dotcompute::{RecordBatch, Runtime};
//! use dotcompute_workloads::anomaly::handler::{Alarm, Event, Keyed};
//! use dotcompute_workloads::anomaly::Settings;
//!
//! let detector = Keyed::new(Settings::new(0.1, 4.0, 5)?, 1000)?;
//! let handler = detector.handler();
//! let state = handler.state_reader();
//! let runtime = Runtime::builder().build();
//! let kernel = runtime
//!     .kernel("detect")
//!     .executor("thread")
//!     .launch_compiled::<RecordBatch, RecordBatch>(handler)?;
//! kernel.activate()?;
//!
//! let values = [1.0, 2.0, 1.0, 2.0, 1.0, 90.0, 2.0];
//! let events = (0..).zip(values).map(|(second, value)| Event {
//!     key: 17,
//!     sequence: second,
//!     time: f64::from(second),
//!     value,
//! });
//! let reply = kernel.ask_blocking(RecordBatch::from_vec(events.collect()), None)?;
//! let alarms = reply.message.as_slice::<Alarm>().unwrap();
//! assert_eq!((alarms.len(), alarms[0].sequence, alarms[0].value), (1, 5, 90.0));
//!
//! // The state of all keys at once: kept, and gone on from.
//! let snapshot = state.bytes(std::time::Duration::from_secs(1)).unwrap();
//! let counts = detector.counts(&snapshot).unwrap();
//! assert_eq!((counts.taken, counts.unusual, counts.late, counts.malformed), (7, 1, 0, 0));
//! let _gone_on = Keyed::restored(&snapshot, detector.settings(), 1000)?.handler();
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::convert::Infallible;

use dotcompute::compiled::{Call, HandlerCode};
use dotcompute::record::{ElementType, LayoutError, RecordLayout};
use dotcompute::{BoxError, CompiledHandler, Message, Record};

use super::model::{self, Model, Verdict, Weights};
use super::{Anomaly, Settings};

/// A reading as a record.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record)]
#[repr(C)]
pub struct Event {
    /// Number of the key, below the number of keys.
    pub key: u32,
    /// Whatever tells its alarm apart from others.
    pub sequence: u32,
    /// When it was taken, in any unit. An event whose time is before that of an earlier one of its
    /// key is late; what is no number is no time.
    pub time: f64,
    /// The measurement.
    pub value: f64,
}

/// An unusual event.
#[derive(Clone, Copy, Debug, PartialEq, Message)]
#[message(record)]
#[repr(C)]
pub struct Alarm {
    /// That of the event.
    pub key: u32,
    /// That of the event.
    pub sequence: u32,
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

/// What became of the events. They are `taken + late + malformed`, and `unusual` of those taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
pub struct Counts {
    /// Tested and taken up.
    pub taken: i64,
    /// Before an earlier one of their key, and therefore left out.
    pub late: i64,
    /// Of no key, without a value or with one beyond [`VALUE_LIMIT`](super::VALUE_LIMIT), or without
    /// a time that the model needs.
    pub malformed: i64,
    /// Those that raised an alarm.
    pub unusual: i64,
}

/// The beginning of the state; the rows of all keys follow.
#[derive(Clone, Copy, Debug, bytemuck::Pod, bytemuck::Zeroable)]
#[repr(C)]
struct Head {
    weights: Weights,
    counts: Counts,
}

/// A detector over the keys `0..keys`, whose state is one record: the settings, the counts, and a row
/// for each key ([`Model`]): 32 bytes by [`Model::Ewma`]. The handlers of `pydotcompute.workloads.anomaly` have
/// the same.
///
/// The state is read by [`CompiledHandler::state_reader`], as it was between two messages, and a
/// detector that is [restored](Self::restored) from it goes on where that was. A kernel that is
/// restarted after a fault begins from what the detector was made with.
#[derive(Clone, Debug)]
pub struct Keyed {
    settings: Settings,
    layout: &'static RecordLayout,
    state: Vec<u8>,
}

/// Why there is no such detector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyedError {
    /// The state would have no keys, or be larger than a record can be.
    #[error(transparent)]
    Layout(#[from] LayoutError),
    /// The snapshot is of another model, or of another number of keys.
    #[error("the snapshot has {found} bytes, and a state of these keys and this model {expected}")]
    Size {
        /// What it has.
        found: usize,
        /// What it should have.
        expected: usize,
    },
}

impl Keyed {
    /// A detector that has seen nothing.
    ///
    /// # Errors
    ///
    /// If there are no keys, or the state of so many is larger than 1 GiB.
    pub fn new(settings: Settings, keys: u32) -> Result<Self, KeyedError> {
        let layout = layout(settings.model(), keys)?;
        let mut state = vec![0; layout.bytes];
        let head = Head { weights: settings.weights(), counts: Counts::default() };
        state[..size_of::<Head>()].copy_from_slice(bytemuck::bytes_of(&head));
        Ok(Self { settings, layout, state })
    }

    /// A detector that goes on from a snapshot, with these settings instead of the ones it had.
    ///
    /// # Errors
    ///
    /// As [`new`](Self::new), and if the snapshot is of another model or number of keys.
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

    /// The layout of the state.
    #[must_use]
    pub fn layout(&self) -> &'static RecordLayout {
        self.layout
    }

    /// The handler: takes [`Event`]s, singly or in batches, and replies with [`Alarm`]s.
    #[must_use]
    pub fn handler(&self) -> CompiledHandler {
        CompiledHandler::from_code(code(self.settings.model()), Event::LAYOUT)
            .output(Alarm::LAYOUT)
            .state_bytes(self.layout, &self.state)
    }

    /// What a snapshot says of the events so far; none if it is no state of this detector.
    #[must_use]
    pub fn counts(&self, snapshot: &[u8]) -> Option<Counts> {
        let head = snapshot.get(..size_of::<Head>()).filter(|_| snapshot.len() == self.state.len());
        head.map(|head| bytemuck::pod_read_unaligned::<Head>(head).counts)
    }
}

fn layout(model: Model, keys: u32) -> Result<&'static RecordLayout, LayoutError> {
    let name = match model {
        Model::Ewma => "Ewma",
        Model::Robust { .. } => "Robust",
        Model::Seasonal { .. } => "Seasonal",
    };
    let mut fields = head_fields();
    fields.push(("rows", ElementType::F64.array_of(model.row()).array_of(keys as usize)));
    RecordLayout::c(name, &fields)
}

/// The fields with which the state of every detector begins.
pub(super) fn head_fields() -> Vec<(&'static str, ElementType)> {
    let settings = ["alpha", "threshold", "warm_up", "slot"].map(|name| (name, ElementType::F64));
    let counts = ["taken", "late", "malformed", "unusual"].map(|name| (name, ElementType::I64));
    settings.into_iter().chain(counts).collect()
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
        let (head, rows) = state
            .split_at_mut_checked(size_of::<Head>())
            .ok_or("the state is that of no detector")?;
        let head: &mut Head = bytemuck::try_from_bytes_mut(head).map_err(misplaced)?;
        let rows: &mut [f64] = bytemuck::try_cast_slice_mut(rows).map_err(misplaced)?;
        let events: &[Event] = bytemuck::try_cast_slice(events).map_err(misplaced)?;
        let room: &mut [Alarm] = bytemuck::try_cast_slice_mut(room).map_err(misplaced)?;
        let weights = head.weights;
        let counts = &mut head.counts;
        let (written, _) = match self.0 {
            Model::Ewma => {
                let (rows, _) = rows.as_chunks_mut::<4>();
                detect(events, counts, room, Alarm::new, |event| {
                    let row = rows.get_mut(event.key as usize);
                    sure(row.map(|row| model::ewma(&weights, row, event.time, event.value)))
                })
            }
            model => {
                let width = model.row();
                let step = match model {
                    Model::Robust { .. } => model::robust,
                    _ => model::seasonal,
                };
                detect(events, counts, room, Alarm::new, |event| {
                    let row = rows.get_mut(event.key as usize * width..);
                    let row = row.and_then(|row| row.get_mut(..width));
                    sure(row.map(|row| step(&weights, row, event.time, event.value)))
                })
            }
        };
        call.wrote(written);
        Ok(())
    }
}

/// Memory of a message is aligned and whole, so that this does not happen.
pub(super) fn misplaced(error: bytemuck::PodCastError) -> BoxError {
    format!("the memory of the handler: {error}").into()
}

/// Nothing fails where keys are numbers.
#[inline(always)]
fn sure(verdict: Option<Verdict>) -> Result<Option<Verdict>, Infallible> {
    Ok(verdict)
}

/// Takes the events up, until one fails; says how many alarms it wrote, and which failed.
#[inline(always)]
pub(super) fn detect<Event, Alarm, Failed>(
    events: &[Event],
    counts: &mut Counts,
    room: &mut [Alarm],
    alarm: impl Fn(&Event, Anomaly) -> Alarm,
    mut step: impl FnMut(&Event) -> Result<Option<Verdict>, Failed>,
) -> (usize, Option<(usize, Failed)>) {
    let (mut late, mut malformed) = (0, 0);
    let mut room = room.iter_mut();
    let before = room.len();
    let mut failed = None;
    for (at, event) in events.iter().enumerate() {
        match step(event) {
            Ok(Some(Verdict::Usual)) => {}
            Ok(Some(Verdict::Unusual(anomaly))) => {
                // There is room for one alarm an event.
                if let Some(place) = room.next() {
                    *place = alarm(event, anomaly);
                }
            }
            Ok(Some(Verdict::Late)) => late += 1,
            Ok(Some(Verdict::Malformed) | None) => malformed += 1,
            Err(error) => {
                failed = Some((at, error));
                break;
            }
        }
    }
    let written = before - room.len();
    let gone_through = failed.as_ref().map_or(events.len(), |(at, _)| *at);
    counts.taken += gone_through as i64 - late - malformed;
    counts.late += late;
    counts.malformed += malformed;
    counts.unusual += written as i64;
    (written, failed)
}

impl Alarm {
    fn new(event: &Event, anomaly: Anomaly) -> Self {
        let Event { key, sequence, time, value } = *event;
        let Anomaly { expected, deviation, z } = anomaly;
        Self { key, sequence, time, value, expected, deviation, z }
    }
}
