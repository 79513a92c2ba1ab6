//! The one table from an error of the operating system to an [`Error`].

use std::io;
use std::process::Command;

use function_gateway_core::{Delivery, Error, ErrorKind};
use rustix::io::Errno;

use crate::settings::is_reserved;

/// The longest single argument or variable that Linux takes, its end included (`MAX_ARG_STRLEN`, execve(2)).
pub(crate) const MAX_STRING: usize = 128 * 1024;

const NOT_FOUND: &str = "the function's program was not found";
const NOT_EXECUTABLE: &str = "the function's program is not executable";
const BAD_FORMAT: &str = "the function's program is in no format that this machine executes";
const NO_PROCESS: &str = "this machine has no process left for the function: a limit of its user (ulimit -u), of its cgroup \
                          (pids.max) or of the machine is reached";
const NO_FILE: &str = "the host has no file descriptor left for the function (ulimit -n)";
const NO_MORE_FILES: &str = "this machine has no file descriptor left for the function (fs.file-max)";
const NO_MEMORY: &str = "this machine has no memory left for the function";
const NO_SPACE: &str = "this machine has no space left for the function";

/// The table. An errno that is not in it is an [`ErrorKind::Engine`] error.
const TABLE: &[(Errno, ErrorKind, &str)] = &[
    (Errno::NOENT, ErrorKind::Misconfigured, NOT_FOUND),
    (Errno::NOTDIR, ErrorKind::Misconfigured, NOT_FOUND),
    (Errno::LOOP, ErrorKind::Misconfigured, NOT_FOUND),
    (Errno::NAMETOOLONG, ErrorKind::Misconfigured, NOT_FOUND),
    (Errno::ACCESS, ErrorKind::Misconfigured, NOT_EXECUTABLE),
    (Errno::PERM, ErrorKind::Misconfigured, NOT_EXECUTABLE),
    (Errno::ISDIR, ErrorKind::Misconfigured, NOT_EXECUTABLE),
    (Errno::NOEXEC, ErrorKind::Misconfigured, BAD_FORMAT),
    (Errno::LIBBAD, ErrorKind::Misconfigured, BAD_FORMAT),
    (Errno::AGAIN, ErrorKind::Unavailable, NO_PROCESS),
    (Errno::MFILE, ErrorKind::Unavailable, NO_FILE),
    (Errno::NFILE, ErrorKind::Unavailable, NO_MORE_FILES),
    (Errno::NOMEM, ErrorKind::Unavailable, NO_MEMORY),
    (Errno::NOSPC, ErrorKind::Unavailable, NO_SPACE),
    (Errno::TXTBSY, ErrorKind::Unavailable, "the function's program is being written to"),
];

/// The error for a failure of the operating system. `delivery` says how far the call had come: not sent where the
/// process was never started.
pub(crate) fn of_io(error: io::Error, delivery: Delivery) -> Error {
    let errno = Errno::from_io_error(&error);
    let row = TABLE.iter().find(|(known, _, _)| Some(*known) == errno);
    let (kind, message) = match row {
        Some((_, kind, message)) => (*kind, *message),
        None if delivery == Delivery::NotSent => (ErrorKind::Engine, "the function's process could not be started"),
        None => (ErrorKind::Engine, "the function's process was lost"),
    };
    Error::new(kind, message).with_delivery(delivery).with_source(error)
}

/// The error for a process that was not started, which for arguments that are too large says whose they are.
pub(crate) fn of_start(error: io::Error, command: &Command) -> Error {
    if Errno::from_io_error(&error) != Some(Errno::TOOBIG) {
        return of_io(error, Delivery::NotSent);
    }
    let mut call = Sizes::default();
    let mut function = Sizes::default();
    for argument in command.get_args() {
        function.add(argument.len());
    }
    for (name, value) in command.get_envs() {
        let part = if is_reserved(name) { &mut call } else { &mut function };
        part.add(name.len() + 1 + value.map_or(0, |value| value.len()));
    }
    let error = if call.is_to_blame_beside(function) {
        let message = "path, query and headers are larger than this machine hands over to a process";
        Error::new(ErrorKind::InvalidArgument, message).with_context("bytes", call.total.to_string()).with_source(error)
    } else {
        let message = "the function's arguments, variables and secrets are larger than this machine hands over";
        let error = Error::new(ErrorKind::Misconfigured, message).with_source(error);
        error.with_context("bytes", function.total.to_string())
    };
    error.with_delivery(Delivery::NotSent)
}

/// How large one side's share of a process's arguments and variables is.
#[derive(Clone, Copy, Default)]
struct Sizes {
    total: usize,
    longest: usize,
}

impl Sizes {
    fn add(&mut self, bytes: usize) {
        let bytes = bytes + 1;
        self.total += bytes;
        self.longest = self.longest.max(bytes);
    }

    /// One string that is too long decides; without one it is the sum, and the larger side.
    fn is_to_blame_beside(self, other: Self) -> bool {
        if (self.longest > MAX_STRING) != (other.longest > MAX_STRING) {
            return self.longest > MAX_STRING;
        }
        self.total > other.total
    }
}

#[cfg(test)]
mod tests {
    use function_gateway_core::Retry;

    use super::*;

    fn row(errno: Errno) -> (ErrorKind, Retry) {
        let error = of_io(errno.into(), Delivery::NotSent);
        assert_eq!(error.delivery(), Delivery::NotSent);
        (error.kind(), error.retry())
    }

    #[test]
    fn every_row() {
        let misconfigured = (ErrorKind::Misconfigured, Retry::Never);
        let unavailable = (ErrorKind::Unavailable, Retry::Transient);
        let rows = [
            (Errno::NOENT, misconfigured),
            (Errno::NOTDIR, misconfigured),
            (Errno::LOOP, misconfigured),
            (Errno::NAMETOOLONG, misconfigured),
            (Errno::ACCESS, misconfigured),
            (Errno::PERM, misconfigured),
            (Errno::ISDIR, misconfigured),
            (Errno::NOEXEC, misconfigured),
            (Errno::LIBBAD, misconfigured),
            (Errno::AGAIN, unavailable),
            (Errno::MFILE, unavailable),
            (Errno::NFILE, unavailable),
            (Errno::NOMEM, unavailable),
            (Errno::NOSPC, unavailable),
            (Errno::TXTBSY, unavailable),
        ];
        assert_eq!(rows.len(), TABLE.len());
        for (errno, expected) in rows {
            assert_eq!(row(errno), expected, "{errno:?}");
        }
    }

    #[test]
    fn what_is_not_in_the_table_is_the_engine_s_failure() {
        assert_eq!(row(Errno::IO), (ErrorKind::Engine, Retry::Never));
        let lost = of_io(Errno::IO.into(), Delivery::Executed);
        assert_eq!((lost.kind(), lost.delivery()), (ErrorKind::Engine, Delivery::Executed));
    }

    #[test]
    fn after_the_start_a_lack_of_resources_is_not_called_unsent() {
        let error = of_io(Errno::MFILE.into(), Delivery::Unknown);
        assert_eq!((error.kind(), error.delivery()), (ErrorKind::Unavailable, Delivery::Unknown));
    }

    fn too_big(variables: &[(&str, usize)]) -> Error {
        let mut command = Command::new("/bin/true");
        command.env_clear().envs(variables.iter().map(|(name, bytes)| (name, "x".repeat(*bytes))));
        of_start(Errno::TOOBIG.into(), &command)
    }

    #[test]
    fn too_large_a_call_is_told_from_too_large_a_function() {
        let call = too_big(&[("FUNCTION_QUERY", MAX_STRING), ("A", 9), ("B", MAX_STRING / 2), ("C", MAX_STRING / 2)]);
        assert_eq!((call.kind(), call.delivery()), (ErrorKind::InvalidArgument, Delivery::NotSent));
        let function = too_big(&[("FUNCTION_QUERY", 10), ("SECRET", MAX_STRING)]);
        assert_eq!((function.kind(), function.delivery()), (ErrorKind::Misconfigured, Delivery::NotSent));
        assert_eq!(too_big(&[("FUNCTION_HEADER_A", 500), ("A", 100)]).kind(), ErrorKind::InvalidArgument);
        assert!(!format!("{function:?}").contains("xxx"));
    }
}
