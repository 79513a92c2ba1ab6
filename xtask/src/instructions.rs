//! How many instructions the gateway adds to a call: a figure that is the same on a busy machine as on an idle one.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde::Deserialize;

use crate::Result;
use crate::workspace::{Workspace, output};

/// Where the figure stands that a change is held against.
const COMMITTED: &str = "benches/instructions.txt";
const PROGRAM: &str = "pipeline-instructions";

/// Two numbers of calls: what starting and ending takes is in both, and so not in the difference. Both are above the
/// number of records that the store keeps, so that every call that counts also has the store forget one.
const CALLS: [u64; 2] = [15_000, 30_000];

/// How far the figure may be off the committed one, in percent.
const TOLERANCE: u64 = 5;

/// Counts, and compares with what is committed.
pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let path = workspace.root.join(COMMITTED);
    let text = std::fs::read_to_string(&path).map_err(|error| format!("{COMMITTED}: {error}"))?;
    let committed = committed(&text).ok_or_else(|| format!("{COMMITTED} holds no figure"))?;
    println!("{}", verdict(count(workspace)?, committed)?);
    Ok(())
}

/// The line that is no comment.
fn committed(text: &str) -> Option<u64> {
    text.lines().find(|line| !line.starts_with('#'))?.trim().parse().ok()
}

fn verdict(counted: u64, committed: u64) -> Result<String> {
    let figures = format!("{counted} instructions a call; {COMMITTED} has {committed}");
    if counted * 100 > committed * (100 + TOLERANCE) {
        return Err(format!(
            "{figures}: more than {TOLERANCE} % above. Find what the change added, or raise the figure and say why"
        ));
    }
    if counted * 100 < committed * (100 - TOLERANCE) {
        return Ok(format!("{figures}: more than {TOLERANCE} % below. Lower the figure, so that it stays so"));
    }
    Ok(figures)
}

fn count(workspace: &Workspace) -> Result<u64> {
    let program = build(workspace)?;
    let [few, many] = CALLS.map(|calls| instructions(&program, calls));
    Ok((many? - few?) / (CALLS[1] - CALLS[0]))
}

/// A line of what cargo tells of a build.
#[derive(Debug, Deserialize)]
struct Built {
    executable: Option<PathBuf>,
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut command =
        workspace.cargo(["build", "--profile", "bench", "-p", "function-gateway-benches", "--bin", PROGRAM]);
    // Compiling by parts that are kept makes another program.
    command.arg("--message-format=json-render-diagnostics").env("CARGO_INCREMENTAL", "0");
    let messages = output(&mut command)?;
    let mut built = messages.lines().filter_map(|line| serde_json::from_str::<Built>(line).ok());
    built.find_map(|built| built.executable).ok_or_else(|| format!("cargo does not say where {PROGRAM} is"))
}

fn instructions(program: &Path, calls: u64) -> Result<u64> {
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null", "--log-fd=1"]);
    let log = output(valgrind.arg(program).arg(calls.to_string()))?;
    collected(&log).ok_or_else(|| format!("valgrind does not say what it counted:\n{log}"))
}

/// The figure in callgrind's log, such as `==7== Collected : 1234`.
fn collected(log: &str) -> Option<u64> {
    log.lines().find_map(|line| line.split_once("Collected :")?.1.trim().parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_figure_is_the_line_that_is_no_comment() {
        assert_eq!(committed("# About it.\n11000\n"), Some(11_000));
        assert_eq!(committed("# About it.\n"), None);
    }

    #[test]
    fn what_is_more_than_the_tolerance_above_fails() {
        assert!(verdict(10_500, 10_000).is_ok());
        assert!(verdict(10_501, 10_000).unwrap_err().contains("above"));
    }

    #[test]
    fn what_is_more_than_the_tolerance_below_is_to_be_lowered() {
        assert!(!verdict(9_500, 10_000).unwrap().contains("Lower"));
        assert!(verdict(9_499, 10_000).unwrap().contains("Lower"));
    }

    #[test]
    fn the_count_is_read_from_the_log() {
        assert_eq!(collected("==7== Events    : Ir\n==7== Collected : 361\n==7==\n"), Some(361));
        assert_eq!(collected("==7== Events    : Ir\n"), None);
    }
}
