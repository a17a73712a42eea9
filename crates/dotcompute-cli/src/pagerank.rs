//! `dotcompute pagerank`: edges in, the nodes of highest rank out.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write as _};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use dotcompute_workloads::pagerank::read::{Edges, Format, Nodes, Progress, Reader};
use dotcompute_workloads::pagerank::{
    Graph, Query, Ranks, Score, top, without_repeats, without_self_loops,
};
use flate2::read::MultiGzDecoder;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::failure::{FAILED, Failure, USAGE, print};

/// Rank the nodes of a graph by the links to them
///
/// Reads the edges, iterates until the ranks move by less than TOLERANCE in a turn, summed over all
/// nodes, and writes the nodes of highest rank to standard output. The ranks sum to 1; those of nodes
/// without links out are shared by all.
#[derive(Debug, clap::Args)]
#[command(after_help = HELP)]
pub(crate) struct Arguments {
    /// File of edges, plain or gzip; - is standard input
    edges: PathBuf,

    /// Format of the input [default: by the file's name; edge-list on standard input]
    #[arg(long)]
    format: Option<InputFormat>,

    /// The nodes are 0 to COUNT - 1, whether an edge names them or not
    #[arg(long, value_name = "COUNT")]
    nodes: Option<u32>,

    /// Column of a CSV or table that an edge comes from
    #[arg(long, value_name = "NAME", requires = "target")]
    source: Option<String>,

    /// Column of a CSV or table that an edge goes to
    #[arg(long, value_name = "NAME", requires = "source")]
    target: Option<String>,

    /// Share of rank that follows the links
    #[arg(long, default_value_t = Query::default().damping, allow_negative_numbers = true)]
    damping: f64,

    /// Change of a turn, summed over all nodes, below which the ranks are final; 0: take all turns
    #[arg(long, default_value_t = Query::default().tolerance, allow_negative_numbers = true)]
    tolerance: f64,

    /// Turns to take at most
    #[arg(long, value_name = "COUNT", default_value_t = Query::default().max_iterations)]
    max_iterations: u32,

    /// Numbers to compute in [default: f32 for a tolerance of 1e-6 or more, else f64]
    #[arg(long)]
    precision: Option<Precision>,

    /// Node that gets the share of rank that does not follow the links, as NODE or NODE=WEIGHT; may
    /// be given more than once [default: all nodes alike]
    #[arg(long = "seed", value_name = "NODE")]
    seeds: Vec<String>,

    /// Count each edge once
    #[arg(long)]
    unique: bool,

    /// Leave out edges from a node to itself
    #[arg(long)]
    no_self_loops: bool,

    /// Count malformed lines instead of ending at the first
    #[arg(long)]
    skip_malformed: bool,

    /// Nodes to show
    #[arg(long, value_name = "COUNT", default_value_t = 10)]
    top: usize,

    /// Write all ranks to this file with the columns node and rank: as CSV, or if its name ends in .npy
    /// as a structured array of NumPy, in .parquet as Parquet
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,

    /// Threads to compute on [default: one a core]
    #[arg(long, value_name = "COUNT", default_value_t = 0, hide_default_value = true)]
    threads: usize,

    /// Show neither progress nor summary
    #[arg(long, short)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InputFormat {
    /// Two whole numbers a line
    EdgeList,
    /// Matrix Market coordinates
    MatrixMarket,
    /// Names, comma-separated
    Csv,
    /// An array of NumPy, of shape (edges, 2)
    Npy,
    /// Parquet or Arrow
    #[cfg(feature = "tables")]
    Table,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Precision {
    F32,
    F64,
}

const HELP: &str = "\
Formats, by the end of the name (with or without .gz): .txt, .el, .edges, .tsv, .snap: a line an edge, two
numbers, # begins a comment; .mtx: Matrix Market; .csv: names, in the columns source and target, from and
to, src and dst, or else the first two; .npy: an array of shape (edges, 2); .parquet, .arrow, .feather: tables,
with columns as in CSV, of names or whole numbers (not gzip, and from a file only).

Repeated edges and self loops count as they are given, see --unique and --no-self-loops. Weights and
other columns are not used.

Examples:
  dotcompute pagerank web-Google.txt.gz
  dotcompute pagerank EDGES --tolerance 1e-8 --output ranks.csv
  dotcompute pagerank needs.csv --source package --target needs --unique --top 20
  dotcompute pagerank citations.txt --seed 104 --seed 205=3

Exit status: 0 done; 1 bad input or a failure; 2 wrong usage. If the ranks have not settled after
--max-iterations turns the summary says so.";

pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode, Failure> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(arguments.threads)
        .build_global()
        .map_err(|error| Failure::new(FAILED, format!("cannot start threads: {error}"), ""))?;
    let bar = Bar::new(arguments.quiet);
    let start = Instant::now();
    let Edges { mut pairs, nodes, malformed, malformed_lines } = read(arguments, &bar)?;
    let reading = start.elapsed();

    if arguments.no_self_loops {
        pairs.iter_mut().for_each(without_self_loops);
    }
    if arguments.unique {
        let mut all = pairs.concat();
        without_repeats(&mut all);
        pairs = vec![all];
    }
    let query = query(arguments, &nodes)?;
    let start = Instant::now();
    bar.say("building");
    let graph = Graph::build_pieces(nodes.count(), pairs)
        .map_err(|error| Failure::new(FAILED, error, ""))?;
    let building = start.elapsed();

    let single = query.tolerance >= f32::MIN_TOLERANCE;
    let precision =
        arguments.precision.unwrap_or(if single { Precision::F32 } else { Precision::F64 });
    let start = Instant::now();
    let (outcome, table) = match precision {
        Precision::F32 => rank::<f32>(arguments, &graph, &query, &nodes, &bar)?,
        Precision::F64 => rank::<f64>(arguments, &graph, &query, &nodes, &bar)?,
    };
    let ranking = start.elapsed();
    bar.end();

    if !arguments.quiet {
        let mut text = String::new();
        for line in malformed_lines {
            let _ = writeln!(text, "dotcompute: line {}: {}", line.line, line.reason);
        }
        if malformed > 0 {
            let _ = writeln!(text, "dotcompute: {malformed} malformed lines were left out");
        }
        let _ = writeln!(
            text,
            "{} nodes, {} edges; {} turns, the last moved the ranks by {:.1e}{}",
            graph.nodes(),
            graph.links(),
            outcome.iterations,
            outcome.change,
            if outcome.converged || arguments.tolerance == 0.0 {
                ""
            } else {
                ": NOT SETTLED, see --max-iterations"
            },
        );
        let _ = writeln!(
            text,
            "read {}, build {}, rank {} ({:.0} M edges/s a turn)",
            seconds(reading),
            seconds(building),
            seconds(ranking),
            graph.links() as f64 * f64::from(outcome.iterations)
                / ranking.as_secs_f64().max(1e-9)
                / 1e6,
        );
        // Nobody is there to be told that standard error is closed.
        let _ = io::stderr().write_all(text.as_bytes());
    }
    print(&table)
}

/// How the iteration ended.
struct Outcome {
    iterations: u32,
    change: f64,
    converged: bool,
}

fn rank<T: Score>(
    arguments: &Arguments,
    graph: &Graph,
    query: &Query,
    nodes: &Nodes,
    bar: &Bar,
) -> Result<(Outcome, String), Failure> {
    let mut watch = |turn: dotcompute_workloads::pagerank::Turn| {
        bar.say(&format!("turn {}, change {:.1e}", turn.iterations, turn.change));
        ControlFlow::Continue(())
    };
    let ranks: Ranks<T> = graph
        .rank(query, &mut watch)
        .map_err(|error| Failure::new(USAGE, error, "See dotcompute pagerank --help."))?;
    if let Some(path) = &arguments.output {
        bar.say("writing");
        write_all(path, nodes, &ranks.scores).map_err(|error| {
            Failure::new(FAILED, format!("cannot write {}: {error}", path.display()), "")
        })?;
    }
    let mut table = String::new();
    for (node, score) in top(&ranks.scores, arguments.top) {
        let _ = writeln!(table, "{:.9}\t{}", score.to_f64(), nodes.name(node));
    }
    let Ranks { iterations, change, converged, .. } = ranks;
    Ok((Outcome { iterations, change, converged }, table))
}

/// Writes all ranks. The file appears when it is whole: whoever waits for it, or is interrupted, never
/// finds half of it.
fn write_all<T: Score>(path: &Path, nodes: &Nodes, scores: &[T]) -> io::Result<()> {
    let mut partial = path.as_os_str().to_owned();
    partial.push(".partial");
    let is_called =
        |wanted: &str| path.extension().is_some_and(|end| end.eq_ignore_ascii_case(wanted));
    if is_called("npy") {
        write_npy(BufWriter::new(File::create(&partial)?), nodes, scores)?;
        return fs::rename(partial, path);
    }
    #[cfg(feature = "tables")]
    if is_called("parquet") {
        crate::tables::write_ranks(File::create(&partial)?, nodes, scores)?;
        return fs::rename(partial, path);
    }
    let mut out = csv::Writer::from_writer(BufWriter::new(File::create(&partial)?));
    out.write_record(["node", "rank"])?;
    for (node, score) in (0..).zip(scores) {
        // The shortest text that reads back as the same number.
        out.write_record([nodes.name(node), format!("{:e}", score.to_f64())])?;
    }
    out.flush()?;
    drop(out);
    fs::rename(partial, path)
}

/// A structured array: the node's number as 8 bytes, its rank as 8 more.
fn write_npy<T: Score>(mut out: impl io::Write, nodes: &Nodes, scores: &[T]) -> io::Result<()> {
    let ids: &dyn Fn(u32) -> u64 = match nodes {
        Nodes::Range(_) => &|node| u64::from(node),
        Nodes::Ids(ids) => &|node| ids[node as usize],
        Nodes::Names(_) => {
            return Err(io::Error::other("nodes that have names are written as CSV: name it .csv"));
        }
    };
    let mut header = format!(
        "{{'descr': [('node', '<u8'), ('rank', '<f8')], 'fortran_order': False, 'shape': ({},), }}",
        scores.len()
    );
    // The data begin at a multiple of 64 bytes.
    let padding = 63 - (10 + header.len()) % 64;
    header.extend(std::iter::repeat_n(' ', padding));
    header.push('\n');
    out.write_all(b"\x93NUMPY\x01\x00")?;
    // A header of one number is a few hundred bytes.
    out.write_all(&(header.len() as u16).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    for (node, score) in (0..).zip(scores) {
        out.write_all(&ids(node).to_le_bytes())?;
        out.write_all(&score.to_f64().to_le_bytes())?;
    }
    out.flush()
}

fn query(arguments: &Arguments, nodes: &Nodes) -> Result<Query, Failure> {
    let seed = |text: &String| -> Result<(u32, f64), Failure> {
        if let Some(node) = nodes.find(text) {
            return Ok((node, 1.0));
        }
        // A name may hold the sign itself.
        let (name, weight) = text.rsplit_once('=').unwrap_or((text, "1"));
        let node = nodes.find(name).ok_or_else(|| {
            Failure::new(USAGE, format!("seed {name:?} is no node of the graph"), "")
        })?;
        let weight = weight.parse().map_err(|_| {
            Failure::new(USAGE, format!("{weight:?} is no weight"), "Give a seed as NODE=WEIGHT.")
        })?;
        Ok((node, weight))
    };
    Ok(Query {
        damping: arguments.damping,
        tolerance: arguments.tolerance,
        max_iterations: arguments.max_iterations,
        seeds: arguments.seeds.iter().map(seed).collect::<Result<_, _>>()?,
    })
}

/// The edges, in pieces.
fn read(arguments: &Arguments, bar: &Bar) -> Result<Edges<Vec<Vec<[u32; 2]>>>, Failure> {
    let path = &arguments.edges;
    let name =
        if path == Path::new("-") { "standard input".into() } else { path.display().to_string() };
    let format = format(arguments)?;
    let lines = format.unwrap_or(Format::EdgeList);
    let mut reader = Reader::new(lines).skip_malformed(arguments.skip_malformed);
    if let Some(nodes) = arguments.nodes {
        reader = reader.nodes(nodes);
    }
    if let (Some(source), Some(target)) = (&arguments.source, &arguments.target) {
        reader = reader.columns(source, target);
    }
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(FAILED, format!("{name}: {error}"), "");
    let mut watch = |progress: Progress| {
        bar.say(&format!("{} MB read, {} edges", progress.bytes / 1_000_000, progress.edges));
        ControlFlow::Continue(())
    };
    #[cfg(feature = "tables")]
    if format.is_none() {
        if path == Path::new("-") {
            return Err(crate::tables::not_a_file());
        }
        let tables = crate::tables::open(path)?;
        let edges = reader.read_table(tables, &mut watch).map_err(|error| failed(&error))?;
        return Ok(edges.into_pieces());
    }
    let mut input: Box<dyn Read> = match path == Path::new("-") {
        true => Box::new(io::stdin().lock()),
        false => Box::new(File::open(path).map_err(|error| failed(&error))?),
    };
    // What begins with gzip's mark is gzip, whatever it is called.
    let mut mark = Vec::new();
    input.by_ref().take(2).read_to_end(&mut mark).map_err(|error| failed(&error))?;
    let gzip = mark == [0x1f, 0x8b];
    let input = io::Cursor::new(mark).chain(input);
    let input: Box<dyn Read> =
        if gzip { Box::new(MultiGzDecoder::new(input)) } else { Box::new(input) };
    reader.read_pieces(input, &mut watch).map_err(|error| failed(&error))
}

/// The format; none of a table.
fn format(arguments: &Arguments) -> Result<Option<Format>, Failure> {
    let path = &arguments.edges;
    match arguments.format {
        Some(InputFormat::EdgeList) => return Ok(Some(Format::EdgeList)),
        Some(InputFormat::MatrixMarket) => return Ok(Some(Format::MatrixMarket)),
        Some(InputFormat::Csv) => return Ok(Some(Format::Csv)),
        Some(InputFormat::Npy) => return Ok(Some(Format::Npy)),
        #[cfg(feature = "tables")]
        Some(InputFormat::Table) => return Ok(None),
        None if path == Path::new("-") => return Ok(Some(Format::EdgeList)),
        None => {}
    }
    let extension = |path: &Path| {
        path.extension().and_then(OsStr::to_str).unwrap_or_default().to_ascii_lowercase()
    };
    let mut found = extension(path);
    if found == "gz" {
        found = extension(Path::new(path.file_stem().unwrap_or_default()));
    }
    match found.as_str() {
        "txt" | "el" | "edges" | "tsv" | "snap" => Ok(Some(Format::EdgeList)),
        "mtx" => Ok(Some(Format::MatrixMarket)),
        "csv" => Ok(Some(Format::Csv)),
        "npy" => Ok(Some(Format::Npy)),
        #[cfg(feature = "tables")]
        found if crate::tables::EXTENSIONS.contains(&found) => Ok(None),
        _ => Err(Failure::new(
            USAGE,
            format!("the name {} does not say what format the file has", path.display()),
            "Say it with --format edge-list, matrix-market, csv, npy or table.",
        )),
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.3} s", time.as_secs_f64())
}

/// One line on standard error, if that is a terminal.
struct Bar(ProgressBar);

impl Bar {
    fn new(quiet: bool) -> Self {
        let target =
            if quiet { ProgressDrawTarget::hidden() } else { ProgressDrawTarget::stderr() };
        let bar = ProgressBar::with_draw_target(None, target);
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn say(&self, text: &str) {
        if !self.0.is_hidden() {
            self.0.set_message(text.to_owned());
            self.0.tick();
        }
    }

    fn end(&self) {
        self.0.finish_and_clear();
    }
}
