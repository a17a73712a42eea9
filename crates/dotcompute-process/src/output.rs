//! What a child writes and logs, on its way to the parent's log.

use std::fmt::{self, Write};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use dotcompute_core::KernelId;
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

use crate::socket::{self, Report};

/// A line that a child wrote, or an event of its log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output<'a> {
    /// A line of its standard output.
    Stdout(&'a str),
    /// A line of its standard error.
    Stderr(&'a str),
    /// An event of its log.
    Log {
        /// 1: error, 2: warning, 3: info, 4: debug, 5: trace.
        level: u8,
        /// Where it came from.
        target: &'a str,
        /// What it says.
        text: &'a str,
    },
}

/// Takes what the children of a program write. Called by a thread per child.
pub type Sink = Arc<dyn Fn(&KernelId, Output<'_>) + Send + Sync>;

/// Passes it on to `tracing`.
pub(crate) fn trace(kernel: &KernelId, output: Output<'_>) {
    const TARGET: &str = "dotcompute::child";
    match output {
        Output::Stdout(line) => {
            tracing::info!(target: TARGET, %kernel, stream = "stdout", "{line}")
        }
        Output::Stderr(line) => {
            tracing::warn!(target: TARGET, %kernel, stream = "stderr", "{line}")
        }
        Output::Log { level, target, text } => match level {
            1 => tracing::error!(target: TARGET, %kernel, at = target, "{text}"),
            2 => tracing::warn!(target: TARGET, %kernel, at = target, "{text}"),
            3 => tracing::info!(target: TARGET, %kernel, at = target, "{text}"),
            4 => tracing::debug!(target: TARGET, %kernel, at = target, "{text}"),
            _ => tracing::trace!(target: TARGET, %kernel, at = target, "{text}"),
        },
    }
}

/// The most verbose level that somebody listens to here: 0 (none) to 5 (trace).
pub(crate) fn level() -> u8 {
    match LevelFilter::current().into_level() {
        None => 0,
        Some(level) => number(level),
    }
}

fn number(level: Level) -> u8 {
    match level {
        Level::ERROR => 1,
        Level::WARN => 2,
        Level::INFO => 3,
        Level::DEBUG => 4,
        Level::TRACE => 5,
    }
}

/// Sends the events of a child to its parent. Spans are not carried over.
pub(crate) struct ToParent {
    pub(crate) socket: OwnedFd,
    pub(crate) level: u8,
}

impl Subscriber for ToParent {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        number(*metadata.level()) <= self.level
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(match self.level {
            0 => LevelFilter::OFF,
            1 => LevelFilter::ERROR,
            2 => LevelFilter::WARN,
            3 => LevelFilter::INFO,
            4 => LevelFilter::DEBUG,
            _ => LevelFilter::TRACE,
        })
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let metadata = event.metadata();
        let report = Report::Log {
            level: number(*metadata.level()),
            target: metadata.target().to_owned(),
            text: text.0,
        };
        // Without a parent there is nobody to tell.
        let _ = socket::send_report(&self.socket, &report);
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

/// An event in one line: its message, then its fields.
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing to a string does not fail.
        let _ = match field.name() {
            "message" if self.0.is_empty() => write!(self.0, "{value:?}"),
            "message" => {
                let fields = std::mem::take(&mut self.0);
                write!(self.0, "{value:?} {fields}")
            }
            name if self.0.is_empty() => write!(self.0, "{name}={value:?}"),
            name => write!(self.0, " {name}={value:?}"),
        };
    }
}
