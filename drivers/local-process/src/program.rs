//! Finds the program that a specification names, before it is ever started.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use function_gateway_core::{Delivery, Error, ErrorKind, FunctionSpec, ProcessWorkload, Violation, Workload};
use rustix::fs::{Access, AtFlags, CWD};
use rustix::io::Errno;

use crate::error::MAX_STRING;
use crate::identity::Identity;

/// A program that can be started: everything about it is absolute.
#[derive(Debug)]
pub(crate) struct Program {
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<String>,
    pub(crate) working_dir: Option<PathBuf>,
    pub(crate) identity: Identity,
}

/// Why a file can't be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unfit {
    Missing,
    NotAFile,
    NotExecutable,
}

impl Program {
    /// The program of a specification, with what is wrong about it. Blocks on the file system.
    pub(crate) fn of(
        spec: &FunctionSpec,
        identity: Identity,
        search_path: &[PathBuf],
        found: &mut Vec<Violation>,
    ) -> Option<Self> {
        let Workload::Process(run) = &spec.run else {
            let reason = format!("the protocol {:?} runs `process` and nothing else", spec.protocol.as_str());
            found.push(Violation::new("/run", reason));
            return None;
        };
        let own_path = spec.env.get("PATH").map(String::as_str);
        let program = Self::find(run, own_path, search_path).map_err(|violations| found.extend(violations)).ok()?;
        Some(Self { identity, ..program })
    }

    /// How it is started: with its arguments, in its folder, as its user, and with nothing in its environment.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.path);
        command.args(&self.args).env_clear();
        if let Some(folder) = &self.working_dir {
            command.current_dir(folder);
        }
        self.identity.apply(&mut command);
        command
    }

    /// Finds the program of a workload. A bare name is looked up in `own_path`, the function's `PATH`, if it has one,
    /// else in `search_path`. Symbolic links are kept as they are, since programs look at the name they are run by.
    ///
    /// Blocks on the file system.
    pub(crate) fn find(
        run: &ProcessWorkload,
        own_path: Option<&str>,
        search_path: &[PathBuf],
    ) -> Result<Self, Vec<Violation>> {
        let mut found = Vec::new();
        let mut check_text = |pointer: String, text: &str| {
            if text.contains('\0') {
                found.push(Violation::new(pointer, "can't contain a NUL byte"));
            } else if text.len() >= MAX_STRING {
                let reason = format!("is {} bytes long, at most {} are handed over", text.len(), MAX_STRING - 1);
                found.push(Violation::new(pointer, reason));
            }
        };
        check_text("/run/process/command".to_owned(), &run.command);
        check_text("/run/process/working_dir".to_owned(), run.working_dir.as_deref().unwrap_or_default());
        for (index, argument) in run.args.iter().enumerate() {
            check_text(format!("/run/process/args/{index}"), argument);
        }
        if !found.is_empty() {
            return Err(found);
        }
        let working_dir = run.working_dir.as_deref().map(Path::new);
        if let Some(reason) = working_dir.and_then(unfit_folder) {
            found.push(Violation::new("/run/process/working_dir", reason));
        }
        match locate(&run.command, working_dir, own_path, search_path) {
            Ok(path) if found.is_empty() => {
                let (args, working_dir) = (run.args.clone(), working_dir.map(Path::to_owned));
                Ok(Self { path, args, working_dir, identity: Identity::default() })
            }
            Ok(_) => Err(found),
            Err(reason) => {
                found.push(Violation::new("/run/process/command", reason));
                Err(found)
            }
        }
    }

    /// Says more of why the program was not started than the operating system does: for it, a missing folder and a
    /// missing interpreter are a missing program.
    ///
    /// Blocks on the file system.
    pub(crate) fn explain(&self, error: Error) -> Error {
        let not_found = std::error::Error::source(&error)
            .and_then(|source| source.downcast_ref::<io::Error>())
            .and_then(Errno::from_io_error)
            .is_some_and(|errno| errno == Errno::NOENT);
        let message = if error.kind() != ErrorKind::Misconfigured {
            return error;
        } else if self.working_dir.as_deref().is_some_and(|folder| unfit_folder(folder).is_some()) {
            "the function's working directory is gone, or may not be entered"
        } else if not_found && unfit_file(&self.path).is_none() {
            "the function's program names an interpreter that was not found"
        } else {
            return error.with_detail(self.path.display().to_string());
        };
        Error::new(ErrorKind::Misconfigured, message)
            .with_delivery(Delivery::NotSent)
            .with_detail(self.path.display().to_string())
    }
}

fn locate(
    command: &str,
    working_dir: Option<&Path>,
    own_path: Option<&str>,
    search_path: &[PathBuf],
) -> Result<PathBuf, String> {
    if command.is_empty() {
        return Err("must not be empty".to_owned());
    }
    if command.contains('/') {
        let path = match working_dir {
            _ if command.starts_with('/') => PathBuf::from(command),
            Some(folder) => folder.join(command),
            None => return Err("is relative, which needs a `working_dir`".to_owned()),
        };
        return match unfit_file(&path) {
            None => Ok(path),
            Some(Unfit::Missing) => Err(format!("there is no file {}", path.display())),
            Some(Unfit::NotAFile) => Err(format!("{} is not a regular file", path.display())),
            Some(Unfit::NotExecutable) => Err(format!("{} is not executable", path.display())),
        };
    }
    let folders: Vec<&Path> = match own_path {
        // An entry that is relative or empty would depend on a folder that nobody chose.
        Some(path) => path.split(':').map(Path::new).filter(|folder| folder.is_absolute()).collect(),
        None => search_path.iter().map(PathBuf::as_path).collect(),
    };
    let mut not_executable = None;
    for path in folders.iter().map(|folder| folder.join(command)) {
        match unfit_file(&path) {
            None => return Ok(path),
            Some(Unfit::NotExecutable) => not_executable = not_executable.or(Some(path)),
            Some(Unfit::Missing | Unfit::NotAFile) => {}
        }
    }
    Err(match not_executable {
        Some(path) => format!("{} is not executable", path.display()),
        None => {
            let searched: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
            format!("not found in {}", searched.join(":"))
        }
    })
}

fn unfit_file(path: &Path) -> Option<Unfit> {
    match path.metadata() {
        Ok(metadata) if !metadata.is_file() => Some(Unfit::NotAFile),
        Ok(_) => (!may_execute(path)).then_some(Unfit::NotExecutable),
        Err(_) => Some(Unfit::Missing),
    }
}

fn unfit_folder(path: &Path) -> Option<&'static str> {
    if !path.is_absolute() {
        return Some("must be an absolute path");
    }
    match path.metadata() {
        Ok(metadata) if !metadata.is_dir() => Some("is not a directory"),
        Ok(_) => (!may_execute(path)).then_some("may not be entered"),
        Err(_) => Some("there is no such directory"),
    }
}

/// Whether this process, as the user that it acts as, may execute a file or enter a folder.
fn may_execute(path: &Path) -> bool {
    rustix::fs::accessat(CWD, path, Access::EXEC_OK, AtFlags::EACCESS).is_ok()
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn folder_with(files: &[(&str, u32)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, mode) in files {
            let path = folder.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(*mode)).unwrap();
        }
        folder
    }

    fn find(command: &str, working_dir: Option<&Path>, own_path: Option<&str>) -> Result<PathBuf, (String, String)> {
        let mut run = ProcessWorkload::new(command);
        run.working_dir = working_dir.map(|folder| folder.to_str().unwrap().to_owned());
        match Program::find(&run, own_path, &["/usr/bin".into(), "/bin".into()]) {
            Ok(program) => Ok(program.path),
            Err(mut found) => {
                let first = found.remove(0);
                Err((first.pointer, first.reason))
            }
        }
    }

    fn command_refused(reason: impl Into<String>) -> Result<PathBuf, (String, String)> {
        Err(("/run/process/command".to_owned(), reason.into()))
    }

    #[test]
    fn a_bare_name_is_looked_up() {
        let folder = folder_with(&[("tool", 0o755), ("data", 0o644)]);
        let own = format!("relative::/nowhere:{}", folder.path().display());
        assert!(find("sh", None, None).unwrap().is_absolute());
        assert_eq!(find("tool", None, Some(&own)), Ok(folder.path().join("tool")));
        assert_eq!(find("tool", None, None), command_refused("not found in /usr/bin:/bin"));
        let data = folder.path().join("data");
        assert_eq!(find("data", None, Some(&own)), command_refused(format!("{} is not executable", data.display())));
        assert_eq!(find("sh", None, Some(&own)).unwrap_err().0, "/run/process/command");
        assert_eq!(find("", None, None), command_refused("must not be empty"));
    }

    #[test]
    fn a_path_is_taken_as_it_is() {
        let folder = folder_with(&[("tool", 0o755), ("data", 0o644)]);
        symlink(folder.path().join("tool"), folder.path().join("alias")).unwrap();
        let at = |name: &str| folder.path().join(name);
        assert_eq!(find(at("alias").to_str().unwrap(), None, None), Ok(at("alias")));
        assert_eq!(find("./tool", Some(folder.path()), None), Ok(at("./tool")));
        assert_eq!(find("./tool", None, None), command_refused("is relative, which needs a `working_dir`"));
        let refused = |name: &str, reason: &str| {
            let expected = command_refused(reason.replace("{}", at(name).to_str().unwrap()));
            assert_eq!(find(at(name).to_str().unwrap(), None, None), expected);
        };
        refused("none", "there is no file {}");
        refused("", "{} is not a regular file");
        refused("data", "{} is not executable");
    }

    #[test]
    fn the_folder_is_there() {
        let folder = folder_with(&[("data", 0o644)]);
        let refused = |path: &Path| find("/bin/sh", Some(path), None).unwrap_err();
        let at = "/run/process/working_dir".to_owned();
        assert_eq!(refused(Path::new("here")), (at.clone(), "must be an absolute path".to_owned()));
        assert_eq!(refused(&folder.path().join("data")), (at.clone(), "is not a directory".to_owned()));
        assert_eq!(refused(&folder.path().join("none")), (at, "there is no such directory".to_owned()));
    }

    #[test]
    fn every_text_that_can_t_be_handed_over_is_named() {
        let run = ProcessWorkload::new("s\0h").with_args(["fine", "\0", &"x".repeat(MAX_STRING)]);
        let found = Program::find(&run.with_working_dir("\0"), None, &[]).unwrap_err();
        let pointers: Vec<_> = found.iter().map(|violation| violation.pointer.as_str()).collect();
        assert_eq!(
            pointers,
            ["/run/process/command", "/run/process/working_dir", "/run/process/args/1", "/run/process/args/2"]
        );
    }
}
