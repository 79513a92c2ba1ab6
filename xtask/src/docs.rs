//! The sections of documents that are made from code.

use std::collections::{BTreeMap, BTreeSet};

use crate::workspace::{Workspace, output, report};
use crate::{Result, files, markdown};

pub(crate) const SUMMARY: &str = "Write the generated sections of documents, or check that they are up to date";
pub(crate) const HELP: &str = "\
Fills each section of a *.md file between `<!-- generated:NAME -->` and `<!-- /generated -->` with the table NAME that
`xtask/examples/tables.rs` makes from the code.

  --check    Writes nothing, and fails where a section is out of date.";

pub(crate) fn command(workspace: &Workspace, args: &[String]) -> Result<()> {
    match args {
        [] => update(workspace, false),
        [flag] if flag == "--check" => update(workspace, true),
        _ => Err(format!("unexpected arguments {args:?}")),
    }
}

pub(crate) fn update(workspace: &Workspace, check_only: bool) -> Result<()> {
    // All features and an example: what `cargo test --workspace --all-features` has built is used again.
    let mut command = workspace.cargo(["run", "--quiet", "--all-features", "--example", "tables"]);
    let tables: BTreeMap<String, String> = serde_json::from_str(&output(&mut command)?)
        .map_err(|error| format!("the example `tables` writes no map of strings: {error}"))?;
    let mut unused: BTreeSet<&str> = tables.keys().map(String::as_str).collect();
    let mut problems = Vec::new();
    for file in files::read_all(&workspace.root, &workspace.root)?.iter().filter(|file| file.has_extension("md")) {
        let filled = markdown::fill_generated(&file.text, |name| {
            unused.remove(name);
            tables.get(name).cloned().ok_or_else(|| format!("there is no table {name:?}"))
        });
        match filled {
            Err(problem) => problems.push(format!("{}: {problem}", file.path)),
            Ok(filled) if filled == file.text => {}
            Ok(_) if check_only => problems.push(format!("{} is out of date: run `cargo xtask docs`", file.path)),
            Ok(filled) => {
                files::write(&workspace.root.join(&file.path), &filled)?;
                println!("{} is written", file.path);
            }
        }
    }
    problems.extend(unused.iter().map(|name| format!("no document has a section for the table {name:?}")));
    report(&problems)
}
