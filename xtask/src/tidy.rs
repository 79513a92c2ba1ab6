//! What no compiler checks: leftovers, links, manifests, scripts.

use std::collections::BTreeSet;
use std::path::Path;

use crate::files::{self, File};
use crate::workspace::{Workspace, report};
use crate::{Result, markdown, rust};

pub(crate) const SUMMARY: &str = "Check sources, manifests and documents for leftovers and dead links";
pub(crate) const HELP: &str = "\
- No unfinished business in any file, and no path of somebody's machine.
- An ignored test says why.
- Tests don't sleep. Where one has to, `// sleep: <reason>` stands on the line or the one before it. With tokio's paused
  clock (`start_paused`), its `sleep` is none.
- Every crate inherits the workspace's lints.
- Every relative link in a *.md file leads to a file, and to a heading where it names one.
- Every document in docs/ is linked from another document.
- A script can be executed, and starts with `#!`. A Python file that only defines things is none.";

/// Marks of what was left for later. In pieces, so that this file does not hold them.
const LEFTOVERS: &[&str] = &[
    concat!("TO", "DO"),
    concat!("FIX", "ME"),
    concat!("for", " now"),
    concat!("unimplemented", "!"),
    concat!("to", "do!"),
];

const MACHINE_PATHS: &[&str] = &[concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];

const CHECKED: &[&str] = &["rs", "md", "toml", "sh", "py", "json", "yml", "yaml"];

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let files = files::read_all(&workspace.root, &workspace.root)?;
    let mut problems = Vec::new();
    for file in &files {
        let is_script = file.path.starts_with(".ci/");
        if is_script || CHECKED.iter().any(|extension| file.has_extension(extension)) {
            problems.extend(leftover_problems(file));
        }
        if file.has_extension("rs") {
            problems.extend(test_problems(file));
        }
        if file.path.ends_with("Cargo.toml") && !inherits_lints(&file.text) {
            problems.push(format!("{}: `[lints] workspace = true` is missing", file.path));
        }
        if is_script || file.has_extension("sh") || is_python_script(file) {
            problems.extend(script_problems(file, is_executable(&workspace.root.join(&file.path))));
        }
    }
    problems.extend(link_problems(&files));
    report(&problems)?;
    println!("{} files are tidy", files.len());
    Ok(())
}

fn leftover_problems(file: &File) -> Vec<String> {
    let mut problems = Vec::new();
    for (index, line) in file.text.lines().enumerate() {
        let found = LEFTOVERS.iter().chain(MACHINE_PATHS).filter(|mark| has_word(line, mark));
        problems.extend(found.map(|mark| format!("{}:{}: {mark:?} must not stay", file.path, index + 1)));
    }
    problems
}

/// Whether a line holds a mark that is not the middle of a longer word.
fn has_word(line: &str, mark: &str) -> bool {
    line.match_indices(mark).any(|(start, _)| {
        let before = line.get(..start).and_then(|text| text.chars().next_back());
        let after = line.get(start + mark.len()..).and_then(|text| text.chars().next());
        let begins = !before.is_some_and(rust::is_name);
        let ends = !mark.ends_with(rust::is_name) || !after.is_some_and(rust::is_name);
        begins && ends
    })
}

fn test_problems(file: &File) -> Vec<String> {
    let code = rust::code_only(&file.text);
    let in_tests_folder = file.path.split('/').any(|part| part == "tests");
    let paused = code.contains("start_paused");
    let source: Vec<&str> = file.text.lines().collect();
    let has_reason = |line: Option<&&str>| {
        line.and_then(|line| line.split_once("// sleep:")).is_some_and(|(_, reason)| !reason.trim().is_empty())
    };
    let mut in_tests = in_tests_folder;
    let mut problems = Vec::new();
    for (index, line) in code.lines().enumerate() {
        in_tests = in_tests || line.starts_with("#[cfg(test)]");
        if line.contains("#[ignore]") {
            problems.push(format!("{}:{}: an ignored test says why: `#[ignore = \"..\"]`", file.path, index + 1));
        }
        let sleeps = line.contains("thread::sleep") || (line.contains("time::sleep") && !paused);
        let reasoned =
            has_reason(source.get(index)) || index.checked_sub(1).is_some_and(|at| has_reason(source.get(at)));
        if in_tests && sleeps && !reasoned {
            problems.push(format!("{}:{}: a test sleeps without `// sleep: <reason>`", file.path, index + 1));
        }
    }
    problems
}

/// Whether a manifest inherits the lints; that of the workspace itself defines them.
fn inherits_lints(manifest: &str) -> bool {
    let lines: Vec<&str> = manifest.lines().map(str::trim).collect();
    let is_package = lines.contains(&"[package]");
    !is_package || lines.windows(2).any(|pair| pair == ["[lints]", "workspace = true"])
}

/// Whether a file is Python that does something when it is run, or says that it does.
fn is_python_script(file: &File) -> bool {
    file.has_extension("py") && (file.text.starts_with("#!") || file.text.contains("__main__"))
}

fn script_problems(file: &File, executable: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if !file.text.starts_with("#!") {
        problems.push(format!("{}: the first line does not say what runs it (`#!`)", file.path));
    }
    if !executable {
        problems.push(format!("{}: is not executable: `chmod +x {}`", file.path, file.path));
    }
    problems
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    path.metadata().is_ok_and(|metadata| metadata.permissions().mode() & 0o111 == 0o111)
}

#[cfg(not(unix))]
fn is_executable(_: &Path) -> bool {
    true
}

fn link_problems(files: &[File]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut linked = BTreeSet::new();
    for file in files.iter().filter(|file| file.has_extension("md")) {
        for link in markdown::links(&file.text) {
            if link.target.contains("://") || link.target.starts_with("mailto:") {
                continue;
            }
            let mut problem = |what: &str| {
                problems.push(format!("{}:{}: the link {:?} {what}", file.path, link.line, link.target));
            };
            let (path, anchor) = link.target.split_once('#').unwrap_or((&link.target, ""));
            let resolved = if path.is_empty() { Some(file.path.clone()) } else { files::resolve(&file.path, path) };
            let Some(resolved) = resolved else {
                problem("leads out of the checkout");
                continue;
            };
            let target = files.iter().find(|file| file.path == resolved);
            let is_folder = files.iter().any(|file| file.path.starts_with(&format!("{resolved}/")));
            match target {
                None if !is_folder => problem("leads nowhere"),
                Some(target) if !anchor.is_empty() && !has_anchor(target, anchor) => problem("names no heading there"),
                _ => {}
            }
            if resolved != file.path {
                linked.insert(resolved);
            }
        }
    }
    let documents = files.iter().filter(|file| file.path.starts_with("docs/") && file.has_extension("md"));
    let alone = documents.filter(|file| !linked.contains(&file.path));
    problems.extend(alone.map(|file| format!("{}: no other document links to it", file.path)));
    problems
}

fn has_anchor(file: &File, anchor: &str) -> bool {
    !file.has_extension("md") || markdown::anchors(&file.text).iter().any(|known| known == anchor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn leftovers_and_machine_paths_are_found_with_their_line() {
        let text = format!("fine\n// {}: later\n{}x/y\n", LEFTOVERS[0], MACHINE_PATHS[0]);
        let problems = leftover_problems(&file("a.rs", &text));
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert!(problems[0].starts_with("a.rs:2: "));
    }

    #[test]
    fn a_mark_inside_a_longer_word_is_none() {
        let text = format!("{}where {}S mas{}", LEFTOVERS[2], LEFTOVERS[0], LEFTOVERS[4]);
        assert_eq!(leftover_problems(&file("a.md", &text)), Vec::<String>::new());
        assert_eq!(leftover_problems(&file("a.md", "network/work")), Vec::<String>::new());
    }

    #[test]
    fn an_ignored_test_needs_a_reason() {
        assert_eq!(test_problems(&file("tests/a.rs", "#[ignore]\nfn f() {}")).len(), 1);
        assert!(test_problems(&file("tests/a.rs", "#[ignore = \"needs a server\"]\nfn f() {}")).is_empty());
    }

    #[test]
    fn a_test_that_sleeps_needs_a_reason() {
        let sleep = "fn f() {\n    std::thread::sleep(D);\n}";
        assert_eq!(
            test_problems(&file("tests/a.rs", sleep)),
            ["tests/a.rs:2: a test sleeps without `// sleep: <reason>`"]
        );
        assert!(test_problems(&file("src/a.rs", sleep)).is_empty());
        assert_eq!(test_problems(&file("src/a.rs", &format!("#[cfg(test)]\nmod tests {{\n{sleep}"))).len(), 1);
        assert!(test_problems(&file("tests/a.rs", "// sleep: the engine polls\ntime::sleep(D);")).is_empty());
        assert_eq!(test_problems(&file("tests/a.rs", "// sleep:\ntime::sleep(D);")).len(), 1);
    }

    #[test]
    fn sleeping_on_a_paused_clock_is_fine() {
        let text = "#[tokio::test(start_paused = true)]\nasync fn f() { tokio::time::sleep(D).await }";
        assert!(test_problems(&file("tests/a.rs", text)).is_empty());
    }

    #[test]
    fn a_package_inherits_the_lints() {
        assert!(inherits_lints("[package]\nname = \"a\"\n\n[lints]\nworkspace = true\n"));
        assert!(!inherits_lints("[package]\nname = \"a\"\n"));
        assert!(inherits_lints("[workspace]\nmembers = []\n"));
    }

    #[test]
    fn a_script_names_its_interpreter_and_can_be_executed() {
        assert!(script_problems(&file("a.sh", "#!/bin/sh\n"), true).is_empty());
        assert_eq!(script_problems(&file("a.sh", "echo\n"), false).len(), 2);
    }

    #[test]
    fn python_that_only_defines_things_is_no_script() {
        assert!(is_python_script(&file("a.py", "if __name__ == \"__main__\":\n    main()\n")));
        assert!(is_python_script(&file("a.py", "#!/usr/bin/env python3\n")));
        assert!(!is_python_script(&file("a.py", "def greet(): pass\n")));
        assert!(!is_python_script(&file("a.sh", "#!/bin/sh\n")));
    }

    #[test]
    fn links_lead_to_files_folders_and_headings() {
        let files = [
            file("README.md", "# Top\n[a](docs/a.md#one) [b](docs) [c](#top) [d](https://example.org/x)"),
            file("docs/a.md", "# One\n[up](../README.md)"),
        ];
        assert_eq!(link_problems(&files), Vec::<String>::new());
    }

    #[test]
    fn a_link_that_leads_nowhere_is_named() {
        let files =
            [file("README.md", "[a](docs/a.md#two)\n[b](nothing.md)\n[c](../x.md)"), file("docs/a.md", "# One")];
        let problems = link_problems(&files);
        assert_eq!(problems.len(), 3, "{problems:?}");
        assert_eq!(problems[1], "README.md:2: the link \"nothing.md\" leads nowhere");
    }

    #[test]
    fn a_document_that_only_links_to_itself_is_alone() {
        let files = [file("docs/a.md", "# One\n[a](a.md)")];
        assert_eq!(link_problems(&files), ["docs/a.md: no other document links to it"]);
    }
}
