//! What a kernel tells of itself.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dotcompute::mailbox::STAMP_EVERY;
use dotcompute::mailbox::sync::lock;
use dotcompute::mailbox::wait::block_on;
use dotcompute::{
    Backpressure, BoxError, Context, KernelState, Restart, RestartPolicy, Terminate, Termination,
};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString,
    Unit,
};

#[cfg(target_os = "linux")]
use crate::roles::Roles;
use crate::stage::{
    Auditor, Form, Gated, Number, Outcome, Stage, balanced, echo, eventually, launch, quiet, serve,
};
use crate::termination::TIME_TO_CANCEL;

#[cfg(target_os = "linux")]
pub(crate) fn roles(roles: Roles) -> Roles {
    roles.serving(fails_at_nines).serving(says_nothing).body(fails)
}

fn fails_at_nines((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |number| match number % 1000 {
        999 => Err("nine".into()),
        number => Ok((number % 2 == 0).then_some(number)),
    }
}

pub fn counts_are_exact(stage: &Stage) {
    for form in Form::BOTH {
        let restart = Restart { backoff: Duration::ZERO, ..RestartPolicy::OnFault.into() };
        let builder = stage.kernel(&format!("{form:?}")).capacity(16).restart(restart);
        let kernel = serve(builder, form, fails_at_nines, ());
        let auditor = Auditor::watch(vec![kernel.clone()]);
        for number in 0..2000 {
            match number % 4 {
                0 => drop(kernel.ask_blocking(Number(number), None).unwrap()),
                _ => kernel.send_blocking(Number(number), None).unwrap(),
            }
            if number % 4 == 2 {
                assert_eq!(kernel.receive_blocking(None).unwrap().message, Number(number % 1000));
            }
        }
        quiet(&kernel);
        auditor.end();
        // The last message is one that fails: the books are quiet before the restart is over.
        eventually(|| kernel.telemetry().restarts == 2 && kernel.state() == KernelState::Active);
        let telemetry = kernel.telemetry();
        assert_eq!(telemetry.executor, stage.executor());
        assert_eq!((telemetry.faults, telemetry.restarts), (2, 2));
        assert_eq!(telemetry.asks_answered, 500);
        let books = telemetry.books;
        assert_eq!((books.accepted, books.processed, books.dead_lettered), (2000, 1998, 2));
        assert_eq!((books.expired, books.rejected, books.redelivered), (0, 0, 0));
        assert_eq!((telemetry.replies.accepted, telemetry.replies.processed), (500, 500));
        assert!(telemetry.high_water >= 1 && telemetry.high_water <= 16);
    }
}

fn says_nothing((): ()) -> impl FnMut(u64) -> Outcome + Send + 'static {
    |_| Ok(None)
}

pub fn times_are_taken_for_the_first_message_and_every_64th(stage: &Stage) {
    const COUNT: u64 = 1000;
    let kernel = serve(stage.kernel("timed"), Form::Handler, says_nothing, ());
    for number in 0..COUNT {
        kernel.send_blocking(Number(number), None).unwrap();
    }
    quiet(&kernel);
    // The last sample ends when the kernel receives again, which it has when the books are quiet.
    let telemetry = kernel.telemetry();
    let samples = COUNT.div_ceil(STAMP_EVERY);
    assert_eq!((telemetry.queue_time.samples, telemetry.handler_time.samples), (samples, samples));
    for latency in [telemetry.queue_time, telemetry.handler_time] {
        assert!(latency.p50_ns <= latency.p99_ns && latency.p99_ns <= latency.p999_ns);
        assert!(latency.max_ns > 0, "{latency:?}");
    }
    assert!((0.0..=1.0).contains(&telemetry.busy_share));
}

pub fn the_times_are_those_of_the_queue_and_of_the_handler(stage: &Stage) {
    const PAUSE: Duration = Duration::from_millis(20);
    let kernel = launch(stage.kernel("timed"), echo);
    kernel.deactivate().unwrap();
    kernel.try_send(Number(1)).unwrap();
    let pause = || {
        let start = Instant::now();
        eventually(|| start.elapsed() >= PAUSE);
    };
    pause();
    kernel.reactivate().unwrap();
    quiet(&kernel);
    let telemetry = kernel.telemetry();
    assert!(telemetry.queue_time.max_ns >= PAUSE.as_nanos() as u64, "{telemetry:?}");

    let gated = Gated::busy(stage.kernel("busy"));
    pause();
    gated.gate.remove();
    quiet(&gated.kernel);
    let telemetry = gated.kernel.telemetry();
    assert!(telemetry.handler_time.max_ns >= PAUSE.as_nanos() as u64, "{telemetry:?}");
    assert!(telemetry.busy_share > 0.0);
    assert!(telemetry.uptime >= PAUSE);
}

pub fn the_high_water_mark_is_the_deepest_that_the_mailbox_has_been(stage: &Stage) {
    let gated = Gated::busy(stage.kernel("deep").capacity(100));
    assert_eq!(gated.kernel.telemetry().high_water, 1);
    for number in 1..=37 {
        gated.kernel.try_send(Number(number)).unwrap();
    }
    let telemetry = gated.kernel.telemetry();
    assert_eq!((telemetry.high_water, telemetry.books.queued), (37, 37));
    gated.release(37);
    quiet(&gated.kernel);
    assert_eq!(gated.kernel.telemetry().high_water, 37);
}

pub fn uptime_begins_with_the_activation_and_stops_with_the_end(stage: &Stage) {
    let kernel = stage.kernel("up").launch(echo).unwrap();
    assert_eq!(kernel.telemetry().uptime, Duration::ZERO);
    kernel.activate().unwrap();
    eventually(|| kernel.telemetry().uptime > Duration::ZERO);
    kernel.terminate_blocking(Terminate::now());
    let uptime = kernel.telemetry().uptime;
    let first = Instant::now();
    eventually(|| first.elapsed() > Duration::from_millis(2));
    assert_eq!(kernel.telemetry().uptime, uptime);
}

pub fn the_watchdog_reports_a_stall_and_its_end(stage: &Stage) {
    let brief = Some(Duration::from_millis(20));
    let idle = launch(stage.kernel("idle").watchdog(brief), echo);
    let unwatched = Gated::busy(stage.kernel("unwatched").watchdog(None));
    let gated = Gated::busy(stage.kernel("stalls").watchdog(brief));
    for stalls in 1..=2 {
        eventually(|| gated.kernel.telemetry().stalled);
        assert_eq!(gated.kernel.telemetry().stalls, stalls, "a stall is counted once");
        gated.kernel.try_send(Number(stalls)).unwrap();
        gated.gate.open(1);
        gated.arrives(stalls);
        eventually(|| {
            !gated.kernel.telemetry().stalled || gated.kernel.telemetry().stalls > stalls
        });
    }
    gated.gate.remove();
    quiet(&gated.kernel);
    eventually(|| !gated.kernel.telemetry().stalled);
    assert_eq!(idle.telemetry().stalls, 0, "a kernel without a message does not stall");
    assert_eq!(unwatched.kernel.telemetry().stalls, 0);
}

/// Also where the mailbox drops all the time: that is no progress of the kernel.
pub fn a_stalled_kernel_is_found_while_its_mailbox_drops(stage: &Stage) {
    let builder = stage.kernel("drops").capacity(1).backpressure(Backpressure::DropOldest);
    let gated = Gated::busy(builder.watchdog(Some(Duration::from_millis(20))));
    let mut number = 1;
    eventually(|| {
        gated.kernel.try_send(Number(number)).unwrap();
        number += 1;
        gated.kernel.telemetry().stalled
    });
    gated.gate.remove();
    quiet(&gated.kernel);
}

pub fn a_kernel_that_ended_is_not_stalled(stage: &Stage) {
    let brief = Some(Duration::from_millis(20));
    let gated = Gated::busy(stage.kernel("ends").watchdog(brief));
    eventually(|| gated.kernel.telemetry().stalled);
    let how = Terminate::now().within(TIME_TO_CANCEL);
    assert_eq!(gated.kernel.terminate_blocking(how), Termination::Cancelled);
    assert!(!gated.kernel.telemetry().stalled);
    assert_eq!(gated.kernel.telemetry().stalls, 1);
}

pub fn a_stall_is_counted_from_the_kernels_own_delivery_whoever_had_its_name_before(stage: &Stage) {
    const WATCHDOG: Duration = Duration::from_millis(200);
    let builder = || stage.kernel("name").watchdog(Some(WATCHDOG));
    let before = Gated::busy(builder());
    let start = Instant::now();
    eventually(|| start.elapsed() >= WATCHDOG / 2);
    before.kernel.terminate_blocking(Terminate::now().within(Duration::from_millis(10)));
    let start = Instant::now();
    let after = Gated::busy(builder());
    eventually(|| after.kernel.telemetry().stalled);
    assert!(start.elapsed() >= WATCHDOG, "stalled after {:?}", start.elapsed());
    after.gate.remove();
    quiet(&after.kernel);
}

pub fn the_runtime_tells_of_all_its_kernels_by_name(stage: &Stage) {
    for name in ["c", "a", "b"] {
        let kernel = launch(stage.kernel(name), echo);
        kernel.ask_blocking(Number(1), None).unwrap();
    }
    let all = stage.runtime.telemetry();
    assert_eq!(all.iter().map(|one| one.kernel.as_str()).collect::<Vec<_>>(), ["a", "b", "c"]);
    assert!(all.iter().all(|one| one.asks_answered == 1 && one.state == KernelState::Active));
}

/// Keeps the last value of every metric, under its name and labels.
#[derive(Default)]
struct Kept(Arc<Mutex<BTreeMap<String, f64>>>);

struct Metric {
    key: String,
    values: Arc<Mutex<BTreeMap<String, f64>>>,
}

impl Metric {
    fn set_to(&self, value: f64) {
        lock(&self.values).insert(self.key.clone(), value);
    }
}

impl CounterFn for Metric {
    fn increment(&self, _value: u64) {
        unreachable!("counts come from the books, whole");
    }

    fn absolute(&self, value: u64) {
        self.set_to(value as f64);
    }
}

impl GaugeFn for Metric {
    fn increment(&self, _value: f64) {
        unreachable!("gauges are set");
    }

    fn decrement(&self, _value: f64) {
        unreachable!("gauges are set");
    }

    fn set(&self, value: f64) {
        self.set_to(value);
    }
}

impl Kept {
    fn metric(&self, key: &Key) -> Arc<Metric> {
        let labels: Vec<_> =
            key.labels().map(|label| format!("{}={}", label.key(), label.value())).collect();
        let key = format!("{} {}", key.name(), labels.join(" "));
        Arc::new(Metric { key: key.trim_end().to_owned(), values: Arc::clone(&self.0) })
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.metric(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.metric(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

async fn fails(mut context: Context<Number, Number>) -> Result<(), BoxError> {
    context.receive().await?;
    Err("fails".into())
}

pub fn telemetry_is_published_through_the_metrics_facade(stage: &Stage) {
    let builder = stage.kernel("published").capacity(2).backpressure(Backpressure::DropNewest);
    let gated = Gated::busy(builder);
    for number in 1..=5 {
        gated.kernel.try_send(Number(number)).unwrap();
    }
    let failing = launch(stage.kernel("fails"), fails);
    failing.try_send(Number(1)).unwrap();
    assert!(block_on(failing.ended()).is_err());
    let recorder = Kept::default();
    metrics::with_local_recorder(&recorder, || stage.runtime.publish_metrics());
    let values = lock(&recorder.0);
    for (metric, expected) in [
        ("dotcompute_kernel_accepted_total kernel=published", 6.0),
        ("dotcompute_kernel_processed_total kernel=published", 0.0),
        ("dotcompute_kernel_dropped_total kernel=published reason=newest", 3.0),
        ("dotcompute_kernel_dropped_total kernel=published reason=oldest", 0.0),
        ("dotcompute_kernel_queue_depth_messages kernel=published", 2.0),
        ("dotcompute_kernel_queue_high_water_messages kernel=published", 2.0),
        ("dotcompute_kernel_faults_total kernel=fails", 1.0),
        ("dotcompute_kernel_dead_lettered_total kernel=fails", 1.0),
        ("dotcompute_dead_letters_total", 1.0),
        ("dotcompute_dead_letters_kept", 1.0),
    ] {
        assert_eq!(values.get(metric), Some(&expected), "{metric} in {values:#?}");
    }
    drop(values);
    gated.release(2);
    quiet(&gated.kernel);
    balanced(&failing);
}
