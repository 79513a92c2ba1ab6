//! Just enough of Rust's syntax to look at sources without being fooled by comments and strings.

/// The source with comments, and the contents of strings, as spaces. Lines stay where they are.
pub(crate) fn code_only(source: &str) -> String {
    let chars: Vec<char> = source.chars().collect();
    let at = |index: usize| chars.get(index).copied().unwrap_or('\0');
    let mut out = String::with_capacity(source.len());
    let blank = |from: usize, to: usize, out: &mut String| {
        for char in chars.get(from..to.min(chars.len())).unwrap_or_default() {
            out.push(if *char == '\n' { '\n' } else { ' ' });
        }
    };
    let mut index = 0;
    while index < chars.len() {
        let after_name = index > 0 && is_name(at(index - 1));
        let end = match (at(index), at(index + 1)) {
            ('/', '/') => line_end(&chars, index),
            ('/', '*') => comment_end(&chars, index),
            ('"', _) => string_end(&chars, index),
            ('r', '"' | '#') if !after_name => raw_string_end(&chars, index).unwrap_or(index),
            ('\'', '\\') => index + 2 + chars.iter().skip(index + 3).position(|char| *char == '\'').unwrap_or(0) + 2,
            ('\'', _) if at(index + 2) == '\'' => index + 3,
            _ => index,
        };
        if end > index {
            blank(index, end, &mut out);
            index = end;
        } else {
            out.push(at(index));
            index += 1;
        }
    }
    out
}

pub(crate) fn is_name(char: char) -> bool {
    char.is_alphanumeric() || char == '_'
}

fn line_end(chars: &[char], start: usize) -> usize {
    chars.iter().skip(start).position(|char| *char == '\n').map_or(chars.len(), |length| start + length)
}

fn comment_end(chars: &[char], start: usize) -> usize {
    let mut depth = 0_usize;
    let mut index = start;
    while index < chars.len() {
        match (chars.get(index), chars.get(index + 1)) {
            (Some('/'), Some('*')) => (depth, index) = (depth + 1, index + 2),
            (Some('*'), Some('/')) if depth == 1 => return index + 2,
            (Some('*'), Some('/')) => (depth, index) = (depth.saturating_sub(1), index + 2),
            _ => index += 1,
        }
    }
    chars.len()
}

fn string_end(chars: &[char], start: usize) -> usize {
    let mut index = start + 1;
    while let Some(char) = chars.get(index) {
        match char {
            '\\' => index += 2,
            '"' => return index + 1,
            _ => index += 1,
        }
    }
    chars.len()
}

fn raw_string_end(chars: &[char], start: usize) -> Option<usize> {
    let hashes = chars.iter().skip(start + 1).take_while(|char| **char == '#').count();
    let open = start + 1 + hashes;
    if chars.get(open) != Some(&'"') {
        return None;
    }
    let closes = |index: &usize| {
        chars.get(*index) == Some(&'"')
            && chars.iter().skip(index + 1).take_while(|char| **char == '#').count() >= hashes
    };
    Some((open + 1..chars.len()).find(closes).map_or(chars.len(), |index| index + 1 + hashes))
}

/// The words of code: names, keywords and numbers.
pub(crate) fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|char| !is_name(char)).filter(|word| !word.is_empty())
}

/// What other crates can see: the line and text of each public signature, field, enum and trait in the code.
///
/// `pub(crate)` items are left out; the workspace's lints see to it that `pub` means public.
pub(crate) fn public_parts(code: &str) -> Vec<(usize, &str)> {
    let mut parts = Vec::new();
    for (start, _) in code.match_indices("pub") {
        let rest = code.get(start..).unwrap_or_default();
        let part_of_name = code.get(..start).and_then(|before| before.chars().next_back()).is_some_and(is_name);
        if part_of_name || !rest.get(3..).is_some_and(|after| after.starts_with(char::is_whitespace)) {
            continue;
        }
        let line = code.get(..start).unwrap_or_default().matches('\n').count() + 1;
        parts.push((line, rest.get(..part_length(rest)).unwrap_or(rest)));
    }
    parts
}

fn part_length(item: &str) -> usize {
    let find = |ends: &[char]| item.find(ends).unwrap_or(item.len());
    match words(item).nth(1) {
        Some("struct" | "union") => find(&['{', '(', ';']),
        Some("type" | "use" | "static") => find(&[';']),
        Some("enum" | "trait") => body_end(item),
        Some("const") if words(item).nth(2) != Some("fn") => find(&['=', ';']),
        Some("fn" | "async" | "const" | "unsafe" | "extern" | "mod") => find(&['{', ';']),
        _ => field_end(item),
    }
}

fn body_end(item: &str) -> usize {
    let mut depth = 0_usize;
    for (index, char) in item.char_indices() {
        match char {
            '{' => depth += 1,
            '}' if depth <= 1 => return index,
            '}' => depth -= 1,
            _ => {}
        }
    }
    item.len()
}

fn field_end(item: &str) -> usize {
    let mut depth = 0_usize;
    for (index, char) in item.char_indices() {
        match char {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' if depth > 0 => depth -= 1,
            ',' | ')' | '}' | ';' if depth == 0 => return index,
            _ => {}
        }
    }
    item.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn public_texts(code: &str) -> Vec<&str> {
        public_parts(code).into_iter().map(|(_, text)| text.trim()).collect()
    }

    #[test]
    fn comments_and_strings_are_no_code() {
        let source = "let a = \"x // \\\" y\"; // pub fn\n/* pub /* nested */ fn */ b(r#\"pub \"fn\"#, 'p', '\\'');";
        let code = code_only(source);
        assert_eq!(words(&code).collect::<Vec<_>>(), ["let", "a", "b"]);
        assert_eq!(code.matches('\n').count(), 1);
        assert_eq!(code.chars().count(), source.chars().count());
    }

    #[test]
    fn a_lifetime_is_no_character_and_an_r_at_the_end_of_a_name_no_raw_string() {
        let code = code_only("fn f<'a>(x: &'a str) { for r in order\"text\" {} }");
        assert_eq!(words(&code).last(), Some("order"));
        assert!(words(&code).any(|word| word == "str"));
    }

    #[test]
    fn an_unfinished_string_or_comment_ends_with_the_file() {
        assert_eq!(code_only("a \"bc").trim(), "a");
        assert_eq!(code_only("a /* bc").trim(), "a");
        assert_eq!(code_only("a r#\"bc").trim(), "a");
    }

    #[test]
    fn a_function_is_public_up_to_its_body() {
        assert_eq!(public_texts("pub async fn f(a: A) -> B { private() }"), ["pub async fn f(a: A) -> B"]);
        assert_eq!(public_texts("pub(crate) fn f() {} fn republish() {}"), Vec::<&str>::new());
    }

    #[test]
    fn a_struct_shows_its_public_fields_only() {
        assert_eq!(
            public_texts("pub struct S<T> { a: A, pub b: Map<B, C>, d: D }"),
            ["pub struct S<T>", "pub b: Map<B, C>"]
        );
        assert_eq!(public_texts("pub struct S(pub A, B);"), ["pub struct S", "pub A"]);
    }

    #[test]
    fn an_enum_and_a_trait_show_all_that_they_hold() {
        assert_eq!(public_texts("pub enum E { A(B), C { d: D } } fn f() {}"), ["pub enum E { A(B), C { d: D }"]);
        assert_eq!(public_texts("pub trait T { fn f(&self) -> A; }"), ["pub trait T { fn f(&self) -> A;"]);
    }

    #[test]
    fn the_value_of_a_constant_is_not_public_but_the_meaning_of_an_alias_is() {
        assert_eq!(public_texts("pub const A: B = c::D;"), ["pub const A: B"]);
        assert_eq!(public_texts("pub type A = b::C;"), ["pub type A = b::C"]);
    }

    #[test]
    fn the_line_of_a_part_is_that_of_its_first_word() {
        assert_eq!(public_parts("\n\npub fn f();").first().map(|(line, _)| *line), Some(3));
    }
}
