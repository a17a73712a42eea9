//! What can be said about a kernel at launch.

use std::any::Any;
use std::sync::Arc;
use std::time::Duration;

use dotcompute_mailbox::Backpressure;

use crate::error::{KernelId, LaunchError};

/// The largest capacity of a mailbox, in messages.
pub const CAPACITY_MAX: usize = 1 << 24;

/// When a kernel that ended by itself is started again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    /// Never: a fault fails the kernel.
    #[default]
    Never,
    /// After a fault; a kernel that returns has ended.
    OnFault,
    /// After a fault, and also when the kernel returns.
    Always,
}

/// How a restart goes about.
///
/// The *intensity* is that of Erlang/OTP's supervisors: more than `max_restarts` within `window`
/// and the kernel has failed for good.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Restart {
    /// When.
    pub policy: RestartPolicy,
    /// How many restarts within `window` are put up with; `u32::MAX`: any number.
    pub max_restarts: u32,
    /// The time within which restarts are counted.
    pub window: Duration,
    /// How long to wait before the first restart; it doubles with each one within `window`.
    pub backoff: Duration,
    /// The longest wait before a restart.
    pub backoff_max: Duration,
    /// Whether the message in hand is delivered again first, at most
    /// [`DELIVERIES_MAX`] times in all, instead of becoming a dead letter.
    pub redeliver: bool,
}

/// How often a message is delivered before it becomes a dead letter.
pub const DELIVERIES_MAX: u8 = 3;

impl Default for Restart {
    /// Never; and where only the policy is set: 3 restarts in 5 s, after 10 ms to 1 s.
    fn default() -> Self {
        Self {
            policy: RestartPolicy::Never,
            max_restarts: 3,
            window: Duration::from_secs(5),
            backoff: Duration::from_millis(10),
            backoff_max: Duration::from_secs(1),
            redeliver: false,
        }
    }
}

impl From<RestartPolicy> for Restart {
    fn from(policy: RestartPolicy) -> Self {
        Self { policy, ..Self::default() }
    }
}

#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) capacity: usize,
    pub(crate) backpressure: Backpressure,
    pub(crate) reply_capacity: usize,
    pub(crate) reply_backpressure: Backpressure,
    pub(crate) restart: Restart,
    pub(crate) watchdog: Option<Duration>,
    pub(crate) sample_every: u64,
    /// The output of the pool that it is a worker of.
    pub(crate) output: Option<Arc<dyn Any + Send + Sync>>,
    /// Replies that nobody has read when it is terminated can still be read.
    pub(crate) keep_replies: bool,
    pub(crate) exact_priority: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            capacity: 1024,
            backpressure: Backpressure::Block,
            reply_capacity: 1024,
            reply_backpressure: Backpressure::Block,
            restart: Restart::default(),
            watchdog: Some(Duration::from_secs(30)),
            sample_every: dotcompute_mailbox::STAMP_EVERY,
            output: None,
            keep_replies: false,
            exact_priority: false,
        }
    }
}

impl Options {
    pub(crate) fn check(&self, kernel: &KernelId) -> Result<(), LaunchError> {
        let invalid = |option, value: String, expected| LaunchError::InvalidOption {
            kernel: kernel.clone(),
            option,
            value,
            expected,
        };
        for (option, capacity) in
            [("capacity", self.capacity), ("reply_capacity", self.reply_capacity)]
        {
            if !(1..=CAPACITY_MAX).contains(&capacity) {
                return Err(invalid(option, capacity.to_string(), "1 to 16777216 messages"));
            }
        }
        if kernel.as_str().is_empty() || kernel.as_str().len() > 255 {
            return Err(invalid("name", format!("{kernel:?}"), "1 to 255 bytes"));
        }
        if self.sample_every == 0 {
            return Err(invalid("sample_every", "0".into(), "1 or more messages"));
        }
        if self.watchdog.is_some_and(|watchdog| watchdog < Duration::from_millis(1)) {
            return Err(invalid("watchdog", format!("{:?}", self.watchdog), "1 ms or longer"));
        }
        Ok(())
    }
}
