//! The licences of everything that the workspace depends on.

use spdx::{Expression, ParseMode};

use crate::Result;
use crate::workspace::{Workspace, report};

pub(crate) const SUMMARY: &str = "Check that the licence of every dependency is one that we accept";
pub(crate) const HELP: &str = "\
Reads the licence of every package that any feature, platform or test brings in, as an SPDX expression, and fails where
it can't be met with the licences that `xtask/src/licences.rs` accepts.";

/// Licences that allow use in any host, closed ones included. MPL-2.0 asks for changes to its own files only.
const ACCEPTED: &[&str] = &[
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "MIT-0",
    "MPL-2.0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

pub(crate) fn check(workspace: &Workspace) -> Result<()> {
    let packages = &workspace.metadata.packages;
    let problems: Vec<String> = packages
        .iter()
        .filter_map(|package| {
            let problem = match &package.license {
                None => "it names no licence".to_owned(),
                Some(licence) => refusal(licence)?,
            };
            Some(format!("{} {}: {problem}", package.name, package.version))
        })
        .collect();
    report(&problems)?;
    println!("the licences of {} packages are accepted", packages.len());
    Ok(())
}

/// Why an expression is not acceptable; `None` where it is.
fn refusal(licence: &str) -> Option<String> {
    // Lax, because older packages write `MIT/Apache-2.0`, where the slash means OR.
    match Expression::parse_mode(licence, ParseMode::LAX) {
        Err(error) => Some(format!("{licence:?} is no SPDX expression: {}", error.reason)),
        Ok(expression) if expression.evaluate(|term| ACCEPTED.contains(&term.to_string().as_str())) => None,
        Ok(_) => Some(format!("{licence:?} is not accepted")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_accepted_side_of_an_or_is_enough() {
        assert_eq!(refusal("GPL-3.0-only OR MIT"), None);
        assert_eq!(refusal("GPL-3.0-only/MIT"), None);
        assert!(refusal("GPL-3.0-only OR AGPL-3.0-only").is_some());
    }

    #[test]
    fn an_and_needs_both_sides() {
        assert_eq!(refusal("MIT AND Unicode-3.0"), None);
        assert!(refusal("MIT AND GPL-3.0-only").is_some());
    }

    #[test]
    fn parentheses_bind() {
        assert_eq!(refusal("(MIT OR GPL-3.0-only) AND Unicode-3.0"), None);
        assert!(refusal("(MIT OR Apache-2.0) AND GPL-3.0-only").is_some());
        assert_eq!(refusal("MIT OR (Apache-2.0 AND GPL-3.0-only)"), None);
    }

    #[test]
    fn an_exception_is_part_of_the_licence() {
        assert_eq!(refusal("Apache-2.0 WITH LLVM-exception"), None);
        assert!(refusal("GPL-2.0-only WITH Classpath-exception-2.0").is_some());
    }

    #[test]
    fn what_is_no_expression_is_refused() {
        assert!(refusal("my own licence").is_some());
        assert!(refusal("").is_some());
    }

    #[test]
    fn every_accepted_licence_is_a_known_one() {
        for licence in ACCEPTED {
            assert_eq!(refusal(licence), None, "{licence}");
        }
    }
}
