//! How the program ends: the one table of exit codes, and failures that lead to them.

use std::fmt::Write as _;
use std::io;
use std::process::ExitCode;

use function_gateway::{Error, ErrorKind};
use serde_json::Value;

/// How the program ends. The numbers can be relied on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exit {
    Done = 0,
    FunctionFailed = 1,
    Usage = 2,
    Refused = 3,
    OutOfReach = 4,
    GatewayFailed = 5,
    Interrupted = 130,
}

impl Exit {
    const ALL: [Self; 7] = [
        Self::Done,
        Self::FunctionFailed,
        Self::Usage,
        Self::Refused,
        Self::OutOfReach,
        Self::GatewayFailed,
        Self::Interrupted,
    ];

    fn meaning(self) -> &'static str {
        match self {
            Self::Done => "Done. For `invoke`: the function succeeded",
            Self::FunctionFailed => {
                "The function failed, refused the call, took too long, or was not ready or gone in time"
            }
            Self::Usage => "The command line, the configuration or a file is not right",
            Self::Refused => "The gateway refused: it is not allowed, not there, or not right",
            Self::OutOfReach => "The gateway is out of reach",
            Self::GatewayFailed => "The gateway, its store or an engine failed, or could not be started",
            Self::Interrupted => "Stopped at once: by the second Ctrl-C, where the first one lets calls end",
        }
    }

    /// The table, for `--help`.
    pub(crate) fn table() -> String {
        let mut text = String::from("Exit codes:");
        for exit in Self::ALL {
            // Writing to a text does not fail.
            let _ = write!(text, "\n  {:<4} {}", exit as u8, exit.meaning());
        }
        text
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit as u8)
    }
}

/// Why a command did not do what it was asked for.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// What went wrong, for people: the first line says it, further ones give what belongs to it.
    pub(crate) message: String,
    /// The problem document, where the gateway answered one.
    pub(crate) problem: Option<Value>,
}

/// The result of everything that can fail here.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), problem: None }
    }

    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Exit::Usage, message)
    }
}

/// An error of the gateway that is built here: whoever runs it may know all of it.
impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let exit = match error.kind() {
            ErrorKind::InvalidArgument | ErrorKind::Misconfigured | ErrorKind::Unsupported => Exit::Usage,
            ErrorKind::NotFound | ErrorKind::AlreadyExists => Exit::Refused,
            _ => Exit::GatewayFailed,
        };
        let mut message = error.message().to_owned();
        for (name, value) in error.context() {
            let _ = write!(message, " ({name}: {value})");
        }
        for violation in error.violations() {
            let _ = write!(message, "\n  {violation}");
        }
        let mut cause = std::error::Error::source(&error);
        if let Some(detail) = error.detail() {
            let _ = write!(message, "\n  {detail}");
        }
        while let Some(error) = cause {
            let _ = write!(message, "\n  {error}");
            cause = error.source();
        }
        Self::new(exit, message)
    }
}

/// Standard output or another local file failed.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Whoever reads the output has enough, as `head` does.
            io::ErrorKind::BrokenPipe => Self::new(Exit::Done, String::new()),
            _ => Self::usage(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_readme_has_the_table() {
        let readme = include_str!("../README.md");
        for exit in Exit::ALL {
            let row = format!("\n| {} | {} |\n", exit as u8, exit.meaning());
            assert!(readme.contains(&row), "{row}");
        }
    }
}
