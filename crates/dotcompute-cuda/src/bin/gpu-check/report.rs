//! Rows, as they are measured, and the table of them.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::Path;

use serde_json::{Value, json};

use crate::Failure;

/// Where the rows of a stage go.
pub(crate) struct Results {
    file: File,
    stage: &'static str,
    device: Option<(String, bool)>,
    good: bool,
}

/// Whether a device of this name is none.
pub(crate) fn is_stand_in(name: &str) -> bool {
    name.contains("stand-in")
}

/// What a figure ought to be.
#[derive(Clone, Copy)]
pub(crate) enum Goal {
    AtMost(f64),
    AtLeast(f64),
}

impl Results {
    pub(crate) fn append(path: &Path, stage: &'static str) -> Result<Self, Failure> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, stage, device: None, good: true })
    }

    /// Rows from now on are of this device.
    pub(crate) fn device(&mut self, name: &str) {
        self.device = Some((name.to_owned(), is_stand_in(name)));
    }

    pub(crate) fn all_good(&self) -> bool {
        self.good
    }

    /// A figure. A goal that a stand-in misses says nothing.
    pub(crate) fn figure(
        &mut self,
        what: &str,
        value: f64,
        unit: &str,
        goal: Option<Goal>,
    ) -> Result<(), Failure> {
        self.beside(what, value, unit, goal, None)
    }

    /// A figure beside its floor: what it costs to do less, in the same unit.
    pub(crate) fn beside(
        &mut self,
        what: &str,
        value: f64,
        unit: &str,
        goal: Option<Goal>,
        floor: Option<(&str, f64)>,
    ) -> Result<(), Failure> {
        let (met, goal) = match goal {
            None => (None, None),
            Some(Goal::AtMost(most)) => (Some(value <= most), Some(format!("<= {most}"))),
            Some(Goal::AtLeast(least)) => (Some(value >= least), Some(format!(">= {least}"))),
        };
        let floor = floor.map(|(what, value)| json!({ "what": what, "value": value }));
        self.row(json!({
            "what": what, "value": value, "unit": unit, "goal": goal, "met": met, "floor": floor,
        }))
    }

    /// Something that is so or not, and ought to be so.
    pub(crate) fn fact(&mut self, what: &str, holds: bool, note: &str) -> Result<(), Failure> {
        self.good &= holds;
        self.row(json!({ "what": what, "holds": holds, "note": note }))
    }

    /// Something that was found out.
    pub(crate) fn finding(&mut self, what: &str, found: &str) -> Result<(), Failure> {
        self.row(json!({ "what": what, "found": found }))
    }

    /// The stage did not come to its end.
    pub(crate) fn failure(&mut self, why: &str) -> Result<(), Failure> {
        self.good = false;
        self.row(json!({ "what": "the stage", "holds": false, "note": why }))
    }

    fn row(&mut self, mut row: Value) -> Result<(), Failure> {
        let (device, stand_in) = match &self.device {
            Some((name, stand_in)) => (name.as_str(), *stand_in),
            None => ("unknown", false),
        };
        row["stage"] = self.stage.into();
        row["device"] = device.into();
        row["stand_in"] = stand_in.into();
        let line = row.to_string() + "\n";
        self.file.write_all(line.as_bytes())?;
        match self.file.sync_data() {
            // `/dev/null`, where a stage's child reports to: there is nothing to be kept.
            Err(error) if error.kind() == ErrorKind::InvalidInput => {}
            synced => synced?,
        }
        say(&format!("  {}\n", cells(&row).join("  ")));
        Ok(())
    }
}

#[expect(clippy::print_stdout, reason = "it is a program")]
pub(crate) fn say(text: &str) {
    print!("{text}");
}

fn rounded(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 => format!("{:.1} M", value / 1e6),
        size if size >= 100.0 => format!("{value:.0}"),
        _ => format!("{value:.2}"),
    }
}

/// What was measured, its value, what it ought to be, and its floor.
fn cells(row: &Value) -> [String; 4] {
    let text = |name: &str| row[name].as_str().unwrap_or_default().to_owned();
    let what = text("what");
    if let Some(value) = row["value"].as_f64() {
        let goal = match (row["goal"].as_str(), row["met"].as_bool()) {
            (Some(goal), Some(true)) => format!("{goal}: met"),
            (Some(goal), _) => format!("{goal}: **missed**"),
            _ => String::new(),
        };
        let floor = match (row["floor"]["what"].as_str(), row["floor"]["value"].as_f64()) {
            (Some(what), Some(value)) => format!("{what}: {} {}", rounded(value), text("unit")),
            _ => String::new(),
        };
        return [what, format!("{} {}", rounded(value), text("unit")), goal, floor];
    }
    let found = match row["holds"].as_bool() {
        Some(true) => format!("yes {}", text("note")),
        Some(false) => format!("**no**: {}", text("note")),
        None => text("found"),
    };
    [what, found.trim().to_owned(), String::new(), String::new()]
}

/// The table of the last run of each stage.
pub(crate) fn table(results: &Path, stages: &[(&str, &str)]) -> Result<String, Failure> {
    let mut rows: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    if results.exists() {
        for line in std::fs::read_to_string(results)?.lines() {
            let row: Value = serde_json::from_str(line)?;
            let stage = row["stage"].as_str().unwrap_or_default().to_owned();
            rows.entry(stage).or_default().push(row);
        }
    }
    let mut text = String::from(
        "# What a GPU shows of the executor `cuda`\n\n\
         Made by `make gpu-check`; not edited. Times are the host's, from the call that sends to the\n\
         observation of the answer, unless a row says otherwise.\n",
    );
    for (stage, what) in stages {
        text += &format!("\n## {stage}: {what}\n\n");
        let Some(rows) = rows.get(*stage) else {
            text += "Not yet run.\n";
            continue;
        };
        let device = rows.last().and_then(|row| row["device"].as_str()).unwrap_or_default();
        text += &format!("On {device}.");
        if rows.iter().any(|row| row["stand_in"] == true) {
            text += " **A rehearsal on a stand-in: no figure here is a GPU's.**";
        }
        text += "\n\n| what | found | goal | beside |\n|---|---|---|---|\n";
        for row in rows {
            let [what, found, goal, floor] =
                cells(row).map(|cell| cell.replace('|', "\\|").replace('\n', " "));
            text += &format!("| {what} | {found} | {goal} | {floor} |\n");
        }
    }
    Ok(text)
}
