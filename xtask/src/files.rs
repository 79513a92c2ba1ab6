//! The files of the checkout.

use std::fs;
use std::path::{Path, PathBuf};

use crate::Result;

/// A text file of the checkout.
#[derive(Debug)]
pub(crate) struct File {
    /// From the root, with `/`.
    pub(crate) path: String,
    pub(crate) text: String,
}

impl File {
    pub(crate) fn has_extension(&self, extension: &str) -> bool {
        self.path.rsplit_once('.').is_some_and(|(_, found)| found == extension)
    }
}

/// Folders that hold nothing of the checkout's own: version control, and what is built or installed.
const FOREIGN: &[&str] = &[".git", "target", "node_modules", "venv"];

/// Every text file below a folder of the checkout, in order of its path; [`FOREIGN`] folders left out.
pub(crate) fn read_all(root: &Path, below: &Path) -> Result<Vec<File>> {
    let mut files = Vec::new();
    let mut open = vec![below.to_owned()];
    while let Some(folder) = open.pop() {
        let problem = |error| format!("{}: {error}", folder.display());
        for entry in fs::read_dir(&folder).map_err(problem)? {
            let entry = entry.map_err(problem)?;
            let name = entry.file_name();
            let kind = entry.file_type().map_err(problem)?;
            if kind.is_dir() && FOREIGN.iter().all(|foreign| name != *foreign) {
                open.push(entry.path());
            } else if kind.is_file()
                && let Ok(text) = String::from_utf8(read(&entry.path())?)
            {
                files.push(File { path: relative(root, &entry.path()), text });
            }
        }
    }
    files.sort_by(|left, right| left.path.cmp(&right.path));
    Ok(files)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    fs::read(path).map_err(|error| format!("{}: {error}", path.display()))
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| format!("{}: {error}", path.display()))
}

fn relative(root: &Path, path: &Path) -> String {
    path.strip_prefix(root).unwrap_or(path).to_string_lossy().replace('\\', "/")
}

/// What a relative path in a file means, from the root; `None` where it leads out of the checkout.
pub(crate) fn resolve(file: &str, target: &str) -> Option<String> {
    let mut parts: Vec<&str> = file.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()?),
            name => parts.push(name),
        }
    }
    Some(parts.iter().collect::<PathBuf>().to_string_lossy().replace('\\', "/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relative_path_is_resolved_against_the_folder_of_its_file() {
        assert_eq!(resolve("docs/errors.md", "README.md").as_deref(), Some("docs/README.md"));
        assert_eq!(resolve("docs/drivers/x.md", "../../README.md").as_deref(), Some("README.md"));
        assert_eq!(resolve("README.md", "./docs/").as_deref(), Some("docs"));
    }

    #[test]
    fn a_path_out_of_the_checkout_is_not_resolved() {
        assert_eq!(resolve("docs/errors.md", "../../elsewhere.md"), None);
    }
}
