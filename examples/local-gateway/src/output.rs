//! What commands show: tables for people, JSON for programs, and a line that says what takes time.

use std::io::{self, Write as _};
use std::time::Duration;

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table, presets};
use function_gateway::Timestamp;
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

/// For whom a command writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// For people
    Table,
    /// For programs
    Json,
}

/// Writes a JSON document.
pub(crate) fn json(document: &impl Serialize) -> io::Result<()> {
    let mut out = io::stdout().lock();
    serde_json::to_writer_pretty(&mut out, document)?;
    writeln!(out)
}

/// Writes a line.
pub(crate) fn line(text: &str) -> io::Result<()> {
    writeln!(io::stdout().lock(), "{text}")
}

/// Tells something beside the output.
pub(crate) fn note(text: &str) {
    // Where nobody can be told, there is nothing to do about it.
    let _ = writeln!(io::stderr().lock(), "{}", shown(text));
}

/// Writes a list: a line for each row, below their names.
pub(crate) fn table<const N: usize>(names: [&str; N], rows: impl IntoIterator<Item = [String; N]>) -> io::Result<()> {
    let mut table = plain();
    table.set_header(names);
    table.add_rows(rows.into_iter().map(|row| row.map(|cell| shown(&cell))));
    write(&table)
}

/// Tells below a list whether it is a part of one.
pub(crate) fn note_more(more: bool, limit: u32) {
    if more {
        note(&format!("There are more: --limit shows more than {limit}."));
    }
}

/// Writes what there is to know about one thing: a line for each part that there is.
pub(crate) fn details<const N: usize>(parts: [(&str, Option<String>); N]) -> io::Result<()> {
    let mut table = plain();
    for (name, value) in parts {
        if let Some(value) = value {
            table.add_row([name, shown(&value).trim_end()]);
        }
    }
    write(&table)
}

/// A text without what a terminal would take for a command: part of it may be a function's own words.
fn shown(text: &str) -> String {
    let is_of_text = |c: &char| !c.is_control() || matches!(c, '\n' | '\t');
    text.chars().map(|c| if is_of_text(&c) { c } else { char::REPLACEMENT_CHARACTER }).collect()
}

fn plain() -> Table {
    let mut table = Table::new();
    // No lines between, and nothing is broken: it can be searched and cut.
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table
}

fn write(table: &Table) -> io::Result<()> {
    let mut out = io::stdout().lock();
    table.lines().try_for_each(|line| writeln!(out, "{}", line.trim()))
}

/// How long something took.
pub(crate) fn took(micros: u64) -> String {
    format!("{:.1?}", Duration::from_micros(micros))
}

/// How long ago something was.
pub(crate) fn ago(time: Timestamp) -> String {
    let seconds = Timestamp::now().since(time).as_secs();
    match seconds {
        0..60 => format!("{seconds} s ago"),
        60..3600 => format!("{} min ago", seconds / 60),
        3600..86_400 => format!("{} h ago", seconds / 3600),
        _ => format!("{} d ago", seconds / 86_400),
    }
}

/// A line on standard error that says what is being waited for, as long as it lives. Only where that is a terminal.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    pub(crate) fn start(what: impl Into<String>) -> Self {
        let bar = ProgressBar::new_spinner().with_message(what.into());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        bar.enable_steady_tick(Duration::from_millis(100));
        Self(bar)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_functions_words_command_no_terminal() {
        assert_eq!(shown("a\tb\nc \u{1b}[2J\u{9b}1m\r\u{e9}"), "a\tb\nc \u{fffd}[2J\u{fffd}1m\u{fffd}\u{e9}");
    }
}
