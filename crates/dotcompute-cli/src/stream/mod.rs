//! `dotcompute stream`: readings in, two ring kernels, alerts out.

mod input;
mod output;
mod stop;
mod summary;

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::thread;
use std::time::Instant;

use clap::ValueEnum;
use dotcompute::Runtime;
use dotcompute::prometheus;
#[cfg(feature = "tables")]
use dotcompute_workloads::anomaly::TableReader;
use dotcompute_workloads::anomaly::pipeline::Pipeline;
use dotcompute_workloads::anomaly::{
    ColumnError, ColumnNames, Format, InputError, Model, Parser, Settings, SettingsError,
};

use crate::failure::{FAILED, Failure, INTERRUPTED, USAGE};
use input::{Input, Outcome};
use output::Output;
use stop::Stop;
use summary::Summary;

/// Find the unusual readings in a stream of CSV, NDJSON, or rows of Parquet or Arrow
///
/// A ring kernel parses the input, and another compares each reading with what its key has done so
/// far. A reading that lies more than THRESHOLD deviations from what was expected is written to standard
/// output as one JSON object per line, in the order of the input. What is not an alert goes to standard
/// error.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// File of readings; - is standard input
    #[arg(default_value = "-")]
    input: PathBuf,

    /// Format of the input [default: by the file's name; csv on standard input]
    #[arg(long)]
    format: Option<InputFormat>,

    /// Column that says whose reading it is
    #[arg(long, value_name = "NAME")]
    key: Option<String>,

    /// Column that says when it was taken
    #[arg(long, value_name = "NAME")]
    time: Option<String>,

    /// Column with the measurement
    #[arg(long, value_name = "NAME")]
    value: Option<String>,

    /// What a reading is compared with
    #[arg(long, default_value = "ewma")]
    detector: Detector,

    /// Readings of a key that the robust detector looks back on
    #[arg(long, value_name = "COUNT", default_value_t = 31)]
    window: u32,

    /// Slots of a season, for the seasonal detector: 24 hours of a day, 7 days of a week
    #[arg(long, value_name = "COUNT", default_value_t = 24)]
    slots: u32,

    /// How long a slot is, in seconds, or in the unit of the times where these are numbers
    #[arg(long, value_name = "DURATION", default_value_t = 3600.0, allow_negative_numbers = true)]
    slot: f64,

    /// Weight of the newest reading; the memory is about 1/ALPHA readings long
    #[arg(long, default_value_t = Settings::default().alpha(), allow_negative_numbers = true)]
    alpha: f64,

    /// Deviations from what was expected beyond which a reading is unusual
    #[arg(long, default_value_t = Settings::default().threshold(), allow_negative_numbers = true)]
    threshold: f64,

    /// Readings of a key (in a slot) before the first that may be called unusual
    #[arg(long, value_name = "COUNT", default_value_t = Settings::default().warm_up())]
    warm_up: u32,

    /// End at the first malformed line, with status 1
    #[arg(long)]
    strict: bool,

    /// Keys to keep at most; readings of further ones count as malformed
    #[arg(long, value_name = "COUNT", default_value_t = 1 << 24)]
    max_keys: u32,

    /// What the two kernels run on
    #[arg(long, default_value = "thread")]
    executor: Executor,

    /// Messages (blocks of up to 64 KiB) that each mailbox holds; a full one makes the reader wait
    #[arg(
        long,
        value_name = "COUNT",
        default_value_t = 16,
        value_parser = clap::value_parser!(u32).range(1..=CAPACITY_MAX)
    )]
    capacity: u32,

    /// Show neither progress nor summary; faults of the input are still told
    #[arg(long, short)]
    quiet: bool,

    /// Write the summary as JSON too
    #[arg(long, value_name = "FILE")]
    json_summary: Option<PathBuf>,

    /// Serve the telemetry of the kernels to Prometheus while it runs, at http://ADDRESS/metrics
    #[arg(long, value_name = "ADDRESS")]
    prometheus: Option<SocketAddr>,
}

/// What a mailbox may hold at most; see `dotcompute::CAPACITY_MAX`.
const CAPACITY_MAX: i64 = dotcompute::CAPACITY_MAX as i64;

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InputFormat {
    Csv,
    Ndjson,
    /// Parquet or Arrow
    #[cfg(feature = "tables")]
    Table,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Detector {
    /// Exponentially weighted mean and standard deviation
    Ewma,
    /// Median of the last readings, and their median distance from it
    Robust,
    /// As ewma, apart for each slot of a season; readings need a time
    Seasonal,
}

impl Arguments {
    fn settings(&self) -> Result<Settings, SettingsError> {
        let model = match self.detector {
            Detector::Ewma => Model::Ewma,
            Detector::Robust => Model::Robust { window: self.window },
            Detector::Seasonal => Model::Seasonal { slots: self.slots, slot: self.slot },
        };
        Settings::new(self.alpha, self.threshold, self.warm_up)?.with_model(model)
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Executor {
    Async,
    Thread,
}

impl Executor {
    fn name(self) -> &'static str {
        match self {
            Self::Async => "async",
            Self::Thread => "thread",
        }
    }
}

const HELP: &str = "\
Formats, by the end of the name: .csv; .ndjson, .jsonl, .json; .parquet, .arrow, .feather (tables, from a
file only: their rows count as lines).

Columns: a CSV begins with a line of names; in NDJSON the first object has them. Without --key, --time and
--value they are, in any case, the first there is of key, id, sensor, station, device, series, name,
host; time, timestamp, ts, date, datetime; value, reading, measurement, or else the one column that
is left over. Without a key column all readings are one stream; the time may be absent.

Times: numbers, or ISO 8601 dates (UTC, if they do not say otherwise). A reading whose time is before that
of an earlier one of its key is late: counted, and not used. Other times are only shown.

Values: empty, NaN, NA and null are missing, which is no fault. A line that cannot be read is counted
and told with its number, the first ten in full; none of it reaches the detector.

Examples:
  dotcompute stream data/nyc-wind-2013.csv
  dotcompute stream data/elnino.csv --key month --threshold 3
  dotcompute stream data/nyc-wind-2013.csv --detector robust --threshold 8
  dotcompute stream load.csv --detector seasonal --slots 7 --slot 86400
  dotcompute stream readings.parquet --key machine --value rpm
  tail -f sensors.ndjson | dotcompute stream --format ndjson --alpha 0.001
  zcat readings.csv.gz | dotcompute stream --strict --quiet > alerts.ndjson

Exit status: 0 done; 1 bad input or a failure; 2 wrong usage; 130 interrupted. The first Ctrl-C or
SIGTERM stops reading, finishes what has been read and shows the summary; a second one ends the program
at once.";

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    let settings = arguments
        .settings()
        .map_err(|error| Failure::new(USAGE, error, "See dotcompute stream --help."))?;
    let input = Input::open(&arguments.input)?;
    let format = match arguments.format {
        Some(format) => format,
        None => input.format()?,
    };
    let columns = ColumnNames {
        key: arguments.key.clone(),
        time: arguments.time.clone(),
        value: arguments.value.clone(),
    };
    let (strict, max_keys) = (arguments.strict, arguments.max_keys);
    #[cfg(feature = "tables")]
    let table = match format {
        InputFormat::Table => Some(table(&input, &columns, strict, max_keys)?),
        _ => None,
    };
    // A table's readings pass by it.
    let text = match format {
        InputFormat::Ndjson => Format::Ndjson,
        _ => Format::Csv,
    };
    let parser =
        move || Parser::new(text).columns(columns.clone()).strict(strict).max_keys(max_keys);
    let (stop, stopper) = Stop::on_interrupt()
        .map_err(|error| Failure::new(FAILED, format!("cannot watch for Ctrl-C: {error}"), ""))?;
    let runtime = Runtime::builder().name("stream").build();
    let executor = arguments.executor.name();
    let capacity = arguments.capacity as usize;
    let pipeline = Pipeline::launch(&runtime, executor, capacity, parser, settings)
        .map_err(|error| Failure::new(FAILED, error, ""))?;
    if let Some(address) = arguments.prometheus {
        prometheus::serve(address, &runtime).map_err(|error| {
            Failure::new(FAILED, error, "Choose another address with --prometheus.")
        })?;
    }

    let name = input.name();
    let mut output = Output::new(&name, input.length_bytes(), arguments.quiet);
    let start = Instant::now();
    let (totals, outcome) = thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let send = |block| pipeline.send_blocking(block).is_ok();
            #[cfg(feature = "tables")]
            if let Some(table) = table {
                return input.read_table(table, &stop, send);
            }
            input.read(&stop, send)
        });
        let totals = output.take_all(&pipeline, &stopper);
        // A panic of the reader has been printed; the process must not go on as if it had read all.
        let outcome = reader.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (totals, outcome)
    });
    let interrupted = matches!(outcome, Outcome::Interrupted);
    let elapsed = start.elapsed();
    let kernels = pipeline.end_blocking();
    let summary = Summary::new(&name, arguments, settings, elapsed, &totals, interrupted, &kernels);
    output.finish(&totals);
    // A failure before the first reading says all there is to say.
    if !arguments.quiet && (totals.failure.is_none() || totals.tally.readings > 0) {
        output.tell(&summary.text());
    }
    if let Some(path) = &arguments.json_summary {
        write_summary(path, &summary)?;
    }
    if let Outcome::Failed(error) = outcome {
        return Err(Failure::new(
            FAILED,
            format!("cannot read {name}: {error}"),
            "The alerts so far are those of the input before the fault.",
        ));
    }
    match totals.failure {
        Some(failure) => Err(failure),
        None if interrupted => Ok(ExitCode::from(INTERRUPTED)),
        None => Ok(ExitCode::SUCCESS),
    }
}

/// The input as a table, with the columns that were asked for.
#[cfg(feature = "tables")]
fn table(
    input: &Input,
    columns: &ColumnNames,
    strict: bool,
    max_keys: u32,
) -> Result<TableReader, Failure> {
    let table = TableReader::new(input.table()?, columns.clone()).map_err(|error| {
        let message = format!("{}: {error}", input.name());
        Failure::new(FAILED, message, advice(&InputError::Columns(error)))
    })?;
    Ok(table.strict(strict).max_keys(max_keys))
}

fn write_summary(path: &PathBuf, summary: &Summary) -> Result<(), Failure> {
    let cannot = |error: String| {
        Failure::new(
            FAILED,
            format!("cannot write the summary to {}: {error}", path.display()),
            "Choose another file with --json-summary.",
        )
    };
    let json = serde_json::to_string_pretty(summary).map_err(|error| cannot(error.to_string()))?;
    fs::write(path, json + "\n").map_err(|error| cannot(error.to_string()))
}

/// What to do about an input that cannot be read on.
fn advice(error: &InputError) -> &'static str {
    match error {
        InputError::Columns(ColumnError::NoValue { header, .. })
        | InputError::Columns(ColumnError::Absent { header, .. })
            if header.first().is_some_and(|name| name.starts_with('{')) =>
        {
            "This looks like NDJSON: say so with --format ndjson."
        }
        InputError::Columns(_) => "Name the columns with --key, --time and --value.",
        InputError::Malformed(_) => {
            "Mend the line, or run without --strict to pass over such lines."
        }
        _ => "",
    }
}
