//! The Python package on the device, launch by launch: arrays, copies, kernels, other libraries'
//! arrays. What it checks, and how, is in `pydotcompute._gpu_check`.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::device::Gpu;
use crate::report::Goal;
use crate::{Check, Failure};

/// Names the Python that has the package.
const PYTHON: &str = "GPU_CHECK_PYTHON";

pub(crate) fn run(check: &mut Check) -> Result<(), Failure> {
    Gpu::open(check)?;
    let python = std::env::var(PYTHON).unwrap_or_else(|_| "python3".to_owned());
    let mut command = Command::new(&python);
    match unpacked(check, &python)? {
        Some(site) => {
            let others = std::env::var_os("PYTHONPATH").unwrap_or_default();
            let paths = [site].into_iter().chain(std::env::split_paths(&others));
            command.env("PYTHONPATH", std::env::join_paths(paths)?);
        }
        None => {
            let has_it = Command::new(&python).args(["-c", "import pydotcompute"]).output();
            let has_it = has_it.is_ok_and(|output| output.status.success());
            let note = match has_it {
                true => {
                    "no wheel lies beside this program: what is installed is checked".to_owned()
                }
                false => format!(
                    "left out: no wheel lies beside this program (make gpu-check-bundle puts it \
                     there), and {python} has no pydotcompute"
                ),
            };
            check.results.finding("the Python package", &note)?;
            if !has_it {
                return Ok(());
            }
        }
    }
    let arguments: &[&str] = if check.quick { &["--quick"] } else { &[] };
    let output = command.args(["-m", "pydotcompute._gpu_check"]).args(arguments).output()?;
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

/// Where the wheel of this folder is unpacked, which takes no installer; none if there is no wheel.
fn unpacked(check: &Check, python: &str) -> Result<Option<PathBuf>, Failure> {
    let files = std::fs::read_dir(&check.folder)?.flatten().map(|entry| entry.path());
    let Some(wheel) = files.filter(|path| path.extension().is_some_and(|it| it == "whl")).max()
    else {
        return Ok(None);
    };
    let site = check.folder.join("site");
    let done =
        Command::new(python).args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&site).output()?;
    if !done.status.success() {
        let why = String::from_utf8_lossy(&done.stderr).into_owned();
        return Err(format!("{python} does not unpack {}: {why}", wheel.display()).into());
    }
    Ok(Some(site))
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
        let Some((what, unit)) = unit else { continue };
        let what = format!("{name}: {}", what.replace('_', " "));
        // A number, or one with what it ought to be and its floor.
        let Some(number) = value.as_f64().or_else(|| value["value"].as_f64()) else { continue };
        let goal = value["at_most"].as_f64().map(Goal::AtMost);
        let floor = &value["floor"];
        let floor = floor["what"].as_str().zip(floor["value"].as_f64());
        check.results.beside(&what, number, unit, goal, floor)?;
    }
    Ok(())
}
