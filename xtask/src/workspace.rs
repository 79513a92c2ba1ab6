//! What cargo knows of the workspace, and how the chores start programs.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Deserialize;

use crate::Result;

/// The parts of `cargo metadata` that the chores read.
#[derive(Debug, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
    workspace_members: BTreeSet<String>,
    workspace_root: PathBuf,
    target_directory: PathBuf,
    resolve: Resolve,
}

#[derive(Debug, Deserialize)]
pub(crate) struct Package {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) license: Option<String>,
    pub(crate) manifest_path: PathBuf,
    pub(crate) rust_version: Option<String>,
    pub(crate) features: BTreeMap<String, Vec<String>>,
    publish: Option<Vec<String>>,
    pub(crate) dependencies: Vec<Dependency>,
}

/// A dependency as a manifest declares it.
#[derive(Debug, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    kind: Option<String>,
}

impl Dependency {
    pub(crate) fn is_dev(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}

#[derive(Debug, Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Debug, Deserialize)]
struct Node {
    id: String,
    deps: Vec<Edge>,
}

#[derive(Debug, Deserialize)]
struct Edge {
    pkg: String,
    dep_kinds: Vec<EdgeKind>,
}

#[derive(Debug, Deserialize)]
struct EdgeKind {
    kind: Option<String>,
}

/// The workspace with every feature of every crate.
#[derive(Debug)]
pub(crate) struct Workspace {
    pub(crate) root: PathBuf,
    pub(crate) metadata: Metadata,
}

impl Workspace {
    pub(crate) fn load() -> Result<Self> {
        let mut command = Command::new(cargo_path());
        command.args(["metadata", "--format-version", "1", "--all-features"]);
        let metadata: Metadata = serde_json::from_str(&output(&mut command)?)
            .map_err(|error| format!("`cargo metadata` answers what is not understood: {error}"))?;
        Ok(Self { root: metadata.workspace_root.clone(), metadata })
    }

    /// A cargo command at the root.
    pub(crate) fn cargo<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(cargo_path());
        command.args(args).current_dir(&self.root);
        if std::env::var_os("CI").is_some() {
            // What is built once is not built faster by parts that are kept for the next time.
            command.env("CARGO_INCREMENTAL", "0");
        }
        command
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target(&self) -> &Path {
        &self.metadata.target_directory
    }

    pub(crate) fn members(&self) -> impl Iterator<Item = &Package> {
        self.metadata.packages.iter().filter(|package| self.metadata.workspace_members.contains(&package.id))
    }

    /// The folder of a member, relative to the root, with `/`.
    pub(crate) fn folder(&self, package: &Package) -> String {
        let folder = package.manifest_path.parent().unwrap_or(&package.manifest_path);
        folder.strip_prefix(&self.root).unwrap_or(folder).to_string_lossy().replace('\\', "/")
    }

    /// Every package that a host may get by depending on a published crate: no dependencies of tests and chores.
    pub(crate) fn shipped(&self) -> Vec<&Package> {
        let nodes: BTreeMap<&str, &Node> =
            self.metadata.resolve.nodes.iter().map(|node| (node.id.as_str(), node)).collect();
        let mut open: Vec<&str> =
            self.members().filter(|package| package.is_published()).map(|package| package.id.as_str()).collect();
        let mut reached = BTreeSet::new();
        while let Some(id) = open.pop() {
            if !reached.insert(id) {
                continue;
            }
            let edges = nodes.get(id).map(|node| node.deps.as_slice()).unwrap_or_default();
            let ships = |edge: &&Edge| edge.dep_kinds.iter().any(|kind| kind.kind.as_deref() != Some("dev"));
            open.extend(edges.iter().filter(ships).map(|edge| edge.pkg.as_str()));
        }
        self.metadata.packages.iter().filter(|package| reached.contains(package.id.as_str())).collect()
    }
}

impl Package {
    pub(crate) fn is_published(&self) -> bool {
        self.publish.is_none()
    }

    pub(crate) fn folder(&self) -> &Path {
        self.manifest_path.parent().unwrap_or(&self.manifest_path)
    }
}

/// The cargo that runs this program, so that the toolchain stays the same.
fn cargo_path() -> std::ffi::OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program()).to_string_lossy();
    let args = command.get_args().map(|arg| arg.to_string_lossy());
    std::iter::once(program).chain(args).collect::<Vec<_>>().join(" ")
}

/// Runs a command without input, its output shown.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let description = describe(command);
    println!("$ {description}");
    let status = command.stdin(Stdio::null()).status().map_err(|error| format!("`{description}`: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("`{description}` ended with {status}")) }
}

/// Runs a command without input and gives its output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let description = describe(command);
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("`{description}`: {error}"))?;
    if !output.status.success() {
        return Err(format!("`{description}` ended with {}", output.status));
    }
    String::from_utf8(output.stdout).map_err(|error| format!("`{description}`: {error}"))
}

/// Whether a program is there: it starts and ends well.
pub(crate) fn answers(command: &mut Command) -> bool {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// An error that lists every problem, or none.
pub(crate) fn report(problems: &[String]) -> Result<()> {
    match problems.len() {
        0 => Ok(()),
        1 => Err(problems.concat()),
        count => Err(format!("{count} problems:\n{}", problems.join("\n"))),
    }
}
