//! What a process and all that it starts may use.
//!
//! Where the host has a part of the cgroup tree (version 2) of its own, each process gets a group in it, and memory and
//! CPU are those of all its children together. Elsewhere memory is limited by `RLIMIT_DATA`, for each process by itself.
//! <https://docs.kernel.org/admin-guide/cgroup-v2.html>

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use function_gateway_core::{Error, ErrorKind, FunctionSpec, Result};
use rustix::process::{Pid, Resource, Rlimit};

/// What the groups of this driver are called, so that they are known again.
const PREFIX: &str = "function-";
const CONTROLLERS: [&str; 2] = ["memory", "cpu"];
/// The time over which CPU is measured out, in microseconds: the kernel's own default.
const PERIOD: u64 = 100_000;

/// What the processes of a deployment may use, and how they are held to it.
#[derive(Debug, Clone)]
pub(crate) struct Limits {
    memory_bytes: Option<u64>,
    cpu_millis: Option<u32>,
    cgroup: Option<Arc<Cgroup>>,
}

impl Limits {
    pub(crate) fn of(spec: &FunctionSpec, cgroup: Option<Arc<Cgroup>>) -> Self {
        Self { memory_bytes: spec.limits.memory_bytes, cpu_millis: spec.limits.cpu_millis, cgroup }
    }

    pub(crate) fn memory_bytes(&self) -> Option<u64> {
        self.memory_bytes
    }

    /// Holds a process that was just started, and what it starts from now on, to the limits. Whoever gets an error must
    /// end the process.
    pub(crate) fn apply(&self, process: Pid) -> io::Result<Option<Confined>> {
        if self.memory_bytes.is_none() && self.cpu_millis.is_none() {
            return Ok(None);
        }
        if let Some(cgroup) = &self.cgroup {
            return Cgroup::confine(cgroup, process, self).map(Some);
        }
        if let Some(bytes) = self.memory_bytes {
            let limit = Rlimit { current: Some(bytes), maximum: Some(bytes) };
            rustix::process::prlimit(Some(process), Resource::Data, limit)?;
        }
        Ok(None)
    }
}

/// What is said of a process that the kernel has killed.
pub(crate) fn killed_for_memory(limit: u64) -> String {
    format!("killed for needing more than the {limit} bytes of memory that it may have (limits.memory_bytes)")
}

/// A part of the cgroup tree that is the host's.
#[derive(Debug)]
pub(crate) struct Cgroup {
    folder: PathBuf,
    /// Numbers the groups.
    next: AtomicU64,
    /// Groups whose processes were killed and had not ended yet.
    ending: Mutex<Vec<PathBuf>>,
}

impl Cgroup {
    /// Takes a folder that was delegated to the host, with what an earlier host has left there removed.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidArgument`] where it can't be used, and why.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        let refused = |why: String| {
            Error::new(ErrorKind::InvalidArgument, format!("cgroup: {} can't be used: {why}", folder.display()))
        };
        let read = |name: &str| {
            let read = fs::read_to_string(folder.join(name));
            read.map_err(|error| {
                refused(format!("{name} can't be read, so it is no delegated cgroup of version 2: {error}"))
            })
        };
        if !folder.is_absolute() {
            return Err(refused("it is not an absolute path".to_owned()));
        }
        let offered = read("cgroup.controllers")?;
        let enabled = read("cgroup.subtree_control")?;
        for controller in CONTROLLERS {
            let is_in = |list: &str| list.split_ascii_whitespace().any(|name| name == controller);
            if !is_in(&offered) {
                return Err(refused(format!("it does not have the controller {controller:?}")));
            }
            if !is_in(&enabled) {
                let enabling = fs::write(folder.join("cgroup.subtree_control"), format!("+{controller}"));
                enabling.map_err(|error| {
                    refused(format!("the controller {controller:?} can't be enabled for what is below it: {error}"))
                })?;
            }
        }
        let left = fs::read_dir(folder).map_err(|error| refused(error.to_string()))?.flatten();
        for group in left.filter(|entry| entry.file_name().to_string_lossy().starts_with(PREFIX)) {
            // One in which a process still runs is another host's, and can't be removed.
            let _ = fs::remove_dir(group.path());
        }
        Ok(Self { folder: folder.to_owned(), next: AtomicU64::new(0), ending: Mutex::default() })
    }

    fn confine(this: &Arc<Self>, process: Pid, limits: &Limits) -> io::Result<Confined> {
        this.clear();
        let number = this.next.fetch_add(1, Ordering::Relaxed);
        let folder = this.folder.join(format!("{PREFIX}{}-{number}", std::process::id()));
        fs::create_dir(&folder)?;
        let confined = Confined { folder, cgroup: Arc::clone(this) };
        if let Some(bytes) = limits.memory_bytes {
            confined.write("memory.max", &bytes.to_string())?;
            // What does not fit is not to be swapped out instead. Kernels without swap have no such file.
            let _ = confined.write("memory.swap.max", "0");
            // One of several processes that is killed for memory takes the others with it. Older kernels have no such file.
            let _ = confined.write("memory.oom.group", "1");
        }
        if let Some(millis) = limits.cpu_millis {
            confined.write("cpu.max", &format!("{} {PERIOD}", u64::from(millis) * PERIOD / 1000))?;
        }
        confined.write("cgroup.procs", &process.as_raw_nonzero().to_string())?;
        Ok(confined)
    }

    /// Removes the groups whose processes have ended by now.
    fn clear(&self) {
        let mut ending = self.ending.lock().unwrap_or_else(PoisonError::into_inner);
        ending.retain(|folder| fs::remove_dir(folder).is_err_and(|error| error.kind() != io::ErrorKind::NotFound));
    }
}

/// The group of one process and of all that it has started. Removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Confined {
    folder: PathBuf,
    cgroup: Arc<Cgroup>,
}

impl Confined {
    fn write(&self, name: &str, value: &str) -> io::Result<()> {
        fs::write(self.folder.join(name), value)
    }

    /// Kills all that is in it, also what has left its process group. Linux 5.14 or later; elsewhere it does nothing.
    pub(crate) fn kill(&self) {
        let _ = self.write("cgroup.kill", "1");
    }

    /// Whether the kernel has killed any of them for needing more than the memory of this group.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let events = fs::read_to_string(self.folder.join("memory.events")).unwrap_or_default();
        let happened =
            |event: &str| events.lines().any(|line| line.strip_prefix(event).is_some_and(|count| count != "0"));
        // One that was killed since all of the machine had no memory left has kept to its own limit.
        happened("oom ") && happened("oom_kill ")
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.kill();
        if fs::remove_dir(&self.folder).is_err() {
            // What was just killed may be about to end: the next process to be confined, or the next host, removes the group.
            let folder = std::mem::take(&mut self.folder);
            self.cgroup.ending.lock().unwrap_or_else(PoisonError::into_inner).push(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use function_gateway_core::ProcessWorkload;

    use super::*;

    /// A folder that looks as the kernel's does.
    fn delegated(controllers: &str, enabled: &str) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("cgroup.controllers"), controllers).unwrap();
        fs::write(folder.path().join("cgroup.subtree_control"), enabled).unwrap();
        folder
    }

    fn limits(memory_bytes: Option<u64>, cpu_millis: Option<u32>, folder: &Path) -> Limits {
        let mut spec = FunctionSpec::new("local".parse().unwrap(), ProcessWorkload::new("x"));
        (spec.limits.memory_bytes, spec.limits.cpu_millis) = (memory_bytes, cpu_millis);
        Limits::of(&spec, Some(Arc::new(Cgroup::open(folder).unwrap())))
    }

    #[test]
    fn a_process_gets_a_group_with_its_limits() {
        let folder = delegated("cpuset cpu io memory pids", "cpu memory");
        let pid = Pid::from_raw(4711).unwrap();
        let confined = limits(Some(64 << 20), Some(250), folder.path()).apply(pid).unwrap().unwrap();
        let read = |name: &str| fs::read_to_string(confined.folder.join(name)).unwrap();
        assert_eq!(read("memory.max"), (64 << 20).to_string());
        assert_eq!(read("memory.swap.max"), "0");
        assert_eq!(read("memory.oom.group"), "1");
        assert_eq!(read("cpu.max"), "25000 100000");
        assert_eq!(read("cgroup.procs"), "4711");
        confined.kill();
        assert_eq!(read("cgroup.kill"), "1");
    }

    #[test]
    fn an_end_for_want_of_memory_is_told_from_others() {
        let folder = delegated("cpu memory", "cpu memory");
        let confined = limits(Some(1), None, folder.path()).apply(Pid::from_raw(4711).unwrap()).unwrap().unwrap();
        assert!(!confined.was_out_of_memory());
        for (limit, count, expected) in [(1, 0, false), (1, 1, true), (3, 12, true), (0, 1, false)] {
            let events = format!("low 0\nhigh 0\nmax 3\noom {limit}\noom_kill {count}\noom_group_kill 7\n");
            confined.write("memory.events", &events).unwrap();
            assert_eq!(confined.was_out_of_memory(), expected, "{events}");
        }
    }

    /// A folder that holds something can't be removed, as a group can't in which a process still runs.
    #[test]
    fn a_group_that_could_not_be_removed_at_once_is_later() {
        let folder = delegated("cpu memory", "cpu memory");
        let (limits, pid) = (limits(Some(1), None, folder.path()), Pid::from_raw(4711).unwrap());
        let confined = limits.apply(pid).unwrap().unwrap();
        let first = confined.folder.clone();
        drop(confined);
        assert!(first.exists());
        fs::remove_dir_all(&first).unwrap();
        fs::create_dir(&first).unwrap();
        let second = limits.apply(pid).unwrap().unwrap();
        assert!(!first.exists() && second.folder.exists());
    }

    #[test]
    fn without_limits_there_is_no_group() {
        let folder = delegated("cpu memory", "cpu memory");
        let pid = Pid::from_raw(4711).unwrap();
        assert!(limits(None, None, folder.path()).apply(pid).unwrap().is_none());
    }

    #[test]
    fn what_is_missing_is_enabled_or_named() {
        let folder = delegated("cpu memory", "cpu");
        Cgroup::open(folder.path()).unwrap();
        assert_eq!(fs::read_to_string(folder.path().join("cgroup.subtree_control")).unwrap(), "+memory");
        let without = delegated("cpu io", "");
        let error = Cgroup::open(without.path()).unwrap_err();
        assert!(error.message().contains("\"memory\""), "{error}");
        let none = tempfile::tempdir().unwrap();
        let error = Cgroup::open(none.path()).unwrap_err();
        assert!(
            error.kind() == ErrorKind::InvalidArgument && error.message().contains("cgroup.controllers"),
            "{error}"
        );
        assert!(Cgroup::open(Path::new("relative")).unwrap_err().message().contains("absolute"));
    }

    #[test]
    fn what_an_earlier_host_has_left_is_removed() {
        let folder = delegated("cpu memory", "cpu memory");
        let (left, other) = (folder.path().join("function-1-0"), folder.path().join("other"));
        fs::create_dir(&left).unwrap();
        fs::create_dir(&other).unwrap();
        Cgroup::open(folder.path()).unwrap();
        assert!(!left.exists() && other.exists());
    }
}
