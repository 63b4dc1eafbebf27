//! Templates of paths: `envoy.extensions.path.match.uri_template`, by which routes and RBAC's permissions match, and
//! `envoy.extensions.path.rewrite.uri_template`, by which routes write paths anew
//! (envoyproxy.io: extensions/path/match/uri_template/v3, extensions/path/rewrite/uri_template/v3).
//!
//! Comes in: a template, as `/videos/*/{file}.m4s`. Goes out: a regular expression for the whole of a path without its
//! query, or with another template, as `/files/{file}`, what becomes of such a path. `*` is one segment, `**` any number of them or none, a variable stands for a segment or for the pattern after
//! its `=`; text may follow any of them in the last segment.

use std::fmt::Write as _;

use super::regex::{Regex, RegexError, Substitution};

/// Most variables of a template.
const MOST_VARIABLES: usize = 5;
/// Longest name of one, in bytes.
const LONGEST_NAME: usize = 16;
/// What a segment may have in it (RFC 3986 §3.3), as a class of a regular expression.
const SEGMENT: &str = "[-a-zA-Z0-9._~%!$&'()*+,;:@=]+";
/// What several may.
const SEGMENTS: &str = "[-a-zA-Z0-9._~%!$&'()*+,;:@=/]*";

/// Why a template was refused.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// It is none.
    #[error("path template {template:?}: {reason}")]
    Malformed {
        /// The whole template.
        template: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// It is too large.
    #[error(transparent)]
    Regex(#[from] RegexError),
}

/// The paths that `template` stands for.
///
/// # Errors
/// [`TemplateError`]: it breaks Envoy's rules, or uses `*` and `{` where Envoy gives them no clear meaning.
pub fn compile(template: &str) -> Result<Regex, TemplateError> {
    Ok(Regex::new(&read(template)?.out)?)
}

/// What becomes of the paths that `template` stands for: `rewrite`, in which `{name}` is what that variable stands for.
///
/// # Errors
/// As [`compile`], for both.
pub fn rewriting(template: &str, rewrite: &str) -> Result<Substitution, TemplateError> {
    let Reader { out: pattern, variables, .. } = read(template)?;
    let written = written(rewrite, &variables);
    let written = written.map_err(|reason| TemplateError::Malformed { template: rewrite.into(), reason })?;
    Ok(Substitution::new(&format!(r"\A(?:{pattern})\z"), &written)?)
}

fn read(template: &str) -> Result<Reader<'_>, TemplateError> {
    let read = Reader::default().read(template);
    read.map_err(|reason| TemplateError::Malformed { template: template.into(), reason })
}

/// A template of what is written, with the numbers of groups in place of the names of `variables`.
fn written(rewrite: &str, variables: &[&str]) -> Result<String, &'static str> {
    if !rewrite.starts_with('/') {
        return Err("it does not begin with /");
    }
    if rewrite.contains("//") {
        return Err("a segment is empty");
    }
    let (mut out, mut rest) = (String::new(), rewrite);
    loop {
        let (literal, after) = rest.split_once('{').map_or((rest, None), |(one, two)| (one, Some(two)));
        let of_paths = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;:@=/".contains(&byte);
        if !literal.bytes().all(of_paths) {
            return Err("it has characters that a path cannot have, or a } that has no {");
        }
        out.push_str(literal);
        let Some(after) = after else { return Ok(out) };
        let (name, after) = after.split_once('}').ok_or("a { has no }")?;
        let group = variables.iter().position(|variable| *variable == name);
        let group = group.ok_or("it has a variable that the path's template has not")?;
        // Writing to a string does not fail; there are less than ten.
        let _ = write!(out, "\\{}", group + 1);
        rest = after;
    }
}

#[derive(Default)]
struct Reader<'a> {
    /// The regular expression, with a group for each variable.
    out: String,
    variables: Vec<&'a str>,
    /// `**` was seen: no other may follow.
    many: bool,
}

impl<'a> Reader<'a> {
    fn read(mut self, template: &'a str) -> Result<Self, &'static str> {
        let mut rest = template.strip_prefix('/').ok_or("it does not begin with /")?;
        self.out.push('/');
        loop {
            let (segment, after) = first_segment(rest)?;
            if segment.is_empty() && after.is_some() {
                return Err("a segment is empty");
            }
            let suffix = self.segment(segment)?;
            if !suffix.is_empty() && after.is_some() {
                return Err("text follows a wildcard or variable before the last segment");
            }
            self.literal(suffix)?;
            let Some(after) = after else { return Ok(self) };
            self.out.push('/');
            rest = after;
        }
    }

    /// Reads what a segment begins with; the text behind a wildcard or variable is left.
    fn segment(&mut self, segment: &'a str) -> Result<&'a str, &'static str> {
        if let Some(inner) = segment.strip_prefix('{') {
            let (variable, suffix) = inner.split_once('}').ok_or("a { has no }")?;
            self.variable(variable)?;
            return Ok(suffix);
        }
        if segment.starts_with('*') {
            return self.wildcard(segment);
        }
        self.literal(segment)?;
        Ok("")
    }

    fn wildcard(&mut self, text: &'a str) -> Result<&'a str, &'static str> {
        if self.many {
            return Err("a wildcard or variable follows **");
        }
        if let Some(suffix) = text.strip_prefix("**") {
            self.many = true;
            self.out.push_str(SEGMENTS);
            return Ok(suffix);
        }
        self.out.push_str(SEGMENT);
        Ok(text.get(1..).unwrap_or_default())
    }

    fn variable(&mut self, variable: &'a str) -> Result<(), &'static str> {
        let (name, pattern) = variable.split_once('=').unwrap_or((variable, "*"));
        let is_name = name.starts_with(|first: char| first.is_ascii_alphabetic())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        if !is_name || name.len() > LONGEST_NAME {
            return Err("a variable's name is not a letter and up to 15 letters, digits and _");
        }
        if self.variables.contains(&name) {
            return Err("two variables have the same name");
        }
        self.variables.push(name);
        if self.variables.len() > MOST_VARIABLES {
            return Err("there are more than 5 variables");
        }
        self.out.push('(');
        for (index, part) in pattern.split('/').enumerate() {
            if index > 0 {
                self.out.push('/');
            }
            match part {
                "" => return Err("a variable's pattern has an empty segment"),
                "*" | "**" => self.wildcard(part).map(drop)?,
                literal => self.literal(literal)?,
            }
        }
        self.out.push(')');
        Ok(())
    }

    fn literal(&mut self, text: &str) -> Result<(), &'static str> {
        for each in text.chars() {
            match each {
                'a'..='z'
                | 'A'..='Z'
                | '0'..='9'
                | '-'
                | '_'
                | '~'
                | '%'
                | '!'
                | '&'
                | '\''
                | ','
                | ';'
                | ':'
                | '@'
                | '=' => {
                    self.out.push(each);
                }
                '.' | '$' | '(' | ')' | '+' => {
                    // Writing to a string does not fail.
                    let _ = write!(self.out, "\\{each}");
                }
                '*' => return Err("a * is not at the beginning of a segment"),
                '{' | '}' => return Err("a { is not at the beginning of a segment, or a } has no {"),
                _ => return Err("it has characters that a path cannot have"),
            }
        }
        Ok(())
    }
}

/// The text up to the next `/` that is not within a variable, and what follows that.
fn first_segment(text: &str) -> Result<(&str, Option<&str>), &'static str> {
    let mut within = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'{' if within => return Err("a variable is within another"),
            b'{' => within = true,
            b'}' => within = false,
            b'/' if !within => return Ok((text.get(..at).unwrap_or_default(), text.get(at + 1..))),
            _ => {}
        }
    }
    Ok((text, None))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_match_whole_paths() {
        for (template, matching, others) in [
            ("/", &["/"][..], &["/a", "//"][..]),
            ("/a", &["/a"], &["/A", "/a/", "/ab"]),
            ("/a/", &["/a/"], &["/a"]),
            ("/*", &["/a", "/a=b", "/%zz", "/*"], &["/", "/a/", "/a/b", "/a|b", "/a\"b"]),
            ("/a/*/b", &["/a/x/b", "/a/.m/b"], &["/a//b", "/a/x/y/b"]),
            ("/**", &["/", "//", "/a/b/"], &["/a|b"]),
            ("/a/**", &["/a/", "/a/b/c"], &["/a", "/ab"]),
            ("/a/**/b", &["/a//b", "/a/x/y/b"], &["/a/b"]),
            ("/*.m4s", &["/x.m4s"], &["/.m4s", "/a/x.m4s", "/x.m4sy", "/xXm4s"]),
            ("/**.mpd", &["/.mpd", "/a/b.mpd"], &["/mpd"]),
            ("/{x}/{y=**}", &["/a/", "/a/b/c"], &["/a", "//b"]),
            ("/{x=a/*/b}/c", &["/a/x/b/c"], &["/a/b/c"]),
            ("/{x=**}/a", &["/a/a", "/x/y/a", "//a"], &["/a"]),
            ("/a+b", &["/a+b"], &["/aab"]),
        ] {
            let compiled = compile(template).expect(template);
            for path in matching {
                assert!(compiled.matches(path.as_bytes()), "{template} {path}");
            }
            for path in others {
                assert!(!compiled.matches(path.as_bytes()), "{template} {path}");
            }
        }
    }

    #[test]
    fn paths_are_written_anew() {
        for (template, rewrite, path, wanted) in [
            ("/{x}/{y=**}", "/{y}/of/{x}", "/a/b/c", "/b/c/of/a"),
            ("/{x}/z", "/{x}{x}.", "/a/z", "/aa."),
            ("/{x=a/*}.m4s", "/{x}", "/a/b.m4s", "/a/b"),
            ("/a(1)+/{x}", "/$1*=", "/a(1)+/y", "/$1*="),
            // A path that is another than it was when the route was found.
            ("/{x}/z", "/{x}", "/a/y", "/a/y"),
            ("/z", "/", "/z", "/"),
        ] {
            let compiled = rewriting(template, rewrite).expect(template);
            assert_eq!(
                compiled.replace_all(path.as_bytes()),
                wanted.as_bytes(),
                "{template} {rewrite} {path}"
            );
        }
        for (rewrite, why) in [
            ("{x}", "begin"),
            ("", "begin"),
            ("//", "empty"),
            ("/{x}//", "empty"),
            ("/{y}", "variable"),
            ("/{}", "variable"),
            ("/{x=*}", "variable"),
            ("/{x", "no }"),
            ("/x}", "no {"),
            ("/a b", "characters"),
            ("/a?b", "characters"),
            ("/a\\1", "characters"),
            ("/\u{e9}", "characters"),
        ] {
            let error = rewriting("/{x}/z", rewrite).expect_err(rewrite).to_string();
            assert!(error.contains(why) && error.contains(&format!("{rewrite:?}")), "{rewrite}: {error}");
        }
    }

    #[test]
    fn what_is_no_template_says_why() {
        for (template, why) in [
            ("a", "does not begin"),
            ("/a//b", "empty"),
            ("/**/*", "follows **"),
            ("/**/{x}", "follows **"),
            ("/{x}{y}", "a {"),
            ("/{x=/a}", "empty segment"),
            ("/{x=}", "empty segment"),
            ("/{}", "name"),
            ("/{1x}", "name"),
            ("/{abcdefghijklmnopq}", "name"),
            ("/{a}/{b}/{c}/{d}/{e}/{f}", "more than 5"),
            ("/{x}/{x}", "same name"),
            ("/{x", "no }"),
            ("/x}", "no {"),
            ("/a b", "characters"),
            ("/a?b", "characters"),
            ("/\u{e9}", "characters"),
            ("/{x={y}}", "within"),
            ("/*a/b", "before the last"),
            ("/a*", "beginning of a segment"),
            ("/***", "beginning of a segment"),
        ] {
            let error = compile(template).expect_err(template).to_string();
            assert!(error.contains(why) && error.contains(template), "{template}: {error}");
        }
    }
}
