//! The Python package on the device, launch by launch: arrays, copies, kernels, other libraries'
//! arrays. What it checks, and how, is in `pydotcompute._gpu_check`.

use std::process::Command;

use serde_json::Value;

use crate::device::Gpu;
use crate::{Check, Failure};

/// Names the Python that has the package.
const PYTHON: &str = "GPU_CHECK_PYTHON";

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    Gpu::open(check)?;
    let python = std::env::var(PYTHON).unwrap_or_else(|_| "python3".to_owned());
    let has_it = Command::new(&python).args(["-c", "import pydotcompute._gpu_check"]).output();
    if !has_it.is_ok_and(|output| output.status.success()) {
        let note = format!(
            "{python} has no pydotcompute: install the wheel of this folder, or let {PYTHON} name \
             one that has it"
        );
        return check.results.finding("the Python package", &note);
    }
    let output = Command::new(&python).args(["-m", "pydotcompute._gpu_check"]).output()?;
    let rows: Vec<Value> =
        output.stdout.split(|byte| *byte == b'\n').flat_map(serde_json::from_slice).collect();
    if rows.is_empty() {
        let text = String::from_utf8_lossy(&output.stderr);
        let last = text.lines().last().unwrap_or("it said nothing").to_owned();
        return check.results.fact("the Python package", false, &last);
    }
    for row in &rows {
        report(check, row)?;
    }
    Ok(())
}

fn report(check: &mut Check, row: &Value) -> Result<(), Failure> {
    let name = row["check"].as_str().unwrap_or("unnamed");
    let why = row["why"].as_str().unwrap_or_default();
    match row["result"].as_str() {
        Some("passed") => check.results.fact(name, true, "as NumPy")?,
        Some("left out") => check.results.finding(name, &format!("left out: {why}"))?,
        _ => check.results.fact(name, false, why)?,
    }
    for (what, value) in row["measured"].as_object().into_iter().flatten() {
        let units = [("_gb_s", "GB/s"), ("_us", "us"), ("_ms", "ms")];
        let unit = units.iter().find_map(|(end, unit)| Some((what.strip_suffix(end)?, unit)));
        if let (Some((what, unit)), Some(value)) = (unit, value.as_f64()) {
            let what = format!("{name}: {}", what.replace('_', " "));
            check.results.figure(&what, value, unit, None)?;
        }
    }
    Ok(())
}
