//! Reads the files in which Prosody keeps its stores by default: Lua programs that return one table.
//!
//! Parsed, never run: only what Prosody's own serializer writes is known here. Knows nothing of what is in the table.

use crate::json::Json;

/// Nested tables beyond this depth are refused.
const DEPTH_MAX: usize = 32;

/// What can't be read, and on which line of the file.
#[derive(Debug, PartialEq, Eq)]
pub struct BadLua {
    /// Counted from 1.
    pub line: usize,
    /// What was expected there.
    pub why: String,
}

/// Reads `return { … }` as JSON: a table whose keys are 1, 2, 3 … becomes an array, any other an object.
pub fn read(text: &str) -> Result<Json, BadLua> {
    let mut reader = Reader { text: text.as_bytes(), at: 0 };
    reader.skip_space();
    if !reader.take_word("return") {
        return Err(reader.bad("'return' and a table"));
    }
    let value = reader.value(0)?;
    reader.skip_space();
    reader.take(b';');
    reader.skip_space();
    if reader.at < reader.text.len() {
        return Err(reader.bad("the end of the file"));
    }
    Ok(value)
}

struct Reader<'a> {
    text: &'a [u8],
    at: usize,
}

impl Reader<'_> {
    fn bad(&self, expected: &str) -> BadLua {
        let line = self.text[..self.at.min(self.text.len())].iter().filter(|byte| **byte == b'\n').count() + 1;
        BadLua { line, why: format!("expected {expected}") }
    }

    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn take(&mut self, byte: u8) -> bool {
        let found = self.peek() == Some(byte);
        self.at += usize::from(found);
        found
    }

    fn take_word(&mut self, word: &str) -> bool {
        let rest = &self.text[self.at..];
        let ends = |byte: &u8| !byte.is_ascii_alphanumeric() && *byte != b'_';
        let found = rest.starts_with(word.as_bytes()) && rest.get(word.len()).is_none_or(ends);
        self.at += if found { word.len() } else { 0 };
        found
    }

    /// White space, and comments to the end of the line.
    fn skip_space(&mut self) {
        loop {
            while self.peek().is_some_and(|byte| byte.is_ascii_whitespace()) {
                self.at += 1;
            }
            if !self.text[self.at..].starts_with(b"--") {
                return;
            }
            while self.peek().is_some_and(|byte| byte != b'\n') {
                self.at += 1;
            }
        }
    }

    fn value(&mut self, depth: usize) -> Result<Json, BadLua> {
        self.skip_space();
        match self.peek() {
            Some(b'{') if depth < DEPTH_MAX => self.table(depth),
            Some(b'{') => Err(self.bad("fewer tables within tables")),
            Some(b'"') => Ok(Json::from(self.string()?)),
            Some(byte) if byte.is_ascii_digit() || byte == b'-' => self.number(),
            _ if self.take_word("true") => Ok(Json::from(true)),
            _ if self.take_word("false") => Ok(Json::from(false)),
            _ if self.take_word("nil") => Ok(Json::Null),
            _ => Err(self.bad("a table, a text, a number, true, false or nil")),
        }
    }

    fn table(&mut self, depth: usize) -> Result<Json, BadLua> {
        self.at += 1;
        let mut fields: Vec<(String, Json)> = Vec::new();
        let mut position = 0;
        loop {
            self.skip_space();
            if self.take(b'}') {
                break;
            }
            let key = if self.take(b'[') {
                let key = self.value(DEPTH_MAX)?;
                self.skip_space();
                if !self.take(b']') {
                    return Err(self.bad("']'"));
                }
                Some(key.as_str().map_or_else(|| key.to_string(), str::to_owned))
            } else {
                self.name_before_equals()
            };
            let key = match key {
                Some(key) => {
                    self.skip_space();
                    if !self.take(b'=') {
                        return Err(self.bad("'='"));
                    }
                    key
                }
                None => {
                    position += 1;
                    position.to_string()
                }
            };
            let value = self.value(depth + 1)?;
            fields.push((key, value));
            self.skip_space();
            if !self.take(b';') && !self.take(b',') && self.peek() != Some(b'}') {
                return Err(self.bad("';' or '}'"));
            }
        }
        let is_list =
            !fields.is_empty() && fields.iter().enumerate().all(|(at, (key, _))| *key == (at + 1).to_string());
        if is_list {
            return Ok(fields.into_iter().map(|(_, value)| value).collect());
        }
        Ok(Json::Object(fields.into_iter().collect()))
    }

    /// `name` of `name = value`; a value without a key stays untouched.
    fn name_before_equals(&mut self) -> Option<String> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            self.at += 1;
        }
        let name = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        let end = self.at;
        self.skip_space();
        let is_name = !name.is_empty() && !name.as_bytes()[0].is_ascii_digit() && self.peek() == Some(b'=');
        self.at = if is_name { end } else { start };
        is_name.then_some(name)
    }

    fn string(&mut self) -> Result<String, BadLua> {
        self.at += 1;
        let mut bytes = Vec::new();
        loop {
            match self.peek() {
                None => return Err(self.bad("the end of a text")),
                Some(b'"') => {
                    self.at += 1;
                    return String::from_utf8(bytes).map_err(|_| self.bad("a text in UTF-8"));
                }
                Some(b'\\') => {
                    self.at += 1;
                    bytes.push(self.escape()?);
                }
                Some(byte) => {
                    self.at += 1;
                    bytes.push(byte);
                }
            }
        }
    }

    /// What follows a backslash: a letter, a line break, or up to three decimal digits.
    fn escape(&mut self) -> Result<u8, BadLua> {
        let byte = self.peek().ok_or_else(|| self.bad("the end of a text"))?;
        if byte.is_ascii_digit() {
            let mut number = 0_u32;
            for _ in 0..3 {
                match self.peek() {
                    Some(digit) if digit.is_ascii_digit() => {
                        number = number * 10 + u32::from(digit - b'0');
                        self.at += 1;
                    }
                    _ => break,
                }
            }
            return u8::try_from(number).map_err(|_| self.bad("a byte of at most 255"));
        }
        self.at += 1;
        Ok(match byte {
            b'n' => b'\n',
            b'r' => b'\r',
            b't' => b'\t',
            b'a' => 7,
            b'b' => 8,
            b'v' => 11,
            b'f' => 12,
            b'\\' | b'"' | b'\'' | b'\n' => byte,
            _ => return Err(self.bad("another escape")),
        })
    }

    fn number(&mut self) -> Result<Json, BadLua> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)) {
            self.at += 1;
        }
        let text = String::from_utf8_lossy(&self.text[start..self.at]).into_owned();
        if let Ok(number) = text.parse::<i64>() {
            return Ok(Json::from(number));
        }
        match text.parse::<f64>() {
            Ok(number) if number.is_finite() => Ok(Json::from(number)),
            _ => {
                self.at = start;
                Err(self.bad("a number"))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_prosody_writes_is_read() {
        let text = "-- a comment\nreturn {\n\t[\"2Bb1rFzf\"] = {\n\t\t[\"name\"] = \"a \\\"b\\\"\\n\\195\\169\";\n\t\tcreated_at = 1795310845;\n\
                    \t\t[\"allowed_methods\"] = {\n\t\t\t[\"GET\"] = true;\n\t\t};\n\t\tlist = { \"a\"; \"b\" };\n\t\tf = 1.5;\n\t};\n};\n";
        let value = read(text).unwrap();
        let key = &value["2Bb1rFzf"];
        assert_eq!(key["name"].as_str(), Some("a \"b\"\né"));
        assert_eq!(key["created_at"].as_i64(), Some(1_795_310_845));
        assert_eq!(key["allowed_methods"]["GET"].as_bool(), Some(true));
        assert_eq!(key["list"][1].as_str(), Some("b"));
        assert_eq!(key["f"].as_f64(), Some(1.5));
        assert!(read("return { }").unwrap().as_object().unwrap().is_empty());
        assert_eq!(read("return {[1]=\"x\",[2]=nil}").unwrap()[0].as_str(), Some("x"));
    }

    #[test]
    fn what_is_a_program_is_refused_by_its_line() {
        for (line, text) in [
            (1, ""),
            (1, "print(1)"),
            (1, "return os.execute('x')"),
            (2, "return {\n x = os.time() }"),
            (3, "return {\n\n [\"a\"] 1 }"),
            (1, "return { \"a\" .. \"b\" }"),
            (1, "return { [[long]] }"),
            (2, "return { }\nos.exit()"),
            (1, "return { x = \"open"),
            (1, "return { x = \"\\400\" }"),
            (1, "return { x = 1e999 }"),
            (1, "return { 1"),
        ] {
            assert_eq!(read(text).unwrap_err().line, line, "{text:?}");
        }
        let deep = format!("return {}{}", "{".repeat(10_000), "}".repeat(10_000));
        assert!(read(&deep).is_err());
    }
}
