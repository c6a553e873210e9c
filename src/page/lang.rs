//! The languages of the pages: catalogues of texts, which one a browser wants, and plural forms.
//!
//! A catalogue is a file of lines `name = text` in `lang/`, embedded in the binary. Knows nothing of pages.

use std::collections::HashMap;

/// All languages, the first one being that for browsers that want none of them.
const CATALOGUES: &[(&str, &str)] = &[
    ("en", include_str!("lang/en.txt")),
    ("de", include_str!("lang/de.txt")),
    ("fr", include_str!("lang/fr.txt")),
    ("es", include_str!("lang/es.txt")),
    ("it", include_str!("lang/it.txt")),
    ("nl", include_str!("lang/nl.txt")),
    ("pt", include_str!("lang/pt.txt")),
    ("pl", include_str!("lang/pl.txt")),
    ("ru", include_str!("lang/ru.txt")),
    ("uk", include_str!("lang/uk.txt")),
];

/// The texts of one language.
pub struct Catalogue {
    /// Its code (RFC 5646), such as `en`.
    pub code: &'static str,
    texts: HashMap<&'static str, &'static str>,
}

impl Catalogue {
    /// The text of this name as it is; the name itself if there is none.
    pub fn text<'a>(&self, name: &'a str) -> &'a str {
        self.texts.get(name).copied().unwrap_or(name)
    }

    /// The text of this name with its placeholders filled in.
    pub fn text_with(&self, name: &str, values: &[(&str, &str)]) -> String {
        let text = self.text(name);
        let mut filled = String::with_capacity(text.len() + values.iter().map(|(_, value)| value.len()).sum::<usize>());
        // In one pass: a value may hold what looks like a placeholder.
        let mut pieces = text.split('{');
        filled.extend(pieces.next());
        for piece in pieces {
            let (name, rest) = piece.split_once('}').unwrap_or((piece, ""));
            match values.iter().find(|(known, _)| *known == name) {
                Some((_, value)) => filled.extend([*value, rest]),
                None => filled.extend(["{", piece]),
            }
        }
        filled
    }

    /// The text of this name in the plural form for a number.
    pub fn plural(&self, name: &str, number: i64) -> String {
        let form = plural_form(self.code, number);
        let name = [format!("{name}.{form}"), format!("{name}.other")];
        let name = name.iter().find(|name| self.texts.contains_key(name.as_str()));
        self.text_with(name.map_or("", String::as_str), &[("n", &number.to_string())])
    }
}

/// All catalogues, read.
pub struct Languages(Vec<Catalogue>);

impl Languages {
    /// Reads the catalogues that are embedded in the binary.
    pub fn load() -> Languages {
        let read = |(code, source): &(&'static str, &'static str)| {
            let lines = source.lines().filter(|line| !line.starts_with('#'));
            Catalogue { code, texts: lines.filter_map(|line| line.split_once(" = ")).collect() }
        };
        Languages(CATALOGUES.iter().map(read).collect())
    }

    /// The language that a header `Accept-Language` likes best among those that there are (RFC 9110 section 12.5.4).
    pub fn choose(&self, accept: Option<&str>) -> &Catalogue {
        let wanted = accept.unwrap_or_default().split(',').filter_map(|range| {
            let mut parts = range.split(';');
            let code = parts.next()?.trim().split(['-', '_']).next()?.to_ascii_lowercase();
            let weight = parts.find_map(|part| part.trim().strip_prefix("q=")?.parse::<f32>().ok()).unwrap_or(1.0);
            let found = self.0.iter().find(|catalogue| catalogue.code == code)?;
            (weight > 0.0).then_some((weight, found))
        });
        // Of equal weights the first counts.
        let best = wanted.reduce(|best, next| if next.0 > best.0 { next } else { best });
        best.map_or(&self.0[0], |(_, catalogue)| catalogue)
    }
}

/// The plural form of a whole number (Unicode CLDR, cardinal rules).
fn plural_form(code: &str, number: i64) -> &'static str {
    let (ten, hundred) = (number % 10, number % 100);
    let few = (2..=4).contains(&ten) && !(12..=14).contains(&hundred);
    match code {
        "fr" | "pt" if number == 0 || number == 1 => "one",
        "pl" if number == 1 => "one",
        "ru" | "uk" if ten == 1 && hundred != 11 => "one",
        "pl" | "ru" | "uk" => {
            if few {
                "few"
            } else {
                "many"
            }
        }
        _ if number == 1 => "one",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The placeholders of a text, in the order of their names.
    fn placeholders(text: &str) -> Vec<&str> {
        let mut found: Vec<&str> =
            text.split('{').skip(1).map(|rest| rest.split('}').next().unwrap_or_default()).collect();
        found.sort_unstable();
        found
    }

    #[test]
    fn no_language_lacks_a_text_or_a_placeholder() {
        let languages = Languages::load();
        let english = &languages.0[0];
        let base = |name: &str| -> String {
            let forms = [".one", ".few", ".many", ".other"];
            forms.iter().find_map(|form| name.strip_suffix(form)).unwrap_or(name).to_owned()
        };
        for other in &languages.0 {
            for (name, text) in &english.texts {
                let is_plural = base(name) != **name;
                if is_plural {
                    for number in 0..=120 {
                        let text = other.plural(&base(name), number);
                        assert!(text.contains(&number.to_string()), "{}: {name} for {number}: {text}", other.code);
                    }
                } else {
                    let theirs = other.texts.get(name).unwrap_or_else(|| panic!("{} lacks {name}", other.code));
                    assert_eq!(placeholders(text), placeholders(theirs), "{}: {name}", other.code);
                }
            }
            let names: Vec<String> = english.texts.keys().map(|name| base(name)).collect();
            for name in other.texts.keys() {
                assert!(names.contains(&base(name)), "{} has {name}, which English has not", other.code);
            }
        }
    }

    #[test]
    fn every_line_of_a_catalogue_is_a_text_or_a_comment() {
        for (code, source) in CATALOGUES {
            let mut names = Vec::new();
            for line in source.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
                let (name, text) = line.split_once(" = ").unwrap_or_else(|| panic!("{code}: {line}"));
                assert!(!text.trim().is_empty() && !names.contains(&name), "{code}: {line}");
                names.push(name);
            }
        }
    }

    #[test]
    fn the_best_liked_language_is_chosen() {
        let languages = Languages::load();
        for accept in [None, Some(""), Some("xx"), Some("*"), Some("en;q=0.5, xx"), Some("de;q=x,,;"), Some("en-GB")] {
            assert!(!languages.choose(accept).code.is_empty(), "{accept:?}");
        }
        assert_eq!(languages.choose(Some("xx, en-US;q=0.3")).code, "en");
    }

    #[test]
    fn plural_forms_are_those_of_the_language() {
        for (code, number, form) in [
            ("en", 1, "one"),
            ("en", 0, "other"),
            ("en", 2, "other"),
            ("fr", 0, "one"),
            ("fr", 2, "other"),
            ("pl", 1, "one"),
            ("pl", 22, "few"),
            ("pl", 12, "many"),
            ("pl", 21, "many"),
            ("ru", 21, "one"),
            ("ru", 11, "many"),
            ("ru", 3, "few"),
            ("uk", 5, "many"),
            ("uk", 104, "few"),
        ] {
            assert_eq!(plural_form(code, number), form, "{code} {number}");
        }
    }
}
