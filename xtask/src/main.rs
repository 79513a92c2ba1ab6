//! The chores of this workspace, run as `cargo xtask <command>`.
//!
//! The crate depends on nothing of the gateway, so that its checks also run where the gateway does not compile.

use std::process::ExitCode;

use crate::workspace::Workspace;

mod architecture;
mod cgroup;
mod docs;
mod files;
mod instructions;
mod licences;
mod long;
mod markdown;
mod readme;
mod runtimes;
mod rust;
mod servers;
mod test;
mod tidy;
mod workspace;

/// What went wrong, in words for the developer; several lines where there are several things.
pub(crate) type Result<T, E = String> = std::result::Result<T, E>;

struct Command {
    name: &'static str,
    arguments: &'static str,
    summary: &'static str,
    help: &'static str,
    run: fn(&Workspace, &[String]) -> Result<()>,
}

const COMMANDS: &[Command] = &[
    Command { name: "test", arguments: "[STEP...]", summary: test::SUMMARY, help: test::HELP, run: test::command },
    Command {
        name: "architecture",
        arguments: "",
        summary: architecture::SUMMARY,
        help: architecture::HELP,
        run: |workspace, args| no_arguments(args).and_then(|()| architecture::check(workspace)),
    },
    Command {
        name: "licences",
        arguments: "",
        summary: licences::SUMMARY,
        help: licences::HELP,
        run: |workspace, args| no_arguments(args).and_then(|()| licences::check(workspace)),
    },
    Command { name: "docs", arguments: "[--check]", summary: docs::SUMMARY, help: docs::HELP, run: docs::command },
    Command {
        name: "readme",
        arguments: "",
        summary: readme::SUMMARY,
        help: readme::HELP,
        run: |workspace, args| no_arguments(args).and_then(|()| readme::check(workspace)),
    },
    Command {
        name: "tidy",
        arguments: "",
        summary: tidy::SUMMARY,
        help: tidy::HELP,
        run: |workspace, args| no_arguments(args).and_then(|()| tidy::check(workspace)),
    },
    Command {
        name: "runtimes",
        arguments: "",
        summary: runtimes::SUMMARY,
        help: runtimes::HELP,
        run: |workspace, args| no_arguments(args).and_then(|()| runtimes::command(workspace)),
    },
    Command {
        name: "soak",
        arguments: "[--seed N] [--times N]",
        summary: long::SOAK_SUMMARY,
        help: long::SOAK_HELP,
        run: long::soak,
    },
    Command {
        name: "bench",
        arguments: "[--instructions | ARGS...]",
        summary: long::BENCH_SUMMARY,
        help: long::BENCH_HELP,
        run: long::bench,
    },
];

/// The commands' names, for documents that mention them.
pub(crate) fn is_command(name: &str) -> bool {
    COMMANDS.iter().any(|command| command.name == name)
}

fn no_arguments(args: &[String]) -> Result<()> {
    match args.first() {
        None => Ok(()),
        Some(extra) => Err(format!("unexpected argument {extra:?}")),
    }
}

fn usage() -> String {
    let mut text =
        "The chores of this workspace.\n\nUsage: cargo xtask <command> [arguments]\n\nCommands:\n".to_owned();
    for command in COMMANDS {
        text.push_str(&format!("  {:<14}{}\n", command.name, command.summary));
    }
    text + "\n`cargo xtask <command> --help` says more about each."
}

fn help(command: &Command) -> String {
    let usage = format!("cargo xtask {} {}", command.name, command.arguments);
    format!("{}\n\nUsage: {}\n\n{}", command.summary, usage.trim_end(), command.help.trim())
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((name, rest)) = args.split_first().filter(|(name, _)| !matches!(name.as_str(), "--help" | "-h" | "help"))
    else {
        println!("{}", usage());
        return if args.is_empty() { ExitCode::from(2) } else { ExitCode::SUCCESS };
    };
    let Some(command) = COMMANDS.iter().find(|command| command.name == name) else {
        eprintln!("error: there is no command {name:?}\n\n{}", usage());
        return ExitCode::from(2);
    };
    if rest.iter().any(|arg| matches!(arg.as_str(), "--help" | "-h")) {
        println!("{}", help(command));
        return ExitCode::SUCCESS;
    }
    match Workspace::load().and_then(|workspace| (command.run)(&workspace, rest)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::FAILURE
        }
    }
}
