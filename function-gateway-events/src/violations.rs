//! What is wrong in a document, gathered up to a bound.

use function_gateway_core::{Error, ErrorKind, Result, Violation};

/// As many as the validation of payloads lists. Where there are more, the last one listed says so.
const MAX_VIOLATIONS: usize = 100;

#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<Violation>);

impl Violations {
    pub(crate) fn add(&mut self, pointer: impl Into<String>, reason: impl Into<String>) {
        if self.0.len() < MAX_VIOLATIONS {
            self.0.push(Violation::new(pointer, reason));
        } else if let Some(last) = self.0.last_mut() {
            *last = Violation::new("", format!("there are more than the {} listed", MAX_VIOLATIONS - 1));
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.0.len() == MAX_VIOLATIONS
    }

    /// The value, or all that is wrong. Without a value there is a violation.
    pub(crate) fn or<T>(self, value: Option<T>, message: &'static str) -> Result<T> {
        match value {
            Some(value) if self.0.is_empty() => Ok(value),
            _ => Err(Error::new(ErrorKind::InvalidArgument, message).with_violations(self.0)),
        }
    }
}

/// The place of a member in a document, as a JSON Pointer. What a sender chose as a name is repeated up to a bound.
pub(crate) fn member(at: &str, name: &str) -> String {
    const SHOWN: usize = 80;
    let mut pointer = format!("{at}/");
    for (index, char) in name.chars().enumerate() {
        match char {
            _ if index == SHOWN => {
                pointer.push('…');
                break;
            }
            '~' => pointer.push_str("~0"),
            '/' => pointer.push_str("~1"),
            _ => pointer.push(char),
        }
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pointer_escapes_and_bounds_the_name() {
        assert_eq!(member("/3", "a/b~c"), "/3/a~1b~0c");
        assert_eq!(member("", &"é".repeat(500)).chars().count(), 82);
    }

    #[test]
    fn the_list_is_bounded_and_says_so() {
        let mut found = Violations::default();
        for index in 0..1000 {
            found.add(format!("/{index}"), "is wrong");
        }
        let error = found.or(Some(()), "no").unwrap_err();
        assert_eq!(error.violations().len(), MAX_VIOLATIONS);
        assert_eq!(error.violations()[98].pointer, "/98");
        assert_eq!(error.violations()[99].reason, "there are more than the 99 listed");
    }
}
