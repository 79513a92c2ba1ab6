//! The runtimes of others, installed for the functions in `examples/functions` that need one.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::Result;
use crate::workspace::{Workspace, output, run};

pub(crate) const SUMMARY: &str = "Install the runtimes of the sample functions, and show the folder";
pub(crate) const HELP: &str = "\
Makes a folder `runtimes` in cargo's target folder. For each sample function that needs a runtime of others, or has to be
built, it holds a folder with the function, ready to be started by a driver:

  <function>/venv            what pip installs from its requirements.txt
  <function>/node_modules    what npm installs from its package-lock.json
  <function>/<function>      its program, where it is written in Rust

Tools of tests that come from a registry lie there in the same way.

pip and npm use the registries that they are set up for. What is there is installed again only when its list of packages
or the version of Python or Node.js has changed.";

/// Tells tests where the runtimes are.
pub(crate) const VARIABLE: &str = "FUNCTION_GATEWAY_RUNTIMES";

/// Folders with what programs need that tests start, beside the functions. No two have the same name.
const TOOLS: [(&str, Kind); 4] = [
    ("function-gateway-callbacks/tests/standardwebhooks", Kind::Python),
    ("function-gateway-rest/tests/schemathesis", Kind::Python),
    ("function-gateway-events/tests/sdk/cloudevents-python", Kind::Python),
    ("function-gateway-events/tests/sdk/cloudevents-node", Kind::Node),
];

/// Holds what an installation was made from, once it is complete.
const STAMP: &str = "installed-from";

pub(crate) fn command(workspace: &Workspace) -> Result<()> {
    println!("{}", install(workspace)?.display());
    Ok(())
}

/// Installs what is missing or out of date, and gives the folder.
pub(crate) fn install(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.target().join("runtimes");
    fs::create_dir_all(&folder).map_err(at(&folder))?;
    // Two checkouts may share the target folder. The lock goes with the file.
    let lock = folder.join("lock");
    let lock = File::create(&lock).map_err(at(&lock))?;
    lock.lock().map_err(at(&folder))?;
    let mut wanted = functions(&workspace.root.join("examples/functions"))?;
    wanted.extend(TOOLS.iter().map(|(folder, kind)| Function::of(workspace.root.join(folder), *kind)));
    for function in wanted {
        let place = folder.join(&function.name);
        fs::create_dir_all(&place).map_err(at(&place))?;
        match function.kind {
            Kind::Python => install_once(&function, &place, install_python)?,
            Kind::Node => install_once(&function, &place, install_node)?,
            Kind::Rust => build(workspace, &function.name, &place)?,
        }
    }
    Ok(folder)
}

/// A sample function in a folder of its own.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    name: String,
    folder: PathBuf,
    kind: Kind,
}

impl Function {
    fn of(folder: PathBuf, kind: Kind) -> Self {
        let name = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Self { name, folder, kind }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Python,
    Node,
    Rust,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Python, Self::Node, Self::Rust];

    /// The file by which a folder is known to hold such a function.
    fn manifest(self) -> &'static str {
        match self {
            Self::Python => "requirements.txt",
            Self::Node => "package-lock.json",
            Self::Rust => "Cargo.toml",
        }
    }

    /// What runs it, and tells its version.
    fn program(self) -> &'static str {
        match self {
            Self::Python => "python3",
            Self::Node => "node",
            Self::Rust => "cargo",
        }
    }
}

/// The functions in the folders below a folder, in order of their names. A folder of no known kind is an error.
fn functions(below: &Path) -> Result<Vec<Function>> {
    let mut functions = Vec::new();
    for entry in fs::read_dir(below).map_err(at(below))? {
        let folder = entry.map_err(at(below))?.path();
        if !folder.is_dir() {
            continue;
        }
        let kind = Kind::ALL.into_iter().find(|kind| folder.join(kind.manifest()).is_file()).ok_or_else(|| {
            let names = Kind::ALL.map(Kind::manifest);
            format!("{}: holds no {}, so it is not known how to install it", folder.display(), names.join(" or "))
        })?;
        functions.push(Function::of(folder, kind));
    }
    functions.sort_by(|left, right| left.name.cmp(&right.name));
    Ok(functions)
}

/// Copies the function, so that what is installed beside it stays out of the checkout; and installs what it needs, unless
/// that is there.
fn install_once(function: &Function, place: &Path, install: fn(&Path) -> Result<()>) -> Result<()> {
    for entry in fs::read_dir(&function.folder).map_err(at(&function.folder))? {
        let path = entry.map_err(at(&function.folder))?.path();
        if path.is_file() {
            fs::copy(&path, place.join(path.file_name().unwrap_or_default())).map_err(at(&path))?;
        }
    }
    let version = output(Command::new(function.kind.program()).arg("--version"))?;
    let manifest = function.folder.join(function.kind.manifest());
    // In full: what is compared byte by byte needs no hash.
    let wanted = version + &fs::read_to_string(&manifest).map_err(at(&manifest))?;
    let stamp = place.join(STAMP);
    if fs::read_to_string(&stamp).is_ok_and(|found| found == wanted) {
        return Ok(());
    }
    // What gets installed in part only is not taken for complete.
    remove(&stamp)?;
    install(place).map_err(|problem| format!("the runtime of {} can't be installed: {problem}", function.name))?;
    fs::write(&stamp, wanted).map_err(at(&stamp))
}

fn install_python(place: &Path) -> Result<()> {
    run(Command::new("python3").args(["-m", "venv", "--clear", "venv"]).current_dir(place))?;
    let pip = place.join("venv/bin/pip");
    let args = ["install", "--quiet", "--disable-pip-version-check", "--no-input", "-r", "requirements.txt"];
    run(Command::new(pip).args(args).current_dir(place))
}

fn install_node(place: &Path) -> Result<()> {
    // No package gets to run a script while it is installed; none of these needs to.
    let args = ["ci", "--omit=dev", "--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier"];
    run(Command::new("npm").args(args).current_dir(place))
}

fn build(workspace: &Workspace, package: &str, place: &Path) -> Result<()> {
    let built = built(workspace, package)?;
    let program = place.join(package);
    // A program that runs can be removed, but not written to.
    remove(&program)?;
    fs::copy(&built, &program).map(drop).map_err(at(&built))
}

/// Builds a program of the workspace, and says where it is.
pub(crate) fn built(workspace: &Workspace, package: &str) -> Result<PathBuf> {
    let args = ["build", "--quiet", "--message-format", "json-render-diagnostics", "-p", package];
    let messages = output(&mut workspace.cargo(args))?;
    executable(&messages, package).ok_or_else(|| format!("cargo built no program {package:?}"))
}

/// The program of a name, in what `cargo build` says of what it built, a JSON text in each line.
fn executable(messages: &str, name: &str) -> Option<PathBuf> {
    let mut messages = messages.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    messages.find_map(|message| {
        let of_target = message.pointer("/target/name")?.as_str()? == name;
        message.get("executable")?.as_str().filter(|_| of_target).map(PathBuf::from)
    })
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

fn at(path: &Path) -> impl Fn(std::io::Error) -> String + use<'_> {
    move |error| format!("{}: {error}", path.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    #[test]
    fn a_function_is_known_by_its_manifest() {
        let folder = folder_with(&[
            ("rusty/Cargo.toml", ""),
            ("node/package-lock.json", "{}"),
            ("greet.py", ""),
            ("python/requirements.txt", ""),
        ]);
        let found = functions(folder.path()).unwrap();
        let found: Vec<_> = found.iter().map(|function| (function.name.as_str(), function.kind)).collect();
        assert_eq!(found, [("node", Kind::Node), ("python", Kind::Python), ("rusty", Kind::Rust)]);
    }

    #[test]
    fn a_folder_of_no_known_kind_is_named() {
        let folder = folder_with(&[("perl/cpanfile", "")]);
        assert!(functions(folder.path()).unwrap_err().contains("perl: holds no requirements.txt or package-lock.json"));
    }

    #[test]
    fn what_is_installed_is_installed_again_when_its_list_changes() {
        let source = folder_with(&[("Cargo.toml", "one"), ("main.rs", "first")]);
        let place = tempfile::tempdir().unwrap();
        let function = Function { name: "f".into(), folder: source.path().into(), kind: Kind::Rust };
        let times = || {
            install_once(&function, place.path(), count_up).unwrap();
            fs::read_to_string(place.path().join("count")).unwrap().len()
        };
        assert_eq!([times(), times()], [1, 1]);
        fs::write(source.path().join("main.rs"), "second").unwrap();
        assert_eq!(times(), 1);
        assert_eq!(fs::read_to_string(place.path().join("main.rs")).unwrap(), "second");
        fs::write(source.path().join("Cargo.toml"), "two").unwrap();
        assert_eq!([times(), times()], [2, 2]);
    }

    #[test]
    fn a_failed_installation_is_tried_again() {
        let source = folder_with(&[("Cargo.toml", "one")]);
        let place = tempfile::tempdir().unwrap();
        let function = Function { name: "f".into(), folder: source.path().into(), kind: Kind::Rust };
        install_once(&function, place.path(), count_up).unwrap();
        fs::write(source.path().join("Cargo.toml"), "two").unwrap();
        let problem = install_once(&function, place.path(), |_| Err("no network".into())).unwrap_err();
        assert_eq!(problem, "the runtime of f can't be installed: no network");
        // Back to what had been installed before: it may be half gone.
        fs::write(source.path().join("Cargo.toml"), "one").unwrap();
        install_once(&function, place.path(), count_up).unwrap();
        assert_eq!(fs::read_to_string(place.path().join("count")).unwrap().len(), 2);
    }

    fn count_up(place: &Path) -> Result<()> {
        let path = place.join("count");
        let before = fs::read_to_string(&path).unwrap_or_default();
        fs::write(&path, before + "i").map_err(at(&path))
    }

    #[test]
    fn the_program_is_the_one_of_the_name() {
        let messages = r#"
            {"reason": "compiler-artifact", "target": {"name": "tokio"}, "executable": null}
            {"reason": "compiler-artifact", "target": {"name": "other"}, "executable": "/t/debug/other"}
            {"reason": "compiler-artifact", "target": {"name": "worker"}, "executable": "/t/debug/worker"}
            {"reason": "build-finished", "success": true}"#;
        assert_eq!(executable(messages, "worker"), Some("/t/debug/worker".into()));
        assert_eq!(executable(messages, "tokio"), None);
    }
}
