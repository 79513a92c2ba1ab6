//! Just enough of Markdown: code blocks, links, headings, and the sections that are generated.

use std::collections::BTreeMap;

use crate::Result;

/// A fenced code block.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Fence {
    /// The line of its opening, from 1.
    pub(crate) line: usize,
    /// What stands behind the opening, such as `sh no-run`.
    pub(crate) info: String,
    pub(crate) body: String,
}

impl Fence {
    /// The words of the info string; `rust,no_run` are two.
    pub(crate) fn tags(&self) -> impl Iterator<Item = &str> {
        self.info.split([' ', ',']).filter(|tag| !tag.is_empty())
    }

    pub(crate) fn language(&self) -> &str {
        self.tags().next().unwrap_or_default()
    }
}

/// A link and its line, from 1.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) line: usize,
    pub(crate) target: String,
}

/// The code blocks of a document, and its other lines with their numbers.
fn split(text: &str) -> (Vec<Fence>, Vec<(usize, &str)>) {
    let (mut fences, mut prose) = (Vec::new(), Vec::new());
    let mut open: Option<(Fence, &str)> = None;
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        let marker_length = bare.chars().take_while(|char| *char == '`').count();
        match open.take() {
            Some((fence, marker)) if bare.starts_with(marker) && bare.trim_matches(['`', ' ']).is_empty() => {
                fences.push(fence);
            }
            Some((mut fence, marker)) => {
                fence.body.push_str(line);
                fence.body.push('\n');
                open = Some((fence, marker));
            }
            None if marker_length >= 3 => {
                let (marker, info) = bare.split_at(marker_length);
                let fence = Fence { line: index + 1, info: info.trim().to_owned(), body: String::new() };
                open = Some((fence, marker));
            }
            None => prose.push((index + 1, line)),
        }
    }
    fences.extend(open.map(|(fence, _)| fence));
    (fences, prose)
}

pub(crate) fn fences(text: &str) -> Vec<Fence> {
    split(text).0
}

/// Every link: `[text](target)` and `[name]: target`.
pub(crate) fn links(text: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, prose) in split(text).1 {
        // Every second part stands between backticks.
        let plain: String = prose.replace("``", "`").split('`').step_by(2).collect();
        let inline = plain.match_indices("](").filter_map(|(at, open)| plain.get(at + open.len()..)?.split(')').next());
        let definition = plain.trim_start().strip_prefix('[').and_then(|rest| Some(rest.split_once("]: ")?.1));
        for target in inline.chain(definition) {
            let target = target.split_whitespace().next().unwrap_or_default().trim_matches(['<', '>']);
            links.push(Link { line, target: target.to_owned() });
        }
    }
    links
}

/// The anchors of the headings, as GitHub makes them.
pub(crate) fn anchors(text: &str) -> Vec<String> {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let mut anchors = Vec::new();
    for (_, line) in split(text).1 {
        let title = line.trim_start_matches('#');
        if title.len() == line.len() || !title.starts_with(' ') {
            continue;
        }
        let keeps = |char: &char| char.is_alphanumeric() || matches!(char, ' ' | '-' | '_');
        let slug = title.trim().to_lowercase().chars().filter(keeps).collect::<String>().replace(' ', "-");
        let count = seen.entry(slug.clone()).or_default();
        anchors.push(if *count == 0 { slug } else { format!("{slug}-{count}") });
        *count += 1;
    }
    anchors
}

const OPENING: &str = "<!-- generated:";
const CLOSING: &str = "<!-- /generated -->";

/// Puts what `content` gives for each name between `<!-- generated:NAME -->` and `<!-- /generated -->`.
pub(crate) fn fill_generated(text: &str, mut content: impl FnMut(&str) -> Result<String>) -> Result<String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once(OPENING) {
        let (name, after) = after.split_once(" -->").ok_or("a generated section has no name")?;
        let (old, after) =
            after.split_once(CLOSING).ok_or_else(|| format!("the generated section {name:?} is not closed"))?;
        if old.contains(OPENING) {
            return Err(format!("the generated section {name:?} is not closed"));
        }
        out.push_str(&format!("{before}{OPENING}{name} -->\n{}\n{CLOSING}", content(name)?.trim_end()));
        rest = after;
    }
    Ok(out + rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn targets(text: &str) -> Vec<String> {
        links(text).into_iter().map(|link| link.target).collect()
    }

    #[test]
    fn a_fence_has_a_line_a_language_tags_and_a_body() {
        let found = fences("text\n```sh no-run\na\n b\n```\n```rust,ignore\n```\n");
        assert_eq!(found.len(), 2);
        assert_eq!(found[0], Fence { line: 2, info: "sh no-run".into(), body: "a\n b\n".into() });
        assert_eq!(found[0].tags().collect::<Vec<_>>(), ["sh", "no-run"]);
        assert_eq!(found[1].language(), "rust");
    }

    #[test]
    fn a_longer_fence_holds_a_shorter_one() {
        let found = fences("````md\n```sh\nx\n```\n````\n");
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].body, "```sh\nx\n```\n");
    }

    #[test]
    fn a_fence_that_is_never_closed_runs_to_the_end() {
        assert_eq!(fences("```sh\nx").first().map(|fence| fence.body.clone()).as_deref(), Some("x\n"));
    }

    #[test]
    fn links_are_found_inline_and_as_definitions() {
        assert_eq!(targets("See [a](b.md) and [c](<d.md> \"title\").\n[e]: f.md\n"), ["b.md", "d.md", "f.md"]);
    }

    #[test]
    fn code_holds_no_links() {
        assert_eq!(targets("`[a](b)` and ``[c](d)``\n```\n[e](f)\n```\n"), Vec::<String>::new());
    }

    #[test]
    fn anchors_are_those_of_github() {
        let text = "# A `b`: c-d\n## E\n## E\n#hash\n```\n# no\n```\n";
        assert_eq!(anchors(text), ["a-b-c-d", "e", "e-1"]);
    }

    #[test]
    fn only_the_generated_section_is_replaced_and_again_gives_the_same() {
        let text = "a\n<!-- generated:x -->\nold\n<!-- /generated -->\nb";
        let filled = fill_generated(text, |name| Ok(format!("new {name}"))).unwrap();
        assert_eq!(filled, "a\n<!-- generated:x -->\nnew x\n<!-- /generated -->\nb");
        assert_eq!(fill_generated(&filled, |name| Ok(format!("new {name}"))).unwrap(), filled);
    }

    #[test]
    fn a_generated_section_that_is_not_closed_is_an_error() {
        let fill = |text: &str| fill_generated(text, |_| Ok(String::new()));
        assert!(fill("<!-- generated:x -->\nold").is_err());
        assert!(fill("<!-- generated:x -->\n<!-- generated:y -->\n<!-- /generated -->").is_err());
    }
}
