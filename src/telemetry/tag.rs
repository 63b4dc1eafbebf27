//! Tags that config adds to spans and to logs (`envoy.type.tracing.v3.CustomTag`), compiled.

use super::format::{Format, FormatContext};

/// A tag.
#[derive(Debug)]
pub struct CustomTag {
    /// Its name.
    pub name: Box<str>,
    /// Its value.
    pub value: TagValue,
}

/// The value of a tag.
#[derive(Debug)]
pub enum TagValue {
    /// This text.
    Text(Box<str>),
    /// What a request gives, or else this text; no tag if that is empty.
    Of(Format, Box<str>),
}

impl TagValue {
    /// The value for one stream; `None` = it has no such tag.
    pub fn of(&self, context: &FormatContext<'_>) -> Option<String> {
        match self {
            TagValue::Text(text) => Some(text.to_string()),
            TagValue::Of(format, otherwise) => {
                let mut out = Vec::new();
                format.render(&mut out, context);
                let text = String::from_utf8_lossy(&out);
                Some(if text.is_empty() { otherwise.to_string() } else { text.into_owned() })
                    .filter(|text| !text.is_empty())
            }
        }
    }
}
