//! Documents that say what to type: it is typed here, so that it works.

use std::collections::BTreeSet;
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::files::{self, File};
use crate::markdown::{self, Fence};
use crate::workspace::{Workspace, describe, report, run};
use crate::{Result, is_command, runtimes};

pub(crate) const SUMMARY: &str =
    "Run the commands in each README.md and check that the Rust code in documents is compiled";
pub(crate) const HELP: &str = "\
Runs each code block of a README.md that is marked `sh`, with `sh -eu` in the folder of that file. A block marked
`sh no-run` is left out. Of a line `cargo xtask <command>` only the command's existence is checked.

A block marked `sh server` is one line `cargo run -p <package>`. The program runs while the rest of the file is done, in an empty folder
and on a free port, which takes the place of 127.0.0.1:8080 in the other blocks. In the end it is interrupted, as by Ctrl-C, and has to end
well. It is not built with `--release`: what the tests have built is used again.

Each code block marked `rust` in README.md and in docs/ has to be compiled as a doc test: some source file includes the
document by `#[doc = include_str!(..)]`, and the block is not marked `ignore`.";

const README: &str = "README.md";

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let files = files::read_all(&workspace.root, &workspace.root)?;
    report(&uncompiled(&files))?;
    for readme in files.iter().filter(|file| Path::new(&file.path).ends_with(README)) {
        let folder = workspace.root.join(&readme.path).with_file_name("");
        let mut server: Option<Server> = None;
        for fence in markdown::fences(&readme.text).iter().filter(|fence| is_runnable(fence)) {
            let at = |problem: String| format!("{}:{}: {problem}", readme.path, fence.line);
            if fence.tags().any(|tag| tag == "server") {
                server = Some(Server::start(workspace, fence).map_err(at)?);
                continue;
            }
            let mut script = script_of(fence).map_err(at)?;
            if let Some(server) = &server {
                script = script.replace(DEFAULT_ADDRESS, &server.address);
            }
            if !script.trim().is_empty() {
                let script = format!("{STRICT_CURL}\n{script}");
                run(Command::new("sh").args(["-eu", "-c", &script]).current_dir(&folder)).map_err(at)?;
            }
        }
        if let Some(server) = server {
            server.stop().map_err(|problem| format!("{}: {problem}", readme.path))?;
        }
    }
    Ok(())
}

/// What documents say that a gateway listens on.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8080";
/// So that an answer that is an error fails the run.
const STRICT_CURL: &str = r#"curl() { command curl --fail-with-body --silent --show-error --max-time 60 "$@"; echo; }"#;

/// A program that serves while the rest of a document is done.
struct Server {
    process: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Server {
    fn start(workspace: &Workspace, fence: &Fence) -> Result<Self> {
        let words: Vec<_> = fence.body.split_whitespace().filter(|word| *word != "--release").collect();
        let ["cargo", "run", "-p", package] = words[..] else {
            return Err("a block `sh server` is one line `cargo run -p <package>`".to_owned());
        };
        let program = runtimes::built(workspace, package)?;
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.env("FUNCTION_GATEWAY_LISTEN", "127.0.0.1:0").current_dir(folder.path()).stdout(Stdio::piped());
        println!("{}", describe(&command));
        let mut process = command.spawn().map_err(|error| format!("{package} can't be started: {error}"))?;
        // Its text ends with how to stop it; by then it serves.
        let mut address = None;
        let mut lines = process.stdout.take().map(BufReader::new).into_iter().flat_map(BufReader::lines);
        for line in &mut lines {
            let line = line.map_err(|error| error.to_string())?;
            println!("{line}");
            if let Some(found) = line.split("http://").nth(1).filter(|_| address.is_none()) {
                address = Some(found.trim().to_owned());
            }
            if line.contains("Ctrl-C") {
                break;
            }
        }
        // A program whose output nobody reads any more would end.
        std::thread::spawn(move || lines.map_while(|line| line.ok()).for_each(|line| println!("{line}")));
        match address {
            Some(address) => Ok(Self { process, address, _folder: folder }),
            None => {
                // It has ended, or says nothing of use: what matters is that it does not stay.
                let _ = process.kill();
                Err(format!("{package} told no address before it ended"))
            }
        }
    }

    fn stop(mut self) -> Result<()> {
        run(Command::new("kill").args(["-INT", &self.process.id().to_string()]))?;
        let status = self.process.wait().map_err(|error| error.to_string())?;
        if status.success() { Ok(()) } else { Err(format!("the server ended with {status}")) }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // After `stop` there is nothing left to kill.
        let _ = self.process.kill();
    }
}

fn is_runnable(fence: &Fence) -> bool {
    fence.language() == "sh" && !fence.tags().any(|tag| tag == "no-run")
}

/// What is run of a block: all but the lines that would start this program again.
fn script_of(fence: &Fence) -> Result<String> {
    let mut script = String::new();
    for line in fence.body.lines() {
        match line.trim_start().strip_prefix("cargo xtask") {
            None => script.push_str(&format!("{line}\n")),
            Some(rest) => {
                let name = rest.split_whitespace().next().unwrap_or_default();
                if !is_command(name) {
                    return Err(format!("there is no command `cargo xtask {name}`"));
                }
            }
        }
    }
    Ok(script)
}

/// The Rust code in documents that no doc test compiles.
fn uncompiled(files: &[File]) -> Vec<String> {
    let included: BTreeSet<String> =
        files.iter().filter(|file| file.has_extension("rs")).flat_map(included_documents).collect();
    let documents =
        files.iter().filter(|file| file.path == README || (file.path.starts_with("docs/") && file.has_extension("md")));
    let mut problems = Vec::new();
    for file in documents {
        for fence in markdown::fences(&file.text).iter().filter(|fence| fence.language() == "rust") {
            if !included.contains(&file.path) || fence.tags().any(|tag| tag == "ignore") {
                problems.push(format!("{}:{}: no doc test compiles this code", file.path, fence.line));
            }
        }
    }
    problems
}

/// The documents that a source file takes in, from the root.
fn included_documents(file: &File) -> Vec<String> {
    let calls = file.text.split("include_str!(\"").skip(1);
    calls.filter_map(|call| files::resolve(&file.path, call.split('"').next()?)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only_fence(text: &str) -> Fence {
        markdown::fences(text).pop().unwrap()
    }

    fn file(path: &str, text: &str) -> File {
        File { path: path.into(), text: text.into() }
    }

    #[test]
    fn shell_blocks_run_unless_they_say_no() {
        assert!(is_runnable(&only_fence("```sh\nls\n```")));
        assert!(!is_runnable(&only_fence("```sh no-run\nls\n```")));
        assert!(!is_runnable(&only_fence("```text\nls\n```")));
    }

    #[test]
    fn a_chore_is_looked_up_and_not_run() {
        let script = script_of(&only_fence("```sh\ncargo build\ncargo xtask test\nls\n```")).unwrap();
        assert_eq!(script, "cargo build\nls\n");
    }

    #[test]
    fn a_chore_that_does_not_exist_is_an_error() {
        assert!(script_of(&only_fence("```sh\ncargo xtask fly\n```")).is_err());
    }

    #[test]
    fn rust_in_a_document_needs_a_doc_test() {
        let readme = || file("README.md", "```rust\nfn main() {}\n```");
        let including = file("a/src/lib.rs", "#[doc = include_str!(\"../../README.md\")]");
        assert_eq!(uncompiled(&[readme()]), ["README.md:1: no doc test compiles this code"]);
        assert_eq!(uncompiled(&[readme(), including]), Vec::<String>::new());
    }

    #[test]
    fn ignored_rust_in_a_document_is_not_compiled() {
        let readme = file("README.md", "```rust,ignore\nfn main() {}\n```");
        let including = file("a/src/lib.rs", "#[doc = include_str!(\"../../README.md\")]");
        assert_eq!(uncompiled(&[readme, including]).len(), 1);
    }
}
