//! The report: one page of HTML that needs nothing beside itself, with the rows as bars, latencies and
//! curves.
//!
//! A bar shows how many times better ours is than the other: to the right of the line at 1 it is better,
//! on a logarithmic axis, so that twice and half are as far from it. The quartiles are drawn over its
//! end, the goal as a tick.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::groups::GROUPS;
use crate::harness::{SHARES, Wrong};
use crate::readme::CHOSEN;
use crate::report::Environment;

/// A row as the JSON files have it, ours or those of the Python package.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Shown {
    id: String,
    group: String,
    #[serde(default)]
    what: String,
    unit: String,
    better: String,
    ours: Option<f64>,
    against: String,
    other: Option<f64>,
    ratio: Option<f64>,
    ratio_q1: Option<f64>,
    ratio_q3: Option<f64>,
    goal: Option<f64>,
    met: Option<bool>,
    ours_p50_ns: Option<f64>,
    ours_p99_ns: Option<f64>,
    other_p50_ns: Option<f64>,
    other_p99_ns: Option<f64>,
    #[serde(default)]
    ours_distribution_ns: Vec<f64>,
    #[serde(default)]
    other_distribution_ns: Vec<f64>,
    /// Why there is no figure.
    error: Option<String>,
}

/// What was measured over a range of sizes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Curve {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) series: Vec<Series>,
}

/// One line of a curve: points of x and y, ascending, all above zero.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Series {
    pub(crate) name: String,
    pub(crate) points: Vec<(f64, f64)>,
}

/// A part of the page: rows that were measured by one program.
pub(crate) struct Part {
    pub(crate) title: String,
    /// Where and when, as text.
    pub(crate) environment: String,
    /// Groups, and what each is about.
    pub(crate) groups: Vec<(String, String)>,
    pub(crate) rows: Vec<Shown>,
    pub(crate) curves: Vec<Curve>,
    /// What could not be measured, and why.
    pub(crate) skipped: Vec<String>,
}

const STYLE: &str = include_str!("page.css");

/// The groups of the Python package's rows, each with what it is about.
const PYTHON_GROUPS: [(&str, &str); 10] = [
    (
        "asyncio",
        "kernels that are tasks of an event loop, beside PyDotCompute 0.2.0 and bare futures",
    ),
    ("life", "how soon kernels end"),
    ("threads", "kernels on threads, with queues between them"),
    ("handlers", "compiled handlers: a record through a function that numba compiled"),
    ("process", "kernels in processes of their own, beside multiprocessing and iceoryx2"),
    ("queue", "one queue alone"),
    ("message", "making, writing and reading messages"),
    ("pagerank", "ranking a graph of five links a node, beside the libraries that do"),
    ("anomaly", "an event through a detector of 10,000 keys, beside the libraries that do"),
    ("actors", "a message of three numbers and its answer, beside the actors of other libraries"),
];

/// What a report has to show: our own rows, and those of the Python package where there are some.
pub(crate) fn parts(report: &Value) -> Result<Vec<Part>, Wrong> {
    let rows = |of: &Value| Vec::<Shown>::deserialize(of).map_err(Wrong::new);
    let mut parts = vec![Part {
        title: "Rust".into(),
        environment: Environment::deserialize(&report["environment"]).map_err(Wrong::new)?.text(),
        groups: GROUPS.map(|(group, about)| (group.to_owned(), about.to_owned())).to_vec(),
        rows: rows(&report["rows"])?,
        curves: Vec::deserialize(&report["curves"]).map_err(Wrong::new)?,
        skipped: Vec::deserialize(&report["skipped"]).map_err(Wrong::new)?,
    }];
    if let Some(python) = report.get("python") {
        let rows = rows(python)?;
        let mut groups: Vec<(String, String)> = Vec::new();
        for row in &rows {
            if groups.iter().all(|(group, _)| *group != row.group) {
                let about = PYTHON_GROUPS.iter().find(|(group, _)| *group == row.group);
                let about = about.map_or("", |(_, about)| about);
                groups.push((row.group.clone(), about.to_owned()));
            }
        }
        parts.push(Part {
            title: "Python".into(),
            environment: "on the same machine, each run a process of its own".into(),
            groups,
            rows,
            curves: Vec::new(),
            skipped: Vec::new(),
        });
    }
    Ok(parts)
}

/// The whole page.
pub(crate) fn html(parts: &[Part]) -> String {
    let rows = || parts.iter().flat_map(|part| &part.rows);
    let goals = rows().filter(|row| row.goal.is_some() && row.ratio.is_some()).count();
    let met = rows().filter(|row| row.met == Some(true)).count();
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>dotcompute, measured</title><style>{STYLE}</style></head><body>\n\
         <h1>dotcompute, measured</h1>\n\
         <p>{} comparisons with peers, floors and limits. \
         <b class=\"good\">{met}</b> of {goals} goals reached.</p>\n",
        rows().count(),
    );
    cards(&mut page, parts);
    page.push_str("<nav>");
    for part in parts {
        write(&mut page, format_args!("<b>{}</b>", text(&part.title)));
        for (group, _) in part.shown_groups() {
            let anchor = part.anchor(group);
            write(&mut page, format_args!("<a href=\"#{anchor}\">{}</a>", text(group)));
        }
    }
    page.push_str(
        "</nav>\n<p class=\"soft\">Each row runs ours and the other in alternating slices of one run; its \
         ratio is the median over the pairs, and every result is verified while it is measured. A bar to \
         the right of 1 says how many times better ours is, on a logarithmic axis: \
         <span class=\"good\">goal reached</span>, <span class=\"miss\">goal missed</span>, \
         <span class=\"plain\">no goal</span>. The thin line spans the quartiles, the tick is the goal. \
         Absolute times are noise on a shared machine.</p>\n",
    );
    for part in parts {
        part_of(&mut page, part);
    }
    page.push_str("</body></html>\n");
    page
}

/// The rows that stand for the rest, as large numbers.
fn cards(page: &mut String, parts: &[Part]) {
    let find = |id: &str| parts.iter().flat_map(|part| &part.rows).find(|row| row.id == id);
    let chosen = CHOSEN.iter().filter_map(|(id, what)| {
        let row = find(id)?;
        Some((row, row.times(row.ratio?), what))
    });
    let chosen: Vec<_> = chosen.collect();
    if chosen.is_empty() {
        return;
    }
    page.push_str("<div class=\"cards\">\n");
    for (row, times, what) in chosen {
        write(
            page,
            format_args!(
                "<div class=\"card\"><b class=\"{}\">{}</b>as fast as {}<br>\
                 <span class=\"soft\">{}</span></div>\n",
                row.class(),
                if times < 1.0 {
                    format!("{:.0} %", times * 100.0)
                } else {
                    format!("{}\u{d7}", number(times))
                },
                text(&row.against),
                text(what),
            ),
        );
    }
    page.push_str("</div>\n");
}

impl Part {
    /// The groups that have rows.
    fn shown_groups(&self) -> impl Iterator<Item = &(String, String)> {
        let has_rows = |group: &str| self.rows.iter().any(|row| row.group == group);
        self.groups.iter().filter(move |(group, _)| has_rows(group))
    }

    fn anchor(&self, group: &str) -> String {
        format!("{}-{}", text(&self.title), text(group)).to_lowercase()
    }
}

fn part_of(page: &mut String, part: &Part) {
    write(page, format_args!("<h2>{}</h2>\n", text(&part.title)));
    write(page, format_args!("<pre>{}</pre>\n", text(part.environment.trim())));
    for (group, about) in part.shown_groups() {
        let rows: Vec<&Shown> = part.rows.iter().filter(|row| row.group == *group).collect();
        let anchor = part.anchor(group);
        write(page, format_args!("<h3 id=\"{anchor}\">{}</h3>\n", text(group)));
        if !about.is_empty() {
            write(page, format_args!("<p class=\"soft\">{}</p>\n", text(about)));
        }
        bars(page, &rows);
        latencies(page, &rows);
        distributions(page, &rows);
        table(page, &rows);
    }
    if !part.curves.is_empty() {
        page.push_str("<h3>by size</h3>\n<div class=\"pairs\">\n");
        part.curves.iter().for_each(|curve| lines(page, curve));
        page.push_str("</div>\n");
    }
    for skipped in &part.skipped {
        write(page, format_args!("<p class=\"soft\">Skipped {}.</p>\n", text(skipped)));
    }
}

impl Shown {
    /// A ratio ours/other as how many times better ours is.
    fn times(&self, ratio: f64) -> f64 {
        if self.better == "higher" { ratio } else { 1.0 / ratio }
    }

    fn name(&self) -> &str {
        self.id.split_once('.').map_or(&self.id, |(_, name)| name)
    }

    /// The class of what is drawn of it: its colour.
    fn class(&self) -> &'static str {
        match self.met {
            Some(true) => "good",
            Some(false) => "miss",
            None => "plain",
        }
    }

    /// Its name and what it is held against, as the beginning of a row of a chart.
    fn open_row(&self, page: &mut String) {
        write(
            page,
            format_args!(
                "<div class=\"row\" title=\"{}\"><span class=\"name\">{}<small>{}</small></span>\
                 <span class=\"track\">",
                text(&self.what),
                text(self.name()),
                text(&self.against),
            ),
        );
    }
}

/// A logarithmic axis from `low` to `high` over some pixels.
struct Axis {
    low: f64,
    high: f64,
    left: f64,
    right: f64,
}

impl Axis {
    /// Around all values, with a little room.
    fn around(values: impl Iterator<Item = f64>, left: f64, right: f64) -> Self {
        let finite = values.filter(|value| value.is_finite() && *value > 0.0);
        let (low, high) = finite
            .fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
        let (low, high) = if low <= high { (low, high) } else { (1.0, 10.0) };
        Self { low: low / 1.15, high: high * 1.15, left, right }
    }

    fn at(&self, value: f64) -> f64 {
        let share =
            (value.max(self.low).min(self.high) / self.low).ln() / (self.high / self.low).ln();
        self.left + (self.right - self.left) * share
    }

    /// Where to write a number: the powers of ten, and what lies between them if they are few.
    fn marks(&self) -> Vec<f64> {
        let decades = (self.high / self.low).log10();
        let steps: &[f64] = match decades {
            many if many > 3.0 => &[1.0],
            some if some > 0.7 => &[1.0, 2.0, 5.0],
            _ => &[1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0],
        };
        let first = self.low.log10().floor() as i32;
        let last = self.high.log10().ceil() as i32;
        (first..=last)
            .flat_map(|power| steps.iter().map(move |step| step * 10_f64.powi(power)))
            .filter(|mark| (self.low..=self.high).contains(mark))
            .collect()
    }
}

/// The lines of an axis behind what is drawn in a row.
fn marks(page: &mut String, axis: &Axis) {
    for mark in axis.marks() {
        let class = if mark == 1.0 { "mark one" } else { "mark" };
        write(page, format_args!("<i class=\"{class}\" style=\"left:{:.2}%\"></i>", axis.at(mark)));
    }
}

/// What stands under them: no more than a narrow window has room for.
fn scale(page: &mut String, axis: &Axis, name: impl Fn(f64) -> String) {
    page.push_str("<div class=\"row axis\"><span class=\"name\"></span><span class=\"track\">");
    let mut end = f64::NEG_INFINITY;
    for mark in axis.marks() {
        let at = axis.at(mark);
        if at - end > 11.0 || mark == 1.0 {
            end = at;
            write(page, format_args!("<b style=\"left:{at:.2}%\">{}</b>", text(&name(mark))));
        }
    }
    page.push_str("</span><span class=\"figure\"></span></div>\n");
}

/// A bar, or a line, between two places.
fn between(page: &mut String, class: &str, a: f64, b: f64) {
    let (left, width) = (a.min(b), (a - b).abs());
    write(
        page,
        format_args!("<i class=\"{class}\" style=\"left:{left:.2}%;width:{width:.2}%\"></i>"),
    );
}

/// How many times better ours is.
fn bars(page: &mut String, rows: &[&Shown]) {
    let measured: Vec<&&Shown> = rows.iter().filter(|row| row.ratio.is_some()).collect();
    if measured.is_empty() {
        return;
    }
    let values = measured.iter().flat_map(|row| {
        [row.ratio, row.ratio_q1, row.ratio_q3, row.goal]
            .map(|ratio| ratio.map_or(1.0, |r| row.times(r)))
    });
    let axis = Axis::around(values.chain([1.0]), 0.0, 100.0);
    page.push_str("<div class=\"chart\">\n");
    for row in &measured {
        let Some(ratio) = row.ratio else { continue };
        row.open_row(page);
        marks(page, &axis);
        let times = row.times(ratio);
        between(page, &format!("bar {}", row.class()), axis.at(1.0), axis.at(times));
        if let (Some(q1), Some(q3)) = (row.ratio_q1, row.ratio_q3) {
            between(page, "whisker", axis.at(row.times(q1)), axis.at(row.times(q3)));
        }
        if let Some(goal) = row.goal {
            let at = axis.at(row.times(goal));
            write(page, format_args!("<i class=\"goal\" style=\"left:{at:.2}%\"></i>"));
        }
        write(
            page,
            format_args!(
                "</span><span class=\"figure {}\">{}\u{d7}</span></div>\n",
                row.class(),
                number(times)
            ),
        );
    }
    scale(page, &axis, |mark| format!("{}\u{d7}", number(mark)));
    page.push_str("</div>\n");
}

/// Median and 99th percentile of single operations, ours above the other.
fn latencies(page: &mut String, rows: &[&Shown]) {
    let timed: Vec<_> = rows
        .iter()
        .filter_map(|row| {
            let ours = (row.ours_p50_ns?, row.ours_p99_ns?);
            Some((row, ours, row.other_p50_ns.zip(row.other_p99_ns)))
        })
        .collect();
    if timed.is_empty() {
        return;
    }
    let values = timed.iter().flat_map(|(_, ours, other)| {
        let other = other.unwrap_or(*ours);
        [ours.0, ours.1, other.0, other.1]
    });
    let axis = Axis::around(values, 0.0, 100.0);
    page.push_str(
        "<p class=\"soft\">Single operations, from the median (large) to the 99th percentile (small): \
         ours above, the other <span class=\"other\">below</span>.</p>\n<div class=\"chart\">\n",
    );
    for (row, ours, other) in &timed {
        row.open_row(page);
        marks(page, &axis);
        let both = [(Some(*ours), row.class(), "upper"), (*other, "other", "lower")];
        for (span, class, place) in both {
            let Some((p50, p99)) = span else { continue };
            let (a, b) = (axis.at(p50), axis.at(p99));
            between(page, &format!("span {class} {place}"), a, b);
            for (size, at) in [("dot", a), ("dot small", b)] {
                write(
                    page,
                    format_args!(
                        "<i class=\"{size} {class} {place}\" style=\"left:{at:.2}%;\
                         transform:translateY(1px)\"></i>"
                    ),
                );
            }
        }
        let median = time(ours.0);
        write(page, format_args!("</span><span class=\"figure\">{median}</span></div>\n"));
    }
    scale(page, &axis, time);
    page.push_str("</div>\n");
}

/// Which share of the single operations took longer than so much: ours in its colour, the other in
/// grey, two rows side by side.
fn distributions(page: &mut String, rows: &[&Shown]) {
    let told: Vec<&&Shown> =
        rows.iter().filter(|row| row.ours_distribution_ns.len() == SHARES.len()).collect();
    if told.is_empty() {
        return;
    }
    page.push_str(
        "<p class=\"soft\">The whole distributions: how many of the operations took longer.</p>\n\
         <div class=\"pairs\">\n",
    );
    // Down to one in ten thousand.
    let height = |share: f64| 150.0 + (1.0 - share).log10() * 32.0;
    for row in told {
        let both = || [&row.ours_distribution_ns, &row.other_distribution_ns];
        let values = both().into_iter().flatten().copied();
        let axis = Axis::around(values, 60.0, 410.0);
        write(
            page,
            format_args!(
                "<figure><h4>{}</h4><div class=\"legend\">\
                 <span style=\"--key:var(--{})\">ours</span>\
                 <span style=\"--key:var(--other)\">{}</span></div>\
                 <svg viewBox=\"0 12 430 164\" role=\"img\">",
                text(row.name()),
                row.class(),
                text(&row.against),
            ),
        );
        let marks =
            [(0.0, "all"), (0.9, "1 in 10"), (0.99, "100"), (0.999, "1000"), (0.9999, "10,000")];
        for (share, name) in marks {
            let y = 172.0 - height(share);
            write(
                page,
                format_args!(
                    "<line class=\"axis\" x1=\"60\" x2=\"410\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                     <text text-anchor=\"end\" x=\"54\" y=\"{:.1}\">{name}</text>",
                    y + 4.0
                ),
            );
        }
        below(page, &axis, 170.0, time);
        let colours = ["other", row.class()];
        for (points, colour) in both().into_iter().rev().zip(colours) {
            let path: Vec<String> = points
                .iter()
                .zip(SHARES)
                .map(|(ns, share)| format!("{:.1},{:.1}", axis.at(*ns), 172.0 - height(share)))
                .collect();
            write(
                page,
                format_args!(
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"var(--{colour})\" \
                     stroke-width=\"2\"/>",
                    path.join(" ")
                ),
            );
        }
        page.push_str("</svg></figure>\n");
    }
    page.push_str("</div>\n");
}

/// The numbers under a plot: no two of them in one place.
fn below(page: &mut String, axis: &Axis, y: f64, name: impl Fn(f64) -> String) {
    let mut end = f64::NEG_INFINITY;
    for mark in axis.marks() {
        let (at, name) = (axis.at(mark), name(mark));
        // A letter is about seven wide.
        let half = 3.5 * name.chars().count() as f64;
        if at - half < end + 6.0 {
            continue;
        }
        end = at + half;
        write(
            page,
            format_args!(
                "<text text-anchor=\"middle\" x=\"{at:.1}\" y=\"{y:.1}\">{}</text>",
                text(&name)
            ),
        );
    }
}

const COLOURS: [&str; 4] = ["good", "other", "plain", "miss"];

fn lines(page: &mut String, curve: &Curve) {
    let points = || curve.series.iter().flat_map(|series| &series.points);
    let x = Axis::around(points().map(|point| point.0), 48.0, 420.0);
    let y = Axis::around(points().map(|point| point.1), 210.0, 8.0);
    write(page, format_args!("<figure><h4>{}</h4><div class=\"legend\">", text(&curve.title)));
    let coloured = || curve.series.iter().zip(COLOURS.iter().cycle());
    for (series, colour) in coloured() {
        let name = text(&series.name);
        write(page, format_args!("<span style=\"--key:var(--{colour})\">{name}</span>"));
    }
    page.push_str("</div><svg viewBox=\"0 0 430 256\" role=\"img\">");
    for mark in x.marks() {
        let at = x.at(mark);
        write(
            page,
            format_args!(
                "<line class=\"axis\" x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"8\" y2=\"210\"/>"
            ),
        );
    }
    below(page, &x, 228.0, number);
    for mark in y.marks() {
        let at = y.at(mark);
        write(
            page,
            format_args!(
                "<line class=\"axis\" x1=\"48\" x2=\"420\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text text-anchor=\"end\" x=\"42\" y=\"{:.1}\">{}</text>",
                at + 4.0,
                number(mark)
            ),
        );
    }
    for (series, colour) in coloured() {
        let places = series.points.iter().map(|point| (x.at(point.0), y.at(point.1)));
        let path: Vec<String> = places.clone().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        write(
            page,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"var(--{colour})\" \
                 stroke-width=\"2\"/>",
                path.join(" ")
            ),
        );
        for (x, y) in places {
            write(
                page,
                format_args!(
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"var(--{colour})\"/>"
                ),
            );
        }
    }
    write(
        page,
        format_args!(
            "<text text-anchor=\"middle\" x=\"234\" y=\"250\">{}; upwards {}</text></svg></figure>\n",
            text(&curve.x),
            text(&curve.y)
        ),
    );
}

fn table(page: &mut String, rows: &[&Shown]) {
    page.push_str(
        "<details><summary>Figures</summary><div class=\"table\"><table><tr><th>row</th><th class=\"n\">ours</th>\
         <th class=\"n\">other</th><th>unit</th><th class=\"n\">ratio</th><th class=\"n\">goal</th>\
         <th>against</th></tr>\n",
    );
    let figure = |value: Option<f64>| value.map_or_else(String::new, number);
    for row in rows {
        let sign = if row.better == "higher" { "\u{2265}" } else { "\u{2264}" };
        let goal =
            row.goal.map_or_else(|| "stated".to_owned(), |goal| format!("{sign} {}", number(goal)));
        let class = match row.met {
            Some(true) => "n good",
            Some(false) => "n miss",
            None => "n",
        };
        let what = if row.what.is_empty() { String::new() } else { format!(": {}", row.what) };
        write(
            page,
            format_args!(
                "<tr><td><b>{}</b>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td>\
                 <td class=\"{class}\">{}</td><td class=\"n\">{goal}</td><td>{}</td></tr>\n",
                text(&row.id),
                text(&what),
                figure(row.ours),
                figure(row.other),
                text(&row.unit),
                figure(row.ratio),
                text(row.error.as_ref().unwrap_or(&row.against)),
            ),
        );
    }
    page.push_str("</table></div></details>\n");
}

/// Three digits, and no more zeros than it takes.
fn number(value: f64) -> String {
    let digits = match value.abs() {
        0.0 => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        size => (2 - size.log10().floor() as i32).clamp(2, 6) as usize,
    };
    let large = [(1e9, "G"), (1e6, "M"), (1e4, "k")];
    if let Some((unit, name)) = large.into_iter().find(|(unit, _)| value >= *unit) {
        let unit = if name == "k" { 1e3 } else { unit };
        return format!("{}{name}", number(value / unit));
    }
    let written = format!("{value:.digits$}");
    match written.contains('.') {
        true => written.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => written,
    }
}

fn time(ns: f64) -> String {
    match ns {
        ns if ns >= 1e9 => format!("{} s", number(ns / 1e9)),
        ns if ns >= 1e6 => format!("{} ms", number(ns / 1e6)),
        ns if ns >= 1e3 => format!("{} \u{b5}s", number(ns / 1e3)),
        ns => format!("{} ns", number(ns)),
    }
}

/// Text that stands for itself in HTML.
fn text(raw: &str) -> String {
    raw.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

fn write(page: &mut String, arguments: std::fmt::Arguments<'_>) {
    // Writing into a String does not fail.
    let _ = page.write_fmt(arguments);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row() -> Shown {
        serde_json::from_str(
            r#"{"id": "ring.a", "group": "ring", "unit": "ns", "better": "lower", "ours": 50.0,
                "against": "a <peer>", "other": 100.0, "ratio": 0.5, "goal": 1.0, "met": true,
                "ours_p50_ns": 40.0, "ours_p99_ns": 90.0}"#,
        )
        .expect("a row")
    }

    #[test]
    fn a_page_shows_every_row_and_every_curve_and_escapes_what_it_names() {
        let curve = Curve {
            title: "cost".into(),
            x: "edges".into(),
            y: "ns".into(),
            series: vec![Series { name: "ours".into(), points: vec![(1e4, 1.0), (1e8, 2.0)] }],
        };
        let failed = Shown { ratio: None, met: None, error: Some("no peer".into()), ..row() };
        let page = html(&[Part {
            title: "Rust".into(),
            environment: "a machine".into(),
            groups: vec![("ring".into(), "rings".into()), ("none".into(), String::new())],
            rows: vec![row(), failed],
            curves: vec![curve],
            skipped: vec!["x: needs 2 cores".into()],
        }]);
        for shown in
            ["1</b> of 1 goals", "ring.a", "a &lt;peer&gt;", "2\u{d7}", "no peer", "polyline"]
        {
            assert!(page.contains(shown), "{shown} should be in {page}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf") && !page.contains("http"));
    }

    #[test]
    fn better_is_to_the_right_whichever_way_a_figure_goes() {
        assert_eq!(row().times(0.5), 2.0);
        assert_eq!(Shown { better: "higher".into(), ..row() }.times(0.5), 0.5);
    }

    #[test]
    fn numbers_keep_three_digits() {
        for (value, written) in [
            (0.0, "0"),
            (0.0125, "0.0125"),
            (1.0, "1"),
            (2.345, "2.35"),
            (123.4, "123"),
            (2e7, "20M"),
            (12_345.0, "12.3k"),
        ] {
            assert_eq!(number(value), written);
        }
    }

    #[test]
    fn an_axis_without_values_is_still_one() {
        let axis = Axis::around([f64::NAN, -1.0].into_iter(), 0.0, 100.0);
        assert!(axis.at(3.0).is_finite() && !axis.marks().is_empty());
    }
}
