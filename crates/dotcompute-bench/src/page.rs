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
use crate::report::Report;

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
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Curve {
    pub(crate) title: String,
    pub(crate) x: String,
    pub(crate) y: String,
    pub(crate) series: Vec<Series>,
}

/// One line of a curve: points of x and y, ascending, all above zero.
#[derive(Clone, Debug, Serialize)]
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

const STYLE: &str = "\
:root{--ink:#1b1f24;--soft:#667080;--line:#d9dee5;--paper:#fff;--good:#1a7f4b;--miss:#c2571a;\
--plain:#6b7a90;--other:#b3bccb}\
@media(prefers-color-scheme:dark){:root{--ink:#e8ebf0;--soft:#98a2b3;--line:#343b46;--paper:#14171c;\
--good:#3fbf7f;--miss:#f08c4a;--plain:#8b9bb4;--other:#566072}}\
body{margin:0 auto;max-width:60rem;padding:2.5rem 1.25rem 5rem;background:var(--paper);color:var(--ink);\
font:16px/1.55 system-ui,sans-serif}\
h1{font-size:2rem;margin:0 0 .25rem;letter-spacing:-.02em}h2{margin:3.5rem 0 .5rem}\
h3{margin:2.25rem 0 .25rem;font-size:1.1rem}p{margin:.25rem 0 1rem}p.soft,.soft{color:var(--soft)}\
pre{color:var(--soft);font-size:.8rem;overflow-x:auto;white-space:pre-wrap}\
svg{display:block;width:100%;height:auto;overflow:visible}svg text{fill:var(--ink);font:12px system-ui,sans-serif}\
svg .soft{fill:var(--soft)}svg .axis{stroke:var(--line)}svg .one{stroke:var(--soft)}\
table{border-collapse:collapse;font-size:.8rem;width:100%;font-variant-numeric:tabular-nums}\
td,th{border-bottom:1px solid var(--line);padding:.3rem .5rem;text-align:left;vertical-align:top}\
td.n,th.n{text-align:right;white-space:nowrap}summary{cursor:pointer;color:var(--soft);margin:.5rem 0}\
.pairs{display:grid;grid-template-columns:repeat(auto-fit,minmax(18rem,1fr));gap:1rem}\
.tally{font-size:1.15rem}.good{color:var(--good)}.miss{color:var(--miss)}";

/// What there is to show: our own rows, and those of the Python package where there are some.
pub(crate) fn parts(
    report: &Report<'_>,
    environment: &str,
    python: Option<&Value>,
) -> Result<Vec<Part>, Wrong> {
    let shown = |rows: Value| serde_json::from_value::<Vec<Shown>>(rows).map_err(Wrong::new);
    let rows = serde_json::to_value(report.rows).map_err(Wrong::new)?;
    let mut parts = vec![Part {
        title: "Rust".into(),
        environment: environment.into(),
        groups: GROUPS.map(|(group, about)| (group.to_owned(), about.to_owned())).to_vec(),
        rows: shown(rows)?,
        curves: report.curves.clone(),
        skipped: report.skipped.clone(),
    }];
    if let Some(python) = python {
        let rows = shown(python.clone())?;
        let mut groups: Vec<(String, String)> = Vec::new();
        for row in &rows {
            if groups.iter().all(|(group, _)| *group != row.group) {
                groups.push((row.group.clone(), String::new()));
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
         <title>dotcompute: benchmarks</title><style>{STYLE}</style></head><body>\n\
         <h1>dotcompute, measured</h1>\n\
         <p class=\"tally\"><b class=\"good\">{met}</b> of {goals} goals reached</p>\n\
         <p class=\"soft\">Each row runs ours and a peer, a floor or a limit in alternating slices of one \
         run; the ratio is the median over the pairs. Every result is verified while it is measured. A bar \
         to the right of 1 says how many times better ours is, on a logarithmic axis; its whisker spans the \
         quartiles, its tick is the goal. Absolute times are noise on a shared machine.</p>\n",
    );
    for part in parts {
        part_of(&mut page, part);
    }
    page.push_str("</body></html>\n");
    page
}

fn part_of(page: &mut String, part: &Part) {
    write(page, format_args!("<h2>{}</h2>\n", text(&part.title)));
    write(page, format_args!("<pre>{}</pre>\n", text(part.environment.trim())));
    for (group, about) in &part.groups {
        let rows: Vec<&Shown> = part.rows.iter().filter(|row| row.group == *group).collect();
        if rows.is_empty() {
            continue;
        }
        write(page, format_args!("<h3>{}</h3>\n", text(group)));
        if !about.is_empty() {
            write(page, format_args!("<p class=\"soft\">{}</p>\n", text(about)));
        }
        bars(page, &rows);
        latencies(page, &rows);
        distributions(page, &rows);
        table(page, &rows);
    }
    for curve in &part.curves {
        write(page, format_args!("<h3>{}</h3>\n", text(&curve.title)));
        lines(page, curve);
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

    fn colour(&self) -> &'static str {
        match self.met {
            Some(true) => "var(--good)",
            Some(false) => "var(--miss)",
            None => "var(--plain)",
        }
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

const WIDTH: f64 = 900.0;
const LABELS: f64 = 250.0;
const STEP: f64 = 30.0;

fn bars(page: &mut String, rows: &[&Shown]) {
    let measured: Vec<&&Shown> = rows.iter().filter(|row| row.ratio.is_some()).collect();
    if measured.is_empty() {
        return;
    }
    let values = measured.iter().flat_map(|row| {
        [row.ratio, row.ratio_q1, row.ratio_q3, row.goal]
            .map(|ratio| ratio.map_or(1.0, |r| row.times(r)))
    });
    let axis = Axis::around(values.chain([1.0]), LABELS, WIDTH - 70.0);
    let height = STEP * measured.len() as f64 + 26.0;
    open(page, height);
    for mark in axis.marks() {
        let class = if mark == 1.0 { "one" } else { "axis" };
        vertical(page, axis.at(mark), height, class);
        write(
            page,
            format_args!(
                "<text class=\"soft\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}\u{d7}</text>",
                axis.at(mark),
                height - 6.0,
                number(mark)
            ),
        );
    }
    for (index, row) in measured.iter().enumerate() {
        let middle = STEP * index as f64 + STEP / 2.0;
        let Some(ratio) = row.ratio else { continue };
        let (from, to) = (axis.at(1.0), axis.at(row.times(ratio)));
        write(
            page,
            format_args!(
                "<g><title>{}</title><text x=\"0\" y=\"{:.1}\">{}</text>\
                 <rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"14\" rx=\"2\" fill=\"{}\"/>",
                text(&format!("{}: {} against {}", row.id, row.what, row.against)),
                middle + 4.0,
                text(row.name()),
                from.min(to),
                middle - 7.0,
                (to - from).abs().max(1.0),
                row.colour(),
            ),
        );
        let mut end = from.max(to);
        if let (Some(q1), Some(q3)) = (row.ratio_q1, row.ratio_q3) {
            let (a, b) = (axis.at(row.times(q1)), axis.at(row.times(q3)));
            end = end.max(a).max(b);
            write(
                page,
                format_args!(
                    "<line x1=\"{a:.1}\" x2=\"{b:.1}\" y1=\"{middle:.1}\" y2=\"{middle:.1}\" \
                     stroke=\"var(--ink)\" stroke-width=\"1.5\"/>"
                ),
            );
        }
        if let Some(goal) = row.goal {
            let x = axis.at(row.times(goal));
            write(
                page,
                format_args!(
                    "<line x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"{:.1}\" y2=\"{:.1}\" stroke=\"var(--ink)\" \
                     stroke-width=\"2\"/>",
                    middle - 10.0,
                    middle + 10.0
                ),
            );
        }
        write(
            page,
            format_args!(
                "<text x=\"{:.1}\" y=\"{:.1}\">{}\u{d7}</text></g>",
                end + 8.0,
                middle + 4.0,
                number(row.times(ratio))
            ),
        );
    }
    page.push_str("</svg>\n");
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
    let axis = Axis::around(values, LABELS, WIDTH - 70.0);
    let height = STEP * timed.len() as f64 + 26.0;
    page.push_str(
        "<p class=\"soft\">Single operations, from the median to the 99th percentile: ours, and the \
         other in grey.</p>\n",
    );
    open(page, height);
    for mark in axis.marks() {
        vertical(page, axis.at(mark), height, "axis");
        write(
            page,
            format_args!(
                "<text class=\"soft\" text-anchor=\"middle\" x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                axis.at(mark),
                height - 6.0,
                time(mark)
            ),
        );
    }
    for (index, (row, ours, other)) in timed.iter().enumerate() {
        let middle = STEP * index as f64 + STEP / 2.0;
        write(
            page,
            format_args!("<text x=\"0\" y=\"{:.1}\">{}</text>", middle + 4.0, text(row.name())),
        );
        let both = [(Some(*ours), row.colour(), -5.0), (*other, "var(--other)", 5.0)];
        for (span, colour, offset) in both {
            let Some((p50, p99)) = span else { continue };
            let (a, b, y) = (axis.at(p50), axis.at(p99), middle + offset);
            write(
                page,
                format_args!(
                    "<line x1=\"{a:.1}\" x2=\"{b:.1}\" y1=\"{y:.1}\" y2=\"{y:.1}\" stroke=\"{colour}\" \
                     stroke-width=\"2\"/><circle cx=\"{a:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{colour}\"/>\
                     <circle cx=\"{b:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{colour}\"/>"
                ),
            );
        }
    }
    page.push_str("</svg>\n");
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
        page.push_str("<svg viewBox=\"0 0 430 200\" role=\"img\">");
        write(page, format_args!("<text x=\"60\" y=\"12\">{}</text>", text(row.name())));
        for (share, name) in [(0.0, "all"), (0.9, "1 in 10"), (0.99, "100"), (0.999, "1000")] {
            let y = 172.0 - height(share);
            write(
                page,
                format_args!(
                    "<line class=\"axis\" x1=\"60\" x2=\"410\" y1=\"{y:.1}\" y2=\"{y:.1}\"/>\
                     <text class=\"soft\" text-anchor=\"end\" x=\"54\" y=\"{:.1}\">{name}</text>",
                    y + 4.0
                ),
            );
        }
        for mark in axis.marks() {
            write(
                page,
                format_args!(
                    "<text class=\"soft\" text-anchor=\"middle\" x=\"{:.1}\" y=\"194\">{}</text>",
                    axis.at(mark),
                    time(mark)
                ),
            );
        }
        let colours = ["var(--other)", row.colour()];
        for (points, colour) in both().into_iter().rev().zip(colours) {
            let path: Vec<String> = points
                .iter()
                .zip(SHARES)
                .map(|(ns, share)| format!("{:.1},{:.1}", axis.at(*ns), 172.0 - height(share)))
                .collect();
            write(
                page,
                format_args!(
                    "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                    path.join(" ")
                ),
            );
        }
        page.push_str("</svg>\n");
    }
    page.push_str("</div>\n");
}

const COLOURS: [&str; 4] = ["var(--good)", "var(--plain)", "var(--miss)", "var(--other)"];

fn lines(page: &mut String, curve: &Curve) {
    let points = || curve.series.iter().flat_map(|series| &series.points);
    let x = Axis::around(points().map(|point| point.0), 60.0, WIDTH - 150.0);
    let y = Axis::around(points().map(|point| point.1), 300.0, 10.0);
    open(page, 350.0);
    for mark in x.marks() {
        vertical(page, x.at(mark), 306.0, "axis");
        let at = x.at(mark);
        write(
            page,
            format_args!(
                "<text class=\"soft\" text-anchor=\"middle\" x=\"{at:.1}\" y=\"322\">{}</text>",
                number(mark)
            ),
        );
    }
    for mark in y.marks() {
        let at = y.at(mark);
        write(
            page,
            format_args!(
                "<line class=\"axis\" x1=\"60\" x2=\"{:.1}\" y1=\"{at:.1}\" y2=\"{at:.1}\"/>\
                 <text class=\"soft\" text-anchor=\"end\" x=\"52\" y=\"{:.1}\">{}</text>",
                WIDTH - 150.0,
                at + 4.0,
                number(mark)
            ),
        );
    }
    for (series, colour) in curve.series.iter().zip(COLOURS.iter().cycle()) {
        let path: Vec<String> = series
            .points
            .iter()
            .map(|point| format!("{:.1},{:.1}", x.at(point.0), y.at(point.1)))
            .collect();
        write(
            page,
            format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>",
                path.join(" ")
            ),
        );
        if let Some(last) = series.points.last() {
            write(
                page,
                format_args!(
                    "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
                    x.at(last.0) + 8.0,
                    y.at(last.1) + 4.0,
                    text(&series.name)
                ),
            );
        }
    }
    write(
        page,
        format_args!(
            "<text class=\"soft\" text-anchor=\"middle\" x=\"{:.1}\" y=\"342\">{} (upwards: {})</text></svg>\n",
            f64::midpoint(60.0, WIDTH - 150.0),
            text(&curve.x),
            text(&curve.y)
        ),
    );
}

fn table(page: &mut String, rows: &[&Shown]) {
    page.push_str(
        "<details><summary>Figures</summary><table><tr><th>row</th><th class=\"n\">ours</th>\
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
    page.push_str("</table></details>\n");
}

fn open(page: &mut String, height: f64) {
    write(page, format_args!("<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"));
}

fn vertical(page: &mut String, x: f64, height: f64, class: &str) {
    write(
        page,
        format_args!(
            "<line class=\"{class}\" x1=\"{x:.1}\" x2=\"{x:.1}\" y1=\"0\" y2=\"{:.1}\"/>",
            height - 20.0
        ),
    );
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
