//! Random walks through grammars: whatever is drawn from the masks matches.

use std::path::Path;

use kvasir_grammar::{Constraint, Grammars, Guide};
use proptest::prelude::*;
use serde_json::{Value, json};

const EOS: u32 = 0;
const PROMPT: usize = 7;

/// GPT-2's alphabet: printable bytes stand for themselves, the rest for characters from U+0100 on.
fn character(byte: u8) -> char {
    let prints = |byte: u8| matches!(byte, b'!'..=b'~' | 0xa1..=0xac | 0xae..);
    if prints(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !prints(*byte)).count();
    char::from_u32(0x100 + before as u32).unwrap()
}

/// Every byte and some longer tokens, among them ones that cross the borders of JSON's own tokens.
fn tokens() -> Vec<Vec<u8>> {
    let mut tokens = vec![b"<|end|>".to_vec()];
    tokens.extend((0..=255).map(|byte| vec![byte]));
    let long = [
        "\":", "\",\"", "{\"", "\"}", "true", "null", "name", " name", "12", "ab", "}}", "]}", "\u{e9}", "yes", "no",
    ];
    tokens.extend(long.map(|text| text.as_bytes().to_vec()));
    tokens
}

fn write_tokenizer(directory: &Path) {
    let text = |bytes: &[u8]| bytes.iter().map(|byte| character(*byte)).collect::<String>();
    let vocab: serde_json::Map<String, Value> = tokens()
        .iter()
        .enumerate()
        .skip(1)
        .map(|(id, token)| (text(token), id.into()))
        .collect();
    let tokenizer = json!({
        "added_tokens": [{ "id": EOS, "content": "<|end|>", "special": true }],
        "decoder": { "type": "ByteLevel" },
        "model": { "type": "BPE", "vocab": vocab },
    });
    std::fs::write(directory.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

fn grammars() -> Grammars {
    let directory = tempfile::tempdir().unwrap();
    write_tokenizer(directory.path());
    let grammars = Grammars::of_model(directory.path(), tokens().len() + 3, &[EOS]);
    grammars.check(&Constraint::JsonObject).unwrap();
    grammars
}

/// Draws until the text is complete and `ends` says so; `None` when it takes too long.
fn walk(mut guide: Guide, mut draw: impl FnMut(usize) -> usize) -> Option<String> {
    let tokens = tokens();
    let mut text = Vec::new();
    for step in 0..600 {
        guide.prepare();
        let mask = guide.mask().unwrap();
        assert!(!mask.is_dead());
        let allowed: Vec<u32> = mask.tokens().collect();
        assert!(!allowed.contains(&EOS), "ends are the sequence's own");
        if mask.is_complete() && (allowed.is_empty() || draw(3) == 0) {
            return Some(String::from_utf8(text).expect("whole characters"));
        }
        let token = allowed[draw(allowed.len())];
        text.extend(&tokens[token as usize]);
        guide.push(PROMPT + step, token);
    }
    None
}

fn draws(seed: u64) -> impl FnMut(usize) -> usize {
    let mut state = seed | 1;
    move |count| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % count as u64) as usize
    }
}

#[test]
fn texts_match_regular_expressions_choices_and_schemas() {
    let grammars = grammars();
    let guide = |constraint: &Constraint| grammars.guide(constraint, PROMPT).unwrap();
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "maxLength": 6 },
            "age": { "type": "integer", "minimum": 0, "maximum": 120 },
            "tags": { "type": "array", "items": { "$ref": "#/$defs/tag" }, "maxItems": 3 },
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
        "$defs": { "tag": { "enum": ["red", "green"] } },
    });
    let ended = std::cell::Cell::new(0);
    proptest!(ProptestConfig::with_cases(40), |(seed: u64)| {
        let mut draw = draws(seed);
        let date = walk(guide(&Constraint::Regex(r"^[0-9]{4}-(0[1-9]|1[0-2])$".into())), &mut draw).unwrap();
        prop_assert!(date.len() == 7 && date.as_bytes()[4] == b'-' && (1..=12).contains(&date[5..].parse::<u8>().unwrap()));

        let choices = ["yes", "no", "not (yet)?", "caf\u{e9}"].map(String::from).to_vec();
        let choice = walk(guide(&Constraint::Choice(choices.clone())), &mut draw).unwrap();
        prop_assert!(choices.contains(&choice));

        if let Some(text) = walk(guide(&Constraint::JsonSchema(schema.to_string())), &mut draw) {
            let value: Value = serde_json::from_str(&text).unwrap();
            let keys: Vec<&String> = value.as_object().unwrap().keys().collect();
            prop_assert_eq!(keys, ["name", "age", "tags"]);
            prop_assert!(value["name"].as_str().unwrap().chars().count() <= 6);
            prop_assert!(value["age"].as_u64().unwrap() <= 120);
            let tags = value["tags"].as_array().unwrap();
            prop_assert!(tags.len() <= 3 && tags.iter().all(|tag| tag == "red" || tag == "green"));
            ended.set(ended.get() + 1);
        }
    });
    assert!(ended.get() > 20, "only {} of 40 walks ended", ended.get());
}

#[test]
fn a_guide_that_learns_tokens_late_allows_the_same() {
    let grammars = grammars();
    let constraint = Constraint::Regex("a+b(yes|no)".into());
    let spelled: Vec<u32> = "aab".bytes().map(|byte| u32::from(byte) + 1).collect();
    let mut early = grammars.guide(&constraint, PROMPT).unwrap();
    let mut late = grammars.guide(&constraint, PROMPT).unwrap();
    for (step, token) in spelled.iter().enumerate() {
        early.prepare();
        early.push(PROMPT + step, *token);
        late.push(PROMPT + step, *token);
        late.push(PROMPT + step, *token); // Known already.
        late.push(step, *token); // Of the prompt.
    }
    early.prepare();
    late.prepare();
    assert_eq!(early.mask(), late.mask());
    let texts: Vec<Vec<u8>> = late
        .mask()
        .unwrap()
        .tokens()
        .map(|id| tokens()[id as usize].clone())
        .collect();
    assert_eq!(texts, [b"n".to_vec(), b"y".to_vec(), b"yes".to_vec(), b"no".to_vec()]);
}

#[test]
fn what_cannot_be_honoured_is_refused_with_its_reason() {
    let grammars = grammars();
    let reason = |constraint: Constraint| grammars.check(&constraint).unwrap_err().to_string();
    let schema = |schema: Value| reason(Constraint::JsonSchema(schema.to_string()));
    assert!(
        reason(Constraint::Regex("(".into())).contains("regex"),
        "{}",
        reason(Constraint::Regex("(".into()))
    );
    assert!(reason(Constraint::JsonSchema("{".into())).contains("is no JSON"));
    assert!(reason(Constraint::JsonSchema("[]".into())).contains("is no schema"));
    assert!(schema(json!({ "type": "color" })).contains("color"));
    assert!(schema(json!({ "$ref": "#/$defs/none" })).contains("none"));
    assert!(reason(Constraint::Choice(Vec::new())).contains("empty"));
    assert!(reason(Constraint::Regex("a".repeat(300 << 10))).contains("bytes"));
    let deep = format!("{}1{}", "[".repeat(5000), "]".repeat(5000));
    assert!(reason(Constraint::JsonSchema(deep)).contains("is no JSON"));
    assert!(
        grammars
            .check(&Constraint::Regex(format!("{}a{}", "(".repeat(5000), ")".repeat(5000))))
            .is_err()
    );

    let nowhere = Grammars::of_model(Path::new("/nonexistent"), 10, &[EOS]);
    assert!(
        nowhere
            .check(&Constraint::JsonObject)
            .unwrap_err()
            .to_string()
            .contains("tokenizer.json")
    );
}
