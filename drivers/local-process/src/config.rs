//! What a host chooses about the driver.

use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use function_gateway_core::{Error, ErrorKind, Result};
use serde::Deserialize;

/// What a host chooses about the driver. Everything has a default; a key that is not known is refused.
///
/// ```
/// use function_gateway_local_process::LocalProcessConfig;
///
/// let config: LocalProcessConfig = serde_json::from_str(r#"{"search_path": ["/opt/functions/bin"]}"#)?;
/// assert_eq!(config, LocalProcessConfig::new().with_search_path(["/opt/functions/bin"]));
/// # Ok::<_, serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[non_exhaustive]
pub struct LocalProcessConfig {
    /// The folders, all absolute, in which a program is looked up that a function names without a path and without a
    /// `PATH` of its own. `/usr/local/bin`, `/usr/bin` and `/bin` unless set; the host's `PATH` is never read.
    pub search_path: Vec<PathBuf>,
    /// How many processes the driver runs at a time, of all functions together; no limit unless set. A call beyond it
    /// is refused at once, as transient and not sent.
    pub max_processes: Option<NonZeroU32>,
    /// How many workers a function has at most where its `scale.max` does not say; 10 unless set.
    pub max_workers: NonZeroU32,
    /// How long a worker may take to get ready, in milliseconds in JSON; 30 s unless set.
    #[serde(rename = "start_timeout_ms", deserialize_with = "millis")]
    pub start_timeout: Duration,
    /// How long a worker above `scale.min` is kept without a call, in milliseconds in JSON; 5 minutes unless set. A
    /// function may set its own by an annotation.
    #[serde(rename = "idle_timeout_ms", deserialize_with = "millis")]
    pub idle_timeout: Duration,
    /// How long a worker has from the signal to end (`SIGTERM`) until it is killed, in milliseconds in JSON; 5 s unless
    /// set.
    #[serde(rename = "stop_grace_ms", deserialize_with = "millis")]
    pub stop_grace: Duration,
    /// How much of the log of a function's workers is kept in memory, in bytes; 256 KiB unless set.
    pub log_bytes: usize,
    /// The folder, absolute, for the Unix sockets of workers; `/tmp` unless set. Each gets a folder of its own in it that
    /// only the host's user may enter.
    pub socket_folder: PathBuf,
    /// A folder of the cgroup tree (version 2) that was delegated to the host, with the controllers `memory` and `cpu`.
    /// Limits are kept in it, for a process with all that it starts; without it each process has its limit on memory by
    /// itself, and there is none on CPU.
    pub cgroup: Option<PathBuf>,
}

fn millis<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    u64::deserialize(deserializer).map(Duration::from_millis)
}

impl Default for LocalProcessConfig {
    fn default() -> Self {
        Self {
            search_path: ["/usr/local/bin", "/usr/bin", "/bin"].map(PathBuf::from).to_vec(),
            max_processes: None,
            max_workers: const { NonZeroU32::new(10).expect("10 is not 0") },
            start_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(300),
            stop_grace: Duration::from_secs(5),
            log_bytes: 256 * 1024,
            socket_folder: PathBuf::from("/tmp"),
            cgroup: None,
        }
    }
}

impl LocalProcessConfig {
    /// The defaults.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets the folders in which programs are looked up.
    #[must_use]
    pub fn with_search_path<I: IntoIterator<Item = P>, P: Into<PathBuf>>(mut self, folders: I) -> Self {
        self.search_path = folders.into_iter().map(Into::into).collect();
        self
    }

    /// Limits how many processes run at a time.
    #[must_use]
    pub fn with_max_processes(mut self, limit: NonZeroU32) -> Self {
        self.max_processes = Some(limit);
        self
    }

    /// Sets how many workers a function has at most where it does not say so itself.
    #[must_use]
    pub fn with_max_workers(mut self, limit: NonZeroU32) -> Self {
        self.max_workers = limit;
        self
    }

    /// Sets how long a worker may take to get ready.
    #[must_use]
    pub fn with_start_timeout(mut self, timeout: Duration) -> Self {
        self.start_timeout = timeout;
        self
    }

    /// Sets how long a worker is kept without a call.
    #[must_use]
    pub fn with_idle_timeout(mut self, timeout: Duration) -> Self {
        self.idle_timeout = timeout;
        self
    }

    /// Sets how long a worker has to end by itself before it is killed.
    #[must_use]
    pub fn with_stop_grace(mut self, grace: Duration) -> Self {
        self.stop_grace = grace;
        self
    }

    /// Sets how much of the log of a function's workers is kept.
    #[must_use]
    pub fn with_log_bytes(mut self, bytes: usize) -> Self {
        self.log_bytes = bytes;
        self
    }

    /// Sets the folder for the Unix sockets of workers.
    #[must_use]
    pub fn with_socket_folder(mut self, folder: impl Into<PathBuf>) -> Self {
        self.socket_folder = folder.into();
        self
    }

    /// Sets the delegated folder of the cgroup tree.
    #[must_use]
    pub fn with_cgroup(mut self, folder: impl Into<PathBuf>) -> Self {
        self.cgroup = Some(folder.into());
        self
    }

    pub(crate) fn validate(&self) -> Result<()> {
        let folders = self.search_path.iter().map(|folder| ("search_path", folder));
        let mut folders = folders.chain([("socket_folder", &self.socket_folder)]);
        if let Some((field, relative)) = folders.find(|(_, folder)| !folder.is_absolute()) {
            let message = format!("{field}: {} is not an absolute path", relative.display());
            return Err(Error::new(ErrorKind::InvalidArgument, message));
        }
        let times = [("start_timeout_ms", self.start_timeout), ("idle_timeout_ms", self.idle_timeout)];
        if let Some((field, _)) = times.into_iter().find(|(_, time)| time.is_zero()) {
            return Err(Error::new(ErrorKind::InvalidArgument, format!("{field}: must be at least 1")));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_setting_that_does_not_exist_is_refused() {
        let error = serde_json::from_str::<LocalProcessConfig>(r#"{"max_proceses": 3}"#).unwrap_err();
        assert!(error.to_string().contains("max_processes"), "{error}");
        assert!(serde_json::from_str::<LocalProcessConfig>(r#"{"max_processes": 0}"#).is_err());
    }

    #[test]
    fn a_relative_folder_is_refused() {
        let error = LocalProcessConfig::new().with_search_path(["/bin", "bin"]).validate().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidArgument);
        assert!(error.message().contains("bin is not an absolute path"));
    }
}
