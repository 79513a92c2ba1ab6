//! A gateway for local trials, and a client for it.
//!
//! It shows how the crates of Function Gateway are put together: [`serve`] is the host. What is around it reads settings and
//! talks to people.

mod client;
mod commands;
mod config;
mod exit;
mod log;
mod output;
mod samples;
mod serve;
mod settings;
mod store;
mod welcome;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tokio::runtime::Runtime;

use crate::commands::dead_letters::DeadLetters;
use crate::commands::events::{Events, Subscriptions};
use crate::commands::executions::Executions;
use crate::commands::function::FunctionArgs;
use crate::commands::invoke::Invoke;
use crate::commands::keys::Keys;
use crate::config::Config;
use crate::exit::{Exit, Failure, Result};
use crate::output::Format;
use crate::settings::ServeFlags;

/// Calls make many small allocations on several threads, at which this one is faster than that of the system.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Function Gateway for local trials: own the API of your functions.
///
/// Without a command it serves: it starts a gateway that runs functions as processes on this machine.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true, after_help = serve_help())]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    serve: ServeFlags,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start a gateway (the default)
    #[command(after_help = serve_help())]
    Serve(ServeFlags),
    /// Create, list, show and delete functions
    #[command(after_help = Exit::table())]
    Function(FunctionArgs),
    /// Execute a function
    #[command(after_help = Exit::table())]
    Invoke(Invoke),
    /// List and show executions, and what was logged in them; wait for their ends, and cancel them
    #[command(after_help = Exit::table())]
    Executions(Executions),
    /// List and show executions that have failed for good, have them executed again, or forget them
    #[command(after_help = Exit::table())]
    DeadLetters(DeadLetters),
    /// Publish events (CloudEvents), which execute the functions of subscriptions
    #[command(after_help = Exit::table())]
    Events(Events),
    /// Create, list, show and delete subscriptions: which events execute which functions, and how
    #[command(after_help = Exit::table())]
    Subscriptions(Subscriptions),
    /// Create, list and revoke API keys, in the gateway's database
    #[command(after_help = Exit::table())]
    Keys(Keys),
}

fn serve_help() -> String {
    format!("{}\n\n{}", settings::HELP, Exit::table())
}

fn main() -> ExitCode {
    let Cli { command, serve } = Cli::parse();
    let command = command.unwrap_or(Command::Serve(serve));
    let output = command.output();
    match run(command) {
        Ok(()) => Exit::Done.into(),
        Err(failure) => {
            failure.tell(output);
            failure.exit.into()
        }
    }
}

fn run(command: Command) -> Result<()> {
    settings::check_environment()?;
    let runtime = Runtime::new()?;
    let result = runtime.block_on(async {
        match command {
            Command::Serve(flags) => {
                let (config, file) = Config::read_to_serve(&flags)?;
                match flags.common.print_config {
                    true => Ok(output::line(config.to_toml()?.trim_end())?),
                    false => serve::run(&config, file).await,
                }
            }
            Command::Function(function) => function.run().await,
            Command::Invoke(invoke) => invoke.run().await,
            Command::Executions(executions) => executions.run().await,
            Command::DeadLetters(dead_letters) => dead_letters.run().await,
            Command::Events(events) => events.run().await,
            Command::Subscriptions(subscriptions) => subscriptions.run().await,
            Command::Keys(keys) => {
                let config = Config::read(keys.flags())?;
                match keys.flags().print_config {
                    true => Ok(output::line(config.to_toml()?.trim_end())?),
                    false => keys.run(&config).await,
                }
            }
        }
    });
    // Whoever waits for standard input waits for no more.
    runtime.shutdown_background();
    result
}

impl Command {
    fn output(&self) -> Format {
        match self {
            Self::Serve(_) => Format::Table,
            Self::Function(function) => function.output,
            Self::Invoke(invoke) => invoke.output,
            Self::Executions(executions) => executions.output,
            Self::DeadLetters(dead_letters) => dead_letters.output,
            Self::Events(events) => events.output,
            Self::Subscriptions(subscriptions) => subscriptions.output,
            Self::Keys(keys) => keys.output(),
        }
    }
}

impl Failure {
    /// Tells on standard error what went wrong: people in words, programs with the problem document, where there is one.
    pub(crate) fn tell(&self, output: Format) {
        match (&self.problem, output) {
            (Some(problem), Format::Json) => output::note(&problem.to_string()),
            _ if self.message.is_empty() => {}
            _ => output::note(&format!("error: {}", self.message)),
        }
    }

    /// The code of the problem that the gateway answered.
    pub(crate) fn code(&self) -> Option<&str> {
        self.problem.as_ref()?.get("code")?.as_str()
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_help_says_what_everything_is() {
        fn check(command: &clap::Command, path: &str) {
            let path = format!("{path} {}", command.get_name());
            assert!(command.get_about().is_some(), "{path}");
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{path} {}", argument.get_id());
            }
            command.get_subcommands().for_each(|command| check(command, &path));
        }
        check(&Cli::command(), "");
    }
}
