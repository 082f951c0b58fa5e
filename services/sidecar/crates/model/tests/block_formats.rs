//! Blocks of every quantised type against the values that the `gguf` package reads from them, bit for bit (`models/oracle/record_blocks.py`).

use std::collections::BTreeMap;

use kvasir_model::{TensorType, quant::dequantize};

#[derive(serde::Deserialize)]
struct Recorded {
    ggml: u32,
    bytes: String,
    f32: String,
}

fn bytes(hex: &str) -> Vec<u8> {
    let digit = |byte: u8| (byte as char).to_digit(16).expect("hex") as u8;
    hex.as_bytes()
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

#[test]
fn every_type_has_the_values_that_its_definition_gives() {
    let recorded: BTreeMap<String, Recorded> = serde_json::from_str(include_str!("fixtures/blocks.json")).unwrap();
    assert_eq!(recorded.len(), 8);
    for (name, recorded) in recorded {
        let tensor_type = TensorType::from_ggml(recorded.ggml).unwrap();
        assert_eq!(format!("{tensor_type:?}"), name);
        let (stored, expected) = (bytes(&recorded.bytes), bytes(&recorded.f32));
        let count = expected.len() / 4;
        assert_eq!(tensor_type.row_bytes(count), Some(stored.len()), "{name}");
        let mut values = vec![f32::NAN; count];
        dequantize(tensor_type, &stored, &mut values);
        let found: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(found == expected, "{name}: {values:?}");
    }
}
