//! What a text must match.

use llguidance::api::TopLevelGrammar;
use serde_json::{Value, json};

use crate::GrammarError;

/// Characters of a constraint at most; more costs seconds to compile.
const TEXT_MAX: usize = 256 << 10;
/// Between JSON's tokens: a space, or a line break and its indentation. Bounded, or a model that writes only spaces never ends.
const JSON_SPACE: &str = r"(\x20|\n[\x20\t]{0,20})";

/// What the whole text of an answer must match.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Constraint {
    /// Any JSON object.
    JsonObject,
    /// A JSON value that a schema (JSON Schema, as text) accepts.
    JsonSchema(String),
    /// All of a regular expression, in the syntax of the `regex` crate; anchors at its two ends change nothing.
    Regex(String),
    /// One of these texts.
    Choice(Vec<String>),
}

impl Constraint {
    /// In the words of the parser.
    pub(crate) fn grammar(&self) -> Result<TopLevelGrammar, GrammarError> {
        let length = match self {
            Self::JsonObject => 0,
            Self::JsonSchema(text) | Self::Regex(text) => text.len(),
            Self::Choice(texts) => texts.iter().map(String::len).sum(),
        };
        if length > TEXT_MAX {
            let message = format!("has {length} bytes; use at most {TEXT_MAX}");
            return Err(GrammarError::Constraint(message));
        }
        match self {
            Self::JsonObject => Ok(json_grammar(json!({ "type": "object" }))),
            Self::JsonSchema(text) => {
                let schema: Value = serde_json::from_str(text)
                    .map_err(|error| GrammarError::Constraint(format!("is no JSON: {error}")))?;
                match schema {
                    Value::Object(_) => Ok(json_grammar(schema)),
                    Value::Bool(true) => Ok(json_grammar(json!({}))),
                    _ => Err(GrammarError::Constraint("is no schema; give a JSON object".into())),
                }
            }
            Self::Regex(text) => Ok(TopLevelGrammar::from_regex(unanchored(text))),
            Self::Choice(texts) if texts.is_empty() || texts.iter().any(String::is_empty) => Err(
                GrammarError::Constraint("has an empty choice; give at least one text".into()),
            ),
            Self::Choice(texts) => {
                let escaped: Vec<String> = texts.iter().map(|text| escape(text)).collect();
                Ok(TopLevelGrammar::from_regex(&escaped.join("|")))
            }
        }
    }
}

fn json_grammar(mut schema: Value) -> TopLevelGrammar {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("x-guidance".into(), json!({ "whitespace_pattern": JSON_SPACE }));
    }
    TopLevelGrammar::from_json_schema(schema)
}

/// The parser's expressions match from end to end and know no anchors.
fn unanchored(regex: &str) -> &str {
    let regex = regex.strip_prefix('^').unwrap_or(regex);
    match regex.strip_suffix('$') {
        Some(body) if (body.len() - body.trim_end_matches('\\').len()) % 2 == 0 => body,
        _ => regex,
    }
}

fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_ascii_punctuation() {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_at_the_ends_go_and_escaped_ones_stay() {
        assert_eq!(unanchored("^a+$"), "a+");
        assert_eq!(unanchored(r"a\$"), r"a\$");
        assert_eq!(unanchored(r"a\\$"), r"a\\");
        assert_eq!(unanchored("a|b"), "a|b");
    }
}
